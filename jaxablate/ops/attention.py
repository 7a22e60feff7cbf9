"""Causal attention of the clean stream, and of the ablated stream that reads the clean stream's keys and values.

All are one operation: earlier positions come from (k, v), the own position from the same or from (k_self, v_self).
It runs over blocks of queries, so that keys no query of a block sees cost nothing, and has a derivative of its own,
with which forward and backward take 28.7 ms where JAX's takes 163 (medians, CPU). On accelerators it recomputes the
probabilities: q, k, v, the result and one log-sum-exp a query are kept, never [B, N, T, T], and a block is large, since
each costs some ten kernels. On CPU the exponentials are kept, which is faster.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from jaxablate.config.checks import require
from jaxablate.ops import triton
from jaxablate.ops.cap import cap_slope, capped
from jaxablate.ops.remat import kept
from jaxablate.ops.reverse_mode import reverse_mode_only
from jaxablate.ops.varying import match_varying
from jaxablate.types import at_least_float32

Heads = Float[ArrayLike, "batch time heads width"]
HeadOutputs = Float[Array, "batch time heads width"]
Scale = float | Shaped[Array | np.ndarray, ""]
Pair = tuple[Array, Array]
"""Keys and values, [B, N, T, H]."""

# Positions of a block: at T = 256 on CPU 32 and 64 did best of 32..256. Longer sequences take at most 8 blocks.
_CPU_BLOCK, _BLOCK, _MOST_BLOCKS = 64, 512, 8


class _Options(NamedTuple):
    """What becomes of q k^T before the softmax; compiled functions are made for it."""

    window: int | None
    cap: float | None
    scale: float = 1.0


def causal_attention(
    q: Heads, k: Heads, v: Heads, *, window: int | None = None, scale: Scale = 1.0, cap: float | None = None
) -> HeadOutputs:
    """softmax(scale * q k^T) v over j <= i, and i - j < window where one is given; GPT-Neo and the paper take scale 1.

    With a cap, scores are cap * tanh(scale * q k^T / cap), as in Gemma 2. Outputs of the heads are of v's type, scores
    and softmax at least float32. The scale may be traced or learned: then it multiplies the queries. The derivative is
    for reverse mode, as that of `linear_cross_entropy`. Heads that share keys and values take them repeated
    (`repeat_heads`).

    Raises:
      ConfigError: the arrays are not of one shape [batch, time, heads, width], the window is not an int above 0, or
        the cap is not a number above 0.
    """
    q, k, v = _checked(window, cap, q=q, k=k, v=v)
    return _attention(q, (k, v), None, _Options(window, cap), scale)


def two_stream_attention(
    q: Heads, k: Heads, v: Heads, k_self: Heads, v_self: Heads, *, window: int | None = None, scale: Scale = 1.0,
    cap: float | None = None,
) -> HeadOutputs:
    """Attention of the ablated stream: earlier positions from the clean stream, the own position from itself.

    What is ablated at a token is therefore never seen by later tokens (docs/papers.md, Two streams). k and v are the
    clean stream's, used where j < i; k_self and v_self the ablated stream's, used where j = i. All else is as in
    `causal_attention`.
    """
    q, k, v, k_self, v_self = _checked(window, cap, q=q, k=k, v=v, k_self=k_self, v_self=v_self)
    return _attention(q, (k, v), (k_self, v_self), _Options(window, cap), scale)


def packed_attention(
    qkv: Float[ArrayLike, "streams batch time 3 heads width"], *, window: int | None = None, scale: Scale = 1.0,
    cap: float | None = None,
) -> Float[Array, "streams batch time heads width"]:
    """`causal_attention` of the clean stream, and with a second stream `two_stream_attention` of it, in one.

    The first axis is the stream, the clean one first; queries, keys and values lie beside each other, as one product
    makes them. All else is as in `causal_attention`.
    """
    qkv = jnp.asarray(qkv)
    _check_options(window, cap)
    require(qkv.ndim == 6 and qkv.shape[0] in (1, 2) and qkv.shape[3] == 3,
            f"qkv has the shape {qkv.shape}; give one or two streams, [streams, batch, time, 3, heads, width]")
    if triton.fits_attention(qkv) and cap is None and not isinstance(scale, Tracer):
        return _on_gpu(qkv, window, float(scale))
    streams, batch, time, _, heads, width = qkv.shape
    clean = _heads_first(qkv[0, :, :, 1]), _heads_first(qkv[0, :, :, 2])
    # Queries of both streams at a position lie one after another.
    q, *own = (qkv[:, :, :, i].transpose(1, 3, 2, 0, 4).reshape(batch, heads, streams * time, width) for i in range(3))
    out = _attention(q, clean, (own[0], own[1]) if streams == 2 else None, _Options(window, cap), scale)
    return out.reshape(batch, time, streams, heads, width).transpose(2, 0, 1, 3, 4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _on_gpu(qkv: Array, window: int | None, scale: float) -> Array:
    return triton.attention_forward(qkv, window, scale)[0]


def _on_gpu_fwd(qkv: Array, window: int | None, scale: float) -> tuple[Array, tuple[Array, Array, Array]]:
    out, log_sum = kept(triton.attention_forward(qkv, window, scale))
    return out, (qkv, out, log_sum)


def _on_gpu_bwd(window: int | None, scale: float, residuals: tuple[Array, Array, Array], d_out: Array) -> tuple[Array]:
    return (triton.attention_backward(*residuals, d_out, window, scale),)


_on_gpu.defvjp(_on_gpu_fwd, _on_gpu_bwd)


def attention_weights(
    q: Heads, k: Heads, k_self: Heads | None = None, *, window: int | None = None, scale: Scale = 1.0,
    cap: float | None = None,
) -> Float[Array, "batch heads time time"]:
    """The weights that `causal_attention`, or with k_self `two_stream_attention`, gives to every position.

    For measures and losses that look at attention itself; costs B N T^2 numbers, which the other two never hold. They
    are at least float32; rows sum to 1, later positions have 0.
    """
    q, k, *own_key = _checked(window, cap, q=q, k=k, **{} if k_self is None else {"k_self": k_self})
    scores = _dot("bnth,bnsh->bnts", q, k, q)
    scale = jnp.asarray(scale, scores.dtype)
    scores = scores * scale
    if own_key:
        own = _own_scores(q, own_key[0], scale)
        scores = jnp.where(jnp.eye(q.shape[2], dtype=bool), own, scores)
    scores = capped(scores, cap)
    all_queries = _Block(0, q.shape[2], 0)
    return jax.nn.softmax(jnp.where(_hidden(all_queries, window, strict=False), -jnp.inf, scores), axis=-1)


def visible_keys(valid: Bool[Array, "batch time"], window: int | None = None) -> Bool[Array, "batch time time"]:
    """Which keys (last axis) each query sees in sequences with padding: valid ones, not later, within the window."""
    length = valid.shape[-1]
    return ~_hidden(_Block(0, length, 0), window, strict=False)[None] & valid[:, None, :]


def masked_attention(
    q: Float[ArrayLike, "*#batch queries width"],
    k: Float[ArrayLike, "*#batch keys width"],
    v: Float[ArrayLike, "*#batch keys width"],
    visible: Bool[ArrayLike, "..."],
    *,
    scale: Scale = 1.0,
    cap: float | None = None,
) -> Float[Array, "*batch queries width"]:
    """softmax(scale * q k^T) v over the visible keys, any number of heads, with queries of their own number.

    For prompts with padding and for a few queries; it holds all weights. ``visible`` is broadcast to [..., queries,
    keys]; a query that sees no key (padding) gives 0. Types and cap are as in `causal_attention`.
    """
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    scores = _dot("...qh,...sh->...qs", q, k, q)
    scores = capped(scores * jnp.asarray(scale, scores.dtype), cap)
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0)
    return _dot("...qs,...sh->...qh", weights, v, v).astype(v.dtype)


def repeat_heads(x: Float[Array, "*lead kv_heads width"], heads: int) -> Float[Array, "*lead heads width"]:
    """Keys or values of as many heads as there are queries: each serves heads / kv_heads that follow one another."""
    return x if x.shape[-2] == heads else jnp.repeat(x, heads // x.shape[-2], axis=-2)


def _checked(window: int | None, cap: float | None, **arrays: ArrayLike) -> list[Array]:
    """Arrays of one shape [batch, time, heads, width] with the heads first."""
    _check_options(window, cap)
    found = {name: jnp.asarray(x) for name, x in arrays.items()}
    shapes = [x.shape for x in found.values()]
    require(len(set(shapes)) == 1 and len(shapes[0]) == 4,
            f"shapes are {', '.join(f'{name} {x.shape}' for name, x in found.items())}; "
            "give arrays of one shape [batch, time, heads, width]")
    return [_heads_first(x) for x in found.values()]


def _check_options(window: int | None, cap: float | None) -> None:
    require(not isinstance(window, Tracer), "window is traced by JAX, but it decides what is compiled; give an int")
    require(window is None or window > 0, f"window={window} must be positive, or None for all earlier positions")
    require(not isinstance(cap, Tracer), "cap is traced by JAX, but it decides what is compiled; give a number")
    require(cap is None or cap > 0, f"cap={cap} must be positive, or None for scores without one")


def _attention(q: Array, clean: Pair, own: Pair | None, options: _Options, scale: Scale) -> Array:
    """`_attend` with the heads in their place; a traced scale, which may be learned, multiplies the queries."""
    require(jnp.ndim(scale) == 0, f"scale has the shape {jnp.shape(scale)}; give a number")
    if q.size == 0:
        return _heads_first(jnp.zeros(q.shape, clean[1].dtype))
    if isinstance(scale, Tracer):
        wide = _wide(q)
        q, scale = (q.astype(wide) * scale.astype(wide)).astype(q.dtype), 1.0
    with reverse_mode_only("attentions"):
        return _heads_first(_attend(*match_varying((q, clean, own)), options._replace(scale=float(scale))))


class _Block(NamedTuple):
    """Positions [start, stop) of queries, and the keys [first, stop) that some of them see.

    Where two streams attend together, there are ``streams`` queries a position, one after another.
    """

    start: int
    stop: int
    first: int
    streams: int = 1

    @property
    def queries(self) -> slice:
        """Where the queries of this block lie among those of the whole sequence."""
        return slice(self.start * self.streams, self.stop * self.streams)

    @property
    def keys(self) -> slice:
        """Where the keys that this block's queries may see lie in the clean stream."""
        return slice(self.first, self.stop)


