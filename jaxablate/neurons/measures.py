"""How unevenly a unit fires, and how much its firing says of the token (docs/papers.md, Neuron measures).

Of a unit with activations a over n tokens:

    lifetime sparsity   1 - (sum |a| / n)^2 / (sum a^2 / n)                     (Treves & Rolls 1991)
    Hoyer               (sqrt n - |a|_1 / |a|_2) / (sqrt n - 1)                 (Hoyer 2004)
    Gini                2 sum_i i |a|_(i) / (n sum |a|) - (n + 1) / n           |a|_(1) <= |a|_(2) <= ...
    excess kurtosis     m_4 / m_2^2 - 3                                         m_p: central moments

and of a unit that fires on m of them, t_c of these of class c (the current token), of n_c tokens of the class:

    effective tokens    exp H(c | fires), H = - sum_c (t_c / m) ln (t_c / m)
    information         I(fires; c) in bits
    selectivity         (mu_max - mu_rest) / (mu_max + mu_rest), mu_c = t_c / n_c, mu_rest that of all other classes
"""

import dataclasses

import numpy as np

LEAST_OF_CLASS = 50
"""A class with fewer tokens is no candidate for mu_max: its firing rate would be noise."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """How unevenly units are active over tokens, float64 [units]; NaN for a unit that is always 0 (kurtosis: constant).

    All are 0 for a constant |a| but kurtosis, and approach 1, kurtosis infinity, for a single active token.
    """

    lifetime_sparsity: np.ndarray
    hoyer: np.ndarray
    gini: np.ndarray
    kurtosis: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenSelectivity:
    """What the firing of units says of the current token, float64 [units]; NaN for a unit that never fires."""

    effective_tokens: np.ndarray
    information: np.ndarray
    """Bits, plug-in estimate: not corrected."""
    selectivity: np.ndarray
    """NaN also where no class has `LEAST_OF_CLASS` tokens."""


def shape(sums: np.ndarray, pilot: np.ndarray, tokens: int, gini: np.ndarray) -> Shape:
    """Measures from power sums.

    Args:
      sums: [5, units] float64: sum |a|, then sum (a - pilot)^p for p = 1..4. A pilot near the mean keeps the central
        moments free of cancellation.
      pilot: [units].
      tokens: n.
      gini: [units], from `gini_of`.

    >>> one = shape(np.array([[2.0], [2.0], [4.0], [8.0], [16.0]]), np.zeros(1), 4, np.zeros(1))  # 2, 0, 0, 0
    >>> one.lifetime_sparsity.item(), one.hoyer.item(), round(one.kurtosis.item(), 4)
    (0.75, 1.0, -0.6667)
    """
    absolute, s1, s2, s3, s4 = sums
    square = s2 + 2 * pilot * s1 + tokens * pilot**2
    d = s1 / tokens
    m2 = s2 / tokens - d**2
    m4 = (s4 - 4 * d * s3 + 6 * d**2 * s2) / tokens - 3 * d**4
    alive, varies = square > 0, m2 > 1e-12 * square / tokens
    ratio = np.divide(absolute**2, tokens * square, out=np.full_like(square, np.nan), where=alive)
    root = np.sqrt(tokens)
    kurtosis = np.divide(m4, m2**2, out=np.full_like(m4, np.nan), where=varies) - 3
    hoyer = (1 - np.sqrt(ratio)) * root / (root - 1) if tokens > 1 else np.zeros_like(ratio)
    return Shape(lifetime_sparsity=1 - ratio, hoyer=hoyer, gini=gini, kurtosis=kurtosis)


def binary_shape(fired: np.ndarray, tokens: int) -> Shape:
    """Measures of gates that are 0 or 1: exact functions of how often they are 1.

    Args:
      fired: [units] number of tokens.
      tokens: n.
    """
    fired = np.asarray(fired, np.float64)
    zero = np.zeros_like(fired)
    gini = np.where(fired > 0, 1 - fired / tokens, np.nan)
    return shape(np.stack([fired] * 5), zero, tokens, gini)


def power_sums(values: np.ndarray, pilot: np.ndarray) -> np.ndarray:
    """The sums that `shape` takes, of values [units, n]: float64 [5, units]."""
    y = values - pilot[:, None]
    y2 = y * y
    return np.stack([np.abs(values).sum(-1), y.sum(-1), y2.sum(-1), (y2 * y).sum(-1), (y2 * y2).sum(-1)])


def gini_of(sizes: np.ndarray) -> np.ndarray:
    """Gini index of each row of sizes [units, n], |a| sorted ascending; NaN for a row of zeros.

    >>> gini_of(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])).tolist()
    [0.0, 0.75]
    """
    n = sizes.shape[-1]
    total = sizes.sum(-1, dtype=np.float64)
    ranked = sizes @ np.arange(1, n + 1, dtype=np.float64)
    return np.divide(2 * ranked, n * total, out=np.full_like(total, np.nan), where=total > 0) - (n + 1) / n


def token_selectivity(table: np.ndarray, counts: np.ndarray, candidates: np.ndarray
                      ) -> tuple[TokenSelectivity, np.ndarray]:
    """Measures from how often units fire on each class.

    Args:
      table: [C, units] t_c.
      counts: [C] n_c.
      candidates: bool [C], which classes may be the one that fires the unit most.

    Returns:
      The measures, and the class of mu_max, int [units], -1 where there is none.

    >>> found, best = token_selectivity(np.array([[2, 1], [0, 1]]), np.array([2, 2]), np.array([True, True]))
    >>> found.information.tolist(), found.effective_tokens.round(6).tolist(), found.selectivity.tolist()
    ([1.0, 0.0], [1.0, 2.0], [1.0, 0.0])
    >>> best.tolist()
    [0, 0]
    """
    t, c = table.astype(np.float64), counts.astype(np.float64)[:, None]
    m, n = t.sum(0), c.sum()
    fired = m > 0
    inside = _x_log_x(t).sum(0)
    entropy = np.log(np.maximum(m, 1)) - inside / np.maximum(m, 1)
    conditional = inside + _x_log_x(c - t).sum(0) - _x_log_x(c).sum()
    information = (conditional - _x_log_x(m) - _x_log_x(n - m) + _x_log_x(n)) / (n * np.log(2))
    selectivity, best = _selectivity(t, c, m, candidates)
    return TokenSelectivity(effective_tokens=np.where(fired, np.exp(entropy), np.nan),
                            information=np.where(fired, np.maximum(information, 0), np.nan),
                            selectivity=np.where(fired, selectivity, np.nan)), np.where(fired, best, -1)


def _selectivity(t: np.ndarray, c: np.ndarray, m: np.ndarray, candidates: np.ndarray):
    if not candidates.any():
        return np.full(t.shape[1], np.nan), np.full(t.shape[1], -1)
    rate = np.where(candidates[:, None], t / np.maximum(c, 1), -1)
    best = rate.argmax(0)
    most, units = rate.max(0), np.arange(t.shape[1])
    others = np.maximum(c.sum() - c[best, 0], 1)
    rest = (m - t[best, units]) / others
    return np.divide(most - rest, most + rest, out=np.zeros_like(most), where=most + rest > 0), best


def _x_log_x(x: np.ndarray) -> np.ndarray:
    """x ln x of whole numbers, 0 at 0."""
    return x * np.log(np.maximum(x, 1))
