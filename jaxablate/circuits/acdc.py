"""ACDC (Conmy et al. 2023), with the decisions of the sequential algorithm at a small part of its cost.

The algorithm: visit the edges from the last layer to the first; patch one more edge; if KL(clean || patched) rises by
less than tau over what it was, the edge stays patched (removed from the circuit), otherwise it is kept. What makes it
fast changes no decision:

* an edge into a destination whose node has no surviving outgoing edge cannot matter and is removed unevaluated;
* only what the edge can still reach is computed (`jaxablate.circuits.live`);
* the next edges are tested speculatively: patched one after another, all in one call. Up to the first edge that has to
  be kept these are the very runs that the sequential algorithm makes; those after it are thrown away;
* several thresholds share all runs up to the edge where they first disagree: a `Branch` holds the decisions of
  thresholds that agree so far, and splits where they do not.

A decision closer to tau than the noise of float32 is made again, alone, in float64 by `patching.patched_final`.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxablate.circuits.blocks import Inputs, logits
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.live import Follower, LiveGraph, Values, prepare
from jaxablate.circuits.patching import patched_final, source_run
from jaxablate.circuits.problem import Problem, in_type, take_prompts, takes_problem
from jaxablate.config import ModelConfig
from jaxablate.errors import CheckpointError, ConfigError, FileError
from jaxablate.files import atomic_write, read_npz

Progress = Callable[[int, int, int], None]
"""(edges decided, edges to decide, edges evaluated so far), over all thresholds."""

TAU = 0.03
"""Threshold of the papers, in nats."""
NOISE = 5e-6
"""Nats that KL in float32 may be off at KL <= 1, more in proportion above: seen up to 7e-6 at 8 nats."""
NARROWEST, WIDEST = 4, 32
"""Fewest and most edges tested in one call."""
SAVE_SECONDS = 10
"""Time between two savings of a search that can be resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AcdcRun:
    """What ACDC decided at one threshold."""

    tau: float
    order: Int[np.ndarray, " edges"]
    """Edges as they were visited."""
    kl: Float[np.ndarray, " edges"]
    """Nats, in the order visited: KL(clean || patched) with that edge patched besides the removed ones."""
    removed: Bool[np.ndarray, " edges"]
    """In the order visited: the edge stayed patched."""
    kept: Bool[np.ndarray, " edges"]
    """In the graph's order: the circuit."""
    min_margin: float
    """Smallest |rise of KL - tau|: how fragile the run is."""
    final_kl: float
    """KL(clean || circuit) as the search followed it, nats."""
    checked_kl: float
    """The same by one run of the patched model in float64."""

    def __repr__(self) -> str:
        return f"AcdcRun(tau {self.tau:g}: {self.n_kept:,} of {self.kept.size:,} edges, KL {self.final_kl:.4g} nats)"

    @property
    def n_kept(self) -> int:
        """Edges of the circuit."""
        return int(self.kept.sum())

    @property
    def rises(self) -> Float[np.ndarray, " edges"]:
        """Nats, in the graph's order: by how much cutting each edge raised KL when ACDC came to it.

        0 for edges that were cut unevaluated because nothing of theirs led on. At least tau for the edges kept, less
        for those cut: the threshold at which the decision would have been the other one.
        """
        last = np.maximum.accumulate(np.where(self.removed, np.arange(len(self.kl)), -1))
        before = np.concatenate([[-1], last[:-1]])  # place of the last edge cut before each; -1 where there is none
        now = np.where(before < 0, 0.0, self.kl[before])
        out = np.zeros(len(self.kl))
        out[self.order] = self.kl - now
        return out


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
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

    def __repr__(self) -> str:
        return (f"AcdcResult({', '.join(map(repr, self.runs.values()))}; {self.evaluated:,} edges evaluated in "
                f"{self.seconds:.1f} s)")

    def circuit(self, tau: float, **about: Any) -> Circuit:
        """The circuit of one of the thresholds, scored by `scores`; ``about`` goes with it."""
        return Circuit(graph=self.graph, kept=self.runs[tau].kept, scores=self.scores,
                       about={"method": "acdc", "tau": tau, "metric": "kl", **about})

    @property
    def scores(self) -> Float[np.ndarray, " edges"]:
        """Smallest tau at which an edge is removed, inf if at none."""
        scores = np.full(self.graph.n_edges, np.inf)
        for tau in sorted(self.runs, reverse=True):
            scores[~self.runs[tau].kept] = tau
        return scores


