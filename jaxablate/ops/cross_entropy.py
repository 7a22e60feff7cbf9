"""Softmax cross-entropy of a linear head, without ever holding [B, T, V] logits.

At the paper's shape the two 50,257-way heads are three quarters of a training step's arithmetic. A scan over chunks
of positions holds the logits of one chunk, and computes the gradient in the forward pass from the same exponentials:
three matrix products a chunk (logits, gradient of the hidden states, gradient of the matrix), the least there can be.
JAX's derivative of a rematerialised scan makes four. Chunks are cut from the positions and never from the batch, which
may be sharded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxablate.config.checks import require
from jaxablate.ops import masks
from jaxablate.ops.cap import cap_slope, capped
from jaxablate.ops.reverse_mode import reverse_mode_only
from jaxablate.ops.varying import match_varying
from jaxablate.types import at_least_float32

# Tokens whose logits a device holds at once: on CPU 256 to 512 were fastest (the chunk's logits still fit the caches);
# each chunk reads and writes the matrix's gradient, and on GPUs starts kernels.
_CPU_CHUNK, _TPU_CHUNK, _CHUNK = 512, 1024, 4096


def linear_cross_entropy(
    hidden: tuple[Float[ArrayLike, "batch time d"], ...],
    embedding: Float[ArrayLike, "vocabulary d"],
    targets: Int[ArrayLike, "batch time"],
    mask: Shaped[ArrayLike, "..."] | None = None,
    *,
    vocabulary: int | None = None,
    chunk: int = 0,
    cap: float | None = None,
) -> tuple[Float[Array, ""], ...]:
    """Mean cross-entropy over unmasked targets, for one or several streams after the final norm that share the head.

    The mask is 1 where a target counts; other weights give a weighted mean, whatever their sum, and the gradient with
    respect to them. It is broadcast to [batch, time]. With no target at all, or where all weigh 0, the loss is 0. It is
    NaN where a target that counts is not in [0, vocabulary). ``vocabulary`` is the number of rows of the embedding, all
    by default, that stand for a token; those after them are padding, with neither probability nor gradient. ``chunk``
    is the number of tokens whose logits are held at once, static; with 0 the platform decides. With a ``cap``, static,
    logits are cap * tanh(logits / cap). The derivative is for reverse mode: `jax.jvp` of it is refused, that of its
    gradient is not.

    Returns:
      One scalar a stream, in nats a token, at least float32.

    Raises:
      ConfigError: the shapes do not fit each other.
    """
    streams = [jnp.asarray(stream) for stream in hidden]
    embedding, targets = jnp.asarray(embedding), jnp.asarray(targets)
    for stream in streams:
        _check_shapes(stream, embedding, targets)
    weights = masks.weights(mask, targets.shape, _wide(embedding), of="the targets")
    rows = _vocabulary(vocabulary, embedding)
    targets, weights = masks.valid_targets(targets, weights, rows)
    count = masks.nonzero_sum(weights)
    if not streams:
        return ()
    with reverse_mode_only("cross-entropies"):
        sums: Any = _weighted_losses(*match_varying((jnp.stack(streams), embedding, targets, weights)),
                                     _Head(rows, cap), chunk)
    return tuple(sums[i] / count for i in range(len(streams)))


def per_token_cross_entropy(
    hidden: Float[ArrayLike, "batch time d"],
    embedding: Float[ArrayLike, "vocabulary d"],
    targets: Int[ArrayLike, "batch time"],
    *,
    vocabulary: int | None = None,
    chunk: int = 0,
    cap: float | None = None,
) -> Float[Array, "batch time"]:
    """-log softmax(hidden @ embedding.T)[target] for each token, with the same bound on memory; not for training.

    Arguments, units and errors are those of `linear_cross_entropy`; a target outside [0, vocabulary) has the loss NaN.
    """
    hidden, embedding, targets = jnp.asarray(hidden), jnp.asarray(embedding), jnp.asarray(targets)
    _check_shapes(hidden, embedding, targets)
    rows = _vocabulary(vocabulary, embedding)
    targets, weights = masks.valid_targets(targets, jnp.ones(targets.shape, _wide(embedding)), rows)
    return _token_losses(hidden, embedding, targets, _Head(rows, cap), chunk) * weights


class _Head(NamedTuple):
    """What becomes of the products with the matrix."""

    vocabulary: int
    """Rows of the matrix that stand for a token."""
    cap: float | None = None


def _vocabulary(given: int | None, embedding: Array) -> int:
    rows = embedding.shape[0]
    require(given is None or 1 <= given <= rows, f"vocabulary={given} must be in 1..{rows}, the embedding's rows")
    return rows if given is None else given


def _token_losses(hidden: Array, embedding: Array, targets: Array, head: _Head, chunk: int) -> Array:
    """[B, T] losses of targets that exist."""

    def all_losses(hidden: Array, embedding: Array, targets: Array, *, size: int, on_cpu: bool) -> Array:
        del on_cpu

        def losses(part: tuple[Array, ...]) -> Array:
            h, t = part
            _, total, top, _ = _exponentials(h, embedding, head)
            return _losses(h, embedding, t, total, top, head)

        return _joined(jax.lax.map(losses, _chunks((hidden, targets), size)), targets.shape[1])

    return _in_chunks(all_losses, chunk, targets.shape, hidden, embedding, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_losses(
    hidden: Array, embedding: Array, targets: Array, weights: Array, head: _Head, chunk: int
) -> Array:
    """[S] sums over tokens of weight * loss, of streams [S, B, T, D]."""
    losses = [_token_losses(stream, embedding, targets, head, chunk) for stream in hidden]
    return jnp.stack([jnp.sum(weights * of_stream) for of_stream in losses])


def _weighted_losses_fwd(
    hidden: Array, embedding: Array, targets: Array, weights: Array, head: _Head, chunk: int
) -> tuple[Array, tuple[Array, list[Array], Array]]:
    gradients = functools.partial(_losses_and_gradients, head=head)
    sums, *residuals = _in_chunks(gradients, chunk, targets.shape, hidden, embedding, targets, weights)
    return sums, tuple(residuals)


def _losses_and_gradients(hidden: Array, embedding: Array, targets: Array, weights: Array, *, head: _Head,
                          size: int, on_cpu: bool) -> tuple[Array, Array, list[Array], Array]:
    """The weighted sums of losses [S], their gradients with respect to hidden and embedding (one [D, V] a stream), and
    the losses [S, B, T]."""
    # One loop over the chunks of one stream after another is compiled once. On CPU a loop of few steps is slower.
    groups = [[stream] for stream in hidden] if on_cpu else [list(hidden)]
    loops = [_loop(group, embedding, targets, weights, head, size) for group in groups]
    d_hidden, losses = jnp.concatenate([x for x, _, _ in loops]), jnp.concatenate([x for _, _, x in loops])
    return (jnp.sum(weights[None] * losses, axis=(1, 2)), d_hidden, [d for loop in loops for d in loop[1]], losses)


def _loop(hidden: list[Array], embedding: Array, targets: Array, weights: Array, head: _Head, size: int
          ) -> tuple[Array, list[Array], Array]:
    """Gradients with respect to hidden and embedding, and the losses [S, B, T]."""
    wide, streams, length = _wide(embedding), len(hidden), targets.shape[1]

    def body(d_embedding: Array, part: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        stream, h, t, w = part
        exps, total, top, slope = _exponentials(h, embedding, head)
        losses = _losses(h, embedding, t, total, top, head)
        # total * (softmax - one-hot): the target's entry is changed in place.
        rows = jnp.indices(t.shape, sparse=True)
        exps = exps.at[(*rows, t)].add(-total, unique_indices=True, indices_are_sorted=True)
        exps = (exps if slope is None else exps * slope).astype(embedding.dtype)
        scale = (w / total)[..., None]
        d_hidden = jnp.einsum("btv,vd->btd", exps, embedding, preferred_element_type=wide) * scale
        scaled = (h.astype(wide) * scale).astype(embedding.dtype)
        grown = d_embedding if streams == 1 else jax.lax.dynamic_index_in_dim(d_embedding, stream, keepdims=False)
        grown = grown + jnp.einsum("btd,btv->dv", scaled, exps, preferred_element_type=wide)
        if streams > 1:
            grown = jax.lax.dynamic_update_index_in_dim(d_embedding, grown, stream, 0)
        return grown, (d_hidden.astype(h.dtype), losses)

    # The matrix's gradient grows as [D, V]: [V, D] would transpose every chunk's exponentials.
    shape = embedding.shape[::-1]
    start = match_varying(jnp.zeros(shape if streams == 1 else (streams, *shape), wide), like=hidden)
    of_streams = [_chunks((stream, targets, weights), size) for stream in hidden]
    count = of_streams[0][0].shape[0]
    parts = of_streams[0] if streams == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *of_streams)
    indices = match_varying(jnp.repeat(jnp.arange(streams), count), like=hidden)
    d_embedding, by_token = jax.lax.scan(body, start, (indices, *parts))
    d_hidden, losses = (jnp.stack([_joined(x[i * count : (i + 1) * count], length) for i in range(streams)])
                        for x in by_token)
    return d_hidden, [d_embedding] if streams == 1 else list(d_embedding), losses


def _weighted_losses_bwd(
    _head: _Head, _chunk: int, residuals: tuple[Array, list[Array], Array], cotangent: Array
) -> tuple[Array, Array, None, Array]:
    d_hidden, d_embedding, losses = residuals
    of_tokens = cotangent[:, None, None]
    d_table = functools.reduce(jnp.add, [d * cotangent[i] for i, d in enumerate(d_embedding)]).T
    return d_hidden * of_tokens[..., None].astype(d_hidden.dtype), d_table, None, jnp.sum(losses * of_tokens, axis=0)


_weighted_losses.defvjp(_weighted_losses_fwd, _weighted_losses_bwd)


def _check_shapes(hidden: Array, embedding: Array, targets: Array) -> None:
    fits = hidden.ndim == 3 and embedding.ndim == 2 and hidden.shape[-1] == embedding.shape[-1]
    require(fits and targets.shape == hidden.shape[:2], f"shapes are hidden {hidden.shape}, embedding "
            f"{embedding.shape}, targets {targets.shape}; give [batch, time, d], [vocabulary, d] and [batch, time]")


def _wide(x: Array) -> jnp.dtype:
    return at_least_float32(x.dtype)


def _exponentials(hidden: Array, embedding: Array, head: _Head) -> tuple[Array, Array, Array, Array | None]:
    """exp(logits - top) [b, t, V], 0 from the end of the vocabulary on, its sum and the row maximum, both [b, t], and
    the slope of the logits' cap [b, t, V] where there is one."""
    hidden = hidden.astype(embedding.dtype)
    logits = capped(jnp.einsum("btd,vd->btv", hidden, embedding, preferred_element_type=_wide(embedding)), head.cap)
    slope = None if head.cap is None else cap_slope(logits, head.cap)
    if head.vocabulary < embedding.shape[0]:
        logits = jnp.where(jnp.arange(embedding.shape[0]) < head.vocabulary, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1)
    exps = jnp.exp(logits - top[..., None])
    return exps, jnp.sum(exps, axis=-1), top, slope