def _blocks(q: Array, k: Array, window: int | None, size: int) -> list[_Block]:
    length, streams = k.shape[2], q.shape[2] // k.shape[2]
    size = max(size, -(-length // _MOST_BLOCKS))
    starts = range(0, length, size)
    return [_Block(s, min(s + size, length), 0 if window is None else max(0, s - window + 1), streams) for s in starts]


def _heads_first(x: Array) -> Array:
    """[B, T, N, H] <-> [B, N, T, H]."""
    return x.transpose(0, 2, 1, 3)


def _hidden(block: _Block, window: int | None, strict: bool) -> Array:
    """True where a query of the block must not see a key: the key is later (or its own), or has left the window."""
    i = jnp.arange(block.queries.start, block.queries.stop)[:, None] // block.streams
    j = jnp.arange(block.first, block.stop)[None, :]
    later = (j >= i) if strict else (j > i)
    return later if window is None else later | (i - j >= window)


def _wide(x: Array) -> jnp.dtype:
    return at_least_float32(x.dtype)


def _dot(spec: str, a: Array, b: Array, like: Array) -> Array:
    """Product of `a` and `b` in the type of `like`, accumulated in at least float32."""
    return jnp.einsum(spec, a.astype(like.dtype), b.astype(like.dtype), preferred_element_type=_wide(like))


def _scores(q: Array, k: Array, options: _Options) -> Array:
    """[B, N, queries, keys], hidden keys among them."""
    return capped(_dot("bnth,bnsh->bnts", q, k, q) * options.scale, options.cap)


def _seen(scores: Array, block: _Block, options: _Options, strict: bool) -> Array:
    return jnp.where(_hidden(block, options.window, strict), -jnp.inf, scores)


def _own_scores(q: Array, k_self: Array, scale: Scale) -> Array:
    return jnp.sum(q.astype(_wide(q)) * k_self.astype(_wide(q)), axis=-1, keepdims=True) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q: Array, clean: Pair, own: Pair | None, options: _Options) -> Array:
    """Heads first. clean = (k, v); own = (k_self, v_self), or None where the own position is the clean one too.

    q and own may have several queries a position (`_Block`).
    """
    on_cpu, elsewhere = (lambda q, clean, own, size=size: _forward(q, clean, own, options, size)[0]
                         for size in (_CPU_BLOCK, _BLOCK))
    return jax.lax.platform_dependent(q, clean, own, cpu=on_cpu, default=elsewhere)


def _attend_fwd(q: Array, clean: Pair, own: Pair | None, options: _Options) -> tuple[Array, tuple[Any, ...]]:
    # On CPU the exponentials stay for the backward pass: memory there is large and arithmetic slow. Elsewhere zeros
    # that nothing reads stand for them, since both must be of one type; the compiler drops those.
    def on_cpu(q: Array, clean: Pair, own: Pair | None) -> tuple[Array, Array, list[Pair]]:
        return _forward(q, clean, own, options, _CPU_BLOCK)

    kept_on_cpu = jax.eval_shape(on_cpu, q, clean, own)[2]

    def elsewhere(q: Array, clean: Pair, own: Pair | None) -> tuple[Array, Array, list[Pair]]:
        out, log_sum, _ = _forward(q, clean, own, options, _BLOCK)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept_on_cpu)
        return out, log_sum, match_varying(zeros, like=(q, clean, own))

    out, log_sum, saved = kept(jax.lax.platform_dependent(q, clean, own, cpu=on_cpu, default=elsewhere))
    return out, (q, clean, own, out, log_sum, saved)


