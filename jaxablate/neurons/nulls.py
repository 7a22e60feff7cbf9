"""What the measures are by chance: of shuffled tokens, and of random directions that fire as often.

A unit's firing rate alone moves every measure (one that fires on few tokens has few effective tokens), and a gate fixes
the rate by construction, so a measure says something of a model only beside these two.
"""

import dataclasses

import numpy as np

from jaxablate.neurons.measures import TokenSelectivity, token_selectivity

GRID = 40
"""Numbers of firings at which tokens are shuffled; between them values are interpolated in the logarithm."""
NEIGHBOURS = 8
"""Random directions, nearest in rate, whose mean is what a unit of that rate is compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShuffledTokens:
    """Measures under shuffles of the tokens, by the number of firings.

    The firings of a unit stay where they are and tokens are permuted: then the unit's row of the table of classes is
    multivariate hypergeometric, whatever the unit, so it is drawn from that distribution and needs no model.

    Attributes:
      log_fired: [G] log of the numbers of firings.
      mean: means over the draws, arrays [G].
      information_95: [G] 95 % quantile of the information over the draws.
    """

    log_fired: np.ndarray
    mean: TokenSelectivity
    information_95: np.ndarray

    def at(self, fired: np.ndarray) -> tuple[TokenSelectivity, np.ndarray]:
        """Expected measures of units that fire so often [units], and the 95 % quantile of their information."""
        alive = fired > 0
        x = np.log(np.maximum(fired, 1))

        def interpolated(y: np.ndarray) -> np.ndarray:
            return np.where(alive, np.interp(x, self.log_fired, y), np.nan)

        fields = {f.name: interpolated(getattr(self.mean, f.name)) for f in dataclasses.fields(TokenSelectivity)}
        return TokenSelectivity(**fields), interpolated(self.information_95)


def shuffle_tokens(counts: np.ndarray, candidates: np.ndarray, fired: np.ndarray, *, draws: int, seed: int
                   ) -> ShuffledTokens:
    """Draws shuffles for numbers of firings between the least and the greatest of ``fired``.

    Args:
      counts: [C] tokens of each class.
      candidates: bool [C], as in `token_selectivity`.
      fired: numbers of firings of all units; zeros are passed over.
      draws: at each of up to `GRID` numbers.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    alive = fired[fired > 0]
    ends = (1, 1) if alive.size == 0 else (alive.min(), alive.max())
    grid = np.unique(np.geomspace(*ends, GRID).round().astype(np.int64))
    there = counts > 0
    found = []
    for m in grid:
        drawn = rng.multivariate_hypergeometric(counts[there], m, size=draws, method="marginals")
        found.append(token_selectivity(drawn.T, counts[there], candidates[there])[0])
    names = [f.name for f in dataclasses.fields(TokenSelectivity)]
    means = TokenSelectivity(**{name: np.array([getattr(x, name).mean() for x in found]) for name in names})
    upper = np.array([np.quantile(x.information, 0.95) for x in found])
    return ShuffledTokens(log_fired=np.log(grid), mean=means, information_95=upper)


def matched(rates: np.ndarray, direction_rates: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What random directions have that fire as often as each unit.

    The mean over the `NEIGHBOURS` directions nearest in rate, interpolated linearly in the logarithm of the rate; a
    unit that fires less or more often than all directions gets the value of the nearest ones.

    Args:
      rates: [units] firing rates of units, NaN or 0 for those that never fire.
      direction_rates: [R] of random directions.
      values: [R] their measure; NaN is passed over.

    Returns:
      [units], NaN for a unit that never fires, or where no direction has the measure.
    """
    good = np.isfinite(values) & (direction_rates > 0)
    result = np.full(rates.shape, np.nan)
    if not good.any():
        return result
    order = np.argsort(direction_rates[good], kind="stable")
    size = min(NEIGHBOURS, len(order))
    x = _moving_mean(np.log(direction_rates[good][order]), size)
    y = _moving_mean(values[good][order], size)
    x, inverse = np.unique(x, return_inverse=True)
    y = np.bincount(inverse, y) / np.bincount(inverse)
    fires = rates > 0
    result[fires] = np.interp(np.log(rates[fires]), x, y)
    return result


def _moving_mean(x: np.ndarray, size: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, size).mean(-1)
