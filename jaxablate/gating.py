r"""k-winner-take-all gates: exactly k of U units for each row, with a gradient (docs/papers.md, Gates).

With scores x and x_(1) >= x_(2) >= ... along the last axis,

    g = (x_(k) + x_(k+1)) / 2                      threshold
    T = temperature * (x_(k) - x_(k+1)) + eps      width
    w_i = k * sigmoid((x_i - g) / T) / sum_j sigmoid((x_j - g) / T)        surrogate "sigmoid" (released code)
    w_i = k * softmax(x / T)_i                                             surrogate "softmax" (the paper's text)

`soft_top_k` is w. `hard_top_k` is the 0/1 mask of the k winners. `k_wta` is the mask forward and the gradient of w
backward, through g and T as well. All have hand-written derivatives without sort or scatter, work in at least
float32 whatever comes in, and return that type.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxablate.ops.order_statistics import Thresholds, thresholds, winners

Surrogate = Literal["sigmoid", "softmax"]

# sigmoid' and exp(-|z|) are exactly 0 beyond this, in float64 too; clipping keeps 0 * inf out of the backward pass.
_SATURATED = 1e3


def soft_top_k(
    scores: jax.Array, k: int, *, temperature: float = 1.0, eps: float = 1e-12, surrogate: Surrogate = "sigmoid"
) -> jax.Array:
    """Soft k-winner-take-all: weights that sum to k along the last axis (formula in the module's docstring).

    Args:
      scores: [..., U] relevance scores, any float type.
      k: number of winners, 1 <= k < U, static.
      temperature: width of the gate in gaps between the k-th and (k+1)-th score, > 0.
      eps: added to that width, > 0.
      surrogate: "sigmoid" or "softmax".

    Returns:
      [..., U] weights in [0, k], float32 or float64. Where x_(k) = x_(k+1) the tied units weigh 0.5 each
      before normalisation (sigmoid), and the gradient is of the order of 1 / eps.

    Raises:
      ValueError: k out of range or an unknown surrogate.

    Example:
      >>> [round(w, 3) for w in soft_top_k(jnp.array([3., 1., 0., -2.]), k=1, temperature=0.1).tolist()]
      [0.993, 0.007, 0.0, 0.0]
    """
    x = _at_least_float32(scores)
    return _soft(x, k, _width(temperature, eps), _checked(surrogate))


def hard_top_k(scores: jax.Array, k: int) -> jax.Array:
    """0/1 mask of exactly k winners along the last axis, lower index first among equals; gradient zero.

    Args:
      scores: [..., U], any float type.
      k: number of winners, 1 <= k < U, static.

    Returns:
      [..., U] zeros and ones, float32 or float64.

    Raises:
      ValueError: k out of range.

    Example:
      >>> hard_top_k(jnp.array([1., 2., 2., 2.]), k=2).tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    x = jax.lax.stop_gradient(_at_least_float32(scores))
    return winners(x, thresholds(x, k)).astype(x.dtype)


def k_wta(
    scores: jax.Array, k: int, *, temperature: float = 1.0, eps: float = 1e-12, surrogate: Surrogate = "sigmoid"
) -> jax.Array:
    """`hard_top_k` forward, gradient of `soft_top_k` backward (straight-through). Arguments as in `soft_top_k`.

    Example:
      >>> x = jnp.array([3., 1., 0., -2.])
      >>> k_wta(x, k=2).tolist()
      [1.0, 1.0, 0.0, 0.0]
      >>> weighted = lambda gate: lambda x: gate(x, 2) @ jnp.arange(4.)
      >>> bool((jax.grad(weighted(k_wta))(x) == jax.grad(weighted(soft_top_k))(x)).all())
      True
    """
    x = _at_least_float32(scores)
    return _hard(x, k, _width(temperature, eps), _checked(surrogate))


def _at_least_float32(scores: jax.Array) -> jax.Array:
    scores = jnp.asarray(scores)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _width(temperature: float, eps: float) -> tuple[float, float]:
    if not (temperature > 0 and eps > 0):
        raise ValueError(f"temperature={temperature} and eps={eps} must be positive")
    return float(temperature), float(eps)


def _checked(surrogate: str) -> str:
    if surrogate not in ("sigmoid", "softmax"):
        raise ValueError(f"surrogate={surrogate!r} must be 'sigmoid' or 'softmax'")
    return surrogate


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _soft(x, k, width, surrogate):
    return _weights(x, thresholds(x, k), k, width, surrogate)


def _soft_fwd(x, k, width, surrogate):
    t = thresholds(x, k)
    return _weights(x, t, k, width, surrogate), (x, t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _hard(x, k, width, surrogate):
    return winners(x, thresholds(x, k)).astype(x.dtype)


def _hard_fwd(x, k, width, surrogate):
    t = thresholds(x, k)
    return winners(x, t).astype(x.dtype), (x, t)


def _standardised(x: jax.Array, t: Thresholds, width: tuple[float, float], surrogate: str):
    """z = (x - g) / T and T; z is clipped where the surrogate is saturated. A softmax ignores g: its z are <= 0."""
    temperature, eps = width
    scale = temperature * (t.kth - t.next) + eps
    centre = jnp.max(x, axis=-1, keepdims=True) if surrogate == "softmax" else 0.5 * (t.kth + t.next)
    return jnp.clip((x - centre) / scale, -_SATURATED, _SATURATED), scale


def _weights(x, t, k, width, surrogate):
    z, _ = _standardised(x, t, width, surrogate)
    if surrogate == "softmax":
        return k * jax.nn.softmax(z, axis=-1)
    s = jax.nn.sigmoid(z)
    return s * (k / jnp.sum(s, axis=-1, keepdims=True))


def _backward(k, width, surrogate, residuals, cotangent):
    """Closed form: dL/dz through the normalisation, then to x directly and to the two order statistics."""
    x, t = residuals
    z, scale = _standardised(x, t, width, surrogate)
    if surrogate == "sigmoid":  # the same z, rounded alike on both sides of g: the sums below cancel over 1 / T
        z = jnp.clip(0.5 * ((x - t.kth) + (x - t.next)) / scale, -_SATURATED, _SATURATED)
    if surrogate == "softmax":
        p = jax.nn.softmax(z, axis=-1)
        d_z = k * p * (cotangent - jnp.sum(p * cotangent, axis=-1, keepdims=True))
    else:
        s = jax.nn.sigmoid(z)
        total = jnp.sum(s, axis=-1, keepdims=True)
        mean = jnp.sum(s * cotangent, axis=-1, keepdims=True) / total
        d_z = (k / total) * s * (1 - s) * (cotangent - mean)
    d_x = d_z / scale
    d_threshold = -jnp.sum(d_x, axis=-1, keepdims=True)
    d_scale = -jnp.sum(d_x * z, axis=-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    d_kth = 0.5 * d_threshold + width[0] * d_scale
    d_next = 0.5 * d_threshold - width[0] * d_scale
    return (d_x + jnp.where(index == t.kth_index, d_kth, 0) + jnp.where(index == t.next_index, d_next, 0),)


_soft.defvjp(_soft_fwd, _backward)
_hard.defvjp(_hard_fwd, _backward)
