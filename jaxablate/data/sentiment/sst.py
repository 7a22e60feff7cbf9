"""SST-2: sentences of the Stanford Sentiment Treebank (Socher et al. 2013) without the neutral ones.

Three layouts of the same data: labelled trees, the original release's tables, and GLUE's phrases.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from jaxablate.data.atomic import Report, silent
from jaxablate.data.sentiment.download import TREE_FILES
from jaxablate.data.sentiment.order import held_out
from jaxablate.data.sentiment.texts import NEGATIVE, POSITIVE, SPLITS, LabelledTexts, read_lines
from jaxablate.data.sentiment.trees import MalformedTree, parse_tree
from jaxablate.errors import DataError

GLUE_DEV = 872
"""Training phrases of GLUE held out for development: as many as its own dev.tsv has, which serves as test split."""

NEGATIVE_MOST, POSITIVE_ABOVE = 0.4, 0.6
"""Scores of the release up to the first are negative, above the second positive."""

_NOT_FOUND_MOST = 0.01
_RELEASE_FILES = ("dictionary.txt", "sentiment_labels.txt", "datasetSentences.txt", "datasetSplit.txt")
_GLUE_FILES = ("train.tsv", "dev.tsv")
_FETCH = "fetch the set again"

Splits = Mapping[str, LabelledTexts]
_Row = TypeVar("_Row")


def read_sst2(folder: Path, *, split_seed: int = 0, balance: bool = True, report: Report = silent) -> Splits:
    """The three splits of whichever layout a folder holds, or its subfolder ``trees``.

    Args:
      folder: of PTB trees (train.txt, dev.txt, test.txt), of the original release (dictionary.txt,
        sentiment_labels.txt, datasetSentences.txt, datasetSplit.txt) or of GLUE (train.tsv, dev.tsv).
      split_seed: decides what is held out of GLUE's phrases.
      balance: whether the training split's larger class is cut to the size of the smaller one.
      report: told of sentences of the release that have no score.

    Raises:
      DataError: no such layout, a file of it is missing, or a file is malformed.
    """
    for place in (folder, folder / "trees"):
        if (place / "train.txt").exists():
            return _finish(_trees(_complete(place, TREE_FILES)), balance)
        if (place / "dictionary.txt").exists():
            return _finish(_release(_complete(place, _RELEASE_FILES), report), balance)
        if (place / "train.tsv").exists():
            return _finish(_glue(_complete(place, _GLUE_FILES), split_seed), balance)
    raise DataError(
        f"{folder} has no SST-2: it needs train.txt, dev.txt and test.txt (trees), dictionary.txt and its companions "
        "(original release) or train.tsv and dev.tsv (GLUE); give data.path such a folder"
    )


def _complete(folder: Path, names: tuple[str, ...]) -> Path:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)} of {', '.join(names)}; add what is missing")
    return folder


def _finish(splits: dict[str, LabelledTexts], balance: bool) -> Splits:
    if balance:
        splits["train"] = splits["train"].balanced()
    empty = [split.name for split in splits.values() if min(split.class_counts()) == 0]
    if empty:
        raise DataError(f"{empty[0]} has no text of one of the two classes; {_FETCH}")
    return splits


def _trees(folder: Path) -> dict[str, LabelledTexts]:
    return {split: LabelledTexts.of(f"sst2-trees {split}", _sentences(folder / f"{split}.txt")) for split in SPLITS}


def _sentences(path: Path) -> list[tuple[str, int]]:
    """Sentences of a file of trees with root label 0, 1 (negative) or 3, 4 (positive)."""
    found = []
    for number, line in enumerate(read_lines(path, _FETCH), start=1):
        try:
            label, sentence = parse_tree(line)
        except MalformedTree as error:
            raise DataError(f"{path}:{number}: {error}; mend this line or {_FETCH}") from error
        if label != 2:
            found.append((sentence, POSITIVE if label > 2 else NEGATIVE))
    return found


def _glue(folder: Path, split_seed: int) -> dict[str, LabelledTexts]:
    """GLUE hides the labels of its test split, so its dev.tsv is the test split here.

    Its training texts are phrases, many of them parts of one sentence. The phrases held out for development therefore
    share words with training phrases of the same sentences, and accuracy on them is too good; that on test is not.
    """
    phrases = LabelledTexts.of("sst2-glue train", _table(folder / "train.tsv"))
    if len(phrases) <= GLUE_DEV:
        raise DataError(f"{folder / 'train.tsv'} has {len(phrases)} phrases; {GLUE_DEV} are held out, give more")
    kept, dev = held_out(split_seed, 0, len(phrases), GLUE_DEV)
    return {
        "train": phrases.take("sst2-glue train", kept),
        "dev": phrases.take("sst2-glue dev", dev),
        "test": LabelledTexts.of("sst2-glue test", _table(folder / "dev.tsv")),
    }


def _table(path: Path) -> list[tuple[str, int]]:
    def row(line: str) -> tuple[str, int]:
        sentence, label = line.split("\t")
        if label not in ("0", "1"):
            raise ValueError(f"label {label!r} is not 0 or 1")
        if not sentence.strip():
            raise ValueError("the text is empty")
        return sentence.strip(), int(label)

    return _rows(path, row, header=True)


def _release(folder: Path, report: Report) -> dict[str, LabelledTexts]:
    """Sentences with the scores that the dictionary has for them as phrases."""
    dictionary = _Dictionary(_rows(folder / "dictionary.txt", _phrase, header=False))
    scores = dict(_rows(folder / "sentiment_labels.txt", _score, header=True))
    sentences = _rows(folder / "datasetSentences.txt", _sentence, header=True)
    split_of = dict(_rows(folder / "datasetSplit.txt", _split, header=True))
    found: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    lost = 0
    for index, sentence in sentences:
        phrase = dictionary.find(sentence)
        if phrase is None:
            lost += 1
        elif (label := _class(_known(scores, phrase, "phrase", folder / "sentiment_labels.txt"))) is not None:
            found[_known(split_of, index, "sentence", folder / "datasetSplit.txt")].append((sentence, label))
    _check_lost(lost, len(sentences), folder, report)
    return {split: LabelledTexts.of(f"sst2-release {split}", pairs) for split, pairs in found.items()}


class _Dictionary:
    """Phrases of the release and their ids, found by sentences that are not always spelt as the phrases are.

    Sentences write brackets as -LRB- and -RRB-, and their letters beyond ASCII were encoded twice. So a sentence is
    looked up as it is, then with its brackets, then by its ASCII characters alone (the first phrase of these).
    """

    def __init__(self, phrases: list[tuple[str, int]]):
        self._ids = dict(phrases)
        self._canonical: dict[str, int] = {}
        for phrase, number in phrases:
            if not phrase.isascii():
                self._canonical.setdefault(_ascii(phrase), number)

    def find(self, sentence: str) -> int | None:
        bracketed = sentence.replace("-LRB-", "(").replace("-RRB-", ")")
        for spelling in (sentence, bracketed):
            if spelling in self._ids:
                return self._ids[spelling]
        return self._canonical.get(_ascii(bracketed))


def _ascii(text: str) -> str:
    return " ".join("".join(character for character in text if character.isascii()).split())


def _class(score: float) -> int | None:
    """None for a neutral score."""
    if score <= NEGATIVE_MOST:
        return NEGATIVE
    return POSITIVE if score > POSITIVE_ABOVE else None


def _known(table: Mapping[int, object], number: int, what: str, path: Path):
    if number not in table:
        raise DataError(f"{path} has no line for {what} {number}; {_FETCH}")
    return table[number]


def _check_lost(lost: int, n: int, folder: Path, report: Report) -> None:
    if lost > _NOT_FOUND_MOST * n:
        raise DataError(
            f"{lost} of {n} sentences of {folder} are not in dictionary.txt, more than {_NOT_FOUND_MOST:.0%}; the two "
            f"files do not belong together, {_FETCH}"
        )
    if lost:
        report(f"{lost} of {n} sentences are not in dictionary.txt and are left out", lost, n)


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
    if not sentence.strip():
        raise ValueError("the text is empty")
    return int(number), sentence.strip()


def _split(line: str) -> tuple[int, str]:
    number, split = line.split(",")
    names = {"1": "train", "2": "test", "3": "dev"}
    if split not in names:
        raise ValueError(f"split {split!r} is not 1, 2 or 3")
    return int(number), names[split]


def _rows(path: Path, parse: Callable[[str], _Row], *, header: bool) -> list[_Row]:
    lines = read_lines(path, _FETCH)
    found = []
    for number, line in enumerate(lines[header:], start=1 + header):
        try:
            found.append(parse(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: {_reason(error)}; mend this line or {_FETCH}") from error
    return found


def _reason(error: ValueError) -> str:
    """Python says 'too many values to unpack' where a line has too many columns."""
    return "wrong number of columns" if "unpack" in str(error) else str(error)
