"""One optimiser step and one evaluation step, compiled once for a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate.sharding import BATCH_AXES, batch_sharding, gathered_shardings, replicated
from jaxablate.training.state import TrainState, step_key

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFunction = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
"""(params, batch, PRNG key) -> (mean loss over the batch, scalar metrics)."""


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    shardings: TrainState,
    parts: Callable[[Batch], int] = lambda batch: 1,
    counted: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiled ``step(state, batch) -> (state, metrics)``; the state passed in is donated.

    Args:
      loss_fn: mean loss and metrics of a batch.
      optimizer: applied to the mean gradient.
      schedule: learning rate, only reported here.
      mesh: from `jaxablate.sharding.make_mesh`.
      shardings: of the state, from `state_shardings`.
      parts: into how many equal parts the rows of a batch of these shapes are split; their gradients are averaged
        before one update, which gives the full batch's gradient. Metrics are averaged over the parts too.
      counted: name of the batch's array whose sum is the number of things that loss and metrics are means over; each
        part weighs as much as it has of them. None where all parts have the same number.

    Returns:
      A jitted function. Its metrics are the loss function's, ``grad_norm`` (global, before clipping) and
      ``learning_rate``.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient = jax.grad(lambda params, rows, key: _gathered_loss(loss_fn, mesh, params, rows, key), has_aux=True)
        weigh = (lambda rows: 1.0) if counted is None else (lambda rows: jnp.sum(rows[counted]))
        grads, metrics = _accumulate(gradient, weigh, mesh, state.params, batch, step_key(state), parts(batch))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads), "learning_rate": jnp.asarray(schedule(state.step))}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(
    loss_fn: LossFunction, mesh: Mesh, shardings: TrainState, counted: str = "mask"
) -> Callable[[Any, Batch], Metrics]:
    """Compiled ``evaluate(params, batch) -> metrics`` with ``count``, the number of things they are means over.

    Args:
      loss_fn: as for `make_train_step`; called with a fixed key.
      mesh: from `jaxablate.sharding.make_mesh`.
      shardings: of the state.
      counted: name of the batch's array whose sum is that number.
    """

    def evaluate(params: Any, batch: Batch) -> Metrics:
        _, metrics = _gathered_loss(loss_fn, mesh, params, batch, jax.random.key(0))
        return metrics | {"count": batch[counted].sum()}

    in_shardings = (shardings.params, batch_sharding(mesh))
    return jax.jit(evaluate, in_shardings=in_shardings, out_shardings=replicated(mesh))


def make_finite_check(shardings: TrainState) -> Callable[[TrainState], jax.Array]:
    """Compiled ``finite(state) -> bool``: whether every floating-point number of parameters and optimiser is finite."""

    def finite(state: TrainState) -> jax.Array:
        leaves = [x for x in jax.tree.leaves((state.params, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()

    return jax.jit(finite, in_shardings=(shardings,))


def _gathered_loss(loss_fn: LossFunction, mesh: Mesh, params: Any, batch: Batch, key: jax.Array) -> Any:
    """Loss with the parameters gathered over ``fsdp`` first.

    Left alone, the partitioner is free to split activations over D, where the stored parameter is split, and to gather
    the batch instead. Gathering the parameters by hand settles it: activations follow the batch.
    """
    if mesh.shape["fsdp"] > 1:
        params = jax.lax.with_sharding_constraint(params, gathered_shardings(mesh, params))
    return loss_fn(params, batch, key)


def _accumulate(
    gradient: Callable, weigh: Callable, mesh: Mesh, params: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[Any, Metrics]:
    """Weighted mean over the parts of (gradient, metrics)."""
    if parts == 1:
        return gradient(params, batch, key)

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        rows, index = part
        weight = jnp.float32(weigh(rows))
        found = gradient(params, rows, jax.random.fold_in(key, index)), jnp.ones((), jnp.float32)
        return jax.tree.map(lambda t, x: t + weight.astype(x.dtype) * x, total, found), None

    rows = jax.tree.map(lambda x: _split_rows(x, mesh, parts), batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes, jax.ShapeDtypeStruct((), jnp.float32)))
    (total, weight), _ = jax.lax.scan(add, zeros, (rows, jnp.arange(parts)))
    return jax.tree.map(lambda x: x / weight.astype(x.dtype), total)


def _split_rows(x: jax.Array, mesh: Mesh, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; part i takes rows i, i + parts, ..., which each device already holds."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))
