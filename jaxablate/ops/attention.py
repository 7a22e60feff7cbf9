"""Causal attention of the clean stream, and of the ablated stream that reads the clean stream's keys and values.

Both are one operation: strictly earlier positions come from (k, v), the own position from (k_self, v_self). It runs
over blocks of queries, so that the keys a block cannot see cost nothing, and has its own derivative, which recomputes
the probabilities: only q, k, v, the result and one log-sum-exp a query are kept, never [B, N, T, T].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Queries of a block: at T = 256 on CPU 64 did best among 32..256. Longer sequences take at most 8 blocks.
_BLOCK, _MOST_BLOCKS = 64, 8


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None = None, scale: float = 1.0
) -> jax.Array:
    """softmax(scale * q k^T) v over j <= i, and i - j < window where one is given.

    Args:
      q, k, v: [B, T, N, H].
      window: number of keys a query sees, itself included; None sees all earlier ones.
      scale: factor of the scores; GPT-Neo and the paper take 1.

    Returns:
      [B, T, N, H] in v's type; scores and softmax are at least float32.
    """
    return two_stream_attention(q, k, v, k, v, window=window, scale=scale)


def two_stream_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_self: jax.Array,
    v_self: jax.Array,
    *,
    window: int | None = None,
    scale: float = 1.0,
) -> jax.Array:
    """Attention of the ablated stream: earlier positions from the clean stream, the own position from itself.

    What is ablated at a token is therefore never seen by later tokens (REFERENCE section 1, "Two streams").

    Args:
      q: [B, T, N, H] queries of the ablated stream.
      k, v: [B, T, N, H] keys and values of the clean stream, used where j < i.
      k_self, v_self: [B, T, N, H] keys and values of the ablated stream, used where j = i.
      window, scale: as in `causal_attention`.

    Returns:
      [B, T, N, H] in v's type.
    """
    heads_first = [x.transpose(0, 2, 1, 3) for x in (q, k, v, k_self, v_self)]
    return _attend(*heads_first, window, scale).transpose(0, 2, 1, 3)


class _Block(NamedTuple):
    """Queries [start, stop) and the keys [first, stop) that some of them see."""

    start: int
    stop: int
    first: int


def _blocks(length: int, window: int | None) -> list[_Block]:
    size = max(_BLOCK, -(-length // _MOST_BLOCKS))
    starts = range(0, length, size)
    return [_Block(s, min(s + size, length), 0 if window is None else max(0, s - window + 1)) for s in starts]


def _hidden(block: _Block, window: int | None) -> jax.Array:
    """True where a query of the block must not see a key: the key is not strictly earlier, or left the window."""
    i = jnp.arange(block.start, block.stop)[:, None]
    j = jnp.arange(block.first, block.stop)[None, :]
    return (j >= i) if window is None else (j >= i) | (i - j >= window)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _dot(spec: str, a: jax.Array, b: jax.Array, like: jax.Array) -> jax.Array:
    """Product of `a` and `b` in the type of `like`, accumulated in at least float32."""
    return jnp.einsum(spec, a.astype(like.dtype), b.astype(like.dtype), preferred_element_type=_wide(like))


def _scores(q, k, block: _Block, window, scale):
    scores = _dot("bnth,bnsh->bnts", q, k, q) * scale
    return jnp.where(_hidden(block, window), -jnp.inf, scores)


def _own_scores(q, k_self, scale):
    return jnp.sum(q.astype(_wide(q)) * k_self.astype(_wide(q)), axis=-1, keepdims=True) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, k_self, v_self, window, scale):
    return _forward(q, k, v, k_self, v_self, window, scale)[0]


def _forward(q, k, v, k_self, v_self, window, scale):
    """Head outputs [B, N, T, H] and log-sum-exp of the scores [B, N, T, 1]."""
    outs, log_sums = [], []
    for block in _blocks(q.shape[2], window):
        rows, keys = slice(block.start, block.stop), slice(block.first, block.stop)
        scores = _scores(q[:, :, rows], k[:, :, keys], block, window, scale)
        own = _own_scores(q[:, :, rows], k_self[:, :, rows], scale)
        top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), own)
        weights, own_weight = jnp.exp(scores - top), jnp.exp(own - top)
        total = jnp.sum(weights, axis=-1, keepdims=True) + own_weight
        earlier = _dot("bnts,bnsh->bnth", weights, v[:, :, keys], v)
        outs.append(((earlier + own_weight * v_self[:, :, rows]) / total).astype(v.dtype))
        log_sums.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=2), jnp.concatenate(log_sums, axis=2)


def _attend_fwd(q, k, v, k_self, v_self, window, scale):
    out, log_sum = _forward(q, k, v, k_self, v_self, window, scale)
    return out, (q, k, v, k_self, v_self, out, log_sum)


def _attend_bwd(window, scale, residuals, d_out):
    q, k, v, k_self, v_self, out, log_sum = residuals
    wide = _wide(q)
    delta = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
    own = jnp.exp(_own_scores(q, k_self, scale) - log_sum)
    d_own = own * (_own_scores(d_out, v_self, 1.0) - delta) * scale
    # [B, N, H, T]: XLA's CPU product over the queries is five times faster with the keys last.
    d_k, d_v = (jnp.zeros(x.shape[:2] + x.shape[:1:-1], wide) for x in (k, v))
    d_q = []
    for block in _blocks(q.shape[2], window):
        rows, keys = slice(block.start, block.stop), slice(block.first, block.stop)
        scores = _scores(q[:, :, rows], k[:, :, keys], block, window, scale)
        probs = jnp.exp(scores - log_sum[:, :, rows])
        d_probs = _dot("bnth,bnsh->bnts", d_out[:, :, rows], v[:, :, keys], v)
        d_scores = probs * (d_probs - delta[:, :, rows]) * scale
        d_q.append(_dot("bnts,bnsh->bnth", d_scores, k[:, :, keys], k))
        d_k = d_k.at[..., keys].add(_dot("bnts,bnth->bnhs", d_scores, q[:, :, rows], q))
        d_v = d_v.at[..., keys].add(_dot("bnts,bnth->bnhs", probs, d_out[:, :, rows], v))
    d_q = jnp.concatenate(d_q, axis=2) + d_own * k_self
    d_k, d_v = d_k.swapaxes(2, 3), d_v.swapaxes(2, 3)
    grads = d_q, d_k, d_v, d_own * q, own * d_out
    return tuple(g.astype(x.dtype) for g, x in zip(grads, (q, k, v, k_self, v_self), strict=True))


_attend.defvjp(_attend_fwd, _attend_bwd)
