"""What a page about a unit shows: where in a text it is strongest and where less so, how its values are distributed,
and which other units fire together with it.

The text is read twice. The first time gives each unit's strongest token of every `SEGMENT` tokens, from which places
are chosen; the second time their surroundings, the histograms, and the values on a sample of tokens, which are
correlated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxablate.errors import DataError
from jaxablate.neurons.firing_counts import Batches, pieces
from jaxablate.types import Batch

SEGMENT = 64
"""At most so many tokens have one candidate for a place to show, so that places differ."""
TOP, SHARES = 8, (0.75, 0.5, 0.25)
"""Places where a unit is strongest, and as what share of its maximum it is shown at others."""
BEFORE, AFTER = 23, 8
"""Tokens that are shown around a place."""
BINS = 24
PARTNERS = 6
LEAST_CORRELATION = 0.1
"""What is below it in size, random units would have, too."""
LEAST_SAMPLED = 6
"""A unit that fires on fewer tokens of the sample has no partners: chance alone would decide."""
MOST_CANDIDATES, MOST_SAMPLED = 1 << 25, 1 << 26
"""Numbers held of all units: candidates of segments, and values of the sample."""

ReadAll = Callable[[Any, jax.Array], jax.Array]
"""(parameters, tokens int32 [B, T]) -> float32 [B, T, units]; causal, pure and hashable."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnitsRead:
    """What is known of the units before the text is read, arrays [units]."""

    threshold: np.ndarray
    """float32, above which each fires."""
    signed: np.ndarray
    """bool, whether large negative values count as firing."""
    sparse: np.ndarray
    """bool, whether most values are 0; their histograms leave zeros out."""
    family: np.ndarray
    """int; units of one family are correlated."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What was found; U units, C places a unit."""

    text: np.ndarray
    """int32 [W, T] tokens of all windows that were read."""
    mask: np.ndarray
    """bool [W, T] tokens that count."""
    low: np.ndarray
    """float32 [U] least value."""
    high: np.ndarray
    """float32 [U] greatest value."""
    histogram: np.ndarray
    """int [U, BINS] tokens by value, in equal bins from ``low`` (of sparse units 0) to ``high``."""
    places: np.ndarray
    """int32 [U, C] window * T + position where each is strongest, of at most one a segment, and then where it has
    about each of `SHARES` of that; -1 where there is no such place."""
    around: np.ndarray
    """float32 [U, C, BEFORE + 1 + AFTER] values around each place, 0 beyond the window and beyond the story."""
    partners: np.ndarray
    """int32 [U, PARTNERS] the most correlated units, -1 where there are no more."""
    correlations: np.ndarray
    """float32 [U, PARTNERS]."""
    sampled: int
    """Tokens that are correlated."""


