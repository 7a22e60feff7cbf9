"""Causal attention of the clean stream, and of the ablated stream that reads the clean stream's keys and values."""

import jax
import jax.numpy as jnp


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None = None, scale: float = 1.0
) -> jax.Array:
    """softmax(scale * q k^T) v over j <= i, and i - j < window where one is given.

    Args:
      q, k, v: [B, T, N, H].
      window: number of keys a query sees, itself included; None sees all earlier ones.
      scale: factor of the scores; GPT-Neo and the paper take 1.

    Returns:
      [B, T, N, H] in v's type; the softmax is at least float32.
    """
    scores = _scores(q, k, scale)
    probs = _softmax(jnp.where(_visible(q.shape[1], window, strict=False), scores, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", probs.astype(v.dtype), v)


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
    own = jnp.einsum("btnh,btnh->bnt", q, k_self, preferred_element_type=_wide(q))[..., None] * scale
    diagonal = jnp.eye(q.shape[1], dtype=bool)
    scores = jnp.where(diagonal, own, _scores(q, k, scale))
    probs = _softmax(jnp.where(_visible(q.shape[1], window, strict=False), scores, -jnp.inf)).astype(v.dtype)
    own_prob = jnp.einsum("bntt->btn", probs)[..., None]
    earlier = jnp.where(diagonal, jnp.zeros_like(probs), probs)
    return jnp.einsum("bnts,bsnh->btnh", earlier, v) + own_prob * v_self


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _scores(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    return jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=_wide(q)) * scale


def _softmax(scores: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1)


def _visible(length: int, window: int | None, strict: bool) -> jax.Array:
    i, j = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    visible = (j < i) if strict else (j <= i)
    return visible if window is None else visible & (i - j < window)
