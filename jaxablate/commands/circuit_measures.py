"""What one circuit does: its own answers beside the model's, its divergence from the model, its size."""

import dataclasses

import numpy as np

from jaxablate.circuits.faithfulness import metric_values, prompt_draws
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import make_target
from jaxablate.circuits.search import without_dangling
from jaxablate.commands.circuit_search import Bench
from jaxablate.intervals_old import mean_interval, percentile_interval, wilson

Interval = tuple[float, float] | None
CHANCE = 0.5
"""Accuracy of a guess between answer and wrong answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How a task is answered with certain edges patched. Intervals are 95 % over prompts, None for a single one."""

    kl: float
    """KL(model || this) in nats."""
    kl_interval: Interval
    accuracy: float
    """Fraction of prompts whose answers have a greater mean logit than their wrong answers."""
    accuracy_interval: Interval
    logit_difference: float
    """Mean logit of the answers less that of the wrong answers."""
    logit_difference_interval: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A circuit on a task."""

    prompts: int
    edges: int
    """Of the whole graph."""
    kept: int
    connected: int
    """Kept edges on a path of kept edges from the embedding to the end."""
    heads: int
    """Heads that kept edges lead into and out of."""
    mlps: int
    """Likewise."""
    all_heads: int
    all_mlps: int
    model: Answers
    circuit: Answers
    empty: Answers
    """With every edge patched."""
    faithfulness: float | None
    """Share of the logit difference between `empty` and `model` that the circuit has; None where these are equal."""
    faithfulness_interval: Interval

    @property
    def incompetent(self) -> bool:
        """Whether the model may be guessing: its accuracy's interval reaches down to chance."""
        low, _ = self.model.accuracy_interval or (0.0, 1.0)
        return low <= CHANCE


def measure(bench: Bench, kept: np.ndarray, *, seed: int = 0) -> Measured:
    """Runs the model, the circuit and the model with everything patched on every prompt.

    Args:
      bench: the task on the model.
      kept: [E] bool, the circuit.
      seed: of the bootstrap.
    """
    three = np.stack([np.ones_like(kept), kept, np.zeros_like(kept)])
    kl, margin = (metric_values(bench.config, bench.params, bench.inputs, bench.replacement,
                                make_target(metric, bench.params, bench.pairs, bench.final), three,
                                batch_size=bench.batch_size) for metric in ("kl", "logit_difference"))
    answers = [_answers(*x, seed) for x in zip(kl, margin, strict=True)]
    share, interval = _faithfulness(margin, seed)
    heads, mlps = nodes_within(bench.graph, kept)
    return Measured(prompts=len(bench.pairs), edges=kept.size, kept=int(kept.sum()),
                    connected=int(without_dangling(bench.graph, kept).sum()), heads=heads, mlps=mlps,
                    all_heads=bench.graph.n_layers * bench.graph.n_heads, all_mlps=bench.graph.n_layers,
                    model=answers[0], circuit=answers[1], empty=answers[2], faithfulness=share,
                    faithfulness_interval=interval)


def nodes_within(graph: Graph, kept: np.ndarray) -> tuple[int, int]:
    """Numbers of heads and of MLPs that kept edges [E] lead both into and out of."""
    into, out_of = np.zeros(graph.n_sources, bool), np.zeros(graph.n_sources, bool)
    for d in graph.destinations:
        out_of[: d.fan_in] |= kept[d.edges]
        if d.source is not None:
            into[d.source] |= kept[d.edges].any()
    within = into & out_of
    is_mlp = graph.source_layers % 2 == 1
    is_mlp[0] = False
    return int((within & ~is_mlp).sum()), int((within & is_mlp).sum())


def _answers(kl: np.ndarray, margin: np.ndarray, seed: int) -> Answers:
    right = int((margin > 0).sum())
    return Answers(kl=float(kl.mean()), kl_interval=mean_interval(kl, seed=seed), accuracy=right / len(margin),
                   accuracy_interval=wilson(right, len(margin)), logit_difference=float(margin.mean()),
                   logit_difference_interval=mean_interval(margin, seed=seed))


def _faithfulness(margin: np.ndarray, seed: int) -> tuple[float | None, Interval]:
    """From margins [3, n] of the model, the circuit and everything patched; means before the ratio."""
    model, circuit, empty = margin

    def share(rows: np.ndarray) -> float:
        whole = (model[rows] - empty[rows]).mean()
        return float((circuit[rows] - empty[rows]).mean() / whole) + 0.0 if whole else np.nan

    found = share(np.arange(margin.shape[1]))
    if np.isnan(found):
        return None, None
    if margin.shape[1] < 2:
        return found, None
    return found, percentile_interval(np.array([share(rows) for rows in prompt_draws(margin.shape[1], seed=seed)]))
