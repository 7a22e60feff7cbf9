"""Everything a training step changes, and where its arrays live."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxablate.sharding import param_shardings, replicated


@flax.struct.dataclass
class TrainState:
    """State between two updates.

    Attributes:
      step: updates made so far, int32 scalar.
      params: parameter tree.
      opt_state: optax state of the same parameters.
      key: typed PRNG key of the run; never changed, each step folds its number in (`step_key`).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


InitParams = Callable[[jax.Array], Any]
"""PRNG key -> parameter tree."""


def step_key(state: TrainState) -> jax.Array:
    """PRNG key of the update about to be made: a pure function of the run's seed and the step number."""
    return jax.random.fold_in(state.key, state.step)


def abstract_state(init_params: InitParams, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and types of a state; nothing is computed."""
    return jax.eval_shape(lambda: _fresh_state(init_params, optimizer, 0))


def state_shardings(mesh: Mesh, abstract: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """Sharding of every array of a state: parameters by path, optimiser state as its parameter, the rest replicated.

    Args:
      mesh: from `jaxablate.sharding.make_mesh`.
      abstract: from `abstract_state`.
      optimizer: the one whose state is inside.
    """
    whole = replicated(mesh)
    params = param_shardings(mesh, abstract.params)
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract.opt_state, params, transform_non_params=lambda _: whole
    )
    return TrainState(step=whole, params=params, opt_state=opt_state, key=whole)


def make_initializer(
    init_params: InitParams, optimizer: optax.GradientTransformation, shardings: TrainState
) -> Callable[[int], TrainState]:
    """Compiled function seed -> fresh state, made where it will live: no device ever holds a whole sharded array.

    Args:
      init_params: draws the parameters.
      optimizer: makes its own state from them.
      shardings: from `state_shardings`.
    """
    make = jax.jit(lambda seed: _fresh_state(init_params, optimizer, seed), out_shardings=shardings)
    return lambda seed: make(jnp.uint32(seed % 2**32))


def _fresh_state(init_params: InitParams, optimizer: optax.GradientTransformation, seed: Any) -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    params = init_params(init_key)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key)


def place_on(abstract: Any, shardings: Any) -> Any:
    """Shapes with their shardings attached: the target of a restore."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def bytes_per_device(tree: Any) -> int:
    """Most bytes that any one device holds of these arrays."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)