@takes_problem
def acdc(
    problem: Problem, taus: Sequence[float] = (TAU,), *, order: np.ndarray | None = None, memory_limit: float = 2e9,
    progress: Progress = lambda decided, total, evaluated: None, resume: Path | None = None,
) -> AcdcResult:
    """Finds the circuits of a problem. Its metric is not looked at: ACDC goes by KL, the mean over prompts.

    Args:
      problem: the model and its prompts.
      taus: thresholds in nats, each above 0.
      order: [E] edges in the order to visit them, layers of destinations descending; the graph's own otherwise.
      memory_limit: bytes that one call may take for runs in progress; what is known of each prompt comes on top:
        2 S T D float32 (S sources) and V.
      progress: called after each group of decisions.
      resume: file that keeps the decisions made so far; a search that was interrupted goes on from it, and the file is
        removed at the end. A file of another search is refused.

    Raises:
      ConfigError: a threshold is not above 0, or the order is none.
      CheckpointError: the file to resume from is of another search, or damaged.
    """
    graph, start = problem.graph, time.perf_counter()
    order, taus = _checked_order(graph, order), _checked_taus(taus)
    search = Search(problem, order, memory_limit)
    digest = search_digest(problem, taus, order) if resume else ""
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
    runs = {tau: AcdcRun(
        tau=tau, order=search.order, kl=branch.kl, removed=branch.removed[search.order], kept=~branch.removed,
        min_margin=float(np.abs(branch.margins - tau).min()), final_kl=branch.now,
        checked_kl=search.exact(branch.removed),
    ) for branch in branches for tau in branch.taus}
    if resume:
        resume.unlink(missing_ok=True)
    return AcdcResult(
        graph=graph, runs={tau: runs[tau] for tau in taus}, evaluated=search.evaluated, decided=search.decided,
        rechecked=search.rechecked, seconds=time.perf_counter() - start,
    )


def shuffled_order(graph: Graph, seed: int) -> Int[np.ndarray, " edges"]:
    """Edges in random order within each layer of destinations, layers descending."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(graph.n_edges)
    return shuffled[np.argsort(-graph.edge_layer[shuffled], kind="stable")]


def _checked_taus(taus: Sequence[float]) -> tuple[float, ...]:
    for tau in taus:
        if not 0 < tau < np.inf:
            raise ConfigError(f"tau={tau} must be a number above 0 (nats of KL that removing an edge may cost); "
                              f"the papers take {TAU}")
    if not taus:
        raise ConfigError(f"no tau is given; the papers take {TAU}")
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
    """One for each batch of prompts."""
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
        """A branch with nothing decided."""
        edges = graph.n_edges
        removed = np.zeros(edges, bool)
        return cls(taus, removed, np.zeros(edges), np.zeros(edges), LiveGraph(graph, removed),
                   [Values.none()] * batches, 2 * graph.n_layers + 1)

    def split(self, taus: tuple[float, ...]) -> "Branch":
        """A copy for some of the thresholds that shares no array."""
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
        """Removes the edge at a position, and those before it, which cannot matter."""
        self.keep(position, kl, order)
        self.removed[order[position]] = True
        self.live.remove(order[position : position + 1])
        self.now = kl

    def keep(self, position: int, kl: float, order: np.ndarray) -> None:
        """Keeps the edge at a position, and removes those before it, which cannot matter."""
        self.pass_dead(position, order)
        self.kl[position], self.margins[position] = kl, kl - self.now
        self.position = position + 1


def decide(
    branch: Branch, edges: np.ndarray, kls: Sequence[float] | np.ndarray, again: Callable[[np.ndarray, int], float]
) -> tuple[int, tuple[float, ...]]:
    """How many of the next edges all thresholds remove, and which thresholds keep the one after them.

    Args:
      branch: the decisions so far.
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


