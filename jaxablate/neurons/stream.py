"""One pass of a model over a split: power sums of every unit, and how often it fires on each class of tokens.

What is kept does not grow with the split: a table [classes, units] of counts, five sums a unit. Each token adds the row
of units that fire on it to its class's row of the table, two units in one number, so a token moves half as much memory;
the host takes the numbers before their halves can overflow. Looking for the firings on the host costs several times
as much.

Before it, the split's tokens are read once without the model, and the model runs on a sample of whole windows, spread
evenly over the split, from which come thresholds, Gini indices and the pilot means of the power sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError
from jaxablate.gating import GATES
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.firing_table import FiringTables, packed
from jaxablate.neurons.measures import Shape, binary_shape, gini_of, power_sums, shape
from jaxablate.neurons.units import FIRES_ABOVE, Kind, direction_values, fires, kinds, unit_values

CLASSES = 2048
"""Rows of the table of tokens: the most frequent ones of the split, and one for all others where there are more."""
SAMPLE_TOKENS = 8192
"""Tokens of the sample, rounded up to whole windows."""
_CPU_TOKENS = 512
"""Tokens of a forward pass on CPU, where longer ones leave the cache."""
_LEAST_SAMPLED = 4
"""A random direction fires on at least so many tokens of the sample."""

Params = Any
Batch = Mapping[str, Any]
Batches = Callable[[], Iterable[Batch]]
"""Starts the split from its beginning: ``inputs`` int [B, T] and ``mask`` [B, T], positive where a token counts."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """What the tokens alone say.

    Attributes:
      tokens: n, masked ones left out.
      rows: windows with any token.
      length: T.
      class_of: int32 [V] class of each token.
      token_of: int [C] token of each class, -1 for the class of all others.
      counts: int [C] tokens of each class.
    """

    tokens: int
    rows: int
    length: int
    class_of: np.ndarray
    token_of: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """What the sample says of the units of one kind and layer.

    Attributes:
      threshold: float32 [units] above which a unit fires.
      pilot: float32 [units] mean.
      gini: [units].
      direction_threshold: float32 [R], at which random directions fire as often as the kind's units do.
      directions: measures of the random directions' activations.
    """

    threshold: np.ndarray
    pilot: np.ndarray
    gini: np.ndarray
    direction_threshold: np.ndarray
    directions: Shape


Levels = dict[str, list[Level]]
"""By kind and layer."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """What the pass gives, by kind and layer.

    Attributes:
      units: int tables [rows, units] of firings.
      directions: the same of random directions [rows, R].
      sums: float64 [5, units] as `measures.shape` takes them; none for hard gates.
    """

    units: dict[str, list[np.ndarray]]
    directions: dict[str, list[np.ndarray]]
    sums: dict[str, list[np.ndarray]]


def survey(batches: Iterable[Batch], vocabulary: int) -> Split:
    """Counts the tokens of a split.

    Args:
      batches: of the whole split.
      vocabulary: V.

    Raises:
      DataError: no token counts.
    """
    counts, rows, length = np.zeros(vocabulary, np.int64), 0, 0
    for batch in batches:
        inputs, mask = np.asarray(batch["inputs"]), np.asarray(batch["mask"]) > 0
        counts += np.bincount(inputs[mask], minlength=vocabulary)
        rows, length = rows + int(mask.any(-1).sum()), inputs.shape[1]
    if rows == 0:
        raise DataError("the split has no tokens; give one that has")
    order = np.argsort(-counts, kind="stable")
    kept = order[: min(CLASSES, vocabulary)]
    if np.count_nonzero(counts) > len(kept):
        kept = kept[:-1]
    class_of = np.full(vocabulary, len(kept), np.int32)
    class_of[kept] = np.arange(len(kept))
    rest = counts.sum() - counts[kept].sum()
    token_of, of_class = (kept, counts[kept]) if rest == 0 else (np.append(kept, -1), np.append(counts[kept], rest))
    return Split(tokens=int(counts.sum()), rows=rows, length=length, class_of=class_of, token_of=token_of,
                 counts=of_class)


def calibrate(model: SelfAblatingTransformer, params: Params, batches: Iterable[Batch], split: Split,
              rates: Mapping[str, list[float]], drawn: list[dict[str, Any]]) -> Levels:
    """Thresholds, pilot means and Gini indices from windows spread evenly over the split.

    Args:
      model: the decoder.
      params: its parameters.
      batches: of the whole split.
      split: its survey.
      rates: by kind and layer, share of tokens on which an activation fires; not looked at for gates.
      drawn: random directions, from `draw_directions`.

    Raises:
      DataError: an activation is not finite.
    """
    found: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for piece in pieces([_sample(batches, split)]):
        seen = np.asarray(piece["mask"]).ravel() > 0
        for sort, by_kind in zip(("units", "directions"), _sampled(model, params, piece["inputs"], drawn), strict=True):
            for name, layers in by_kind.items():
                for i, values in enumerate(layers):
                    found.setdefault((sort, name, i), []).append(np.asarray(values)[seen])
    return {
        kind.name: [
            _level(kind, i, *(np.ascontiguousarray(np.concatenate(found.pop((sort, kind.name, i))).T)
                              for sort in ("units", "directions")), rates[kind.name][i], _is_binary(kind, model))
            for i in range(model.config.n_layers)
        ] for kind in kinds(model.config)
    }


def count(model: SelfAblatingTransformer, params: Params, batches: Iterable[Batch], split: Split, levels: Levels,
          drawn: list[dict[str, Any]], more_rows: np.ndarray | None = None, more: int = 0) -> Counted:
    """The pass.

    Args:
      model: the decoder.
      params: its parameters.
      batches: of the whole split.
      split: its survey.
      levels: from `calibrate`.
      drawn: the same random directions.
      more_rows: int [n, J] further rows of each token of the split, in order; they follow those of the classes.
      more: number of such rows.

    Returns:
      `Counted`, its tables with the rows of the classes and then the further ones.

    Raises:
      DataError: an activation is not finite.
    """
    found, layers, rows = kinds(model.config), range(model.config.n_layers), len(split.counts) + more
    widths = [[len(x) for kind in found for level in (levels[kind.name][i],)
               for x in (level.threshold, level.direction_threshold)] for i in layers]
    thresholds = {kind.name: [(x.threshold, x.direction_threshold) for x in levels[kind.name]] for kind in found}
    pilots = {kind.name: [x.pilot for x in levels[kind.name]] for kind in found if not _is_binary(kind, model)}
    tables, sums, done, before = FiringTables(rows, [sum(x) for x in widths]), None, 0, None
    for piece in pieces(batches):
        mask = np.asarray(piece["mask"]) > 0
        ids = np.full((*mask.shape, 1 if more_rows is None else 1 + more_rows.shape[1]), rows, np.int32)
        ids[mask, 0] = split.class_of[np.asarray(piece["inputs"])[mask]]
        if more_rows is not None:
            ids[mask, 1:] = len(split.counts) + more_rows[done : done + int(mask.sum())]
        done += int(mask.sum())
        step = functools.partial(_program(_placement(piece)), model, params, piece["inputs"], mask, ids, drawn,
                                 thresholds, pilots)
        now = tables.update(step, mask.size, _placement(piece))
        sums, before = _added(sums, before), now
    return _counted(found, tables.totals(), widths, _added(sums, before))


def pieces(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches as the device likes them: on one CPU cut into pieces of about `_CPU_TOKENS` tokens, all of one shape."""
    for batch in batches:
        inputs = batch["inputs"]
        apart = isinstance(inputs, jax.Array) and len(inputs.sharding.device_set) > 1
        if apart or jax.default_backend() != "cpu":
            yield batch
            continue
        inputs, mask = np.asarray(inputs), np.asarray(batch["mask"])
        size = min(len(inputs), max(1, _CPU_TOKENS // inputs.shape[1]))
        for start in range(0, len(inputs), size):
            cut = [x[start : start + size] for x in (inputs, mask)]
            if not (cut[1] > 0).any():
                continue
            filled = [np.concatenate([x, np.zeros((size - len(x), x.shape[1]), x.dtype)]) for x in cut]
            yield {"inputs": filled[0], "mask": filled[1]}


def _sample(batches: Iterable[Batch], split: Split) -> Batch:
    """Windows spread evenly over those of the split that have any token, together of about `SAMPLE_TOKENS` tokens."""
    wanted = min(-(-SAMPLE_TOKENS // split.length), split.rows)
    chosen, row, found = [(2 * i + 1) * split.rows // (2 * wanted) for i in range(wanted)], 0, []
    for batch in batches:
        inputs, mask = np.asarray(batch["inputs"]), np.asarray(batch["mask"]) > 0
        there = np.flatnonzero(mask.any(-1))
        take = there[np.isin(row + np.arange(len(there)), chosen)]
        row += len(there)
        found.append((inputs[take], mask[take]))
    return {"inputs": np.concatenate([x for x, _ in found]), "mask": np.concatenate([x for _, x in found])}


@functools.partial(jax.jit, static_argnames="model")
def _sampled(model: SelfAblatingTransformer, params: Params, inputs: jax.Array, drawn):
    out = model.apply({"params": params}, inputs)
    return unit_values(out), direction_values(model.config, params, out, drawn)


def _level(kind: Kind, layer: int, values: np.ndarray, random: np.ndarray, rate: float, binary: bool) -> Level:
    """Of values [units, n] and of random directions [R, n]; a binary unit's Gini index comes from how often it is 1."""
    _check_finite(values.sum(-1), kind.name, layer)
    sizes = np.abs(values)
    ranked = sizes if kind.signed else values
    threshold = np.full(len(values), FIRES_ABOVE, np.float32)
    if kind.source != "gates":
        threshold = np.maximum(top_threshold(ranked, np.full(len(values), rate)), 0).astype(np.float32)
    fired = (ranked > threshold[:, None]).mean(-1)
    gini = np.full(len(values), np.nan) if binary else gini_of(np.sort(sizes, axis=-1))
    return Level(threshold=threshold, pilot=values.mean(-1, dtype=np.float64).astype(np.float32), gini=gini,
                 **_directions(kind, random, fired))


def _directions(kind: Kind, random: np.ndarray, fired: np.ndarray) -> dict[str, Any]:
    """Thresholds of random directions [R, n] at the rates of units, and measures of their activations."""
    count, n = random.shape
    least = _LEAST_SAMPLED / n
    alive = fired[fired > 0]
    rates = np.quantile(alive, (np.arange(count) + 0.5) / count) if alive.size else np.full(count, least)
    sizes = np.abs(random) if kind.signed else random
    threshold = top_threshold(sizes, np.clip(rates, least, 1 - least)).astype(np.float32)
    if kind.source == "gates":
        return {"direction_threshold": threshold, "directions": binary_shape((sizes > threshold[:, None]).sum(-1), n)}
    if kind.source == "ablated":
        threshold = np.maximum(threshold, 0)
    raw = kind.part == "neurons" and kind.source == "clean"
    active = np.asarray(jax.nn.gelu(random, approximate=True) if raw else random, np.float64)
    pilot = active.mean(-1)
    found = shape(power_sums(active, pilot), pilot, n, gini_of(np.sort(np.abs(active), axis=-1)))
    return {"direction_threshold": threshold, "directions": found}


def top_threshold(values: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Between the values that the top share of each row starts with and the next lower one.

    Args:
      values: [units, n].
      rates: [units] share of values above; at least one is, and one is not.

    >>> top_threshold(np.array([[5.0, 1.0, 3.0, 2.0]]), np.array([0.25])).tolist()
    [4.0]
    """
    n = values.shape[1]
    first = n - np.clip((rates * n).round().astype(int), 1, max(n - 1, 1))
    before = np.maximum(first - 1, 0)
    parted = np.partition(values, np.unique([first, before]), axis=-1)
    rows = np.arange(len(values))
    return (parted[rows, first].astype(np.float64) + parted[rows, before]) / 2


@functools.cache
def _program(placed):
    """The compiled step; the tables stay where they are, so that they can be changed in place."""
    return jax.jit(_step, static_argnames="model", donate_argnames="tables", out_shardings=(placed, None))


def _placement(piece: Batch):
    """Where the tables lie: on every device that has a part of the batch."""
    inputs = piece["inputs"]
    if isinstance(inputs, jax.Array) and isinstance(inputs.sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(inputs.sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _step(model, params, inputs, mask, ids, drawn, thresholds, pilots, tables):
    """One piece: (tables with its firings, sums by kind and layer)."""
    out = model.apply({"params": params}, inputs)
    values, random = unit_values(out), direction_values(model.config, params, out, drawn)
    counted = []
    for i, table in enumerate(tables):
        fired = []
        for kind in kinds(model.config):
            threshold, direction_threshold = thresholds[kind.name][i]
            fired.append(fires(values[kind.name][i], threshold, kind.signed))
            fired.append(fires(random[kind.name][i], direction_threshold, kind.signed))
        rows = packed(fired, table)
        for j in range(ids.shape[-1]):
            table = table.at[ids[..., j].ravel()].add(rows)
        counted.append(table)
    sums = {name: [_sums(values[name][i], pilot, mask.ravel()) for i, pilot in enumerate(pilots[name])]
            for name in pilots}
    return counted, sums


def _sums(values: jax.Array, pilot: jax.Array, mask: jax.Array) -> jax.Array:
    """[5, units] as `measures.power_sums`, of tokens that count."""
    y = jnp.where(mask[:, None], values - pilot, 0)
    y2 = y * y
    absolute = jnp.where(mask[:, None], jnp.abs(values), 0)
    return jnp.stack([jnp.sum(x, axis=0) for x in (absolute, y, y2, y2 * y, y2 * y2)])


def _added(total, sums):
    """Sums in float64 on the host; those of a piece are fetched while the next one runs."""
    if sums is None:
        return total
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    return wide if total is None else jax.tree.map(np.add, total, wide)


def _counted(found: tuple[Kind, ...], tables: list[np.ndarray], widths: list[list[int]], sums) -> Counted:
    units, directions = {kind.name: [] for kind in found}, {kind.name: [] for kind in found}
    for table, of_layer in zip(tables, widths, strict=True):
        cuts = np.split(table, np.cumsum(of_layer)[:-1], axis=1)
        for j, kind in enumerate(found):
            units[kind.name].append(cuts[2 * j])
            directions[kind.name].append(cuts[2 * j + 1])
    for name, layers in sums.items():
        for i, values in enumerate(layers):
            _check_finite(values.sum(0), name, i)
    return Counted(units=units, directions=directions, sums=sums)


def _is_binary(kind: Kind, model: SelfAblatingTransformer) -> bool:
    return kind.source == "gates" and GATES[model.config.gate].binary


def _check_finite(values: np.ndarray, name: str, layer: int) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(
            f"{name} of layer {layer} are NaN or infinite in {bad} of {len(values)} units; the checkpoint is damaged "
            "or its training diverged, take another one"
        )
