"""VMASK (Chen & Ji 2020; docs/papers.md, VMASK): which words a text is classified by, learnt with the classifier."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxablate.models.layers import torch_dense


class Mask(NamedTuple):
    """What VMASK makes of one batch."""

    logits: jax.Array
    """[B, L, 2], at least float32: to drop the token, to keep it."""
    keep: jax.Array
    """[B, L] probability that the token is kept, softmax(logits)[1]."""
    mask: jax.Array
    """[B, L] what multiplies the embedding: the probability in evaluation, a 0/1 sample in training."""


class Vmask(nn.Module):
    """p = W2 tanh(W1 e + b1) + b2 for each token's embedding e."""

    width: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BLD: jax.Array, noise_BL2: jax.Array | None = None) -> Mask:
        """The mask of each token.

        Args:
          x_BLD: embeddings, as they enter the model (times sqrt(D)).
          noise_BL2: Gumbel noise; a token is then kept where its logit plus noise is the larger, with the gradient of
            softmax(logits + noise)[1] (straight through, temperature 1). None takes the probability itself.
        """
        dtype = jnp.promote_types(x_BLD.dtype, jnp.float32)
        hidden = jnp.tanh(torch_dense(self.width, x_BLD.shape[-1], dtype, self.param_dtype, name="hidden")(x_BLD))
        logits = torch_dense(2, self.width, dtype, self.param_dtype, name="out")(hidden)
        keep = jax.nn.softmax(logits, axis=-1)[..., 1]
        mask = keep if noise_BL2 is None else straight_through_sample(logits, noise_BL2)
        return Mask(logits, keep, mask)


def straight_through_sample(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """Hard Gumbel-softmax sample of class 1, with the soft sample's gradient (Jang et al. 2017, temperature 1).

    Args:
      logits: [..., 2].
      noise: [..., 2] independent Gumbel noise.

    Returns:
      [...] zeros and ones; 0 where both sums are equal.

    Example:
      >>> straight_through_sample(jnp.array([[0., 1.], [2., 1.]]), jnp.zeros((2, 2))).tolist()
      [1.0, 0.0]
    """
    total = logits + noise
    soft = jax.nn.softmax(total, axis=-1)[..., 1]
    hard = (total[..., 1] > total[..., 0]).astype(soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))


def information(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """VMASK's information term: mean over texts of the mean over a text's tokens of p log p + (1 - p) log(1 - p).

    Minimising it pulls p towards 1/2, so that a token is kept or dropped with certainty only where that pays
    (Chen & Ji 2020; SAFR's released code has no such term).

    Args:
      logits: [B, L, 2] of `Vmask`.
      mask: [B, L] 1 for the tokens that count.

    Returns:
      Scalar in [-log 2, 0], nats. A text without tokens does not count.

    Example:
      >>> round(float(information(jnp.zeros((1, 3, 2)), jnp.ones((1, 3)))), 4)
      -0.6931
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return mean_of_means(jnp.sum(jnp.exp(log_p) * log_p, axis=-1), mask)


def mean_of_means(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over texts of each text's mean over its tokens.

    Args:
      values: [B, L].
      mask: [B, L] 1 for the tokens that count; a text without any does not count.

    Example:
      >>> float(mean_of_means(jnp.array([[1., 3.], [6., 9.]]), jnp.array([[1., 1.], [1., 0.]])))
      4.0
    """
    count = jnp.sum(mask, axis=-1)
    means = jnp.sum(values * mask, axis=-1) / jnp.maximum(count, 1)
    return jnp.sum(means) / jnp.maximum(jnp.sum(count > 0), 1)
