"""How unevenly a unit fires, how much its firing says of the token, and what both are by chance.

The formulas are those of docs/papers.md, Neuron measures. Of a unit with activations a over n tokens:

    lifetime sparsity   1 - (sum |a| / n)^2 / (sum a^2 / n)                     (Treves & Rolls 1991)
    Hoyer               (sqrt n - |a|_1 / |a|_2) / (sqrt n - 1)                 (Hoyer 2004)
    Gini                2 sum_i i |a|_(i) / (n sum |a|) - (n + 1) / n           |a|_(1) <= |a|_(2) <= ...
    excess kurtosis     m_4 / m_2^2 - 3                                         m_p: central moments

and of a unit that fires on m of them, t_c of these of class c (the current token), of n_c tokens of the class:

    effective tokens    exp H(c | fires), H = - sum_c (t_c / m) ln (t_c / m)
    information         I(fires; c) in bits
    selectivity         (mu_max - mu_rest) / (mu_max + mu_rest), mu_c = t_c / n_c, mu_rest that of all other classes

A unit's firing rate alone moves every measure (one that fires on few tokens has few effective tokens), and a gate fixes
the rate by construction. So a measure says something of a model only beside its values under two nulls: shuffled tokens
(`shuffle_tokens`), and random directions that fire as often (`matched`).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Integer, Num

LEAST_OF_CLASS = 50
"""A class with fewer tokens is no candidate for mu_max: its firing rate would be noise."""
SHUFFLE_GRID = 40
"""Numbers of firings at which tokens are shuffled; between them values are interpolated in the logarithm."""
NEIGHBOURS = 8
"""Random directions, nearest in rate, whose mean is what a unit of that rate is compared with."""


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


def shape(sums: Float[np.ndarray, "5 units"], pilot: Float[np.ndarray, " units"], tokens: int,
          gini: Float[np.ndarray, " units"]) -> Shape:
    """Measures of shape from power sums: sum |a|, then sum (a - pilot)^p for p = 1..4, float64.

    A pilot near a unit's mean keeps the central moments free of cancellation.

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


def binary_shape(fired: Num[np.ndarray, " units"], tokens: int) -> Shape:
    """Measures of units that are 0 or 1: exact functions of the number of tokens on which each is 1."""
    fired = np.asarray(fired, np.float64)
    gini = np.where(fired > 0, 1 - fired / tokens, np.nan)
    return shape(np.stack([fired] * 5), np.zeros_like(fired), tokens, gini)


def power_sums(values: Float[np.ndarray, "units tokens"], pilot: Float[np.ndarray, " units"]
               ) -> Float[np.ndarray, "5 units"]:
    """The sums that `shape` takes, float64 for values in float64."""
    y = values - pilot[:, None]
    y2 = y * y
    return np.stack([np.abs(values).sum(-1), y.sum(-1), y2.sum(-1), (y2 * y).sum(-1), (y2 * y2).sum(-1)])


def gini_of(sizes: Float[np.ndarray, "units tokens"]) -> Float[np.ndarray, " units"]:
    """Gini index of each row, |a| sorted ascending; NaN for a row of zeros.

    >>> gini_of(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0]])).tolist()
    [0.0, 0.75]
    """
    n = sizes.shape[-1]
    total = sizes.sum(-1, dtype=np.float64)
    ranked = sizes @ np.arange(1, n + 1, dtype=np.float64)
    return np.divide(2 * ranked, n * total, out=np.full_like(total, np.nan), where=total > 0) - (n + 1) / n


