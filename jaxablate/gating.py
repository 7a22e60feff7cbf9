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

Models name their gate (`model.gate`), and `GATES` says what a name means. A gate of one's own is one call:

    gating.GATES.register(gating.Gate("mine", my_gate, binary=False))      # then ModelConfig(gate="mine")
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxablate.config import GatedModelConfig, UnitKind
from jaxablate.config.checks import require
from jaxablate.errors import ConfigError
from jaxablate.ops.order_statistics import Thresholds, checked_k, thresholds, winners
from jaxablate.registry import Registry

Surrogate = Literal["sigmoid", "softmax"]

# sigmoid' and exp(-|z|) are exactly 0 beyond this, in float64 too; clipping keeps 0 * inf out of the backward pass.
_SATURATED = 1e3


def soft_top_k(
    scores: Shaped[jax.typing.ArrayLike, "*rows units"],
    k: int,
    *,
    temperature: float = 1.0,
    eps: float = 1e-12,
    surrogate: Surrogate = "sigmoid",
) -> Float[Array, "*rows units"]:
    """Soft k-winner-take-all: weights that sum to k along the last axis (formula in the module's docstring).

    Args:
      scores: relevance of each unit, any real type.
      k: number of winners, 1 <= k < units, static.
      temperature: width of the gate in gaps between the k-th and (k+1)-th score, > 0.
      eps: added to that width, > 0.
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
    return _differentiable(_soft, scores, k, temperature, eps, surrogate)


def hard_top_k(scores: Shaped[jax.typing.ArrayLike, "*rows units"], k: int) -> Float[Array, "*rows units"]:
    """0/1 mask of exactly k winners along the last axis, lower index first among equals; gradient zero.

    Arguments, type of the result and errors are those of `soft_top_k`.

    Example:
      >>> hard_top_k(jnp.array([1., 2., 2., 2.]), k=2).tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    x = jax.lax.stop_gradient(_at_least_float32(scores))
    return winners(x, thresholds(x, k)).astype(x.dtype)


def k_wta(
    scores: Shaped[jax.typing.ArrayLike, "*rows units"],
    k: int,
    *,
    temperature: float = 1.0,
    eps: float = 1e-12,
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
    return _differentiable(_hard, scores, k, temperature, eps, surrogate)


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
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _differentiable(
    gate: Callable[..., Any], scores: jax.typing.ArrayLike, k: int, temperature: float, eps: float, surrogate: str
) -> Array:
    """Checks the arguments of `_soft` or `_hard` and calls it."""
    x = _at_least_float32(scores)
    k = checked_k(x, k)
    require(temperature > 0 and eps > 0, f"temperature={temperature} and eps={eps} must be positive")
    require(surrogate in ("sigmoid", "softmax"), f"surrogate={surrogate!r} must be 'sigmoid' or 'softmax'")
    try:
        return gate(x, k, (float(temperature), float(eps)), surrogate)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ConfigError("gates have no forward-mode derivative (jax.jvp, jax.jacfwd, jax.linearize); take a "
                          "reverse-mode one (jax.grad, jax.vjp, jax.jacrev)") from error


# By hand: k = 8 of 512 in 1,024 rows took 10 ms forward and backward on CPU, JAX's own derivative through `lax.top_k`
# 98 ms; and the scores alone are kept for the backward pass, not three arrays of their size.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _soft(x: Array, k: int, width: tuple[float, float], surrogate: str) -> Array:
    return _weights(x, thresholds(x, k), k, width, surrogate)


def _soft_fwd(x: Array, k: int, width: tuple[float, float], surrogate: str) -> tuple[Array, tuple[Array, Thresholds]]:
    t = thresholds(x, k)
    return _weights(x, t, k, width, surrogate), (x, t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _hard(x: Array, k: int, _width: tuple[float, float], _surrogate: str) -> Array:
    return winners(x, thresholds(x, k)).astype(x.dtype)


def _hard_fwd(x: Array, k: int, _width: tuple[float, float], _surrogate: str
              ) -> tuple[Array, tuple[Array, Thresholds]]:
    t = thresholds(x, k)
    return winners(x, t).astype(x.dtype), (x, t)


def _standardised(x: Array, t: Thresholds, width: tuple[float, float], surrogate: str) -> tuple[Array, Array]:
    """z = (x - g) / T and T; z is clipped where the surrogate is saturated. A softmax ignores g: its z are <= 0."""
    temperature, eps = width
    scale = temperature * (t.kth - t.next) + eps
    centre = jnp.max(x, axis=-1, keepdims=True) if surrogate == "softmax" else 0.5 * (t.kth + t.next)
    return jnp.clip((x - centre) / scale, -_SATURATED, _SATURATED), scale


def _weights(x: Array, t: Thresholds, k: int, width: tuple[float, float], surrogate: str) -> Array:
    z, _ = _standardised(x, t, width, surrogate)
    if surrogate == "softmax":
        return k * jax.nn.softmax(z, axis=-1)
    s = jax.nn.sigmoid(z)
    return s * (k / jnp.sum(s, axis=-1, keepdims=True))


def _backward(
    k: int, width: tuple[float, float], surrogate: str, residuals: tuple[Array, Thresholds], cotangent: Array
) -> tuple[Array]:
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
    # z = (x - g) / T depends on x_(k) and x_(k+1) through g, half each, and through T, with opposite signs.
    d_threshold = -jnp.sum(d_x, axis=-1, keepdims=True)
    d_scale = -jnp.sum(d_x * z, axis=-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    d_kth = 0.5 * d_threshold + width[0] * d_scale
    d_next = 0.5 * d_threshold - width[0] * d_scale
    return (d_x + jnp.where(index == t.kth_index, d_kth, 0) + jnp.where(index == t.next_index, d_next, 0),)


_soft.defvjp(_soft_fwd, _backward)
_hard.defvjp(_hard_fwd, _backward)
