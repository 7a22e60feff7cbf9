"""Circuits by optimisation: every edge has a stochastic mask, and gradient descent learns which edges are needed.

A mask is hard concrete (Louizos et al. 2018): z = clip(s (zeta - gamma) + gamma, 0, 1) with s = sigmoid((log u -
log(1 - u) + log alpha) / beta), u uniform, beta = 2/3, gamma = -0.1, zeta = 1.1. It is exactly 0 or 1 with some
probability and differentiable between; P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)). Subnetwork probing
(Cao et al. 2021) learns such masks of weights and heads, Edge Pruning (Bhaskar et al. 2024) of edges; the latter's loss
is taken here:

    D + lambda_1 (t - s) + lambda_2 (t - s)^2,        D = KL(model || masked model)

s is the expected share of cut edges, t its target, which rises to the one asked for, and the two multipliers are learnt
by ascent, so that the number of edges is met. The masked model is `patching.patched_final`: an edge of mask z carries z
times what its source writes and 1 - z times its replacement.

With ``objective="task"`` D is -log sigmoid(logit difference) instead: masks are then trained to do the task, whether
the model does it or not.

A method that fits thousands of numbers finds small circuits where there is nothing to find: in models with random
weights (Zhou et al. 2019), and for tasks without sense. So `prune_with_nulls` gives every figure beside those of two
nulls, on prompts that no mask was trained on, for several seeds. What the nulls reach is no evidence.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxablate import stats
from jaxablate.circuits.blocks import exact
from jaxablate.circuits.faithfulness import metric_values
from jaxablate.circuits.patching import patched_final
from jaxablate.circuits.problem import Batch, Problem, takes_problem
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config.checks import require, require_numbers
from jaxablate.errors import DataError
from jaxablate.stats import Estimate
from jaxablate.types import Params

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
NULLS = ("random weights", "nonsense task")
Progress = Callable[[int, int], None]
"""(steps made, steps in all)."""

_SHIFT = -BETA * math.log(-GAMMA / ZETA)
"""P(z > 0) = sigmoid(log alpha + _SHIFT)."""
_ROUNDING = 1e-5
"""Nats of KL that rounding in float32 may make."""
_CHUNK = 25
"""Steps of one compiled call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How masks are trained.

    Raises:
      ConfigError: a value is out of range.
    """

    objective: Literal["kl", "task"] = "kl"
    """What masks are to keep: the model's predictions, or the answers of the task."""
    steps: int = 300
    """Steps of Adam. Edge Pruning takes 3,000 on GPT-2."""
    batch_size: int = 16
    """Prompts of a step, drawn anew for each; all where there are fewer. Memory grows with it: 45 MB a prompt of 20
    tokens at the paper's shape (23,981 edges)."""
    learning_rate: float = 0.2
    """Adam's rate for log alpha, reached after a tenth of the steps and falling to 0 at the last."""
    multiplier_rate: float = 0.8
    """Adam's rate for the Lagrange multipliers of the number of edges."""
    rise: float = 0.7
    """Share of the steps in which the target grows from no edge cut to the number asked for."""
    first: float = 2.0
    """log alpha at the start: an edge is kept with probability 0.97."""

    def __post_init__(self):
        require_numbers(self)
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "multiplier_rate"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name):g} must be positive")
        require(0 < self.rise <= 1, f"rise={self.rise:g} must be in (0, 1]; it is a share of the steps")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """Masks after training."""

    log_alpha: np.ndarray
    """[E] float64, greater for edges that are kept."""
    kept: np.ndarray
    """[E] bool: the edges of greatest log alpha, as many as were asked for."""
    loss: np.ndarray
    """[steps] D of the prompts of each step, nats."""
    expected: np.ndarray
    """[steps] expected number of edges kept."""

    def __repr__(self) -> str:
        return (f"Pruned({int(self.kept.sum()):,} of {self.kept.size:,} edges, loss {self.loss[-1]:.3g} nats in the "
                f"last of {len(self.loss):,} steps)")

    @property
    def probability(self) -> Float[np.ndarray, " edges"]:
        """[E] that an edge's mask is not 0."""
        return 1 / (1 + np.exp(-(self.log_alpha + _SHIFT)))


