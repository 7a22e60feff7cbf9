"""IMDB: film reviews of the Large Movie Review Dataset (Maas et al. 2011), from its archive or its folder.

The archive is read once from end to end and never unpacked to disk.
"""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from jaxablate import files
from jaxablate.data.download import fetch
from jaxablate.data.progress import Report, silent
from jaxablate.data.sentiment.texts import (
    FETCH,
    NEGATIVE,
    POSITIVE,
    LabelledTexts,
    Splits,
    decoded,
    held_out,
    read_bytes,
)
from jaxablate.errors import DataError

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
DEV_PARTS = 5
"""One review of so many of each class of the training half is held out for development."""

_FOLDERS = tuple(f"{half}/{polarity}" for half in ("train", "test") for polarity in ("pos", "neg"))
_FILE_NAME = re.compile(r"(\d{1,9})_(\d|10)\.txt", re.ASCII)
_REPORT_EVERY = 1000
_CHUNK = 1 << 20
_LONGEST_REVIEW = 1 << 20
_LARGEST_SET = 1 << 27
_MOST_MEMBERS = 1 << 19
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
             tarfile.GNUTYPE_LONGLINK)
"""Headers that say more of the member after them, such as a name of more than 100 characters."""

Reviews = dict[str, dict[int, str]]
"""Folder such as ``train/pos`` -> id -> review."""


def download_imdb(cache_dir: str | os.PathLike[str], *, report: Report = silent, url: str = IMDB_URL) -> Path:
    """Download the review archive, which stays packed, into `cache_dir`, unless it is there.

    Raises:
      DataError: there is no network, or the answer is not the whole file.
      FileError: the folder cannot be written.
    """
    return fetch(url, Path(cache_dir) / "aclImdb_v1.tar.gz", report=report,
                 instead="give data.path the archive or its unpacked aclImdb folder")


def read_imdb(path: Path, *, split_seed: int = 0, report: Report = silent) -> Splits:
    """The three splits of ``aclImdb_v1.tar.gz``, or of its unpacked folder ``aclImdb`` or the folder that holds it.

    The order is: positive, negative; then by the number in the file's name. ``<br />`` becomes a space. The seed
    decides which fifth of each class of the training half is the development split; the report is in reviews.

    Names that begin with a dot are passed over.

    Raises:
      ConfigError: the path is none that a file can have.
      DataError: nothing there, an archive that is damaged or has a member that could be unpacked elsewhere, a folder
        without reviews, a file name that is not ID_RATING.txt, a review that is empty, no UTF-8 or above 1 MiB, or
        more than 128 MiB of them.
    """
    files.check_path(path, "the review archive")
    found = _folder_files(path) if path.is_dir() else _archive_files(path)
    reviews: Reviews = {folder: {} for folder in _FOLDERS}
    size = 0
    for count, (name, content) in enumerate(found, start=1):
        _add(reviews, name, content, path)
        size += len(content)
        if size > _LARGEST_SET:
            raise DataError(f"{path} has over {_LARGEST_SET} bytes of reviews, twice what the set has; {FETCH}")
        if count % _REPORT_EVERY == 0:
            report(f"reading {path.name}", count, 0)
    empty = [f"aclImdb/{folder}" for folder, texts in reviews.items() if not texts]
    if empty:
        raise DataError(f"{path} has no reviews in {', '.join(empty)}; {FETCH}")
    return _splits(reviews, split_seed, path)


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name below aclImdb and content of every review of the archive.

    Headers are read one by one, each with no more of its content than a review has: `tarfile` itself trusts what they
    say of sizes, keeps all of them, and reads extended headers, which no name here needs, in quadratic time.
    """
    try:
        with files.open_file(path) as file, gzip.open(file) as stream:
            members = 0
            while (block := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                members += 1
                size = 0 if member.isdir() else member.size
                left = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if size < 0 or members > _MOST_MEMBERS:
                    what = "a member's size is negative" if size < 0 else f"it has over {_MOST_MEMBERS} members"
                    raise tarfile.ReadError(what)
                if member.type not in _EXTENDED:
                    _check_safe(member, path)
                    top, *parts = PurePosixPath(member.name).parts or ("",)
                    name, wanted = "/".join(parts), top == "aclImdb" and "/".join(parts[:-1]) in _FOLDERS
                    if wanted and member.isfile() and not _hidden(name):
                        if size > _LONGEST_REVIEW:
                            raise DataError(f"{path}: aclImdb/{name} has {size} bytes; a review has at most "
                                            f"{_LONGEST_REVIEW}, {FETCH}")
                        yield name, _taken(stream, size)
                        left -= size
                while left > 0:
                    left -= len(_taken(stream, min(left, _CHUNK)))
            # gzip's checksum is at the end. What comes after the first block of zeros must be zeros, too.
            while chunk := stream.read(_CHUNK):
                if chunk.strip(b"\0"):
                    raise tarfile.ReadError("something follows its end")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give data.path aclImdb_v1.tar.gz or its unpacked folder") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} is damaged or no tar.gz archive ({error}); {FETCH}") from error


def _taken(stream: gzip.GzipFile, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it ends within a member")
    return content


def _check_safe(member: tarfile.TarInfo, path: Path) -> None:
    """Refuses an archive that could write elsewhere when someone unpacks it."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise DataError(f"{path} is unsafe: it has a member named {member.name!r}, outside its folder; {FETCH}")
    if member.type not in _PLAIN:
        raise DataError(f"{path} is unsafe: its member {member.name!r} is no file or folder but a link or device; "
                        f"{FETCH}")


