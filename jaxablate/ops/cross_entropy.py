"""Softmax cross-entropy of a linear head, without ever holding [B, T, V] logits.

At the paper's shape the two 50,257-way heads are three quarters of a training step's arithmetic. A scan over chunks
of positions holds the logits of one chunk, and computes the gradient in the forward pass from the same exponentials:
three matrix products a chunk (logits, gradient of the hidden states, gradient of the matrix), the least there can be.
JAX's derivative of a rematerialised scan makes four. Chunks are cut from the positions and never from the batch, which
may be sharded.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxablate.config.checks import require

# Tokens whose logits are held at once: on CPU 256 to 512 were fastest (the chunk's logits still fit the caches).
_CHUNK_TOKENS = {"cpu": 512}
_CHUNK_TOKENS_ELSEWHERE = 8192


def linear_cross_entropy(
    hidden: tuple[Float[Array, "batch time d"], ...],
    embedding: Float[Array, "vocabulary d"],
    targets: Int[Array, "batch time"],
    mask: Shaped[Array, "batch time"] | None = None,
    *,
    chunk: int = 0,
) -> tuple[Float[Array, ""], ...]:
    """Mean cross-entropy over unmasked targets, for one or several streams after the final norm that share the head.

    The mask is 1 where a target counts; with no target at all the loss is 0. ``chunk`` is the number of tokens whose
    logits are held at once; 0 lets the backend choose.

    Returns:
      One scalar a stream, in nats a token, at least float32.

    Raises:
      ConfigError: the shapes do not fit each other.
    """
    for stream in hidden:
        _check_shapes(stream, embedding, targets, mask)
    wide = _wide(embedding)
    weights = jnp.ones(targets.shape, wide) if mask is None else mask.astype(wide)
    count = jnp.maximum(jnp.sum(weights), 1)
    sums: list[Array] = [_weighted_loss(stream, embedding, targets, weights, chunk) for stream in hidden]
    return tuple(total / count for total in sums)


def per_token_cross_entropy(
    hidden: Float[Array, "batch time d"],
    embedding: Float[Array, "vocabulary d"],
    targets: Int[Array, "batch time"],
    *,
    chunk: int = 0,
) -> Float[Array, "batch time"]:
    """-log softmax(hidden @ embedding.T)[target] for each token, with the same bound on memory; not for training.

    Arguments, units and errors are those of `linear_cross_entropy`.
    """
    _check_shapes(hidden, embedding, targets, None)

    def losses(part: tuple[Array, ...]) -> Array:
        h, t = part
        _, total, top = _exponentials(h, embedding)
        return _losses(h, embedding, t, total, top)

    return _joined(jax.lax.map(losses, _chunks((hidden, targets), chunk)), targets.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted_loss(hidden: Array, embedding: Array, targets: Array, weights: Array, chunk: int) -> Array:
    """sum over tokens of weight * loss. Weights get no gradient."""
    return jnp.sum(weights * per_token_cross_entropy(hidden, embedding, targets, chunk=chunk))


def _weighted_loss_fwd(
    hidden: Array, embedding: Array, targets: Array, weights: Array, chunk: int
) -> tuple[Array, tuple[Array, Array]]:
    wide = _wide(embedding)

    def body(carry: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
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


def _weighted_loss_bwd(
    _chunk: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array, None, None]:
    d_hidden, d_embedding = residuals
    return d_hidden * cotangent.astype(d_hidden.dtype), d_embedding * cotangent, None, None


_weighted_loss.defvjp(_weighted_loss_fwd, _weighted_loss_bwd)


def _check_shapes(hidden: Array, embedding: Array, targets: Array, mask: Array | None) -> None:
    fits = hidden.ndim == 3 and embedding.ndim == 2 and hidden.shape[-1] == embedding.shape[-1]
    fits &= targets.shape == hidden.shape[:2] and (mask is None or mask.shape == targets.shape)
    require(fits, f"shapes are hidden {hidden.shape}, embedding {embedding.shape}, targets {targets.shape}, mask "
            f"{None if mask is None else mask.shape}; give [batch, time, d], [vocabulary, d] and twice [batch, time]")


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _exponentials(hidden: Array, embedding: Array) -> tuple[Array, Array, Array]:
    """exp(logits - top) [b, t, V], its sum and the row maximum, both [b, t]."""
    hidden = hidden.astype(embedding.dtype)
    logits = jnp.einsum("btd,vd->btv", hidden, embedding, preferred_element_type=_wide(embedding))
    top = jnp.max(logits, axis=-1)
    exps = jnp.exp(logits - top[..., None])
    return exps, jnp.sum(exps, axis=-1), top


def _losses(hidden: Array, embedding: Array, targets: Array, total: Array, top: Array) -> Array:
    """[b, t] losses; the target's logit is a product of its own, so that the logits are read no further time."""
    target = jnp.sum(hidden.astype(total.dtype) * embedding[targets].astype(total.dtype), axis=-1)
    return top + jnp.log(total) - target


def _chunks(arrays: tuple[Array, ...], chunk: int) -> tuple[Array, ...]:
    """[B, T, ...] -> [n, B, t, ...] with about `chunk` tokens in B t, zero-padded at the end (weight 0)."""
    batch, length = arrays[0].shape[:2]
    tokens = chunk or _CHUNK_TOKENS.get(jax.default_backend(), _CHUNK_TOKENS_ELSEWHERE)
    parts = -(-batch * length // tokens)
    size = max(1, -(-length // parts))
    count = -(-length // size)

    def split(x: Array) -> Array:
        pad = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, size, *x.shape[2:]), 1, 0)

    return tuple(split(x) for x in arrays)


def _joined(x: Array, length: int) -> Array:
    """Inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
