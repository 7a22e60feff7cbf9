"""Kernels for NVIDIA GPUs, in Pallas: what XLA would make of a row-wise function or of attention is many small ones.

At the shape of the paper a training step waits for its kernels to start, not for arithmetic: a gate was 22 of them, an
attention of two streams 69. They are taken where the mesh that is traced for (`jax.sharding.get_abstract_mesh`) is of
one GPU, or for what one of several has (`jax.shard_map`, all of whose axes are manual); everywhere else, and for shapes
that they do not fit, the plain code runs, of which each is a transcription (tests/test_triton.py runs both).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxablate.ops.varying import result_like

_GPUS = ("cuda", "gpu")
# A block's numbers: larger ones leave the registers.
_BLOCK_SIZE, _WIDEST = 8192, 8192
_POSITIONS = 64


def is_gpu(mesh: Mesh) -> bool:
    """Whether a mesh is of GPUs."""
    return mesh.devices.flat[0].platform in _GPUS


def _enabled() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = set(mesh.axis_types)
    of_one = kinds == {AxisType.Manual} or (mesh.size == 1 and kinds == {AxisType.Auto})
    return of_one and getattr(mesh.abstract_device, "platform", None) in _GPUS


def fits_rows(x: jax.Array) -> bool:
    """Whether `by_rows` is to be taken for the rows of an array [..., units]."""
    return _enabled() and x.dtype == jnp.float32 and x.size > 0 and x.shape[-1] <= _WIDEST


def by_rows(
    function: Callable[..., Sequence[jax.Array]], rows: Sequence[jax.Array], shared: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct], *, totals: int = 0, fill: Sequence[float] | None = None,
) -> list[jax.Array]:
    """A function of rows in one kernel, a block of rows at a time.

    Args:
      function: (*blocks [rows, width], *shared [1, width]) -> outputs, each [rows, width of its own]; the last
        ``totals`` of them are sums over the rows, [1, width], all of the same width and type.
      rows: arrays [..., width] of the same leading axes. Widths are filled up to powers of two.
      shared: arrays [width] or scalars that all rows see.
      outputs: shapes [..., width] and types; those of totals are [width].
      totals: see function.
      fill: what rows are filled up with, 0 by default.
    """
    from jax.experimental import pallas as pl

    lead = rows[0].shape[:-1]
    n = math.prod(lead)
    widths = [_power(x.shape[-1]) for x in (*rows, *outputs)]
    size = math.gcd(n, max(1, _BLOCK_SIZE // max(widths)))
    size = 1 << (size.bit_length() - 1) if size & (size - 1) else size
    blocks = n // size
    fill = fill or [0.0] * len(rows)
    split = len(outputs) - totals

    def kernel(*refs: Any) -> None:
        inputs, others, results = (refs[: len(rows)], refs[len(rows) : len(rows) + len(shared)],
                                   refs[len(rows) + len(shared) :])
        values = [_load(ref, x.shape[-1], other) for ref, x, other in zip(inputs, rows, fill, strict=True)]
        values += [_load(ref, x.size, 0.0) for ref, x in zip(others, shared, strict=True)]
        made = function(*values)
        for ref, value, out in zip(results, made[:split], outputs, strict=False):
            _store(ref, value.astype(out.dtype), out.shape[-1])
        for i, (value, out) in enumerate(zip(made[split:], outputs[split:], strict=True)):
            _store(results[-1].at[np.int32(i)], value.astype(out.dtype), out.shape[-1])

    def block(width: int, of_rows: int, index: Callable[[Any], tuple[Any, int]]) -> Any:
        return pl.BlockSpec((of_rows, _power(width)), index)

    def every(i: Any) -> tuple[Any, int]:
        return i, 0

    found = pl.pallas_call(
        kernel, grid=(blocks,), **_options(warps=4),
        in_specs=[block(x.shape[-1], size, every) for x in rows] + [block(x.size, 1, lambda i: (0, 0)) for x in shared],
        out_specs=[block(x.shape[-1], size, every) for x in outputs[:split]] + [
            pl.BlockSpec((totals, 1, _power(x.shape[-1])), lambda i: (0, i, 0)) for x in outputs[split:][:1]],
        out_shape=[result_like(rows[0], (n, x.shape[-1]), x.dtype) for x in outputs[:split]] + [
            result_like(rows[0], (totals, blocks, x.shape[-1]), x.dtype) for x in outputs[split:][:1]],
    )(*(x.reshape(n, x.shape[-1]) for x in rows), *(x.reshape(1, x.size) for x in shared))
    of_rows = [x.reshape(out.shape) for x, out in zip(found, outputs[:split], strict=False)]
    return of_rows + (list(jnp.sum(found[-1], axis=1)) if totals else [])


def vectors(x: jax.Array) -> list[Any]:
    """n lists of the m vectors of an array [n, m, D], in one kernel where XLA would make one a vector."""
    n, m, width = x.shape
    if not _enabled() or width % 128:
        return [list(part) for part in x]
    rows = _unstack(x.reshape(n * m, width))
    return [list(rows[i : i + m]) for i in range(0, n * m, m)]


@jax.custom_vjp
def _unstack(x: jax.Array) -> tuple[jax.Array, ...]:
    from jax.experimental import pallas as pl

    n, size = x.shape
    width = math.gcd(size, 4096)

    def kernel(ref: Any, *rows: Any) -> None:
        for i, row in enumerate(rows):
            row[...] = ref[np.int32(i)]

    rows = pl.pallas_call(
        kernel, grid=(size // width,), **_options(warps=4),
        in_specs=[pl.BlockSpec((n, width), lambda i: (0, i))], out_specs=[pl.BlockSpec((width,), lambda i: (i,))] * n,
        out_shape=[result_like(x, (size,), x.dtype)] * n,
    )(x)
    return tuple(rows)


_unstack.defvjp(lambda x: (_unstack(x), None), lambda _, rows: (jnp.stack(rows),))


def _power(width: int) -> int:
    return 1 << max(width - 1, 0).bit_length()


def _options(*, warps: int) -> dict[str, Any]:
    from jax.experimental.pallas import triton as pallas_triton

    return {"compiler_params": pallas_triton.CompilerParams(num_warps=warps, num_stages=1)}


def _inside(width: int) -> jax.Array | None:
    """[1, power of two] mask of the columns that there are; None where it is all of them."""
    if _power(width) == width:
        return None
    return jax.lax.broadcasted_iota(jnp.int32, (1, _power(width)), 1) < width


def _load(ref: Any, width: int, other: float) -> jax.Array:
    from jax.experimental.pallas import triton as pallas_triton

    inside = _inside(width)
    if inside is None:
        return ref[...]
    return pallas_triton.load(ref, mask=jnp.broadcast_to(inside, ref.shape), other=other)


def _store(ref: Any, value: jax.Array, width: int) -> None:
    from jax.experimental.pallas import triton as pallas_triton

    inside = _inside(width)
    if inside is None:
        ref[...] = value
    else:
        pallas_triton.store(ref, value, mask=jnp.broadcast_to(inside, ref.shape))


def fits_attention(qkv: jax.Array) -> bool:
    """Whether `attention_forward` and `attention_backward` are to be taken."""
    _, _, time, _, _, width = qkv.shape
    return (_enabled() and qkv.dtype in (jnp.float32, jnp.bfloat16) and time % _POSITIONS == 0 and qkv.size > 0
            and width <= 128 and (width <= 16 or _power(width) == width))


def attention_forward(qkv: jax.Array, window: int | None, scale: float) -> tuple[jax.Array, jax.Array]:
    """`jaxablate.ops.attention.packed_attention`: [S, B, T, 3, N, H] -> [S, B, T, N, H], and log-sum-exps [B, N, S, T].

    A program takes the queries of 64 positions of one head, and goes over the keys before them, 64 at a time.
    """
    from jax.experimental import pallas as pl

    streams, batch, time, _, heads, width = qkv.shape
    padded = max(16, _power(width))

    def kernel(qkv_ref: Any, out_ref: Any, log_sum_ref: Any) -> None:
        part = _Part(qkv_ref, width, padded, window, scale)
        start = pl.program_id(2) * _POSITIONS
        queries, carry = [], []
        for s in range(streams):
            q, k_self, v_self = (part.read(s, start, c) for c in range(3))
            queries.append(q)
            carry.append((v_self.astype(jnp.float32), part.own_scores(q, k_self), jnp.ones(_POSITIONS, jnp.float32)))

        def body(j: Any, carry: Any) -> Any:
            k, v = part.read(0, j * _POSITIONS, 1), part.read(0, j * _POSITIONS, 2)
            seen = part.seen(start, j * _POSITIONS)
            after = []
            for q, (out, top, total) in zip(queries, carry, strict=True):
                scores = jnp.where(seen, part.dot(q, k.T) * scale, -jnp.inf)
                new_top = jnp.maximum(top, jnp.max(scores, axis=1))
                weights, shrink = jnp.exp(scores - new_top[:, None]), jnp.exp(top - new_top)
                out = out * shrink[:, None] + part.dot(weights.astype(v.dtype), v)
                after.append((out, new_top, total * shrink + jnp.sum(weights, axis=1)))
            return after

        carry = jax.lax.fori_loop(part.first(start), pl.program_id(2) + 1, body, carry)
        for s, (out, top, total) in enumerate(carry):
            part.write(out_ref.at[np.int32(s), pl.ds(start, _POSITIONS)], out / total[:, None])
            log_sum_ref[s, pl.ds(start, _POSITIONS)] = top + jnp.log(total)

    def head(*shape: int | None, place: Callable[..., tuple[Any, ...]]) -> Any:
        return pl.BlockSpec(shape, lambda b, n, _i: place(b, n))

    out, log_sum = pl.pallas_call(
        kernel, grid=(batch, heads, time // _POSITIONS), **_options(warps=4),
        in_specs=[head(streams, None, time, 3, None, padded, place=lambda b, n: (0, b, 0, 0, n, 0))],
        out_specs=[head(streams, None, time, None, padded, place=lambda b, n: (0, b, 0, n, 0)),
                   head(None, None, streams, time, place=lambda b, n: (b, n, 0, 0))],
        out_shape=[result_like(qkv, (streams, batch, time, heads, width), qkv.dtype),
                   result_like(qkv, (batch, heads, streams, time), jnp.float32)],
    )(qkv)
    return out, log_sum


def attention_backward(qkv: jax.Array, out: jax.Array, log_sum: jax.Array, d_out: jax.Array, window: int | None,
                       scale: float) -> jax.Array:
    """The derivative with respect to qkv.

    A program takes 64 positions of one head: first as queries, over the keys before them, then as keys, over the
    queries after them.
    """
    from jax.experimental import pallas as pl

    streams, batch, time, _, heads, width = qkv.shape
    padded = max(16, _power(width))

    def kernel(qkv_ref: Any, out_ref: Any, log_sum_ref: Any, d_out_ref: Any, d_qkv_ref: Any) -> None:
        part = _Part(qkv_ref, width, padded, window, scale)
        block = pl.program_id(2)
        start = block * _POSITIONS

        def query(s: int, at: Any) -> tuple[jax.Array, ...]:
            """Queries, the derivative of their output, log-sum-exp, the weights' mean derivative."""
            rows = pl.ds(at, _POSITIONS)
            d, out = (part.load(ref.at[np.int32(s), rows]) for ref in (d_out_ref, out_ref))
            delta = jnp.sum(d.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
            return part.read(s, at, 0), d, log_sum_ref[s, rows], delta

        def pair(q: tuple[jax.Array, ...], k: jax.Array, v: jax.Array, seen: jax.Array
                 ) -> tuple[jax.Array, jax.Array]:
            """Weights, and the derivative of the scores, [queries, keys]."""
            queries, d, log_sum, delta = q
            weights = jnp.where(seen, jnp.exp(part.dot(queries, k.T) * scale - log_sum[:, None]), 0)
            return weights, weights * (part.dot(d, v.T) - delta[:, None]) * scale

        own = []
        mine = [query(s, start) for s in range(streams)]
        for s, (q, d, log_sum, delta) in enumerate(mine):
            k_self, v_self = part.read(s, start, 1), part.read(s, start, 2)
            weight = jnp.exp(part.own_scores(q, k_self) - log_sum)
            d_score = weight * (jnp.sum(d.astype(jnp.float32) * v_self.astype(jnp.float32), axis=1) - delta) * scale
            own.append((d_score[:, None] * k_self.astype(jnp.float32), d_score[:, None] * q.astype(jnp.float32),
                        weight[:, None] * d.astype(jnp.float32)))

        def over_keys(j: Any, d_queries: Any) -> Any:
            k, v = part.read(0, j * _POSITIONS, 1), part.read(0, j * _POSITIONS, 2)
            seen = part.seen(start, j * _POSITIONS)
            return [d_q + part.dot(pair(q, k, v, seen)[1].astype(k.dtype), k)
                    for q, d_q in zip(mine, d_queries, strict=True)]

        d_queries = jax.lax.fori_loop(part.first(start), block + 1, over_keys, [d_q for d_q, _, _ in own])
        keys, values = part.read(0, start, 1), part.read(0, start, 2)

        def over_queries(j: Any, d_pair: Any) -> Any:
            d_k, d_v = d_pair
            seen = part.seen(j * _POSITIONS, start)
            for s in range(streams):
                q = query(s, j * _POSITIONS)
                weights, d_scores = pair(q, keys, values, seen)
                d_k = d_k + part.dot(d_scores.astype(keys.dtype).T, q[0])
                d_v = d_v + part.dot(weights.astype(values.dtype).T, q[1])
            return d_k, d_v

        zeros = jnp.zeros((_POSITIONS, padded), jnp.float32)
        d_k, d_v = jax.lax.fori_loop(block, part.last(start, time), over_queries, (zeros, zeros))
        for s, (_, d_k_self, d_v_self) in enumerate(own):
            rows = pl.ds(start, _POSITIONS)
            part.write(d_qkv_ref.at[np.int32(s), rows, np.int32(0)], d_queries[s])
            part.write(d_qkv_ref.at[np.int32(s), rows, np.int32(1)], d_k_self + d_k if s == 0 else d_k_self)
            part.write(d_qkv_ref.at[np.int32(s), rows, np.int32(2)], d_v_self + d_v if s == 0 else d_v_self)

    def head(*shape: int | None, place: Callable[..., tuple[Any, ...]]) -> Any:
        return pl.BlockSpec(shape, lambda b, n, _i: place(b, n))

    qkv_spec = head(streams, None, time, 3, None, padded, place=lambda b, n: (0, b, 0, 0, n, 0))
    out_spec = head(streams, None, time, None, padded, place=lambda b, n: (0, b, 0, n, 0))
    return pl.pallas_call(
        kernel, grid=(batch, heads, time // _POSITIONS), **_options(warps=4),
        in_specs=[qkv_spec, out_spec, head(None, None, streams, time, place=lambda b, n: (b, n, 0, 0)), out_spec],
        out_specs=qkv_spec, out_shape=result_like(qkv, qkv.shape, qkv.dtype),
    )(qkv, out, log_sum, d_out)


class _Part:
    """Queries, keys and values of one head of one text, in blocks of positions."""

    def __init__(self, ref: Any, width: int, padded: int, window: int | None, scale: float):
        self.ref, self.window, self.scale = ref, window, scale
        self.inside = jnp.broadcast_to(jax.lax.broadcasted_iota(jnp.int32, (1, padded), 1) < width,
                                       (_POSITIONS, padded))

    def load(self, ref: Any) -> jax.Array:
        """[64, H filled up with zeros]."""
        from jax.experimental.pallas import triton as pallas_triton

        return pallas_triton.load(ref, mask=self.inside, other=0.0)

    def read(self, stream: int, start: Any, which: int) -> jax.Array:
        """Queries (0), keys (1) or values (2) of a stream from a position on."""
        from jax.experimental import pallas as pl

        return self.load(self.ref.at[np.int32(stream), pl.ds(start, _POSITIONS), np.int32(which)])

    def write(self, ref: Any, value: jax.Array) -> None:
        """The inverse of `load`."""
        from jax.experimental.pallas import triton as pallas_triton

        pallas_triton.store(ref, value.astype(ref.dtype), mask=self.inside)

    def dot(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """A product in float32 (never in TF32: these are few)."""
        from jax.experimental.pallas import triton as pallas_triton

        return pallas_triton.dot(a, b, allow_tf32=False)

    def own_scores(self, q: jax.Array, k_self: jax.Array) -> jax.Array:
        return jnp.sum(q.astype(jnp.float32) * k_self.astype(jnp.float32), axis=1) * self.scale

    def seen(self, queries: Any, keys: Any) -> jax.Array:
        """Which keys [64 of them] each query sees but its own, by their first positions."""
        i = queries + jax.lax.broadcasted_iota(jnp.int32, (_POSITIONS, _POSITIONS), 0)
        j = keys + jax.lax.broadcasted_iota(jnp.int32, (_POSITIONS, _POSITIONS), 1)
        earlier = j < i
        return earlier if self.window is None else earlier & (i - j < self.window)

    def first(self, start: Any) -> Any:
        """The first block of keys that queries from ``start`` on see."""
        return 0 if self.window is None else jnp.maximum(start - self.window + 1, 0) // _POSITIONS

    def last(self, start: Any, time: int) -> Any:
        """The end of the blocks of queries that see keys from ``start`` on."""
        blocks = time // _POSITIONS
        if self.window is None:
            return blocks
        return jnp.minimum((start + _POSITIONS - 1 + self.window - 1) // _POSITIONS + 1, blocks)
