"""Circuits from scores: the edges of greatest importance, or those that a greedy walk from the end meets first.

Both are orders of all edges, and a circuit of n edges is the first n of them, so circuits of one order are nested.
"""

import heapq
from typing import Literal

import numpy as np

from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.graph import Graph
from jaxablate.errors import ConfigError, DataError

Search = Literal["top", "greedy"]
SEARCHES: tuple[Search, ...] = ("top", "greedy")


def edge_order(graph: Graph, importance: np.ndarray, *, search: Search = "top", absolute: bool = False) -> np.ndarray:
    """In which order edges enter a circuit.

    "top": by importance, the greatest first. "greedy" (Hanna et al. 2024; the search of MIB): begins with the edges
    into the end, takes the most important of those at hand, and then has the edges into its source at hand too. So a
    circuit of any size hangs together up to the end.

    Args:
      graph: that the edges belong to.
      importance: [E], greater for edges that matter more (`metrics.importance`; ACDC's scores as they are).
      search: which.
      absolute: rank by |importance|, so that edges which work against the answer count too.

    Returns:
      [E] indices of edges. Of equal ones the first in the graph's order comes first.

    Raises:
      ConfigError: there is no such search.
      DataError: not one number for each edge.
    """
    values = _checked(graph, importance)
    values = np.abs(values) if absolute else values
    if search == "top":
        return np.argsort(-values, kind="stable")
    if search != "greedy":
        raise ConfigError(f"search={search!r} is unknown; choose among {', '.join(SEARCHES)}")
    return _greedy(graph, values)


def first_edges(graph: Graph, order: np.ndarray, count: int, *, prune: bool = True) -> np.ndarray:
    """The circuit of the first edges of an order.

    Args:
      graph: that the edges belong to.
      order: [E] of `edge_order`.
      count: edges taken, 0 .. E.
      prune: leave out those of them that dangle (`without_dangling`).

    Returns:
      [E] bool, kept edges.

    Raises:
      ConfigError: the count is not in 0 .. E.
    """
    if not 0 <= count <= graph.n_edges:
        raise ConfigError(f"a circuit of {count} edges cannot be made; the graph has {graph.n_edges}, choose 0 .. "
                          f"{graph.n_edges}")
    kept = np.zeros(graph.n_edges, bool)
    kept[order[:count]] = True
    return without_dangling(graph, kept) if prune else kept


def without_dangling(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """Those kept edges that lie on a path of kept edges from the start to the end.

    An edge whose destination leads nowhere changes nothing, whatever it carries. An edge whose source nothing reaches
    carries what its source computes from replaced inputs alone: under resample ablation of the clean stream that is the
    replacement itself, so again nothing changes; otherwise leaving it out is a choice, the usual one.

    Args:
      graph: that the edges belong to.
      kept: [E] bool.

    Returns:
      [E] bool.
    """
    circuit = Circuit(graph=graph, kept=kept, scores=np.full(graph.n_edges, np.nan))
    return circuit.connected().kept


def _greedy(graph: Graph, values: np.ndarray) -> np.ndarray:
    into: dict[int | None, list[int]] = {}
    for d in graph.destinations:
        into.setdefault(d.source, []).extend(range(d.offset, d.offset + d.fan_in))
    at_hand = [(-values[e], e) for e in into.pop(None)]
    heapq.heapify(at_hand)
    order = []
    while at_hand:
        _, edge = heapq.heappop(at_hand)
        order.append(edge)
        for e in into.pop(int(graph.edge_source[edge]), ()):
            heapq.heappush(at_hand, (-values[e], e))
    return np.array(order)


def _checked(graph: Graph, importance: np.ndarray) -> np.ndarray:
    values = np.asarray(importance, np.float64)
    if values.shape != (graph.n_edges,) or np.isnan(values).any():
        raise DataError(f"importance has shape {values.shape} and {int(np.isnan(values).sum())} values that are no "
                        f"number; give one number for each of the graph's {graph.n_edges} edges")
    return values
