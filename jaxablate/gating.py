r"""k-winner-take-all gates: exactly k of U units for each row, with a gradient (docs/papers.md, Gates).

With scores x and x_(1) >= x_(2) >= ... along the last axis,

    g = (x_(k) + x_(k+1)) / 2                      threshold
    T = temperature * (x_(k) - x_(k+1)) + eps      width
    w_i = k * sigmoid((x_i - g) / T) / sum_j sigmoid((x_j - g) / T)        surrogate "sigmoid" (released code)
    w_i = k * softmax(x / T)_i                                             surrogate "softmax" (the paper's text)

`soft_top_k` is w. `hard_top_k` is the 0/1 mask of the k winners. `k_wta` is the mask forward and the gradient of w
backward, through g and T as well. All work in at least float32 whatever comes in, and return that type. They are
functions of arrays, for any framework on JAX. Derivatives are for reverse mode (`jax.grad`, `jax.vjp`) and, through
that, forward over reverse; `jax.jvp` and `jax.jacfwd` of a gate itself are refused.

Scores may be infinite. A unit with the score -inf cannot win while k others can; where x_(k+1) is -inf, or x_(k) inf,
the width T is infinite and stands for a step: units above it share the k alike, the others weigh 0, and the gradient is
0. With fewer than k finite scores, `hard_top_k` still marks k units, lower index first, and `soft_top_k` shares k among
the finite ones. (A large negative number in the place of -inf is an ordinary score: it makes T large and all weights
alike.) A row with a NaN gives gates that are NaN, and so does its gradient.

Models name their gate (`model.gate`), and `GATES` says what a name means. A gate of one's own is one call:

    gating.GATES.register(gating.Gate("mine", my_gate, binary=False))      # then ModelConfig(gate="mine")
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

from jaxablate.config import GatedModelConfig, UnitKind
from jaxablate.config.checks import require
from jaxablate.ops import triton
from jaxablate.ops.masks import nonzero_sum
from jaxablate.ops.order_statistics import Thresholds, checked_k, thresholds, winners
from jaxablate.ops.remat import kept
from jaxablate.ops.reverse_mode import reverse_mode_only
from jaxablate.ops.varying import match_varying
from jaxablate.registry import Registry
from jaxablate.types import at_least_float32

Surrogate = Literal["sigmoid", "softmax"]
Number = float | Shaped[Array | np.ndarray, ""]

# sigmoid' and exp(-|z|) are exactly 0 beyond this, in float64 too; clipping keeps 0 * inf out of the backward pass.
_SATURATED = 1e3


def soft_top_k(
    scores: Shaped[jax.typing.ArrayLike, "*rows units"],
    k: int,
    *,
    temperature: Number = 1.0,
    eps: Number = 1e-12,
    surrogate: Surrogate = "sigmoid",
) -> Float[Array, "*rows units"]:
    """Soft k-winner-take-all: weights that sum to k along the last axis (formula in the module's docstring).

    Args:
      scores: relevance of each unit, any real type.
      k: number of winners, 1 <= k < units, static.
      temperature: width of the gate in gaps between the k-th and (k+1)-th score, > 0. It may be traced, for one that
        is annealed or learned, and has a gradient; whether a traced one is positive is not checked.
      eps: added to that width, > 0, as the temperature.
      surrogate: "sigmoid" or "softmax".

    Returns:
      Weights in [0, k], float32 or float64. Where x_(k) = x_(k+1) the tied units weigh 0.5 each before normalisation
      (sigmoid), and the gradient is of the order of 1 / eps.

    Raises:
      ConfigError: k is out of range, not a whole number, or traced; another argument is out of range; or forward-mode
        differentiation is asked for.

    Example:
      >>> [round(w, 3) for w in soft_top_k(jnp.array([3., 1., 0., -2.]), k=1, temperature=0.1).tolist()]
      [0.993, 0.007, 0.0, 0.0]
    """
    return _differentiable(_soft_program, scores, k, temperature, eps, surrogate)


def hard_top_k(scores: Shaped[jax.typing.ArrayLike, "*rows units"], k: int) -> Float[Array, "*rows units"]:
    """0/1 mask of exactly k winners along the last axis, lower index first among equals; gradient zero.

    Arguments, type of the result and errors are those of `soft_top_k`.

    Example:
      >>> hard_top_k(jnp.array([1., 2., 2., 2.]), k=2).tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    x = jax.lax.stop_gradient(_at_least_float32(scores))
    return _hard_mask(x, checked_k(x, k))


def k_wta(
    scores: Shaped[jax.typing.ArrayLike, "*rows units"],
    k: int,
    *,
    temperature: Number = 1.0,
    eps: Number = 1e-12,
    surrogate: Surrogate = "sigmoid",
) -> Float[Array, "*rows units"]:
    """`hard_top_k` forward, gradient of `soft_top_k` backward (straight-through). Arguments as in `soft_top_k`.

    Example:
      >>> x = jnp.array([3., 1., 0., -2.])
      >>> k_wta(x, k=2).tolist()
      [1.0, 1.0, 0.0, 0.0]
      >>> weighted = lambda gate: lambda x: gate(x, 2) @ jnp.arange(4.)
      >>> bool((jax.grad(weighted(k_wta))(x) == jax.grad(weighted(soft_top_k))(x)).all())
      True
    """
    return _differentiable(_hard_program, scores, k, temperature, eps, surrogate)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A way to make gates from relevance scores, by the name that `model.gate` gives."""

    name: str
    function: Callable[..., jax.Array]
    """(scores [..., units], k, *, temperature, eps, surrogate) -> gates of the same shape, at least float32. The
    settings are the model's; a function that has no use for them takes ``**settings``."""
    binary: bool
    """Whether gates are zeros and ones, with exactly k ones; measures that replace gates then draw k of them."""


GATES = Registry("gate", [Gate("hard", k_wta, binary=True), Gate("soft", soft_top_k, binary=False)])
"""Gates that a model can have; other packages add to it (`jaxablate.registry`)."""


def gate(config: GatedModelConfig, kind: UnitKind, layer: int) -> Callable[..., jax.Array]:
    """The gate of one layer: scores [..., units] -> gates of the same shape; ``k=`` replaces the layer's own k.

    Example:
      >>> config = GatedModelConfig(d_model=4, n_heads=2, n_layers=1, ablation="local", k_attention=2, k_neurons=1)
      >>> gate(config, "attention", 0)(jnp.array([3., 1., 0., -2.])).tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    temperature = config.temperature_attention if kind == "attention" else config.temperature_neurons
    return functools.partial(GATES[config.gate].function, k=config.layer_k(kind, layer), temperature=temperature,
                             eps=config.gate_eps, surrogate=config.surrogate)


def _at_least_float32(scores: jax.typing.ArrayLike) -> Array:
    scores = jnp.asarray(scores)
    return scores.astype(at_least_float32(scores.dtype))


def _differentiable(
    gate: Callable[..., Any], scores: jax.typing.ArrayLike, k: int, temperature: Number, eps: Number, surrogate: str
) -> Array:
    """Checks the arguments of a gate and calls it."""
    x = _at_least_float32(scores)
    k = checked_k(x, k)
    for name, value in (("temperature", temperature), ("eps", eps)):
        require(jnp.ndim(value) == 0, f"{name} has the shape {jnp.shape(value)}; give a number")
        require(isinstance(value, Tracer) or bool(value > 0), f"{name}={value} must be positive")
    require(surrogate in ("sigmoid", "softmax"), f"surrogate={surrogate!r} must be 'sigmoid' or 'softmax'")
    x, width = match_varying((x, _Width(jnp.asarray(temperature, x.dtype), jnp.asarray(eps, x.dtype))))
    with reverse_mode_only("gates"):
        return gate(x, k, width, surrogate)


class _Width(NamedTuple):
    """What the width of a gate is made of."""

    temperature: Array
    eps: Array


_Residuals = tuple[Array, Thresholds, _Width]


# By hand: k = 8 of 512 in 1,024 rows took 10 ms forward and backward on CPU, JAX's own derivative through `lax.top_k`
# 98 ms; and the scores alone are kept for the backward pass, not three arrays of their size.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 3))
def _soft(x: Array, k: int, width: _Width, surrogate: str) -> Array:
    return _weights(x, thresholds(x, k), k, width, surrogate)


def _soft_fwd(x: Array, k: int, width: _Width, surrogate: str) -> tuple[Array, _Residuals]:
    t = kept(thresholds(x, k))
    return _weights(x, t, k, width, surrogate), (x, t, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 3))
def _hard(x: Array, k: int, _width: _Width, _surrogate: str) -> Array:
    return _mask(x, thresholds(x, k))


def _hard_fwd(x: Array, k: int, width: _Width, _surrogate: str) -> tuple[Array, _Residuals]:
    t = kept(thresholds(x, k))
    return _mask(x, t), (x, t, width)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _hard_mask(x: Array, k: int) -> Array:
    return _mask(x, thresholds(x, k))


def _mask(x: Array, t: Thresholds) -> Array:
    """Zeros and ones, NaN in a row with a NaN."""
    return jnp.where(jnp.isnan(t.kth), t.kth, winners(x, t).astype(x.dtype))


def _finite(t: Thresholds) -> tuple[Thresholds, Array]:
    """Thresholds without infinities, and where the gate is a step: both values then are a number between the finite
    scores and the infinite ones, from which every score is far."""
    far = float(jnp.finfo(t.kth.dtype).max) / 2
    above = t.kth == jnp.inf
    step = above | (t.next == -jnp.inf)
    between = jnp.where(above, far, -far).astype(t.kth.dtype)
    return t._replace(kth=jnp.where(step, between, t.kth), next=jnp.where(step, between, t.next)), step


def _standardised(x: Array, t: Thresholds, step: Array, width: _Width, surrogate: str) -> tuple[Array, Array]:
    """z = (x - g) / T and T; z is clipped where the surrogate is saturated. A softmax ignores g: its z are <= 0."""
    scale = width.temperature * (t.kth - t.next) + width.eps
    if surrogate == "sigmoid":
        return jnp.clip((x - 0.5 * (t.kth + t.next)) / scale, -_SATURATED, _SATURATED), scale
    most = float(jnp.finfo(x.dtype).max)
    centre = jnp.clip(jnp.max(x, axis=-1, keepdims=True), -most, most)
    z = jnp.clip((x - centre) / scale, -_SATURATED, _SATURATED)
    return jnp.where(step, jnp.where(x > t.kth, 0, -_SATURATED), z), scale


def _weights(x: Array, t: Thresholds, k: int, width: _Width, surrogate: str) -> Array:
    z, _ = _standardised(x, *_finite(t), width, surrogate)
    if surrogate == "softmax":
        return k * jax.nn.softmax(z, axis=-1)
    s = jax.nn.sigmoid(z)
    return s * (k / nonzero_sum(s, axis=-1, keepdims=True))


def _backward(k: int, surrogate: str, residuals: _Residuals, cotangent: Array) -> tuple[Array, _Width]:
    """Derivatives with respect to the scores, and to the width's two numbers, which are sums over all rows."""
    x, t, width = residuals
    of_rows = functools.partial(_row_derivatives, k=k, surrogate=surrogate)
    if triton.fits_rows(x):
        one = jax.ShapeDtypeStruct(t.kth.shape, x.dtype)
        d_x, *d_width = triton.by_rows(of_rows, [x, cotangent, *t], [*width], [jax.ShapeDtypeStruct(x.shape, x.dtype),
                                                                               one, one], fill=[-jnp.inf, *[0.0] * 5])
    else:
        d_x, *d_width = of_rows(x, cotangent, *t, *width)
    return d_x, _Width(*(jnp.sum(d) for d in d_width))


def _row_derivatives(x: Array, cotangent: Array, kth: Array, following: Array, kth_index: Array, next_index: Array,
                     temperature: Array, eps: Array, *, k: int, surrogate: str) -> tuple[Array, Array, Array]:
    """Closed form: dL/dz through the normalisation, then to x directly and to the two order statistics.

    And, for each row, to the temperature and to eps.
    """
    width = _Width(temperature, eps)
    t, step = _finite(Thresholds(kth, following, kth_index, next_index))
    z, scale = _standardised(x, t, step, width, surrogate)
    if surrogate == "sigmoid":  # the same z, rounded alike on both sides of g: the sums below cancel over 1 / T
        z = jnp.clip(0.5 * ((x - t.kth) + (x - t.next)) / scale, -_SATURATED, _SATURATED)
    if surrogate == "softmax":
        p = jax.nn.softmax(z, axis=-1)
        d_z = k * p * (cotangent - jnp.sum(p * cotangent, axis=-1, keepdims=True))
    else:
        s = jax.nn.sigmoid(z)
        sum_s = nonzero_sum(s, axis=-1, keepdims=True)
        mean = jnp.sum(s * cotangent, axis=-1, keepdims=True) / sum_s
        d_z = (k / sum_s) * s * (1 - s) * (cotangent - mean)
    d_x = d_z / jnp.where(step, jnp.inf, scale)
    # z = (x - g) / T depends on x_(k) and x_(k+1) through g, half each, and through T, with opposite signs.
    d_threshold = -jnp.sum(d_x, axis=-1, keepdims=True)
    d_scale = -jnp.sum(d_x * z, axis=-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    d_kth = 0.5 * d_threshold + width.temperature * d_scale
    d_next = 0.5 * d_threshold - width.temperature * d_scale
    d_x = d_x + jnp.where(index == t.kth_index, d_kth, 0) + jnp.where(index == t.next_index, d_next, 0)
    return d_x, d_scale * (t.kth - t.next), d_scale


_soft.defvjp(_soft_fwd, _backward)
_hard.defvjp(_hard_fwd, _backward)

# Outside of `jax.jit` a gate is one program, not one an operation; inside, ``inline`` leaves everything as it is.
_soft_program, _hard_program = (jax.jit(gate, static_argnums=(1, 3), inline=True) for gate in (_soft, _hard))
