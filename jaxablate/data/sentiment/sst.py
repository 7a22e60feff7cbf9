"""SST-2: sentences of the Stanford Sentiment Treebank (Socher et al. 2013) without the neutral ones.

Two layouts are read: labelled trees, ``(3 (2 It) (4 works))``, which can be downloaded, and GLUE's phrases.
"""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from jaxablate import files
from jaxablate.data.download import fetch
from jaxablate.data.progress import OTHERWISE, Report, silent, sole_builder
from jaxablate.data.sentiment.texts import (
    FETCH,
    NEGATIVE,
    POSITIVE,
    SPLITS,
    LabelledTexts,
    Splits,
    decoded,
    held_out,
    read_bytes,
)
from jaxablate.errors import DataError

TREES_URL = "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip"
TREE_FILES = ("train.txt", "dev.txt", "test.txt")
GLUE_FILES = ("train.tsv", "dev.tsv")
GLUE_DEV = 872
"""Training phrases of GLUE held out for development: as many as its own dev.tsv has, which serves as test split."""

_LARGEST_TREE_FILE = 1 << 24
_LAYOUTS = "train.txt, dev.txt and test.txt (labelled trees) or train.tsv and dev.tsv (GLUE)"
_LEAF = re.compile(r"\([0-4] ([^ ()]+)\)")
_NODES = re.compile("(?:\\([0-4]|[\0 )])*")
_NODE_PART = re.compile("\\([0-4]|[\0)]")


def read_sst2(folder: Path, *, split_seed: int = 0, balance: bool = True) -> Splits:
    """The three splits of whichever layout a folder holds, or its subfolder ``trees``.

    The seed decides what is held out of GLUE's phrases. Balancing cuts the training split's larger class to the size of
    the smaller one.

    Raises:
      ConfigError: the folder's path is none that a folder can have.
      DataError: there is no such layout, a file of it is missing, or a file is malformed.
    """
    files.check_path(folder, "the folder of SST-2")
    place, read = _layout(folder)
    splits = read(place, split_seed)
    if balance:
        splits["train"] = splits["train"].balanced()
    empty = [split.name for split in splits.values() if min(split.class_counts()) == 0]
    if empty:
        raise DataError(f"{place} gives {empty[0]} no text of one of the two classes; {FETCH}")
    return splits


def parse_tree(line: str) -> tuple[int, str]:
    """Root label of one tree and its words joined by single spaces.

    A node is ``(label word)`` or ``(label node node ...)``, its label 0..4. Words stay as they stand, -LRB- too.

    Raises:
      ValueError: the line is something else.

    >>> parse_tree("(3 (2 It) (4 works))")
    (3, 'It works')
    """
    tree = line.strip(" ")
    if "\0" in line or not _is_tree(_LEAF.sub("\0", tree)):
        raise ValueError("no tree of (label word) and (label node node ...) with labels 0..4")
    return int(tree[1]), " ".join(_LEAF.findall(tree))


def _is_tree(nodes: str) -> bool:
    """Whether a line is one node, where ``\\0`` stands for each leaf; in time linear in its length."""
    if not _NODES.fullmatch(nodes):
        return False
    children = [0]  # of what the tree is in, and of every open node
    for part in _NODE_PART.finditer(nodes):
        if part[0] != ")":
            children[-1] += 1
            if part[0] != "\0":
                children.append(0)
        elif len(children) == 1 or children.pop() == 0:
            return False
    return children == [1]


def download_trees(cache_dir: str | os.PathLike[str], *, report: Report = silent, url: str = TREES_URL) -> Path:
    """Download the zip file of the trees into `cache_dir` and unpack its three files into a folder, unless it is there.

    Raises:
      DataError: there is no network, or the answer is not the whole zip file.
      FileError: the folder cannot be written.
    """
    folder = Path(cache_dir) / "trees"
    if all((folder / name).exists() for name in TREE_FILES):
        return folder
    instead = f"unpack it so that {folder} holds train.txt, dev.txt and test.txt, or give data.path such a folder"
    archive = fetch(url, Path(cache_dir) / "trainDevTestTrees_PTB.zip", report=report, instead=instead)
    with sole_builder(folder, report):
        for name, content in _tree_files(archive).items():
            files.write(folder / name, content, otherwise=OTHERWISE)
    return folder


