"""The state of a run and the compiled functions that make, change and check it.

One update reads from top to bottom in `compile_program`: the loss of a `Learner` on a part of the batch, its gradient
averaged over the parts, the optimiser's update.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate.sharding import BATCH_AXES, batch_sharding, param_shardings, replicated
from jaxablate.training.optimizer import keep_largest
from jaxablate.types import Batch, Params

Metrics = dict[str, jax.Array]
Rows = Mapping[str, jax.Array]
"""A batch, or a part of one, on the devices."""
LossFunction = Callable[[Params, Rows, jax.Array], tuple[jax.Array, Metrics]]
"""(params, batch, PRNG key) -> (mean loss over the batch, scalar metrics)."""
TrainingLoss = Callable[[Params, Rows, jax.Array, jax.Array], tuple[jax.Array, Metrics]]
"""The same with the number of updates made so far, int32, as its last argument."""


class TrainState(flax.struct.PyTreeNode):
    """State between two updates."""

    step: jax.Array
    """Updates made so far, int32 scalar."""
    params: Params
    opt_state: Any
    """optax state of the same parameters."""
    key: jax.Array
    """Typed PRNG key of the run. It never changes: each step folds its number in (`step_key`)."""


def step_key(state: TrainState) -> jax.Array:
    """PRNG key of the update about to be made: a pure function of the run's seed and the step number."""
    return jax.random.fold_in(state.key, state.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A model with its loss: what is to be compiled."""

    init_params: Callable[[jax.Array], Params]
    """PRNG key -> parameters."""
    train_loss: TrainingLoss
    """Loss of a training batch, with a key to draw from. It gathers the parameters, which come as they are stored."""
    eval_loss: LossFunction
    """Loss of a validation batch; it draws nothing."""
    counted: str
    """Name of the batch's array whose sum is the number of things that `eval_loss`'s metrics are means over."""
    weighed: str | None = None
    """The same for `train_loss`; None where all rows of a batch count alike."""
    pack: Callable[[Params], Params] = lambda params: params
    """Parameters as `init_params` makes them and checkpoints hold them -> as the losses take them: filled up with rows
    so that a mesh divides them, or stacked."""
    unpack: Callable[[Params], Params] = lambda params: params
    """The inverse of `pack`."""
    parts: Callable[[Batch], int] = lambda batch: 1
    """Into how many equal parts the rows of a batch of these shapes are split. Their gradients are averaged before one
    update, which gives the full batch's gradient; metrics are averaged, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What `train` runs; each function compiles at its first call with a batch of another shape."""

    mesh: Mesh
    abstract: TrainState
    """Shapes of the state, as `step` takes it, with their shardings."""
    stored: TrainState
    """The same as checkpoints hold it: the target of a restore."""
    packed: Callable[[TrainState], TrainState]
    """A state as it is stored -> one that `step` takes."""
    unpacked: Callable[[TrainState], TrainState]
    """The inverse of `packed`."""
    init: Callable[[int], TrainState]
    """Seed -> a fresh state that `step` takes."""
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    """(state, batch) -> (state, metrics); donates the state. The metrics are those of the loss, ``grad_norm`` (global,
    before clipping) and ``learning_rate``."""
    evaluate: Callable[[Params, Batch], Metrics]
    """(params, batch) -> metrics, and ``count``, the number of things they are means over."""
    finite: Callable[[TrainState], jax.Array]
    """State -> whether every floating-point number of parameters and optimiser is finite."""

    @property
    def n_parameters(self) -> int:
        """Numbers in the parameter tree as it is stored."""
        return sum(x.size for x in jax.tree.leaves(self.stored.params))


def compile_program(learner: Learner, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh,
                    nonzero: optax.Schedule | None = None) -> Program:
    """Functions that train a model on a mesh; the schedule of the learning rate is only reported here.

    ``nonzero`` is the part of each weight matrix that is left by each update (`jaxablate.training.optimizer`).

    Raises:
      ConfigError: a parameter has no partition rule.
    """

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and for `init`
    def fresh(seed: jax.Array) -> TrainState:
        init_key, key = jax.random.split(jax.random.key(seed))
        params = learner.init_params(init_key)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key)

    def weight(rows: Rows) -> Any:
        return 1.0 if learner.weighed is None else jnp.sum(rows[learner.weighed])

    def step(state: TrainState, batch: Rows) -> tuple[TrainState, Metrics]:
        # With `jax.jit` the loss is traced once, not once more for the shapes of its results; inline leaves the rest.
        gradient = jax.jit(jax.grad(learner.train_loss, has_aux=True), inline=True)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # ops/ choose by it how to compute
            def at_this_step(*arguments: Any) -> Any:
                return gradient(*arguments, state.step)

            grads, metrics = _mean_over_parts(at_this_step, weight, mesh, state.params, batch, step_key(state),
                                              learner.parts(batch))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads), "learning_rate": jnp.asarray(schedule(state.step))}
        params = optax.apply_updates(state.params, updates)
        if nonzero is not None:
            params = learner.pack(keep_largest(learner.unpack(params), jnp.asarray(nonzero(state.step))))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def evaluate(params: Params, batch: Rows) -> Metrics:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            _, metrics = learner.eval_loss(params, batch, jax.random.key(0))
        return metrics | {"count": batch[learner.counted].sum()}

    def finite(state: TrainState) -> jax.Array:
        leaves = [x for x in jax.tree.leaves((state.params, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()

    stored = jax.eval_shape(fresh, jnp.uint32(0))
    packed = functools.partial(_with_params, learner.pack, jax.tree.structure(stored.params))
    abstract = jax.eval_shape(packed, stored)
    unpacked = functools.partial(_with_params, learner.unpack, jax.tree.structure(abstract.params))
    stored, abstract = (_placed(mesh, state, optimizer) for state in (stored, abstract))
    places, rows, everywhere = jax.tree.map(lambda x: x.sharding, abstract), batch_sharding(mesh), replicated(mesh)
    # Parameters are drawn where they will live: no device ever holds all of a sharded array.
    init = jax.jit(lambda seed: packed(fresh(seed)), out_shardings=places)
    return Program(
        mesh=mesh, abstract=abstract, stored=stored,
        packed=jax.jit(packed, out_shardings=places),
        unpacked=jax.jit(unpacked, out_shardings=jax.tree.map(lambda x: x.sharding, stored)),
        init=lambda seed: init(jnp.uint32(seed % 2**32)),
        step=jax.jit(step, in_shardings=(places, rows), out_shardings=(places, everywhere), donate_argnums=0),
        evaluate=jax.jit(evaluate, in_shardings=(places.params, rows), out_shardings=everywhere),
        finite=jax.jit(finite, in_shardings=(places,)),
    )


def _with_params(change: Callable[[Params], Params], structure: Any, state: TrainState) -> TrainState:
    """The state with its parameters, and whatever of the optimiser is shaped as they are, changed."""

    def has_params(x: Any) -> bool:
        return jax.tree.structure(x) == structure

    return jax.tree.map(lambda x: change(x) if has_params(x) else x, state, is_leaf=has_params)


def _placed(mesh: Mesh, shapes: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    places = _state_shardings(mesh, shapes, optimizer)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def _state_shardings(mesh: Mesh, shapes: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """Sharding of every array of a state: parameters by path, optimiser state as its parameter, the rest replicated."""
    everywhere = replicated(mesh)
    params = param_shardings(mesh, shapes.params)
    opt_state = optax.tree_map_params(optimizer, lambda _, place: place, shapes.opt_state, params,
                                      transform_non_params=lambda _: everywhere)
    return shapes.replace(step=everywhere, params=params, opt_state=opt_state, key=everywhere)


def _mean_over_parts(gradient: Callable[..., Any], weight: Callable[[Rows], Any], mesh: Mesh, params: Params,
                     batch: Rows, key: jax.Array, parts: int) -> tuple[Params, Metrics]:
    """Weighted mean of (gradient, metrics) over equal parts of a batch, one part after another."""
    if parts == 1:
        return gradient(params, batch, key)

    def add(total: Any, part: tuple[Rows, jax.Array]) -> tuple[Any, None]:
        rows, index = part
        share = jnp.float32(weight(rows))
        values = gradient(params, rows, jax.random.fold_in(key, index)), jnp.ones((), jnp.float32)
        return jax.tree.map(lambda t, x: t + share.astype(x.dtype) * x, total, values), None

    rows = jax.tree.map(functools.partial(_split_rows, mesh=mesh, parts=parts), batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes, jax.ShapeDtypeStruct((), jnp.float32)))
    (total, weights), _ = jax.lax.scan(add, zeros, (rows, jnp.arange(parts)))
    weights = jnp.where(weights > 0, weights, 1)  # without anything that counts the mean is 0, not NaN
    return jax.tree.map(lambda x: x / weights.astype(x.dtype), total)


def _split_rows(x: jax.Array, *, mesh: Mesh, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; part i takes rows i, i + parts, ..., which each device already holds."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
