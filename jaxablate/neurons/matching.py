"""A graph as a classifier of where its unit fires, on text it was not made from.

A unit fires where its activation is above its threshold. Its graph says that it does wherever one of its patterns
matches, read back from the place. A pattern sees what the model saw: it reaches neither over the end of a story nor
over the start of a window.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError
from jaxablate.neurons.examples import NOTHING, Batch, Params, Read
from jaxablate.neurons.graphs import Pattern


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text in which patterns are looked for. N places.

    Attributes:
      tokens: [N], `NOTHING` where a window was not full.
      starts: [N] the first place that a pattern which ends here may look at.
      stories: [N] which story a place is of, numbered from 0.
      n_stories: how many.
    """

    tokens: np.ndarray
    starts: np.ndarray
    stories: np.ndarray
    n_stories: int

    @classmethod
    def of(cls, windows_WT: np.ndarray, masks_WT: np.ndarray, eot_id: int) -> "Text":
        """The text of windows that follow one another."""
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

    def places_of(self, token: int) -> np.ndarray:
        """Where a token stands, ascending."""
        order, ends = self._index
        return order[ends[token] : ends[token + 1]] if token + 1 < len(ends) else order[:0]

    def matches(self, patterns: Iterable[Pattern]) -> np.ndarray:
        """Where at least one pattern ends, ascending."""
        found = [self._matches(pattern) for pattern in patterns]
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def _matches(self, pattern: Pattern) -> np.ndarray:
        places = np.concatenate([self.places_of(t) for t in sorted(pattern.tokens[0])])
        for offset, tokens in enumerate(pattern.tokens[1:], 1):
            if tokens is not None:
                places = places[places - offset >= self.starts[places]]
                there = self.tokens[places - offset]
                places = places[functools.reduce(np.logical_or, (there == t for t in tokens))]
        return places

    def per_story(self, places: np.ndarray) -> np.ndarray:
        """[stories] how many of the places are in each."""
        return np.bincount(self.stories[places], minlength=self.n_stories)


def firings(
    read: Read, params: Params, batches: Iterable[Batch], thresholds: np.ndarray, eot_id: int
) -> tuple[np.ndarray, Text]:
    """Where each unit's activation is above its threshold.

    Args:
      read: gives all layers.
      params: of the model.
      batches: windows of text that follow one another, B * T a multiple of 8.
      thresholds: [L, U]; a unit with infinity never fires.
      eot_id: the token that ends a story.

    Returns:
      (bits [L, U, N / 8] uint8, as `numpy.unpackbits` reads them, 1 where the unit fires; the text of N places).

    Raises:
      DataError: no text, or B * T is no multiple of 8.
    """
    bits, windows, masks = [], [], []
    limits = jnp.asarray(thresholds, jnp.float32)
    for batch in batches:
        inputs, mask = (np.asarray(batch[name]) for name in ("inputs", "mask"))
        if inputs.size % 8:
            raise DataError(f"batches of {inputs.shape[0]} x {inputs.shape[1]} tokens are no multiple of 8; choose "
                            "another batch size")
        bits.append(_fired(read, params, jnp.asarray(inputs, jnp.int32), jnp.asarray(mask), limits))
        windows.extend(inputs)
        masks.extend(mask)
    if not windows:
        raise DataError("no text to score graphs on; give at least one window")
    return np.concatenate([np.asarray(b) for b in bits], axis=-1), Text.of(np.stack(windows), np.stack(masks), eot_id)


@functools.partial(jax.jit, static_argnums=0)
def _fired(read: Read, params: Params, tokens_BT, mask_BT, thresholds_LU) -> jax.Array:
    layers = read(params, tokens_BT)
    fired = [(x > limit) & (mask_BT[..., None] > 0) for x, limit in zip(layers, thresholds_LU, strict=True)]
    return jnp.stack([jnp.packbits(x.reshape(-1, x.shape[-1]).T, axis=1) for x in fired])


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What each unit's graph gets right, by story. U units, S stories.

    Attributes:
      hits: [U, S] places where it fires and the graph says so.
      predicted: [U, S] places where the graph says so.
      fires: [U, S] places where it fires.
      shuffled_hits, shuffled_predicted: [U, S] the same for the graph of another unit: the null.
      pivot_hits, pivot_predicted: [U, S] the same for the pivots alone, whatever comes before them.
    """

    hits: np.ndarray
    predicted: np.ndarray
    fires: np.ndarray
    shuffled_hits: np.ndarray
    shuffled_predicted: np.ndarray
    pivot_hits: np.ndarray
    pivot_predicted: np.ndarray


def count_hits(
    graphs: Sequence[Sequence[Pattern]], bits: np.ndarray, text: Text, seed: int | tuple[int, ...] = 0
) -> Counts:
    """Counts hits of graphs, of other units' graphs and of their pivots alone.

    Args:
      graphs: patterns of each unit of a layer; a unit may have none.
      bits: [U, N / 8] from `firings`.
      text: from `firings`.
      seed: of who gets whose graph; among those that have one, nobody keeps its own, unless it is the only one.
    """
    found = [text.matches(patterns) for patterns in graphs]
    other = _others([bool(patterns) for patterns in graphs], seed)
    rows = []
    for unit, patterns in enumerate(graphs):
        fired = np.unpackbits(bits[unit]).astype(bool)
        pivots = text.matches(dataclasses.replace(p, tokens=p.tokens[:1]) for p in patterns)
        row = [text.per_story(np.flatnonzero(fired))]
        for places in (found[unit], found[other[unit]], pivots):
            row += [text.per_story(places[fired[places]]), text.per_story(places)]
        rows.append(row)
    fires, hits, predicted, *others = np.moveaxis(np.array(rows, np.int32).reshape(len(rows), 7, text.n_stories), 1, 0)
    return Counts(hits, predicted, fires, *others)


def _others(has_graph: Sequence[bool], seed: int | tuple[int, ...]) -> np.ndarray:
    """For each unit another one: those with a graph in a random circle, each the next one's."""
    out, some = np.arange(len(has_graph)), np.flatnonzero(has_graph)
    circle = np.random.default_rng(seed).permutation(some)
    out[circle] = np.roll(circle, 1)
    return out