@flax.struct.dataclass
class _State:
    log_alpha: jax.Array
    multipliers: jax.Array
    """[2]"""
    optimizer: Any
    step: jax.Array


@takes_problem
def prune(problem: Problem, *, edges: int, settings: PruneSettings | None = None, seed: int = 0,
          progress: Progress = lambda done, total: None) -> Pruned:
    """Trains the masks of all edges on all prompts of a problem, by the objective of the settings, whatever its metric.

    Deterministic in the seed, which draws masks and prompts.

    Args:
      problem: the model and the prompts to train on.
      edges: edges of the circuit.
      settings: pace of training.
      seed: seed of masks and prompts.
      progress: called after some steps.

    Raises:
      ConfigError: the number of edges is not in 1 .. E - 1.
      DataError: a mask is no number any more.
    """
    settings, graph = settings or PruneSettings(), problem.graph
    require(1 <= edges < graph.n_edges, f"edges={edges} must be in 1 .. {graph.n_edges - 1}, below those of the graph")
    task = problem.with_metric("kl" if settings.objective == "kl" else "logit_difference")
    whole = Batch(task.decoder, task.params, task.inputs, task.replacement, task.target,
                  jnp.zeros(len(task.pairs), jnp.float32))
    optimizer = _optimizer(settings)
    log_alpha, multipliers = jnp.full(graph.n_edges, settings.first, jnp.float32), jnp.zeros(2, jnp.float32)
    state = _State(log_alpha, multipliers, optimizer.init((log_alpha, multipliers)), jnp.asarray(0, jnp.int32))
    figures: list[Any] = []
    for start in range(0, settings.steps, _CHUNK):
        count = min(_CHUNK, settings.steps - start)
        state, made = _steps(settings, count, whole, state, 1 - edges / graph.n_edges, jax.random.key(seed))
        figures.append(jax.device_get(made))
        progress(start + count, settings.steps)
    final = np.asarray(state.log_alpha, np.float64)
    if not np.isfinite(final).all():
        raise DataError(f"log alpha of edge {graph.edge_names[int(np.isfinite(final).argmin())]} is NaN or infinite "
                        f"after {settings.steps} steps; take a lower learning_rate than {settings.learning_rate:g}")
    kept = np.zeros(graph.n_edges, bool)
    kept[np.argsort(-final, kind="stable")[:edges]] = True
    loss, expected = (np.concatenate(x) for x in zip(*figures, strict=True))
    return Pruned(log_alpha=final, kept=kept, loss=loss, expected=expected)


