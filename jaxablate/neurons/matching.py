"""A graph as a classifier of where its unit fires, on text it was not made from.

A unit fires where its activation is above its threshold. Its graph says that it does wherever one of its patterns
matches, read back from the place. A pattern sees what the model saw: it reaches neither over the end of a story nor
over the start of a window. Hits are counted by story, so that intervals can resample whole stories.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Num, Shaped, UInt8

from jaxablate import stats
from jaxablate.errors import DataError
from jaxablate.neurons.examples import NOTHING, Read, read_layers
from jaxablate.neurons.graphs import Pattern, Seed
from jaxablate.stats import Estimate
from jaxablate.types import Batch, Params

MIN_FIRES = 10
"""Places in held-out text at which a unit has to fire to be in the means. With fewer its F1 is chance, and bootstrap
draws in which it does not fire at all would bias the interval."""


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text in which patterns are looked for. N places."""

    tokens: np.ndarray
    """[N], `NOTHING` where a window was not full."""
    starts: np.ndarray
    """[N] the first place that a pattern which ends here may look at."""
    stories: np.ndarray
    """[N] which story a place is of, numbered from 0."""
    n_stories: int

    @classmethod
    def of(cls, windows_WT: Integer[np.ndarray, "windows time"], masks_WT: Shaped[np.ndarray, "windows time"],
           eot_id: int) -> "Text":
        """The text of windows that follow one another; ``eot_id`` ends a story."""
        tokens = np.where(masks_WT > 0, windows_WT, NOTHING).astype(np.int64).reshape(-1)
        after = np.concatenate([[False], tokens[:-1] == eot_id])
        place = np.arange(len(tokens))
        fresh = after | (place % windows_WT.shape[1] == 0)
        stories = np.cumsum(after)
        used = stories[tokens != NOTHING]
        return cls(tokens, np.maximum.accumulate(np.where(fresh, place, 0)), stories,
                   int(used[-1]) + 1 if used.size else 0)

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in the order of their tokens, and where each token's begin."""
        order = np.argsort(self.tokens, kind="stable")
        return order, np.searchsorted(self.tokens[order], np.arange(self.tokens.max(initial=0) + 2))

    def matches(self, patterns: Iterable[Pattern]) -> np.ndarray:
        """Where at least one pattern ends, ascending."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *map(self._matches, patterns)]))

    def _matches(self, pattern: Pattern) -> np.ndarray:
        order, ends = self._index
        known = [t for t in sorted(pattern.tokens[0] or ()) if t + 1 < len(ends)]
        places = np.concatenate([order[:0], *(order[ends[t] : ends[t + 1]] for t in known)])
        for offset, tokens in enumerate(pattern.tokens[1:], 1):
            if tokens is not None:
                places = places[places - offset >= self.starts[places]]
                before = self.tokens[places - offset]
                places = places[functools.reduce(np.logical_or, (before == t for t in tokens))]
        return places

    def per_story(self, places: Integer[np.ndarray, " places"]) -> Integer[np.ndarray, " stories"]:
        """How many of the places are in each story."""
        return np.bincount(self.stories[places], minlength=self.n_stories)


def firings(read: Read, params: Params, batches: Iterable[Batch], thresholds: Num[np.ndarray, "layers units"],
            eot_id: int) -> tuple[UInt8[np.ndarray, "layers units bytes"], Text]:
    """Where each unit's activation is above its threshold, in windows of text that follow one another.

    Returns:
      Bits of each unit, as `numpy.unpackbits` reads them, 1 where it fires; and the text of as many places. Batches
      whose B * T is no multiple of 8 are filled up with windows that are no text.

    Raises:
      DataError: no text.
    """
    bits, windows, masks = [], [], []
    limits = np.asarray(thresholds, np.float32)
    for batch in batches:
        inputs, mask = (np.asarray(batch[name]) for name in ("inputs", "mask"))
        more = -len(inputs) % (8 // math.gcd(8, inputs.shape[1]))
        inputs, mask = (np.pad(x, ((0, more), (0, 0))) for x in (inputs, mask))
        bits.append(_fired(read, params, jnp.asarray(inputs, jnp.int32), mask, limits))
        windows.extend(inputs)
        masks.extend(mask)
    if not windows:
        raise DataError("no text to score graphs on; give at least one window")
    return np.concatenate([np.asarray(b) for b in bits], axis=-1), Text.of(np.stack(windows), np.stack(masks), eot_id)


@functools.partial(jax.jit, static_argnums=0)
def _fired(read: Read, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, thresholds_LU: jax.Array) -> jax.Array:
    layers = read_layers(read, params, tokens_BT)
    fired = [(x > limit) & (mask_BT[..., None] > 0) for x, limit in zip(layers, thresholds_LU, strict=True)]
    return jnp.stack([jnp.packbits(x.reshape(-1, x.shape[-1]).T, axis=1) for x in fired])


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What each unit's graph gets right, int [U, S] by unit and story."""

    hits: np.ndarray
    predicted: np.ndarray
    fires: np.ndarray
    """Places where the unit fires and its graph says so, where the graph says so, where the unit fires."""
    shuffled_hits: np.ndarray
    """Hits of the graph of another unit: the null."""
    shuffled_predicted: np.ndarray
    pivot_hits: np.ndarray
    """Hits of the pivots alone, whatever comes before them."""
    pivot_predicted: np.ndarray
    active: np.ndarray
    """bool [U], which units are active in the text of the examples."""
    graph: np.ndarray
    """bool [U], which units have a graph."""