# Traced once for all layers and streams of a shape, not three times each; ``inline`` leaves the programs as they are.
@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)
def _forward(q: Array, clean: Pair, own: Pair | None, options: _Options, size: int
             ) -> tuple[Array, Array, list[Pair]]:
    """Head outputs, log-sum-exp of the scores [B, N, queries, 1], and each block's probabilities and their sum."""
    outs, log_sums, exponentials = [], [], []
    for block in _blocks(q, clean[0], options.window, size):
        k, v = (x[:, :, block.keys] for x in clean)
        queries = q[:, :, block.queries]
        scores = _seen(_scores(queries, k, options), block, options, own is not None)
        top = jnp.max(scores, axis=-1, keepdims=True)
        if own is not None:
            k_self, v_self = (x[:, :, block.queries] for x in own)
            own_scores = capped(_own_scores(queries, k_self, options.scale), options.cap)
            top = jnp.maximum(top, own_scores)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _dot("bnts,bnsh->bnth", weights, v, v)
        if own is not None:
            own_weight = jnp.exp(own_scores - top)
            total, out = total + own_weight, out + own_weight.astype(out.dtype) * v_self.astype(out.dtype)
        outs.append((out / total).astype(v.dtype))
        log_sums.append(top + jnp.log(total))
        exponentials.append((weights, total))
    return _joined(outs), _joined(log_sums), exponentials


