"""Files that are there whole or not at all, and one builder of a file at a time."""

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxablate.errors import DataError

Report = Callable[[str, int, int], None]
"""Progress: ``report(what, done, total)``, in bytes or stories; total 0 where it is unknown."""


def silent(what: str, done: int, total: int) -> None:
    """The `Report` that shows nothing."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when the block ends well; readers never see a part of it.

    The bytes go to a hidden file in the same folder, which is synced, then renamed. On any failure it is removed.

    Raises:
      DataError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def sole_builder(path: str | os.PathLike, report: Report = silent) -> Iterator[None]:
    """Wait until no other process builds `path`, then keep others out; what a killed builder left is removed.

    The lock is the operating system's, on ``.<name>.lock`` beside the file: it ends with the process, however that
    ends. Where a network file system has no locks, two hosts may build at once; `atomic_write` still keeps both whole.

    Raises:
      DataError: the folder cannot be written.
    """
    import filelock

    path = Path(path)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, report)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        _remove_partials(path)
        yield
    finally:
        lock.release()


def _acquire(lock, path: Path, report: Report) -> None:
    import filelock

    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report(f"waiting for another process to finish {path.name}", 0, 0)
        lock.acquire()


def _remove_partials(path: Path) -> None:
    for left in glob.glob(str(path.with_name(f".{glob.escape(path.name)}.*.partial"))):
        with contextlib.suppress(OSError):
            os.unlink(left)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(path: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(f"disk full while writing {path} ({error.strerror}); free some space or set another cache_dir")
    reason = error.strerror or error
    return DataError(f"cannot write {path} ({reason}); make its folder writable or set another cache_dir")
