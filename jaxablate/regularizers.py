"""Regularisers: arrays in, scalars out."""

import jax
import jax.numpy as jnp


def reconstruction(clean: jax.Array, ablated: jax.Array, *, eps: float = 1e-12) -> jax.Array:
    """Mean squared difference of two streams after each is L2-normalised over the last axis (REFERENCE: SAT loss).

    Args:
      clean, ablated: [..., D] residual streams.
      eps: least norm divided by, so that zero rows give zero and a zero gradient.

    Returns:
      Scalar, the mean over all entries; at most 4 / D.

    Example:
      >>> float(reconstruction(jnp.array([3., 0.]), jnp.array([0., 2.])))
      1.0
    """
    return jnp.mean(jnp.square(_unit(clean, eps) - _unit(ablated, eps)))


def _unit(x: jax.Array, eps: float) -> jax.Array:
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))
