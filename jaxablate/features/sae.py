r"""A sparse autoencoder: weights by SAELens's names, and what it makes of activations.

With activations x [D], S latents, and matrices as SAELens stores them,

    h = (x - [center] b_dec) W_enc + b_enc          [S], the pre-activations
    f = latents of h                                [S], by `jaxablate.features.architectures`
    y = f W_dec + b_dec                             [D], the reconstruction
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.errors import ConfigError
from jaxablate.features.architectures import AutoencoderConfig

_INIT_NORM = 0.1
"""Norm of the decoder's vectors under the inits constant_norm and positive, as in SAELens."""


@flax.struct.dataclass
class SparseAutoencoder:
    """Weights and kind of one autoencoder; a pytree of its weights, so that JAX transforms take it as it is.

    Several autoencoders of one kind are one struct with leading axes, for `jax.vmap`.

    >>> sae = init(jax.random.key(0), AutoencoderConfig(d_in=4, d_sae=16))
    >>> x = jnp.ones((3, 4))
    >>> sae.encode(x).shape, sae.decode(sae.encode(x)).shape, sae(x).shape
    ((3, 16), (3, 4), (3, 4))
    """

    W_enc: Any
    """[D, S]."""
    b_enc: Any
    """[S]."""
    W_dec: Any
    """[S, D], a row a latent."""
    b_dec: Any
    """[D]."""
    threshold: Any
    """[S] a latent is active above it at inference; 0 for standard and topk. Not trained by gradients."""
    config: AutoencoderConfig = flax.struct.field(pytree_node=False)

    def __call__(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n d"]:
        """Reconstructions y of activations x."""
        return self.decode(self.encode(x))

    def encode(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n s"]:
        """Latents f at inference, none below 0.

        Args:
          x: activations; raw ones where the scale of training is folded in, as in all that `fit`, `train` and `load`
            return.

        Raises:
          ConfigError: the activations have another width than the autoencoder.
        """
        return self.config.kind.inference(self.pre_activations(x), self.threshold, self.config)

    def decode(self, latents: Float[Array | np.ndarray, "*n s"]) -> Float[Array, "*n d"]:
        """Reconstructions y from latents f.

        Raises:
          ConfigError: there are more or fewer latents than the autoencoder has.
        """
        _check_last_axis(latents, self.config.d_sae, "latents")
        return latents @ self.W_dec + self.b_dec

    def pre_activations(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n s"]:
        """h of the module's docstring."""
        _check_last_axis(x, self.config.d_in, "activations")
        return (x - self.b_dec if self.config.center else x) @ self.W_enc + self.b_enc

    def penalty_weights(self) -> Float[Array, " s"]:
        """How much the penalty weighs each latent: 1 with a unit decoder, its decoder vector's norm with a free one.

        So the penalty of a free decoder cannot be made small by large vectors (Anthropic's update of April 2024).
        """
        return norms(self.W_dec) if self.config.decoder == "free" else jnp.ones_like(self.b_enc)

    def with_unit_decoder(self) -> "SparseAutoencoder":
        """The decoder's vectors divided by their norms; nothing else changes."""
        return dataclasses.replace(self, W_dec=self.W_dec / norms(self.W_dec)[..., None])

    def fold_decoder_norm(self) -> "SparseAutoencoder":
        """The same function with a unit decoder: norms go into encoder and thresholds, so latents become comparable.

        A topk is the same function only if its decoder has one norm throughout, for ranks change otherwise.
        """
        size = norms(self.W_dec)
        return dataclasses.replace(self, W_enc=self.W_enc * size, b_enc=self.b_enc * size,
                                   W_dec=self.W_dec / size[:, None], threshold=self.threshold * size)

    def fold_scale(self, scale: Any) -> "SparseAutoencoder":
        """The autoencoder of raw activations x out of one trained on scale * x: same latents, scaled reconstruction.

        (scale x) W_enc = x (scale W_enc) and y / scale = f (W_dec / scale) + b_dec / scale, as SAELens folds it. With
        `center`, (scale x - b_dec) W_enc = (x - b_dec / scale) (scale W_enc): the same rule.
        """
        return dataclasses.replace(self, W_enc=self.W_enc * scale, W_dec=self.W_dec / scale, b_dec=self.b_dec / scale)


def init(key: jax.Array, config: AutoencoderConfig) -> SparseAutoencoder:
    """Weights at the start, drawn as SAELens 5.1.0 draws them (`AutoencoderConfig.init`); all biases are 0."""
    shape, dtype = (config.d_sae, config.d_in), config.dtype
    bound = (6 / config.d_in) ** 0.5  # He et al. 2015 for ReLU, fan-in D
    low = 0.0 if config.init == "positive" else -bound
    decoder = jax.random.uniform(key, shape, dtype, low, bound)
    if config.init != "kaiming":
        decoder = _INIT_NORM * decoder / norms(decoder)[:, None]
    # Each array is its own, for a buffer cannot be donated twice.
    bias, threshold = jnp.zeros(config.d_sae, dtype), jnp.zeros(config.d_sae, dtype)
    # The encoder is the transpose of the decoder before it is normalised, as in SAELens.
    sae = SparseAutoencoder(decoder.T, bias, decoder, jnp.zeros(config.d_in, dtype), threshold, config)
    return sae.with_unit_decoder() if config.decoder == "unit" else sae


def norms(x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n"]:
    """Euclidean norms along the last axis, with a derivative of 0 where a norm is 0."""
    squares = jnp.sum(x * x, axis=-1)
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


def activation_scale(x: Float[Array, "*sites n d"]) -> Float[Array, "*sites"]:
    """sqrt(D) / mean norm: the factor that gives activations the mean norm sqrt(D) (docs/papers.md)."""
    return x.shape[-1] ** 0.5 / jnp.mean(norms(x), axis=-1)


def over_all(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`one` for each of several stacked along a leading axis.

    All at once on an accelerator; on CPU one after another, since one fills the cores and the caches.
    """
    return functools.partial(jax.lax.map, one) if jax.default_backend() == "cpu" else jax.vmap(one)


def _check_last_axis(x: Any, size: int, what: str) -> None:
    if x.ndim == 0 or x.shape[-1] != size:
        raise ConfigError(f"{what} have shape {tuple(x.shape)}; this autoencoder takes [..., {size}]; give the vectors "
                          "it was trained for along the last axis")
