"""AdamW with clipping and a warm-up / cosine schedule, from a configuration."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxablate.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that follows ``count`` earlier ones, in a run of ``steps`` updates.

    Warm-up is linear and never zero: update ``s`` (from 0) of ``w`` has ``peak * (s + 1) / w``. Cosine then falls from
    the peak over the remaining ``n = steps - w`` updates: ``peak * (f + (1 - f) * (1 + cos(pi * s / n)) / 2)``, so that
    ``f = final_fraction`` is reached as the last update ends. A run shorter than its warm-up ends within it.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        main = _of_floats(
            optax.cosine_decay_schedule(peak, max(1, steps - config.warmup_steps), alpha=config.final_fraction))
    if config.warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def _of_floats(schedule: optax.Schedule) -> optax.Schedule:
    """The schedule with its count as a float: optax would promote an integer, which JAX's strict mode refuses."""
    return lambda count: schedule(jnp.asarray(count, float))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; every parameter decays alike, as in the papers' PyTorch code."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        clip,
        _scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
    )


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with exact bias corrections.

    optax computes 1 - b2**t in float32, which for b2 = 0.999 and t = 1 is off by 1.3e-5 of itself, an error of the
    first steps' length that the reference (PyTorch, whose scalars are float64) does not make.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, optax.tree.zeros_like(params))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        first, second = _bias_correction(b1, count), _bias_correction(b2, count)
        scaled = jax.tree.map(lambda m, v: (m / first.astype(m.dtype)) / (jnp.sqrt(v / second.astype(v.dtype)) + eps),
                              mu, nu)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(beta: float, count: jax.Array) -> jax.Array:
    """1 - beta**count, accurate to the last bits also where it is small."""
    return -jnp.expm1(count.astype(float) * math.log(beta)) if beta > 0 else jnp.ones(())


def nonzero_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule | None:
    """Part of each weight matrix that is not zero after the update that follows ``count`` earlier ones, falling
    linearly over the first ``nonzero_anneal * steps`` updates; None where nothing is set to zero."""
    if config.nonzero_fraction == 1:
        return None
    updates = max(config.nonzero_anneal * steps, 1.0)
    return lambda count: 1 - (1 - config.nonzero_fraction) * jnp.minimum((jnp.asarray(count, float) + 1) / updates, 1.0)


def keep_largest(params: optax.Params, fraction: jax.Array) -> optax.Params:
    """Parameters of which only the largest of each matrix, by magnitude, are not zero (Gao et al. 2025).

    A matrix is a parameter of two and more axes; vectors stay. ``round(fraction * size)`` of its numbers are left, at
    least one, and more only where they tie. After each update of a model: the gradient and the optimiser's moments are
    those of all numbers, so that one at zero may come back.
    """
    return jax.tree.map(lambda x: x if x.ndim < 2 else jnp.where(_magnitudes(x) >= _least(x, fraction), x, 0), params)


def _magnitudes(x: jax.Array) -> jax.Array:
    """The bits of float32's absolute values, whole numbers in the same order."""
    return jax.lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32)


def _least(x: jax.Array, fraction: jax.Array) -> jax.Array:
    """The magnitude of the last one that stays, bit by bit: 31 counts in place of a sort of the whole matrix."""
    bits, k = _magnitudes(x), jnp.maximum(jnp.round(fraction * x.size), 1).astype(jnp.int32)

    def halved(i: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | jnp.left_shift(jnp.int32(1), 30 - jnp.int32(i))
        return jnp.where(jnp.sum(bits >= higher, dtype=jnp.int32) >= k, higher, least)

    return jax.lax.fori_loop(0, 31, halved, jnp.int32(0))
