"""How far ACDC has come at thresholds that have agreed so far, and how it decides."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxablate.circuits.graph import Graph
from jaxablate.circuits.live import LiveGraph, Values

NOISE = 5e-6
"""Nats that KL in float32 may be off at KL <= 1, more in proportion above: seen up to 7e-6 at 8 nats."""


@dataclasses.dataclass
class Branch:
    """Decisions of one or more thresholds that agree in all of them."""

    taus: tuple[float, ...]
    removed: np.ndarray
    """[E] bool, in the graph's order."""
    kl: np.ndarray
    """[E] float64, in the order visited."""
    margins: np.ndarray
    """[E] float64, in the order visited: rise of KL."""
    live: LiveGraph
    values: list[Values]
    layer: int
    """Layer whose nodes entered last; that of no layer in the beginning."""
    position: int = 0
    """Edges decided."""
    now: float = 0.0
    """KL with all removed edges patched."""
    width: int = 8
    """Edges to test in the next call."""

    @classmethod
    def new(cls, graph: Graph, taus: tuple[float, ...], batches: int) -> "Branch":
        """Nothing decided."""
        edges = graph.n_edges
        removed = np.zeros(edges, bool)
        return cls(taus, removed, np.zeros(edges), np.zeros(edges), LiveGraph(graph, removed),
                   [Values({}, {}, {})] * batches, 2 * graph.n_layers + 1)

    def split(self, taus: tuple[float, ...]) -> "Branch":
        """A copy for some of the thresholds, which goes its own way."""
        return dataclasses.replace(self, taus=taus, removed=self.removed.copy(), kl=self.kl.copy(),
                                   margins=self.margins.copy(), live=self.live.copy(), values=list(self.values))

    def pass_dead(self, end: int, order: np.ndarray) -> None:
        """Removes all edges before position ``end``: none of them can matter."""
        self.kl[self.position : end] = self.now
        self.margins[self.position : end] = 0
        self.removed[order[self.position : end]] = True
        self.live.remove(order[self.position : end])
        self.position = end

    def remove(self, position: int, kl: float, order: np.ndarray) -> None:
        """Removes the edge at a position, and those that cannot matter before it."""
        self.pass_dead(position, order)
        self._record(position, kl)
        self.removed[order[position]] = True
        self.live.remove(order[position : position + 1])
        self.now = kl

    def keep(self, position: int, kl: float, order: np.ndarray) -> None:
        """Keeps the edge at a position; those before it cannot matter."""
        self.pass_dead(position, order)
        self._record(position, kl)

    def _record(self, position: int, kl: float) -> None:
        self.kl[position], self.margins[position] = kl, kl - self.now
        self.position = position + 1


def decide(
    branch: Branch, edges: np.ndarray, kls: Sequence[float], again: Callable[[np.ndarray, int], float]
) -> tuple[int, tuple[float, ...]]:
    """How many of the next edges all thresholds remove, and which thresholds keep the one after them.

    Args:
      branch: where we are.
      edges: [m] the next edges that can matter.
      kls: [m] nats, with the first, the first two, ... of them patched.
      again: (removed [E] bool, edge) -> rise of KL in float64, for decisions within the noise of float32.

    Returns:
      (accepted, failing): accepted = m and no failing threshold where all are removed by all.
    """
    removed, now = branch.removed.copy(), branch.now
    for i, (edge, kl) in enumerate(zip(edges, kls, strict=True)):
        rise, noise = kl - now, NOISE * max(1.0, abs(kl))
        if any(abs(rise - tau) <= noise for tau in branch.taus):
            rise = again(removed, edge)
        failing = tuple(tau for tau in branch.taus if not rise < tau)
        if failing:
            return i, failing
        removed[edge], now = True, kl
    return len(edges), ()
