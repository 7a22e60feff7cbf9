r"""Sparse autoencoders as pure functions: weights in a struct, encode, decode, losses.

With activations x [D], S latents, and matrices as SAELens stores them,

    h = (x - [center] b_dec) W_enc + b_enc          [S], the pre-activations
    f = ReLU(h)                                     standard (Bricken et al. 2023)
    f = ReLU(h) where h is among the k largest of its token        topk (Gao et al. 2024, eq. 3)
    f = h where h > threshold, else 0               batchtopk at inference (Bussmann et al. 2024, eq. 4), jumprelu
    y = f W_dec + b_dec                             [D], the reconstruction

    loss = mean over tokens of |x - y|^2  +  l1 * mean over tokens of sum_s f_s w_s  +  auxiliary

w_s is 1 with a unit decoder (the paper) and |W_dec_s| with a free one (Anthropic's update of April 2024), so
that the penalty cannot be made small by a large decoder. All kinds but topk share one formula: a threshold of 0 is a
ReLU.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxablate.errors import ConfigError
from jaxablate.features.config import AutoencoderConfig
from jaxablate.ops.order_statistics import thresholds, winners

_INIT_NORM = 0.1
"""Norm of the decoder's vectors under the inits constant_norm and positive, as in SAELens."""


@flax.struct.dataclass
class Autoencoder:
    """Weights, by SAELens's names. Several autoencoders of one shape are one struct with leading axes."""

    W_enc: jax.Array
    """[D, S]."""
    b_enc: jax.Array
    """[S]."""
    W_dec: jax.Array
    """[S, D], a row a latent."""
    b_dec: jax.Array
    """[D]."""
    threshold: jax.Array
    """[S] a latent is active above it at inference; 0 for standard and topk. Not trained by gradients."""


class LossTerms(NamedTuple):
    """Parts of the loss of one batch, each a scalar."""

    total: jax.Array
    mse: jax.Array
    """mean over tokens of the squared error, summed over D."""
    l1: jax.Array
    """Times its coefficient."""
    auxiliary: jax.Array
    """Times its coefficient."""


def init(key: jax.Array, config: AutoencoderConfig) -> Autoencoder:
    """Weights at the start, drawn as SAELens 5.1.0 draws them (`AutoencoderConfig.init`); all biases are 0.

    Args:
      key: PRNG key.
      config: shape and kind.

    Returns:
      `Autoencoder` of the type `config.dtype`.
    """
    shape, dtype = (config.d_sae, config.d_in), config.dtype
    bound = (6 / config.d_in) ** 0.5  # He et al. 2015 for ReLU, fan-in D
    low = 0.0 if config.init == "positive" else -bound
    decoder = jax.random.uniform(key, shape, dtype, low, bound)
    if config.init != "kaiming":
        decoder = _INIT_NORM * decoder / norms(decoder)[:, None]
    # Each array is its own, for a buffer cannot be donated twice.
    bias, threshold = jnp.zeros(config.d_sae, dtype), jnp.zeros(config.d_sae, dtype)
    # The encoder is the transpose of the decoder before it is normalised, as in SAELens.
    sae = Autoencoder(decoder.T, bias, decoder, jnp.zeros(config.d_in, dtype), threshold)
    return with_unit_decoder(sae) if config.decoder == "unit" else sae


