"""Labelled texts as they are read, before they become tokens; and random orders of them."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from jaxablate import files
from jaxablate.errors import DataError

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
NEGATIVE, POSITIVE = 0, 1
FETCH = "fetch the set again"
"""The last resort that messages name."""

_HELD_OUT_DOMAIN = 0x6A61786163


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
    """One split of a data set, in a defined order."""

    name: str
    """Name in messages, for example ``sst2-trees train``."""
    texts: tuple[str, ...]
    labels: Int[np.ndarray, " texts"]
    """Class of each text, int32: `NEGATIVE` or `POSITIVE`."""
    left_out: int = 0
    """Texts of the larger class that balancing left out."""

    @classmethod
    def from_pairs(cls, name: str, pairs: Iterable[tuple[str, int]]) -> "LabelledTexts":
        """A split from (text, label) pairs."""
        pairs = list(pairs)
        return cls(name, tuple(text for text, _ in pairs), np.array([label for _, label in pairs], np.int32))

    def __len__(self) -> int:
        return len(self.texts)

    def class_counts(self) -> tuple[int, int]:
        """Number of negative and of positive texts."""
        n_positive = int(self.labels.sum())
        return len(self) - n_positive, n_positive

    def take(self, name: str, indices: Int[np.ndarray, " chosen"]) -> "LabelledTexts":
        """Some of the texts, under another name."""
        return LabelledTexts(name, tuple(self.texts[i] for i in indices), self.labels[indices])

    def balanced(self) -> "LabelledTexts":
        """The larger class cut to the size of the smaller one: the first texts stay, in their order."""
        size = min(self.class_counts())
        places = [np.flatnonzero(self.labels == label)[:size] for label in (NEGATIVE, POSITIVE)]
        balanced = self.take(self.name, np.sort(np.concatenate(places)))
        return dataclasses.replace(balanced, left_out=len(self) - len(balanced))


Splits = dict[SplitName, LabelledTexts]


def read_bytes(path: Path, most: int = 1 << 28) -> bytes:
    """Content of a file.

    Raises:
      DataError: it cannot be read, or has more than ``most`` bytes.
    """
    try:
        return files.read_bytes(path, most=most)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {FETCH}") from error


def decoded(name: str, content: bytes) -> str:
    """Text of UTF-8 bytes, without a byte order mark; others are a `DataError`, which has the name."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}); {FETCH}") from error


def permutation(seed: int, domain: int, counter: int, n: int) -> Int[np.ndarray, " n"]:
    """A random order of 0 .. n - 1: that of n Philox-4x64-10 words, which no library's upgrade changes.

    The seed is any integer, taken modulo 2^64. The domain is the second word of the key, which gives each use of a seed
    its own order; the counter 0, 1, ... is which order of this seed.

    >>> sorted(permutation(0, 1, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    key = np.array([seed % 2**64, domain], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=[0, 0, counter, 0]).random_raw(n), kind="stable")


def held_out(seed: int, counter: int, n: int, n_held: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices 0 .. n - 1 in two parts at random, each in rising order: those that stay, and ``n_held`` held out.

    ``counter`` gives each draw of one data set its own order.
    """
    order = permutation(seed, _HELD_OUT_DOMAIN, counter, n)
    return np.sort(order[n_held:]), np.sort(order[:n_held])
