"""How well circuits explain a model: faithfulness over sizes, CPR and CMD, completeness, minimality, ROC.

A circuit is evaluated by patching all other edges. All metrics are kept prompt by prompt, so that whoever wants an
interval draws prompts (`rows`) and asks again; nothing is computed twice.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxablate import stats
from jaxablate.circuits.circuit import Search, edge_order, first_edges
from jaxablate.circuits.metrics import importance
from jaxablate.circuits.patching import patched_final
from jaxablate.circuits.problem import Batch, Problem, takes_problem
from jaxablate.errors import ConfigError, DataError
from jaxablate.stats import Estimate

PERCENTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Sizes of circuits, in percent of all edges, as MIB takes them."""
Rows = np.ndarray | None
"""[m] int: prompts, repeated as drawn; None means each once."""


class _Brief:
    """A dataclass printed without its arrays' values: ``Curve(percents=(1.0, 5.0), values=float64[2, 64])``."""

    def __repr__(self) -> str:
        def brief(x: Any) -> str:
            return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x)

        fields = (f"{f.name}={brief(getattr(self, f.name))}" for f in dataclasses.fields(self))  # pyright: ignore
        return f"{type(self).__name__}({', '.join(fields)})"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Curve(_Brief):
    """Circuits of growing size along one order of edges."""

    percents: tuple[float, ...]
    """Most edges of each circuit, in percent of all."""
    edges: tuple[int, ...]
    """Edges of each circuit after pruning what dangles."""
    values: np.ndarray
    """[Q, n] float64: metric of each circuit on each prompt."""
    model: np.ndarray
    """[n]: metric with nothing patched."""
    empty: np.ndarray
    """[n]: metric with everything patched."""

    def faithfulness(self, rows: Rows = None) -> np.ndarray:
        """[Q] f = (m(circuit) - m(empty)) / (m(model) - m(empty)), means over prompts before the ratio.

        NaN where the drawn prompts leave nothing to explain: m(model) = m(empty).
        """
        return _share(self.values, self.model, self.empty, rows)

    def area(self, rows: Rows = None) -> float:
        """Area under f over the share of edges, by trapezoids between the sizes there are (MIB: CPR)."""
        return _area(self.percents, self.faithfulness(rows))

    def distance(self, rows: Rows = None) -> float:
        """Area of abs(1 - f) over the share of edges, by trapezoids (MIB: CMD)."""
        return _area(self.percents, np.abs(1 - self.faithfulness(rows)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Faithfulness(_Brief):
    """Curves of the two rankings that MIB looks at (Mueller et al. 2025)."""

    signed: Curve
    """Edges by importance: those that help the answer first."""
    absolute: Curve
    """Edges by abs(importance)."""

    def cpr(self, rows: Rows = None) -> float:
        """Area under the signed curve: how much of the answer few edges bring about. Greater is better; above 1 where
        leaving out what works against the answer makes circuits better than the model."""
        return self.signed.area(rows)

    def cmd(self, rows: Rows = None) -> float:
        """Mean distance of the absolute curve from the model, 0 at best."""
        return self.absolute.distance(rows)

    def estimates(self, *, draws: int = 1000, seed: int = 0) -> tuple[Estimate, Estimate]:
        """CPR and CMD with bootstrap intervals over prompts, both on the same draws."""
        n = len(self.signed.model)
        drawn = np.array([(self.cpr(rows), self.cmd(rows)) for rows in prompt_draws(n, draws=draws, seed=seed)])
        cpr, cmd = (stats.from_draws(value, part, n=n)
                    for value, part in zip((self.cpr(), self.cmd()), drawn.T, strict=True))
        return cpr, cmd


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Completeness(_Brief):
    """What is left without the circuit, or without parts of it (Wang et al. 2022, section 4).

    A complete circuit C behaves like the model M under every removal of edges K from C: m(C \\ K) = m(M \\ K). The
    first K is all of C: then C \\ K patches everything, M \\ K patches just the circuit. The others are drawn.
    """

    circuit: np.ndarray
    """[k, n] metric of C \\ K."""
    without: np.ndarray
    """[k, n] metric of M \\ K."""
    model: np.ndarray
    """[n]."""
    empty: np.ndarray
    """[n]."""

    def complement(self, rows: Rows = None) -> float:
        """f of the model with the circuit's edges patched: 0 for a complete circuit, 1 for one that does not matter."""
        return float(_share(self.without[:1], self.model, self.empty, rows)[0])

    def incompleteness(self, rows: Rows = None) -> np.ndarray:
        """[k] abs(f(C \\ K) - f(M \\ K)) for each K, 0 for a complete circuit."""
        both = (_share(x, self.model, self.empty, rows) for x in (self.circuit, self.without))
        return np.abs(np.subtract(*both))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Minimality(_Brief):
    """What each edge of a circuit does there (Wang et al. 2022, section 4, with K empty)."""

    edges: np.ndarray
    """[k] indices of the edges looked at."""
    values: np.ndarray
    """[k, n] metric of the circuit without each."""
    circuit: np.ndarray
    """[n] metric of the circuit."""

    def changes(self, rows: Rows = None) -> np.ndarray:
        """[k] change of the mean metric when the edge is taken out; near 0 for an edge that the circuit can do without.
        """
        return _mean(self.values, rows) - _mean(self.circuit, rows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Roc(_Brief):
    """How well scores find a known circuit, threshold by threshold."""

    false_positive: np.ndarray
    """[k + 1] share of the other edges at or above the threshold; begins at 0, ends at 1."""
    true_positive: np.ndarray
    """[k + 1] share of the circuit's edges at or above the threshold."""
    auc: float
    """Probability that an edge of the circuit has a greater score than another edge, equal ones counted half."""


@takes_problem
def metric_values(problem: Problem, kept: np.ndarray) -> Float[np.ndarray, "circuits n"]:
    """The metric of circuits ``kept`` [circuits, E] bool, prompt by prompt; edges that are not kept are patched.

    Equal circuits have equal values to the last bit, and are computed once.

    Raises:
      DataError: a circuit does not have one bool for each edge.
    """
    kept, edges = np.asarray(kept), problem.graph.n_edges
    if kept.ndim != 2 or kept.shape[1] != edges or kept.dtype != bool:
        raise DataError(f"kept edges are {kept.dtype}{list(kept.shape)}; give bool [circuits, {edges}]")
    places: dict[bytes, int] = {}
    which = [places.setdefault(row.tobytes(), len(places)) for row in kept]
    distinct = kept[[which.index(i) for i in range(len(places))]]
    parts = []
    for batch, real in problem.batches():
        rows = [np.asarray(_values(batch, np.asarray(~row, batch.weight.dtype)))[:real] for row in distinct]
        parts.append(np.stack(rows).astype(np.float64) if rows else np.zeros((0, real)))
    return np.concatenate(parts, axis=1)[which]


@takes_problem
def faithfulness(problem: Problem, scores: Float[np.ndarray, " edges"], *, search: Search = "top",
                 percents: Sequence[float] = PERCENTS) -> Faithfulness:
    """Curves of circuits made from scores, in both rankings.

    A circuit of q % has floor(q / 100 * E) edges of the order, less those that dangle. f is 1 at 100 % and 0 at 0 %
    exactly, whatever the scores.

    Args:
      problem: the model and its prompts.
      scores: how the metric changes when an edge is patched (`attribution`, `effects`).
      search: how circuits are made from scores (`circuit.edge_order`).
      percents: sizes, ascending, in 0 .. 100.

    Raises:
      ConfigError: percents are not ascending in 0 .. 100, or as `circuit.edge_order`.
      DataError: scores are not one number for each edge, or patching everything changes nothing: f is 0 / 0.
    """
    graph = problem.graph
    check_percents(percents)
    orders = [edge_order(graph, importance(problem.target, scores), search=search, absolute=a) for a in (False, True)]
    counts = [int(q * graph.n_edges / 100 + 1e-6) for q in percents]
    circuits = [first_edges(graph, order, count) for order in orders for count in counts]
    model, empty, values = _with_ends(problem, np.array(circuits))
    sizes, n = [int(kept.sum()) for kept in circuits], len(counts)
    curves = [Curve(percents=tuple(percents), edges=tuple(sizes[i : i + n]), values=values[i : i + n], model=model,
                    empty=empty) for i in (0, n)]
    return Faithfulness(signed=curves[0], absolute=curves[1])


@takes_problem
def completeness(problem: Problem, kept: np.ndarray, *, samples: int = 0, seed: int = 0) -> Completeness:
    """What the model still does without the circuit, and without random parts of it.

    Args:
      problem: the model and its prompts.
      kept: [E] bool, the circuit.
      samples: random subsets K of the circuit looked at besides all of it; each edge is in K with probability 1/2.
      seed: seed of the subsets.

    Raises:
      DataError: the circuit does not have one bool for each edge, or patching everything changes nothing.
    """
    kept = _checked_circuit(problem, kept)
    rng = np.random.default_rng(seed)
    taken = np.concatenate([np.ones((1, kept.size), bool), rng.random((samples, kept.size)) < 0.5]) & kept
    model, empty, values = _with_ends(problem, np.concatenate([kept & ~taken, ~taken]))
    circuit, without = np.split(values, 2)
    return Completeness(circuit=circuit, without=without, model=model, empty=empty)


@takes_problem
def minimality(problem: Problem, kept: np.ndarray, *, count: int | None = None, seed: int = 0) -> Minimality:
    """What each edge of a circuit contributes: the circuit without it, against the circuit.

    Args:
      problem: the model and its prompts.
      kept: [E] bool, the circuit.
      count: how many of its edges are looked at, drawn without replacement; all by default. Each costs one run.
      seed: seed of the draw.

    Raises:
      ConfigError: count is below 1.
      DataError: the circuit does not have one bool for each edge, or keeps none.
    """
    kept = _checked_circuit(problem, kept)
    edges = np.flatnonzero(kept)
    if not edges.size:
        raise DataError("the circuit keeps no edge, so none can be taken out; give one with edges")
    if count is not None and count < 1:
        raise ConfigError(f"count={count} must be at least 1; leave it out to look at every edge")
    if count is not None and count < edges.size:
        edges = np.sort(np.random.default_rng(seed).choice(edges, count, replace=False))
    circuits = np.tile(kept, (len(edges) + 1, 1))
    circuits[np.arange(1, len(edges) + 1), edges] = False
    values = metric_values(problem, circuits)
    return Minimality(edges=edges, values=values[1:], circuit=values[0])


def roc(scores: Float[np.ndarray, " edges"], truth: Bool[np.ndarray, " edges"]) -> Roc:
    """Receiver operating characteristic of scores against a known circuit.

    Args:
      scores: greater for edges thought to be in the circuit (`metrics.importance`, or its absolute value; ACDC's
        scores as they are, with inf for edges never removed).
      truth: edges of the circuit.

    Raises:
      DataError: not one number for each edge, or the circuit has all edges or none.

    Example:
      >>> roc(np.array([3., 2., 2., 1.]), np.array([True, True, False, False])).auc
      0.875
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth)
    if scores.ndim != 1 or scores.shape != truth.shape or truth.dtype != bool or np.isnan(scores).any():
        raise DataError(f"scores {list(scores.shape)} and truth {truth.dtype}{list(truth.shape)} must be one number "
                        "and one bool for each edge, none of them NaN")
    if truth.all() or not truth.any():
        raise DataError(f"the known circuit has {int(truth.sum())} of {truth.size} edges; a curve needs some inside "
                        "and some outside")
    order = np.argsort(-scores, kind="stable")
    # A threshold lies below each run of equal scores, so that ties enter together: a slanted line in the curve.
    last = np.append(scores[order][1:] != scores[order][:-1], True)
    inside, outside = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    true_positive, false_positive = (np.append(0.0, x / x[-1]) for x in (inside, outside))
    return Roc(false_positive=false_positive, true_positive=true_positive,
               auc=float(np.trapezoid(true_positive, false_positive)))


def check_percents(percents: Sequence[float]) -> None:
    """Raises ConfigError unless sizes of circuits ascend within 0 .. 100."""
    if not percents or list(percents) != sorted(set(percents)) or percents[0] < 0 or percents[-1] > 100:
        raise ConfigError(f"percents={tuple(percents)} must ascend within 0 .. 100")


def require_difference(model: np.ndarray, empty: np.ndarray) -> None:
    """Raises DataError where the mean metric [n] of the model is that with everything patched: f would be 0 / 0."""
    if model.mean() == empty.mean():
        raise DataError(f"the metric is {model.mean():g} in the model and with everything patched alike, so a circuit "
                        "has nothing to explain; take other corrupt prompts or another ablation")


def prompt_draws(n: int, *, draws: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap draws of n prompts, each [n] int with replacement: ``rows`` for the results of this file."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(0, n, n)


@jax.jit
def _values(batch: Batch, patched: jax.Array) -> jax.Array:
    final = patched_final(batch.decoder, batch.params, batch.inputs, patched, batch.replacement)
    return batch.target.values(final)


def _with_ends(problem: Problem, circuits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metric [n] of the model, [n] with everything patched, and [k, n] of circuits [k, E]."""
    ends = np.stack([np.ones(problem.graph.n_edges, bool), np.zeros(problem.graph.n_edges, bool)])
    model, empty, *values = metric_values(problem, np.concatenate([ends, circuits]))
    require_difference(model, empty)
    return model, empty, np.array(values)


def _mean(values: np.ndarray, rows: Rows) -> np.ndarray:
    return (values if rows is None else values[..., rows]).mean(-1)


def _share(values: np.ndarray, model: np.ndarray, empty: np.ndarray, rows: Rows) -> np.ndarray:
    values, model, empty = (_mean(x, rows) for x in (values, model, empty))
    return (values - empty) / np.where(model == empty, np.nan, model - empty)


def _area(percents: Sequence[float], heights: np.ndarray) -> float:
    return float(np.trapezoid(heights, np.array(percents) / 100))


def _checked_circuit(problem: Problem, kept: np.ndarray) -> np.ndarray:
    kept, edges = np.asarray(kept), problem.graph.n_edges
    if kept.shape != (edges,) or kept.dtype != bool:
        raise DataError(f"a circuit is {kept.dtype}{list(kept.shape)}; give one bool for each of {edges} edges")
    return kept
