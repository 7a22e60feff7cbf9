"""A number with its 95 % interval, and the three ways an interval is made: bootstrap, Student's t, Wilson's score.

Every figure, bar, table cell and comparison of this package holds an `Estimate`; nothing else carries an interval.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
_MOST_RESAMPLED = 1 << 16  # numbers weighted at once: few calls for few units, little memory for many
Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""
UNBOUNDED = (-math.inf, math.inf)
FRACTION = (0.0, 1.0)
COUNT = (0.0, math.inf)
"""Ranges of numbers that an interval may not leave: any number, a fraction of something, a number of things."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Printed with the decimals that the interval's width warrants; without an interval with four significant digits.

    >>> print(Estimate(1.8013, 1.7891, 1.8152), Estimate(0.25), Estimate(None))
    1.801 [1.789, 1.815] 0.2500 -

    Raises:
      ValueError: one end of the interval is given without the other, or they are in the wrong order.
    """

    value: int | float | None
    """None where the number does not exist (an ablated loss without an ablated stream)."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval, both or neither."""
    n: int | None = None
    """Independent units that the interval is over (texts, prompts, stories, runs)."""
    how: str = ""
    """How the interval was made: ``bootstrap``, ``Student t``, ``Wilson``."""

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ValueError(f"estimate {self.value}: give both ends of the interval or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"estimate {self.value}: the interval [{self.low}, {self.high}] is the wrong way round")

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return self.low is not None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def __float__(self) -> float:
        """The number alone.

        Raises:
          ValueError: there is none.
        """
        if self.value is None:
            raise ValueError("the estimate has no value")
        return float(self.value)

    def overlaps(self, other: "Estimate") -> bool | None:
        """Whether the two intervals have a point in common; None where one has no interval."""
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]

    def __str__(self) -> str:
        if self.interval is None or self.interval[0] == self.interval[1]:
            return number(self.value)
        low, high = map(float, self.interval)
        value = None if self.value is None else float(self.value)
        return f"{number(value, low, high)} [{number(low, low, high)}, {number(high, low, high)}]"


def estimate(value: "Estimate | float | int | None") -> Estimate:
    """The value as an `Estimate`; a plain number becomes one without an interval."""
    return value if isinstance(value, Estimate) else Estimate(value)


def from_json(value: Any) -> Any:
    """An `Estimate` where a mapping has the fields of one, as ``dataclasses.asdict`` writes it; else the value itself.

    >>> from_json({"value": 2.0, "low": None, "high": None, "n": 3, "how": ""})
    Estimate(value=2.0, low=None, high=None, n=3, how='')
    """
    if not isinstance(value, Mapping) or set(value) != {field.name for field in dataclasses.fields(Estimate)}:
        return value
    if value["low"] is None or value["high"] is None:  # JSON has no infinite end
        value = {**value, "low": None, "high": None}
    return Estimate(**value)


def number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number as people read it: as many decimals as its interval warrants, else four significant digits.

    >>> number(6.4712, 6.31, 6.63), number(0.00012345), number(14535249), number(None)
    ('6.47', '0.0001234', '14,535,249', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1e4):
        return f"{int(value):,}"
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        decimals = max(0, min(6, 1 - math.floor(math.log10((high - low) / 2))))
        return f"{value:,.{decimals}f}"
    if not value:
        return "0"
    size = math.floor(math.log10(abs(value)))
    return f"{value:.3e}" if size < -5 else f"{value:,.{max(0, 3 - size)}f}"


