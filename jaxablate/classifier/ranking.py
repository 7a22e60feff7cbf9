"""Entries of rows that rank highest, where each row has a number of entries of its own; arrays in, arrays out."""

import jax
import jax.numpy as jnp


def highest(values: jax.Array, allowed: jax.Array, count: jax.Array) -> jax.Array:
    """Marks the largest allowed entries of each row; among equal ones the earlier counts as larger.

    The number of entries is each row's own, which `jaxablate.ops.order_statistics` does not offer. As there, the
    last winner's value is found by bisection over the bits of the floats: XLA's sort is slow on CPU.

    Args:
      values: [..., U] float, not negative; compared in float32.
      allowed: [..., U] bool; the others are never marked.
      count: [...] int, at most the number of allowed entries.

    Returns:
      [..., U] bool with ``count`` entries set in each row.

    Example:
      >>> highest(jnp.array([1.0, 3.0, 3.0, 9.0]), jnp.array([True, True, True, False]), jnp.array(1)).tolist()
      [False, True, False, False]
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32) + 0.0, jnp.int32)  # -0.0 + 0.0 is 0.0
    bits = jnp.where(allowed, bits, -1)  # below every float that is not negative

    def with_bit(i: jax.Array, last: jax.Array) -> jax.Array:
        trial = last | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= trial, axis=-1, keepdims=True) >= count[..., None], trial, last)

    last = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros((*values.shape[:-1], 1), jnp.int32))
    equal = bits == last
    room = count[..., None] - jnp.sum(bits > last, axis=-1, keepdims=True)
    return (bits > last) | (equal & (jnp.cumsum(equal, axis=-1) <= room))


def top_minus_rest(values: jax.Array, ranking: jax.Array, allowed: jax.Array, tenths: int
                   ) -> tuple[jax.Array, jax.Array]:
    """Mean of the values that rank highest minus the mean of the others, and its variance if the ranking is shuffled.

    If the ranking is shuffled, every subset of m of the n values is equally likely to be on top. The difference of
    means then has the mean 0 and the variance ``n s^2 / (m (n - m))``, s^2 the variance of the n values (divisor
    n - 1): simple random sampling without replacement. These are the moments over *all* shuffles; drawn ones would add
    noise of their own.

    Args:
      values: [B, U].
      ranking: [B, U], not negative; equal ones rank by place.
      allowed: [B, U] bool, which entries there are.
      tenths: of them that are on top, rounded up.

    Returns:
      Both [B], NaN for rows with fewer than two entries.

    Example:
      >>> there = jnp.array([[True, True, True, False]])
      >>> found = top_minus_rest(jnp.array([[1.0, 4.0, 2.5, 9.0]]), jnp.array([[0.1, 0.7, 0.2, 1.0]]), there, tenths=3)
      >>> [round(x.item(), 4) for x in found]
      [2.25, 3.375]
    """
    n = jnp.sum(allowed, axis=-1)
    m = (tenths * n + 9) // 10
    top = highest(ranking, allowed, m)
    rest = allowed & ~top

    def total(x: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, x, 0), axis=-1)

    difference = total(values, top) / jnp.maximum(m, 1) - total(values, rest) / jnp.maximum(n - m, 1)
    mean = total(values, allowed) / jnp.maximum(n, 1)
    square = total(jnp.square(values - mean[:, None]), allowed) / jnp.maximum(n - 1, 1)
    variance = square * n / jnp.maximum(m, 1) / jnp.maximum(n - m, 1)
    return jnp.where(n > 1, difference, jnp.nan), jnp.where(n > 1, variance, jnp.nan)
