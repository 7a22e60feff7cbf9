"""IMDB: film reviews of the Large Movie Review Dataset (Maas et al. 2011), from its archive or its folder.

The archive is read once from end to end and never unpacked to disk.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from jaxablate.data.atomic import Report, silent
from jaxablate.data.sentiment.order import held_out
from jaxablate.data.sentiment.texts import NEGATIVE, POSITIVE, LabelledTexts, Splits, decoded, read_bytes
from jaxablate.errors import DataError

DEV_PARTS = 5
"""One review of so many of each class of the training half is held out for development."""

_FOLDERS = tuple(f"{half}/{polarity}" for half in ("train", "test") for polarity in ("pos", "neg"))
_FILE_NAME = re.compile(r"(\d{1,9})_(\d|10)\.txt", re.ASCII)
_FETCH = "fetch the archive again"
_REPORT_EVERY = 1000
_CHUNK = 1 << 20

Reviews = dict[str, dict[int, str]]
"""Folder such as ``train/pos`` -> id -> review."""


def read_imdb(path: Path, *, split_seed: int = 0, report: Report = silent) -> Splits:
    """The three splits of ``aclImdb_v1.tar.gz``, or of its unpacked folder ``aclImdb`` or the folder that holds it.

    The order is: positive, negative; then by the number in the file's name. ``<br />`` becomes a space.

    Args:
      path: the archive or the folder.
      split_seed: decides which fifth of each class of the training half is the development split.
      report: progress in reviews.

    Raises:
      DataError: nothing there, an archive that is damaged or has a member that could be unpacked elsewhere, a folder
        without reviews, a file name that is not ID_RATING.txt, or a review that is empty or no UTF-8.
    """
    files = _folder_files(path) if path.is_dir() else _archive_files(path)
    reviews: Reviews = {folder: {} for folder in _FOLDERS}
    for done, (name, content) in enumerate(files, start=1):
        _add(reviews, name, content, path)
        if done % _REPORT_EVERY == 0:
            report(f"reading {path.name}", done, 0)
    empty = [folder for folder, found in reviews.items() if not found]
    if empty:
        raise DataError(f"{path} has no reviews in {', '.join(f'aclImdb/{folder}' for folder in empty)}; {_FETCH}")
    return _splits(reviews, split_seed, path)


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name below aclImdb and content of every review of the archive."""
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.BLOCKSIZE) as archive:
                for member in archive:
                    _check_safe(member, path)
                    name = _below(PurePosixPath(member.name).parts)
                    if member.isfile() and name:
                        yield name, archive.extractfile(member).read()
            _check_rest(stream)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; give data.path aclImdb_v1.tar.gz or its unpacked folder") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} is damaged or no tar.gz archive ({error}); {_FETCH}") from error


def _check_rest(stream: BinaryIO) -> None:
    """Reads to the end, where gzip's checksum is; tarfile stops, without a word, where a header makes no sense.

    What it has not read must then be padding. It has read no further than that header, by its buffer of one block.
    """
    while chunk := stream.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("a member's header is damaged")


def _check_safe(member: tarfile.TarInfo, path: Path) -> None:
    """Refuses an archive that could write elsewhere when someone unpacks it."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise DataError(f"{path} is unsafe: it has a member named {member.name!r}, outside its folder; {_FETCH}")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{path} is unsafe: its member {member.name!r} is no file or folder but a link or device; "
                        f"{_FETCH}")


def _folder_files(path: Path) -> Iterator[tuple[str, bytes]]:
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    for folder in _FOLDERS:
        for file in sorted((root / folder).glob("*")):
            yield f"{folder}/{file.name}", read_bytes(file, _FETCH)


def _below(parts: tuple[str, ...]) -> str | None:
    """``train/pos/0_9.txt`` for a file of reviews, None for the archive's other files."""
    inside = parts[1:] if parts[:1] == ("aclImdb",) else ()
    return "/".join(inside) if "/".join(inside[:-1]) in _FOLDERS else None


def _add(reviews: Reviews, name: str, content: bytes, path: Path) -> None:
    folder, _, file_name = name.rpartition("/")
    match = _FILE_NAME.fullmatch(file_name)
    if not match:
        raise DataError(f"{path}: aclImdb/{name} is not named ID_RATING.txt (rating 0..10); rename or remove it")
    number = int(match[1])
    if number in reviews[folder]:
        raise DataError(f"{path}: aclImdb/{name} has the number of another review in {folder}; remove one of them")
    text = decoded(f"{path}: aclImdb/{name}", content, _FETCH).replace("<br />", " ").strip()
    if not text:
        raise DataError(f"{path}: aclImdb/{name} is empty; remove it or {_FETCH}")
    reviews[folder][number] = text


def _splits(reviews: Reviews, split_seed: int, path: Path) -> Splits:
    train, test = _half(reviews, "train"), _half(reviews, "test")
    kept, dev = [], []
    for label in (POSITIVE, NEGATIVE):
        places = np.flatnonzero(train.labels == label)
        if len(places) < DEV_PARTS:
            raise DataError(f"{path} has {len(places)} reviews of a class to train on; at least {DEV_PARTS} are needed")
        stay, held = held_out(split_seed, label, len(places), len(places) // DEV_PARTS)
        kept.append(places[stay])
        dev.append(places[held])
    return {
        "train": train.take("imdb train", np.concatenate(kept)),
        "dev": train.take("imdb dev", np.concatenate(dev)),
        "test": test,
    }


def _half(reviews: Reviews, half: str) -> LabelledTexts:
    pairs = [
        (reviews[f"{half}/{polarity}"][number], label)
        for polarity, label in (("pos", POSITIVE), ("neg", NEGATIVE))
        for number in sorted(reviews[f"{half}/{polarity}"])
    ]
    return LabelledTexts.of(f"imdb {half}", pairs)