def count_hits(graphs: Sequence[Sequence[Pattern]], bits: UInt8[np.ndarray, "units bytes"], text: Text,
               active: Shaped[np.ndarray, " units"], seed: Seed = 0) -> Counts:
    """Counts hits of graphs, of other units' graphs and of their pivots alone.

    Graphs are the patterns of each unit of a layer, which may have none. Bits and text are from `firings`. Who gets
    whose graph is random; among those that have one, nobody keeps its own, unless it is the only one.
    """
    matches = [text.matches(patterns) for patterns in graphs]
    # Those with a graph stand in a random circle, and each gets the next one's.
    has_graph, other = np.array([bool(patterns) for patterns in graphs]), np.arange(len(graphs))
    circle = np.random.default_rng(seed).permutation(np.flatnonzero(has_graph))
    other[circle] = np.roll(circle, 1)
    rows = []
    for unit, patterns in enumerate(graphs):
        fired = np.unpackbits(bits[unit]).astype(bool)
        pivots = text.matches(dataclasses.replace(p, tokens=p.tokens[:1]) for p in patterns)
        row = [text.per_story(np.flatnonzero(fired))]
        for places in (matches[unit], matches[other[unit]], pivots):
            row += [text.per_story(places[fired[places]]), text.per_story(places)]
        rows.append(row)
    fires, hits, predicted, *others = np.moveaxis(np.array(rows, np.int32).reshape(len(rows), 7, text.n_stories), 1, 0)
    return Counts(hits, predicted, fires, *others, active=active.astype(bool), graph=has_graph)


def story_draws(stories: int, seed: int, resamples: int = stats.RESAMPLES) -> Float[np.ndarray, "stories resamples"]:
    """How often each story is in each of the bootstrap draws, float32."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(stories, np.full(stories, 1 / stories), size=resamples).T.astype(np.float32)


def rates(counts: Counts, draws: Float[np.ndarray, "stories resamples"] | None = None) -> dict[str, np.ndarray]:
    """Rates of each unit over the whole text, [U], or in each of the draws of its stories, [U, resamples].

    Returns:
      precision, recall and f1; f1_shuffled and f1_pivot, those of another unit's graph and of the pivots alone; and
      gain, f1 - f1_pivot. NaN where not defined; an F1 is 0 where the unit fires and nothing is predicted.
    """
    def total(x: np.ndarray) -> np.ndarray:
        return x.sum(1).astype(np.float64) if draws is None else x.astype(np.float32) @ draws

    fires, hits, predicted = total(counts.fires), total(counts.hits), total(counts.predicted)

    def f1(hits: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.where(fires > 0, _ratio(2 * hits, predicted + fires), np.nan)

    result = {"precision": _ratio(hits, predicted), "recall": _ratio(hits, fires), "f1": f1(hits, predicted),
              "f1_shuffled": f1(total(counts.shuffled_hits), total(counts.shuffled_predicted)),
              "f1_pivot": f1(total(counts.pivot_hits), total(counts.pivot_predicted))}
    return result | {"gain": result["f1"] - result["f1_pivot"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """Graphs of many units together. Means are over units that fire often enough; intervals are over stories."""

    units: int
    inactive: int
    """Units never above 0 in the text of the examples; they have no graph and are in no mean."""
    rare: int
    """Active units that fire at fewer than `MIN_FIRES` places of the held-out text; they are in no mean."""
    scored: int
    """All others."""
    without_graph: int
    """Scored units with no example of which any suffix is enough; their F1 counts as 0."""
    precision: Estimate
    """Mean over those whose graph says anything."""
    recall: Estimate
    f1: Estimate
    f1_shuffled: Estimate
    """The null: each graph against the firing of another unit of its layer."""
    f1_pivot: Estimate
    """F1 of the pivots alone."""
    gain: Estimate
    """Mean of f1 - f1_pivot: what context adds."""


def summarise_graphs(layers: Sequence[Counts], seed: int = 0, least: int = MIN_FIRES) -> GraphSummary:
    """Units of one or more layers together, counted on the same text; in the means are those that fire often enough."""
    stories = layers[0].fires.shape[1]
    scored_in = [x.active & (x.fires.sum(1) >= least) for x in layers]
    value, drawn = (_means(layers, scored_in, draws) for draws in (None, story_draws(stories, seed)))
    active, graph = (np.concatenate([getattr(x, name) for x in layers]) for name in ("active", "graph"))
    scored = np.concatenate(scored_in)
    return GraphSummary(
        units=len(active), inactive=int((~active).sum()), rare=int((active & ~scored).sum()), scored=int(scored.sum()),
        without_graph=int((scored & ~graph).sum()),
        **{name: stats.from_draws(float(x), drawn[name], n=stories) for name, x in value.items()})


def _means(layers: Sequence[Counts], scored: Sequence[np.ndarray], draws: np.ndarray | None) -> dict[str, np.ndarray]:
    """Mean of each rate over the scored units for which it is defined; of the whole text, or [R] of each draw."""
    sums, numbers = {}, {}
    for layer, of_layer in zip(layers, scored, strict=True):
        for name, values in rates(layer, draws).items():
            values = values[of_layer]
            defined = np.isfinite(values)
            sums[name] = sums.get(name, 0) + np.where(defined, values, 0).sum(0)
            numbers[name] = numbers.get(name, 0) + defined.sum(0)
    return {name: _ratio(sums[name], numbers[name]) for name in sums}


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) > 0)