def _joined(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def _attend_bwd(options: _Options, residuals: tuple[Any, ...], d_out: Array) -> tuple[Array, Pair, Pair | None]:
    def elsewhere(d_out: Array, residuals: tuple[Any, ...]) -> tuple[Array, Pair, Pair | None]:
        return _backward(d_out, (*residuals[:-1], None), options, _BLOCK)

    def on_cpu(d_out: Array, residuals: tuple[Any, ...]) -> tuple[Array, Pair, Pair | None]:
        return _backward(d_out, residuals, options, _CPU_BLOCK)

    return jax.lax.platform_dependent(d_out, residuals, cpu=on_cpu, default=elsewhere)


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _backward(d_out: Array, residuals: tuple[Any, ...], options: _Options, size: int
              ) -> tuple[Array, Pair, Pair | None]:
    """Derivatives with respect to q, clean and own; without the exponentials they are computed again."""
    q, (k, v), own, out, log_sum, exponentials = residuals
    wide = _wide(q)
    delta = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
    # [B, N, H, T]: XLA's CPU product over the queries is five times faster with the keys last.
    d_k = d_v = None
    d_q = []
    for i, block in enumerate(_blocks(q, k, options.window, size)):
        queries, keys, values = q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys]
        saved = exponentials[i] if exponentials is not None else None
        weights, total, slope = _probabilities(queries, keys, log_sum[:, :, block.queries], saved, block, options,
                                               own is not None)
        scaled = d_out[:, :, block.queries].astype(wide) / total
        d_weights = _dot("bnth,bnsh->bnts", scaled, values, v) - delta[:, :, block.queries] / total
        d_scores = weights * d_weights * options.scale
        d_scores = d_scores if slope is None else d_scores * slope
        d_q.append(_dot("bnts,bnsh->bnth", d_scores, keys, k))
        d_k = _added(d_k, _dot("bnts,bnth->bnhs", d_scores, queries, q), block, k)
        d_v = _added(d_v, _dot("bnts,bnth->bnhs", weights, scaled, v), block, v)
    d_q, d_own = _joined(d_q), None
    if own is not None:
        k_self, v_self = own
        own_scores = capped(_own_scores(q, k_self, options.scale), options.cap)
        prob = jnp.exp(own_scores - log_sum)
        d_score = prob * (_own_scores(d_out, v_self, 1.0) - delta) * options.scale
        if options.cap is not None:
            d_score = d_score * cap_slope(own_scores, options.cap)
        d_q = d_q + d_score * k_self.astype(wide)
        d_own = (d_score * q.astype(wide)).astype(k_self.dtype), (prob * d_out.astype(wide)).astype(v_self.dtype)
    d_clean = tuple(jnp.asarray(d).swapaxes(2, 3).astype(x.dtype) for d, x in ((d_k, k), (d_v, v)))
    return d_q.astype(q.dtype), (d_clean[0], d_clean[1]), d_own


