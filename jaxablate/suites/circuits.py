"""Suite ``circuits``: how many edges a task takes, how sure that number is, and whether they explain the task.

The paper reports one number a model: ACDC at tau = 0.03 on one batch of 64 prompts of the clean stream (docs/papers.md,
ACDC). Here it stands beside its spread over prompts, orders and thresholds, beside models with random weights,
beside whether the model can do the task at all, and for both streams.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxablate import stats
from jaxablate.circuits.acdc import TAU, AcdcResult, acdc, shuffled_order
from jaxablate.circuits.competence import Competence, competence, share_of_difference
from jaxablate.circuits.faithfulness import completeness, faithfulness, metric_values, minimality
from jaxablate.circuits.formats import load_circuit
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.methods import METHODS
from jaxablate.circuits.metrics import importance
from jaxablate.circuits.problem import Problem, problem
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.pruning import PruneRow
from jaxablate.config import Config, ModelConfig
from jaxablate.errors import DataError
from jaxablate.features.sites import random_params
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.reports import circuits as data
from jaxablate.reports.circuit_graph import circuit_panel
from jaxablate.reports.packed import pack
from jaxablate.reports.panels import Bar, Bars, Curves, Grid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite
from jaxablate.types import STREAMS, Params, Stream

TAUS = (0.1, TAU, 0.01)
PROMPTS, BATCHES, ORDERS, RANDOM_MODELS = 64, 5, 5, 3
SHORTEST_CONTEXT = 32
DRAWS = 200
"""Bootstrap draws of prompts."""
MINIMALITY_EDGES = 100
"""Most edges of a circuit that are taken out one by one."""
PRUNE_STEPS, PRUNE_SEEDS = 300, 3
"""Training of masks, and how many circuits of each kind are trained."""
SHOWN_METHOD = "eap-ig"
"""Method of the scores in headlines and pictures."""
SHOWN_EDGES, SHOWN_OF_OTHERS = 1000, 200
"""Edges of the largest scores by that method, and by each other one, that the explorer has."""
_UNKNOWN = Estimate(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeCounts:
    """Sizes of ACDC's circuits at one threshold while one thing varies."""

    varied: str
    """"prompts": batches of them, canonical order. "order": random orders within the layers, first batch of prompts.
    "random weights": models as they are drawn, first batch."""
    tau: float
    edges: Estimate
    """Mean number of edges kept, Student's t over the searches."""
    counts: tuple[int, ...]
    """Edges kept, one for each search."""
    divergences: tuple[float, ...]
    """KL(clean || circuit) in nats, one for each search."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """How faithful the circuits of one method's scores are, on prompts the scores have not seen.

    Without values, and without faithfulness, where there is nothing to explain (`nothing_to_explain`).
    """

    method: str
    """Label of the method."""
    cpr: Estimate = _UNKNOWN
    cmd: Estimate = _UNKNOWN
    percents: tuple[float, ...] = ()
    faithfulness: tuple[float, ...] | None = None
    """Share of the logit difference that circuits of so many percent of the edges have, edges by abs(score)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitQuality:
    """ACDC's circuit at one threshold, on prompts it was not found on; in shares of the model's logit difference.

    No share has a value where there is nothing to explain (`nothing_to_explain`).
    """

    tau: float
    edges: int
    faithfulness: Estimate = _UNKNOWN
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
    """Edges of the whole graph."""
    counts: tuple[EdgeCounts, ...]
    rankings: tuple[Ranking, ...]
    quality: tuple[CircuitQuality, ...]
    nulls: tuple[tuple[str, PruneRow], ...]
    """(label of the method, circuits of it on held-out prompts), for methods that are trained: in the model, in one
    with random weights and on a nonsense task. First batch of prompts, half of it held out."""
    circuits: tuple[tuple[float, tuple[tuple[str, float], ...]], ...]
    """(tau, kept edges of the first batch, each with the drop of logit difference when it alone is patched, as EAP-IG
    estimates it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitsResult:
    """Both streams."""

    task: str
    prompts: int
    """Prompts of a batch."""
    n_layers: int
    streams: tuple[StreamCircuits, ...]
    attachments: Mapping[str, data.TaskEdges] = dataclasses.field(default_factory=dict)

    def headline(self) -> tuple[Figure, ...]:
        """Competence, edges at the paper's threshold, faithfulness of the scores, for each stream."""
        return tuple(figure for s in self.streams for figure in _figures(s))

    def panels(self) -> tuple[Panel, ...]:
        """The circuits as graphs, their sizes, their faithfulness."""
        graphs = [panel for s in self.streams if (panel := self._graph(s)) is not None]
        curves = [Curves(title=f"Faithfulness of circuits, {s.stream} stream", x_label="edges, % of all",
                         y_label="faithfulness", log_x=True,
                         series=tuple(Series(label=r.method, x=r.percents, y=r.faithfulness)
                                      for r in s.rankings if r.faithfulness is not None),
                         caption="Share of the logit difference that circuits have; edges by abs(score), greedy "
                                 "search.")
                  for s in self.streams if s.rankings[0].faithfulness is not None]
        counts = [(s.stream, c) for s in self.streams for c in s.counts]
        return (
            *graphs,
            Grid(title=f"Can the model do it? {self.task}",
                 columns=("stream", "prompts", "accuracy", "top-1", "logit difference", "KL, all patched"),
                 rows=tuple((s.stream, s.competence.n, s.competence.accuracy, s.competence.top1,
                             s.competence.logit_difference, s.all_patched) for s in self.streams),
                 caption="Accuracy: the answer's logit exceeds the wrong answer's, 0.5 by chance. A circuit of a model "
                         "that cannot do the task is a circuit of something else. KL: of the corrupt prompts' "
                         "predictions."),
            Bars(title="Edges kept by ACDC",
                 bars=tuple(Bar(f"{stream}, tau {c.tau}, over {c.varied}", c.edges) for stream, c in counts),
                 caption="Mean and 95 % Student interval over batches of prompts, over random orders of the edges "
                         "within their layers, and over models with random weights."),
            Grid(title="Edges kept by ACDC, in numbers",
                 columns=("stream", "tau", "varied", "edges", "least", "most", "searches", "KL"),
                 rows=tuple((stream, c.tau, c.varied, c.edges, min(c.counts), max(c.counts), len(c.counts),
                             sum(c.divergences) / len(c.divergences)) for stream, c in counts),
                 caption="KL: nats from the model to its circuit, mean over the searches."),
            *curves,
            Grid(title="Faithfulness of scores", columns=("stream", "method", "CPR", "CMD"),
                 rows=tuple((s.stream, r.method, r.cpr, r.cmd) for s in self.streams for r in s.rankings),
                 caption="Circuits by greedy search from the end, judged on prompts the scores have not seen. CPR: "
                         "area under the faithfulness of the logit difference, greater is better. CMD: mean distance "
                         "from the model, 0 at best. 95 % bootstrap intervals over prompts. Empty where the logit "
                         "difference may be that of the corrupt prompts: there is nothing to explain."),
            *self._nulls(),
            Grid(title="ACDC's circuits", columns=("stream", "tau", "edges", "faithfulness", "complement", "idle"),
                 rows=tuple((s.stream, q.tau, q.edges, q.faithfulness, q.complement, q.idle)
                            for s in self.streams for q in s.quality),
                 caption="Circuits found on the first batch, measured on the last one. Faithfulness: share of the "
                         "logit difference that the circuit alone has. Complement: share left without the circuit. "
                         "Idle: fraction of its edges that change the share by less than 0.01."),
        )

    def _nulls(self) -> tuple[Panel, ...]:
        rows = tuple((s.stream, method, r.group, r.edges, r.all_patched, r.explained, *_ends(r.by_seed),
                      r.on_training_prompts, r.accuracy, r.model_accuracy, r.overlap)
                     for s in self.streams for method, r in s.nulls)
        return () if not rows else (Grid(
            title="Circuits by training, beside nulls",
            columns=("stream", "method", "of", "edges", "KL, all patched", "KL explained", "least", "most",
                     "on training prompts", "accuracy", "accuracy of the model", "overlap"), rows=rows,
            caption="Share of KL(model ‖ everything patched) that circuits explain, on prompts held out; mean, least "
                    "and most over seeds. What the same training reaches in a model with random weights (each array's "
                    "entries in random order), or on a nonsense task (prompts of random words, answers by a coin for "
                    "each word), is no evidence of a mechanism. Overlap: edges that two seeds share, of all that "
                    "either has."),)

    def _graph(self, s: StreamCircuits) -> Panel | None:
        """The circuit at the paper's threshold, or at the next lower one that has edges."""
        tau, edges = next(((tau, edges) for tau, edges in s.circuits if tau <= TAU and edges), (None, ()))
        if tau is None:
            return None
        caption = (f"ACDC at tau = {tau} on {self.prompts} prompts: {len(edges):,} of {s.edges:,} edges. Width and "
                   "colour: by how much the logit difference drops when the edge alone is patched, as EAP-IG estimates "
                   "it; positive edges help the answer.")
        return circuit_panel(edges, n_layers=self.n_layers, title=f"{self.task} circuit, {s.stream} stream",
                             caption=caption, score_label="drop of logit difference")


