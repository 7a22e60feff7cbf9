"""What is measured of one stream's circuits: sizes and how far they move, faithfulness, completeness, minimality."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.circuits.acdc import acdc, shuffled_order
from jaxablate.circuits.attribution import eap, eap_ig, mask_gradient, random_scores
from jaxablate.circuits.competence import Competence, competence
from jaxablate.circuits.effects import single_edge_effects
from jaxablate.circuits.faithfulness import completeness, faithfulness, metric_values, minimality, prompt_draws
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import Target, importance, make_target
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import Stream, circuit_config, make_replacement, pair_inputs, run
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.intervals_old import mean_interval, percentile_interval
from jaxablate.models.decoder import SelfAblatingTransformer

ORACLE_EDGES = 3000
"""Largest graph whose edges are all patched one by one as a standard for the estimates."""
DRAWS = 200
"""Bootstrap draws of prompts."""
MINIMALITY_EDGES = 100
"""Most edges of a circuit that are taken out one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeCounts:
    """Sizes of ACDC's circuits at one threshold while one thing varies."""

    varied: str
    """"prompts": batches of them, canonical order. "order": random orders within the layers, first batch of prompts.
    "random weights": models as they are drawn, first batch."""
    tau: float
    counts: tuple[int, ...]
    """Edges kept, one for each search."""
    divergences: tuple[float, ...]
    """KL(clean || circuit) in nats, likewise."""

    @property
    def mean(self) -> float:
        """Mean number of edges."""
        return float(np.mean(self.counts))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, Student's t over the searches."""
        return stats.student(self.counts, within=stats.COUNT).interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """How faithful the circuits of one method's scores are, on prompts the scores have not seen.

    None, and no faithfulness, where there is nothing to explain (`nothing_to_explain`).
    """

    method: str
    cpr: float | None = None
    cpr_interval: tuple[float, float] | None = None
    cmd: float | None = None
    cmd_interval: tuple[float, float] | None = None
    percents: tuple[float, ...] = ()
    faithfulness: tuple[float, ...] | None = None
    """Of the circuits that have so many percent of the edges, by abs(score)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitQuality:
    """ACDC's circuit at one threshold, on prompts it was not found on; in shares of the model's logit difference.

    All shares are None where there is nothing to explain (`nothing_to_explain`).
    """

    tau: float
    edges: int
    faithfulness: float | None = None
    faithfulness_interval: tuple[float, float] | None = None
    complement: float | None = None
    """Share that is left when the circuit is patched out: 0 for a complete circuit."""
    idle: float | None = None
    """Fraction of its edges (of at most 100 drawn) without which the share changes by less than 0.01: 0 for a minimal
    circuit; None for a circuit without edges."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamCircuits:
    """All that was measured of one stream."""

    stream: str
    competence: Competence
    all_patched: float
    """KL(clean || everything patched), nats, first batch of prompts: what there is to explain."""
    edges: int
    """Of the whole graph."""
    counts: tuple[EdgeCounts, ...]
    rankings: tuple[Ranking, ...]
    quality: tuple[CircuitQuality, ...]
    circuits: tuple[tuple[float, tuple[tuple[str, float], ...]], ...]
    """(tau, kept edges of the first batch, each with the drop of logit difference when it alone is patched, as EAP-IG
    estimates it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Prompts of one batch, run, with everything patched edges carry."""

    config: ModelConfig
    params: Params
    inputs: Inputs
    replacement: jax.Array
    target: Target
    logits: np.ndarray
    """[n, V] of the clean prompts."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As attribution and faithfulness take them."""
        return self.config, self.params, self.inputs, self.replacement, self.target


def prepare_pairs(config: ModelConfig, params: Params, pairs: PromptPairs, stream: Stream) -> Prepared:
    """Runs clean and corrupt prompts; resample ablation, logit difference."""
    config = circuit_config(config)
    inputs, corrupt = pair_inputs(config, params, pairs, stream)
    clean, other = run(config, params, inputs), run(config, params, corrupt)
    replacement = make_replacement("resample", other, corrupt.valid, stream == "ablated")
    target = make_target("logit_difference", params, pairs, clean.final)
    return Prepared(config=config, params=params, inputs=inputs, replacement=replacement, target=target,
                    logits=np.asarray(clean.logits(params)))


