"""Files that are whole or absent: writing, locks, checksums, and reading of JSON with a version.

Nothing else in the package writes a file in place, renames one, or takes a lock.
"""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jaxablate.errors import FileError

StrPath = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_write(path: StrPath, *, otherwise: str = "choose another folder") -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when the block ends well; readers never see a part of it.

    The bytes go to a hidden file in the same folder, made where there is none; it is synced, then renamed, and removed
    on any failure. ``otherwise`` is what the user may do instead of mending the folder or the disk, for the message.

    Raises:
      FileError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = _partial(path)
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


def write(path: StrPath, content: bytes | str, *, otherwise: str = "choose another folder") -> Path:
    """`atomic_write` of all of a file's content, text as UTF-8; returns the path."""
    with atomic_write(path, otherwise=otherwise) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: StrPath, value: Any, *, indent: int | None = 2, otherwise: str = "choose another folder") -> Path:
    """`write` of a value as JSON. A number that is not finite becomes null, since JSON has no such number."""
    text = json.dumps(finite(value), indent=indent, allow_nan=False)
    return write(path, text + "\n", otherwise=otherwise)


@contextlib.contextmanager
def atomic_folder(path: StrPath, *, otherwise: str = "choose another folder") -> Iterator[Path]:
    """An empty folder to fill, which replaces ``path`` whole when the block ends well, and is removed otherwise.

    Raises:
      FileError: it cannot be written, or the disk is full.
    """
    path = Path(path)
    staging = _partial(path)
    old = staging.with_suffix(".old.partial")
    try:
        staging.mkdir(parents=True)
        yield staging
        os.sync()  # once for a thousand files; each by itself would take several milliseconds
        if path.exists():
            os.replace(path, old)
        os.replace(staging, path)
    except OSError as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise write_error(path, error, otherwise) from error
    finally:
        for left in (staging, old):
            shutil.rmtree(left, ignore_errors=True)


def write_group(folder: Path, contents: Mapping[str, bytes], *, otherwise: str = "choose another --out"
                ) -> tuple[Path, ...]:
    """Writes several files into a folder, made where missing, beside what is there already.

    All are written under hidden names and synced before the first takes its name, so a full disk leaves none of them.

    Raises:
      FileError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    made = next((p for p in reversed((folder, *folder.parents)) if not p.exists()), None)
    staging = _partial(folder / "group")
    try:
        staging.mkdir(parents=True)
        for name, content in contents.items():
            write(staging / name, content, otherwise=otherwise)
        for name in contents:
            os.replace(staging / name, folder / name)
    except (OSError, FileError) as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise error if isinstance(error, FileError) else write_error(folder, error, otherwise) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return tuple(folder / name for name in contents)


def write_error(path: StrPath, error: OSError, otherwise: str) -> FileError:
    """One line for a file that cannot be written: which, why, what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FileError(f"disk full while writing {path} ({error.strerror}); free some space or {otherwise}")
    return FileError(f"cannot write {path} ({error.strerror or error}); make its folder writable or {otherwise}")


def remove_partials(path: StrPath) -> None:
    """Removes what killed writers of this file or folder have left beside it; only for who holds its lock."""
    path = Path(path)
    for left in glob.glob(str(path.with_name(f".{glob.escape(path.name)}.*.partial"))):
        if os.path.isdir(left):
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(left)


@contextlib.contextmanager
def lock(path: StrPath, *, busy: str | None = None, waiting: Callable[[], None] = lambda: None,
         otherwise: str = "choose another folder") -> Iterator[None]:
    """Keeps other processes out while the block runs; ends with the process, however that ends.

    The lock is the operating system's. Where a network file system has no locks, the error says so. The lock's file
    stays, and its folder is made. Where another process holds it, ``busy`` is said; without that ``waiting`` is called
    once and the other awaited.

    Raises:
      FileError: another process holds it and ``busy`` is given, or the folder cannot be written.
    """
    import filelock

    path = Path(path)
    held = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout as error:
            if busy is not None:
                raise FileError(busy) from error
            waiting()
            held.acquire()
    except OSError as error:
        raise write_error(path, error, otherwise) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def sole_builder(path: StrPath, *, waiting: Callable[[], None] = lambda: None,
                 otherwise: str = "choose another folder") -> Iterator[None]:
    """Waits until no other process builds a file or folder, then keeps others out while the block does.

    What killed builders have left beside it is removed. The lock is on ``.<name>.lock`` in the same folder.

    Raises:
      FileError: the folder cannot be written.
    """
    path = Path(path)
    with lock(path.with_name(f".{path.name}.lock"), waiting=waiting, otherwise=otherwise):
        remove_partials(path)
        yield


def read_json(path: StrPath, *, what: str, fix: str, format: str | None = None,
              versions: tuple[int, ...] | None = None) -> dict[str, Any]:
    """A JSON object from a file, its keys ``format`` and ``version`` checked where they are asked for.

    Messages say ``what`` the file is (``a circuit file``) and how the user may ``fix`` it (``restore it``).

    Raises:
      FileNotFoundError: there is no such file; the caller knows what its absence means.
      FileError: it cannot be read, is no JSON object, or is of another format or version.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be read as {what} ({reason}); {fix}") from error
    if not isinstance(values, dict):
        raise FileError(f"{path} is not {what}: it holds a JSON {type(values).__name__}, not an object; {fix}")
    if format is not None and values.get("format") != format:
        raise FileError(f"{path} is not {what} (format {values.get('format')!r}, not {format!r}); {fix}")
    if versions is not None and values.get("version") not in versions:
        wanted = " or ".join(map(str, versions))
        raise FileError(f"{path} is {what} of version {values.get('version')!r}, this program reads {wanted}; {fix}")
    return values


def read_jsonl(path: StrPath) -> list[dict[str, Any]]:
    """Lines of a log that parse, up to the first that does not: a killed writer may have left half of the last one."""
    values = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values.append(json.loads(line))
            except ValueError:
                break
    return values


def cut_jsonl(path: StrPath, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrites a log without the lines that ``keep`` refuses, and without a last one that is not whole."""
    if Path(path).exists():
        write(path, "".join(json.dumps(line) + "\n" for line in read_jsonl(path) if keep(line)))


class JsonLines:
    """A log of one JSON object a line, which a killed writer may leave with half a line and another one continues.

    Of an earlier writer's lines those stay that ``keep`` takes; half a line at the end never does.

    Raises:
      FileError: it cannot be written.
    """

    def __init__(self, path: StrPath, *, keep: Callable[[Mapping[str, Any]], bool] = lambda line: True,
                 otherwise: str = "choose another folder"):
        self._path, self._otherwise = Path(path), otherwise
        try:
            cut_jsonl(path, keep)
            self._file = open(path, "a")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise write_error(path, error, otherwise) from error

    def add(self, value: Mapping[str, Any]) -> None:
        """Appends a line and hands it to the operating system.

        Raises:
          FileError: the disk is full or the file is gone.
        """
        try:
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error, self._otherwise) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def finite(value: Any) -> Any:
    """Plain values with None in the place of numbers that are not finite, and keys as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def digest(arrays: Mapping[str, Any]) -> str:
    """First 16 hex digits of a SHA-256 over named arrays: names, shapes, types and values, in sorted order."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        h.update(f"{name}:{array.dtype}:{array.shape};".encode())
        h.update(array.tobytes())
    return h.hexdigest()[:16]


def crc32(path: StrPath, *, start: int = 0) -> int:
    """CRC-32 of a file's content from a byte on."""
    value = 0
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def _sync_folder(folder: Path) -> None:
    """Makes a rename itself durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
