"""Public data over https, such as the TinyStories text files: fetched completely or not at all."""

import contextlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from jaxablate import files
from jaxablate.data.progress import OTHERWISE, Report, silent, sole_builder
from jaxablate.errors import DataError

TINYSTORIES_URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
"""Folder of the public release (Eldan & Li 2023, CDLA-Sharing-1.0): 1.9 GB to train on, 19 MB to validate."""

Split = Literal["train", "valid"]
_TIMEOUT_S = 30
_CHUNK = 1 << 20


def tinystories_path(cache_dir: str | os.PathLike[str], split: Split) -> Path:
    """Where a split's text file belongs."""
    return Path(cache_dir) / f"TinyStories-{split}.txt"


def download_tinystories(cache_dir: str | os.PathLike[str], split: Split, *, report: Report = silent,
                         url: str | None = None) -> Path:
    """Download one split into `cache_dir`, unless it is there; `url` replaces the folder of the public release.

    Raises:
      DataError, FileError: as for `fetch`.
    """
    path = tinystories_path(cache_dir, split)
    return fetch(f"{url or TINYSTORIES_URL}/{path.name}", path, report=report, instead="give the path of a story file")


def fetch(address: str, path: Path, *, instead: str, report: Report = silent) -> Path:
    """Download one file to `path`, unless it is there; `instead` says what a user without a network can do.

    Raises:
      ConfigError: the path is none that a file can have.
      DataError: there is no network, or the answer is not the whole file.
      FileError: the folder cannot be written.
    """
    files.check_path(path, "cache_dir")
    if path.exists():
        return path
    with sole_builder(path, report):
        if path.exists():  # another process has fetched it while this one waited
            return path
        with _network_errors(path, address, instead):
            response = _open(address)
        # Inside atomic_write, which takes every OSError for one of the file.
        with response, files.atomic_write(path, otherwise=OTHERWISE) as file, _network_errors(path, address, instead):
            _copy(response, file, path, report)
    return path


def _open(address: str) -> http.client.HTTPResponse:
    return urllib.request.urlopen(address, timeout=_TIMEOUT_S)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, path: Path, report: Report) -> None:
    length = response.headers.get("Content-Length") or "0"
    expected = int(length) if length.isdecimal() and len(length) < 20 else 0
    done = 0
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        done += len(chunk)
        report(f"downloading {path.name}", done, expected)
    if done == 0 or (expected and done != expected):
        raise DataError(f"download of {path.name} ended after {done} of {expected} bytes; run again")


@contextlib.contextmanager
def _network_errors(path: Path, address: str, instead: str) -> Iterator[None]:
    try:
        yield
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, urllib.error.HTTPError):  # an answer, with a connection of its own
            error.close()
        raise DataError(
            f"{path.name} is not at {path} and cannot be downloaded ({reason}); on a machine with a network fetch "
            f"{address}, then put it at {path}, or {instead}"
        ) from error
