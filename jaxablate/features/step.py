"""One optimiser step of one autoencoder, its gradient written by hand.

At D = 128, S = 2048 and M = 4096 tokens a step is five matrix products of 2 M D S operations each, 10.7 GFLOP: encode,
decode, the two matrices' gradients, the latents' gradient; nobody asks for the input's. What else costs time is passes
over [M, S] arrays, 34 MB each. So the tokens go through in chunks whose latents stay in the caches, each chunk
forward and backward at once: latents are never written to memory, and the gradient of the loss needs no second look.
batchtopk must see all pre-activations before it knows which to keep; it holds them, and its backward pass is the same.
"""

import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxablate.features import sae as ae
from jaxablate.features.config import AutoencoderConfig, SaeTrainConfig
from jaxablate.features.sae import Autoencoder

# Latents of a chunk, as a number of floats: 4 MB, which the caches of a few cores hold.
_CHUNK_LATENTS = 1 << 20


@flax.struct.dataclass
class SaeState:
    """One autoencoder in training."""

    sae: Autoencoder
    """In the scaled space, decoder as the last step left it."""
    first: Autoencoder | None
    """Adam's mean gradient; None with beta1 = 0, where it is the gradient itself."""
    second: Autoencoder
    """Adam's mean squared gradient."""
    since_fired: jax.Array
    """int32 [S], steps since a latent was last active for any token."""


class StepMetrics(NamedTuple):
    """Figures of one step, each a scalar, of the weights before it."""

    loss: jax.Array
    mse: jax.Array
    l1: jax.Array
    """Times its coefficient."""
    auxiliary: jax.Array
    """Times its coefficient."""
    l0: jax.Array
    """Active latents a token."""
    explained_variance: jax.Array
    """1 - sum |x - y|^2 / sum |x - mean x|^2, sums over the batch."""
    explained_variance_saelens: jax.Array
    """Mean over tokens of 1 - |x - y|^2 / |x - mean x|^2: SAELens 5.1.0's, which few tokens near the mean decide."""
    grad_norm: jax.Array
    """Global, before clipping and projection."""
    learning_rate: jax.Array
    l1_coefficient: jax.Array
    dead: jax.Array
    """Latents that have not fired for `dead_steps` steps, this one included."""


class _Sums(NamedTuple):
    """What a chunk leaves behind, to be added up over the batch."""

    grad: Autoencoder
    active: jax.Array
    """int32 [S], tokens for which a latent is active."""
    latents: jax.Array
    """[S], sum of a latent over tokens."""
    auxiliary: jax.Array
    """The auxiliary loss, times its coefficient."""


class _Batch(NamedTuple):
    """One batch, forward and backward."""

    sums: _Sums
    squares: jax.Array
    """[M] squared error of each token."""
    least: jax.Array | None
    """batchtopk: the smallest latent that was kept; 0 where none was."""


def init_state(key: jax.Array, config: AutoencoderConfig, train: SaeTrainConfig) -> SaeState:
    """A fresh autoencoder and empty Adam moments."""
    sae = ae.init(key, config)
    first, second = (jax.tree.map(jnp.zeros_like, sae) for _ in range(2))
    return SaeState(sae, first if train.beta1 > 0 else None, second, jnp.zeros(config.d_sae, jnp.int32))


def learning_rate(step: jax.Array, train: SaeTrainConfig) -> jax.Array:
    """Of a step (0, 1, ...): (step + 1) / W while it warms up, then 1, then (steps - step) / D in the last D steps.

    As in SAELens, so the first step of the decay still has the full rate and no step has rate 0.
    """
    warm, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    rising = (step + 1) / max(warm, 1)
    falling = (train.steps - step) / max(decay, 1)
    return train.learning_rate * jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def l1_coefficient(step: jax.Array, l1: jax.Array | float, train: SaeTrainConfig) -> jax.Array:
    """Of a step (0, 1, ...): l1 * min(step / W, 1), W the warm-up's steps; so 0 in the first one, as in SAELens."""
    warm = round(train.l1_warmup * train.steps)
    return l1 * (jnp.minimum(step / warm, 1.0) if warm else jnp.ones(()))


