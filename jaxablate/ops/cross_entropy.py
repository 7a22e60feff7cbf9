"""Softmax cross-entropy of a linear head, without ever holding [B, T, V] logits.

At the paper's shape the two 50,257-way heads are three quarters of a training step's arithmetic. A scan over chunks
of positions holds the logits of one chunk, and computes the gradient in the forward pass from the same exponentials:
three matrix products a chunk (logits, gradient of the hidden states, gradient of the matrix), the least there can be.
Chunks are cut from the positions and never from the batch, which may be sharded.
"""

import functools

import jax
import jax.numpy as jnp

# Tokens whose logits are held at once: on CPU 256 to 512 were fastest (the chunk's logits still fit the caches).
_CHUNK_TOKENS = {"cpu": 512}
_CHUNK_TOKENS_ELSEWHERE = 8192


def linear_cross_entropy(
    hidden: tuple[jax.Array, ...],
    embedding: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    chunk: int = 0,
) -> tuple[jax.Array, ...]:
    """Mean cross-entropy over unmasked targets, for one or several streams that share the head.

    Args:
      hidden: streams, each [B, T, D], after the final norm.
      embedding: [V, D] output matrix.
      targets: [B, T] int in [0, V).
      mask: [B, T], 1 where the target counts; None counts all. With no target at all the loss is 0.
      chunk: tokens whose logits are held at once; 0 lets the backend choose.

    Returns:
      One scalar a stream, in nats a token, at least float32.
    """
    wide = _wide(embedding)
    weights = jnp.ones(targets.shape, wide) if mask is None else mask.astype(wide)
    count = jnp.maximum(jnp.sum(weights), 1)
    return tuple(_weighted_loss(h, embedding, targets, weights, chunk) / count for h in hidden)


def per_token_cross_entropy(
    hidden: jax.Array, embedding: jax.Array, targets: jax.Array, *, chunk: int = 0
) -> jax.Array:
    """-log softmax(hidden @ embedding.T)[target] for each token, with the same bound on memory; not for training.

    Args:
      hidden: [B, T, D].
      embedding: [V, D].
      targets: [B, T] int.
      chunk: tokens whose logits are held at once; 0 lets the backend choose.

    Returns:
      [B, T] losses in nats, at least float32.
    """
    length = targets.shape[1]

    def body(_, part):
        h, t = part
        _, total, top = _exponentials(h, embedding)
        return None, _losses(h, embedding, t, total, top)

    _, losses = jax.lax.scan(body, None, _chunks((hidden, targets), chunk))
    return _joined(losses, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_loss(hidden, embedding, targets, weights, chunk):
    """sum over tokens of weight * loss. Weights get no gradient."""
    return jnp.sum(weights * per_token_cross_entropy(hidden, embedding, targets, chunk=chunk))


def _weighted_loss_fwd(hidden, embedding, targets, weights, chunk):
    wide = _wide(embedding)

    def body(carry, part):
        loss, d_embedding = carry
        h, t, w = part
        exps, total, top = _exponentials(h, embedding)
        loss = loss + jnp.sum(w * _losses(h, embedding, t, total, top))
        # total * (softmax - one-hot): the target's entry is changed in place.
        rows = jnp.indices(t.shape, sparse=True)
        exps = exps.at[(*rows, t)].add(-total, unique_indices=True, indices_are_sorted=True).astype(embedding.dtype)
        scale = (w / total)[..., None]
        d_hidden = jnp.einsum("btv,vd->btd", exps, embedding, preferred_element_type=wide) * scale
        scaled = (h.astype(wide) * scale).astype(embedding.dtype)
        d_embedding = d_embedding + jnp.einsum("btd,btv->dv", scaled, exps, preferred_element_type=wide)
        return (loss, d_embedding), d_hidden.astype(hidden.dtype)

    # The matrix's gradient grows as [D, V]: [V, D] would transpose every chunk's exponentials.
    start = jnp.zeros((), wide), jnp.zeros(embedding.shape[::-1], wide)
    (loss, d_embedding), d_hidden = jax.lax.scan(body, start, _chunks((hidden, targets, weights), chunk))
    return loss, (_joined(d_hidden, targets.shape[1]), d_embedding.T)


def _weighted_loss_bwd(chunk, residuals, cotangent):
    d_hidden, d_embedding = residuals
    return d_hidden * cotangent.astype(d_hidden.dtype), d_embedding * cotangent, None, None


_weighted_loss.defvjp(_weighted_loss_fwd, _weighted_loss_bwd)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _exponentials(hidden, embedding):
    """exp(logits - top) [b, t, V], its sum and the row maximum, both [b, t]."""
    hidden = hidden.astype(embedding.dtype)
    logits = jnp.einsum("btd,vd->btv", hidden, embedding, preferred_element_type=_wide(embedding))
    top = jnp.max(logits, axis=-1)
    exps = jnp.exp(logits - top[..., None])
    return exps, jnp.sum(exps, axis=-1), top


def _losses(hidden, embedding, targets, total, top):
    """[b, t] losses; the target's logit is a product of its own, so that the logits are read no further time."""
    target = jnp.sum(hidden.astype(total.dtype) * embedding[targets].astype(total.dtype), axis=-1)
    return top + jnp.log(total) - target


def _chunk_length(shape: tuple[int, int], chunk: int) -> int:
    """Positions of a chunk: equal parts of the sequence of about `chunk` tokens over the whole batch."""
    batch, length = shape
    tokens = chunk or _CHUNK_TOKENS.get(jax.default_backend(), _CHUNK_TOKENS_ELSEWHERE)
    parts = -(-batch * length // tokens)
    return max(1, -(-length // parts))


def _chunks(arrays: tuple[jax.Array, ...], chunk: int) -> tuple[jax.Array, ...]:
    """[B, T, ...] -> [n, B, t, ...], zero-padded at the end (weight 0)."""
    batch, length = arrays[0].shape[:2]
    size = _chunk_length((batch, length), chunk)
    count = -(-length // size)

    def split(x):
        pad = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, size, *x.shape[2:]), 1, 0)

    return tuple(split(x) for x in arrays)


def _joined(x: jax.Array, length: int) -> jax.Array:
    """Inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