def _optimizer(settings: PruneSettings) -> Any:
    """Adam for masks, and with another rate and the opposite sign for the multipliers."""
    warm = max(1, settings.steps // 10)
    pace = optax.join_schedules([optax.linear_schedule(0, 1, warm), optax.linear_schedule(1, 0, settings.steps - warm)],
                                [warm])
    kinds: dict[Any, Any] = {"mask": optax.adam(lambda step: settings.learning_rate * jnp.asarray(pace(step + 1))),
             "multiplier": optax.chain(optax.scale(-1), optax.adam(settings.multiplier_rate))}
    return optax.multi_transform(kinds, ("mask", "multiplier"))


@functools.partial(jax.jit, static_argnums=(0, 1))
@exact
def _steps(settings: PruneSettings, count: int, whole: Batch, state: _State, target: jax.Array, key: jax.Array
           ) -> tuple[_State, tuple[jax.Array, jax.Array]]:
    """``count`` steps towards a share of cut edges; loss and expected edges of each."""
    n, n_edges = len(whole.weight), len(state.log_alpha)
    size, optimizer = min(settings.batch_size, n), _optimizer(settings)

    def loss(learnt: tuple[jax.Array, jax.Array], step: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        log_alpha, multipliers = learnt
        prompts, noise = jax.random.split(jax.random.fold_in(key, step))
        rows = jax.random.choice(prompts, n, (size,), replace=False) if size < n else jnp.arange(n)
        final = patched_final(whole.decoder, whole.params, _rows(whole.inputs, rows), 1 - sample(log_alpha, noise),
                              whole.replacement if whole.replacement.shape[1] == 1 else whole.replacement[:, rows])
        some: Any = rows  # traced
        values = whole.target.take(some).values(final)
        lost = (values if settings.objective == "kl" else jax.nn.softplus(-values)).mean()
        cut = 1 - jax.nn.sigmoid(log_alpha + _SHIFT).mean()
        gap = target * jnp.minimum(1, (step + 1) / (settings.rise * settings.steps)) - cut
        return lost + multipliers[0] * gap + multipliers[1] * gap**2, (lost, (1 - cut) * n_edges)

    def one(state: _State, _: None) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        learnt = state.log_alpha, state.multipliers
        slopes, figures = jax.grad(loss, has_aux=True)(learnt, state.step)
        change, optimizer_state = optimizer.update(slopes, state.optimizer, learnt)
        log_alpha, multipliers = jax.tree.map(jnp.add, learnt, change)
        return _State(log_alpha, multipliers, optimizer_state, state.step + 1), figures

    return jax.lax.scan(one, state, None, length=count)


def sample(log_alpha: Float[Array, " edges"], key: jax.Array) -> Float[Array, " edges"]:
    """One draw of the masks, in 0 .. 1."""
    u = jax.random.uniform(key, log_alpha.shape, log_alpha.dtype, 1e-6, 1 - 1e-6)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / BETA)
    return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def _rows(values: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[rows], values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneRow:
    """Circuits of several seeds, on prompts that none was trained on. Intervals are over prompts."""

    group: str
    """"model", or one of `NULLS`."""
    edges: int
    """Edges of each circuit."""
    prompts: int
    """Prompts held out."""
    all_patched: float
    """KL(model || everything patched), nats: what there is to explain."""
    explained: Estimate
    """1 - KL(model || circuit) / KL(model || everything patched), mean over seeds: 1 for the model, 0 for no edge.
    Without a value, here and below, where patching everything changes no more than rounding."""
    by_seed: tuple[float | None, ...]
    """The same, seed by seed."""
    on_training_prompts: float | None
    """The same on the prompts of training, mean over seeds."""
    accuracy: Estimate
    """Fraction of prompts on which the circuit prefers the answer, mean over seeds; 0.5 by chance."""
    model_accuracy: Estimate
    """The same of the whole model."""
    overlap: float | None
    """Mean share of edges that two seeds' circuits have in common, of all that either has; None for one seed."""


@takes_problem
def prune_with_nulls(problem: Problem, *, edges: int, seeds: int = 3, settings: PruneSettings | None = None,
                     training: float = 0.5, seed: int = 0, progress: Progress = lambda done, total: None
                     ) -> tuple[PruneRow, ...]:
    """Circuits by pruning, and beside them what the same training gives where there is nothing to find.

    "random weights": the entries of each of the model's arrays in random order, so that all sizes stay. "nonsense
    task": `nonsense`. Both with the prompts, edges, seeds and settings of the model itself.

    Args:
      problem: the model and its prompts.
      edges: edges of each circuit.
      seeds: circuits trained of each group.
      settings: pace and objective.
      training: share of the prompts that masks are trained on; the others are held out.
      seed: seed of the split, the nulls and, counted on, of training.
      progress: called with the steps made and all steps.

    Raises:
      ConfigError: as `prune`, or seeds or the share is out of range.
      DataError: there are too few prompts to hold any out.
    """
    settings, n = settings or PruneSettings(), len(problem.pairs)
    require(seeds >= 1, f"seeds={seeds} must be at least 1")
    require(0 < training < 1, f"training={training:g} must be between 0 and 1; it is a share of the prompts")
    if n < 2:
        raise DataError(f"{problem.pairs.name}: {n} prompt cannot be shared out between training and judging; give "
                        "more")
    order = np.random.default_rng(seed).permutation(n)
    cut = min(max(1, round(training * n)), n - 1)
    tasks = {"model": problem,
             NULLS[0]: dataclasses.replace(problem, params=shuffled(problem.params, seed)),
             NULLS[1]: dataclasses.replace(problem, pairs=nonsense(problem.pairs, seed))}
    found, total = [], len(tasks) * seeds * settings.steps
    for i, (group, task) in enumerate(tasks.items()):
        train, held_out = (dataclasses.replace(task, pairs=task.pairs.take(rows)) for rows in np.split(order, [cut]))
        kept = []
        for j in range(seeds):
            before = (i * seeds + j) * settings.steps
            kept.append(prune(train, edges=edges, settings=settings, seed=seed + j,
                              progress=lambda done, _, before=before: progress(before + done, total)).kept)
        found.append(_judged(group, train, held_out, np.array(kept), seed))
    return tuple(found)


def _judged(group: str, train: Problem, held_out: Problem, kept: np.ndarray, seed: int) -> PruneRow:
    """Circuits [seeds, E] on both parts of the prompts."""
    ends = np.array([[True], [False]]) & np.ones(kept.shape[1], bool)
    circuits = np.concatenate([ends, kept])
    _, empty, *masked = metric_values(held_out.with_metric("kl"), circuits)
    _, trained_empty, *trained = metric_values(train.with_metric("kl"), circuits)
    model, _, *answers = metric_values(held_out.with_metric("logit_difference"), circuits)

    def share(of: Any, empty: np.ndarray) -> float | None:
        return float(1 - np.mean(of) / empty.mean()) if empty.mean() > _ROUNDING else None

    pairs = [(a, b) for i, a in enumerate(kept) for b in kept[:i]]
    n = len(held_out.pairs)
    return PruneRow(
        group=group, edges=int(kept[0].sum()), prompts=n, all_patched=float(empty.mean()),
        explained=Estimate(None, n=n) if empty.mean() <= _ROUNDING else stats.ratio(
            np.mean(masked, axis=0), empty, seed=seed, transform=lambda x: 1 - x),
        by_seed=tuple(share(x, empty) for x in masked),
        on_training_prompts=share(trained, trained_empty),
        accuracy=stats.mean(np.mean(np.array(answers) > 0, axis=0), seed=seed),
        model_accuracy=stats.proportion(int((model > 0).sum()), n),
        overlap=float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])) if pairs else None)


