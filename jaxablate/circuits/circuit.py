"""A circuit: which edges of a graph are kept, with a score for every edge; and how scores become circuits.

A circuit from scores has the edges of greatest importance, or those that a greedy walk from the end meets first. Both
are orders of all edges, and a circuit of n edges is the first n of them, so circuits of one order are nested.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from jaxablate.circuits.graph import Destination, Graph
from jaxablate.errors import ConfigError, DataError

Search = Literal["top", "greedy"]
SEARCHES: tuple[Search, ...] = ("top", "greedy")
Side = Literal["both", "end", "start"]
Ranking = Literal["magnitude", "signed"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Circuit:
    """Edges of a graph that are kept; the others carry an ablated value.

    The arrays are copied and cannot be written to.

    Example:
      >>> circuit = Circuit.of_edges(Graph(1, 2), {"Resid Start->A0.1.V": 0.5, "A0.1->Resid End": -2.0})
      >>> circuit.n_kept, circuit.strongest(1).edge_names()
      (2, ('A0.1->Resid End',))

    Raises:
      DataError: an array does not have one entry for each edge, or `kept` is not of bool.
    """

    graph: Graph
    kept: np.ndarray
    """[E] bool."""
    scores: np.ndarray
    """[E] float64, signed. In ACDC the smallest tau that removes the edge, inf for never; NaN where there is none."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How it was made: method, tau, stream, ablation, task, digest of prompts, ``params_digest`` of the model, ..."""

    def __post_init__(self):
        n = self.graph.n_edges
        kept, scores = np.array(self.kept), np.array(self.scores)
        for name, array in (("kept", kept), ("scores", scores)):
            if array.shape != (n,):
                raise DataError(f"{name} of a circuit has shape {array.shape}, but the graph has {n} edges; "
                                f"give one value for each edge, in the graph's order")
        if kept.dtype != bool or scores.dtype.kind not in "fiu":
            raise DataError(f"a circuit has kept of {kept.dtype} and scores of {scores.dtype}; give bool and numbers")
        for name, array in (("kept", kept), ("scores", scores.astype(np.float64))):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        how = f", {self.about['method']}" if "method" in self.about else ""
        return f"Circuit({self.n_kept:,} of {self.graph.n_edges:,} edges{how})"

    @classmethod
    def of_edges(cls, graph: Graph, edges: Mapping[str, float] | Iterable[str],
                 about: Mapping[str, Any] | None = None) -> "Circuit":
        """A circuit of edges by name.

        Args:
          graph: that they belong to.
          edges: names ``source->destination``, or a mapping from them to scores. Without scores they get 1. All other
            edges get 0.
          about: how it was made.

        Raises:
          DataError: the graph has no such edge (the nearest node is named).
        """
        given = edges if isinstance(edges, Mapping) else dict.fromkeys(edges, 1.0)
        places = np.array([graph.edge(name) for name in given], int)
        kept, scores = np.zeros(graph.n_edges, bool), np.zeros(graph.n_edges)
        kept[places], scores[places] = True, list(given.values())
        return cls(graph=graph, kept=kept, scores=scores, about=about or {})

    @property
    def n_kept(self) -> int:
        """Number of kept edges."""
        return int(self.kept.sum())

    def edge_names(self) -> tuple[str, ...]:
        """Names of the kept edges, in the graph's order."""
        return tuple(self.graph.edge_names[i] for i in np.flatnonzero(self.kept))

    def scored_edges(self) -> tuple[tuple[str, float], ...]:
        """Pairs (name, score) of the kept edges, in the graph's order: what pictures are drawn from."""
        return tuple(zip(self.edge_names(), self.scores[self.kept].tolist(), strict=True))

    @functools.cached_property
    def reaching_end(self) -> np.ndarray:
        """[E] bool: kept edges from whose destination kept edges lead on to the end of the residual stream.

        All others change nothing, whatever they carry.
        """
        leads_on = np.zeros(self.graph.n_sources, bool)
        out = np.zeros_like(self.kept)
        for d in self.graph.destinations:  # later layers come first: what a node leads to is known when it is asked
            if not d.nodes or leads_on[list(d.nodes)].any():
                out[d.edges] = self.kept[d.edges]
                leads_on[: d.fan_in] |= self.kept[d.edges]
        return out

    @functools.cached_property
    def reached_from_start(self) -> np.ndarray:
        """[E] bool: kept edges to whose source kept edges lead from the embedding.

        Under resample ablation all others carry what the corrupt run carries, so that keeping them or not is the same.
        Under other ablations they may matter: such a source computes from ablated inputs, which is not its own
        ablated value.
        """
        fed = np.zeros(self.graph.n_sources, bool)
        fed[0] = True
        out = np.zeros_like(self.kept)
        for d in reversed(self.graph.destinations):
            out[d.edges] = self.kept[d.edges] & fed[: d.fan_in]
            fed[list(d.nodes)] |= out[d.edges].any()
        return out

    @functools.cached_property
    def nodes(self) -> Bool[np.ndarray, " sources"]:
        """Sources that kept edges lead both into and out of; the embedding where they lead out of it."""
        graph, into, out_of = self.graph, np.zeros(self.graph.n_sources, bool), np.zeros(self.graph.n_sources, bool)
        into[0] = True
        out_of[graph.edge_source[self.kept]] = True
        for d in graph.destinations:
            into[list(d.nodes)] |= self.kept[d.edges].any()
        return into & out_of

    def connected(self, side: Side = "both") -> "Circuit":
        """The circuit without its dangling edges.

        Args:
          side: ``end`` keeps `reaching_end`, which changes no output under any ablation; ``start`` keeps
            `reached_from_start`; ``both`` the edges on a path from start to end, which changes no output under resample
            ablation.
        """
        masks = {"end": self.reaching_end, "start": self.reached_from_start,
                 "both": self.reaching_end & self.reached_from_start}
        return self.restrict(masks[side])

    def restrict(self, mask: np.ndarray) -> "Circuit":
        """The circuit of those kept edges that are also in a mask [E] of bool; scores stay."""
        return dataclasses.replace(self, kept=self.kept & np.asarray(mask, bool))

    @property
    def importance(self) -> np.ndarray:
        """[E] greater where an edge matters more: the scores, with their sign turned where `about` says that they are
        changes of a logit difference, which falls when an edge that matters is patched."""
        return 0.0 - self.scores if self.about.get("metric") == "logit_difference" else self.scores

    def above(self, threshold: float, ranking: Ranking = "magnitude") -> "Circuit":
        """The circuit of the kept edges whose size of score, or `importance` if signed, is at least a threshold.

        Edges without score are left out.

        Raises:
          DataError: the threshold is not a number.
        """
        if math.isnan(threshold):
            raise DataError("the threshold of a circuit's scores is nan; give a number")
        return self.restrict(self._ranked(ranking) >= threshold)

    def strongest(self, n: int, ranking: Ranking = "magnitude") -> "Circuit":
        """The circuit of at most ``n`` kept edges, those of greatest size of score, or `importance` if signed.

        Of equal ones the first ones; edges without score (NaN) come last.

        Raises:
          DataError: ``n`` is negative.
        """
        if n < 0:
            raise DataError(f"a circuit cannot keep n={n} edges; give 0 or more")
        values = np.where(np.isnan(self.scores), -np.inf, self._ranked(ranking))
        places = np.flatnonzero(self.kept)
        chosen = np.zeros_like(self.kept)
        chosen[places[np.lexsort((np.isnan(self.scores[places]), -values[places]))[:n]]] = True
        return self.restrict(chosen)

    def _ranked(self, ranking: Ranking) -> np.ndarray:
        return np.abs(self.scores) if ranking == "magnitude" else self.importance


