"""Batches of labelled texts: texts of similar length together, every text once an epoch.

Which texts a step sees is a pure function of (seed, step): epoch e = step // steps_per_epoch has an order of its own,
Philox words keyed by the seed with e as counter, sorted (`jaxablate.data.sentiment.texts.permutation`). In that order
texts go to buckets of equal padded length. Each bucket, from the shortest on, is cut into full batches; what is left
over moves up into the next, so only one batch of an epoch has filler rows. The batches then come in random order.
"""

import functools
from collections.abc import Iterator

import numpy as np

from jaxablate.config import ClassificationConfig
from jaxablate.config.checks import require
from jaxablate.data.pipeline import HostBatch, TrainBatches, local_rows
from jaxablate.data.sentiment.prepare import EncodedTexts
from jaxablate.data.sentiment.texts import permutation
from jaxablate.errors import DataError

_TEXTS_DOMAIN = 0x6A61786164
_BATCHES_DOMAIN = 0x6A61786165
_FILLER = -1


def train_batches(split: EncodedTexts, *, batch_size: int, max_length: int, bucket_multiple: int, pad_id: int,
                  seed: int, start_step: int = 0, process_index: int = 0, process_count: int = 1, prefetch: int = 4
                  ) -> TrainBatches:
    """Endless batches of a split, epoch after epoch.

    Args:
      split: the texts.
      batch_size: rows of the global batch.
      max_length: longer texts are cut to their first tokens.
      bucket_multiple: batches are padded to a multiple of this, or to max_length if that is less; 0 pads all of them
        to max_length, and texts of any length share a batch.
      pad_id: token of padding.
      seed: decides the order, with nothing else.
      start_step: step of the first batch; the same as skipping so many.
      process_index: which part of the rows: process p has rows p * b to (p + 1) * b - 1, where
        b = batch_size / process_count.
      process_count: number of processes that share out each batch; all have the same L.
      prefetch: batches read ahead by a background thread; 0 reads in the caller's. Same batches either way.

    Returns:
      Iterator of ``tokens`` (int32 [b, L]), ``mask`` (float32 [b, L], 1 for a token of the text), ``labels``
      (int32 [b]) and ``weight`` (float32 [b], 0 for a filler row, whose mask is 0 and whose tokens are pad_id); with
      `get_state`, `set_state` and ``steps_per_epoch``, which is ceil(texts / batch_size).

    Raises:
      ConfigError: process_count does not divide batch_size, or a number is out of range.
      DataError: the split is empty.
    """
    first_row, n_rows = local_rows(batch_size, process_index, process_count)
    padded = _padded_lengths(split, max_length, bucket_multiple)
    plans = functools.lru_cache(maxsize=2)(functools.partial(_plan, padded, batch_size, seed))
    steps = -(-len(split) // batch_size)

    def make_batch(step: int) -> HostBatch:
        length, texts = plans(step // steps)[step % steps]
        return _gather(split, texts[first_row : first_row + n_rows], length, pad_id)

    order = {"batch_size": batch_size, "max_length": max_length, "bucket_multiple": bucket_multiple}
    identity = {"seed": seed, "data_hash": split.data_hash} | order
    return TrainBatches(make_batch, identity, start_step=start_step, prefetch=prefetch, steps_per_epoch=steps)


def batch_shape(config: ClassificationConfig, pad_id: int) -> dict[str, int]:
    """How a run's texts become batches; the released code of SAFR pads all of them to the full length."""
    multiple = 0 if config.model.padding == "paper" else config.train.bucket_multiple
    return {"batch_size": config.train.batch_size, "max_length": config.model.max_length, "bucket_multiple": multiple,
            "pad_id": pad_id}


def validation_batches(split: EncodedTexts, *, batch_size: int, max_length: int, bucket_multiple: int, pad_id: int,
                       process_index: int = 0, process_count: int = 1) -> Iterator[HostBatch]:
    """Every text once, by rising length; texts of the same length in the split's order.

    Arguments and errors are those of `train_batches`, and so are the batches, with ``index`` (int32 [b]) besides: the
    text's place in the split, -1 for the filler rows that end the last batch.
    """
    first_row, n_rows = local_rows(batch_size, process_index, process_count)
    padded = _padded_lengths(split, max_length, bucket_multiple)
    order = np.argsort(np.minimum(split.lengths, max_length), kind="stable")

    def batch(start: int) -> HostBatch:
        texts = order[start : start + batch_size]
        local = _filled(texts, batch_size)[first_row : first_row + n_rows]
        return _gather(split, local, int(padded[texts].max()), pad_id) | {"index": local.astype(np.int32)}

    return map(batch, range(0, len(split), batch_size))


def _padded_lengths(split: EncodedTexts, max_length: int, bucket_multiple: int) -> np.ndarray:
    """L of the bucket of each text, int64 [n]."""
    require(max_length > 0 and bucket_multiple >= 0,
            f"max_length={max_length} must be positive and bucket_multiple={bucket_multiple} must not be negative")
    if len(split) == 0:
        raise DataError(f"{split.name} has no texts; give at least one")
    if bucket_multiple == 0:
        return np.full(len(split), max_length)
    return np.minimum(-(-split.lengths // bucket_multiple) * bucket_multiple, max_length)


def _plan(padded: np.ndarray, batch_size: int, seed: int, epoch: int
          ) -> list[tuple[int, np.ndarray]]:
    """The batches of one epoch in their order: padded length and texts [batch_size], `_FILLER` where there is none."""
    texts = permutation(seed, _TEXTS_DOMAIN, epoch, len(padded))
    left = texts[:0]
    batches = []
    for length in np.unique(padded).tolist():
        waiting = np.concatenate([left, texts[padded[texts] == length]])
        n_full = len(waiting) // batch_size * batch_size
        batches += [(length, rows) for rows in waiting[:n_full].reshape(-1, batch_size)]
        left = waiting[n_full:]
    if len(left):
        batches.append((length, _filled(left, batch_size)))
    return [batches[i] for i in permutation(seed, _BATCHES_DOMAIN, epoch, len(batches))]


def _filled(texts: np.ndarray, batch_size: int) -> np.ndarray:
    return np.pad(texts, (0, batch_size - len(texts)), constant_values=_FILLER)


def _gather(split: EncodedTexts, texts: np.ndarray, length: int, pad_id: int) -> HostBatch:
    """The rows of some texts, cut or padded to a length."""
    real = texts != _FILLER
    starts, ends = split.offsets[texts], split.offsets[texts + 1]  # a filler row ends before it starts
    places = starts[:, None] + np.arange(length)
    mask = places < ends[:, None]
    return {
        "tokens": np.where(mask, split.tokens[np.minimum(places, split.n_tokens - 1)], np.int32(pad_id)),
        "mask": mask.astype(np.float32),
        "labels": np.where(real, split.labels[texts], 0).astype(np.int32),
        "weight": real.astype(np.float32),
    }
