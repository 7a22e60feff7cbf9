"""Means of the neuron measures over units, with intervals, and both nulls beside them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxablate.intervals_old import mean_interval, percentile_interval, ratio_resamples
from jaxablate.neurons import MEASURES, FactMeasures, NeuronMeasures, UnitGroup
from jaxablate.neurons.nulls import matched
from jaxablate.ops.capacity import capacity
from jaxablate.types import Params

DIRECTION_RESAMPLES = 200
SHOWN_UNITS = 4
"""Units of each kind that the report names."""

Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean of one measure over units. Intervals: 95 %, bootstrap over units, or over directions, within layers."""

    measure: str
    value: float | None
    """None where no unit has it."""
    interval: Interval
    shuffled: float | None
    """Mean expected of the same units if tokens were shuffled; None for measures that this leaves as they are. The
    information is that which is subtracted from the plug-in estimate."""
    directions: float | None
    """Mean of random directions that fire as often as these units."""
    directions_interval: Interval
    above: float | None
    """value - directions."""
    above_interval: Interval
    """Units and directions resampled independently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Units of one kind in one layer, or in all."""

    kind: str
    layer: int | None
    """None: all layers."""
    units: int
    live: int
    """Units that fire on any token."""
    rate: float
    """Share of tokens on which a unit fires, mean over units."""
    telling: float | None
    """Share of live units whose information exceeds the 95 % quantile of that of shuffled tokens: 0.05 by chance."""
    estimates: tuple[Estimate, ...]

    def of(self, measure: str) -> Estimate:
        """The estimate of this measure."""
        return next(x for x in self.estimates if x.measure == measure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TellingUnit:
    """A unit and what fires it."""

    kind: str
    layer: int
    unit: int
    token: str
    """That on which it fires most often, of its occurrences."""
    rate: float
    effective_tokens: float
    information: float
    selectivity: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightCapacity:
    """How far the weight vectors of a layer's neurons have directions to themselves."""

    layer: int
    weights: str
    """in: what a neuron reads; out: what it writes."""
    value: float
    """Mean capacity over neurons; at most D / F, for all directions together have D."""
    interval: Interval
    random: float
    """Of vectors of the same lengths with random directions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactSummary:
    """What units of one kind tell of one recorded fact."""

    label: str
    kind: str
    entropy: float
    information: float
    """Bits that the best unit's firing tells of the label."""
    layer: int
    unit: int
    """The best one."""
    firing_means: str
    silence_means: str
    """Likeliest values where the best unit fires and where it does not."""
    equal_number: float
    """Information expected of the best of as many units as there are directions."""
    directions: float
    """Information of the best random direction."""
    accuracy: float
    """Of telling the label from the firing of one unit, both chosen on other stories; mean over folds."""
    accuracy_interval: Interval
    """95 %, bootstrap over folds of whole stories."""
    directions_accuracy: float
    majority: float
    """Accuracy of the likeliest label."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Draws:
    """Bootstrap of one group: for each measure the mean over units and over directions.

    Attributes:
      weight: [measures] units that have it.
      value, shuffled, directions: [measures] means.
      value_draws: [measures, resamples].
      direction_draws: [measures, DIRECTION_RESAMPLES].
    """

    weight: np.ndarray
    value: np.ndarray
    shuffled: np.ndarray
    directions: np.ndarray
    value_draws: np.ndarray
    direction_draws: np.ndarray


def summaries(found: NeuronMeasures, seed: int) -> tuple[GroupSummary, ...]:
    """Each kind over all layers, then layer by layer."""
    out = []
    for kind in found.kinds:
        groups = found.of(kind)
        draws = [_draws(group, seed + i) for i, group in enumerate(groups)]
        out.append(_summary(groups, draws, None))
        out += [_summary([group], [draw], group.layer) for group, draw in zip(groups, draws, strict=True)]
    return tuple(out)


def _draws(group: UnitGroup, seed: int) -> _Draws:
    values = np.stack([group.measure(name) for name in MEASURES])
    beside = np.stack([getattr(group.shuffled, name, np.full(len(group.fired), np.nan)) for name in MEASURES])
    random = np.stack([group.matched(name) for name in MEASURES])
    has = np.isfinite(values)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(group.direction_rates), (DIRECTION_RESAMPLES, len(group.direction_rates)))
    drawn = [[_mean(matched(group.rates, group.direction_rates[pick], _of_directions(group, name)[pick])[has[i]])
              for pick in picks] for i, name in enumerate(MEASURES)]
    return _Draws(
        weight=has.sum(-1).astype(float), value=_means(values, has), shuffled=_means(beside, has),
        directions=_means(random, has), direction_draws=np.array(drawn),
        value_draws=ratio_resamples(np.where(has, values, 0), has.astype(float), seed=seed))


def _of_directions(group: UnitGroup, name: str) -> np.ndarray:
    return getattr(group.direction_tokens, name, None) if hasattr(group.direction_tokens, name) else getattr(
        group.direction_shape, name)


def _summary(groups: Sequence[UnitGroup], draws: Sequence[_Draws], layer: int | None) -> GroupSummary:
    weight = np.stack([d.weight for d in draws])

    def joined(name: str) -> np.ndarray:
        """Mean over layers, weighted by the units that have the measure."""
        parts = np.stack([getattr(d, name) for d in draws])
        w = weight.reshape(weight.shape + (1,) * (parts.ndim - 2)) * np.ones_like(parts)
        w = np.where(np.isfinite(parts), w, 0)
        total = w.sum(0)
        return np.divide((np.nan_to_num(parts) * w).sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)

    value, shuffled, directions = joined("value"), joined("shuffled"), joined("directions")
    value_draws, direction_draws = joined("value_draws"), joined("direction_draws")
    estimates = tuple(
        Estimate(measure=name, value=_or_none(value[i]), interval=percentile_interval(value_draws[i]),
                 shuffled=_or_none(shuffled[i]), directions=_or_none(directions[i]),
                 directions_interval=percentile_interval(direction_draws[i]), above=_or_none(value[i] - directions[i]),
                 above_interval=percentile_interval(value_draws[i, :DIRECTION_RESAMPLES] - direction_draws[i]))
        for i, name in enumerate(MEASURES))
    live = np.concatenate([g.live for g in groups])
    above = np.concatenate([g.tokens.information > g.shuffled_information_95 for g in groups])
    return GroupSummary(kind=groups[0].kind, layer=layer, units=len(live), live=int(live.sum()),
                        rate=float(np.concatenate([g.rates for g in groups]).mean()),
                        telling=float(above[live].mean()) if live.any() else None, estimates=estimates)


def telling_units(found: NeuronMeasures, decode: Callable[[int], str]) -> tuple[TellingUnit, ...]:
    """The units of each kind whose firing tells most of the current token.

    Args:
      found: all measures.
      decode: token to text.
    """
    out = []
    for kind in found.kinds:
        every = [(group.information[unit], group, unit) for group in found.of(kind)
                 for unit in np.flatnonzero(group.live)]
        for information, group, unit in sorted(every, key=lambda x: -x[0])[:SHOWN_UNITS]:
            best = int(group.best_token[unit])
            out.append(TellingUnit(
                kind=kind, layer=group.layer, unit=int(unit), token=decode(best) if best >= 0 else "",
                rate=float(group.rates[unit]), effective_tokens=float(group.tokens.effective_tokens[unit]),
                information=float(information), selectivity=_or_none(group.tokens.selectivity[unit])))
    return tuple(out)


def weight_capacities(params: Params, layers: int, seed: int) -> tuple[WeightCapacity, ...]:
    """Capacity of in- and out-weights of every layer's neurons; weights take the place of docs/papers.md's tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        mlp = params[f"layer_{layer}"]["mlp"]
        for name, kernel in (("in", np.asarray(mlp["up"]["kernel"]).T), ("out", np.asarray(mlp["down"]["kernel"]))):
            values = np.asarray(capacity(kernel), np.float64)
            random = rng.standard_normal(kernel.shape)
            random *= np.linalg.norm(kernel, axis=1, keepdims=True) / np.linalg.norm(random, axis=1, keepdims=True)
            found.append(WeightCapacity(
                layer=layer, weights=name, value=float(values.mean()), interval=mean_interval(values, seed=seed),
                random=float(np.mean(capacity(random.astype(np.float32))))))
    return tuple(found)


def fact_summaries(facts: Sequence[FactMeasures], seed: int) -> tuple[FactSummary, ...]:
    """One line for each label and kind."""
    out = []
    for x in facts:
        units, directions = np.concatenate(x.information), np.concatenate(x.directions)
        out.append(FactSummary(
            label=x.label, kind=x.kind, entropy=x.entropy, information=float(x.information[x.best[0]][x.best[1]]),
            layer=x.best[0], unit=x.best[1], firing_means=x.best_means[0], silence_means=x.best_means[1],
            equal_number=expected_best(units[np.isfinite(units)], len(directions)),
            directions=float(np.nanmax(directions)), accuracy=float(x.accuracy.mean()),
            accuracy_interval=mean_interval(x.accuracy, seed=seed),
            directions_accuracy=float(x.directions_accuracy.mean()), majority=float(x.majority.mean())))
    return tuple(out)


def expected_best(values: np.ndarray, size: int) -> float:
    """Mean of the greatest of ``size`` values drawn without replacement; the greatest of all where there are no more.

    >>> round(expected_best(np.array([1.0, 2.0, 3.0]), 2), 6)
    2.666667
    """
    ascending, total, left = np.sort(values), 0.0, 1.0
    for i in range(len(ascending) - 1, -1, -1):  # the chance that value i is drawn and none above it
        chance = left * min(size / (i + 1), 1.0)
        total, left = total + chance * ascending[i], left - chance
    return float(total)


def _means(values: np.ndarray, has: np.ndarray) -> np.ndarray:
    return np.array([_mean(row[there]) for row, there in zip(values, has, strict=True)])


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else np.nan


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
