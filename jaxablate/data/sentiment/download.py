"""Fetch the public sentiment sets: over https, whole or not at all."""

import os
import zipfile
from pathlib import Path

from jaxablate.data.atomic import Report, atomic_write, silent, sole_builder
from jaxablate.data.download import fetch
from jaxablate.errors import DataError

TREES_URL = "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip"
"""Stanford Sentiment Treebank as labelled trees (Socher et al. 2013)."""

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
"""Large Movie Review Dataset (Maas et al. 2011)."""

TREE_FILES = ("train.txt", "dev.txt", "test.txt")

_LARGEST_TREE_FILE = 1 << 26


def imdb_path(cache_dir: str | os.PathLike) -> Path:
    """Where the review archive belongs."""
    return Path(cache_dir) / "aclImdb_v1.tar.gz"


def download_imdb(cache_dir: str | os.PathLike, *, report: Report = silent, url: str = IMDB_URL) -> Path:
    """Download the review archive into `cache_dir`, unless it is there.

    Returns:
      Path of the archive, which stays packed.

    Raises:
      DataError: no network, an answer that is not the whole file, or the folder cannot be written.
    """
    path = imdb_path(cache_dir)
    return fetch(url, path, report=report, instead="give data.path the archive or its unpacked aclImdb folder")


def trees_path(cache_dir: str | os.PathLike) -> Path:
    """Folder in which the trees belong."""
    return Path(cache_dir) / "trees"


def download_trees(cache_dir: str | os.PathLike, *, report: Report = silent, url: str = TREES_URL) -> Path:
    """Download the zip file of the trees into `cache_dir` and unpack its three files, unless they are there.

    Returns:
      Folder of train.txt, dev.txt and test.txt.

    Raises:
      DataError: no network, an answer that is not the whole zip file, or the folder cannot be written.
    """
    folder = trees_path(cache_dir)
    if all((folder / name).exists() for name in TREE_FILES):
        return folder
    instead = f"unpack it so that {folder} holds train.txt, dev.txt and test.txt, or give data.path such a folder"
    archive = fetch(url, Path(cache_dir) / "trainDevTestTrees_PTB.zip", report=report, instead=instead)
    with sole_builder(folder, report):
        for name, content in _tree_files(archive).items():
            with atomic_write(folder / name) as file:
                file.write(content)
    return folder


def _tree_files(archive: Path) -> dict[str, bytes]:
    """The three files of the zip archive, read by name; no name of the archive's own choice is ever written."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = {name: packed.getinfo(f"trees/{name}") for name in TREE_FILES}
            large = [name for name, member in members.items() if member.file_size > _LARGEST_TREE_FILE]
            if large:
                raise DataError(f"{archive} has {large[0]} of over {_LARGEST_TREE_FILE} bytes; delete it and run again")
            return {name: packed.read(member) for name, member in members.items()}
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise DataError(f"{archive} is no archive of the trees ({error}); delete it and run again") from error