class Search:
    """What all branches of one search share, and the step that takes a branch further."""

    def __init__(self, problem: Problem, order: np.ndarray, memory_limit: float):
        self.graph, self.order, self.prompts = problem.graph, order, len(problem.pairs)
        self.layers = self.graph.edge_layer[order]
        self.followers: list[Follower] = []
        for rows in problem.parts():
            inputs = problem.taken(problem.inputs, rows)
            clean = source_run(problem.decoder, problem.params, inputs)
            other = take_prompts(problem.replacement, rows)
            prepared = prepare(problem.decoder, problem.params, inputs, clean, other)
            shared = prepared.sharing(self.followers[0].prepared) if self.followers else prepared
            self.followers.append(Follower(shared))
        self.exact = ExactDivergence(problem)
        self.widest = _widest(problem, memory_limit)
        self.evaluated = self.decided = self.rechecked = 0

    def begin(self, taus: tuple[float, ...]) -> Branch:
        """A branch with nothing decided."""
        return Branch.new(self.graph, taus, len(self.followers))

    def restore(self, branch: Branch) -> None:
        """Computes the values of a branch from its decisions alone."""
        done = np.flatnonzero(branch.removed)
        branch.live = LiveGraph(self.graph, branch.removed)
        last, branch.layer = self.layers[min(branch.position, self.graph.n_edges - 1)], 2 * self.graph.n_layers + 1
        self._enter(branch, int(last))
        self._patch(branch, done[self._alive(branch, done)])

    def advance(self, branch: Branch) -> list[Branch]:
        """Decides the next edges; returns the branch that splits off where thresholds disagree, if one does."""
        before = branch.position
        # Only edges into one layer are tested together: until they are decided, earlier layers are the clean run.
        end = int(np.searchsorted(-self.layers, -self.layers[before], side="right"))
        self._enter(branch, int(self.layers[before]))
        ahead = np.arange(before, end)
        at = ahead[self._alive(branch, self.order[ahead])][: min(branch.width, self.widest)]
        fork = []
        if len(at):
            fork = self._test(branch, at)
        else:
            branch.pass_dead(end, self.order)
        self.decided += branch.position - before
        return fork

    def _alive(self, branch: Branch, edges: np.ndarray) -> np.ndarray:
        """[m] bool: edges whose destination can still matter."""
        alive = np.array([branch.live.reads(d) for d in self.graph.destinations])
        return alive[self.graph.edge_destination[edges]]

    def _enter(self, branch: Branch, layer: int) -> None:
        while branch.layer > layer:
            branch.layer -= 1
            branch.live.enter(branch.layer)
            branch.values = [f.enter(v, branch.live, branch.layer)
                             for f, v in zip(self.followers, branch.values, strict=True)]

    def _test(self, branch: Branch, at: np.ndarray) -> list[Branch]:
        """Tests the edges at positions [m] together and records what all thresholds agree on."""
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


def _widest(problem: Problem, memory_limit: float) -> int:
    """Most edges in one call: a power of two whose runs fit into the memory."""
    width, neurons, _ = problem.decoder.sizes
    prompts, length = min(problem.batch_size, len(problem.pairs)), problem.pairs.clean.shape[1]
    run_bytes = 4 * prompts * length * (6 * width + 2 * neurons)
    fits = max(1, int(memory_limit / run_bytes))
    return min(WIDEST, 1 << (fits.bit_length() - 1))


