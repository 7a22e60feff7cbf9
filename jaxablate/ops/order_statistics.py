"""The k-th and (k+1)-th largest entry of each row and their places, without sorting.

XLA's sort (and so `jax.lax.top_k` with k > 1) took 64 ms on CPU for k = 8 of 512 in 1,024 rows, this 3. Here are only
elementwise comparisons and reductions over the row, so the compiler fuses them and they shard along all other axes.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxablate.config.checks import require
from jaxablate.ops import triton
from jaxablate.ops.varying import match_varying

# Above this k, repeated maxima (2 reductions a winner) cost more than bisection (a fixed number of them).
_MAX_REPEATED = 16


class Thresholds(NamedTuple):
    """Order statistics of rows of length U; the last axis of every field has the length 1."""

    kth: Float[Array, "*rows 1"]
    """The k-th largest value."""
    next: Float[Array, "*rows 1"]
    """The (k+1)-th largest value; it equals `kth` where there is a tie."""
    kth_index: Int[Array, "*rows 1"]
    """Place of the k-th largest value, int32; among equal values the lower index counts as larger."""
    next_index: Int[Array, "*rows 1"]
    """Place of the (k+1)-th largest value, int32."""


def thresholds(x: Float[Array, "*rows units"], k: int) -> Thresholds:
    """The k-th and (k+1)-th largest entry along the last axis, 1 <= k < units, k static.

    Ties are broken by the lower index first, as a stable descending sort would. A row with a NaN has no order: both its
    values are NaN, and its places mean nothing.

    Raises:
      ConfigError: k is out of range, not a whole number, or traced.

    Example:
      >>> t = thresholds(jnp.array([[1., 3., 3., 2.]]), k=1)
      >>> t.kth.item(), t.kth_index.item(), t.next.item(), t.next_index.item()
      (3.0, 1, 3.0, 2)
    """
    k = checked_k(x, k)
    if triton.fits_rows(x):
        one = [jax.ShapeDtypeStruct((*x.shape[:-1], 1), dtype) for dtype in (x.dtype, x.dtype, jnp.int32, jnp.int32)]
        return Thresholds(*triton.by_rows(functools.partial(_by_passes, k=k), [x], [], one, fill=[-jnp.inf]))
    if k > _MAX_REPEATED:
        return _by_bisection(x, k)
    # On CPU half the passes, where nothing ties; the branch would stall an accelerator.
    return jax.lax.platform_dependent(x, cpu=lambda x: _by_distinct_max_or_repeated(x, k),
                                      default=lambda x: _by_repeated_max(x, k))


def _by_passes(x: Array, k: int) -> Thresholds:
    return _by_bisection(x, k) if k > _MAX_REPEATED else _by_repeated_max(x, k)


def winners(x: Float[Array, "*rows units"], t: Thresholds) -> Bool[Array, "*rows units"]:
    """Mask of exactly the k largest entries of each row, given its `thresholds`; of none in a row with a NaN."""
    return (x > t.kth) | ((x == t.kth) & (_index(x) <= t.kth_index))


def checked_k(x: jax.Array, k: Any) -> int:
    """k as an int, if it is a possible number of winners among the last axis of x.

    Raises:
      ConfigError: see `thresholds`; or x has no axis.
    """
    require(not isinstance(k, Tracer), "k is traced by JAX, but it decides what is compiled; make it an int, "
            "under jax.jit a static argument: jax.jit(f, static_argnames='k')")
    require(hasattr(k, "__index__"), f"k={k!r} must be a whole number of type int, not {type(k).__name__}")
    require(x.ndim > 0, "scores are a single number; give an array whose last axis are the units, [..., units]")
    units = x.shape[-1]
    require(1 <= k < units, f"k={k} must be at least 1 and below the {units} units; choose 1..{units - 1}")
    return operator.index(k)


def _index(x: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _below(x: Array, value: Array, index: Array) -> Array:
    """Entries that come after (value, index) in descending order, lower index first."""
    return (x < value) | ((x == value) & (_index(x) > index))


def _largest(x: Array, allowed: Array) -> tuple[Array, Array]:
    value = jnp.max(x, axis=-1, keepdims=True, where=allowed, initial=-jnp.inf)
    index = jnp.min(_index(x), axis=-1, keepdims=True, where=allowed & (x == value), initial=x.shape[-1])
    return value, index


def _by_repeated_max(x: Array, k: int) -> Thresholds:
    def following(_: Any, largest: tuple[Array, Array]) -> tuple[Array, Array]:
        return _largest(x, _below(x, *largest))

    first = _largest(x, jnp.ones(x.shape, bool))
    kth = jax.lax.fori_loop(1, k, following, first)
    after = following(None, kth)
    return _unless_nan(first[0], Thresholds(kth[0], after[0], kth[1], after[1]))


def _by_distinct_max_or_repeated(x: Array, k: int) -> Thresholds:
    distinct = _by_distinct_max(x, k)
    tied = jnp.any((_count(x >= distinct.kth) != k) | (_count(x >= distinct.next) != k + 1))
    return jax.lax.cond(tied, lambda: _by_repeated_max(x, k), lambda: distinct)


def _by_distinct_max(x: Array, k: int) -> Thresholds:
    """Right where the k+1 largest entries of every row differ; half the passes of `_by_repeated_max`."""
    value = following = first = jnp.max(x, axis=-1, keepdims=True)
    for _ in range(k):
        value, following = following, jnp.max(jnp.where(x < following, x, -jnp.inf), axis=-1, keepdims=True)
    return _unless_nan(first, Thresholds(value, following, _place(x, value), _place(x, following)))


def _place(x: Array, value: Array) -> Array:
    """Index of the one entry equal to `value`; by a float maximum, which XLA:CPU reduces fastest."""
    return jnp.max(jnp.where(x == value, _index(x).astype(x.dtype), -1), axis=-1, keepdims=True).astype(jnp.int32)


def _by_bisection(x: Array, k: int) -> Thresholds:
    """Bisection over the value's bits, then over the index among equals: a fixed number of counting passes."""
    keys = _sortable(x)
    # The k-th largest key is the greatest number that at least k keys reach, found bit by bit from the highest.
    kth_key = _greatest(lambda key: _count(keys >= key) >= k, jnp.iinfo(keys.dtype).bits, keys)
    # Of the entries equal to it the first few, by index, are among the k; the last of these is the k-th entry.
    rank = k - _count(keys > kth_key)
    equal = keys == kth_key
    width = max(x.shape[-1] - 1, 1).bit_length()
    before = _greatest(lambda i: _count(equal & (_index(x).astype(i.dtype) < i)) < rank, width, keys)
    index = before.astype(jnp.int32)
    value = jnp.max(x, axis=-1, keepdims=True, where=equal | jnp.isnan(x), initial=-jnp.inf)
    following, following_index = _largest(x, _below(x, value, index))
    return _unless_nan(value, Thresholds(value, following, index, following_index))