def shuffled(params: Params, seed: int) -> Params:
    """Parameters with the entries of each array in random order: what a model has by its sizes alone."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.permuted(np.asarray(x), axis=None), params)


def nonsense(pairs: PromptPairs, seed: int) -> PromptPairs:
    """A task without sense, of prompts of the same lengths.

    Each token is drawn from all tokens of the task's prompts; clean and corrupt ones differ where theirs do. The answer
    is one of two tokens among the task's answers, and a coin tossed once for each token says which, by the token at the
    first place where clean and corrupt differ (the last one, where they do not). So there is a rule, and it can be
    learnt, but no model was trained on it.
    """
    rng = np.random.default_rng(seed)
    differ = (pairs.clean != pairs.corrupt) & pairs.valid
    pool = np.concatenate([pairs.clean[pairs.valid], pairs.corrupt[pairs.valid]])
    clean, corrupt = (np.where(pairs.valid, rng.choice(pool, pairs.clean.shape), pairs.clean) for _ in range(2))
    corrupt = np.where(differ, corrupt, clean)
    answers = np.unique(np.concatenate([pairs.answers[:, 0], pairs.wrong_answers[:, 0]]))
    two = rng.choice(answers, 2, replace=False)
    first = np.where(differ.any(1), differ.argmax(1), clean.shape[1] - 1)
    coins = rng.integers(0, 2, pool.max() + 1)[clean[np.arange(len(clean)), first]]
    return dataclasses.replace(pairs, clean=clean.astype(np.int32), corrupt=corrupt.astype(np.int32),
                               answers=two[coins][:, None].astype(np.int32), name=f"nonsense like {pairs.name}",
                               wrong_answers=two[1 - coins][:, None].astype(np.int32))
