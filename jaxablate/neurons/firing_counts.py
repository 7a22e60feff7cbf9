"""One pass of a model over a split: power sums of every unit, and how often it fires on each class of tokens.

What is kept does not grow with the split: a table [classes, units] of counts, five sums a unit. Each token adds the row
of units that fire on it to its class's row of the table, on the device; looking for the firings on the host costs
several times as much.

Before it, the split's tokens are read once without the model, and the model runs on a sample of whole windows, spread
evenly over the split, from which come thresholds, Gini indices and the pilot means of the power sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate.errors import DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.layers import activated
from jaxablate.neurons.facts import FactRows
from jaxablate.neurons.measures import Shape, binary_shape, gini_of, power_sums, shape
from jaxablate.neurons.units import Kind, Values, decoder_output, direction_values, fires, unit_values
from jaxablate.types import Batch, Params

CLASSES = 2048
"""Rows of the table of tokens: the most frequent ones of the split, and one for all others where there are more."""
SAMPLE_TOKENS = 8192
"""Tokens of the sample, rounded up to whole windows."""
_CPU_TOKENS = 512
"""Tokens of a forward pass on CPU, where longer ones leave the cache."""
_LEAST_SAMPLED = 4
"""A random direction fires on at least so many tokens of the sample."""
_ROUNDING = 1e-5
"""Values that differ by no more than this part of the largest may be the same number."""

ReadUnits = Callable[[Any, jax.Array], tuple[Values, Values]]
"""(parameters, tokens int32 [B, T]) -> values of all units, and of random directions, by kind and layer; pure and
hashable."""
Batches = Callable[[], Iterable[Batch]]
"""Starts the split from its beginning: ``inputs`` int [B, T] and ``mask`` [B, T], positive where a token counts."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenClasses:
    """The tokens of a split, and the classes they are counted in."""

    tokens: int
    """n, masked ones left out."""
    ids: np.ndarray
    """int [n], where they were asked for; else empty."""
    windows: int
    """Windows with any token, of ``length`` tokens."""
    length: int
    class_of: np.ndarray
    """int32 [V] class of each token."""
    token_of: np.ndarray
    """int [C] token of each class, -1 for the class of all others."""
    counts: np.ndarray
    """int [C] tokens of each class."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What a sample of tokens says of the units of one kind and layer."""

    threshold: np.ndarray
    """float32 [units] above which a unit fires."""
    pilot: np.ndarray
    """float32 [units] mean."""
    gini: np.ndarray
    """[units] Gini indices; NaN for units that are 0 or 1."""
    direction_threshold: np.ndarray
    """float32 [R], at which random directions fire as often as the kind's units do."""
    directions: Shape
    """Measures of the random directions' activations."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FiringCounts:
    """What a pass gives, by kind and layer."""

    units: dict[str, list[np.ndarray]]
    """int tables [rows, units] of firings."""
    directions: dict[str, list[np.ndarray]]
    """The same of random directions, [rows, R]."""
    sums: dict[str, list[np.ndarray]]
    """float64 [5, units] as `measures.shape` takes them; none for hard gates."""


def classify_tokens(batches: Iterable[Batch], vocabulary: int, *, with_ids: bool = False) -> TokenClasses:
    """Counts the tokens of a split, and keeps their ids where they are asked for.

    Raises:
      DataError: no token counts.
    """
    counts, parts, windows, length = np.zeros(vocabulary, np.int64), [np.empty(0, np.int32)], 0, 0
    for batch in batches:
        inputs, mask = np.asarray(batch["inputs"]), np.asarray(batch["mask"]) > 0
        counts += np.bincount(inputs[mask], minlength=vocabulary)
        if with_ids:
            parts.append(inputs[mask])
        windows, length = windows + int(mask.any(-1).sum()), inputs.shape[1]
    if windows == 0:
        raise DataError("the split has no tokens; give one that has")
    order = np.argsort(-counts, kind="stable")
    classes = order[: min(CLASSES, vocabulary)]
    if np.count_nonzero(counts) > len(classes):
        classes = classes[:-1]
    class_of = np.full(vocabulary, len(classes), np.int32)
    class_of[classes] = np.arange(len(classes))
    token_of, of_class = classes, counts[classes]
    if rest := counts.sum() - of_class.sum():
        token_of, of_class = np.append(classes, -1), np.append(of_class, rest)
    return TokenClasses(tokens=int(counts.sum()), ids=np.concatenate(parts), windows=windows, length=length,
                        class_of=class_of, token_of=token_of, counts=of_class)


@dataclasses.dataclass(frozen=True)
class DecoderUnits:
    """`ReadUnits` of a decoder; its parameters are the model's and what `units.draw_directions` gives."""

    model: SelfAblatingTransformer

    def __call__(self, params: tuple[Params, list[dict[str, Any]]], tokens_BT: jax.Array) -> tuple[Values, Values]:
        """Values of all units and directions."""
        of_model, drawn = params
        out = decoder_output(self.model, of_model, tokens_BT)
        return unit_values(out), direction_values(self.model.config, of_model, out, drawn)


