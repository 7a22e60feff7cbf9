"""From a `SentimentDataConfig` to encoded splits and their vocabulary; made anew each time, which takes seconds."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxablate.config import SentimentDataConfig
from jaxablate.data.atomic import Report, silent
from jaxablate.data.sentiment.download import download_imdb, download_trees
from jaxablate.data.sentiment.imdb import read_imdb
from jaxablate.data.sentiment.sst import read_sst2
from jaxablate.data.sentiment.texts import LabelledTexts, Splits
from jaxablate.data.sentiment.vocabulary import Vocabulary, WordVocabulary, gpt2_vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts:
    """One split as token ids."""

    name: str
    texts: tuple[str, ...]
    tokens: np.ndarray
    """Ids of all texts, one after the other, int32 [n_tokens]."""
    offsets: np.ndarray
    """Text i is ``tokens[offsets[i]:offsets[i + 1]]``; int64 [n + 1]."""
    labels: np.ndarray
    """int32 [n]."""
    data_hash: str
    """SHA-256 (hex) of the token ids, the lengths and the labels."""

    @classmethod
    def of(cls, split: LabelledTexts, vocabulary: Vocabulary) -> "EncodedTexts":
        """Encode a split."""
        rows = vocabulary.encode_batch(split.texts)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(offsets[-1]))
        digest = hashlib.sha256()
        for array in (tokens, offsets, split.labels):
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        return cls(split.name, split.texts, tokens, offsets, split.labels, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.texts)

    def row(self, index: int) -> np.ndarray:
        """Token ids of one text."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return len(self.tokens)

    def class_counts(self) -> tuple[int, int]:
        """Number of negative and of positive texts."""
        n_positive = int(self.labels.sum())
        return len(self) - n_positive, n_positive


@dataclasses.dataclass(frozen=True, eq=False)
class SentimentData:
    """Three splits, and the vocabulary that made them."""

    splits: Mapping[str, EncodedTexts]
    """train, dev and test."""
    vocabulary: Vocabulary


def prepare_sentiment(config: SentimentDataConfig, *, report: Report = silent) -> SentimentData:
    """Read, split and encode the texts of a configuration.

    Args:
      config: source, place and vocabulary.
      report: progress of a download, or in reviews.

    Returns:
      The splits train, dev and test, and the vocabulary.

    Raises:
      DataError: the data is not here and cannot be downloaded, is malformed or damaged, or GPT-2's vocabulary is
        missing.
    """
    texts = _read(config, report)
    vocabulary = _vocabulary(config, texts["train"])
    encoded = {name: EncodedTexts.of(split, vocabulary) for name, split in texts.items()}
    return SentimentData(encoded, vocabulary)


def _read(config: SentimentDataConfig, report: Report) -> Splits:
    if config.source == "imdb":
        path = Path(config.path) if config.path else download_imdb(config.cache_dir, report=report)
        return read_imdb(path, split_seed=config.split_seed, report=report)
    path = Path(config.path) if config.path else download_trees(config.cache_dir, report=report)
    return read_sst2(path, split_seed=config.split_seed, balance=config.balance)


def _vocabulary(config: SentimentDataConfig, train: LabelledTexts) -> Vocabulary:
    if config.vocabulary == "gpt2":
        return gpt2_vocabulary()
    return WordVocabulary.of(train.texts, config.min_count)
