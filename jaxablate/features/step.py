"""The loss of sparse autoencoders, and one optimiser step of one autoencoder.

With latents f and reconstruction y of activations x [D], in the words of `jaxablate.features.sae`,

    loss = mean over tokens of |x - y|^2  +  l1 * mean over tokens of sum_s f_s w_s  +  auxiliary

The penalty's weights w_s are 1 with a unit decoder and |W_dec_s| with a free one; which architecture has the penalty
and which the auxiliary loss, `jaxablate.features.sae` says.

At D = 128, S = 2048 and M = 4096 tokens a step is five matrix products of 2 M D S operations each, 10.7 GFLOP: encode,
decode, the two matrices' gradients, the latents' gradient. What else costs time is passes over [M, S] arrays, 34 MB
each. So the tokens go through in chunks whose latents stay in the caches, each chunk forward and backward at once:
latents of a batch are never in memory together. Only batchtopk looks at all pre-activations first.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxablate.errors import ConfigError
from jaxablate.features.config import SaeTrainConfig
from jaxablate.features.sae import AutoencoderConfig, SparseAutoencoder, explained, init, top_k, variances
from jaxablate.ops.varying import match_varying

_CHUNK_LATENTS = 1 << 20
"""Latents of a chunk, as a number of floats: 4 MB, which the caches of a few cores hold."""


@flax.struct.dataclass
class SaeState:
    """One autoencoder in training."""

    sae: Any
    """`SparseAutoencoder` in the scaled space, decoder as the last step left it."""
    first: Any
    """Adam's mean gradient; None with beta1 = 0, where it is the gradient itself."""
    second: Any
    """Adam's mean squared gradient."""
    since_fired: Any
    """int32 [S], steps since a latent was last active for any token."""


class LossTerms(NamedTuple):
    """Loss of one batch and its parts, each a scalar; l1 and auxiliary times their coefficients."""

    total: jax.Array
    mse: jax.Array
    """Mean over tokens of the squared error, summed over D."""
    l1: jax.Array
    auxiliary: jax.Array


class StepMetrics(NamedTuple):
    """Figures of the weights before a step, each a scalar, or stacked over steps and runs."""

    loss: Any
    mse: Any
    l1: Any
    auxiliary: Any
    """Both times their coefficients."""
    l0: Any
    """Active latents a token."""
    explained_variance: Any
    """1 - sum |x - y|^2 / sum |x - mean x|^2, sums over the batch; NaN where x does not vary, as is the next one."""
    explained_variance_saelens: Any
    """Mean over tokens of 1 - |x - y|^2 / |x - mean x|^2: SAELens 5.1.0's, which few tokens near the mean decide."""
    grad_norm: Any
    """Global, before clipping and projection."""
    learning_rate: Any
    l1_coefficient: Any
    dead: Any
    """Latents that have not fired for `dead_steps` steps, this one included."""


class _Sums(NamedTuple):
    """What the chunks of a batch leave behind, added up."""

    active: jax.Array
    """int32 [S], tokens for which a latent is active."""
    l1: jax.Array
    auxiliary: jax.Array
    """Parts of the loss, times their coefficients."""


def losses(sae: SparseAutoencoder, x: Float[Array, "m d"], l1: Any = 0.0, dead: Bool[Array, " s"] | None = None
           ) -> LossTerms:
    """The loss of a batch of scaled activations; a unit decoder has norm 1 already.

    ``dead`` are the latents that the auxiliary loss of topk and batchtopk is to revive.

    Raises:
      ConfigError: the architecture cannot be trained.
    """
    check_trainable(sae.config)
    total, (sums, squares) = _chunk_loss(sae, x, _cut(sae, x[None]), jnp.asarray(l1, x.dtype), dead, len(x))
    return LossTerms(total, jnp.mean(squares), sums.l1, sums.auxiliary)


def gradient(sae: SparseAutoencoder, x: Float[Array, "m d"], l1: Any = 0.0, dead: Bool[Array, " s"] | None = None, *,
             chunk: int = 0) -> SparseAutoencoder:
    """Gradient of `losses`, arguments as there, in chunks of at most ``chunk`` tokens; ``threshold`` gets zeros."""
    dead = jnp.zeros(sae.config.d_sae, bool) if dead is None else dead
    return _forward_backward(sae, x, jnp.asarray(l1, x.dtype), dead, chunk)[0]


def check_trainable(config: AutoencoderConfig) -> None:
    """Raises ConfigError for an autoencoder that has no training here."""
    if config.normalize != "none":
        raise ConfigError(f"normalize={config.normalize!r} can be used but not trained; normalise the vectors first, "
                          "and train on those")
    if config.kind.training is None:
        raise ConfigError(f"architecture={config.architecture!r} can be used but not trained; train standard, topk or "
                          "batchtopk")


