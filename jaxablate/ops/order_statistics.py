"""The k-th and (k+1)-th largest entry of each row and their places, without sorting.

XLA's sort (and so `jax.lax.top_k` with k > 1) took 64 ms on CPU for k = 8 of 512 in 1,024 rows, this 3. Here are only
elementwise comparisons and reductions over the row, so the compiler fuses them and they shard along all other axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Above this k, repeated maxima (2 reductions a winner) cost more than bisection (a fixed number of them).
_MAX_REPEATED = 16


class Thresholds(NamedTuple):
    """Order statistics of rows of length U; every field has a last axis of 1.

    Attributes:
      kth, next: the k-th and (k+1)-th largest value. Equal where there is a tie.
      kth_index, next_index: their places, int32; among equal values the lower index counts as larger.
    """

    kth: jax.Array
    next: jax.Array
    kth_index: jax.Array
    next_index: jax.Array


def thresholds(x: jax.Array, k: int) -> Thresholds:
    """The k-th and (k+1)-th largest entry along the last axis.

    Args:
      x: [..., U] float.
      k: rank, 1 <= k < U, static.

    Returns:
      `Thresholds`; ties are broken by the lower index first, as a stable descending sort would.

    Example:
      >>> t = thresholds(jnp.array([[1., 3., 3., 2.]]), k=1)
      >>> t.kth.item(), t.kth_index.item(), t.next.item(), t.next_index.item()
      (3.0, 1, 3.0, 2)
    """
    units = x.shape[-1]
    if not 1 <= k < units:
        raise ValueError(f"k={k} must be at least 1 and below the {units} units; choose 1..{units - 1}")
    if k > _MAX_REPEATED:
        return _by_bisection(x, k)
    if jax.default_backend() != "cpu":  # a branch would stall an accelerator
        return _by_repeated_max(x, k, unroll=k)
    distinct = _by_distinct_max(x, k)
    tied = jnp.any((_count(x >= distinct.kth) != k) | (_count(x >= distinct.next) != k + 1))
    return jax.lax.cond(tied, lambda: _by_repeated_max(x, k, unroll=1), lambda: distinct)


def winners(x: jax.Array, t: Thresholds) -> jax.Array:
    """Boolean mask of exactly the k largest entries of each row, given its `thresholds`."""
    return (x > t.kth) | ((x == t.kth) & (_index(x) <= t.kth_index))


def _index(x: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _below(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Entries that come after (value, index) in descending order, lower index first."""
    return (x < value) | ((x == value) & (_index(x) > index))


def _largest(x: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    value = jnp.max(x, axis=-1, keepdims=True, where=allowed, initial=-jnp.inf)
    index = jnp.min(_index(x), axis=-1, keepdims=True, where=allowed & (x == value), initial=x.shape[-1])
    return value, index


def _by_repeated_max(x: jax.Array, k: int, unroll: int) -> Thresholds:
    def following(_, found):
        return _largest(x, _below(x, *found))

    kth = jax.lax.fori_loop(1, k, following, _largest(x, jnp.ones(x.shape, bool)), unroll=unroll)
    after = following(None, kth)
    return Thresholds(kth[0], after[0], kth[1], after[1])


def _by_distinct_max(x: jax.Array, k: int) -> Thresholds:
    """Right where the k+1 largest entries of every row differ; half the passes of `_by_repeated_max`."""
    value = following = jnp.max(x, axis=-1, keepdims=True)
    for _ in range(k):
        value, following = following, jnp.max(jnp.where(x < following, x, -jnp.inf), axis=-1, keepdims=True)
    return Thresholds(value, following, _place(x, value), _place(x, following))


def _place(x: jax.Array, value: jax.Array) -> jax.Array:
    """Index of the one entry equal to `value`; by a float maximum, which XLA:CPU reduces fastest."""
    return jnp.max(jnp.where(x == value, _index(x).astype(x.dtype), -1), axis=-1, keepdims=True).astype(jnp.int32)


def _by_bisection(x: jax.Array, k: int) -> Thresholds:
    """Bisection over the value's bits, then over the index among equals: a fixed number of counting passes."""
    keys = _sortable(x)
    bits = jnp.iinfo(keys.dtype).bits
    kth_key = _greatest(lambda key: _count(keys >= key) >= k, bits, keys)
    rank = k - _count(keys > kth_key)  # the kth entry is the rank-th, by index, of those equal to it
    equal = keys == kth_key
    width = max(x.shape[-1] - 1, 1).bit_length()
    before = _greatest(lambda i: _count(equal & (_index(x).astype(i.dtype) < i)) < rank, width, keys)
    index = before.astype(jnp.int32)
    value = jnp.max(x, axis=-1, keepdims=True, where=equal, initial=-jnp.inf)
    following, following_index = _largest(x, _below(x, value, index))
    return Thresholds(value, following, index, following_index)


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)


def _greatest(holds, bits: int, like: jax.Array) -> jax.Array:
    """The greatest unsigned number of `bits` bits for which `holds`, a condition true up to it and false above."""
    found = jnp.zeros(like.shape[:-1] + (1,), like.dtype)
    for bit in reversed(range(bits)):
        trial = found | jnp.asarray(1 << bit, like.dtype)
        found = jnp.where(holds(trial), trial, found)
    return found


def _sortable(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the floats (both zeros alike)."""
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
    bits = jnp.finfo(x.dtype).bits
    unsigned = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    sign = jnp.asarray(1 << (bits - 1), unsigned.dtype)
    return jnp.where(unsigned >= sign, ~unsigned, unsigned | sign)
