"""How specialised the units of a decoder are: every measure of every unit, beside what it is by chance."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxablate.errors import ConfigError, DataError, TooLittleDataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.facts import FactMeasures, FactRows, Facts, fact_measures, fact_rows
from jaxablate.neurons.measures import (
    LEAST_OF_CLASS,
    Shape,
    TokenSelectivity,
    binary_shape,
    shape,
    token_selectivity,
)
from jaxablate.neurons.nulls import ShuffledTokens, matched, shuffle_tokens
from jaxablate.neurons.stream import SAMPLE_TOKENS, Batches, Counted, Level, Levels, Split, calibrate, count, survey
from jaxablate.neurons.units import Kind, draw_directions, kinds

DIRECTIONS = 256
"""Random directions for each kind, over all layers."""
SHUFFLES = 24
LEAST_FIRINGS = 10
"""A unit that fires at the rate asked for fires on at least so many tokens of the split, or there are too few."""

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnitGroup:
    """The units of one kind in one layer.

    Attributes:
      kind: ``neurons clean``, ``attention gates`` and so on, see `units.Kind`.
      layer: from 0.
      fired: int [units], tokens on which each fires.
      rates: [units] the same as a share of all tokens.
      shape: how unevenly they are active.
      tokens: what their firing says of the current token, plug-in.
      best_token: int [units], the token whose share of firings is greatest; -1 where there is none.
      shuffled: `tokens` as expected of each unit if tokens were shuffled.
      shuffled_information_95: [units] 95 % quantile of the information under shuffles.
      direction_rates: [R] share of tokens on which each random direction fires.
      direction_tokens: `tokens` of the random directions, their information minus what shuffles have.
      direction_shape: `shape` of the random directions, from the sample.
    """

    kind: str
    layer: int
    fired: np.ndarray
    rates: np.ndarray
    shape: Shape
    tokens: TokenSelectivity
    best_token: np.ndarray
    shuffled: TokenSelectivity
    shuffled_information_95: np.ndarray
    direction_rates: np.ndarray
    direction_tokens: TokenSelectivity
    direction_shape: Shape

    @property
    def information(self) -> np.ndarray:
        """[units] bits that firing tells of the current token, minus what it tells of shuffled tokens; may be < 0."""
        return self.tokens.information - self.shuffled.information

    @property
    def live(self) -> np.ndarray:
        """bool [units], whether each fires at least once."""
        return self.fired > 0

    def measure(self, name: str) -> np.ndarray:
        """One of `MEASURES` for each unit, NaN where a unit does not have it; information is the corrected one."""
        if name == "information":
            return self.information
        return getattr(self.shape if hasattr(self.shape, name) else self.tokens, name)

    def matched(self, name: str) -> np.ndarray:
        """The same of random directions that fire as often as each unit."""
        of = self.direction_shape if hasattr(self.shape, name) else self.direction_tokens
        return matched(self.rates, self.direction_rates, getattr(of, name))


MEASURES = (*(f.name for f in dataclasses.fields(TokenSelectivity)), *(f.name for f in dataclasses.fields(Shape)))
"""Names of all measures."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NeuronMeasures:
    """All groups of a model.

    Attributes:
      groups: by kind, then by layer.
      facts: by kind, then by label; empty without facts.
      tokens: how many of the split count.
      sampled: about how many of them thresholds and Gini indices come from.
      token_of: int [C] token of each class, -1 for the class of all others.
      counts: int [C] tokens of each class.
      token_information: bits of the current token, the most that a unit could tell.
      match_k: activations fire on match_k / units of the tokens, by kind of unit and layer.
    """

    groups: tuple[UnitGroup, ...]
    facts: tuple[FactMeasures, ...]
    tokens: int
    sampled: int
    token_of: np.ndarray
    counts: np.ndarray
    token_information: float
    match_k: Mapping[str, tuple[int, ...]]

    def of(self, kind: str) -> tuple[UnitGroup, ...]:
        """The layers of one kind, in order."""
        return tuple(group for group in self.groups if group.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds there are."""
        return tuple(dict.fromkeys(group.kind for group in self.groups))


def measure(
    model: SelfAblatingTransformer,
    params: Params,
    batches: Batches,
    *,
    match_k: int | None = None,
    facts: Facts | None = None,
    directions: int = DIRECTIONS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> NeuronMeasures:
    """Measures every unit of a decoder in one pass over a split.

    Gates fire above 0.5. Activations fire on the tokens where they are greatest (attention channels: in size), as many
    as a model with k winners would let through: k / units of all tokens. So all models are compared at one rate. The
    thresholds come from about `stream.SAMPLE_TOKENS` tokens; the rate on the whole split is in the result. An
    activation of 0, or a negative one of a neuron, never fires.

    Args:
      model: with gates or without; without, there are clean units only.
      params: its parameters.
      batches: starts the split; it is called three times, of which the model runs over all of the last one.
      match_k: k of the rate at which activations fire; None takes that of the model's config in each layer, which for a
        model without gates is what its gated twin has (8 by default).
      facts: labels of the tokens; adds `NeuronMeasures.facts`.
      directions: random directions for each kind, over all layers.
      shuffles: draws of the shuffled tokens at each of `nulls.GRID` rates.
      seed: of directions and shuffles.

    Returns:
      `NeuronMeasures`.

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
      >>> found = measure(model, params, lambda: [{"inputs": tokens, "mask": jnp.ones_like(tokens)}])
      >>> found.kinds[:3], found.tokens
      (('neurons clean', 'neurons ablated', 'neurons gates'), 640)
      >>> found.of("neurons gates")[0].fired.sum().item() == 640 * 4
      True
    """
    winners = _winners(model, match_k)
    config = model.config
    rates = {kind.name: [k / kind.width(config) for k in winners[kind.part]] for kind in kinds(config)}
    split = survey(batches(), config.vocab_size)
    _check_enough(split.tokens, rates)
    rows = None if facts is None else _checked_rows(facts, split, batches)
    drawn = draw_directions(config, params, max(directions // config.n_layers, 2), seed)
    levels = calibrate(model, params, batches(), split, rates, drawn)
    more = {} if rows is None else {"more_rows": rows.rows, "more": len(rows.counts)}
    counted = count(model, params, batches(), split, levels, drawn, **more)
    groups = _groups(kinds(config), split, levels, counted, shuffles, seed)
    share = split.counts[split.counts > 0] / split.tokens
    return NeuronMeasures(
        groups=groups, facts=() if rows is None else _facts(kinds(config), split, rows, counted),
        tokens=split.tokens, sampled=min(split.tokens, split.length * -(-SAMPLE_TOKENS // split.length)),
        token_of=split.token_of, counts=split.counts, token_information=float(-(share * np.log2(share)).sum()),
        match_k={part: tuple(ks) for part, ks in winners.items()})


def _winners(model: SelfAblatingTransformer, match_k: int | None) -> dict[str, list[int]]:
    """k of the rate of activations, by part and layer."""
    config = model.config
    found = {part: [config.layer_k(part, i) if match_k is None else match_k for i in range(config.n_layers)]
             for part in ("neurons", "attention")}
    for part, width in (("neurons", config.mlp_width), ("attention", config.d_model)):
        for k in found[part]:
            if not 1 <= k < width:
                name = f"match_k={match_k}" if match_k is not None else f"k_{part}={k} of the config"
                raise ConfigError(f"{name} must be in 1..{width - 1}, below the {width} {part} units of a layer; "
                                  "set match_k")
    return found


def _check_enough(tokens: int, rates: Mapping[str, Sequence[float]]) -> None:
    needed = math.ceil(LEAST_FIRINGS / min(rate for layers in rates.values() for rate in layers))
    if tokens < needed:
        raise TooLittleDataError(
            f"the split has {tokens:,} tokens; at least {needed:,} are needed for every unit to fire {LEAST_FIRINGS} "
            "times; give a longer split or more batches")


def _checked_rows(facts: Facts, split: Split, batches: Batches) -> FactRows:
    """Rows of the facts, which must be of these very tokens."""
    rows, start = fact_rows(facts, split.tokens), 0
    for batch in batches():
        seen = np.asarray(batch["inputs"])[np.asarray(batch["mask"]) > 0]
        differs = np.flatnonzero(seen != facts.tokens[start : start + len(seen)])
        if differs.size:
            at = differs[0]
            raise DataError(f"facts are not of this split: its token {start + at:,} is {seen[at]}, in the facts "
                            f"{facts.tokens[start + at]}; give facts in the order of the batches")
        start += len(seen)
    return rows


def _groups(found: Sequence[Kind], split: Split, levels: Levels, counted: Counted, shuffles: int, seed: int
            ) -> tuple[UnitGroup, ...]:
    candidates = (split.counts >= LEAST_OF_CLASS) & (split.token_of >= 0)
    tables = [layer[: len(split.counts)] for by_kind in (counted.units, counted.directions)
              for layers in by_kind.values() for layer in layers]
    fired = np.concatenate([table.sum(0) for table in tables])
    shuffled = shuffle_tokens(split.counts, candidates, fired, draws=shuffles, seed=seed)
    return tuple(
        _group(kind, i, split, levels[kind.name][i], candidates, shuffled,
               [x[kind.name][i][: len(split.counts)] for x in (counted.units, counted.directions)],
               counted.sums[kind.name][i] if kind.name in counted.sums else None)
        for kind in found for i in range(len(levels[kind.name])))


def _group(kind: Kind, layer: int, split: Split, level: Level, candidates: np.ndarray, shuffled: ShuffledTokens,
           tables: Sequence[np.ndarray], sums: np.ndarray | None) -> UnitGroup:
    units, best = token_selectivity(tables[0], split.counts, candidates)
    random, _ = token_selectivity(tables[1], split.counts, candidates)
    fired, random_fired = (table.sum(0) for table in tables)
    by_chance, upper = shuffled.at(fired)
    corrected = random.information - shuffled.at(random_fired)[0].information
    pilot = level.pilot.astype(np.float64)
    return UnitGroup(
        kind=kind.name, layer=layer, fired=fired, rates=fired / split.tokens,
        shape=binary_shape(fired, split.tokens) if sums is None else shape(sums, pilot, split.tokens, level.gini),
        tokens=units, best_token=np.where(best >= 0, split.token_of[best], -1), shuffled=by_chance,
        shuffled_information_95=upper, direction_rates=random_fired / split.tokens,
        direction_tokens=dataclasses.replace(random, information=corrected), direction_shape=level.directions)


def _facts(found: Sequence[Kind], split: Split, rows: FactRows, counted: Counted) -> tuple[FactMeasures, ...]:
    def below(layers: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [layer[len(split.counts) :] for layer in layers]

    return tuple(measures for kind in found for measures in fact_measures(
        rows, kind.name, below(counted.units[kind.name]), below(counted.directions[kind.name])))