class ExactDivergence:
    """(removed [E] bool) -> mean KL(clean || patched) over prompts, nats: the plain patched run in float64.

    What fast results are held against. It prepares itself at its first use.
    """

    def __init__(self, problem: Problem):
        self._problem, self._decoder = problem, problem.decoder.in_type("float64")
        self._prepared: list[tuple[Inputs, jax.Array, jax.Array]] = []
        self._params: Any = None

    def __call__(self, removed: np.ndarray) -> float:
        with jax.enable_x64(True):
            if not self._prepared:
                self._prepare()
            patched = np.asarray(removed, np.float64)
            kls = []
            for inputs, replacement, log_probs in self._prepared:
                final = patched_final(self._decoder, self._params, inputs, patched, replacement)
                other = self._log_probs(final)
                kls.append(np.asarray((jnp.exp(log_probs) * (log_probs - other)).sum(-1)))
        return float(np.concatenate(kls).mean())

    def _prepare(self) -> None:
        """Sets (clean prompts, what patched edges carry, clean log-probabilities) of each batch."""
        problem, self._params = self._problem, in_type(self._problem.params, np.float64)
        clean, corrupt = (jax.tree.map(_wide, x) for x in (problem.inputs, problem.corrupt))
        other = problem.replaced(self._decoder, self._params, corrupt)
        for rows in problem.parts():
            final = source_run(self._decoder, self._params, clean.take(rows)).final
            self._prepared.append((clean.take(rows), take_prompts(other, rows), self._log_probs(final)))

    def _log_probs(self, final: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(logits(self._decoder, self._params, final), axis=-1)


def _wide(x: jax.Array) -> jax.Array:
    values = np.asarray(x)
    dtype = np.float64 if np.issubdtype(values.dtype, np.floating) else values.dtype
    return jnp.asarray(values.astype(dtype), dtype)


# Decisions of a search on disk, so that it can go on after an interruption. Values are computed anew from them.

_COUNTS = ("evaluated", "decided", "rechecked")
_ARRAYS = ("removed", "kl", "margins")


def search_digest(problem: Problem, taus: Sequence[float], order: np.ndarray) -> str:
    """Hex digest of everything the decisions of a search depend on."""
    model = problem.config
    about = dataclasses.asdict(model) if isinstance(model, ModelConfig) else repr(model)  # of somebody's own decoder
    settings = [about, list(taus), [problem.stream, problem.ablation], problem.pairs.digest()]
    settings += ["split"] if problem.split else []  # files of earlier versions go on
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    digest.update(np.ascontiguousarray(order, np.int64).tobytes())
    return digest.hexdigest()


def save_progress(path: Path, digest: str, search: Search, branches: Sequence[Branch]) -> None:
    """Writes the decisions, whole or not at all."""
    arrays: dict[str, Any] = {"digest": np.array(digest)}
    arrays["counts"] = np.array([getattr(search, name) for name in _COUNTS])
    for i, branch in enumerate(branches):
        arrays |= {f"{i}/{name}": getattr(branch, name) for name in _ARRAYS}
        arrays[f"{i}/taus"] = np.array(branch.taus)
        arrays[f"{i}/scalars"] = np.array([branch.position, branch.now, branch.width], np.float64)
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_progress(path: Path, digest: str, search: Search) -> list[Branch]:
    """The branches of an interrupted search, their values restored; none where there is no file.

    Raises:
      CheckpointError: the file is damaged, or of another search.
    """
    if not path.exists():
        return []
    branches = []
    try:
        arrays = read_npz(path)
        if str(arrays["digest"]) != digest:
            raise CheckpointError(f"{path} is an interrupted search of another model, task or setting; "
                                  "delete it to begin anew, or name another file")
        counts = dict(zip(_COUNTS, map(int, arrays["counts"]), strict=True))
        for i in range(sum(name.endswith("/taus") for name in arrays)):
            branch = search.begin(tuple(arrays[f"{i}/taus"].tolist()))
            for name in _ARRAYS:
                array, fresh = arrays[f"{i}/{name}"], getattr(branch, name)
                if (array.shape, array.dtype) != (fresh.shape, fresh.dtype):
                    raise ValueError(f"{i}/{name} has shape {array.shape}, not {fresh.shape}, or another type")
                setattr(branch, name, array)
            position, branch.now, width = arrays[f"{i}/scalars"].tolist()
            branch.position, branch.width = int(position), int(width)
            if not 0 <= branch.position <= len(branch.removed) or branch.width < 1:
                raise ValueError(f"{i}/scalars has position {branch.position} of {len(branch.removed)}")
            branches.append(branch)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, FileError) as e:
        raise CheckpointError(f"{path} cannot be read as an interrupted search ({e}); delete it to begin anew") from e
    for name, count in counts.items():
        setattr(search, name, count)
    for branch in branches:
        search.restore(branch)
    return branches
