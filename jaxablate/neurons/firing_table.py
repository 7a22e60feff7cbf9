"""Counts of which units fire on which class of tokens, two to a number so that a token moves half as much memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HALF = 16
"""Bits of one of the two counters in a number."""


class FiringTable:
    """Counts of firings [rows, columns]: late ones on the device, two to a number, all others on the host.

    The device's table has one row more, for tokens that do not count.

    Args:
      rows: classes of tokens.
      columns: units.
    """

    def __init__(self, rows: int, columns: int):
        self._shape, self._columns = (rows + 1, columns), columns
        self._host, self._device, self._since = np.zeros(self._shape, np.int32), None, 0

    def update(self, step: Callable[..., Any], tokens: int, placed: jax.sharding.Sharding) -> Any:
        """Counts on.

        Args:
          step: takes ``table``, uint32 [rows + 1, half the columns], or all columns where a step has too many tokens
            for halves; gives the table with its firings added, and something else.
          tokens: of the step, each of which adds at most 1 to any count.
          placed: where the table lies.

        Returns:
          The something else.
        """
        if self._since + tokens >= 1 << _HALF:
            self._fetch()
        if self._device is None:
            rows, columns = self._shape
            width = -(-columns // 2) if tokens < 1 << _HALF else columns
            self._device = jax.device_put(np.zeros((rows, width), np.uint32), placed)
        self._device, result = step(table=self._device)
        self._since += tokens
        return result

    def total(self) -> np.ndarray:
        """int32 [rows, columns], counts of all steps."""
        self._fetch()
        return self._host[:-1]

    def _fetch(self) -> None:
        if self._device is None:
            return
        table, self._device, self._since = np.asarray(self._device), None, 0
        if table.shape == self._shape:
            self._host += table.astype(np.int32)
            return
        first = table.shape[1]
        self._host[:, :first] += (table & ((1 << _HALF) - 1)).astype(np.int32)
        self._host[:, first:] += (table[:, : self._columns - first] >> _HALF).astype(np.int32)


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