def calibrate(read: ReadUnits, all_kinds: Sequence[Kind], params: Any, batches: Iterable[Batch], classes: TokenClasses,
              rates: Mapping[str, Sequence[float]]) -> dict[str, list[Calibration]]:
    """Thresholds, pilot means and Gini indices from windows spread evenly over the split, by kind and layer.

    Rates are shares of tokens on which an activation fires; those of gates are not looked at.

    Raises:
      DataError: an activation is not finite.
    """
    parts: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for piece in pieces([_sample(batches, classes)]):
        counted = np.asarray(piece["mask"]).ravel() > 0
        for sort, by_kind in zip(("units", "directions"), _sampled(read, params, piece["inputs"]), strict=True):
            for name, layers in by_kind.items():
                for i, values in enumerate(layers):
                    parts.setdefault((sort, name, i), []).append(np.asarray(values)[counted])

    def sampled(sort: str, kind: Kind, layer: int) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate(parts.pop((sort, kind.name, layer))).T)

    return {kind.name: [calibration(kind, sampled("units", kind, i), sampled("directions", kind, i), rate, i)
                        for i, rate in enumerate(rates[kind.name])] for kind in all_kinds}


def calibration(kind: Kind, values: Float[np.ndarray, "units tokens"], random: Float[np.ndarray, "directions tokens"],
                rate: float, layer: int) -> Calibration:
    """`Calibration` of one layer from values on a sample; units fire at the rate where the kind has no threshold.

    Raises:
      DataError: a value is not finite.
    """
    check_finite(values.sum(-1), kind.name, layer)
    sizes = np.abs(values)
    ranked = sizes if kind.signed else values
    if kind.threshold is not None:
        threshold = np.full(len(values), kind.threshold, np.float32)
    else:
        threshold = np.maximum(top_threshold(ranked, np.full(len(values), rate)), 0).astype(np.float32)
    # The directions get the quantiles of the units' rates, at least that of a few firings in the sample.
    count, n = random.shape
    least = _LEAST_SAMPLED / n
    unit_rates = (ranked > threshold[:, None]).mean(-1)
    alive = unit_rates[unit_rates > 0]
    rates = np.quantile(alive, (np.arange(count) + 0.5) / count) if alive.size else np.full(count, least)
    random_sizes = np.abs(random) if kind.signed else random
    direction_threshold = top_threshold(random_sizes, np.clip(rates, least, 1 - least)).astype(np.float32)
    if kind.directions == "values":
        direction_threshold = np.maximum(direction_threshold, 0)
    if kind.directions == "scores":
        directions = binary_shape((random_sizes > direction_threshold[:, None]).sum(-1), n)
    else:
        before = kind.directions == "pre-activations"
        active = np.asarray(activated(kind.activation, jnp.asarray(random)) if before else random, np.float64)
        pilot = active.mean(-1)
        directions = shape(power_sums(active, pilot), pilot, n, gini_of(np.sort(np.abs(active), axis=-1)))
    return Calibration(
        threshold=threshold, pilot=values.mean(-1, dtype=np.float64).astype(np.float32),
        gini=np.full(len(values), np.nan) if kind.binary else gini_of(np.sort(sizes, axis=-1)),
        direction_threshold=direction_threshold, directions=directions)


