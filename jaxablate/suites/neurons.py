"""Suite ``neurons``: how specialised neurons, attention channels and gates are, with both nulls.

The paper claims specialised neurons (docs/papers.md, Neuron measures). A gate fixes how often units fire, and that
alone moves every measure, so each stands beside what shuffled tokens give and what random directions give that fire as
often.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxablate import stats
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.facts import FactMeasures, Facts
from jaxablate.neurons.firing_counts import Batches
from jaxablate.neurons.measures import NEIGHBOURS
from jaxablate.neurons.specialisation import (
    DIRECTION_RESAMPLES,
    DIRECTIONS,
    SHUFFLES,
    GroupSummary,
    NeuronMeasures,
    measure,
    summarise,
)
from jaxablate.ops.capacity import capacity
from jaxablate.reports.panels import Bar, Bars, Beside, Grid, Heatmap, Histogram, HistogramGrid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.samples import readable
from jaxablate.suites.suite import Suite
from jaxablate.types import Params

BINS = 24
SHOWN_UNITS = 4
"""Units of each kind that the report names."""
LABELS = {
    "information": "information (bits)", "effective_tokens": "effective tokens", "selectivity": "selectivity",
    "lifetime_sparsity": "lifetime sparsity", "hoyer": "Hoyer", "gini": "Gini", "kurtosis": "excess kurtosis",
}
"""Measures as tables call them, in their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TellingUnit:
    """A unit and what fires it."""

    kind: str
    layer: int
    unit: int
    token: str
    """The token that fires it on the greatest share of its occurrences."""
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
    capacity: Estimate
    """Mean over neurons; at most D / F, for all directions together have D."""
    random: float
    """Capacity of vectors of the same lengths with random directions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactSummary:
    """What units of one kind tell of one recorded fact."""

    label: str
    kind: str
    entropy: float
    information: float | None
    """Bits that the best unit's firing tells of the label; None where no unit fires."""
    layer: int
    unit: int
    """Layer and number of the best unit."""
    firing_means: str
    silence_means: str
    """Likeliest values where the best unit fires and where it does not."""
    equal_number: float
    """Information expected of the best of as many units as there are directions."""
    directions: float | None
    """Information of the best random direction; None where none fires."""
    accuracy: Estimate
    """Accuracy of telling the label from the firing of one unit, both chosen on other stories; over folds."""
    directions_accuracy: float
    majority: float
    """Accuracy of the likeliest label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsResult:
    """All measures, averaged over units."""

    tokens: int
    sampled: int
    token_information: float
    """Bits of the current token."""
    groups: tuple[GroupSummary, ...]
    histograms: tuple[Histogram, ...]
    """Units of each kind by information, all layers together."""
    telling: tuple[TellingUnit, ...]
    capacities: tuple[WeightCapacity, ...]
    facts: tuple[FactSummary, ...]

    def headline(self) -> tuple[Figure, ...]:
        """Information of each kind, by how much it is above that of random directions, and effective tokens."""
        figures = []
        for x in self.overall():
            information = x.of("information")
            figures += [Figure(f"token information {x.kind}", information.mean, unit="bits"),
                        Figure(f"token information {x.kind} above random", information.above, unit="bits"),
                        Figure(f"effective tokens {x.kind}", x.of("effective_tokens").mean, unit="tokens")]
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """Bars with nulls, all measures, all layers, histograms, units and tokens, weights, facts."""
        facts = (_fact_map(self), _fact_table(self)) if self.facts else ()
        histograms = HistogramGrid(
            title="Units by what they tell of the token", x_label="bits", histograms=self.histograms,
            mark_label="mean of random directions that fire as often",
            caption="Units of all layers. Those that tell less than the scale shows, or never fire, are the bar at the "
                    "left.")
        return (_bars(self, "information", "What firing tells of the current token", "bits"),
                _bars(self, "effective_tokens", "Tokens that fire a unit", "effective tokens"),
                _measure_table(self), histograms, _layer_table(self), _unit_table(self), *facts,
                _capacity_table(self))

    def overall(self) -> tuple[GroupSummary, ...]:
        """Each kind over all layers."""
        return tuple(x for x in self.groups if x.layer is None)


def evaluate(model: SelfAblatingTransformer, params: Params, batches: Batches, *, decode: Callable[[int], str] = str,
             facts: Facts | None = None, match_k: int | None = None, seed: int = 0) -> NeuronsResult:
    """Measures every unit as `jaxablate.neurons.measure`, whose errors it raises, and averages over units."""
    measures = measure(model, params, batches, match_k=match_k, facts=facts, directions=DIRECTIONS, shuffles=SHUFFLES,
                       seed=seed)
    return averaged(measures, params, decode=decode, seed=seed)


def averaged(measures: NeuronMeasures, params: Params, *, decode: Callable[[int], str] = str, seed: int = 0
             ) -> NeuronsResult:
    """The result of measures that were made with these parameters."""
    groups = summarise(measures, seed)
    return NeuronsResult(
        tokens=measures.tokens, sampled=measures.sampled, token_information=measures.token_information,
        groups=groups, histograms=_by_information(measures, groups), telling=telling_units(measures, decode),
        capacities=weight_capacities(params, len(measures.of(measures.kinds[0])), seed),
        facts=fact_summaries(measures.facts, seed))


def _by_information(measures: NeuronMeasures, groups: Sequence[GroupSummary]) -> tuple[Histogram, ...]:
    """Logarithmic bins, the same for all kinds, over four decades up to the greatest value."""
    values = {kind: np.concatenate([np.nan_to_num(group.information, nan=-1) for group in measures.of(kind)])
              for kind in measures.kinds}
    most = max((float(x.max()) for x in values.values()), default=0.0)
    top = 10.0 ** math.ceil(math.log10(most)) if most > 0 else 1.0
    edges = np.geomspace(top / 1e4, top, BINS + 1)
    result = []
    for group in (x for x in groups if x.layer is None):
        x, mark = values[group.kind], group.of("information").directions.value
        counts = np.histogram(np.clip(x[x >= edges[0]], None, edges[-1]), edges)[0]
        result.append(Histogram(
            title=group.kind, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()),
            apart=int((x < edges[0]).sum()), apart_label="less",
            mark=mark if mark is not None and edges[0] <= mark <= edges[-1] else None,
            note=f"{group.live} of {group.units} live"))
    return tuple(result)


def telling_units(measures: NeuronMeasures, decode: Callable[[int], str]) -> tuple[TellingUnit, ...]:
    """The units of each kind whose firing tells most of the current token, which ``decode`` gives as text."""
    result = []
    for kind in measures.kinds:
        every = [(group.information[unit], group, unit) for group in measures.of(kind)
                 for unit in np.flatnonzero(group.live)]
        for information, group, unit in sorted(every, key=lambda x: -x[0])[:SHOWN_UNITS]:
            best, selectivity = int(group.best_token[unit]), float(group.tokens.selectivity[unit])
            result.append(TellingUnit(
                kind=kind, layer=group.layer, unit=int(unit), token=decode(best) if best >= 0 else "",
                rate=float(group.rates[unit]), effective_tokens=float(group.tokens.effective_tokens[unit]),
                information=float(information), selectivity=selectivity if math.isfinite(selectivity) else None))
    return tuple(result)


def weight_capacities(params: Params, layers: int, seed: int) -> tuple[WeightCapacity, ...]:
    """Capacity of in- and out-weights of every layer's neurons; weights take the place of docs/papers.md's tokens."""
    rng = np.random.default_rng(seed)
    result = []
    for layer in range(layers):
        mlp = params[f"layer_{layer}"]["mlp"]
        reads = mlp.get("gate", mlp["up"])  # what the activation function takes
        for name, kernel in (("in", np.asarray(reads["kernel"]).T), ("out", np.asarray(mlp["down"]["kernel"]))):
            random = rng.standard_normal(kernel.shape)
            random *= np.linalg.norm(kernel, axis=1, keepdims=True) / np.linalg.norm(random, axis=1, keepdims=True)
            result.append(WeightCapacity(
                layer=layer, weights=name, capacity=stats.mean(np.asarray(capacity(kernel), np.float64), seed=seed),
                random=float(np.mean(capacity(random.astype(np.float32))))))
    return tuple(result)


def fact_summaries(facts: Sequence[FactMeasures], seed: int) -> tuple[FactSummary, ...]:
    """One line for each label and kind."""
    result = []
    for x in facts:
        units, directions = np.concatenate(x.information), np.concatenate(x.directions)
        (layer, unit), (fires, silent) = x.best, x.best_means
        result.append(FactSummary(
            label=x.label, kind=x.kind, entropy=x.entropy, information=_greatest(x.information[layer][unit]),
            layer=layer, unit=unit, firing_means=fires, silence_means=silent,
            equal_number=expected_best(units[np.isfinite(units)], len(directions)),
            directions=_greatest(directions), accuracy=stats.mean(x.accuracy, seed=seed),
            directions_accuracy=float(x.directions_accuracy.mean()), majority=float(x.majority.mean())))
    return tuple(result)


def _greatest(values: np.ndarray) -> float | None:
    """The greatest of the values that are numbers."""
    numbers = values[np.isfinite(values)]
    return float(numbers.max()) if numbers.size else None


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


def _bars(result: NeuronsResult, name: str, title: str, unit: str) -> Bars:
    bars = []
    for x in result.overall():
        of = x.of(name)
        for label, value in ((x.kind, of.mean), (f"{x.kind}, random directions", of.directions)):
            bars.append(Bar(label, 0.0 if value.value is None else value))
        if name != "information" and of.shuffled is not None:
            bars.append(Bar(f"{x.kind}, shuffled tokens", of.shuffled))
    caption = (f"Mean over live units of all layers, {result.tokens:,} validation tokens. Random directions: of the "
               "space the units live in, made to fire as often. "
               + ("What the same units tell of shuffled tokens is subtracted; the current token has "
                  f"{result.token_information:.2f} bits. " if name == "information" else
                  "exp(entropy) of the current token when a unit fires. ")
               + "Whiskers: 95 % bootstrap over units, or over directions, within layers.")
    return Bars(title=title, caption=caption, bars=tuple(bars), unit=unit)


def _measure_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.kind, label, of.mean, of.shuffled, of.directions)
                 for x in result.overall() for name, label in LABELS.items() for of in (x.of(name),))
    caption = ("Means over live units of all layers. Shuffled: what shuffled tokens give; they leave the last four "
               "measures as they are, and what they tell is subtracted from the information. Random: in-weights of "
               "neurons or score heads of gates of the same length in a random direction; for channels, a random "
               "rotation of them; on the ablated stream these, times winners by random scores. Each unit is compared "
               f"with the {NEIGHBOURS} nearest in firing rate. The last four measures of random directions, and Gini "
               f"of activations, are from {result.sampled:,} tokens.")
    return Grid(title="All measures", caption=caption, rows=rows,
                columns=("units", "measure", "mean", "shuffled", "random"))


def _layer_table(result: NeuronsResult) -> Grid:
    rows = tuple(
        (x.kind, x.layer, x.live / x.units, x.rate, x.telling, x.of("information").mean,
         x.of("information").directions.value, *(x.of(name).mean.value for name in ("effective_tokens", "selectivity")))
        for x in result.groups if x.layer is not None)
    caption = ("Live: fires on any token. Rate: share of tokens on which a unit fires. Telling: share of live units "
               "that tell more of the token than 95 % of shuffles would. Bits: information; random: that of directions "
               "which fire as often.")
    return Grid(title="By layer", caption=caption, rows=rows,
                columns=("units", "layer", "live", "rate", "telling", "bits", "random", "effective tokens",
                         "selectivity"))


def _unit_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.kind, x.layer, x.unit, repr(x.token), x.rate, x.effective_tokens, x.selectivity, x.information)
                 for x in result.telling)
    return Grid(title="Units that tell most of the token", rows=rows,
                caption="Token: the one with the greatest share of its occurrences among the firings.",
                columns=("units", "layer", "unit", "token", "rate", "effective tokens", "selectivity", "information"))


def _capacity_table(result: NeuronsResult) -> Grid:
    caption = ("Share of a dimension that a neuron's weight vector has to itself, mean over the layer's neurons; at "
               "most D / F. In: what it reads, out: what it writes. Random: vectors of the same lengths.")
    return Grid(title="Capacity of the neurons' weights", caption=caption,
                rows=tuple((x.layer, x.weights, x.capacity, x.random) for x in result.capacities),
                columns=("layer", "weights", "capacity", "random"))


def _fact_map(result: NeuronsResult) -> Beside:
    labels, kinds = (tuple(dict.fromkeys(getattr(x, name) for x in result.facts)) for name in ("label", "kind"))
    by = {(x.label, x.kind): x for x in result.facts}

    def heat(title: str, field: str) -> Heatmap:
        def share(x: FactSummary) -> float:
            return max((getattr(x, field) or 0.0) / x.entropy, 0.0) if x.entropy > 0 else 0.0

        return Heatmap(title=title, caption="", rows=labels, x_label="units", columns=kinds,
                       value_label="share of the fact's bits",
                       values=tuple(tuple(share(by[label, kind]) for kind in kinds) for label in labels))

    caption = ("Facts of the story corpus at each token; next_io is the next token's, all others are known at the "
               "token. Information of the best unit as a share of all there is, beside that of the best random "
               "direction; there are fewer directions than units, see the table.")
    return Beside(title="What the best unit tells of recorded facts", caption=caption,
                  labels=("units", "random directions"),
                  panels=(heat("best unit", "information"), heat("best random direction", "directions")))


def _fact_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.label, x.kind, x.entropy, x.information, x.equal_number, x.directions, f"{x.layer}.{x.unit}",
                  x.firing_means, x.silence_means, x.accuracy, x.directions_accuracy, x.majority)
                 for x in result.facts)
    caption = ("Information: bits that the firing of the best unit tells of the fact, minus what it tells of the facts "
               "of other places in the split; of an equal number: expected of the best of as many units as there are "
               "directions. Accuracy: of telling the fact from the firing of one unit, which is chosen, with its two "
               "answers, on nine tenths of the stories and tried on the last; 95 % bootstrap over the ten parts. "
               "Majority: always the likeliest value.")
    return Grid(title="Recorded facts", caption=caption, rows=rows,
                columns=("fact", "units", "bits", "information", "of an equal number", "random directions", "best unit",
                         "fires", "is silent", "accuracy", "random directions", "majority"))


def measured(run: Run) -> NeuronMeasures:
    """Measures of all units over the whole validation split, made once for all suites."""
    if "neurons" not in run.made:
        facts = None if run.facts is None else run.facts()
        run.made["neurons"] = measure(run.model, run.params, run.splits["valid"].batches, match_k=run.match_k,
                                      facts=facts, directions=DIRECTIONS, shuffles=SHUFFLES, seed=run.seed)
    return run.made["neurons"]


def _run(run: Run) -> tuple[NeuronsResult, dict[str, Any]]:
    found = measured(run)
    result = averaged(found, run.params, seed=run.seed, decode=lambda token: readable(run.tokenizer, [token]))
    return result, {"directions": DIRECTIONS, "shuffles": SHUFFLES, "sampled_tokens": result.sampled,
                    "bootstrap_resamples": stats.RESAMPLES, "direction_resamples": DIRECTION_RESAMPLES,
                    "match_k": found.match_k, "seed": run.seed}


SUITE = Suite(name="neurons", run=_run,
              about="How specialised neurons, attention channels and gates are, over the validation split, with nulls.")
