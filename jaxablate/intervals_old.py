"""95 % intervals: bootstrap over independent units, Wilson for proportions."""

import math
from collections.abc import Callable

import numpy as np

Z_95 = 1.959963984540054
RESAMPLES = 1000


def ratio_resamples(numerators: np.ndarray, denominators: np.ndarray, *, resamples: int = RESAMPLES,
                    seed: int = 0) -> np.ndarray:
    """Bootstrap draws of a ratio of sums, the units drawn whole with replacement.

    The mean loss per token is sum(losses of a story) / sum(tokens of a story) over stories; drawing stories, not
    tokens, respects that tokens of one story are not independent.

    Args:
      numerators: [..., units]; several numerators over the same units share each draw (paired).
      denominators: [..., units], broadcast against ``numerators``.
      resamples: number of draws.
      seed: of the draws; the same seed and number of units give the same draws.

    Returns:
      [..., resamples] float64.
    """
    units = numerators.shape[-1]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, units, size=units), minlength=units)
        total = (denominators * weight).sum(-1)
        draws.append((numerators * weight).sum(-1) / np.where(total > 0, total, np.nan))
    return np.stack(draws, axis=-1)


def percentile_interval(draws: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = lambda x: x
                        ) -> tuple[float, float] | None:
    """Middle 95 % of bootstrap draws [resamples]; None where there is nothing finite to take it from.

    >>> percentile_interval(np.arange(101.0))
    (2.5, 97.5)
    """
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return None
    low, high = np.percentile(transform(draws), [2.5, 97.5])
    return float(low), float(high)


def both_ends(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """Both ends of an interval as cells of a table, None where there is no interval."""
    return interval or (None, None)


def interval_ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
    """Ends of an interval by the names that figures and bars have for them, both None where there is no interval."""
    low, high = both_ends(interval)
    return {"low": low, "high": high}


def mean_interval(values: np.ndarray, *, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of a mean over units [units]; None with fewer than two units."""
    if values.size < 2:
        return None
    return percentile_interval(ratio_resamples(values, np.ones_like(values), seed=seed))


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    """Wilson score interval of a proportion (Wilson 1927), inside [0, 1] also at 0 and at all; None without trials.

    >>> tuple(round(x, 4) for x in wilson(10, 10))
    (0.7225, 1.0)
    """
    if trials == 0:
        return None
    p, z2 = successes / trials, Z_95**2
    centre = p + z2 / (2 * trials)
    half = Z_95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