def train_step(
    state: SaeState, x: jax.Array, step: jax.Array, l1: jax.Array, config: AutoencoderConfig, train: SaeTrainConfig
) -> tuple[SaeState, StepMetrics]:
    """One step: normalise the decoder, gradient, clip, project, Adam, dead counters; in SAELens's order.

    Args:
      state: of one autoencoder; `jax.vmap` or `jax.lax.map` takes several.
      x: [M, D] scaled activations.
      step: 0, 1, ...
      l1: the run's final L1 coefficient.
      config, train: static settings.

    Returns:
      The state after the step, and the metrics of the weights before it.
    """
    sae = ae.with_unit_decoder(state.sae) if config.decoder == "unit" else state.sae
    dtype = jnp.dtype(config.dtype)
    coefficient = l1_coefficient(step, l1, train).astype(dtype)
    rate = learning_rate(step, train).astype(dtype)
    dead = state.since_fired > train.dead_steps
    batch = _forward_backward(sae, x, coefficient, dead, config, train.chunk)
    grad, grad_norm = _finished_gradient(batch.sums, sae, x.shape[0], coefficient, config)
    since_fired = jnp.where(batch.sums.active > 0, 0, state.since_fired + 1)
    metrics = _metrics(sae, x, batch, coefficient, config)._replace(
        grad_norm=grad_norm, learning_rate=rate, dead=jnp.sum(since_fired > train.dead_steps)
    )
    if train.clip_norm is not None:
        # 1e-6 as PyTorch's clip_grad_norm_ has it.
        factor = jnp.minimum(train.clip_norm / (grad_norm + 1e-6), 1.0)
        grad = jax.tree.map(lambda g: g * factor, grad)
    if config.decoder == "unit" and config.project_gradient:
        along = jnp.sum(grad.W_dec * sae.W_dec, axis=-1, keepdims=True)
        grad = grad.replace(W_dec=grad.W_dec - along * sae.W_dec)
    updated, first, second = _adam(sae, grad, state, step, rate, train)
    if batch.least is not None:
        moved = sae.threshold + config.threshold_rate * (batch.least - sae.threshold)
        updated = updated.replace(threshold=jnp.where(batch.least > 0, moved, sae.threshold))
    return SaeState(updated, first, second, since_fired), metrics


def gradient(
    sae: Autoencoder, x: jax.Array, l1: jax.Array, config: AutoencoderConfig, dead: jax.Array | None = None,
    *, chunk: int = 0,
) -> Autoencoder:
    """Gradient of `jaxablate.features.sae.losses`, arguments as there; `threshold` gets zeros."""
    dead = jnp.zeros(config.d_sae, bool) if dead is None else dead
    l1 = jnp.asarray(l1, config.dtype)
    sums = _forward_backward(sae, x, l1, dead, config, chunk).sums
    return _finished_gradient(sums, sae, x.shape[0], l1, config)[0]