def _losses(hidden: Array, embedding: Array, targets: Array, total: Array, top: Array, head: _Head) -> Array:
    """[b, t] losses; the target's logit is a product of its own, so that the logits are read no further time."""
    target = jnp.sum(hidden.astype(total.dtype) * embedding[targets].astype(total.dtype), axis=-1)
    return top + jnp.log(total) - capped(target, head.cap)


def _in_chunks(function: Callable[..., Any], chunk: int, shape: tuple[int, ...], *arrays: Array) -> Any:
    """``function(*arrays, size=, on_cpu=)`` with the positions of a chunk of about ``chunk`` of the [B, T] tokens.

    Where ``chunk`` is 0 the platform that it is compiled for decides.
    """

    def positions(tokens: int) -> int:
        parts = max(1, -(-math.prod(shape) // tokens))
        return max(1, -(-shape[1] // parts))

    on_cpu, on_tpu, elsewhere = (functools.partial(function, size=positions(chunk or most), on_cpu=most == _CPU_CHUNK)
                                 for most in (_CPU_CHUNK, _TPU_CHUNK, _CHUNK))
    return jax.lax.platform_dependent(*arrays, cpu=on_cpu, tpu=on_tpu, default=elsewhere)


def _chunks(arrays: tuple[Array, ...], size: int) -> tuple[Array, ...]:
    """[B, T, ...] -> [n, B, size, ...], zero-padded at the end (weight 0)."""
    batch, length = arrays[0].shape[:2]
    count = -(-length // size)

    def split(x: Array) -> Array:
        pad = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, size, *x.shape[2:]), 1, 0)

    return tuple(split(x) for x in arrays)


def _joined(x: Array, length: int) -> Array:
    """Inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]
