"""Activations of units at the end of many short sequences, in large batches of few shapes.

A question is (sequence, unit): how strong is the unit at the last token when the model reads this sequence from
position 0? Questions about the same sequence share one run, whatever their units. Sequences are grouped by length, so
each layer needs one program a length.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError
from jaxablate.neurons.examples import NOTHING, Params, Read

LENGTHS = (4, 8, 16, 24)
"""Lengths to which sequences are filled up; longer ones to a multiple of the last."""


@dataclasses.dataclass(eq=False)
class ShortRuns:
    """Answers questions about the units of one layer.

    Attributes:
      read: gives this one layer.
      params: of the model.
      batch_tokens: tokens of a batch, padding included.
      tokens_run: tokens that went through the model so far, padding included.
      questions: how many were answered so far.
    """

    read: Read
    params: Params
    batch_tokens: int = 8192
    tokens_run: int = 0
    questions: int = 0

    def __call__(self, sequences_QT: np.ndarray, units_Q: np.ndarray) -> np.ndarray:
        """Activation of each unit at the last token of its sequence.

        Args:
          sequences_QT: int, filled up with `NOTHING` at the right; each has at least one token.
          units_Q: int.

        Returns:
          float32 [Q].

        Raises:
          DataError: an activation is NaN or infinite.
        """
        lengths = (sequences_QT != NOTHING).sum(1)
        out = np.empty(len(sequences_QT), np.float32)
        below = 0
        for length in _lengths(int(lengths.max(initial=0))):
            chosen = np.flatnonzero((below < lengths) & (lengths <= length))
            if chosen.size:
                rows = np.full((chosen.size, length), NOTHING, np.int32)
                width = min(length, sequences_QT.shape[1])
                rows[:, :width] = sequences_QT[chosen, :width]
                out[chosen] = self._answers(rows, units_Q[chosen])
            below = length
        self.questions += len(out)
        if not np.all(np.isfinite(out)):
            raise DataError(f"unit {units_Q[~np.isfinite(out)][0]} of the layer has an activation that is NaN or "
                            "infinite; the parameters are damaged, take another checkpoint")
        return out

    def _answers(self, rows_QT: np.ndarray, units_Q: np.ndarray) -> np.ndarray:
        unique, inverse = _unique_rows(rows_QT)
        order = np.argsort(inverse, kind="stable")
        ends = np.searchsorted(inverse, np.arange(len(unique) + 1), sorter=order)
        out = np.empty(len(rows_QT), np.float32)
        for first, answers_BU in self._batches(unique):
            asked = order[ends[first] : ends[min(first + len(answers_BU), len(unique))]]
            out[asked] = answers_BU[inverse[asked] - first, units_Q[asked]]
        return out

    def _batches(self, rows_QT: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first row, activations [B, U] at the last tokens) of each batch; one runs ahead."""
        size, waiting = max(1, self.batch_tokens // rows_QT.shape[1]), None
        for first in range(0, len(rows_QT), size):
            rows = rows_QT[first : first + size]
            rows = np.pad(rows, ((0, size - len(rows)), (0, 0)))
            running = first, _last(self.read, self.params, rows)
            self.tokens_run += rows.size
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            waiting = running
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])


@functools.partial(jax.jit, static_argnums=0)
def _last(read: Read, params: Params, rows_BT: jax.Array) -> jax.Array:
    """Activations [B, U] at the last token of each row, which `NOTHING` follows."""
    last = jnp.maximum((rows_BT != NOTHING).sum(1) - 1, 0)
    (x_BTU,) = read(params, jnp.maximum(rows_BT, 0))
    return jnp.take_along_axis(x_BTU, last[:, None, None], axis=1)[:, 0]


def _lengths(longest: int) -> list[int]:
    """Lengths to fill up to, until the longest is covered.

    >>> _lengths(5), _lengths(40)
    ([4, 8], [4, 8, 16, 24, 48])
    """
    found = list(LENGTHS)
    while found[-1] < longest:
        found.append(found[-1] + LENGTHS[-1])
    return [length for i, length in enumerate(found) if i == 0 or found[i - 1] < longest]


def _unique_rows(rows_QT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows, and for each row which of them it is; compared as bytes, much faster than number by number."""
    as_bytes = np.ascontiguousarray(rows_QT).view(np.dtype((np.void, rows_QT.dtype.itemsize * rows_QT.shape[1])))[:, 0]
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return rows_QT[first], inverse.reshape(-1)