def _unless_nan(value: Array, found: Thresholds) -> Thresholds:
    """What was found, with NaN for the values of rows in which a maximum was NaN."""
    kth, following = (jnp.where(jnp.isnan(value), value, x) for x in (found.kth, found.next))
    return found._replace(kth=kth, next=following)


def _count(mask: Array) -> Array:
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)


def _greatest(holds: Callable[[Array], Array], bits: int, like: Array) -> Array:
    """The greatest unsigned number of `bits` bits for which `holds`, a condition true up to it and false above."""

    def with_bit(i: Array, number: Array) -> Array:
        trial = number | (jnp.asarray(1, like.dtype) << (bits - 1 - i).astype(like.dtype))
        return jnp.where(holds(trial), trial, number)

    # Written out, the passes took no less time and four times as long to compile.
    return jax.lax.fori_loop(0, bits, with_bit, match_varying(jnp.zeros((*like.shape[:-1], 1), like.dtype), like=like))


def _sortable(x: Array) -> Array:
    """Unsigned integers in the order of the floats (both zeros alike): IEEE bits with the sign bit, or all, flipped."""
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
    bits = jnp.finfo(x.dtype).bits
    unsigned = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    sign = jnp.asarray(1 << (bits - 1), unsigned.dtype)
    return jnp.where(unsigned >= sign, ~unsigned, unsigned | sign)
