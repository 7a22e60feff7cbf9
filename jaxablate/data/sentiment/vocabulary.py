"""Vocabularies of text classifiers: the words of the training split, or GPT-2's byte pairs."""

import collections
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from jaxablate.data.tokenizer import (
    META_FILE,
    BytePairTokenizer,
    check_ids,
    gpt2_tokenizer,
    load_tokenizer,
    read_meta,
)
from jaxablate.errors import DataError

PAD, UNKNOWN = "<PAD>", "<UNK>"
WORDS_FILE = "words.txt"

_FIRST_WORD = 2


class Vocabulary(Protocol):
    """What becomes of a text.

    Attributes:
      name: short name for reports, for example ``words-7452`` or ``gpt2``.
      vocab_size: number of token ids; every id is in ``0 .. vocab_size - 1``.
      pad_id: id that fills a batch beyond the end of a text.
      unk_id: id of every word outside the vocabulary; None where there is no such word.
    """

    name: str
    vocab_size: int
    pad_id: int
    unk_id: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, at least one. Raises DataError for a blank text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text."""
        ...

    def words(self, ids: Sequence[int]) -> list[str]:
        """How to show each token. Raises DataError for an unknown id."""
        ...

    def require_known(self, text: str) -> None:
        """Raises DataError for a text of which no word is in the vocabulary: nothing can be said about it."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the ids."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Write what `load_vocabulary` needs into a folder, made if absent."""
        ...


class WordVocabulary:
    """White-space words, as they stand: capitals and punctuation make other words.

    Args:
      words: of ids 2, 3, ...; 0 is padding and 1 every other word.

    Raises:
      DataError: a word comes twice, is empty or has white space in it.
    """

    def __init__(self, words: Iterable[str]):
        self._words = (PAD, UNKNOWN, *words)
        ordinary = self._words[_FIRST_WORD:]
        self._ids = {word: i for i, word in enumerate(ordinary, start=_FIRST_WORD)}
        if len(self._ids) != len(ordinary) or any(word.split() != [word] for word in ordinary):
            raise DataError("the words of a vocabulary must differ, be no white space and have none in them")
        self.vocab_size = len(self._words)
        self.name = f"words-{self.vocab_size}"
        self.pad_id: int = 0
        self.unk_id: int = 1

    @classmethod
    def of(cls, texts: Iterable[str], min_count: int = 1) -> "WordVocabulary":
        """Words that occur often enough, by falling count; those of the same count as they first come.

        Args:
          texts: the training split.
          min_count: occurrences from which a word is in.
        """
        counts = collections.Counter(word for text in texts for word in text.split())
        return cls(word for word, count in counts.most_common() if count >= min_count)

    def encode(self, text: str) -> list[int]:
        """Ids of a text's words."""
        return [self._ids.get(word, self.unk_id) for word in _require_text(text).split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text's words."""
        return [self.encode(text) for text in texts]

    def words(self, ids: Sequence[int]) -> list[str]:
        """The words; an unknown one is ``<UNK>``."""
        return [self._words[i] for i in check_ids(ids, self.vocab_size)]

    def require_known(self, text: str) -> None:
        """Refuses a text of unknown words only."""
        ids = self.encode(text)
        if all(i == self.unk_id for i in ids):
            raise DataError(
                f"none of the {len(ids)} words of the text is among the {self.vocab_size - _FIRST_WORD} of the "
                "vocabulary, which are those of the training texts as they stand there; try their spelling and "
                "capitals, with spaces around punctuation"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the words in their order."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the words and the metadata."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{word}\n" for word in self._words[_FIRST_WORD:])
        (folder / WORDS_FILE).write_bytes(lines.encode())
        meta = {
            "kind": "words",
            "name": self.name,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "unk_id": self.unk_id,
            "fingerprint": self.fingerprint(),
        }
        (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


class BytePairVocabulary:
    """A byte-pair tokenizer as a vocabulary: no word is unknown, and end-of-text serves as padding."""

    def __init__(self, tokenizer: BytePairTokenizer):
        self._tokenizer = tokenizer
        self.name = tokenizer.name
        self.vocab_size = tokenizer.vocab_size
        self.pad_id = tokenizer.eot_id
        self.unk_id = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(_require_text(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, on all cores."""
        return self._tokenizer.encode_batch([_require_text(text) for text in texts])

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each token's text, its leading space included; a part of a character becomes U+FFFD."""
        return [self._tokenizer.decode([i]) for i in ids]

    def require_known(self, text: str) -> None:
        """Every text is known; a blank one is none."""
        _require_text(text)

    def fingerprint(self) -> str:
        """That of the tokenizer."""
        return self._tokenizer.fingerprint()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the tokenizer."""
        self._tokenizer.save(folder)


def gpt2_vocabulary() -> BytePairVocabulary:
    """GPT-2's 50,257 tokens.

    Raises:
      DataError: they are not on this machine and cannot be downloaded.
    """
    return BytePairVocabulary(gpt2_tokenizer())


def load_vocabulary(folder: str | os.PathLike) -> Vocabulary:
    """Read a vocabulary written by its `save`; no network is needed.

    Raises:
      DataError: the folder has none, it is damaged, or it is not the one that was saved.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if meta["kind"] != "words":
        tokenizer = load_tokenizer(folder)
        if not isinstance(tokenizer, BytePairTokenizer):
            raise DataError(f"{folder} has a tokenizer of kind {meta['kind']!r}; classifiers take words or byte pairs")
        return BytePairVocabulary(tokenizer)
    vocabulary = WordVocabulary(_read_words(folder / WORDS_FILE))
    if vocabulary.fingerprint() != meta["fingerprint"]:
        raise DataError(
            f"vocabulary in {folder} has fingerprint {vocabulary.fingerprint()[:12]}, but {meta['fingerprint'][:12]} "
            "was saved; its files changed since, restore them or train anew"
        )
    return vocabulary


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"vocabulary file {path} cannot be read ({reason}); restore it or train anew") from error


def _require_text(text: str) -> str:
    if not text or text.isspace():
        raise DataError("text is empty; give at least one word")
    return text
