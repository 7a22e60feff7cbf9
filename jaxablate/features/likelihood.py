"""Cross-entropies and KL of next-token distributions before and after an edit, logits of few tokens at a time."""

import jax
import jax.numpy as jnp

_CHUNK_TOKENS = {"cpu": 256}
_CHUNK_TOKENS_ELSEWHERE = 4096


def compared(table: jax.Array, dtype: str, base: jax.Array, edited: jax.Array, targets: jax.Array):
    """Cross-entropies and KL, logits of few tokens at a time.

    Args:
      table: [V, D].
      dtype: type of the matrix product's inputs.
      base, edited: final states [B, T, D] and [K, B, T, D].
      targets: [B, T].

    Returns:
      CE [B, T] of the base, CE [K, B, T] of each edit, KL(base || edit) [K, B, T].
    """
    table = table.astype(dtype)
    tokens = targets.size
    size = min(_CHUNK_TOKENS.get(jax.default_backend(), _CHUNK_TOKENS_ELSEWHERE), tokens)
    pad = -tokens % size

    def cut(x):
        x = jnp.pad(x.reshape(x.shape[0], tokens, *x.shape[3:]), [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def logs(h):
        wide = jnp.promote_types(dtype, jnp.float32)
        return jax.nn.log_softmax(jnp.einsum("td,vd->tv", h.astype(dtype), table, preferred_element_type=wide))

    def body(part):
        base, edited, target = part[0][0], part[1], part[2][0]
        log_p = logs(base)

        def one(h):
            log_q = logs(h)
            return -_picked(log_q, target), jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

        return -_picked(log_p, target), *jax.lax.map(one, edited)

    ce, ce_edited, kl = jax.lax.map(body, (cut(base[None]), cut(edited), cut(targets[None])))
    joined = [jnp.moveaxis(x, 0, 1).reshape(len(edited), -1)[:, :tokens].reshape(-1, *targets.shape)
              for x in (ce_edited, kl)]
    return ce.reshape(-1)[:tokens].reshape(targets.shape), *joined


def _picked(logs: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logs, target[:, None], axis=-1)[:, 0]