def init_state(key: jax.Array, config: AutoencoderConfig, train: SaeTrainConfig) -> SaeState:
    """A fresh autoencoder and empty Adam moments."""
    return first_state(init(key, config), train)


def first_state(sae: SparseAutoencoder, train: SaeTrainConfig) -> SaeState:
    """An autoencoder before its first step, with empty Adam moments."""
    first, second = (jax.tree.map(jnp.zeros_like, sae) for _ in range(2))
    return SaeState(sae, first if train.beta1 > 0 else None, second, jnp.zeros(sae.config.d_sae, jnp.int32))


def learning_rate(step: jax.Array, train: SaeTrainConfig) -> jax.Array:
    """Rate of step 0, 1, ...: (step + 1) / W while it warms up, then 1, then (steps - step) / D in the last D steps.

    As in SAELens, so the first step of the decay still has the full rate and no step has rate 0.
    """
    warm, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    rising = (step + 1) / max(warm, 1)
    falling = (train.steps - step) / max(decay, 1)
    return train.rate * jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def l1_coefficient(step: jax.Array, l1: jax.Array | float, train: SaeTrainConfig) -> jax.Array:
    """Coefficient of step 0, 1, ...: l1 * min(step / W, 1), W the warm-up's steps; so 0 first, as in SAELens."""
    warm = round(train.l1_warmup * train.steps)
    return l1 * (jnp.minimum(step / warm, 1.0) if warm else jnp.ones(()))


def train_step(state: SaeState, x: Float[Array, "m d"], step: jax.Array, l1: jax.Array, train: SaeTrainConfig
               ) -> tuple[SaeState, StepMetrics]:
    """One step: normalise the decoder, gradient, clip, project, Adam, dead counters; in SAELens's order.

    ``x`` are scaled activations, ``step`` is 0, 1, ..., and ``l1`` the run's final coefficient. Metrics are those of
    the weights before the step. `jax.vmap` or `jax.lax.map` takes several autoencoders.
    """
    config: AutoencoderConfig = state.sae.config
    sae = state.sae.with_unit_decoder() if config.decoder == "unit" else state.sae
    coefficient = l1_coefficient(step, l1, train).astype(config.dtype)
    rate = learning_rate(step, train).astype(config.dtype)
    dead = state.since_fired > train.dead_steps
    grad, sums, squares, cut = _forward_backward(sae, x, coefficient, dead, train.chunk)
    grad_norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grad)))
    since_fired = jnp.where(sums.active > 0, 0, state.since_fired + 1)
    mse, variance = jnp.mean(squares), variances(x, jnp.mean(x, axis=0))
    metrics = StepMetrics(
        loss=mse + sums.l1 + sums.auxiliary, mse=mse, l1=sums.l1, auxiliary=sums.auxiliary,
        l0=jnp.sum(sums.active) / len(x),
        explained_variance=explained(jnp.sum(squares), jnp.sum(variance)),
        explained_variance_saelens=jnp.mean(explained(squares, variance)),
        grad_norm=grad_norm, learning_rate=rate, l1_coefficient=coefficient,
        dead=jnp.sum(since_fired > train.dead_steps),
    )
    if train.clip_norm is not None:
        factor = jnp.minimum(train.clip_norm / (grad_norm + 1e-6), 1.0)  # 1e-6 as PyTorch's clip_grad_norm_ has it
        grad = jax.tree.map(lambda g: g * factor, grad)
    if config.decoder == "unit" and config.project_gradient:
        along = jnp.sum(grad.W_dec * sae.W_dec, axis=-1, keepdims=True)
        grad = dataclasses.replace(grad, W_dec=grad.W_dec - along * sae.W_dec)
    updated, first, second = _adam(sae, grad, state, step, rate, train)
    if cut is not None:
        moved = sae.threshold + config.threshold_rate * (cut - sae.threshold)
        updated = dataclasses.replace(updated, threshold=jnp.where(cut > 0, moved, sae.threshold))
    return SaeState(updated, first, second, since_fired), metrics


def _chunk_loss(sae: SparseAutoencoder, x: jax.Array, cut: jax.Array | None, l1: jax.Array, dead: jax.Array | None,
                tokens: int) -> tuple[jax.Array, tuple[_Sums, jax.Array]]:
    """A chunk's part of the loss of a batch of `tokens` tokens; the definition that everything else derives from."""
    config, kind = sae.config, sae.config.kind
    assert kind.training is not None
    pre = sae.pre_activations(x)
    latents = kind.training(pre, cut, config)
    error = sae.decode(latents) - x
    squares = jnp.sum(error * error, axis=-1)
    penalty = auxiliary = jnp.zeros((), x.dtype)
    if kind.penalty is not None:
        penalty = l1 / tokens * jnp.sum(kind.penalty(latents, sae.penalty_weights()))
    if kind.revives and dead is not None:
        # The D / 2 largest dead latents explain what the live ones left over, which itself gets no gradient. The
        # coefficient is less where fewer than D / 2 latents are dead, as in SAELens (Gao et al. 2024, A.2).
        most = config.d_in // 2
        revived = top_k(jnp.where(dead, pre, -jnp.inf), min(most, config.d_sae - 1))
        share = jnp.minimum(jnp.sum(dead) / max(most, 1), 1.0).astype(x.dtype)
        left = revived @ sae.W_dec + jax.lax.stop_gradient(error)
        auxiliary = config.auxiliary * share / tokens * jnp.sum(left * left)
    sums = _Sums(jnp.sum(latents > 0, axis=0, dtype=jnp.int32), penalty, auxiliary)
    return jnp.sum(squares) / tokens + penalty + auxiliary, (sums, squares)