def top_threshold(values: Float[np.ndarray, "units tokens"], rates: Float[np.ndarray, " units"]
                  ) -> Float[np.ndarray, " units"]:
    """Between the value that the top share of each row starts with and the next lower one; both sides have one.

    Where those two are equal but for rounding, as what the first layer makes of a token at one place in many windows
    is, it lies in the nearest gap between values that are not: another batch size would part them otherwise.

    >>> top_threshold(np.array([[5.0, 1.0, 3.0, 2.0], [4.0, 1.0, 4.000001, 0.0]]), np.array([0.25, 0.25])).tolist()
    [4.0, 2.5]
    """
    n = values.shape[1]
    first = n - np.clip((rates * n).round().astype(int), 1, max(n - 1, 1))
    before = np.maximum(first - 1, 0)
    parted = np.partition(values, np.unique([first, before]), axis=-1)
    rows = np.arange(len(values))
    high, low = parted[rows, first].astype(np.float64), parted[rows, before].astype(np.float64)
    rounding = _ROUNDING * np.maximum(values.max(-1), -values.min(-1))
    for row in np.flatnonzero((high - low <= rounding) & (high != 0)):  # what is exactly 0 is so in every batch
        ranked = np.sort(values[row]).astype(np.float64)
        gaps = np.flatnonzero(np.diff(ranked) > rounding[row])
        if gaps.size:
            nearest = gaps[np.abs(gaps - before[row]).argmin()]
            low[row], high[row] = ranked[nearest], ranked[nearest + 1]
    return (high + low) / 2


def count_firings(read: ReadUnits, all_kinds: Sequence[Kind], params: Any, batches: Iterable[Batch],
                  classes: TokenClasses, calibrations: Mapping[str, Sequence[Calibration]],
                  facts: FactRows | None = None) -> FiringCounts:
    """The pass over the split; all kinds have the same layers. The tables' rows of facts follow those of the classes.

    Raises:
      DataError: an activation is not finite.
    """
    rows = len(classes.counts) + (0 if facts is None else len(facts.counts))
    thresholds = {name: [(x.threshold, x.direction_threshold) for x in layers]
                  for name, layers in calibrations.items()}
    pilots = {kind.name: [x.pilot for x in calibrations[kind.name]] for kind in all_kinds if not kind.binary}
    # In a layer's table the units of each kind and then its directions are side by side. There is one row more, for
    # tokens that do not count.
    widths = [[len(x) for kind in all_kinds for x in thresholds[kind.name][i]]
              for i in range(len(thresholds[all_kinds[0].name]))]
    tables, sums, done, before = None, None, 0, None
    for piece in pieces(batches):
        mask, placed = np.asarray(piece["mask"]) > 0, _placement(piece)
        counted = int(mask.sum())
        ids = np.full((*mask.shape, 1 if facts is None else 1 + facts.rows.shape[1]), rows, np.int32)
        ids[mask, 0] = classes.class_of[np.asarray(piece["inputs"])[mask]]
        if facts is not None:
            ids[mask, 1:] = len(classes.counts) + facts.rows[done : done + counted]
        done += counted
        if tables is None:
            tables = [jax.device_put(np.zeros((rows + 1, sum(x)), np.int32), placed) for x in widths]
        tables, now = _program(placed)(read, tuple(all_kinds), params, piece["inputs"], mask, ids, thresholds, pilots,
                                       tables)
        # Sums are added in float64 on the host; those of a piece are fetched while the next one runs.
        sums, before = _added(sums, before), now
    sums = _added(sums, before)
    for name, layers in sums.items():
        for i, values in enumerate(layers):
            check_finite(values.sum(0), name, i)
    units, directions = {kind.name: [] for kind in all_kinds}, {kind.name: [] for kind in all_kinds}
    for table, of_layer in zip(tables or (), widths, strict=True):
        columns = iter(np.split(np.asarray(table)[:rows], np.cumsum(of_layer)[:-1], axis=1))
        for kind in all_kinds:
            units[kind.name].append(next(columns))
            directions[kind.name].append(next(columns))
    return FiringCounts(units=units, directions=directions, sums=sums)


