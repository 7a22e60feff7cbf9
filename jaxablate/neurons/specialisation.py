"""How specialised units are: every measure of every unit, beside what it is by chance.

`measure` reads a decoder over a split, `measure_sites` any other model, `measure_arrays` takes activations as arrays,
`summarise` averages units.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer, Num

from jaxablate import stats
from jaxablate.errors import ConfigError, DataError, TooLittleDataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.facts import FactMeasures, FactRows, Facts, entropy, fact_measures, fact_rows
from jaxablate.neurons.firing_counts import (
    SAMPLE_TOKENS,
    Batches,
    Calibration,
    DecoderUnits,
    FiringCounts,
    ReadUnits,
    TokenClasses,
    calibrate,
    calibration,
    classify_tokens,
    count_firings,
    pieces,
)
from jaxablate.neurons.measures import (
    LEAST_OF_CLASS,
    Shape,
    ShuffledTokens,
    TokenSelectivity,
    binary_shape,
    matched,
    power_sums,
    shape,
    shuffle_tokens,
    token_selectivity,
)
from jaxablate.neurons.units import FIRES_ABOVE, PARTS, Kind, draw_directions, fires, kinds, rotation
from jaxablate.stats import Estimate
from jaxablate.types import Params

DIRECTIONS = 256
"""Random directions for each kind, over all layers."""
SHUFFLES = 24
FREQUENT = 8
"""Tokens that are kept of what fires each unit."""
LEAST_FIRINGS = 10
"""A unit that fires at the rate asked for fires on at least so many tokens of the split, or there are too few."""
ARRAY_SAMPLE = 65_536
"""Tokens from which `measure_arrays` takes thresholds and Gini indices; of fewer it takes all."""
DIRECTION_RESAMPLES = 200
"""Bootstrap draws of the random directions."""

BySite = Callable[[Params, jax.Array], Mapping[str, jax.Array]]
"""(params, tokens int32 [B, T]) -> {site: activation [B, T, ...]}."""

MEASURES = (*(f.name for f in dataclasses.fields(TokenSelectivity)), *(f.name for f in dataclasses.fields(Shape)))
"""Names of all measures."""
_OF_SHAPE = frozenset(field.name for field in dataclasses.fields(Shape))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrequentTokens:
    """The tokens on which units fire most often, most frequent first; [units, `FREQUENT`]."""

    tokens: np.ndarray
    """int, -1 for all rare tokens together, and where a unit fires on no more."""
    fired: np.ndarray
    """int, on how many of them each fires."""
    rates: np.ndarray
    """The same as a share of the token's occurrences."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnitGroup:
    """The units of one kind in one layer."""

    kind: str
    """``neurons clean``, ``attention gates`` and so on, see `units.kinds`."""
    layer: int
    fired: np.ndarray
    """int [units], tokens on which each fires."""
    rates: np.ndarray
    """[units] the same as a share of all tokens."""
    shape: Shape
    tokens: TokenSelectivity
    """Plug-in estimates."""
    threshold: np.ndarray
    """float32 [units] above which each fires."""
    best_token: np.ndarray
    """int [units], the token whose share of firings is greatest; -1 where there is none."""
    frequent: "FrequentTokens"
    """The tokens on which most of its firings are."""
    shuffled: TokenSelectivity
    """`tokens` as expected of each unit if tokens were shuffled."""
    shuffled_information_95: np.ndarray
    """[units] 95 % quantile of the information under shuffles."""
    direction_rates: np.ndarray
    """[R] share of tokens on which each random direction fires."""
    direction_tokens: TokenSelectivity
    """`tokens` of the random directions, their information minus what shuffles have."""
    direction_shape: Shape
    """`shape` of the random directions, from the sample."""

    @property
    def information(self) -> np.ndarray:
        """[units] bits that firing tells of the current token, minus what it tells of shuffled tokens; may be < 0."""
        return self.tokens.information - self.shuffled.information

    @property
    def live(self) -> np.ndarray:
        """bool [units]"""
        return self.fired > 0

    def measure(self, name: str) -> np.ndarray:
        """One of `MEASURES` for each unit, NaN where a unit does not have it; information is the corrected one."""
        if name == "information":
            return self.information
        return getattr(self.shape if name in _OF_SHAPE else self.tokens, name)

    def direction_measure(self, name: str) -> np.ndarray:
        """The same of the random directions, [R]."""
        return getattr(self.direction_shape if name in _OF_SHAPE else self.direction_tokens, name)

    def matched(self, name: str) -> np.ndarray:
        """The same of random directions that fire as often as each unit, [units]."""
        return matched(self.rates, self.direction_rates, self.direction_measure(name))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NeuronMeasures:
    """All groups of a model."""

    groups: tuple[UnitGroup, ...]
    """By kind, then by layer."""
    facts: tuple[FactMeasures, ...]
    """By kind, then by label; empty without facts."""
    tokens: int
    sampled: int
    """About how many tokens thresholds and Gini indices come from."""
    token_of: np.ndarray
    """int [C] token of each class in which firings are counted, -1 for the class of all rare tokens."""
    counts: np.ndarray
    """int [C] tokens of each class in the text."""
    token_information: float
    """Bits of the current token, the most that a unit could tell."""
    match_k: Mapping[str, tuple[int, ...]]
    """Activations of a decoder fire on match_k / units of the tokens, by kind of unit and layer; empty for arrays."""

    def of(self, kind: str) -> tuple[UnitGroup, ...]:
        """The layers of one kind, in order."""
        return tuple(group for group in self.groups if group.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.kind for group in self.groups))


