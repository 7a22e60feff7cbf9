"""Files that are there whole or not at all, and one builder of a file at a time."""

import contextlib
import functools
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxablate import files

Report = Callable[[str, int, int], None]
"""Progress: ``report(what, done, total)``, in bytes or stories; total 0 where it is unknown."""


def silent(what: str, done: int, total: int) -> None:
    """The `Report` that shows nothing."""


_OTHERWISE = "set another cache_dir"
atomic_write = functools.partial(files.atomic_write, otherwise=_OTHERWISE)


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
        raise files.write_error(path, error, _OTHERWISE) from error
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
