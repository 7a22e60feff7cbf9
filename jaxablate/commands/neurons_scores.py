"""Precision, recall and F1 of neurons' graphs from counts by story, with bootstrap intervals over stories."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxablate.intervals_old import RESAMPLES, percentile_interval
from jaxablate.neurons.matching import Counts
from jaxablate.reports.neuron_records import Scores, Summary

MIN_FIRES = 10
"""Places in held-out text at which a unit has to fire to be in the means. With fewer its F1 is chance, and bootstrap
draws in which it does not fire at all would bias the interval."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """Counts of a layer, and which of its units are active in the text of the examples, and have a graph: bool [U]."""

    counts: Counts
    active: np.ndarray
    graph: np.ndarray

    def scored(self, least: int) -> np.ndarray:
        """bool [U], which units fire in the held-out text at so many places."""
        return self.active & (self.counts.fires.sum(1) >= least)


@dataclasses.dataclass(frozen=True, eq=False)
class Rates:
    """Precision, recall and F1 [U] or [U, draws] of a layer; NaN where not defined."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    f1_shuffled: np.ndarray
    f1_pivot: np.ndarray

    def measures(self) -> dict[str, np.ndarray]:
        """By name, the gain over pivots alone included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"gain": self.f1 - self.f1_pivot}


def rates(counts: Counts, draws: np.ndarray | None = None) -> Rates:
    """Rates of each unit over the whole text, or of each bootstrap draw of its stories.

    Args:
      counts: [U, S] by story.
      draws: [S, R] how often each story is in each draw; None takes each once.
    """
    def total(x: np.ndarray) -> np.ndarray:
        return x.sum(1).astype(np.float64) if draws is None else x.astype(np.float32) @ draws

    hits, predicted, fires = map(total, (counts.hits, counts.predicted, counts.fires))
    return Rates(
        _ratio(hits, predicted), _ratio(hits, fires), _f1(hits, predicted, fires),
        _f1(total(counts.shuffled_hits), total(counts.shuffled_predicted), fires),
        _f1(total(counts.pivot_hits), total(counts.pivot_predicted), fires))


def story_draws(stories: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """[S, R] float32: how often each story is in each of the bootstrap draws."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(stories, np.full(stories, 1 / stories), size=resamples).T.astype(np.float32)


def unit_scores(counts: Counts, tokens: int, seed: int) -> list[Scores]:
    """Scores of each unit of a layer."""
    whole, drawn = rates(counts), rates(counts, story_draws(counts.fires.shape[1], seed))
    out = []
    for u in range(len(counts.fires)):
        out.append(Scores(
            tokens=tokens, fires=int(counts.fires[u].sum()), predicted=int(counts.predicted[u].sum()),
            hits=int(counts.hits[u].sum()), precision=_plain(whole.precision[u]), recall=_plain(whole.recall[u]),
            f1=_plain(whole.f1[u]), f1_interval=percentile_interval(drawn.f1[u]),
            f1_shuffled=_plain(whole.f1_shuffled[u]), f1_pivot=_plain(whole.f1_pivot[u])))
    return out


def summary(layers: Sequence[Layer], seed: int, least: int = MIN_FIRES) -> Summary:
    """Units of one or more layers together.

    Args:
      layers: counts on the same text.
      seed: of the draws; the same seed gives all layers the same ones.
      least: places at which a unit has to fire to be in the means.
    """
    draws = story_draws(layers[0].counts.fires.shape[1], seed)
    active, scored, graph = (np.concatenate(x) for x in zip(*((x.active, x.scored(least), x.graph) for x in layers),
                                                            strict=True))
    return Summary(
        units=len(active), inactive=int((~active).sum()), rare=int((active & ~scored).sum()),
        scored=int(scored.sum()), without_graph=int((scored & ~graph).sum()),
        **{name: _plain(x) for name, x in _means(layers, None, least).items()},
        intervals={name: percentile_interval(x) for name, x in _means(layers, draws, least).items()})


def _means(layers: Sequence[Layer], draws: np.ndarray | None, least: int) -> dict[str, np.ndarray]:
    """Mean of each measure over the scored units for which it is defined; of the whole text, or [R] of each draw."""
    sums, numbers = {}, {}
    for layer in layers:
        for name, values in rates(layer.counts, draws).measures().items():
            values = values[layer.scored(least)]
            known = np.isfinite(values)
            sums[name] = sums.get(name, 0) + np.where(known, values, 0).sum(0)
            numbers[name] = numbers.get(name, 0) + known.sum(0)
    return {name: _ratio(sums[name], numbers[name]) for name in sums}


def _f1(hits: np.ndarray, predicted: np.ndarray, fires: np.ndarray) -> np.ndarray:
    """NaN where the unit never fires, 0 where it does and nothing is predicted."""
    return np.where(fires > 0, _ratio(2 * hits, predicted + fires), np.nan)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) > 0)


def _plain(x: np.ndarray) -> float | None:
    return float(x) if np.isfinite(x) else None