def _tree_files(archive: Path) -> dict[str, bytes]:
    """The three files of the zip archive, read by name; no name of the archive's own choice is ever written."""
    try:
        with files.open_file(archive) as file, zipfile.ZipFile(file) as packed:
            members = {name: packed.getinfo(f"trees/{name}") for name in TREE_FILES}
            large = [name for name, member in members.items() if member.file_size > _LARGEST_TREE_FILE]
            if large:
                raise DataError(f"{archive} has {large[0]} of over {_LARGEST_TREE_FILE} bytes; delete it and run again")
            return {name: packed.read(member) for name, member in members.items()}
    except DataError:
        raise
    except Exception as error:  # zipfile passes on whatever its decompressors and its reading of fields raise
        raise DataError(f"{archive} is no archive of the trees ({error}); delete it and run again") from error


def _layout(folder: Path) -> tuple[Path, Callable[[Path, int], Splits]]:
    """Where the files are, and what reads them; the first of a layout's files tells it."""
    for place in (folder, folder / "trees"):
        for names, read in ((TREE_FILES, _trees), (GLUE_FILES, _glue)):
            missing = [name for name in names if not (place / name).exists()]
            if names[0] in missing:
                continue
            if missing:
                raise DataError(f"{place} lacks {', '.join(missing)} beside {names[0]}; add what is missing")
            return place, read
    if (folder / "dictionary.txt").exists():
        raise DataError(f"{folder} holds the tables of the 2013 release (dictionary.txt ...), which are not read; the "
                        f"trees at {TREES_URL} are the same sentences: give data.path a folder with {_LAYOUTS}")
    raise DataError(f"{folder} has no SST-2; give data.path a folder with {_LAYOUTS}")


def _parsed(path: Path, parse: Callable[[str], tuple[int, str]], *, skip: int = 0) -> list[tuple[str, int]]:
    """(text, label) of each line after those to skip; a malformed one is an error that names it.

    ``\\n`` and ``\\r\\n`` end a line, and nothing else: words may hold other separators that `str.splitlines` knows.
    """
    lines = decoded(path.name, read_bytes(path)).replace("\r\n", "\n").split("\n")
    pairs = []
    for number, line in enumerate(lines[skip : -1 if lines[-1] == "" else None], start=skip + 1):
        try:
            label, text = parse(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}; mend this line or {FETCH}") from error
        pairs.append((text, label))
    return pairs


def _trees(folder: Path, split_seed: int) -> Splits:  # noqa: ARG001
    """Sentences with root label 0, 1 (negative) or 3, 4 (positive)."""
    splits: Splits = {}
    for split in SPLITS:
        parsed = _parsed(folder / f"{split}.txt", parse_tree)
        pairs = [(text, POSITIVE if label > 2 else NEGATIVE) for text, label in parsed if label != 2]
        splits[split] = LabelledTexts.from_pairs(f"sst2-trees {split}", pairs)
    return splits


def _glue(folder: Path, split_seed: int) -> Splits:
    """GLUE hides the labels of its test split, so its dev.tsv is the test split here.

    Its training texts are phrases, many of them parts of one sentence. The phrases held out for development therefore
    share words with training phrases of the same sentences, and accuracy on them is too good; that on test is not.
    """
    phrases = LabelledTexts.from_pairs("sst2-glue train", _parsed(folder / "train.tsv", _phrase, skip=1))
    if len(phrases) <= GLUE_DEV:
        raise DataError(f"{folder / 'train.tsv'} has {len(phrases)} phrases; {GLUE_DEV} are held out, give more")
    train, dev = held_out(split_seed, 0, len(phrases), GLUE_DEV)
    return {
        "train": phrases.take("sst2-glue train", train),
        "dev": phrases.take("sst2-glue dev", dev),
        "test": LabelledTexts.from_pairs("sst2-glue test", _parsed(folder / "dev.tsv", _phrase, skip=1)),
    }


def _phrase(line: str) -> tuple[int, str]:
    text, _, label = line.rpartition("\t")
    if "\t" in text or not text.strip() or label not in ("0", "1"):
        raise ValueError("no phrase, a tab and the label 0 or 1")
    return int(label), text.strip()
