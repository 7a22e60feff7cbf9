"""Which units the gates ever use, and how evenly (docs/papers.md, Neuron measures)."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.config import ModelConfig
from jaxablate.neurons.units import FIRES_ABOVE
from jaxablate.reports.panels import Grid, Histogram, HistogramGrid, Panel
from jaxablate.reports.results import Figure
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params

BINS_PER_DECADE = 4
KINDS = ("attention", "neurons")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerGates:
    """Gates of one kind in one layer, over all tokens of the split."""

    kind: str
    layer: int
    units: int
    k: int
    live: int
    """Units that fired at least once."""
    mean_winners: float
    """Units firing on a token, on average; k for hard gates."""
    mean_gate: float
    """Sum of a token's gates, on average; k for hard and soft gates."""
    effective_units: float
    """exp(entropy) of the units' shares of all firings: U where all fire alike, k where always the same k do."""
    bin_edges: tuple[float, ...]
    bin_counts: tuple[int, ...]
    """Live units by firing rate (fraction of tokens), logarithmic bins; the last bin holds its right edge, 1."""
    null_live: float
    """Units expected to fire at least once if each token took a uniformly random k-subset."""
    null_effective_units: float
    """Effective units expected of such subsets, to second order in the sampling noise of the rates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatesResult:
    """Gate statistics of every layer and kind."""

    layers: tuple[LayerGates, ...]
    tokens: int

    def headline(self) -> tuple[Figure, ...]:
        """Live fraction and effective fraction of units per kind, over all layers."""
        figures = []
        for name, field in (("live", "live"), ("effective", "effective_units")):
            for kind in KINDS:
                layers = [x for x in self.layers if x.kind == kind]
                value = sum(getattr(x, field) for x in layers) / sum(x.units for x in layers)
                figures.append(Figure(f"{name} {kind}", value, "fraction", range=stats.FRACTION))
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """A grid of histograms per kind and the table of all layers."""
        rows = tuple((x.kind, x.layer, x.units, x.k, x.mean_winners, x.live / x.units, 1 - x.live / x.units,
                      x.null_live / x.units, x.effective_units, x.null_effective_units) for x in self.layers)
        caption = ("Chance: each token takes a uniformly random k-subset. Effective units: exp(entropy) of the units' "
                   "shares of all firings.")
        table = Grid(title="Gates by layer", caption=caption, rows=rows,
                     columns=("kind", "layer", "units", "k", "mean winners", "live", "dead", "live by chance",
                              "effective units", "effective by chance"))
        return (*(_histograms(self, kind) for kind in KINDS), table)


def evaluate(model: Any, params: Params, batches: Iterable[Batch]) -> GatesResult:
    """Counts each unit's firings over the tokens of the split whose mask is not 0; memory does not grow with it."""
    config: ModelConfig = model.config
    totals: dict[str, Any] = {kind: [(0.0, 0.0)] * config.n_layers for kind in KINDS}
    tokens = 0
    for batch in batches:
        counts = jax.tree.map(lambda x: np.asarray(x, np.float64), firing_counts(model, params, batch))
        totals = jax.tree.map(np.add, totals, counts)
        tokens += int(np.sum(np.asarray(batch["mask"]) > 0))
    layers = tuple(
        _layer(kind, i, config.layer_k(kind, i), fired, float(total), tokens)
        for kind in KINDS for i, (fired, total) in enumerate(totals[kind])
    )
    return GatesResult(layers=layers, tokens=tokens)


@functools.partial(jax.jit, static_argnames="model")
def firing_counts(model: Any, params: Params, batch: Batch) -> dict[str, list[tuple[jax.Array, jax.Array]]]:
    """Per kind and layer: how many tokens of the batch fire each unit (int32 [U]), and the sum of all gates."""
    out = model.apply({"params": params}, batch["inputs"])
    seen = batch["mask"] > 0

    def count(gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        fired = (gates > FIRES_ABOVE) & seen[..., None]
        return jnp.sum(fired, axis=(0, 1), dtype=jnp.int32), jnp.sum(jnp.where(seen[..., None], gates, 0))

    return {"attention": [count(layer.attention_gates) for layer in out.layers],
            "neurons": [count(layer.neuron_gates) for layer in out.layers]}


def effective_number(counts: np.ndarray) -> float:
    """exp of the entropy of ``counts / sum(counts)``; 0 where nothing was counted.

    >>> round(effective_number(np.array([5.0, 5.0, 0.0, 0.0])), 6)
    2.0
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def _layer(kind: str, layer: int, k: int, fired: np.ndarray, gate_sum: float, tokens: int) -> LayerGates:
    units = fired.size
    # Logarithmic edges from just below one firing in the split up to 1.
    steps = max(1, math.ceil(math.log10(max(tokens, 2)) * BINS_PER_DECADE))
    edges = 10.0 ** (-np.arange(steps, -1, -1) / BINS_PER_DECADE)
    edges[0] = min(edges[0], 1 / max(tokens, 2))
    return LayerGates(
        kind=kind, layer=layer, units=units, k=k, live=int(np.sum(fired > 0)),
        mean_winners=float(fired.sum() / tokens), mean_gate=gate_sum / tokens,
        effective_units=effective_number(fired), bin_edges=tuple(float(e) for e in edges),
        bin_counts=tuple(int(c) for c in np.histogram(fired[fired > 0] / tokens, bins=edges)[0]),
        null_live=units * -math.expm1(tokens * math.log1p(-k / units)),
        null_effective_units=units * math.exp(-min((1 - k / units) * units / (2 * k * tokens), 50.0)),
    )


def _histograms(result: GatesResult, kind: str) -> HistogramGrid:
    cells = tuple(
        Histogram(title=f"layer {x.layer}", edges=x.bin_edges, counts=x.bin_counts, apart=x.units - x.live,
                  apart_label="dead", mark=x.k / x.units, note=f"{x.live} of {x.units} live")
        for x in result.layers if x.kind == kind
    )
    caption = (f"Units by the fraction of {result.tokens:,} validation tokens on which their gate exceeds "
               f"{FIRES_ABOVE}. Units that never do are the bar at the left.")
    noun = "attention channels" if kind == "attention" else "neurons"
    return HistogramGrid(title=f"Firing rates of {noun}", caption=caption, x_label="firing rate", histograms=cells,
                         mark_label="k / U, the rate of every unit under random winners")


SUITE = Suite(name="gates",
              about="Attention channels and neurons that the gates let through, over the validation split.",
              run=lambda run: (evaluate(run.model, run.params, run.splits["valid"].batches()),
                               {"fires_above": FIRES_ABOVE}),
              unfit=lambda config: None if config.model.gated else "the model has no gates (model.ablation='none')")
