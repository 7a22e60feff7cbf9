"""ACDC (Conmy et al. 2023), with the decisions of the sequential algorithm at a small part of its cost.

The algorithm: visit the edges from the last layer to the first; patch one more edge; if KL(clean || patched) rises by
less than tau over what it was, the edge stays patched (removed from the circuit), otherwise it is kept (docs/papers.md,
ACDC). What makes it fast changes no decision:

* an edge into a destination whose node has no surviving outgoing edge cannot matter and is removed unevaluated;
* only what the edge can still reach is computed (`jaxablate.circuits.live`);
* the next edges are tested speculatively: patched one after another, all in one call. Up to the first edge that has to
  be kept these are the very runs that the sequential algorithm makes; those after it are thrown away;
* several thresholds share all runs up to the edge where they first disagree.

A decision closer to tau than the noise of float32 is made again, alone, in float64 by `patching.patched_final`.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.acdc_branch import Branch
from jaxablate.circuits.acdc_progress import load_progress, save_progress, search_digest
from jaxablate.circuits.acdc_search import WIDEST, Search
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.exact_divergence import ExactDivergence
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.live import Follower, prepare
from jaxablate.circuits.nodes import Params
from jaxablate.circuits.patching import Ablation, Stream, circuit_config, make_replacements, pair_inputs, run
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError

Progress = Callable[[int, int, int], None]
"""(edges decided, edges to decide, edges evaluated so far), over all thresholds."""

SAVE_SECONDS = 10
"""Time between two savings of a search that can be resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcdcRun:
    """What ACDC decided at one threshold."""

    tau: float
    order: np.ndarray
    """[E] int, edges as they were visited."""
    kl: np.ndarray
    """[E] float64 nats, in the order visited: KL(clean || patched) with that edge patched besides the removed ones."""
    removed: np.ndarray
    """[E] bool, in the order visited: the edge stayed patched."""
    kept: np.ndarray
    """[E] bool, in the graph's order: the circuit."""
    min_margin: float
    """Smallest |rise of KL - tau|: how fragile the run is."""
    final_kl: float
    """KL(clean || circuit) as the search followed it, nats."""
    checked_kl: float
    """The same by one run of the patched model in float64."""

    @property
    def n_kept(self) -> int:
        """Edges of the circuit."""
        return int(self.kept.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcdcResult:
    """All thresholds of one search."""

    graph: Graph
    runs: Mapping[float, AcdcRun]
    evaluated: int
    """Edges evaluated, those included whose result was thrown away."""
    decided: int
    """Edges decided, over all thresholds that share a decision once."""
    rechecked: int
    """Decisions made again in float64."""
    seconds: float

    def circuit(self, tau: float, **about: Any) -> Circuit:
        """The circuit of one of the thresholds, scored by `scores`; ``about`` goes with it."""
        return Circuit(graph=self.graph, kept=self.runs[tau].kept, scores=self.scores,
                       about={"method": "acdc", "tau": tau, **about})

    @property
    def scores(self) -> np.ndarray:
        """[E] smallest tau at which an edge is removed, inf if at none."""
        scores = np.full(self.graph.n_edges, np.inf)
        for tau in sorted(self.runs, reverse=True):
            scores[~self.runs[tau].kept] = tau
        return scores


def acdc(
    config: ModelConfig,
    params: Params,
    pairs: PromptPairs,
    *,
    taus: Sequence[float],
    stream: Stream = "clean",
    ablation: Ablation = "resample",
    order: np.ndarray | None = None,
    batch_size: int = 64,
    memory_limit: float = 2e9,
    progress: Progress = lambda decided, total, evaluated: None,
    resume: Path | None = None,
) -> AcdcResult:
    """Finds the circuits of a task.

    Args:
      config: of the model.
      params: its weights.
      pairs: prompts. KL is the mean over them at their last position.
      taus: thresholds in nats, each above 0.
      stream: the stream whose output counts; "ablated" takes the gates of the clean prompt as part of the nodes.
      ablation: what patched edges carry (`patching.make_replacement`).
      order: [E] edges in the order to visit them, layers of destinations descending; the graph's own otherwise.
      batch_size: prompts at once.
      memory_limit: bytes that one call may take for runs in progress; what is known of each prompt comes on top:
        2 S T D float32 (S sources) and V.
      progress: called after each group of decisions.
      resume: file that keeps the decisions made so far; a search that was interrupted goes on from it, and the file is
        removed at the end. A file of another search is refused.

    Returns:
      `AcdcResult`.

    Raises:
      ConfigError: a threshold is not above 0, the order is none, batch_size is below 1, or the stream does not exist.
      DataError: the model cannot take the prompts.
      CheckpointError: the file to resume from is of another search, or damaged.
    """
    graph, start = Graph.of(config), time.perf_counter()
    order = _checked_order(graph, order)
    taus = _checked_taus(taus)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")
    followers, exact = _open(config, params, pairs, stream, ablation, batch_size)
    widest = _widest(config, min(batch_size, len(pairs)), pairs.clean.shape[1], memory_limit)
    search = Search(graph, order, followers, exact, len(pairs), widest)
    digest = search_digest(config, params, pairs, taus, (stream, ablation), order) if resume else ""
    branches = load_progress(resume, digest, search) if resume else []
    branches = branches or [search.begin(taus)]
    saved = time.perf_counter()
    while any(b.position < graph.n_edges for b in branches):
        branch = next(b for b in branches if b.position < graph.n_edges)
        branches += search.advance(branch)
        progress(sum(len(b.taus) * b.position for b in branches), len(taus) * graph.n_edges, search.evaluated)
        if resume and time.perf_counter() - saved > SAVE_SECONDS:
            save_progress(resume, digest, search, branches)
            saved = time.perf_counter()
    runs = {tau: _run(search, branch, tau) for branch in branches for tau in branch.taus}
    if resume:
        resume.unlink(missing_ok=True)
    return AcdcResult(
        graph=graph, runs={tau: runs[tau] for tau in taus}, evaluated=search.evaluated, decided=search.decided,
        rechecked=search.rechecked, seconds=time.perf_counter() - start,
    )


def _run(search: Search, branch: Branch, tau: float) -> AcdcRun:
    return AcdcRun(
        tau=tau, order=search.order, kl=branch.kl, removed=branch.removed[search.order], kept=~branch.removed,
        min_margin=float(np.abs(branch.margins - tau).min()), final_kl=branch.now,
        checked_kl=search.exact(branch.removed),
    )


def _open(config: ModelConfig, params: Params, pairs: PromptPairs, stream: Stream, ablation: Ablation, batch_size: int
          ) -> tuple[list[Follower], ExactDivergence]:
    """Batches of prompts made ready for the search."""
    same = circuit_config(config)
    params = nodes.in_type(params, np.float32)
    blocks = nodes.stack_blocks(same, params)
    starts = range(0, len(pairs), batch_size)
    parts = [pairs.take(np.arange(first, min(first + batch_size, len(pairs)))) for first in starts]
    batches = [pair_inputs(same, params, part, stream) for part in parts]
    runs = [run(same, params, corrupt) for _, corrupt in batches]
    others = make_replacements(ablation, runs, [corrupt.valid for _, corrupt in batches], stream == "ablated")
    followers = []
    for (clean, _), other in zip(batches, others, strict=True):
        prepared = prepare(same, params, clean, run(same, params, clean), other)
        followers.append(Follower(same, params, blocks, prepared))
    return followers, ExactDivergence(config, params, batches, ablation)


def _checked_taus(taus: Sequence[float]) -> tuple[float, ...]:
    for tau in taus:
        if not 0 < tau < np.inf:
            raise ConfigError(f"tau={tau} must be a number above 0 (nats of KL that removing an edge may cost); "
                              "the papers take 0.03")
    if not taus:
        raise ConfigError("no tau is given; the papers take 0.03")
    return tuple(dict.fromkeys(float(tau) for tau in taus))


def _checked_order(graph: Graph, order: np.ndarray | None) -> np.ndarray:
    if order is None:
        return np.arange(graph.n_edges)
    order = np.asarray(order)
    if order.shape != (graph.n_edges,) or not np.array_equal(np.sort(order), np.arange(graph.n_edges)):
        raise ConfigError(f"the order must hold each of the {graph.n_edges} edges once")
    if np.any(np.diff(graph.edge_layer[order]) > 0):
        raise ConfigError("the order must visit edges from the last layer of destinations to the first")
    return order


def shuffled_order(graph: Graph, seed: int) -> np.ndarray:
    """[E] edges in random order within each layer of destinations, layers descending."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(graph.n_edges)
    return shuffled[np.argsort(-graph.edge_layer[shuffled], kind="stable")]


def _widest(config: ModelConfig, prompts: int, length: int, memory_limit: float) -> int:
    """Most edges in one call: a power of two whose runs fit into the memory."""
    run_bytes = 4 * prompts * length * (6 * config.d_model + 2 * config.mlp_width)
    fits = max(1, int(memory_limit / run_bytes))
    return min(WIDEST, 1 << (fits.bit_length() - 1))