def survey(read: ReadAll, params: Any, batches: Batches, units: UnitsRead, *, eot_id: int) -> Survey:
    """Reads a text twice; see the module's docstring.

    Args:
      read: gives the values of all units.
      params: its parameters.
      batches: starts the text: ``inputs`` int [B, T] and ``mask`` [B, T], positive where a token counts.
      units: what is known of them.
      eot_id: the token that ends a story, -1 where there is none.

    Raises:
      DataError: there is no text, or a value is not finite.
    """
    text, mask, best, place, low, high = _candidates(read, params, batches, units)
    places = _chosen(best, place, text.shape[1])
    bottom = np.where(units.sparse, np.minimum(low, 0), low).astype(np.float32)
    count = min(len(text), max(MOST_SAMPLED // (len(low) * text.shape[1]), 1))
    sampled = (2 * np.arange(count) + 1) * len(text) // (2 * count)
    histogram, around, sample = _second(read, params, batches, units, (bottom, high), places, sampled)
    around = np.where(_shown(text, mask, places, eot_id), around, 0)
    sample = sample[mask[sampled]]
    partners, correlations = _partners(sample, units)
    return Survey(text=text, mask=mask, low=bottom, high=high, histogram=histogram, places=places, around=around,
                  partners=partners, correlations=correlations, sampled=len(sample))


def most_tokens(units: int, most: int) -> int:
    """How much text can be read of so many units, at most ``most`` tokens."""
    return max(min(most, MOST_CANDIDATES // max(units, 1) * SEGMENT), SEGMENT)


def _candidates(read: ReadAll, params: Any, batches: Batches, units: UnitsRead) -> tuple[np.ndarray, ...]:
    """Text [W, T], mask, of each segment the strongest size [S, U] and its place, least and greatest values [U]."""
    parts: dict[str, list[np.ndarray]] = {"text": [], "mask": [], "best": [], "place": []}
    low, high = np.full(units.signed.shape, np.inf, np.float32), np.full(units.signed.shape, -np.inf, np.float32)
    for piece in pieces(batches()):
        inputs, mask = np.asarray(piece["inputs"]), np.asarray(piece["mask"]) > 0
        best, place, least, most = map(np.asarray, _segments(read, params, piece["inputs"], mask, units.signed))
        if not np.isfinite(np.where(mask.any(), most - least, 0)).all():
            raise DataError("an activation is NaN or infinite; the checkpoint is damaged or its training diverged, "
                            "take another one")
        used = mask.any(-1)
        for name, x in (("text", inputs), ("mask", mask), ("best", best), ("place", place)):
            parts[name].append(x[used])
        low, high = np.minimum(low, least), np.maximum(high, most)
    if not sum(map(len, parts["text"])):
        raise DataError("there is no text to read; give a split that has some")
    return *(np.concatenate(x) for x in parts.values()), low, high


@functools.partial(jax.jit, static_argnums=0)
def _segments(read: ReadAll, params: Any, tokens_BT: jax.Array, mask_BT: jax.Array, signed_U: jax.Array
              ) -> tuple[jax.Array, ...]:
    """(strongest size [B, segments, U], its place in the segment uint8, least and greatest value [U])."""
    x = read(params, tokens_BT)
    counted = mask_BT[..., None]
    size = jnp.where(counted, jnp.where(signed_U[None, None], jnp.abs(x), x), -jnp.inf)
    rows, length, width = size.shape
    segment = min(SEGMENT, length)
    size = jnp.pad(size, ((0, 0), (0, -length % segment), (0, 0)), constant_values=-jnp.inf)
    size = size.reshape(rows, -1, segment, width)
    best = size.max(axis=2)
    left = jnp.arange(segment, 0, -1, dtype=jnp.int32)[None, None, :, None]
    place = segment - jnp.where(size == best[:, :, None], left, 0).max(axis=2)
    least = jnp.where(counted, x, jnp.inf).min(axis=(0, 1))
    most = jnp.where(counted, x, -jnp.inf).max(axis=(0, 1))
    return best, place.astype(jnp.uint8), least, most


def _chosen(best_WSU: np.ndarray, place_WSU: np.ndarray, length: int) -> Int[np.ndarray, "units places"]:
    """Places of the strongest segments, earlier ones first among equals, and of those at `SHARES` of the strongest."""
    windows, segments, width = best_WSU.shape
    segment = min(SEGMENT, length)
    start = np.arange(windows)[:, None] * length + np.arange(segments) * segment
    at = (start[..., None] + place_WSU).reshape(-1, width).astype(np.int32)
    best = best_WSU.reshape(-1, width)
    result = np.full((width, TOP + len(SHARES)), -1, np.int32)
    for first in range(0, width, 1024):
        chosen = slice(first, first + 1024)
        of, where = best[:, chosen].T, at[:, chosen].T
        order = np.argsort(-of, axis=1, kind="stable")[:, :TOP]
        ranked = np.take_along_axis(of, order, axis=1)
        found = np.where(ranked > 0, np.take_along_axis(where, order, axis=1), -1)
        result[chosen, : found.shape[1]] = found
        strongest, last = ranked[:, :1], ranked[:, -1:]
        for i, share in enumerate(SHARES):
            distance = np.abs(of - share * strongest)
            distance[of >= last] = np.inf  # these are shown already, or are as strong
            near = distance.argmin(axis=1)[:, None]
            close = np.take_along_axis(distance, near, axis=1) <= strongest / 8
            places = np.where(close & (strongest > 0), np.take_along_axis(where, near, axis=1), -1)
            result[chosen, TOP + i] = places[:, 0]
    return result


def _second(read: ReadAll, params: Any, batches: Batches, units: UnitsRead, ends: tuple[np.ndarray, np.ndarray],
            places: np.ndarray, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histograms [U, BINS], values around the places [U, C, BEFORE + 1 + AFTER], and values of sampled windows
    [windows, T, U]."""
    (low, high), width = ends, len(places)
    scale = np.divide(BINS, high - low, out=np.zeros_like(low), where=high > low)
    histogram = np.zeros(width * BINS + 1, np.int64)
    around = np.zeros((*places.shape, BEFORE + 1 + AFTER), np.float32)
    unit, number = np.nonzero(places >= 0)
    order = np.argsort(places[unit, number], kind="stable")
    unit, number, at = unit[order], number[order], places[unit, number][order]
    sample, row = [], 0
    for x, bins, length in _values(read, params, batches, units, low, scale):
        histogram += np.bincount(bins.ravel(), minlength=len(histogram))
        here = slice(*np.searchsorted(at, (row * length, (row + len(x)) * length)))
        position = (at[here] % length)[:, None] + np.arange(-BEFORE, AFTER + 1)
        inside = (position >= 0) & (position < length)
        rows = (at[here] // length - row)[:, None]
        found = x[rows, np.clip(position, 0, length - 1), unit[here][:, None]]
        around[unit[here], number[here]] = np.where(inside, found, 0)
        sample.append(x[sampled[(sampled >= row) & (sampled < row + len(x))] - row])
        row += len(x)
    return histogram[:-1].reshape(width, BINS), around, np.concatenate(sample)


def _values(read: ReadAll, params: Any, batches: Batches, units: UnitsRead, low: np.ndarray, scale: np.ndarray
            ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(values [B, T, U], number of each value's bin among those of all units, T) of each piece with windows that count;
    the next piece is computed while one is looked at."""
    def taken(piece: Batch, values: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray, int]:
        used = (np.asarray(piece["mask"]) > 0).any(-1)
        x, bins = (np.asarray(part)[used] for part in values)
        return x, bins, x.shape[1]

    waiting = None
    for piece in pieces(batches()):
        mask = np.asarray(piece["mask"]) > 0
        running = piece, _binned(read, params, piece["inputs"], mask, units.sparse, low, scale)
        if waiting is not None:
            yield taken(*waiting)
        waiting = running
    if waiting is not None:
        yield taken(*waiting)


@functools.partial(jax.jit, static_argnums=0)
def _binned(read: ReadAll, params: Any, tokens_BT: jax.Array, mask_BT: jax.Array, sparse_U: jax.Array,
            low_U: jax.Array, scale_U: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values, and unit * BINS + bin, or units * BINS where a value does not count."""
    x = read(params, tokens_BT)
    width = x.shape[-1]
    bins = jnp.clip((x - low_U[None, None]) * scale_U[None, None], 0, BINS - 1).astype(jnp.int32)
    counted = mask_BT[..., None] & ~(sparse_U[None, None] & (x == 0))
    return x, jnp.where(counted, bins + BINS * jnp.arange(width, dtype=jnp.int32)[None, None], BINS * width)


def _shown(text: np.ndarray, mask: np.ndarray, places: np.ndarray, eot_id: int) -> Bool[np.ndarray, "units places w"]:
    """Which of the tokens around a place belong to its window and story; the story's end does."""
    length = text.shape[1]
    position = (places % length)[..., None] + np.arange(-BEFORE, AFTER + 1, dtype=np.int32)
    inside = (position >= 0) & (position < length) & (places >= 0)[..., None]
    flat = np.clip(places[..., None] + np.arange(-BEFORE, AFTER + 1, dtype=np.int32), 0, text.size - 1)
    ends = inside & (text.reshape(-1)[flat] == eot_id)
    back, ahead = ends[..., :BEFORE], ends[..., BEFORE : -1]
    before = np.cumsum(back[..., ::-1], axis=-1, dtype=np.uint8)[..., ::-1] == 0
    after = np.cumsum(ahead, axis=-1, dtype=np.uint8) == 0
    story = np.concatenate([before, np.ones_like(before[..., :1]), after], axis=-1)
    return inside & story & mask.reshape(-1)[flat]


def _partners(sample: Float[np.ndarray, "tokens units"], units: UnitsRead) -> tuple[np.ndarray, np.ndarray]:
    """The most correlated units of the same family. Where a unit has no preferred sign, negative ones count, too."""
    width = sample.shape[1]
    partners = np.full((width, PARTNERS), -1, np.int32)
    correlations = np.zeros((width, PARTNERS), np.float32)
    for family in np.unique(units.family):
        size = np.where(units.signed, np.abs(sample), sample)
        often = (size > units.threshold).sum(0) >= LEAST_SAMPLED
        members = np.flatnonzero((units.family == family) & often)
        if len(members) < 2:
            continue
        x = sample[:, members] - sample[:, members].mean(0)
        norm = np.linalg.norm(x, axis=0)
        x /= np.where(norm > 0, norm, 1)
        signed = units.signed[members]
        for first in range(0, len(members), 512):
            rows = slice(first, first + 512)
            found = x[:, rows].T @ x
            rank = np.where(signed[rows][:, None] | signed, np.abs(found), found)
            rank[np.arange(len(rank)), first + np.arange(len(rank))] = -np.inf
            shown = min(PARTNERS, len(members) - 1)
            top = np.argpartition(-rank, shown - 1, axis=1)[:, :shown]
            top = np.take_along_axis(top, np.argsort(-np.take_along_axis(rank, top, axis=1), axis=1), axis=1)
            good = np.take_along_axis(rank, top, axis=1) >= LEAST_CORRELATION
            partners[members[rows], :shown] = np.where(good, members[top], -1)
            correlations[members[rows], :shown] = np.where(good, np.take_along_axis(found, top, axis=1), 0)
    return partners, correlations