def _folder_files(path: Path) -> Iterator[tuple[str, bytes]]:
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    for folder in _FOLDERS:
        for file in sorted((root / folder).glob("*")):
            name = f"{folder}/{file.name}"
            if not _hidden(name):
                yield name, read_bytes(file, _LONGEST_REVIEW)


def _hidden(name: str) -> bool:
    """Whether a name below aclImdb is one such as ``.DS_Store``, which file managers leave behind."""
    return PurePosixPath(name).name.startswith(".")


def _add(reviews: Reviews, name: str, content: bytes, path: Path) -> None:
    folder, _, file_name = name.rpartition("/")
    match = _FILE_NAME.fullmatch(file_name)
    if not match:
        raise DataError(f"{path}: aclImdb/{name} is not named ID_RATING.txt (rating 0..10); rename or remove it")
    number = int(match[1])
    if number in reviews[folder]:
        raise DataError(f"{path}: aclImdb/{name} has the number of another review in {folder}; remove one of them")
    text = decoded(f"{path}: aclImdb/{name}", content).replace("<br />", " ").strip()
    if not text:
        raise DataError(f"{path}: aclImdb/{name} is empty; remove it or {FETCH}")
    reviews[folder][number] = text


def _splits(reviews: Reviews, split_seed: int, path: Path) -> Splits:
    train, test = (LabelledTexts.from_pairs(f"imdb {half}", [
        (text, label) for polarity, label in (("pos", POSITIVE), ("neg", NEGATIVE))
        for _, text in sorted(reviews[f"{half}/{polarity}"].items())]) for half in ("train", "test"))
    remaining, dev = [], []
    for label in (POSITIVE, NEGATIVE):
        places = np.flatnonzero(train.labels == label)
        if len(places) < DEV_PARTS:
            raise DataError(f"{path} has {len(places)} reviews of a class to train on; at least {DEV_PARTS} are needed")
        stay, held = held_out(split_seed, label, len(places), len(places) // DEV_PARTS)
        remaining.append(places[stay])
        dev.append(places[held])
    return {"train": train.take("imdb train", np.concatenate(remaining)),
            "dev": train.take("imdb dev", np.concatenate(dev)), "test": test}