def _ends(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Least and greatest."""
    known = [x for x in values if x is not None]
    return (min(known), max(known)) if known else (None, None)


def _figures(s: StreamCircuits) -> Iterator[Figure]:
    yield Figure(f"task accuracy {s.stream}", s.competence.accuracy, "fraction", "up", stats.FRACTION)
    yield Figure(f"task logit diff {s.stream}", s.competence.logit_difference, "logits", "up")
    for c in s.counts:
        if c.varied == "prompts":
            yield Figure(f"edges tau {c.tau} {s.stream}", c.edges, "edges", "down", stats.COUNT)
        elif c.varied == "random weights" and c.tau == TAU:
            yield Figure(f"edges tau {c.tau} {s.stream}, random weights", c.edges, "edges", "none", stats.COUNT)
    label = METHODS[SHOWN_METHOD].label
    chosen = next(r for r in s.rankings if r.method == label)
    yield Figure(f"CPR {label} {s.stream}", chosen.cpr, better="up")
    yield Figure(f"CMD {label} {s.stream}", chosen.cmd, better="down", range=stats.COUNT)


def measure_stream(
    config: ModelConfig, params: Params, batches: Sequence[PromptPairs], everything: PromptPairs, stream: Stream, *,
    taus: Sequence[float], orders: int, random_models: int, seed: int, stored: Mapping[str, np.ndarray] | None = None,
) -> tuple[StreamCircuits, data.StreamEdges]:
    """Finds the circuits of one stream in all variations and judges them.

    Args:
      config: config of the model.
      params: its weights.
      batches: disjoint prompts of the task; the first serves where one batch does, the last is held out from scores.
      everything: all prompts, for competence.
      stream: stream whose output counts.
      taus: ACDC's thresholds, nats.
      orders: random edge orders tried.
      random_models: models with weights as they are drawn.
      seed: seed of orders, weights and bootstrap.
      stored: further circuits for the explorer, bool [E] by name.

    Returns:
      What was measured, and the edges for the explorer.
    """
    task = functools.partial(problem, config, stream=stream)
    first, held_out = task(params, batches[0]), task(params, batches[-1])
    graph = first.graph
    searches = {
        "prompts": [acdc(t, taus) for t in (first, *(task(params, b) for b in batches[1:-1]), held_out)],
        "order": [acdc(first, taus, order=shuffled_order(graph, seed + i)) for i in range(orders)],
        "random weights": [acdc(task(weights, batches[0]), taus)
                           for weights in _random_weights(config, seed, random_models)],
    }
    methods = [m for m in METHODS if m.ranked and graph.n_edges <= (m.most_edges or math.inf)]
    scores = {method.name: method.scores(first, seed=seed, steps=PRUNE_STEPS) for method in methods}
    nulls = [(m.label, row) for m in methods if m.nulls is not None
             for row in m.nulls(first, seed=seed, steps=PRUNE_STEPS, seeds=PRUNE_SEEDS, progress=lambda *_: None)]
    kept = {tau: searches["prompts"][0].runs[tau].kept for tau in taus}
    ends = np.stack([np.ones(graph.n_edges, bool), np.zeros(graph.n_edges, bool)])
    model, empty = metric_values(held_out, ends)
    judged = not nothing_to_explain(model, empty, seed)
    drop = importance(first.target, scores[SHOWN_METHOD])
    found = StreamCircuits(
        stream=stream, competence=competence(np.asarray(task(params, everything).logits), everything, seed=seed),
        all_patched=float(metric_values(first.with_metric("kl"), ends[1:]).mean()), edges=graph.n_edges,
        counts=tuple(_counts(varied, tau, results, graph.n_edges)
                     for varied, results in searches.items() if results for tau in taus),
        rankings=tuple(_ranking(METHODS[name].label, held_out, values, seed) if judged
                       else Ranking(method=METHODS[name].label) for name, values in scores.items()),
        quality=tuple(_quality(tau, kept[tau], held_out, seed) if judged else
                      CircuitQuality(tau=tau, edges=int(kept[tau].sum())) for tau in taus),
        nulls=tuple(nulls),
        circuits=tuple((tau, tuple((graph.edge_names[i], float(drop[i])) for i in np.flatnonzero(kept[tau])))
                       for tau in taus),
    )
    helps = {METHODS[name].label: importance(first.target, values) for name, values in scores.items()}
    shares = {q.tau: q.faithfulness for q in found.quality}
    circuits = {f"ACDC, tau {tau}": (mask, shares[tau]) for tau, mask in kept.items()} | {
        name: (mask, _share(mask, held_out, seed) if judged else _UNKNOWN) for name, mask in (stored or {}).items()}
    return found, shown_edges(found, first.graph, helps, circuits)


def shown_edges(found: StreamCircuits, graph: Graph, scores: Mapping[str, np.ndarray],
                circuits: Mapping[str, tuple[np.ndarray, Estimate]]) -> data.StreamEdges:
    """The edges of the largest scores [E], by label of a method, and all of circuits, which are pairs (bool [E],
    faithfulness) by name."""
    chosen = np.any([mask for mask, _ in circuits.values()], axis=0)
    for label, values in scores.items():
        count = SHOWN_EDGES if label == METHODS[SHOWN_METHOD].label else SHOWN_OF_OTHERS
        chosen[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    edges = np.flatnonzero(chosen)
    return data.StreamEdges(
        stream=found.stream, edges=graph.n_edges, accuracy=found.competence.accuracy, sources=graph.source_names,
        destinations=tuple(d.name for d in graph.destinations), source=pack(graph.edge_source[edges], "uint16"),
        destination=pack(graph.edge_destination[edges], "uint16"),
        scores={label: pack(values[edges].astype(np.float32), "float32") for label, values in scores.items()},
        circuits=tuple(data.KeptEdges(name=name, kept=pack(mask[edges], "uint8"), edges=int(mask.sum()),
                                      faithfulness=share) for name, (mask, share) in circuits.items()),
        curves=tuple(data.Curve(method=r.method, percents=r.percents, faithfulness=r.faithfulness)
                     for r in found.rankings if r.faithfulness is not None))


def nothing_to_explain(model: np.ndarray, empty: np.ndarray, seed: int) -> bool:
    """Whether the logit difference of a model is not surely another than with everything patched.

    Shares of the difference between the two then divide by what may be zero, and say nothing.

    Args:
      model: [n] logit difference of each prompt in the model.
      empty: [n] logit difference of each prompt with everything patched.
      seed: seed of the bootstrap.

    Returns:
      Whether the 95 % bootstrap interval of the mean difference has 0 in it.
    """
    low, high = stats.mean(model - empty, seed=seed).interval or (0.0, 0.0)
    return low <= 0 <= high


def _random_weights(config: ModelConfig, seed: int, count: int) -> Iterator[Params]:
    return (random_params(SelfAblatingTransformer(config), seed + i) for i in range(count))


def _counts(varied: str, tau: float, results: Sequence[AcdcResult], n_edges: int) -> EdgeCounts:
    counts = tuple(result.runs[tau].n_kept for result in results)
    return EdgeCounts(varied=varied, tau=tau, counts=counts, edges=stats.student(counts, within=(0, n_edges)),
                      divergences=tuple(result.runs[tau].final_kl for result in results))


def _ranking(method: str, task: Problem, scores: np.ndarray, seed: int) -> Ranking:
    result = faithfulness(task, scores, search="greedy")
    cpr, cmd = result.estimates(draws=DRAWS, seed=seed)
    return Ranking(method=method, cpr=cpr, cmd=cmd, percents=result.absolute.percents,
                   faithfulness=tuple(result.absolute.faithfulness().tolist()))


def _quality(tau: float, kept: np.ndarray, task: Problem, seed: int) -> CircuitQuality:
    without, idle = completeness(task, kept), None
    if kept.any():
        changes = minimality(task, kept, count=MINIMALITY_EDGES, seed=seed).changes()
        idle = float(np.mean(np.abs(changes) < 0.01 * abs(without.model.mean() - without.empty.mean())))
    return CircuitQuality(tau=tau, edges=int(kept.sum()), complement=without.complement(), idle=idle,
                          faithfulness=_share(kept, task, seed))


def _share(kept: np.ndarray, task: Problem, seed: int) -> Estimate:
    """Faithfulness of one circuit."""
    model, circuit, empty = metric_values(task, np.stack([np.ones_like(kept), kept, np.zeros_like(kept)]))
    return share_of_difference(model, circuit, empty, seed=seed, draws=DRAWS)


def stored_circuits(run: Run, graph: Graph) -> dict[Stream, dict[str, np.ndarray]]:
    """Circuits of this checkpoint that ``jaxablate circuit`` keeps in the working directory: bool [E] by stream and
    folder. Those that it found with another graph or that are damaged are left out."""
    found: dict[Stream, dict[str, np.ndarray]] = {stream: {} for stream in STREAMS}
    for path in sorted((run.workdir / "circuits").glob("*/circuit.json")) if run.workdir else ():
        with contextlib.suppress(DataError):
            circuit = load_circuit(path, graph=graph, params_digest=run.digest)
            if (stream := circuit.about.get("stream")) in found:
                found[stream][path.parent.name] = circuit.kept
    return found


def _unfit(config: Config) -> str | None:
    if config.model.context_length < SHORTEST_CONTEXT:
        return f"its prompts have up to {SHORTEST_CONTEXT} tokens, the model takes {config.model.context_length}"
    return None


def _run(run: Run) -> tuple[CircuitsResult, dict[str, Any]]:
    task = problem(run, task="ioi", prompts=PROMPTS * BATCHES, seed=run.seed)
    everything = task.pairs
    batches = [everything.take(range(i * PROMPTS, (i + 1) * PROMPTS)) for i in range(BATCHES)]
    options: dict[str, Any] = {"taus": TAUS, "orders": ORDERS, "random_models": RANDOM_MODELS, "seed": run.seed}
    assert isinstance(task.config, ModelConfig)  # of a run
    stored = stored_circuits(run, task.graph)
    streams, edges = zip(*(measure_stream(task.config, run.params, batches, everything, stream, stored=stored[stream],
                                          **options)
                           for stream in run.streams if stream in run.circuit_streams), strict=True)
    shown = data.TaskEdges(
        params_digest=run.digest, step=run.step, task=everything.name, prompts=PROMPTS, n_layers=task.graph.n_layers,
        n_heads=task.graph.n_heads, shown_method=METHODS[SHOWN_METHOD].label, streams=edges)
    result = CircuitsResult(task=everything.name, prompts=PROMPTS, n_layers=task.graph.n_layers, streams=streams,
                            attachments={"circuits": shown})
    return result, {**options, "prompts": PROMPTS, "batches": BATCHES, "ablation": "resample",
                    "prompts_digest": everything.digest()}


SUITE = Suite(name="circuits", run=_run, unfit=_unfit,
              about="ACDC and attribution on indirect objects: edges with intervals and controls, faithfulness.")