def pieces(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches as the device likes them: on one CPU cut into pieces of about `_CPU_TOKENS` tokens, all of one shape."""
    for batch in batches:
        inputs, devices = batch["inputs"], _placement(batch).device_set
        if len(devices) > 1 or next(iter(devices)).platform != "cpu":
            yield batch
            continue
        inputs, mask = np.asarray(inputs), np.asarray(batch["mask"])
        size = min(len(inputs), max(1, _CPU_TOKENS // inputs.shape[1]))
        for start in range(0, len(inputs), size):
            cut = [x[start : start + size] for x in (inputs, mask)]
            if (cut[1] > 0).any():
                filled = [np.pad(x, ((0, size - len(x)), (0, 0))) for x in cut]
                yield {"inputs": filled[0], "mask": filled[1]}


def _sample(batches: Iterable[Batch], classes: TokenClasses) -> Batch:
    """Windows spread evenly over those of the split that have any token, together of about `SAMPLE_TOKENS` tokens."""
    count = classes.windows
    wanted = min(-(-SAMPLE_TOKENS // classes.length), count)
    chosen, row, parts = [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)], 0, []
    for batch in batches:
        inputs, mask = np.asarray(batch["inputs"]), np.asarray(batch["mask"]) > 0
        rows = np.flatnonzero(mask.any(-1))
        take = rows[np.isin(row + np.arange(len(rows)), chosen)]
        row += len(rows)
        parts.append((inputs[take], mask[take]))
    inputs, mask = (np.concatenate(x) for x in zip(*parts, strict=True))
    return {"inputs": inputs, "mask": mask}


@functools.partial(jax.jit, static_argnames="read")
def _sampled(read: ReadUnits, params: Any, inputs: jax.Array) -> tuple[Values, Values]:
    return read(params, inputs)


@functools.cache
def _program(placed: jax.sharding.Sharding) -> Callable[..., tuple[list[jax.Array], dict[str, list[jax.Array]]]]:
    """The compiled step; the tables stay where they are, so that they can be changed in place."""
    return jax.jit(_step, static_argnames=("read", "all_kinds"), donate_argnames="tables", out_shardings=(placed, None))


def _placement(piece: Batch) -> jax.sharding.Sharding:
    """Where the tables lie: on every device that has a part of the batch."""
    inputs = piece["inputs"]
    if isinstance(inputs, jax.Array) and isinstance(inputs.sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(inputs.sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _step(read, all_kinds, params, inputs, mask, ids, thresholds, pilots, tables):
    """One piece: (tables with its firings, sums by kind and layer)."""
    values, random = read(params, inputs)
    added = []
    for i, table in enumerate(tables):
        fired = []
        for kind in all_kinds:
            threshold, direction_threshold = thresholds[kind.name][i]
            fired += [fires(values[kind.name][i], threshold, kind.signed),
                      fires(random[kind.name][i], direction_threshold, kind.signed)]
        # Without the barriers XLA fuses comparing, joining and converting into one loop, several times slower on CPU.
        joined = jax.lax.optimization_barrier(jnp.concatenate(jax.lax.optimization_barrier(fired), axis=-1))
        rows = joined.astype(table.dtype)
        for j in range(ids.shape[-1]):
            table = table.at[ids[..., j].ravel()].add(rows)
        added.append(table)
    sums = {name: [_sums(values[name][i], pilot, mask.ravel()) for i, pilot in enumerate(pilots[name])]
            for name in pilots}
    return added, sums


def _sums(values: jax.Array, pilot: jax.Array, mask: jax.Array) -> jax.Array:
    """[5, units] as `measures.power_sums`, of tokens that count."""
    y = jnp.where(mask[:, None], values - pilot, 0)
    y2 = y * y
    absolute = jnp.where(mask[:, None], jnp.abs(values), 0)
    return jnp.stack([jnp.sum(x, axis=0) for x in (absolute, y, y2, y2 * y, y2 * y2)])


def _added(total: Any, sums: Any) -> Any:
    """float64 sums with those of a piece, where there is one."""
    if sums is None:
        return total
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    return wide if total is None else jax.tree.map(np.add, total, wide)


def check_finite(values: Float[np.ndarray, " units"], name: str, layer: int) -> None:
    """Raises DataError where a number of a unit is NaN or infinite."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(f"{name} of layer {layer} are NaN or infinite in {bad} of {len(values)} units; the checkpoint "
                        "is damaged or its training diverged, take another one")
