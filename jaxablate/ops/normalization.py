"""Layer normalisation with a derivative of its own, which keeps x and two numbers a row; division by the root mean
square.

With JAX's derivative of layer normalisation a training step of a small decoder took 183 ms and 92 MB, with this one
177 ms and 86 MB (CPU).
"""

import functools

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from jaxablate.config.checks import require
from jaxablate.ops import triton
from jaxablate.ops.reverse_mode import reverse_mode_only
from jaxablate.ops.varying import match_varying
from jaxablate.types import at_least_float32

Residuals = tuple[Array, Array, Array, Array]


def layer_norm(
    x: Float[ArrayLike, "*rows d"], scale: Float[ArrayLike, " d"], bias: Float[ArrayLike, " d"], eps: float = 1e-5
) -> Float[Array, "*rows d"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, biased variance in two passes.

    The result is at least float32, as is all arithmetic inside. The derivative is for reverse mode, as that of
    `linear_cross_entropy`.

    Raises:
      ConfigError: the shapes do not fit each other, or eps is traced by JAX.

    Example:
      >>> layer_norm(jnp.array([1., 3.]), jnp.ones(2), jnp.zeros(2)).round(3).tolist()
      [-1.0, 1.0]
    """
    x, scale, bias = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias)
    require(x.shape[-1:] == scale.shape == bias.shape,
            f"shapes are x {x.shape}, scale {scale.shape}, bias {bias.shape}; give [..., d], [d] and [d]")
    require(not isinstance(eps, Tracer), "eps is traced by JAX; give a number")
    with reverse_mode_only("layer norms"):
        return _layer_norm(*match_varying((x, scale, bias)), float(eps))


def rms_norm(
    x: Float[ArrayLike, "*rows d"], scale: Float[ArrayLike, " d"], eps: float = 1e-6, *, offset: bool = False
) -> Float[Array, "*rows d"]:
    """x / sqrt(mean of x^2 + eps) * scale over the last axis (Zhang and Sennrich 2019); with an offset * (1 + scale).

    The result is at least float32, as is all arithmetic inside.

    Raises:
      ConfigError: the shapes do not fit each other.

    Example:
      >>> rms_norm(jnp.array([3., -3.]), jnp.zeros(2), offset=True).round(3).tolist()
      [1.0, -1.0]
    """
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    require(x.shape[-1:] == scale.shape, f"shapes are x {x.shape}, scale {scale.shape}; give [..., d] and [d]")
    x = x.astype(at_least_float32(x.dtype))
    factor = _row(scale.astype(x.dtype), x)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * (factor + 1 if offset else factor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _layer_norm_fwd(x, scale, bias, eps)[0]


def _layer_norm_fwd(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Residuals]:
    of_rows = functools.partial(_normalised, d=x.shape[-1], eps=eps)
    if triton.fits_rows(x):
        one = jax.ShapeDtypeStruct((*x.shape[:-1], 1), x.dtype)
        same = jax.ShapeDtypeStruct(x.shape, x.dtype)
        y, mean, inverse = triton.by_rows(of_rows, [x], [scale, bias], [same, one, one])
    else:
        y, mean, inverse = of_rows(x, _row(scale, x), _row(bias, x))
    return y, (x, mean, inverse, scale)


def _normalised(x: Array, scale: Array, bias: Array, *, d: int, eps: float) -> tuple[Array, Array, Array]:
    """The result of rows, their means and inverse deviations. From the d-th on, columns are padding."""
    wide = x.astype(at_least_float32(x.dtype))
    mean = jnp.sum(wide, axis=-1, keepdims=True) / d
    centred = _inside(wide - mean, d)
    inverse = jax.lax.rsqrt(jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / d + eps)
    return centred * inverse * scale + bias, mean, inverse


def _layer_norm_bwd(_eps: float, residuals: Residuals, d_y: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residuals
    of_rows = functools.partial(_derivatives, d=x.shape[-1])
    if triton.fits_rows(x):
        outputs = [jax.ShapeDtypeStruct(shape, d_y.dtype) for shape in (x.shape, scale.shape, scale.shape)]
        d_x, d_scale, d_bias = triton.by_rows(of_rows, [x, d_y, mean, inverse], [scale], outputs, totals=2)
    else:
        d_x, d_scale, d_bias = of_rows(x, d_y, mean, inverse, _row(scale, x))
    return d_x.astype(x.dtype), d_scale.reshape(scale.shape), d_bias.reshape(scale.shape)


def _derivatives(x: Array, d_y: Array, mean: Array, inverse: Array, scale: Array, *, d: int
                 ) -> tuple[Array, Array, Array]:
    """Derivatives with respect to the rows x, the scale and the bias; the latter two are sums over all rows."""
    normal = _inside((x.astype(mean.dtype) - mean) * inverse, d)
    d_normal = d_y * scale
    mean_d = jnp.sum(d_normal, axis=-1, keepdims=True) / d
    mean_dn = jnp.sum(d_normal * normal, axis=-1, keepdims=True) / d
    rows = tuple(range(x.ndim - 1))
    return (inverse * (d_normal - mean_d - normal * mean_dn), jnp.sum(d_y * normal, axis=rows, keepdims=True),
            jnp.sum(d_y, axis=rows, keepdims=True))


def _inside(x: Array, d: int) -> Array:
    """Zero from the d-th column on."""
    return x if x.shape[-1] == d else jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) < d, x, 0)


def _row(x: Array, like: Array) -> Array:
    """[d] with as many axes as ``like`` has."""
    return x.reshape((1,) * (like.ndim - 1) + x.shape)


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)