def edge_order(graph: Graph, importance: np.ndarray, *, search: Search = "top",
               absolute: bool = False) -> Int[np.ndarray, " edges"]:
    """In which order edges enter a circuit.

    "top": by importance, the greatest first. "greedy" (Hanna et al. 2024; the search of MIB): begins with the edges
    into the end, takes the most important of those at hand, and then has the edges into its source at hand too. So a
    circuit of any size hangs together up to the end.

    Args:
      graph: the graph of the edges.
      importance: [E], greater for edges that matter more (`metrics.importance`; ACDC's scores as they are).
      search: the kind of order.
      absolute: rank by |importance|, so that edges which work against the answer count too.

    Returns:
      Indices of edges. Of equal ones the first in the graph's order comes first.

    Raises:
      ConfigError: there is no such search.
      DataError: not one number for each edge.
    """
    values = np.asarray(importance, np.float64)
    if values.shape != (graph.n_edges,) or np.isnan(values).any():
        raise DataError(f"importance has shape {values.shape} and {int(np.isnan(values).sum())} values that are no "
                        f"number; give one number for each of the graph's {graph.n_edges} edges")
    values = np.abs(values) if absolute else values
    if search == "top":
        return np.argsort(-values, kind="stable")
    if search != "greedy":
        raise ConfigError(f"search={search!r} is unknown; choose among {', '.join(SEARCHES)}")
    into: dict[int, list[Destination]] = {}
    for d in graph.destinations:
        for node in d.nodes:
            into.setdefault(node, []).append(d)
    end = graph.destinations[0]
    met, at_hand = {end.name}, [(-values[e], e) for e in range(end.fan_in)]
    heapq.heapify(at_hand)
    order = []
    while at_hand:
        _, edge = heapq.heappop(at_hand)
        order.append(edge)
        for d in into.pop(int(graph.edge_source[edge]), ()):
            if d.name not in met:  # shared keys and values are at hand with the first of their heads
                met.add(d.name)
                for e in range(d.offset, d.offset + d.fan_in):
                    heapq.heappush(at_hand, (-values[e], e))
    return np.array(order)


def first_edges(graph: Graph, order: np.ndarray, count: int, *, prune: bool = True) -> Bool[np.ndarray, " edges"]:
    """The circuit of the first edges of an order.

    Args:
      graph: the graph of the edges.
      order: [E] of `edge_order`.
      count: edges taken, 0 .. E.
      prune: leave out those of them that dangle (`without_dangling`).

    Raises:
      ConfigError: the count is not in 0 .. E.
    """
    if not 0 <= count <= graph.n_edges:
        raise ConfigError(f"a circuit of {count} edges cannot be made; the graph has {graph.n_edges}, choose 0 .. "
                          f"{graph.n_edges}")
    kept = np.zeros(graph.n_edges, bool)
    kept[order[:count]] = True
    return without_dangling(graph, kept) if prune else kept


def without_dangling(graph: Graph, kept: Bool[np.ndarray, " edges"]) -> Bool[np.ndarray, " edges"]:
    """Those kept edges that lie on a path of kept edges from the start to the end.

    An edge whose destination leads nowhere changes nothing, whatever it carries. An edge whose source nothing reaches
    carries what its source computes from replaced inputs alone: under resample ablation of the clean stream that is the
    replacement itself, so again nothing changes; otherwise leaving it out is a choice, the usual one.
    """
    return Circuit(graph=graph, kept=kept, scores=np.full(graph.n_edges, np.nan)).connected().kept