def _chunk_count(tokens: int, config: AutoencoderConfig, chunk: int) -> int:
    """Equal parts of a batch, the fewest that hold at most `chunk` tokens each; one part off the CPU."""
    if chunk == 0:
        chunk = max(_CHUNK_LATENTS // config.d_sae, 1) if jax.default_backend() == "cpu" else tokens
    return next(n for n in range(-(-tokens // min(chunk, tokens)), tokens + 1) if tokens % n == 0)


def _forward_backward(sae, x, l1, dead, config: AutoencoderConfig, chunk: int) -> _Batch:
    ae.check_trainable(config)
    tokens = x.shape[0]
    parts = x.reshape(_chunk_count(tokens, config, chunk), -1, config.d_in)
    penalty = l1 / tokens * ae.penalty_weights(sae, config) if config.architecture == "standard" else None
    pre, least = None, None
    if config.architecture == "batchtopk":
        pre = jax.lax.map(lambda part: ae.pre_activations(sae, part, config), parts)
        least = ae.batch_threshold(pre, int(config.k * tokens))

    def scanned(revive: bool):
        def body(sums: _Sums, part):
            x, pre = part
            pre = ae.pre_activations(sae, x, config) if pre is None else pre
            latents = _latents(pre, least, config)
            new, squares = _chunk_sums(sae, x, latents, penalty, tokens, config)
            if revive:
                new = _with_auxiliary(new, sae, x, pre, latents, dead, tokens, config)
            return jax.tree.map(jnp.add, sums, new), squares

        return lambda: jax.lax.scan(body, _no_sums(sae), (parts, pre))

    if config.architecture == "standard" or config.auxiliary == 0:
        sums, squares = scanned(False)()
    else:
        sums, squares = jax.lax.cond(jnp.any(dead), scanned(True), scanned(False))
    return _Batch(sums, squares.reshape(-1), least)


def _no_sums(sae: Autoencoder) -> _Sums:
    zeros = jax.tree.map(jnp.zeros_like, sae)
    return _Sums(zeros, jnp.zeros(sae.b_enc.shape, jnp.int32), jnp.zeros_like(sae.b_enc), zeros.b_dec[0])


def _latents(pre: jax.Array, least: jax.Array | None, config: AutoencoderConfig) -> jax.Array:
    if config.architecture == "topk":
        return ae.top_k(pre, int(config.k))
    latents = jax.nn.relu(pre)
    return latents if least is None else jnp.where(pre >= least, latents, 0)


def _chunk_sums(sae, x, latents, penalty, tokens: int, config: AutoencoderConfig) -> tuple[_Sums, jax.Array]:
    """Forward and backward of one chunk: gradients of (sum |x - y|^2) / tokens + sum of latents * penalty."""
    error = ae.decode(sae, latents) - x
    d_out = error * (2 / tokens)
    d_latents = d_out @ sae.W_dec.T
    d_pre = jnp.where(latents > 0, d_latents if penalty is None else d_latents + penalty, 0)
    grad = _gradient_sums(sae, x, latents, d_out, d_pre, config)
    active = jnp.sum(latents > 0, axis=0, dtype=jnp.int32)
    return _Sums(grad, active, jnp.sum(latents, axis=0), jnp.zeros((), x.dtype)), jnp.sum(error * error, axis=-1)


def _gradient_sums(sae, x, latents, d_out, d_pre, config: AutoencoderConfig) -> Autoencoder:
    d_bias = jnp.sum(d_pre, axis=0)
    d_b_dec = jnp.sum(d_out, axis=0)
    if config.center:
        d_b_dec = d_b_dec - sae.W_enc @ d_bias
    d_enc = ae.centered(sae, x, config).T @ d_pre
    return Autoencoder(d_enc, d_bias, latents.T @ d_out, d_b_dec, jnp.zeros_like(sae.threshold))


def _with_auxiliary(sums: _Sums, sae, x, pre, latents, dead, tokens: int, config: AutoencoderConfig) -> _Sums:
    """Adds the auxiliary loss: dead latents explain what the live ones left over, which itself gets no gradient."""
    weight = ae.auxiliary_weight(dead, config) / tokens
    revived = ae.auxiliary_latents(pre, dead, config)
    error = revived @ sae.W_dec - (x - ae.decode(sae, latents))
    d_out = 2 * weight * error
    d_pre = jnp.where(revived > 0, d_out @ sae.W_dec.T, 0)
    more = _gradient_sums(sae, x, revived, d_out, d_pre, config)
    # The auxiliary reconstruction has no bias of its own; centring the input still has.
    own = -(sae.W_enc @ more.b_enc) if config.center else jnp.zeros_like(sae.b_dec)
    grad = jax.tree.map(jnp.add, sums.grad, more.replace(b_dec=own))
    return sums._replace(grad=grad, auxiliary=weight * jnp.sum(error * error))


def _finished_gradient(sums: _Sums, sae, tokens: int, l1, config: AutoencoderConfig) -> tuple[Autoencoder, jax.Array]:
    """The batch's gradient, with the penalty's through the decoder's norms, and its global norm."""
    grad = sums.grad
    if config.architecture == "standard" and config.decoder == "free":
        share = l1 / tokens * sums.latents / jnp.maximum(ae.norms(sae.W_dec), jnp.finfo(sae.W_dec.dtype).tiny)
        grad = grad.replace(W_dec=grad.W_dec + share[:, None] * sae.W_dec)
    return grad, jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grad)))


def _adam(sae, grad, state: SaeState, step, rate, train: SaeTrainConfig):
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

    def moved(p, m, v):
        return p - rate * m / (jnp.sqrt(v) / root + train.adam_eps)

    return jax.tree.map(moved, sae, grad if first is None else first, second), first, second


def _metrics(sae, x, batch: _Batch, l1, config: AutoencoderConfig) -> StepMetrics:
    tokens, (sums, squares, _) = x.shape[0], batch
    mse, auxiliary = jnp.mean(squares), sums.auxiliary
    standard = config.architecture == "standard"
    penalty = l1 / tokens * (sums.latents @ ae.penalty_weights(sae, config)) if standard else jnp.zeros_like(mse)
    variance = jnp.sum((x - jnp.mean(x, axis=0)) ** 2, axis=-1)
    nothing = jnp.zeros_like(mse)
    return StepMetrics(
        loss=mse + penalty + auxiliary, mse=mse, l1=penalty, auxiliary=auxiliary,
        l0=jnp.sum(sums.active) / tokens,
        explained_variance=1 - jnp.sum(squares) / jnp.sum(variance),
        explained_variance_saelens=jnp.mean(1 - squares / variance),
        grad_norm=nothing, learning_rate=nothing, l1_coefficient=l1 + nothing, dead=nothing,
    )