def over_all(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`one` for each of several stacked along a leading axis.

    All at once on an accelerator; on CPU one after another, since one fills the cores and the caches.
    """
    return functools.partial(jax.lax.map, one) if jax.default_backend() == "cpu" else jax.vmap(one)


def norms(W_dec: jax.Array) -> jax.Array:
    """[S] norm of each latent's decoder vector."""
    return jnp.sqrt(jnp.sum(W_dec * W_dec, axis=-1))


def with_unit_decoder(sae: Autoencoder) -> Autoencoder:
    """The decoder's vectors divided by their norms; nothing else changes."""
    return sae.replace(W_dec=sae.W_dec / norms(sae.W_dec)[..., None])


def fold_decoder_norm(sae: Autoencoder) -> Autoencoder:
    """The same function with a unit decoder: norms go into encoder and threshold, so activations become comparable.

    Of topk it is the same function only if the decoder has one norm throughout, for ranks change otherwise.
    """
    size = norms(sae.W_dec)
    return Autoencoder(sae.W_enc * size, sae.b_enc * size, sae.W_dec / size[:, None], sae.b_dec, sae.threshold * size)


def fold_scale(sae: Autoencoder, scale: jax.Array | float) -> Autoencoder:
    """The autoencoder of raw activations x out of one trained on scale * x: same latents, scaled reconstruction.

    (scale x) W_enc = x (scale W_enc) and y / scale = f (W_dec / scale) + b_dec / scale, as SAELens folds it. With
    `center`, (scale x - b_dec) W_enc = (x - b_dec / scale) (scale W_enc): the same rule.
    """
    return sae.replace(W_enc=sae.W_enc * scale, W_dec=sae.W_dec / scale, b_dec=sae.b_dec / scale)


def activation_scale(x: jax.Array) -> jax.Array:
    """sqrt(D) / mean norm: the factor that gives activations x [M, D] the mean norm sqrt(D)."""
    return x.shape[-1] ** 0.5 / jnp.mean(norms(x), axis=-1)


def pre_activations(sae: Autoencoder, x: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """h of the module's docstring: [..., D] -> [..., S]."""
    return centered(sae, x, config) @ sae.W_enc + sae.b_enc


def centered(sae: Autoencoder, x: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """What the encoder's matrix multiplies, [..., D]."""
    return x - sae.b_dec if config.center else x


def encode(sae: Autoencoder, x: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """Latents at inference.

    Args:
      sae: weights.
      x: [..., D] activations, raw if the scale is folded in.
      config: its kind.

    Returns:
      [..., S] latents, >= 0. Of topk at most k are above 0; among equal ones the lower index wins.
    """
    pre = pre_activations(sae, x, config)
    if config.architecture == "topk":
        return top_k(pre, int(config.k))
    return jnp.where(pre > sae.threshold, pre, 0)


def decode(sae: Autoencoder, latents: jax.Array) -> jax.Array:
    """Reconstruction: [..., S] -> [..., D]."""
    return latents @ sae.W_dec + sae.b_dec


def top_k(pre: jax.Array, k: int) -> jax.Array:
    """ReLU of the k largest entries of each row [..., S], 0 elsewhere."""
    return jnp.where(winners(pre, thresholds(pre, k)), jax.nn.relu(pre), 0)


def batch_threshold(pre: jax.Array, count: int) -> jax.Array:
    """The `count`-th largest of all positive entries, or the smallest of them where there are fewer; 0 without any.

    Bisection over the bits of the floats, whose order is that of the numbers where these are positive: a pass over
    the array for each bit, in place of a sort of millions of entries.

    Args:
      pre: [..., S] pre-activations.
      count: how many entries are to be at least as large; ties at the threshold make it more.

    Returns:
      Scalar of the type of `pre`.
    """
    bits = jnp.finfo(pre.dtype).bits
    keys = jax.lax.bitcast_convert_type(jax.nn.relu(pre), jnp.dtype(f"int{bits}"))
    count = jnp.clip(jnp.sum(keys > 0), 1, count)

    def step(i, found):
        trial = found | (jnp.asarray(1, keys.dtype) << (bits - 2 - i).astype(keys.dtype))
        return jnp.where(jnp.sum(keys >= trial) >= count, trial, found)

    found = jax.lax.fori_loop(0, bits - 1, step, jnp.zeros((), keys.dtype))
    return jax.lax.bitcast_convert_type(found, pre.dtype)


def training_latents(sae: Autoencoder, x: jax.Array, config: AutoencoderConfig) -> tuple[jax.Array, jax.Array]:
    """Latents as a training step uses them, where batchtopk chooses among a whole batch.

    Returns:
      (latents [M, S], pre-activations [M, S]).

    Raises:
      ConfigError: the architecture cannot be trained.
    """
    check_trainable(config)
    pre = pre_activations(sae, x, config)
    if config.architecture == "topk":
        return top_k(pre, int(config.k)), pre
    latents = jax.nn.relu(pre)
    if config.architecture == "batchtopk":
        latents = jnp.where(pre >= batch_threshold(pre, int(config.k * x.shape[0])), latents, 0)
    return latents, pre


def check_trainable(config: AutoencoderConfig) -> None:
    """Raises ConfigError for the architecture that has no training here."""
    if config.architecture == "jumprelu":
        raise ConfigError("architecture='jumprelu' can be used but not trained; train standard, topk or batchtopk")


def penalty_weights(sae: Autoencoder, config: AutoencoderConfig) -> jax.Array:
    """w of the module's docstring, [S]."""
    return norms(sae.W_dec) if config.decoder == "free" else jnp.ones_like(sae.b_enc)


def losses(
    sae: Autoencoder, x: jax.Array, l1: jax.Array | float, config: AutoencoderConfig, dead: jax.Array | None = None
) -> LossTerms:
    """The loss of one batch, as the definition has it; `jaxablate.features.step` has its gradient, in fewer passes.

    Args:
      sae: weights, with a unit decoder already normalised.
      x: [M, D] scaled activations.
      l1: L1 coefficient of this step.
      config: kind.
      dead: bool [S], latents that the auxiliary loss of topk and batchtopk is to revive; None for none.

    Returns:
      `LossTerms`.
    """
    latents, pre = training_latents(sae, x, config)
    out = decode(sae, latents)
    mse = jnp.mean(jnp.sum((out - x) ** 2, axis=-1))
    zero = jnp.zeros_like(mse)
    if config.architecture == "standard":
        penalty = l1 * jnp.mean(latents @ penalty_weights(sae, config))
        return LossTerms(mse + penalty, mse, penalty, zero)
    if dead is None or config.auxiliary == 0:
        return LossTerms(mse, mse, zero, zero)
    error = jax.lax.stop_gradient(x - out)
    found = auxiliary_latents(pre, dead, config) @ sae.W_dec
    auxiliary = auxiliary_weight(dead, config) * jnp.mean(jnp.sum((found - error) ** 2, axis=-1))
    return LossTerms(mse + auxiliary, mse, zero, auxiliary)


def auxiliary_latents(pre: jax.Array, dead: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """ReLU of the D / 2 largest dead latents of each token, [M, S] (Gao et al. 2024, A.2)."""
    largest = min(config.d_in // 2, config.d_sae - 1)
    return top_k(jnp.where(dead, pre, -jnp.inf), largest)


def auxiliary_weight(dead: jax.Array, config: AutoencoderConfig) -> jax.Array:
    """Coefficient of the auxiliary loss, less where fewer than D / 2 latents are dead, as in SAELens; 0 for none."""
    share = jnp.sum(dead) / max(config.d_in // 2, 1)
    return config.auxiliary * jnp.minimum(share, 1.0).astype(config.dtype)