def token_selectivity(
    table: Integer[np.ndarray, "classes units"], counts: Integer[np.ndarray, " classes"],
    candidates: Bool[np.ndarray, " classes"],
) -> tuple[TokenSelectivity, Integer[np.ndarray, " units"]]:
    """Measures from t_c and n_c, and the class of mu_max, which is one of the candidates; -1 where there is none.

    >>> measures, best = token_selectivity(np.array([[2, 1], [0, 1]]), np.array([2, 2]), np.array([True, True]))
    >>> measures.information.tolist(), measures.effective_tokens.round(6).tolist(), measures.selectivity.tolist()
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
    if candidates.any():
        rate = np.where(candidates[:, None], t / np.maximum(c, 1), -1)
        best, most = rate.argmax(0), rate.max(0)
        rest = (m - t[best, np.arange(len(m))]) / np.maximum(n - c[best, 0], 1)
        selectivity = np.divide(most - rest, most + rest, out=np.zeros_like(most), where=most + rest > 0)
    else:
        best, selectivity = np.full(len(m), -1), np.full(len(m), np.nan)
    return TokenSelectivity(effective_tokens=np.where(fired, np.exp(entropy), np.nan),
                            information=np.where(fired, np.maximum(information, 0), np.nan),
                            selectivity=np.where(fired, selectivity, np.nan)), np.where(fired, best, -1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShuffledTokens:
    """Measures under shuffles of the tokens, by the number of firings.

    The firings of a unit stay where they are and tokens are permuted: then the unit's row of the table of classes is
    multivariate hypergeometric, whatever the unit, so it is drawn from that distribution and needs no model.
    """

    log_fired: np.ndarray
    """[grid] logarithms of the numbers of firings."""
    mean: TokenSelectivity
    """Means over the draws, arrays [grid]."""
    information_95: np.ndarray
    """[grid] 95 % quantile of the information over the draws."""

    def at(self, fired: Integer[np.ndarray, " units"]) -> tuple[TokenSelectivity, Float[np.ndarray, " units"]]:
        """Expected measures of units that fire so often, and the 95 % quantile of their information."""
        x = np.log(np.maximum(fired, 1))

        def interpolated(y: np.ndarray) -> np.ndarray:
            return np.where(fired > 0, np.interp(x, self.log_fired, y), np.nan)

        fields = {name: interpolated(values) for name, values in vars(self.mean).items()}
        return TokenSelectivity(**fields), interpolated(self.information_95)


def shuffle_tokens(counts: Integer[np.ndarray, " classes"], candidates: Bool[np.ndarray, " classes"],
                   fired: Integer[np.ndarray, " units"], *, draws: int, seed: int) -> ShuffledTokens:
    """Draws shuffles at up to `SHUFFLE_GRID` numbers of firings, from the least of ``fired`` but 0 to the greatest."""
    rng = np.random.default_rng(seed)
    alive = fired[fired > 0]
    ends = (1, 1) if alive.size == 0 else (alive.min(), alive.max())
    grid = np.unique(np.geomspace(*ends, SHUFFLE_GRID).round().astype(np.int64))
    occurs = counts > 0
    drawn = [token_selectivity(rng.multivariate_hypergeometric(counts[occurs], m, size=draws, method="marginals").T,
                               counts[occurs], candidates[occurs])[0] for m in grid]
    names = [field.name for field in dataclasses.fields(TokenSelectivity)]
    means = TokenSelectivity(**{name: np.array([getattr(x, name).mean() for x in drawn]) for name in names})
    return ShuffledTokens(log_fired=np.log(grid), mean=means,
                          information_95=np.array([np.quantile(x.information, 0.95) for x in drawn]))


def matched(rates: Float[np.ndarray, " units"], direction_rates: Float[np.ndarray, " directions"],
            values: Float[np.ndarray, " directions"]) -> Float[np.ndarray, " units"]:
    """What random directions have that fire as often as each unit.

    The mean over the `NEIGHBOURS` directions nearest in rate, interpolated linearly in the logarithm of the rate; a
    unit that fires less or more often than all directions gets the value of the nearest ones. NaN for a unit that never
    fires (rate 0 or NaN), or where no direction has the measure (value NaN).
    """
    good = np.isfinite(values) & (direction_rates > 0)
    result = np.full(rates.shape, np.nan)
    if not good.any():
        return result
    order = np.argsort(direction_rates[good], kind="stable")
    size = min(NEIGHBOURS, len(order))
    x, y = (np.lib.stride_tricks.sliding_window_view(a[good][order], size).mean(-1)
            for a in (np.log(np.where(good, direction_rates, 1.0)), values))
    x, inverse = np.unique(x, return_inverse=True)
    y = np.bincount(inverse, y) / np.bincount(inverse)
    fires = rates > 0
    result[fires] = np.interp(np.log(rates[fires]), x, y)
    return result


def _x_log_x(x: np.ndarray) -> np.ndarray:
    """x ln x of whole numbers, 0 at 0."""
    return x * np.log(np.maximum(x, 1))
