"""Soft caps of attention scores and logits (Gemma 2)."""

import jax
import jax.numpy as jnp


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): within -cap..cap and near x where that is small; without a cap x itself.

    >>> capped(jnp.array([0.0, 1.0, 1000.0]), 50.0).round().tolist()
    [0.0, 1.0, 50.0]
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def cap_slope(capped_x: jax.Array, cap: float) -> jax.Array:
    """Derivative of `capped` by x, from its result."""
    return 1 - jnp.square(capped_x / cap)
