"""Suite ``neurons``: how specialised neurons, attention channels and gates are, with both nulls.

The paper claims specialised neurons (docs/papers.md, Neuron measures). A gate fixes how often units fire, and that
alone moves every measure, so each stands beside what shuffled tokens give and what random directions give that fire as
often.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxablate import stats
from jaxablate.intervals_old import RESAMPLES, both_ends
from jaxablate.neurons import Facts, NeuronMeasures, measure
from jaxablate.neurons.nulls import NEIGHBOURS
from jaxablate.neurons.specialisation import DIRECTIONS, SHUFFLES
from jaxablate.neurons.stream import Batches
from jaxablate.reports.panels import Bar, Bars, Beside, Grid, Heatmap, Histogram, HistogramGrid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.neurons_summaries import (
    DIRECTION_RESAMPLES,
    FactSummary,
    GroupSummary,
    TellingUnit,
    WeightCapacity,
    fact_summaries,
    summaries,
    telling_units,
    weight_capacities,
)
from jaxablate.suites.samples import readable
from jaxablate.suites.suite import Suite
from jaxablate.types import Params

BINS = 24

_LABELS = {
    "information": "information (bits)", "effective_tokens": "effective tokens", "selectivity": "selectivity",
    "lifetime_sparsity": "lifetime sparsity", "hoyer": "Hoyer", "gini": "Gini", "kurtosis": "excess kurtosis",
}
"""Measures as tables call them, in their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InformationHistogram:
    """Live units of a kind by information, all layers together."""

    kind: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    """Units that tell less than the first edge, or never fire."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsResult:
    """All measures, averaged over units."""

    tokens: int
    sampled: int
    token_information: float
    """Bits of the current token."""
    groups: tuple[GroupSummary, ...]
    histograms: tuple[InformationHistogram, ...]
    telling: tuple[TellingUnit, ...]
    capacities: tuple[WeightCapacity, ...]
    facts: tuple[FactSummary, ...]

    def headline(self) -> tuple[Figure, ...]:
        """Information of each kind, by how much it is above that of random directions, and effective tokens."""
        figures = []
        for x in self._overall():
            told, effective = x.of("information"), x.of("effective_tokens")
            figures += [
                Figure(f"token information {x.kind}", stats.Estimate(told.value, *both_ends(told.interval)), "bits"),
                Figure(f"token information {x.kind} above random",
                       stats.Estimate(told.above, *both_ends(told.above_interval)), "bits"),
                Figure(f"effective tokens {x.kind}", stats.Estimate(effective.value, *both_ends(effective.interval)),
                       "tokens"),
            ]
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """Bars with nulls, all measures, all layers, histograms, units and tokens, weights, facts."""
        facts = (_fact_map(self), _fact_table(self)) if self.facts else ()
        return (_bars(self, "information", "What firing tells of the current token", "bits"),
                _bars(self, "effective_tokens", "Tokens that fire a unit", "effective tokens"),
                _measure_table(self), _histograms(self), _layer_table(self), _unit_table(self), *facts,
                _capacity_table(self))

    def _overall(self) -> tuple[GroupSummary, ...]:
        return tuple(x for x in self.groups if x.layer is None)


def evaluate(model: Any, params: Params, batches: Batches, *, decode: Callable[[int], str] = str,
             facts: Facts | None = None, match_k: int | None = None, seed: int = 0) -> NeuronsResult:
    """Measures every unit and averages over units.

    Args:
      model: a `SelfAblatingTransformer`.
      params: its parameters.
      batches: starts the split, see `Batches`.
      decode: a token's text.
      facts: recorded facts of the split's tokens.
      match_k: see `jaxablate.neurons.measure`.
      seed: of directions, shuffles and resampling.

    Raises:
      ConfigError, DataError: as `jaxablate.neurons.measure`.
    """
    found = measure(model, params, batches, match_k=match_k, facts=facts, seed=seed)
    return NeuronsResult(
        tokens=found.tokens, sampled=found.sampled, token_information=found.token_information,
        groups=summaries(found, seed), histograms=_by_information(found), telling=telling_units(found, decode),
        capacities=weight_capacities(params, model.config.n_layers, seed), facts=fact_summaries(found.facts, seed))


def _by_information(found: NeuronMeasures) -> tuple[InformationHistogram, ...]:
    """Logarithmic bins, the same for all kinds, over four decades up to the greatest value."""
    values = {kind: np.concatenate([np.nan_to_num(group.information, nan=-1) for group in found.of(kind)])
              for kind in found.kinds}
    most = max((float(x.max()) for x in values.values()), default=0.0)
    top = 10.0 ** math.ceil(math.log10(most)) if most > 0 else 1.0
    edges = np.geomspace(top / 1e4, top, BINS + 1)
    return tuple(
        InformationHistogram(kind=kind, edges=tuple(edges.tolist()), below=int((x < edges[0]).sum()),
                             counts=tuple(np.histogram(np.clip(x[x >= edges[0]], None, edges[-1]), edges)[0].tolist()))
        for kind, x in values.items())


def _bars(result: NeuronsResult, name: str, title: str, unit: str) -> Bars:
    bars = []
    for x in result._overall():
        e = x.of(name)
        bars.append(Bar(x.kind, stats.Estimate(e.value or 0.0, *both_ends(e.interval))))
        bars.append(Bar(f"{x.kind}, random directions",
                        stats.Estimate(e.directions or 0.0, *both_ends(e.directions_interval))))
        if name != "information" and e.shuffled is not None:
            bars.append(Bar(f"{x.kind}, shuffled tokens", e.shuffled))
    caption = (f"Mean over live units of all layers, {result.tokens:,} validation tokens. Random directions: of the "
               "space the units live in, made to fire as often. "
               + ("What the same units tell of shuffled tokens is subtracted; the current token has "
                  f"{result.token_information:.2f} bits. " if name == "information" else
                  "exp(entropy) of the current token when a unit fires. ")
               + "Whiskers: 95 % bootstrap over units, or over directions, within layers.")
    return Bars(title=title, caption=caption, bars=tuple(bars), unit=unit)


def _measure_table(result: NeuronsResult) -> Grid:
    rows = tuple(
        (x.kind, label, e.value, *both_ends(e.interval), e.shuffled, e.directions, *both_ends(e.directions_interval))
        for x in result._overall() for name, label in _LABELS.items() for e in (x.of(name),))
    caption = ("Means over live units of all layers. Shuffled: what shuffled tokens give; they leave the last four "
               "measures as they are, and what they tell is subtracted from the information. Random: in-weights of "
               "neurons or score heads of gates of the same length in a random direction; for channels, a random "
               "rotation of them; on the ablated stream these, times winners by random scores. Each unit is compared "
               f"with the {NEIGHBOURS} nearest in firing rate. The last four measures of random directions, and Gini "
               f"of activations, are from {result.sampled:,} tokens.")
    return Grid(title="All measures", caption=caption, rows=rows,
                columns=("units", "measure", "mean", "95 % from", "to", "shuffled", "random", "95 % from", "to"))


def _layer_table(result: NeuronsResult) -> Grid:
    others = ("effective_tokens", "selectivity")
    rows = tuple(
        (x.kind, x.layer, x.live / x.units, x.rate, x.telling, x.of("information").value,
         *both_ends(x.of("information").interval), x.of("information").directions,
         *(x.of(name).value for name in others))
        for x in result.groups if x.layer is not None)
    caption = ("Live: fires on any token. Rate: share of tokens on which a unit fires. Telling: share of live units "
               "that tell more of the token than 95 % of shuffles would. Bits: information; random: that of directions "
               "which fire as often.")
    return Grid(title="By layer", caption=caption, rows=rows,
                columns=("units", "layer", "live", "rate", "telling", "bits", "95 % from", "to", "random",
                         *(_LABELS[name] for name in others)))


def _histograms(result: NeuronsResult) -> HistogramGrid:
    overall = {x.kind: x for x in result._overall()}
    cells = tuple(
        Histogram(title=h.kind, edges=h.edges, counts=h.counts, apart=h.below, apart_label="less",
                  mark=_inside(overall[h.kind].of("information").directions, h.edges),
                  note=f"{overall[h.kind].live} of {overall[h.kind].units} live")
        for h in result.histograms)
    return HistogramGrid(title="Units by what they tell of the token", x_label="bits", histograms=cells,
                         mark_label="mean of random directions that fire as often",
                         caption="Units of all layers. Those that tell less than the scale shows, or never fire, are "
                                 "the bar at the left.")


def _inside(value: float | None, edges: tuple[float, ...]) -> float | None:
    return value if value is not None and edges[0] <= value <= edges[-1] else None


def _unit_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.kind, x.layer, x.unit, repr(x.token), x.rate, x.effective_tokens, x.selectivity, x.information)
                 for x in result.telling)
    return Grid(title="Units that tell most of the token", rows=rows,
                caption="Token: the one with the greatest share of its occurrences among the firings.",
                columns=("units", "layer", "unit", "token", "rate", "effective tokens", "selectivity", "information"))


def _capacity_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.layer, x.weights, x.value, *both_ends(x.interval), x.random) for x in result.capacities)
    caption = ("Share of a dimension that a neuron's weight vector has to itself, mean over the layer's neurons; at "
               "most D / F. In: what it reads, out: what it writes. Random: vectors of the same lengths.")
    return Grid(title="Capacity of the neurons' weights", caption=caption, rows=rows,
                columns=("layer", "weights", "capacity", "95 % from", "to", "random"))


def _fact_map(result: NeuronsResult) -> Beside:
    labels, kinds = (tuple(dict.fromkeys(getattr(x, name) for x in result.facts)) for name in ("label", "kind"))
    by = {(x.label, x.kind): x for x in result.facts}

    def heat(title: str, field: str) -> Heatmap:
        shares = tuple(tuple(_share(getattr(by[label, kind], field), by[label, kind].entropy) for kind in kinds)
                       for label in labels)
        return Heatmap(title=title, caption="", rows=labels, values=shares, x_label="units", columns=kinds,
                       value_label="share of the fact's bits")

    caption = ("Facts of the story corpus at each token; next_io is the next token's, all others are known at the "
               "token. Information of the best unit as a share of all there is, beside that of the best random "
               "direction; there are fewer directions than units, see the table.")
    return Beside(title="What the best unit tells of recorded facts", caption=caption,
                  labels=("units", "random directions"),
                  panels=(heat("best unit", "information"), heat("best random direction", "directions")))


def _share(part: float, whole: float) -> float:
    return max(part / whole, 0.0) if whole > 0 else 0.0


def _fact_table(result: NeuronsResult) -> Grid:
    rows = tuple((x.label, x.kind, x.entropy, x.information, x.equal_number, x.directions, f"{x.layer}.{x.unit}",
                  x.firing_means, x.silence_means, x.accuracy, *both_ends(x.accuracy_interval), x.directions_accuracy,
                  x.majority) for x in result.facts)
    caption = ("Information: bits that the firing of the best unit tells of the fact, minus what it tells of the facts "
               "of other places in the split; of an equal number: expected of the best of as many units as there are "
               "directions. Accuracy: of telling the fact from the firing of one unit, which is chosen, with its two "
               "answers, on nine tenths of the stories and tried on the last; 95 % bootstrap over the ten parts. "
               "Majority: always the likeliest value.")
    return Grid(title="Recorded facts", caption=caption, rows=rows,
                columns=("fact", "units", "bits", "information", "of an equal number", "random directions", "best unit",
                         "fires", "is silent", "accuracy", "95 % from", "to", "random directions", "majority"))


def _run(run: Run) -> tuple[NeuronsResult, dict[str, Any]]:
    facts = None if run.facts is None else run.facts()
    result = evaluate(run.model, run.params, run.splits["valid"].batches, facts=facts, seed=run.seed,
                      decode=lambda token: readable(run.tokenizer, [token]))
    return result, {"directions": DIRECTIONS, "shuffles": SHUFFLES, "sampled_tokens": result.sampled,
                    "bootstrap_resamples": RESAMPLES, "direction_resamples": DIRECTION_RESAMPLES, "seed": run.seed}


SUITE = Suite(name="neurons", run=_run,
              about="How specialised neurons, attention channels and gates are, over the validation split, with nulls.")