def measure(
    model: SelfAblatingTransformer, params: Params, batches: Batches, *, match_k: int | None = None,
    facts: Facts | None = None, directions: int = DIRECTIONS, shuffles: int = SHUFFLES, seed: int = 0,
) -> NeuronMeasures:
    """Measures every unit of a decoder in one pass over a split.

    Gates fire above 0.5. Activations fire on the tokens where they are greatest (attention channels: in size), as many
    as a model with k winners would let through: k / units of all tokens. So all models are compared at one rate. The
    thresholds come from about `firing_counts.SAMPLE_TOKENS` tokens; the rate on the whole split is in the result. An
    activation of 0, or a negative one of a neuron, never fires.

    Args:
      model: with gates or without; without, there are clean units only.
      params: its parameters.
      batches: starts the split; it is called three times, of which the model runs over all of the last one.
      match_k: k of the rate at which activations fire; None takes that of the model's config in each layer, which for a
        model without gates is what its gated twin has (8 by default).
      facts: labels of the tokens; adds `NeuronMeasures.facts`.
      directions: random directions for each kind, over all layers.
      shuffles: draws of the shuffled tokens at each of `measures.SHUFFLE_GRID` numbers of firings.
      seed: seed of directions and shuffles.

    Raises:
      ConfigError: match_k is out of range.
      DataError: too few tokens, activations that are not finite, or facts of another split.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxablate.config import ModelConfig
      >>> config = ModelConfig(vocab_size=11, context_length=16, d_model=8, n_layers=1, n_heads=2, k_neurons=4,
      ...                      k_attention=2)
      >>> model = SelfAblatingTransformer(config)
      >>> tokens = jax.random.randint(jax.random.key(0), (40, 16), 0, 11)
      >>> params = model.init(jax.random.key(1), tokens)["params"]
      >>> result = measure(model, params, lambda: [{"inputs": tokens, "mask": jnp.ones_like(tokens)}])
      >>> result.kinds[:3], result.tokens
      (('neurons clean', 'neurons ablated', 'neurons gates'), 640)
      >>> result.of("neurons gates")[0].fired.sum().item() == 640 * 4
      True
    """
    config, all_kinds = model.config, kinds(model.config)
    winners = _winners(model, match_k)
    rates = {kind.name: [k / kind.width for k in winners[kind.name.split()[0]]] for kind in all_kinds}
    drawn = draw_directions(config, params, max(directions // config.n_layers, 2), seed)
    result = measure_units(DecoderUnits(model), all_kinds, (params, drawn), batches, rates=rates,
                           vocab_size=config.vocab_size, facts=facts, shuffles=shuffles, seed=seed)
    return dataclasses.replace(result, match_k={part: tuple(ks) for part, ks in winners.items()})


def measure_units(
    read: ReadUnits, all_kinds: Sequence[Kind], params: Any, batches: Batches, *, rates: Mapping[str, Sequence[float]],
    vocab_size: int, facts: Facts | None = None, shuffles: int = SHUFFLES, seed: int = 0,
) -> NeuronMeasures:
    """`measure` of the units that a function reads, in one pass over a split.

    Args:
      read: (params, tokens int32 [B, T]) -> values of units and of random directions, by kind and layer.
      all_kinds: the kinds that it gives, all of the same layers.
      params: its parameters.
      batches: starts the split; it is called three times.
      rates: by kind, the share of tokens on which a unit of each layer fires; it is not looked at where a kind has a
        threshold of its own.
      vocab_size: V, above every token.
      facts: as in `measure`.
      shuffles: as in `measure`.
      seed: of the shuffles.

    Raises:
      DataError: too few tokens, activations that are not finite, or facts of another split.
    """
    classes = classify_tokens(batches(), vocab_size, with_ids=facts is not None)
    _check_enough(classes.tokens, min(min(layers) for layers in rates.values()))
    rows = None if facts is None else fact_rows(facts, classes.ids)
    calibrations = calibrate(read, all_kinds, params, batches(), classes, rates)
    counts = count_firings(read, all_kinds, params, batches(), classes, calibrations, rows)
    sampled = min(classes.tokens, classes.length * -(-SAMPLE_TOKENS // classes.length))
    return _result(all_kinds, classes, calibrations, counts, rows, sampled, shuffles, seed, match_k={})


def measure_arrays(
    activations: Num[Array | np.ndarray, "*tokens units"] | Bool[Array | np.ndarray, "*tokens units"]
    | Sequence[Array | np.ndarray],
    tokens: Integer[Array | np.ndarray, "*tokens"], *, rate: float = 0.02, threshold: float | None = None,
    signed: bool = False, facts: Facts | None = None, directions: int = DIRECTIONS, shuffles: int = SHUFFLES,
    seed: int = 0, name: str = "units",
) -> NeuronMeasures:
    """Measures every unit of any model, from its activations.

    A unit fires on the tokens where it is greatest, as many as ``rate`` says, or above a ``threshold``. A value of 0 or
    a negative one never fires, unless units are ``signed`` or a threshold says otherwise. The random directions are
    those of random rotations of each layer's activations, at the rates of its units.

    Args:
      activations: value of each unit at each token, or one such array for each layer; bool arrays say where units fire.
      tokens: ids of the tokens, of the same leading shape (``[n]``, ``[batch, time]``).
      rate: share of tokens on which each unit fires, in (0, 1).
      threshold: value above which every unit fires instead; rates then differ from unit to unit.
      signed: units have no preferred sign: large negative values count as firing, too.
      facts: labels of the tokens, with the story or document that each is of.
      directions: as in `measure`.
      shuffles: as in `measure`.
      seed: as in `measure`.
      name: what the units are called in the result.

    Returns:
      One group for each layer.

    Raises:
      ConfigError: rate is out of range.
      DataError: shapes do not fit, tokens are no ids, too few tokens, values that are not finite, or facts of other
        tokens.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> tokens = rng.integers(0, 5, 4000)
      >>> activations = rng.random((4000, 8)) + 3 * (tokens == 2)[:, None] * (np.arange(8) == 6)
      >>> result = measure_arrays(activations, tokens, rate=0.1)
      >>> int(result.groups[0].information.argmax()), int(result.groups[0].best_token[6])
      (6, 2)
    """
    ids = np.asarray(tokens)
    layers = [np.asarray(x) for x in (activations if isinstance(activations, list | tuple) else [activations])]
    _check_arrays(layers, ids, rate)
    flat = (x.reshape(ids.size, -1) for x in layers)
    return _measure_layers(((name, signed, x) for x in flat), ids.reshape(-1), rate=rate, threshold=threshold,
                           facts=facts, directions=max(directions // len(layers), 2), shuffles=shuffles, seed=seed)


def measure_sites(
    read: BySite, params: Params, batches: Batches, *, sites: Sequence[str] | None = None, rate: float = 0.02,
    threshold: float | None = None, signed: Collection[str] = (), facts: Facts | None = None,
    directions: int = DIRECTIONS, shuffles: int = SHUFFLES, seed: int = 0,
) -> NeuronMeasures:
    """Measures every unit of a model that is not of this package, site by site, as `measure_arrays` does.

    The activations of one site on all tokens are held at a time, and the model reads the split once a site.

    Args:
      read: (params, tokens int32 [B, T]) -> {site: activation [B, T, ...]}; axes after the first two are units. Pure
        and hashable.
      params: its parameters.
      batches: starts the split.
      sites: which of the sites are measured; all by default.
      rate: as in `measure_arrays`.
      threshold: as in `measure_arrays`.
      signed: sites whose units have no preferred sign.
      facts: as in `measure_arrays`, of the tokens that count.
      directions: random directions for each site.
      shuffles: as in `measure`.
      seed: as in `measure`.

    Returns:
      Each site is a kind of units, of one layer.

    Raises:
      ConfigError: there is no such site, or one has no units for each token; rate is out of range.
      DataError: as `measure_arrays`.
    """
    inputs, masks = [], []
    for batch in batches():
        inputs.append(np.asarray(batch["inputs"]))
        masks.append(np.asarray(batch["mask"]) > 0)
    ids = np.concatenate([x[mask] for x, mask in zip(inputs, masks, strict=True)]) if inputs else np.zeros(0, np.int32)
    if not ids.size:
        raise DataError("the split has no tokens; give one that has")
    names = _check_sites(jax.eval_shape(read, params, jax.ShapeDtypeStruct(inputs[0].shape, jnp.int32)),
                         inputs[0].shape, sites, signed)

    def values(name: str) -> np.ndarray:
        one = jax.jit(lambda params, tokens: read(params, tokens)[name])
        parts = [np.asarray(one(params, piece["inputs"]))[np.asarray(piece["mask"]) > 0] for piece in pieces(batches())]
        x = np.concatenate(parts).reshape(len(ids), -1)
        x = x if x.dtype == bool else x.astype(np.float32)
        _check_arrays([x], ids, rate, name)
        return x

    return _measure_layers(((name, name in signed, values(name)) for name in names), ids, rate=rate,
                           threshold=threshold, facts=facts, directions=directions, shuffles=shuffles, seed=seed)


def _check_sites(found: Mapping[str, jax.ShapeDtypeStruct], shape: tuple[int, ...], sites: Sequence[str] | None,
                 signed: Collection[str]) -> tuple[str, ...]:
    """Names of the sites asked for; ``found`` are all, on tokens of a shape."""
    if not isinstance(found, Mapping) or not found:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the function that reads sites gives {type(found).__name__}; it must give "
                          "{site: activation [batch, time, ...]}, at least one")
    for name in (*(sites or ()), *signed):
        if name not in found:
            near = " and ".join(difflib.get_close_matches(name, found, n=2, cutoff=0.0))
            raise ConfigError(f"site {name!r} is none of the {len(found):,} that the function gives; nearest: {near}")
    for name in found if sites is None else sites:
        if found[name].shape[:2] != shape or len(found[name].shape) < 3:
            raise ConfigError(f"activations of {name} have shape {found[name].shape} for tokens {shape}; they must be "
                              "[batch, time, ...], a row of units for each token")
    return tuple(found if sites is None else sites)


def _measure_layers(layers: Iterable[tuple[str, bool, np.ndarray]], ids: np.ndarray, *, rate: float,
                    threshold: float | None, facts: Facts | None, directions: int, shuffles: int, seed: int
                    ) -> NeuronMeasures:
    """Measures of layers (kind, whether signed, values [n, units]), one at a time, on tokens [n]."""
    classes = classify_tokens([{"inputs": ids[None], "mask": np.ones((1, len(ids)))}], int(ids.max()) + 1)
    rows = None if facts is None else fact_rows(facts, ids)
    row_ids = classes.class_of[ids][:, None]
    if rows is not None:
        row_ids = np.concatenate([row_ids, len(classes.counts) + rows.rows], axis=1)
    n_rows = len(classes.counts) + (0 if rows is None else len(rows.counts))
    rng, sampled = np.random.default_rng(seed), min(len(ids), ARRAY_SAMPLE)
    sample = np.arange(sampled) * len(ids) // sampled
    counts, kinds_of = FiringCounts(units={}, directions={}, sums={}), dict[str, Kind]()
    calibrations: dict[str, list[Calibration]] = {}
    for name, signed, layer in layers:
        binary = layer.dtype == bool
        if threshold is None and not binary:
            _check_enough(len(ids), rate)
        for table in (counts.units, counts.directions, counts.sums, calibrations):
            table.setdefault(name, [])
        i = len(calibrations[name])
        kind = Kind(name=name, width=layer.shape[1], signed=signed, binary=binary,
                    threshold=FIRES_ABOVE if binary else threshold)
        kinds_of.setdefault(name, kind)
        values = layer.astype(np.float32)
        random = values @ rotation(kind.width, directions, rng)
        at = calibration(kind, np.ascontiguousarray(values[sample].T), np.ascontiguousarray(random[sample].T), rate, i)
        calibrations[name].append(at)
        counts.units[name].append(_tables(fires(values, at.threshold, signed), row_ids, n_rows))
        counts.directions[name].append(_tables(fires(random, at.direction_threshold, signed), row_ids, n_rows))
        # One unit at a time, since the sums are taken in float64.
        counts.sums[name].append(np.concatenate(
            [power_sums(values[:, u][None].astype(np.float64), at.pilot[u : u + 1].astype(np.float64))
             for u in range(kind.width)], axis=1))
    return _result(list(kinds_of.values()), classes, calibrations, counts, rows, sampled, shuffles, seed, match_k={})


def _check_arrays(layers: Sequence[np.ndarray], tokens: np.ndarray, rate: float, name: str | None = None) -> None:
    if not 0 < rate < 1:
        raise ConfigError(f"rate={rate:g} must be between 0 and 1")
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.size == 0 or tokens.min() < 0:
        raise DataError(f"tokens of shape {tokens.shape} and type {tokens.dtype} are no ids; give whole numbers from 0 "
                        "on, one for each token")
    if not layers:
        raise DataError("there is no layer; give an array of activations, or one for each layer")
    for i, x in enumerate(layers):
        where = name or f"layer {i}"
        if x.ndim != tokens.ndim + 1 or x.shape[:-1] != tokens.shape or x.shape[-1] == 0:
            raise DataError(f"activations of {where} have shape {x.shape}, the tokens {tokens.shape}; give "
                            "[tokens, units], one row for each token")
        if not np.isfinite(x).all():
            raise DataError(f"activations of {where} are NaN or infinite in {(~np.isfinite(x)).sum():,} places; "
                            "leave these tokens out or mend them")


def _tables(fired: np.ndarray, row_ids: np.ndarray, rows: int) -> np.ndarray:
    """int [rows, units]: how often units fire [n, units] on tokens of each row [n, J]."""
    table = np.zeros((rows, fired.shape[1]), np.int64)
    for ids in row_ids.T:
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        table[present] += np.add.reduceat(fired[order], starts, axis=0, dtype=np.int64)
    return table


def _winners(model: SelfAblatingTransformer, match_k: int | None) -> dict[str, list[int]]:
    """k of the rate of activations, by part and layer."""
    config, result = model.config, {}
    for part, width in zip(PARTS, (config.mlp_width, config.attention_width), strict=True):
        result[part] = [config.layer_k(part, i) if match_k is None else match_k for i in range(config.n_layers)]
        for k in result[part]:
            if not 1 <= k < width:
                name = f"match_k={match_k}" if match_k is not None else f"k_{part}={k} of the config"
                raise ConfigError(f"{name} must be in 1..{width - 1}, below the {width} {part} units of a layer; "
                                  "set match_k")
    return result


def _check_enough(tokens: int, rate: float) -> None:
    needed = math.ceil(LEAST_FIRINGS / rate)
    if tokens < needed:
        raise TooLittleDataError(
            f"the split has {tokens:,} tokens; at least {needed:,} are needed for every unit to fire {LEAST_FIRINGS} "
            "times; give a longer split or more batches")


def _result(all_kinds: Sequence[Kind], classes: TokenClasses, calibrations: Mapping[str, Sequence[Calibration]],
            counts: FiringCounts, rows: FactRows | None, sampled: int, shuffles: int, seed: int,
            match_k: Mapping[str, tuple[int, ...]]) -> NeuronMeasures:
    """All measures from what was counted."""
    size = len(classes.counts)
    candidates = (classes.counts >= LEAST_OF_CLASS) & (classes.token_of >= 0)
    fired = np.concatenate([table[:size].sum(0) for by_kind in (counts.units, counts.directions)
                            for layers in by_kind.values() for table in layers])
    shuffled = shuffle_tokens(classes.counts, candidates, fired, draws=shuffles, seed=seed)
    groups = tuple(
        _group(kind, i, classes, at, candidates, shuffled, counts.units[kind.name][i][:size],
               counts.directions[kind.name][i][:size], counts.sums[kind.name][i] if kind.name in counts.sums else None)
        for kind in all_kinds for i, at in enumerate(calibrations[kind.name]))
    facts = () if rows is None else tuple(
        measures for kind in all_kinds for measures in fact_measures(
            rows, kind.name, *([table[size:] for table in x[kind.name]] for x in (counts.units, counts.directions))))
    return NeuronMeasures(groups=groups, facts=facts, tokens=classes.tokens, sampled=sampled, match_k=match_k,
                          token_of=classes.token_of, counts=classes.counts, token_information=entropy(classes.counts))


def _group(kind: Kind, layer: int, classes: TokenClasses, at: Calibration, candidates: np.ndarray,
           shuffled: ShuffledTokens, table: np.ndarray, random_table: np.ndarray, sums: np.ndarray | None) -> UnitGroup:
    tokens, best = token_selectivity(table, classes.counts, candidates)
    random, _ = token_selectivity(random_table, classes.counts, candidates)
    fired, random_fired = table.sum(0), random_table.sum(0)
    by_chance, upper = shuffled.at(fired)
    corrected = random.information - shuffled.at(random_fired)[0].information
    own_shape = (binary_shape(fired, classes.tokens) if kind.binary or sums is None else
                 shape(sums, at.pilot.astype(np.float64), classes.tokens, at.gini))
    return UnitGroup(
        kind=kind.name, layer=layer, fired=fired, rates=fired / classes.tokens, shape=own_shape, tokens=tokens,
        threshold=at.threshold, frequent=_frequent(table, classes),
        best_token=np.where(best >= 0, classes.token_of[best], -1), shuffled=by_chance, shuffled_information_95=upper,
        direction_rates=random_fired / classes.tokens, direction_shape=at.directions,
        direction_tokens=dataclasses.replace(random, information=corrected))


def _frequent(table: np.ndarray, classes: TokenClasses) -> FrequentTokens:
    """The greatest entries of each column of a table [classes, units], earlier classes first among equals."""
    size = len(table)
    order = table.T.astype(np.int64) * size + np.arange(size - 1, -1, -1)
    shown = min(FREQUENT, size)
    top = np.sort(np.partition(order, size - shown, axis=1)[:, size - shown:], axis=1)[:, ::-1]
    fired, chosen = top // size, size - 1 - top % size
    result = FrequentTokens(tokens=np.where(fired > 0, classes.token_of[chosen], -1), fired=fired,
                            rates=fired / np.maximum(classes.counts[chosen], 1))
    room = ((0, 0), (0, FREQUENT - shown))
    return FrequentTokens(tokens=np.pad(result.tokens, room, constant_values=-1), fired=np.pad(result.fired, room),
                          rates=np.pad(result.rates, room))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureSummary:
    """Mean of one measure over live units, beside both nulls. Bootstrap over units, or over directions, in layers."""

    measure: str
    mean: Estimate
    """Without a value where no unit has the measure."""
    shuffled: float | None
    """Mean expected of the same units if tokens were shuffled; None for measures that this leaves as they are. The
    information is that which is subtracted from the plug-in estimate."""
    directions: Estimate
    """Mean of random directions that fire as often as these units."""
    above: Estimate
    """mean - directions; units and directions are resampled independently."""


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
    measures: tuple[MeasureSummary, ...]

    def of(self, measure: str) -> MeasureSummary:
        """The summary of one of `MEASURES`."""
        return next(x for x in self.measures if x.measure == measure)


def summarise(measures: NeuronMeasures, seed: int = 0) -> tuple[GroupSummary, ...]:
    """Means over units with both nulls: each kind over all layers, then layer by layer."""
    result = []
    for kind in measures.kinds:
        groups = measures.of(kind)
        draws = [_draws(group, seed + i) for i, group in enumerate(groups)]
        result.append(_summary(groups, draws, None))
        result += [_summary([group], [draw], group.layer) for group, draw in zip(groups, draws, strict=True)]
    return tuple(result)


def _draws(group: UnitGroup, seed: int) -> dict[str, np.ndarray]:
    """Means of one group, [measures], bootstrap draws of them, [measures, resamples], and how many units have each."""
    values = np.stack([group.measure(name) for name in MEASURES])
    shuffled = np.stack([getattr(group.shuffled, name, np.full(len(group.fired), np.nan)) for name in MEASURES])
    random = np.stack([group.matched(name) for name in MEASURES])
    has = np.isfinite(values)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(group.direction_rates), (DIRECTION_RESAMPLES, len(group.direction_rates)))
    drawn = [[_mean(matched(group.rates, group.direction_rates[pick], group.direction_measure(name)[pick])[has[i]])
              for pick in picks] for i, name in enumerate(MEASURES)]
    mean, by_chance, directions = (np.array([_mean(row[of]) for row, of in zip(rows, has, strict=True)])
                                   for rows in (values, shuffled, random))
    return {"weight": has.sum(-1).astype(float), "mean": mean, "shuffled": by_chance, "directions": directions,
            "mean_draws": stats.ratio_resamples(np.where(has, values, 0), has.astype(float), seed=seed),
            "direction_draws": np.array(drawn)}


def _summary(groups: Sequence[UnitGroup], draws: Sequence[Mapping[str, np.ndarray]], layer: int | None) -> GroupSummary:
    weight = np.stack([d["weight"] for d in draws])

    def joined(name: str) -> np.ndarray:
        """Mean over layers, weighted by the units that have the measure."""
        parts = np.stack([d[name] for d in draws])
        w = np.where(np.isfinite(parts), weight.reshape(weight.shape + (1,) * (parts.ndim - 2)), 0)
        total = w.sum(0)
        return np.divide((np.nan_to_num(parts) * w).sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)

    mean, shuffled, directions, mean_draws, direction_draws = map(
        joined, ("mean", "shuffled", "directions", "mean_draws", "direction_draws"))
    summaries = []
    for i, name in enumerate(MEASURES):
        n = int(weight[:, i].sum())
        summaries.append(MeasureSummary(
            measure=name, mean=stats.from_draws(float(mean[i]), mean_draws[i], n=n),
            shuffled=float(shuffled[i]) if np.isfinite(shuffled[i]) else None,
            directions=stats.from_draws(float(directions[i]), direction_draws[i]),
            above=stats.from_draws(float(mean[i] - directions[i]),
                                   mean_draws[i, :DIRECTION_RESAMPLES] - direction_draws[i], n=n)))
    live = np.concatenate([g.live for g in groups])
    above = np.concatenate([g.tokens.information > g.shuffled_information_95 for g in groups])
    return GroupSummary(kind=groups[0].kind, layer=layer, units=len(live), live=int(live.sum()),
                        rate=float(np.concatenate([g.rates for g in groups]).mean()),
                        telling=float(above[live].mean()) if live.any() else None, measures=tuple(summaries))


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else np.nan
