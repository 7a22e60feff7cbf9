"""The original release of the Stanford Sentiment Treebank: sentences, and the scores of all their phrases."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from jaxablate.data.sentiment.texts import (
    FETCH,
    NEGATIVE,
    POSITIVE,
    SPLITS,
    LabelledTexts,
    Splits,
    filled,
    read_table,
)
from jaxablate.errors import DataError

RELEASE_FILES = ("dictionary.txt", "sentiment_labels.txt", "datasetSentences.txt", "datasetSplit.txt")

NEGATIVE_MOST, POSITIVE_ABOVE = 0.4, 0.6
"""Scores up to the first are negative, above the second positive, between them neutral."""

NOT_FOUND_MOST = 0.01
"""Share of the sentences that may be missing in the dictionary; they are left out with a warning."""

_SPLIT_NAMES = {"1": "train", "2": "test", "3": "dev"}
_Value = TypeVar("_Value")

log = logging.getLogger(__name__)


def read_release(folder: Path) -> Splits:
    """The sentences that are not neutral, by the scores that the dictionary has for them as phrases.

    Raises:
      DataError: a line is malformed, a phrase has no score, a sentence no split, or too many are not in the dictionary.
    """
    dictionary = _Dictionary(read_table(folder / "dictionary.txt", _phrase, header=False))
    sentences = read_table(folder / "datasetSentences.txt", _sentence, header=True)
    scores = _Lookup(folder / "sentiment_labels.txt", read_table(folder / "sentiment_labels.txt", _score, header=True))
    split_of = _Lookup(folder / "datasetSplit.txt", read_table(folder / "datasetSplit.txt", _split, header=True))
    phrases = {index: dictionary.find(sentence) for index, sentence in sentences}
    _check_found(phrases, folder)
    pairs: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for index, sentence in sentences:
        if (phrase := phrases[index]) is not None and (label := _class(scores[phrase])) is not None:
            pairs[split_of[index]].append((sentence, label))
    return {split: LabelledTexts.of(f"sst2-release {split}", found) for split, found in pairs.items()}


class _Dictionary:
    """Phrases and their ids, found by sentences that are not always spelt as the phrases are.

    Sentences write brackets as -LRB- and -RRB-, and their letters beyond ASCII were encoded twice. So a sentence is
    looked up as it is, then with its brackets, then by its ASCII characters alone (the first phrase with these).
    """

    def __init__(self, phrases: list[tuple[str, int]]):
        self._ids = dict(phrases)
        self._ascii_ids: dict[str, int] = {}
        for phrase, number in phrases:
            if not phrase.isascii():
                self._ascii_ids.setdefault(_ascii(phrase), number)

    def find(self, sentence: str) -> int | None:
        """Id of the phrase, or None."""
        bracketed = sentence.replace("-LRB-", "(").replace("-RRB-", ")")
        for spelling in (sentence, bracketed):
            if spelling in self._ids:
                return self._ids[spelling]
        return self._ascii_ids.get(_ascii(bracketed))


class _Lookup(dict[int, _Value]):
    """A table by number that names its file where a number is missing."""

    def __init__(self, path: Path, rows: Iterable[tuple[int, _Value]]):
        super().__init__(rows)
        self._path = path

    def __missing__(self, number: int) -> _Value:
        raise DataError(f"{self._path} has no line for number {number}; {FETCH}")


def _check_found(phrases: Mapping[int, int | None], folder: Path) -> None:
    lost, n = sum(phrase is None for phrase in phrases.values()), len(phrases)
    if lost > NOT_FOUND_MOST * n:
        raise DataError(
            f"{lost} of {n} sentences of {folder} are not in dictionary.txt, at most {NOT_FOUND_MOST:.0%} may be "
            f"missing; the two files do not belong together, {FETCH}"
        )
    if lost:
        log.warning("%d of %d sentences of %s are not in dictionary.txt and are left out", lost, n, folder)


def _ascii(text: str) -> str:
    return " ".join("".join(character for character in text if character.isascii()).split())


def _class(score: float) -> int | None:
    """None for a neutral score."""
    if score <= NEGATIVE_MOST:
        return NEGATIVE
    return POSITIVE if score > POSITIVE_ABOVE else None


def _phrase(line: str) -> tuple[str, int]:
    phrase, number = line.rsplit("|", 1)
    return phrase, int(number)


def _score(line: str) -> tuple[int, float]:
    number, score = line.split("|")
    value = float(score)
    if not 0 <= value <= 1:
        raise ValueError(f"score {score} is not in 0..1")
    return int(number), value


def _sentence(line: str) -> tuple[int, str]:
    number, sentence = line.split("\t")
    return int(number), filled(sentence)


def _split(line: str) -> tuple[int, str]:
    number, split = line.split(",")
    if split not in _SPLIT_NAMES:
        raise ValueError(f"split {split!r} is not 1, 2 or 3")
    return int(number), _SPLIT_NAMES[split]
