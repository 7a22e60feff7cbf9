"""Suite ``circuits``: how many edges a task takes, how sure that number is, and whether they explain the task.

The paper reports one number a model: ACDC at tau = 0.03 on one batch of 64 prompts of the clean stream (docs/papers.md,
ACDC). Here it stands beside its spread over prompts, orders and thresholds, beside models with random weights,
beside whether the model can do the task at all, and for both streams.
"""

import dataclasses
from typing import Any

from jaxablate import stats
from jaxablate.config import Config
from jaxablate.intervals_old import both_ends
from jaxablate.reports.circuit_graph import circuit_panel
from jaxablate.reports.panels import Bar, Bars, Curves, Grid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.circuits_prompts import task_pairs
from jaxablate.suites.circuits_streams import StreamCircuits, measure_stream
from jaxablate.suites.suite import Suite

TAUS = (0.1, 0.03, 0.01)
PAPER_TAU = 0.03
PROMPTS, BATCHES, ORDERS, RANDOM_MODELS = 64, 5, 5, 3
SHORTEST_CONTEXT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitsResult:
    """Both streams."""

    task: str
    prompts: int
    """Of a batch."""
    n_layers: int
    streams: tuple[StreamCircuits, ...]

    def headline(self) -> tuple[Figure, ...]:
        """Competence, edges at the paper's threshold, faithfulness of the scores, for each stream."""
        return tuple(figure for s in self.streams for figure in (*_competence(s), *_edges(s), *_faithful(s)))

    def panels(self) -> tuple[Panel, ...]:
        """The circuits as graphs, their sizes, their faithfulness."""
        graphs = [panel for s in self.streams if (panel := self._graph(s)) is not None]
        return (*graphs, self._competence_table(), self._sizes(), self._size_table(),
                *(_curves(s) for s in self.streams if s.rankings[0].faithfulness is not None),
                self._ranking_table(), self._quality_table())

    def _graph(self, s: StreamCircuits) -> Panel | None:
        """The circuit at the paper's threshold, or at the next lower one that has edges."""
        tau, edges = next(((tau, edges) for tau, edges in s.circuits if tau <= PAPER_TAU and edges), (None, ()))
        if tau is None:
            return None
        caption = (f"ACDC at tau = {tau} on {self.prompts} prompts: {len(edges):,} of {s.edges:,} edges. Width and "
                   "colour: by how much the logit difference drops when the edge alone is patched, as EAP-IG estimates "
                   "it; positive edges help the answer.")
        return circuit_panel(edges, n_layers=self.n_layers, title=f"{self.task} circuit, {s.stream} stream",
                             caption=caption, score_label="drop of logit difference")

    def _competence_table(self) -> Grid:
        rows = tuple((s.stream, c.n, c.accuracy, *both_ends(c.accuracy_interval), c.top1, c.logit_difference,
                      *both_ends(c.logit_difference_interval), s.all_patched)
                     for s in self.streams for c in (s.competence,))
        return Grid(
            title=f"Can the model do it? {self.task}", rows=rows,
            caption="Accuracy: the answer's logit exceeds the wrong answer's, 0.5 by chance. A circuit of a model that "
                    "cannot do the task is a circuit of something else. KL: of the corrupt prompts' predictions.",
            columns=("stream", "prompts", "accuracy", "95 % from", "to", "top-1", "logit difference", "95 % from", "to",
                     "KL, all patched"))

    def _sizes(self) -> Bars:
        bars = [Bar(f"{s.stream}, tau {c.tau}, over {c.varied}", Estimate(c.mean, *both_ends(c.interval)))
                for s in self.streams for c in s.counts]
        return Bars(title="Edges kept by ACDC", bars=tuple(bars),
                    caption="Mean and 95 % Student interval over batches of prompts, over random orders of the edges "
                            "within their layers, and over models with random weights.")

    def _size_table(self) -> Grid:
        rows = tuple((s.stream, c.tau, c.varied, c.mean, *both_ends(c.interval), min(c.counts), max(c.counts),
                      len(c.counts), sum(c.divergences) / len(c.divergences)) for s in self.streams for c in s.counts)
        return Grid(title="Edges kept by ACDC, in numbers", rows=rows,
                    caption="KL: nats from the model to its circuit, mean over the searches.",
                    columns=("stream", "tau", "varied", "edges", "95 % from", "to", "least", "most", "searches", "KL"))

    def _ranking_table(self) -> Grid:
        rows = tuple((s.stream, r.method, r.cpr, *both_ends(r.cpr_interval), r.cmd, *both_ends(r.cmd_interval))
                     for s in self.streams for r in s.rankings)
        caption = ("Circuits by greedy search from the end, judged on prompts the scores have not seen. CPR: area "
                   "under the faithfulness of the logit difference, greater is better. CMD: mean distance from the "
                   "model, 0 at best. 95 % bootstrap intervals over prompts. Empty where the logit difference may be "
                   "that of the corrupt prompts: there is nothing to explain.")
        return Grid(title="Faithfulness of scores", caption=caption, rows=rows,
                    columns=("stream", "method", "CPR", "95 % from", "to", "CMD", "95 % from", "to"))

    def _quality_table(self) -> Grid:
        rows = tuple((s.stream, q.tau, q.edges, q.faithfulness, *both_ends(q.faithfulness_interval), q.complement,
                      q.idle)
                     for s in self.streams for q in s.quality)
        caption = ("Of the circuit found on the first batch, on the last one. Faithfulness: share of the logit "
                   "difference that the circuit alone has. Complement: share left without the circuit. Idle: fraction "
                   "of its edges that change the share by less than 0.01.")
        return Grid(title="ACDC's circuits", caption=caption, rows=rows,
                    columns=("stream", "tau", "edges", "faithfulness", "95 % from", "to", "complement", "idle"))


