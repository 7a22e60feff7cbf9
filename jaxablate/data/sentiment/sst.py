"""SST-2: sentences of the Stanford Sentiment Treebank (Socher et al. 2013) without the neutral ones.

Three layouts of the same data: labelled trees, GLUE's phrases (both here), and the original release's tables
(`jaxablate.data.sentiment.release`).
"""

from collections.abc import Callable
from pathlib import Path

from jaxablate.data.sentiment.download import TREE_FILES
from jaxablate.data.sentiment.order import held_out
from jaxablate.data.sentiment.release import RELEASE_FILES, read_release
from jaxablate.data.sentiment.texts import (
    FETCH,
    NEGATIVE,
    POSITIVE,
    SPLITS,
    LabelledTexts,
    Splits,
    filled,
    read_lines,
    read_table,
)
from jaxablate.data.sentiment.trees import MalformedTree, parse_tree
from jaxablate.errors import DataError

GLUE_FILES = ("train.tsv", "dev.tsv")

GLUE_DEV = 872
"""Training phrases of GLUE held out for development: as many as its own dev.tsv has, which serves as test split."""


def read_sst2(folder: Path, *, split_seed: int = 0, balance: bool = True) -> Splits:
    """The three splits of whichever layout a folder holds, or its subfolder ``trees``.

    Args:
      folder: of PTB trees (train.txt, dev.txt, test.txt), of the original release (dictionary.txt,
        sentiment_labels.txt, datasetSentences.txt, datasetSplit.txt) or of GLUE (train.tsv, dev.tsv).
      split_seed: decides what is held out of GLUE's phrases.
      balance: whether the training split's larger class is cut to the size of the smaller one.

    Raises:
      DataError: no such layout, a file of it is missing, or a file is malformed.
    """
    place, read = _layout(folder)
    splits = read(place, split_seed)
    if balance:
        splits["train"] = splits["train"].balanced()
    empty = [split.name for split in splits.values() if min(split.class_counts()) == 0]
    if empty:
        raise DataError(f"{place} gives {empty[0]} no text of one of the two classes; {FETCH}")
    return splits


def _layout(folder: Path) -> tuple[Path, Callable[[Path, int], Splits]]:
    """Where the files are, and what reads them; the first of a layout's files tells it."""
    for place in (folder, folder / "trees"):
        for names, read in ((TREE_FILES, _trees), (RELEASE_FILES, _release), (GLUE_FILES, _glue)):
            missing = [name for name in names if not (place / name).exists()]
            if names[0] in missing:
                continue
            if missing:
                raise DataError(f"{place} lacks {', '.join(missing)} beside {names[0]}; add what is missing")
            return place, read
    raise DataError(
        f"{folder} has no SST-2: it needs train.txt, dev.txt and test.txt (trees), dictionary.txt and its companions "
        "(original release) or train.tsv and dev.tsv (GLUE); give data.path such a folder"
    )


def _trees(folder: Path, split_seed: int) -> Splits:
    return {split: LabelledTexts.of(f"sst2-trees {split}", _sentences(folder / f"{split}.txt")) for split in SPLITS}


def _sentences(path: Path) -> list[tuple[str, int]]:
    """Sentences of a file of trees with root label 0, 1 (negative) or 3, 4 (positive)."""
    found = []
    for number, line in enumerate(read_lines(path, FETCH), start=1):
        try:
            label, sentence = parse_tree(line)
        except MalformedTree as error:
            raise DataError(f"{path}:{number}: {error}; mend this line or {FETCH}") from error
        if label != 2:
            found.append((sentence, POSITIVE if label > 2 else NEGATIVE))
    return found


def _release(folder: Path, split_seed: int) -> Splits:
    return read_release(folder)


def _glue(folder: Path, split_seed: int) -> Splits:
    """GLUE hides the labels of its test split, so its dev.tsv is the test split here.

    Its training texts are phrases, many of them parts of one sentence. The phrases held out for development therefore
    share words with training phrases of the same sentences, and accuracy on them is too good; that on test is not.
    """
    phrases = LabelledTexts.of("sst2-glue train", read_table(folder / "train.tsv", _phrase, header=True))
    if len(phrases) <= GLUE_DEV:
        raise DataError(f"{folder / 'train.tsv'} has {len(phrases)} phrases; {GLUE_DEV} are held out, give more")
    kept, dev = held_out(split_seed, 0, len(phrases), GLUE_DEV)
    return {
        "train": phrases.take("sst2-glue train", kept),
        "dev": phrases.take("sst2-glue dev", dev),
        "test": LabelledTexts.of("sst2-glue test", read_table(folder / "dev.tsv", _phrase, header=True)),
    }


def _phrase(line: str) -> tuple[str, int]:
    text, label = line.split("\t")
    if label not in ("0", "1"):
        raise ValueError(f"label {label!r} is not 0 or 1")
    return filled(text), int(label)
