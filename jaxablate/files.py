"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxablate.errors import DataError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, otherwise: str = "choose another folder") -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when the block ends well; readers never see a part of it.

    The bytes go to a hidden file in the same folder, which is synced, then renamed. On any failure it is removed.

    Args:
      path: the file; its folder is made where there is none.
      otherwise: what the user may do instead of mending the folder or the disk, for the message.

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
        raise write_error(path, error, otherwise) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_bytes(path: str | os.PathLike, content: bytes, *, otherwise: str = "choose another folder") -> None:
    """`atomic_write` of all of a file's content."""
    with atomic_write(path, otherwise=otherwise) as file:
        file.write(content)


def write_error(path: str | os.PathLike, error: OSError, otherwise: str) -> DataError:
    """One line for a file that cannot be written: which, why, what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(f"disk full while writing {path} ({error.strerror}); free some space or {otherwise}")
    return DataError(f"cannot write {path} ({error.strerror or error}); make its folder writable or {otherwise}")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