def _competence(s: StreamCircuits) -> tuple[Figure, ...]:
    c = s.competence
    return (Figure(f"task accuracy {s.stream}", Estimate(c.accuracy, *both_ends(c.accuracy_interval)), "fraction", "up",
                   stats.FRACTION),
            Figure(f"task logit diff {s.stream}",
                   Estimate(c.logit_difference, *both_ends(c.logit_difference_interval)), "logits", "up"))


def _edges(s: StreamCircuits) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"edges tau {c.tau} {s.stream}" + (", random weights" if c.varied == "random weights" else ""),
               Estimate(c.mean, *both_ends(c.interval)), "edges", "down" if c.varied == "prompts" else "none",
               stats.COUNT)
        for c in s.counts if c.varied == "prompts" or (c.varied == "random weights" and c.tau == PAPER_TAU))


def _faithful(s: StreamCircuits) -> tuple[Figure, ...]:
    chosen = next(r for r in s.rankings if r.method == "EAP-IG")
    return tuple(Figure(f"{name} EAP-IG {s.stream}", Estimate(value, *both_ends(interval)), better=better)
                 for name, value, better, interval in (("CPR", chosen.cpr, "up", chosen.cpr_interval),
                                                       ("CMD", chosen.cmd, "down", chosen.cmd_interval)))


def _curves(s: StreamCircuits) -> Curves:
    series = tuple(Series(label=r.method, x=r.percents, y=r.faithfulness) for r in s.rankings)
    return Curves(title=f"Faithfulness of circuits, {s.stream} stream", x_label="edges, % of all", series=series,
                  y_label="faithfulness", log_x=True,
                  caption="Share of the logit difference that circuits have; edges by abs(score), greedy search.")


def _unfit(config: Config) -> str | None:
    if config.model.context_length < SHORTEST_CONTEXT:
        return f"its prompts have up to {SHORTEST_CONTEXT} tokens, the model takes {config.model.context_length}"
    return None


def _run(run: Run) -> tuple[CircuitsResult, dict[str, Any]]:
    config = run.config.model
    everything = task_pairs(config, run.tokenizer, count=PROMPTS * BATCHES, seed=run.seed,
                            corpus_prompts=None)
    batches = [everything.take(range(i * PROMPTS, (i + 1) * PROMPTS)) for i in range(BATCHES)]
    options = {"taus": TAUS, "orders": ORDERS, "random_models": RANDOM_MODELS, "seed": run.seed}
    streams = tuple(measure_stream(config, run.params, batches, everything, stream, **options)
                    for stream in run.streams)
    result = CircuitsResult(task=everything.name, prompts=PROMPTS, n_layers=config.n_layers, streams=streams)
    return result, {**options, "prompts": PROMPTS, "batches": BATCHES, "ablation": "resample",
                    "prompts_digest": everything.digest()}


SUITE = Suite(name="circuits", run=_run, unfit=_unfit,
              about="ACDC and attribution on indirect objects: edges with intervals and controls, faithfulness.")
