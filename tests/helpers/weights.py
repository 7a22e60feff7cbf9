"""Parameters of models drawn with NumPy: a model's own ``init`` takes seconds to compile, this compiles nothing."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn


def drawn_params(model: nn.Module, *inputs: np.ndarray, scale: float = 0.3, seed: int = 0) -> dict[str, Any]:
    """Normal draws of standard deviation ``scale`` about 0, those of norms' scales about 1, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)["params"])

    def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(centre, scale, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
