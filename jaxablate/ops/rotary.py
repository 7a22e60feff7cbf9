"""Rotary position embeddings: queries and keys turn with their position, so that scores depend on distances alone."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxablate.config.checks import require
from jaxablate.types import at_least_float32


def rotate(
    x: Float[ArrayLike, "*lead width"], positions: Int[ArrayLike, "*#lead"], *, width: int, theta: float = 10_000.0
) -> Float[Array, "*lead width"]:
    """Turns pairs of channels of each head by their position (Su et al. 2021), as GPT-NeoX and Llama pair them.

    Of the first ``width`` channels, i and i + width / 2 are a pair, turned by position * theta^(-2 i / width); the rest
    stay. Positions are broadcast to x without its last axis. Angles and products are at least float32, the result is of
    x's type.

    Raises:
      ConfigError: the width is odd, or more than a head has.

    Example:
      >>> x = rotate(jnp.array([[1.0, 0.0, 5.0], [1.0, 0.0, 5.0]]), jnp.arange(2), width=2)
      >>> [[f"{value:.2f}" for value in row] for row in x.tolist()]
      [['1.00', '0.00', '5.00'], ['0.54', '0.84', '5.00']]
    """
    x, positions = jnp.asarray(x), jnp.asarray(positions)
    require(0 <= width <= x.shape[-1] and width % 2 == 0,
            f"width={width} must be even and at most {x.shape[-1]}, the width of a head")
    wide = at_least_float32(x.dtype)
    frequencies = jnp.asarray(np.float64(theta) ** (-np.arange(0, width, 2) / max(width, 1)), wide)
    angles = positions.reshape((1,) * (x.ndim - 1 - positions.ndim) + positions.shape + (1,)).astype(wide)
    angles = angles * frequencies.reshape((1,) * (x.ndim - 1) + frequencies.shape)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., : width // 2].astype(wide), x[..., width // 2 : width].astype(wide)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), x[..., width:]], axis=-1)
