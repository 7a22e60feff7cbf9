"""The steps of ACDC: test the next edges, decide, follow thresholds where they part."""

from collections.abc import Sequence

import numpy as np

from jaxablate.circuits.acdc_branch import Branch, decide
from jaxablate.circuits.exact_divergence import ExactDivergence
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.live import Follower, LiveGraph

NARROWEST, WIDEST = 4, 32
"""Fewest and most edges tested in one call."""


class Search:
    """What all branches of one search share, and the step that takes a branch further."""

    def __init__(self, graph: Graph, order: np.ndarray, followers: Sequence[Follower], exact: ExactDivergence,
                 prompts: int, widest: int):
        self.graph, self.order, self.followers, self.exact = graph, order, followers, exact
        self.prompts, self.widest = prompts, widest
        self.layers = graph.edge_layer[order]
        self.evaluated = self.decided = self.rechecked = 0

    def begin(self, taus: tuple[float, ...]) -> Branch:
        """Nothing decided yet."""
        return Branch.new(self.graph, taus, len(self.followers))

    def restore(self, branch: Branch) -> None:
        """Computes the values of a branch from its decisions alone."""
        done = np.flatnonzero(branch.removed)
        branch.live = LiveGraph(self.graph, branch.removed)
        last, branch.layer = self.layers[min(branch.position, self.graph.n_edges - 1)], 2 * self.graph.n_layers + 1
        self._enter(branch, int(last))
        alive = np.array([branch.live.reads(d) for d in self.graph.destinations])
        self._patch(branch, done[alive[self.graph.edge_destination[done]]])

    def advance(self, branch: Branch) -> list[Branch]:
        """Decides the next edges; returns the branch that splits off where thresholds disagree, if one does."""
        before, end = branch.position, self._layer_end(branch.position)
        self._enter(branch, int(self.layers[branch.position]))
        ahead = np.arange(branch.position, end)
        alive = np.array([branch.live.reads(d) for d in self.graph.destinations])
        at = ahead[alive[self.graph.edge_destination[self.order[ahead]]]][: min(branch.width, self.widest)]
        fork = []
        if len(at):
            fork = self._test(branch, at)
        else:
            branch.pass_dead(end, self.order)
        self.decided += branch.position - before
        return fork

    def _layer_end(self, position: int) -> int:
        """Position after the last edge into the same layer."""
        return int(np.searchsorted(-self.layers, -self.layers[position], side="right"))

    def _enter(self, branch: Branch, layer: int) -> None:
        while branch.layer > layer:
            branch.layer -= 1
            branch.live.enter(branch.layer)
            branch.values = [f.enter(v, branch.live, branch.layer)
                             for f, v in zip(self.followers, branch.values, strict=True)]

    def _test(self, branch: Branch, at: np.ndarray) -> list[Branch]:
        edges = self.order[at]
        kls = self._divergences(branch, edges)
        accepted, failing = decide(branch, edges, kls, self._again)
        for position, kl in zip(at[:accepted], kls, strict=False):
            branch.remove(int(position), float(kl), self.order)
        self._patch(branch, edges[:accepted])
        if accepted == len(edges):
            branch.width = min(self.widest, 2 * branch.width)
            return []
        branch.width = max(NARROWEST, 1 << accepted.bit_length())
        return self._split(branch, int(at[accepted]), float(kls[accepted]), failing)

    def _split(self, branch: Branch, position: int, kl: float, failing: tuple[float, ...]) -> list[Branch]:
        """The edge at a position is kept at failing thresholds and removed at the others."""
        others = tuple(tau for tau in branch.taus if tau not in failing)
        if not others:
            branch.keep(position, kl, self.order)
            return []
        fork = branch.split(others)
        fork.remove(position, kl, self.order)
        self._patch(fork, self.order[position : position + 1])
        branch.taus = failing
        branch.keep(position, kl, self.order)
        return [fork]

    def _divergences(self, branch: Branch, edges: np.ndarray) -> np.ndarray:
        """[m] nats, with the first, the first two, ... of m edges patched."""
        width = 1 << (len(edges) - 1).bit_length()
        pairs = zip(self.followers, branch.values, strict=True)
        sums = [f.divergences(values, branch.live, edges, width) for f, values in pairs]
        self.evaluated += len(edges)
        return np.sum([np.asarray(s, np.float64) for s in sums], axis=0)[: len(edges)] / self.prompts

    def _patch(self, branch: Branch, edges: np.ndarray) -> None:
        if len(edges):
            pairs = zip(self.followers, branch.values, strict=True)
            branch.values = [f.patch(values, branch.live, edges) for f, values in pairs]

    def _again(self, removed: np.ndarray, edge: int) -> float:
        """Rise of KL by one more edge, in float64."""
        self.rechecked += 1
        more = removed.copy()
        more[edge] = True
        return self.exact(more) - self.exact(removed)
