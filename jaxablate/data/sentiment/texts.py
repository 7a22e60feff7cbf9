"""Labelled texts as they are read, before they become tokens."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from jaxablate.errors import DataError

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")

NEGATIVE, POSITIVE = 0, 1

FETCH = "fetch the set again"
"""The last resort that messages name."""

_Row = TypeVar("_Row")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
    """One split of a data set, in a defined order."""

    name: str
    """Such as ``sst2-trees train``."""
    texts: tuple[str, ...]
    labels: np.ndarray
    """Class of each text, int32 [n]: `NEGATIVE` or `POSITIVE`."""

    @classmethod
    def of(cls, name: str, pairs: Iterable[tuple[str, int]]) -> "LabelledTexts":
        """From (text, label) pairs."""
        pairs = list(pairs)
        labels = np.array([label for _, label in pairs], np.int32)
        return cls(name, tuple(text for text, _ in pairs), labels)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of all texts and labels."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels.tolist(), strict=True):
            content = text.encode()
            digest.update(b"%d %d " % (label, len(content)) + content)
        return digest.hexdigest()

    def class_counts(self) -> tuple[int, int]:
        """Number of negative and of positive texts."""
        n_positive = int(self.labels.sum())
        return len(self) - n_positive, n_positive

    def take(self, name: str, indices: np.ndarray) -> "LabelledTexts":
        """Some of the texts, under another name."""
        return LabelledTexts(name, tuple(self.texts[i] for i in indices), self.labels[indices])

    def balanced(self) -> "LabelledTexts":
        """The larger class cut to the size of the smaller one: the first ones stay, in their order."""
        size = min(self.class_counts())
        kept = [np.flatnonzero(self.labels == label)[:size] for label in (NEGATIVE, POSITIVE)]
        return self.take(self.name, np.sort(np.concatenate(kept)))


Splits = dict[SplitName, LabelledTexts]


def read_table(path: Path, parse: Callable[[str], _Row], *, header: bool) -> list[_Row]:
    """Lines of a file, each made something of.

    Args:
      path: the file.
      parse: line -> value; it raises a ValueError that says what is wrong.
      header: whether the first line is none of them.

    Raises:
      DataError: the file cannot be read, or a line is malformed.
    """
    found = []
    for number, line in enumerate(read_lines(path, FETCH)[header:], start=1 + header):
        try:
            found.append(parse(line))
        except ValueError as error:
            # Python says "not enough values to unpack" of a line with too few columns.
            what = "wrong number of columns" if "unpack" in str(error) else error
            raise DataError(f"{path}:{number}: {what}; mend this line or {FETCH}") from error
    return found


def filled(text: str) -> str:
    """A text without surrounding white space.

    Raises:
      ValueError: nothing is left.
    """
    text = text.strip()
    if not text:
        raise ValueError("the text is empty")
    return text


def read_lines(path: Path, fix: str) -> list[str]:
    """Lines of a UTF-8 file, without their ends; ``\\n`` and ``\\r\\n`` end one, and nothing else.

    Args:
      path: the file.
      fix: what the user can do if it is not there or no text.

    Raises:
      DataError: it cannot be read.
    """
    lines = decoded(path.name, read_bytes(path, fix), fix).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_bytes(path: Path, fix: str) -> bytes:
    """Content of a file.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {fix}") from error


def decoded(name: str, content: bytes, fix: str) -> str:
    """Text of UTF-8 bytes.

    Raises:
      DataError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}); {fix}") from error