def mean(values: np.ndarray | Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean over independent units [units] with a bootstrap interval, which needs two units.

    >>> mean([1.0]).interval is None
    True
    """
    values = np.asarray(values, np.float64)
    draws = ratio_resamples(values, np.ones_like(values), seed=seed) if values.size > 1 else np.zeros(0)
    return from_draws(float(values.mean()), draws, n=values.size)


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0,
          transform: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Estimate:
    """A transformed ratio of sums over units [units] with a bootstrap interval; see `ratio_resamples`."""
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    total = denominators.sum()
    value = transform(np.asarray(numerators.sum() / total if total else np.nan))
    draws = ratio_resamples(numerators, denominators, seed=seed) if numerators.size > 1 else np.zeros(0)
    return from_draws(float(value), transform(draws), n=numerators.size)


def proportion(successes: int, trials: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927), inside [0, 1] also at 0 and at all trials.

    >>> print(proportion(10, 10), proportion(0, 0))
    1.00 [0.72, 1.00] -
    """
    if trials == 0:
        return Estimate(None, n=0)
    p, z2 = successes / trials, Z_95**2
    centre = p + z2 / (2 * trials)
    half = Z_95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    # Exactly 0 and 1 at the ends, where rounding would leave a little.
    low, high = min(p, (centre - half) / scale), max(p, (centre + half) / scale)
    return Estimate(p, max(0.0, low), min(1.0, high), n=trials, how="Wilson")


def student(values: Sequence[float], *, within: tuple[float, float] = UNBOUNDED) -> Estimate:
    """Mean over independent runs with the interval of Student's t with n - 1 degrees of freedom.

    The interval is cut at the least and greatest number possible, ``within``; fewer than two values have none.

    >>> print(student([1.0, 2.0, 3.0]), student([1.0, 2.0, 3.0], within=COUNT))
    2.0 [-0.5, 4.5] 2.0 [0.0, 4.5]
    """
    from scipy import special  # costs more time to import than all else of this file

    n = len(values)
    average = float(np.mean(values))
    if n < 2:
        return Estimate(average, n=n)
    half = float(special.stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    # The mean of values inside the range is inside it, but for rounding.
    low, high = min(max(average - half, within[0]), average), max(min(average + half, within[1]), average)
    return Estimate(average, low, high, n=n, how="Student t")


def difference(value: Estimate, reference: Estimate) -> Estimate:
    """Value minus reference, its interval made of the two intervals as if they were of independent samples.

    Method of variance estimates recovery (Zou and Donner 2008, equation 2; for proportions Newcombe 1998, method 10):
    with intervals [l, u] of value v and [l', u'] of reference v' the ends are v - v' - sqrt((v - l)^2 + (u' - v')^2)
    and v - v' + sqrt((u - v)^2 + (v' - l')^2). Without both intervals there is none. Where both numbers are measured on
    the same texts, they mostly go up and down together, and the interval is wider than need be.

    >>> print(difference(Estimate(1.8, 1.7, 1.9), Estimate(2.0, 1.8, 2.2)), difference(Estimate(1), Estimate(3)))
    -0.20 [-0.42, 0.02] -2
    """
    if value.value is None or reference.value is None:
        return Estimate(None)
    v, w = float(value), float(reference)
    if value.interval is None or reference.interval is None:
        return Estimate(value.value - reference.value)
    (low, high), (low_w, high_w) = value.interval, reference.interval
    return Estimate(v - w, v - w - math.hypot(v - low, high_w - w), v - w + math.hypot(high - v, w - low_w),
                    how="from both intervals")


def t_test(values: Sequence[float], references: Sequence[float], *, paired: bool) -> tuple[Estimate, float | None]:
    """Mean difference of two groups of runs with its 95 % interval, and the two-sided p of Student's t-test.

    Args:
      values: at least two numbers.
      references: at least two; where ``paired`` as many, each the counterpart of the value in its place.
      paired: whether the test is of the differences of pairs; otherwise it is Welch's (1947), which does not take the
        two variances for equal.

    Returns:
      (difference, p); p is None where nothing varies.

    >>> difference, p = t_test([1.0, 2.0, 3.0], [0.0, 1.5, 2.5], paired=True)
    >>> print(difference, round(p, 4))
    0.67 [-0.05, 1.38] 0.0572
    """
    from scipy import special

    a, b = np.asarray(values, np.float64), np.asarray(references, np.float64)
    if paired:
        estimated = student((a - b).tolist())
        variance, freedom = float(np.var(a - b, ddof=1)) / a.size, a.size - 1.0
    else:
        va, vb = float(np.var(a, ddof=1)) / a.size, float(np.var(b, ddof=1)) / b.size
        variance, mean_difference = va + vb, float(a.mean() - b.mean())
        if variance == 0:
            return Estimate(mean_difference, mean_difference, mean_difference, how="Welch"), None
        freedom = variance**2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
        half = float(special.stdtrit(freedom, 0.975)) * math.sqrt(variance)
        estimated = Estimate(mean_difference, mean_difference - half, mean_difference + half, how="Welch")
    if variance == 0:
        return estimated, None
    return estimated, 2 * float(special.stdtr(freedom, -abs(float(estimated)) / math.sqrt(variance)))


def holm(ps: Sequence[float]) -> list[float]:
    """p values after Holm's (1979) correction for that many tests: the i-th smallest times the number of those not
    smaller, never below the one before it, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def from_draws(value: float | None, draws: np.ndarray, *, n: int | None = None) -> Estimate:
    """A number with the middle 95 % of its bootstrap draws [resamples]; no interval where no draw is finite.

    >>> from_draws(50.0, np.arange(101.0), n=9)
    Estimate(value=50.0, low=2.5, high=97.5, n=9, how='bootstrap')
    """
    draws = draws[np.isfinite(draws)]
    if value is None or not math.isfinite(value) or draws.size == 0:
        return Estimate(None if value is None or math.isnan(value) else value, n=n)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n=n, how="bootstrap")


def ratio_resamples(numerators: np.ndarray, denominators: np.ndarray, *, resamples: int = RESAMPLES,
                    seed: int = 0) -> np.ndarray:
    """Bootstrap draws of a ratio of sums, the units drawn whole with replacement.

    The mean loss per token is sum(losses of a story) / sum(tokens of a story) over stories; drawing stories, not
    tokens, respects that tokens of one story are not independent.

    Args:
      numerators: [..., units]; several numerators over the same units share each draw (paired).
      denominators: [..., units], broadcast against ``numerators``.
      resamples: number of draws.
      seed: seed of the draws; the same seed and number of units give the same draws.

    Returns:
      [..., resamples] float64.
    """
    units = numerators.shape[-1]
    rng = np.random.default_rng(seed)
    together = max(1, _MOST_RESAMPLED // max(numerators.size, denominators.size))
    draws = []
    for start in range(0, resamples, together):
        rows = min(together, resamples - start)
        drawn = rng.integers(0, units, size=(rows, units)) + units * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        total = (denominators[..., None, :] * weights).sum(-1)
        draws.append((numerators[..., None, :] * weights).sum(-1) / np.where(total > 0, total, np.nan))
    return np.concatenate(draws, axis=-1)