def _added(total: Array | None, part: Array, block: _Block, like: Array) -> Array:
    """The sum [B, N, H, T] over blocks so far, with that of one more, [B, N, H, keys]."""
    if part.shape[-1] == like.shape[2] and total is None:
        return part
    so_far: Array = match_varying(jnp.zeros(like.shape[:2] + like.shape[:1:-1], part.dtype), like=part) \
        if total is None else total
    return so_far.at[..., block.keys].add(part)


def _probabilities(q: Array, k: Array, log_sum: Array, saved: Pair | None, block: _Block, options: _Options,
                   strict: bool) -> tuple[Array, Array, Array | None]:
    """Probabilities of a block, the total by which they are yet to be divided, and the slope of the scores' cap."""
    scores = None
    if saved is None:
        # Without a barrier the compiler would merge them with those of the forward pass.
        q, k, log_sum = jax.lax.optimization_barrier((q, k, log_sum))
        scores = _scores(q, k, options)
        saved = jnp.exp(_seen(scores, block, options, strict) - log_sum), jnp.ones_like(log_sum)
    if options.cap is None:
        return *saved, None
    # Where exponentials were kept, scores are computed again: a cap cannot be read off those that are 0.
    return *saved, cap_slope(_scores(q, k, options) if scores is None else scores, options.cap)


_attend.defvjp(_attend_fwd, _attend_bwd)
