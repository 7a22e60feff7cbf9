"""Counts of which units fire on which class of tokens, two to a number so that a token moves half as much memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HALF = 16
"""Bits of one of the two counters in a number."""


class FiringTable:
    """Counts of firings [rows, columns] on the device: those of late two to a number, all others apart.

    There is one row more, for tokens that do not count.

    Args:
      rows: classes of tokens.
      columns: units.
    """

    def __init__(self, rows: int, columns: int):
        self._rows, self._columns = rows, columns
        self._late, self._since, self._halves = None, 0, None

    def update(self, step: Callable[..., Any], tokens: int, placed: jax.sharding.Sharding) -> Any:
        """Counts on.

        Args:
          step: takes ``table``, uint32 [rows + 1, half the columns], or all columns where a step has too many tokens
            for halves; gives the table with its firings added, and something else.
          tokens: of the step, each of which adds at most 1 to any count; the same in every call.
          placed: where the table lies; the same in every call.

        Returns:
          The something else.
        """
        half = -(-self._columns // 2)
        if self._late is None:
            width = half if tokens < 1 << _HALF else self._columns
            self._late = jax.device_put(np.zeros((self._rows + 1, width), np.uint32), placed)
        elif self._late.shape[1] == half and self._since + tokens >= 1 << _HALF:
            self._empty(placed)
        self._late, result = step(table=self._late)
        self._since += tokens
        return result

    def total(self) -> np.ndarray:
        """int32 [rows, columns], counts of all steps."""
        if self._late is None or self._late.shape[1] == self._columns:
            whole = np.zeros((self._rows, self._columns), np.uint32) if self._late is None else np.asarray(self._late)
        else:
            self._empty(self._late.sharding)
            whole = np.concatenate([np.asarray(x) for x in self._halves], axis=1)
        return whole[: self._rows, : self._columns].view(np.int32)

    def _empty(self, placed: jax.sharding.Sharding) -> None:
        """Moves the late counts to the others before they can overflow."""
        if self._halves is None:
            zeros = np.zeros(self._late.shape, np.uint32)
            self._halves = tuple(jax.device_put(zeros, placed) for _ in range(2))
        *halves, self._late = _emptied(placed)(*self._halves, self._late)
        self._halves, self._since = tuple(halves), 0


@functools.cache
def _emptied(placed: jax.sharding.Sharding) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(counts of the first units, of the others, late counts of both) -> the same after emptying the late ones."""
    def moved(low: jax.Array, high: jax.Array, late: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return low + (late & ((1 << _HALF) - 1)), high + (late >> _HALF), jnp.zeros_like(late)

    return jax.jit(moved, donate_argnums=(0, 1, 2), out_shardings=placed)


def packed(fired: list[jax.Array], table: jax.Array) -> jax.Array:
    """Firings of all groups as rows to add to the table.

    Without the barriers XLA fuses comparing, joining and packing into one loop, which is several times slower on CPU.

    Args:
      fired: bool arrays [n, units] that are side by side in the table.
      table: the device's.

    Returns:
      uint32 [n, columns of the table]: the second half of the units is 16 bits higher than the first.
    """
    joined = jax.lax.optimization_barrier(jnp.concatenate(jax.lax.optimization_barrier(fired), axis=-1))
    width = table.shape[1]
    low, high = (x.astype(table.dtype) for x in (joined[:, :width], joined[:, width:]))
    if high.shape[1] == 0:
        return low
    return low + (jnp.pad(high, ((0, 0), (0, width - high.shape[1]))) << _HALF)
