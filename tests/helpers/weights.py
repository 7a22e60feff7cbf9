"""Parameters of models drawn with NumPy: a model's own ``init`` takes seconds to compile, this compiles nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxablate.training.program import Program, TrainState


def drawn_params(model: nn.Module, *inputs: np.ndarray, scale: float = 0.3, seed: int = 0) -> dict[str, Any]:
    """Normal draws of standard deviation ``scale`` about 0, those of norms' scales about 1, as NumPy arrays."""
    return _drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)["params"]), scale, seed)


def drawn_state(program: Program, *, scale: float = 0.1, seed: int = 0) -> TrainState:
    """A state before the first update on a program's mesh, with such parameters; the same numbers on every mesh."""

    def place(x: jax.ShapeDtypeStruct, value: Any = None) -> jax.Array:
        if value is None:
            value = jax.random.key(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.zeros(x.shape, x.dtype)
        return jax.device_put(value, x.sharding)

    stored = program.stored
    params = jax.tree.map(place, stored.params, _drawn(stored.params, scale, seed))
    return program.packed(jax.tree.map(place, stored).replace(params=params))


def _drawn(shapes: Any, scale: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(centre, scale, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
