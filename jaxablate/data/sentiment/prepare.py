"""From a `SentimentDataConfig` to encoded splits and their tokenizer. Nothing is cached: it takes seconds."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxablate import files
from jaxablate.config import SentimentDataConfig
from jaxablate.data.progress import Report, silent
from jaxablate.data.sentiment.imdb import download_imdb, read_imdb
from jaxablate.data.sentiment.sst import download_trees, read_sst2
from jaxablate.data.sentiment.texts import LabelledTexts
from jaxablate.data.stories import batched_by_length
from jaxablate.data.tokenizer import Tokenizer, WordTokenizer, gpt2_tokenizer
from jaxablate.errors import DataError

_ENCODE_CHARACTERS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts(LabelledTexts):
    """One split as token ids."""

    tokens: Int[np.ndarray, " tokens"] = dataclasses.field(kw_only=True)
    """Ids of all texts, one after the other, int32."""
    offsets: Int[np.ndarray, " texts+1"] = dataclasses.field(kw_only=True)
    """Text i is ``tokens[offsets[i]:offsets[i + 1]]``; int64."""
    data_hash: str = dataclasses.field(kw_only=True)
    """SHA-256 (hex) of the token ids, the lengths and the labels."""

    @classmethod
    def encode(cls, split: LabelledTexts, tokenizer: Tokenizer) -> "EncodedTexts":
        """A split as token ids.

        Raises:
          DataError: a text is blank.
        """
        parts, lengths = [np.zeros(0, np.int32)], []
        for texts in batched_by_length(split.texts, _ENCODE_CHARACTERS):
            rows = tokenizer.encode_batch(texts)
            lengths += map(len, rows)
            parts.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
        if 0 in lengths:
            raise DataError(f"text {lengths.index(0)} of {split.name} is empty; give at least one word")
        tokens, offsets = np.concatenate(parts), np.cumsum([0, *lengths], dtype=np.int64)
        digest = hashlib.sha256()
        for array in (tokens, offsets, split.labels):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return cls(split.name, split.texts, split.labels, split.left_out, tokens=tokens, offsets=offsets,
                   data_hash=digest.hexdigest())

    def row(self, index: int) -> Int[np.ndarray, " length"]:
        """Token ids of one text."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, " texts"]:
        """Tokens of each text, int64."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return len(self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class SentimentData:
    """Three splits, and the tokenizer that encoded them."""

    splits: Mapping[str, EncodedTexts]
    """train, dev and test."""
    tokenizer: Tokenizer
    """The words of the training split, or GPT-2's byte pairs."""


def prepare(config: SentimentDataConfig, *, report: Report = silent) -> SentimentData:
    """Read, split and encode the texts of a configuration; the report is that of a download, or in reviews.

    Raises:
      ConfigError: a path is none that a file can have.
      DataError: the data is not here and cannot be downloaded, is malformed or damaged, or GPT-2's vocabulary is
        missing.
    """
    files.check_path(config.path or config.cache_dir, "data.path" if config.path else "cache_dir")
    if config.path and not Path(config.path).exists():
        raise DataError(f"data.path={config.path!r} does not exist; give a path that does, or leave it out to download "
                        f"{config.source}")
    if config.source == "imdb":
        path = Path(config.path) if config.path else download_imdb(config.cache_dir, report=report)
        texts = read_imdb(path, split_seed=config.split_seed, report=report)
    else:
        path = Path(config.path) if config.path else download_trees(config.cache_dir, report=report)
        texts = read_sst2(path, split_seed=config.split_seed, balance=config.balance)
    words = config.vocabulary == "words"
    tokenizer = WordTokenizer.from_texts(texts["train"].texts, config.min_count) if words else gpt2_tokenizer()
    return SentimentData({name: EncodedTexts.encode(split, tokenizer) for name, split in texts.items()}, tokenizer)