def _cut(sae: SparseAutoencoder, parts: jax.Array) -> jax.Array | None:
    """What the architecture chooses latents by, from a whole batch [chunks, m, D]."""
    kind = sae.config.kind
    return None if kind.cut is None else jax.lax.stop_gradient(kind.cut(jax.lax.map(sae.pre_activations, parts),
                                                                        sae.config))


_Backward = tuple[SparseAutoencoder, _Sums, jax.Array, jax.Array | None]
"""Gradient of a batch's loss, sums over its chunks, each token's squared error [M], and the `Architecture.cut`."""


def _forward_backward(sae: SparseAutoencoder, x: jax.Array, l1: jax.Array, dead: jax.Array, chunk: int) -> _Backward:
    """By chunks of at most ``chunk`` tokens; where it is 0, all at once but on CPU, whose caches are to hold them."""
    check_trainable(sae.config)
    most = max(_CHUNK_LATENTS // sae.config.d_sae, 1)
    on_cpu, elsewhere = (functools.partial(_by_chunks, count=_chunk_count(len(x), chunk or size))
                         for size in (most, len(x)))
    if on_cpu.keywords == elsewhere.keywords:
        return on_cpu(sae, x, l1, dead)
    return jax.lax.platform_dependent(sae, x, l1, dead, cpu=on_cpu, default=elsewhere)


def _by_chunks(sae: SparseAutoencoder, x: jax.Array, l1: jax.Array, dead: jax.Array, *, count: int) -> _Backward:
    parts = x.reshape(count, -1, sae.config.d_in)
    cut, zero = _cut(sae, parts), jnp.zeros((), x.dtype)
    sums = _Sums(jnp.zeros(sae.b_enc.shape, jnp.int32), zero, zero)
    nothing = match_varying(jax.tree.map(jnp.zeros_like, sae), like=sae), match_varying(sums, like=(sae, x, l1, dead))

    def scanned(dead: jax.Array | None):
        def body(total: Any, part: jax.Array):
            grad, (sums, squares) = jax.grad(_chunk_loss, has_aux=True)(sae, part, cut, l1, dead, len(x))
            return jax.tree.map(jnp.add, total, (grad, sums)), squares

        return lambda: jax.lax.scan(body, nothing, parts)

    if sae.config.kind.revives and sae.config.auxiliary > 0:
        (grad, sums), squares = jax.lax.cond(jnp.any(dead), scanned(dead), scanned(None))
    else:
        (grad, sums), squares = scanned(None)()
    return grad, sums, squares.reshape(-1), cut


def _chunk_count(tokens: int, chunk: int) -> int:
    """Equal parts of a batch, the fewest that hold at most `chunk` tokens each."""
    return next(n for n in range(-(-tokens // min(chunk, tokens)), tokens + 1) if tokens % n == 0)


def _adam(sae: SparseAutoencoder, grad: SparseAutoencoder, state: SaeState, step: jax.Array, rate: jax.Array,
          train: SaeTrainConfig) -> tuple[SparseAutoencoder, SparseAutoencoder | None, SparseAutoencoder]:
    """Adam as PyTorch has it: eps outside the root, bias corrections 1 - beta^t with t = step + 1.

    By expm1, for 1 - 0.999^t would lose four digits of a float32 in the first steps.
    """
    count = (step + 1).astype(rate.dtype)

    def correction(beta: float):
        return -jnp.expm1(count * math.log(beta))

    second = jax.tree.map(lambda v, g: train.beta2 * v + (1 - train.beta2) * g * g, state.second, grad)
    first = state.first
    if first is not None:
        first = jax.tree.map(lambda m, g: train.beta1 * m + (1 - train.beta1) * g, first, grad)
        rate = rate / correction(train.beta1)
    root = jnp.sqrt(correction(train.beta2)) if train.beta2 > 0 else 1.0

    def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p - rate * m / (jnp.sqrt(v) / root + train.adam_eps)

    return jax.tree.map(moved, sae, grad if first is None else first, second), first, second