def measure_stream(
    config: ModelConfig, params: Params, batches: Sequence[PromptPairs], everything: PromptPairs, stream: Stream, *,
    taus: Sequence[float], orders: int, random_models: int, seed: int,
) -> StreamCircuits:
    """Finds the circuits of one stream in all variations and judges them.

    Args:
      config: of the model.
      params: its weights.
      batches: disjoint prompts of the task; the first serves where one batch does, the last is held out from scores.
      everything: all prompts, for competence.
      stream: "clean" or "ablated".
      taus: ACDC's thresholds, nats.
      orders: random edge orders tried.
      random_models: models with weights as they are drawn.
      seed: of orders, weights and bootstrap.
    """
    graph, first = Graph.of(config), batches[0]
    found = [acdc(config, params, pairs, taus=taus, stream=stream) for pairs in batches]
    shuffled = [acdc(config, params, first, taus=taus, stream=stream, order=shuffled_order(graph, seed + i))
                for i in range(orders)]
    drawn = [acdc(config, weights, first, taus=taus, stream=stream)
             for weights in _random_weights(config, seed, random_models)]
    counts = [_counts(varied, tau, runs) for varied, runs in
              (("prompts", found), ("order", shuffled), ("random weights", drawn)) if runs for tau in taus]
    known, held_out = (prepare_pairs(config, params, pairs, stream) for pairs in (first, batches[-1]))
    scores = _scores(known, graph, seed)
    kept = {tau: found[0].runs[tau].kept for tau in taus}
    ends = np.stack([np.ones(graph.n_edges, bool), np.zeros(graph.n_edges, bool)])
    judged = not nothing_to_explain(*metric_values(*held_out.arguments, ends), seed)
    all_runs = prepare_pairs(config, params, everything, stream)
    return StreamCircuits(
        stream=stream, competence=competence(all_runs.logits, everything, seed=seed), edges=graph.n_edges,
        all_patched=_all_patched(known), counts=tuple(counts),
        rankings=tuple(_ranking(name, held_out, values, seed) if judged else Ranking(method=name)
                       for name, values in scores.items()),
        quality=tuple(_quality(tau, kept[tau], held_out, seed) if judged else
                      CircuitQuality(tau=tau, edges=int(kept[tau].sum())) for tau in taus),
        circuits=tuple((tau, _named(graph, kept[tau], importance(known.target, scores["EAP-IG"]))) for tau in taus),
    )


def _random_weights(config: ModelConfig, seed: int, count: int) -> Iterable[Params]:
    draw = jax.jit(SelfAblatingTransformer(config).init)
    return (draw(jax.random.key(seed + i), jnp.zeros((1, 2), jnp.int32))["params"] for i in range(count))


def _counts(varied: str, tau: float, runs: Sequence[Any]) -> EdgeCounts:
    chosen = [found.runs[tau] for found in runs]
    return EdgeCounts(varied=varied, tau=tau, counts=tuple(r.n_kept for r in chosen),
                      divergences=tuple(r.final_kl for r in chosen))


def _all_patched(known: Prepared) -> float:
    nothing = np.zeros((1, Graph.of(known.config).n_edges), bool)
    final = run(known.config, known.params, known.inputs).final
    kl = make_target("kl", known.params, None, final)
    return float(metric_values(*known.arguments[:4], kl, nothing).mean())


def _scores(known: Prepared, graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Scores of all edges by method."""
    halves = tuple((i + 0.5) / 5 for i in range(5))
    scores = {"EAP": eap(*known.arguments), "EAP-IG": eap_ig(*known.arguments),
              "mask gradient": mask_gradient(*known.arguments, masks=halves)}
    if graph.n_edges <= ORACLE_EDGES:
        scores["single edges"] = single_edge_effects(*known.arguments)
    return {**scores, "random": random_scores(graph, seed)}


def _ranking(method: str, known: Prepared, scores: np.ndarray, seed: int) -> Ranking:
    found = faithfulness(*known.arguments, scores, search="greedy")
    n, curve = len(known.logits), found.absolute
    return Ranking(
        method=method, cpr=found.cpr(), cpr_interval=_drawn(found.cpr, n, seed), cmd=found.cmd(),
        cmd_interval=_drawn(found.cmd, n, seed), percents=curve.percents,
        faithfulness=tuple(curve.faithfulness().tolist()),
    )


def nothing_to_explain(model: np.ndarray, empty: np.ndarray, seed: int) -> bool:
    """Whether the logit difference of a model is not surely another than with everything patched.

    Shares of the difference between the two then divide by what may be zero, and say nothing.

    Args:
      model, empty: [n] logit difference of each prompt.
      seed: of the bootstrap.

    Returns:
      Whether the 95 % bootstrap interval of the mean difference has 0 in it.
    """
    low, high = mean_interval(model - empty, seed=seed) or (0.0, 0.0)
    return low <= 0 <= high


def _drawn(measure: Callable[[np.ndarray], float], n: int, seed: int) -> tuple[float, float] | None:
    return percentile_interval(np.array([measure(rows) for rows in prompt_draws(n, draws=DRAWS, seed=seed)]))


def _quality(tau: float, kept: np.ndarray, known: Prepared, seed: int) -> CircuitQuality:
    whole = completeness(*known.arguments, kept)
    circuit = metric_values(*known.arguments, kept[None])[0]

    def share(rows: Any = slice(None)) -> float:
        empty = whole.empty[rows].mean()
        return float((circuit[rows].mean() - empty) / (whole.model[rows].mean() - empty))

    idle = None
    if kept.any():
        changes = minimality(*known.arguments, kept, count=MINIMALITY_EDGES, seed=seed).changes()
        idle = float(np.mean(np.abs(changes) < 0.01 * abs(whole.model.mean() - whole.empty.mean())))
    return CircuitQuality(tau=tau, edges=int(kept.sum()), faithfulness=share(),
                          faithfulness_interval=_drawn(share, len(circuit), seed),
                          complement=whole.complement(), idle=idle)


def _named(graph: Graph, kept: np.ndarray, scores: np.ndarray) -> tuple[tuple[str, float], ...]:
    return tuple((graph.edge_names[i], float(scores[i])) for i in np.flatnonzero(kept))
