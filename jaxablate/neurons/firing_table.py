"""Counts of which units fire on which class of tokens, two to a number so that a token moves half as much memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HALF = 16
"""Bits of one of the two counters in a number."""


class FiringTables:
    """Counts of firings on the device, a table [rows, columns] for each layer: those of late two to a number.

    A table for each layer stays in the cache while its layer is at work. There is one row more, for tokens that do not
    count.

    Args:
      rows: classes of tokens.
      columns: units of each layer.
    """

    def __init__(self, rows: int, columns: Sequence[int]):
        self._rows, self._columns = rows, tuple(columns)
        self._late, self._since, self._packs, self._others = None, 0, True, None

    def update(self, step: Callable[..., Any], tokens: int, placed: jax.sharding.Sharding) -> Any:
        """Counts on.

        Args:
          step: takes ``tables``, for each layer uint32 [rows + 1, half the columns], or all columns where a step has
            too many tokens for halves; gives the tables with its firings added, and something else.
          tokens: of the step, each of which adds at most 1 to any count; the same in every call.
          placed: where the tables lie; the same in every call.

        Returns:
          The something else.
        """
        if self._late is None:
            self._packs = tokens < 1 << _HALF
            widths = [-(-width // 2) if self._packs else width for width in self._columns]
            self._late = [_zeros(self._rows + 1, width, placed) for width in widths]
        elif self._packs and self._since + tokens >= 1 << _HALF:
            self._empty()
        self._late, result = step(tables=self._late)
        self._since += tokens
        return result

    def totals(self) -> list[np.ndarray]:
        """For each layer int32 [rows, columns], counts of all steps."""
        if self._late is None:
            return [np.zeros((self._rows, width), np.int32) for width in self._columns]
        if not self._packs:
            whole = [np.asarray(x) for x in self._late]
        else:
            self._empty()
            whole = [np.concatenate([np.asarray(x) for x in pair], axis=1) for pair in self._others]
        return [x[: self._rows, :width].view(np.int32) for x, width in zip(whole, self._columns, strict=True)]

    def _empty(self) -> None:
        """Moves the late counts to the others before they can overflow."""
        if self._others is None:
            self._others = [tuple(_zeros(*x.shape, x.sharding) for _ in range(2)) for x in self._late]
        moved = [_emptied(x.sharding)(*pair, x) for pair, x in zip(self._others, self._late, strict=True)]
        self._others, self._late, self._since = [x[:2] for x in moved], [x[2] for x in moved], 0


def _zeros(rows: int, columns: int, placed: jax.sharding.Sharding) -> jax.Array:
    return jax.device_put(np.zeros((rows, columns), np.uint32), placed)


@functools.cache
def _emptied(placed: jax.sharding.Sharding) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(counts of the first units, of the others, late counts of both) -> the same after emptying the late ones."""
    def moved(low: jax.Array, high: jax.Array, late: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return low + (late & ((1 << _HALF) - 1)), high + (late >> _HALF), jnp.zeros_like(late)

    return jax.jit(moved, donate_argnums=(0, 1, 2), out_shardings=placed)


def packed(fired: list[jax.Array], table: jax.Array) -> jax.Array:
    """Firings of the units of a layer as rows to add to its table.

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
