"""Batches of token windows: random ones to train on, every token once to validate on.

Which windows a training step sees is a pure function of (seed, step, row): `window_offsets`, a counter-based random
function (Philox-4x64-10, Salmon et al. 2011) keyed by the seed with the step as its counter. It depends on no library's
way of turning bits into choices, so the order survives upgrades of NumPy and Grain, and it needs neither Grain nor
state. Grain carries it: a `MapDataset` over steps, whose element s is the batch of step s, read ahead on a background
thread. One element is a whole batch, so Grain is called once a batch, not once a row.

The cursor is the step alone (with the seed and the data's hash, to refuse another order), not Grain's own iterator
state, whose format is Grain's to change; what was read ahead but not taken does not count.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxablate.data.token_file import TokenFile
from jaxablate.errors import ConfigError, DataError

HostBatch = dict[str, np.ndarray]
"""A batch as it is read, before it goes to the devices (`jaxablate.types.Batch`)."""

_WINDOWS_DOMAIN = 0x6A61786162
"""Second word of the Philox key: keeps these draws apart from any other use of the same seed."""


def window_offsets(seed: int, step: int, n_rows: int, n_windows: int) -> Int[np.ndarray, " n_rows"]:
    """Where the windows of one training step start.

    Row r is ``Philox(key=(seed, constant), counter=(step, ...))[r] mod n_windows``. It does not depend on `n_rows`: a
    larger batch starts with the rows of a smaller one. The modulo favours no offset by more than n_windows / 2^64.

    Args:
      seed: any integer; taken modulo 2^64.
      step: 0, 1, ...
      n_rows: sequences of the global batch.
      n_windows: number of possible starts; offsets are in ``0 .. n_windows - 1``.

    >>> window_offsets(0, 0, 4, 1000).tolist() == window_offsets(0, 0, 8, 1000)[:4].tolist()
    True
    """
    key = np.array([seed % 2**64, _WINDOWS_DOMAIN], np.uint64)
    bits = np.random.Philox(key=key, counter=[0, 0, step, 0]).random_raw(n_rows)
    return (bits % np.uint64(n_windows)).astype(np.int64)


class TrainBatches(Iterator[HostBatch]):
    """Endless iterator over the batches of steps 0, 1, ..., read ahead by a background thread, with a cursor.

    Args:
      make_batch: step -> its batch; nothing else may decide it.
      identity: JSON-able values of all that decides the order, ``seed`` and ``data_hash`` at least. They are part of
        the cursor, and a cursor with others is refused.
      start_step: step of the first batch.
      prefetch: batches read ahead; 0 reads in the caller's thread.
      steps_per_epoch: after how many steps every text was seen once; None where the data has no epochs.

    Raises:
      ConfigError: a number is negative.
    """

    def __init__(self, make_batch: Callable[[int], HostBatch], identity: dict[str, Any], *, start_step: int = 0,
                 prefetch: int = 4, steps_per_epoch: int | None = None):
        import grain

        if start_step < 0 or prefetch < 0:
            raise ConfigError(f"start_step={start_step} and prefetch={prefetch} must not be negative")
        self.steps_per_epoch = steps_per_epoch
        self._dataset = grain.MapDataset.range(sys.maxsize).map(make_batch)
        self._options = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch)
        self._identity = identity
        self._start(start_step)

    def __next__(self) -> HostBatch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The cursor, JSON-able and the same whatever was read ahead: the next batch's ``step``, and the identity."""
        return self._identity | {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to the cursor's step.

        Raises:
          DataError: the cursor is of another seed or other data, with which its order means nothing.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise DataError(
                    f"the stored data cursor has {name}={state[name]}, this run {value}; continue with the data and "
                    "seed of the stored run, or start anew in another working directory"
                )
        self._iterator.close()
        self._start(int(state["step"]))

    def close(self) -> None:
        """Stop reading ahead. The iterator cannot be used afterwards."""
        self._iterator.close()

    def _start(self, step: int) -> None:
        self._step = step
        self._iterator: Any = iter(self._dataset[step:].to_iter_dataset(self._options))


def train_batches(token_file: TokenFile, *, batch_size: int, sequence_length: int, seed: int, start_step: int = 0,
                  process_index: int = 0, process_count: int = 1, prefetch: int = 4) -> TrainBatches:
    """Windows of sequence_length + 1 tokens at random offsets, uniform over the file and independent of each other.

    A window may span several stories, as in the paper; end-of-text separates them. `seed` alone decides the order, and
    a start_step of n is the same as skipping n batches. Of each global batch this process has the rows that
    `local_rows` says. `prefetch` batches are read ahead by a background thread; 0 reads the same ones in the caller's.

    Returns:
      Iterator of ``inputs`` and ``targets``, int32 [rows of this process, sequence_length], targets being inputs one
      token on; with `get_state` and `set_state`.

    Raises:
      ConfigError: process_count does not divide batch_size, or a number is out of range.
      DataError: the file is shorter than one window; from the iterator, it was cut since it was opened.
    """
    first_row, n_rows = local_rows(batch_size, process_index, process_count)
    if sequence_length < 1:
        raise ConfigError(f"sequence_length={sequence_length} must be positive")
    if token_file.n_tokens <= sequence_length:
        raise DataError(
            f"sequence_length={sequence_length} needs windows of {sequence_length + 1} tokens, but "
            f"{token_file.path.name} has {token_file.n_tokens}; choose at most {token_file.n_tokens - 1}"
        )
    n_windows = token_file.n_tokens - sequence_length

    def make_batch(step: int) -> HostBatch:
        offsets = window_offsets(seed, step, first_row + n_rows, n_windows)[first_row:].tolist()
        window = token_file.windows(offsets, sequence_length + 1).astype(np.int32)
        return {"inputs": np.ascontiguousarray(window[:, :-1]), "targets": np.ascontiguousarray(window[:, 1:])}

    identity = {"seed": seed, "data_hash": token_file.data_hash}
    return TrainBatches(make_batch, identity, start_step=start_step, prefetch=prefetch)


def validation_batches(token_file: TokenFile, *, batch_size: int, sequence_length: int, max_batches: int | None = None,
                       process_index: int = 0, process_count: int = 1) -> Iterator[HostBatch]:
    """The whole split once, in order, in windows that do not overlap: every token but the first is predicted once.

    Rows are shared out among processes as by `train_batches`; `max_batches` stops after so many.

    Returns:
      Iterator of ``inputs``, ``targets``, ``story`` (int32: the index of the story that the target is a token of, its
      end-of-text included) and ``mask`` (float32, 1 where a target counts). All have the shape of `train_batches`;
      what the file does not fill has mask 0, tokens 0 and the last story.

    Raises:
      ConfigError: process_count does not divide batch_size, or a number is out of range.
      DataError: the file has fewer than two tokens.
    """
    first_row, n_rows = local_rows(batch_size, process_index, process_count)
    n_batches = validation_batch_count(token_file, batch_size=batch_size, sequence_length=sequence_length)
    if max_batches is not None:
        n_batches = min(n_batches, max_batches)
    rows = (batch * batch_size + first_row for batch in range(n_batches))
    return (_consecutive(token_file, row * sequence_length, (n_rows, sequence_length)) for row in rows)


def validation_batch_count(token_file: TokenFile, *, batch_size: int, sequence_length: int) -> int:
    """Number of batches of a whole `validation_batches`.

    Raises:
      ConfigError: a number is out of range.
      DataError: the file has fewer than two tokens.
    """
    if batch_size < 1 or sequence_length < 1:
        raise ConfigError(f"batch_size={batch_size} and sequence_length={sequence_length} must be positive")
    if token_file.n_tokens < 2:
        raise DataError(f"{token_file.path.name} has {token_file.n_tokens} token; at least 2 are needed to predict one")
    return math.ceil((token_file.n_tokens - 1) / (batch_size * sequence_length))


def _consecutive(token_file: TokenFile, start: int, shape: tuple[int, int]) -> HostBatch:
    """Rows of adjoining windows from a token on, padded with zeros after the end of the file."""
    size = math.prod(shape)
    stored = token_file.windows((start,), max(0, min(size + 1, token_file.n_tokens - start)))[0]
    tokens = np.pad(stored.astype(np.int32), (0, size + 1 - len(stored)))
    return {
        "inputs": tokens[:-1].reshape(shape),
        "targets": tokens[1:].reshape(shape),
        "story": token_file.story_of(np.arange(start + 1, start + size + 1)).astype(np.int32).reshape(shape),
        "mask": (np.arange(1, size + 1) < len(stored)).astype(np.float32).reshape(shape),
    }


def local_rows(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """First row and number of rows of one process.

    Process p of P has rows p * b to (p + 1) * b - 1, where b = batch_size / P.

    Raises:
      ConfigError: process_count does not divide batch_size, or a number is out of range.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index} must be in 0..{process_count - 1}")
    n_rows = batch_size // process_count
    return process_index * n_rows, n_rows
