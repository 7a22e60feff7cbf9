"""Files that are whole or absent: writing, locks, checksums, and checked reading of JSON and of arrays.

Nothing else in the package writes a file in place, renames one, or takes a lock.
"""

import codecs
import contextlib
import errno
import glob
import hashlib
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from jaxablate.errors import ConfigError, FileError

StrPath = str | os.PathLike[str]

LONGEST_WAIT_S = 6 * 3600
"""How long one process waits for what another builds, longer than the largest download and its tokens take."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_write(path: StrPath, *, otherwise: str = "choose another folder") -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when the block ends well; readers never see a part of it.

    The bytes go to a hidden file in the same folder, made where there is none; it is synced, then renamed, and removed
    on any failure; what killed writers of this machine have left is, too. ``otherwise`` is what the user may do
    instead of mending the folder or the disk, for the message.

    Raises:
      FileError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path)
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
        _remove_orphans(path)  # not before: one of them may be the only whole copy
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
        _remove_orphans(folder / "group")
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
    for left in _partials(Path(path)):
        _remove(left)


def _remove_orphans(path: Path) -> None:
    """Removes what writers of this file or folder have left that were killed on this machine."""
    for left in _partials(path):
        writer = re.search(r"\.(\w+)-(\d+)-\w+(\.old)?\.partial$", left)
        if writer and writer[1] == _MACHINE and not _runs(int(writer[2])):
            _remove(left)


def _partials(path: Path) -> list[str]:
    return glob.glob(f"{glob.escape(str(path.parent / f'.{path.name}.'))}*.partial")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def lock(path: StrPath, *, busy: str | None = None, waiting: Callable[[], None] = lambda: None,
         otherwise: str = "choose another folder") -> Iterator[None]:
    """Keeps other processes out while the block runs; ends with the process, however that ends.

    The lock is the operating system's. Where a network file system has no locks, the error says so. The lock's file
    stays, and its folder is made. Where another process holds it, ``busy`` is said; without that ``waiting`` is called
    once and the other awaited, for `LONGEST_WAIT_S` at most.

    Raises:
      FileError: another process holds it and ``busy`` is given, or holds it too long, or the folder cannot be written.
    """
    import filelock

    path = Path(path)
    held = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder such as /proc no file can be made and the system says that none is there, at which filelock would
        # try again for ever.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644))
        try:
            held.acquire(timeout=0)
        except filelock.Timeout as error:
            if busy is not None:
                raise FileError(busy) from error
            waiting()
            held.acquire(timeout=LONGEST_WAIT_S)
    except filelock.Timeout as error:
        raise FileError(f"waited {LONGEST_WAIT_S / 3600:g} hours for another process that holds {path}; end it, or "
                        f"{otherwise}") from error
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


T = TypeVar("T")

LARGEST_JSON = 1 << 28
"""Bytes of JSON in one file, at most: 256 MiB. What this package writes is far smaller."""
DEEPEST_JSON = 100
"""Arrays and objects inside one another, at most."""
LARGEST_WHOLE = 1 << 128
"""Size of a whole number in JSON, at most; a float can hold it."""


def read_json(path: StrPath, kind: type[T] = dict, *, what: str, fix: str, format: str | None = None,
              versions: tuple[int, ...] | None = None) -> T:
    """JSON from a file, checked against a type; keys ``format`` and ``version`` are checked where they are asked for.

    ``kind`` is anything that ``msgspec.convert`` builds: a dict (the default: any object), a TypedDict, a dataclass, a
    list of them. Keys that it does not know are passed over. A byte order mark is. Messages say ``what`` the file is
    (``a circuit file``), where in it the fault lies (``$.edges[3]``), and how the user may ``fix`` it (``restore it``).

    Raises:
      FileNotFoundError: there is no such file; the caller knows what its absence means.
      FileError: it cannot be read, is above `LARGEST_JSON`, is not JSON of that kind, or is of another format or
        version.
    """
    try:
        content = read_bytes(path, most=LARGEST_JSON)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read as {what} ({error.strerror or error}); {fix}") from error
    if format is None and versions is None:
        return parse_json(content, kind, what=what, fix=fix, where=str(path))
    values = parse_json(content, what=what, fix=fix, where=str(path))
    if format is not None and values.get("format") != format:
        raise FileError(f"{path} is not {what} (format {values.get('format')!r}, not {format!r}); {fix}")
    if versions is not None and values.get("version") not in versions:
        wanted = " or ".join(map(str, versions))
        raise FileError(f"{path} is {what} of version {values.get('version')!r}, this program reads {wanted}; {fix}")
    return _converted(values, kind, what=what, fix=fix, where=str(path))


def parse_json(content: bytes | str, kind: type[T] = dict, *, what: str, fix: str, where: str) -> T:
    """JSON from bytes or text that lie in a file of another format (``where``), checked as by `read_json`.

    Raises:
      FileError: it is no JSON, nested too deep, too large, or of another kind.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    if len(content) > LARGEST_JSON:
        raise FileError(f"{where} cannot be read as {what}: it is above {LARGEST_JSON >> 20} MiB; {fix}")
    try:
        values = msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, ValueError) as error:
        raise FileError(f"{where} cannot be read as {what} ({error}); {fix}") from error
    except RecursionError as error:
        raise FileError(f"{where} cannot be read as {what} (it is nested too deep); {fix}") from error
    if (reason := unusable(values)) is not None:
        raise FileError(f"{where} cannot be read as {what} ({reason}); {fix}")
    return _converted(values, kind, what=what, fix=fix, where=where)


def unusable(values: Any) -> str | None:
    """Why parsed JSON could be read, but not be counted with or written again; None where it can."""
    level, depth = [values], 0
    while level:
        if any(type(x) is int and abs(x) > LARGEST_WHOLE for x in level):
            return "it has a whole number of more than 128 bits"
        if depth > DEEPEST_JSON:
            return f"it is nested more than {DEEPEST_JSON} deep"
        level = [x for v in level if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return None


def _converted(values: Any, kind: type[T], *, what: str, fix: str, where: str) -> T:
    if kind is dict and not isinstance(values, dict):
        raise FileError(f"{where} is not {what}: it holds a JSON {_JSON_NAMES[type(values)]}, not an object; {fix}")
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError) as error:  # a dataclass may refuse its values
        raise FileError(f"{where} is not {what} ({error}); {fix}") from error


_JSON_NAMES = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}


MOST_UNFOLDED = 1 << 28
"""Bytes that the arrays of a compressed file may have, at most: 256 MiB, or 32 times the file where that is more."""


def read_npz(path: StrPath) -> dict[str, Any]:
    """NumPy arrays by name from an ``.npz`` file; nothing that the file holds is run.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no such file, holds objects, is damaged, or would unfold to far more than it is.
    """
    import zipfile

    with _foreign(path, ".npz file of plain arrays"), open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unfolded, limit = sum(m.file_size for m in members), max(MOST_UNFOLDED, 32 * os.fstat(file.fileno()).st_size)
        if unfolded > limit:
            raise ValueError(f"its arrays would take {unfolded:,} bytes, above the limit of {limit:,}")
        return {m.filename.removesuffix(".npy"): _npy(archive.read(m)) for m in members}


def _npy(content: bytes) -> Any:
    """The array of a ``.npy`` file. Its header, which may ask for any size, has to fit the file before memory is taken.
    """
    import io

    from numpy.lib import format as npy

    file = io.BytesIO(content)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    shape, _, dtype = read_header(file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} and type {dtype} does not have {len(content) - file.tell()} bytes")
    file.seek(0)
    return npy.read_array(file)


def read_safetensors(path: StrPath) -> tuple[dict[str, Any], dict[str, str]]:
    """NumPy arrays by name, and the metadata, from a ``.safetensors`` file.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no such file, is damaged, or has tensors of a type that NumPy has not, such as F8_E4M3.
    """
    with open_safetensors(path) as stored:
        return {name: stored.read(name) for name in stored.shapes}, stored.metadata


class StoredTensors:
    """Tensors of an open ``.safetensors`` file; only what is read is ever in memory."""

    def __init__(self, path: StrPath, stored: Any):
        self._path, self._stored = path, stored
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(x.get_shape()) for name, x in slices.items()}
        self.kinds: dict[str, str] = {name: str(x.get_dtype()) for name, x in slices.items()}
        """Types in the format's own names, such as BF16."""
        self.metadata: dict[str, str] = dict(stored.metadata() or {})
        if other := [name for name, kind in self.kinds.items() if kind not in _TENSORS]:
            raise ValueError(f"{other[0]} is of type {self.kinds[other[0]]}, which NumPy has not; save it as F32")

    def read(self, name: str) -> Any:
        """A tensor as a NumPy array.

        Raises:
          FileError: it cannot be read.
        """
        with _foreign(self._path, ".safetensors file"):
            return self._stored.get_tensor(name)


@contextlib.contextmanager
def open_safetensors(path: StrPath) -> Iterator[StoredTensors]:
    """A ``.safetensors`` file, mapped into memory.

    Raises:
      FileNotFoundError, FileError: as `read_safetensors`.
    """
    import safetensors

    with contextlib.ExitStack() as stack:
        with _foreign(path, ".safetensors file"):
            stack.enter_context(open_file(path))
            opened = StoredTensors(path, stack.enter_context(safetensors.safe_open(path, framework="numpy")))
        yield opened


_TENSORS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64"}
"""Types of safetensors that NumPy has, or ml_dtypes for it."""


@contextlib.contextmanager
def _foreign(path: StrPath, kind: str) -> Iterator[None]:
    """One error for all that readers of other people's formats raise."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # zlib, zipfile, tokenize, NumPy, memory ...: no list of what a damaged file raises ends
        lines = str(error).strip().splitlines() or ["no details"]
        raise FileError(f"{path} is no {kind}, or is damaged: {type(error).__name__}: {lines[0]:.300}") from error


def read_bytes(path: StrPath, *, most: int) -> bytes:
    """A file's content.

    Raises:
      OSError: it cannot be read, or has more than ``most`` bytes.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return content


def open_file(path: StrPath) -> io.BufferedReader:
    """Opens a file to read.

    Raises:
      OSError: it cannot be opened, like a folder, or is a named pipe, which would be waited for, or an endless device.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    return open(path, "rb")


def check_path(path: StrPath, name: str) -> None:
    """Refuses a path that no file can have here, or that other parts of the program would read as another one.

    Raises:
      ConfigError: it is empty, holds a NUL or a backslash (which TensorStore reads as a slash), is not UTF-8, is longer
        than the system takes, or goes round in symbolic links.
    """
    text = os.fspath(path)
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}={shown} is not UTF-8; choose another name") from error
    if not text or text.isspace():
        raise ConfigError(f"{name}={shown} is empty; give a path ('.' is the current folder)")
    for character, title in (("\0", "a NUL character"), ("\\", "a backslash")):
        if character in text:
            raise ConfigError(f"{name}={shown} holds {title}; choose another name")
    longest = max(len(part) for part in encoded.split(b"/"))
    if longest > _LONGEST_NAME:
        raise ConfigError(f"{name}={shown} has a part of {longest} bytes, more than {_LONGEST_NAME}; shorten it")
    if len(encoded) > _LONGEST_PATH:
        raise ConfigError(f"{name}={shown} has {len(encoded)} bytes, more than {_LONGEST_PATH}; shorten it")
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise ConfigError(f"{name}={shown} cannot be used ({error.strerror}); choose another path") from error


_LONGEST_NAME = 255 - len(".") - len(".abcdef-1234567-12345678.old.partial")
"""Bytes of a file's name: what common file systems take, less what `atomic_write` puts around it."""
_LONGEST_PATH = 3900
"""Bytes of a path: 4,096 on Linux, less the names of the files below a working directory."""


def read_jsonl(path: StrPath) -> list[dict[str, Any]]:
    """Whole lines of a log that `JsonLines` writes, in order; damaged ones are passed over. Empty without a file.

    Raises:
      FileError: it cannot be read.
    """
    return [value for _, value in _log_lines(_log_content(Path(path))) if value is not None]


def last_jsonl(path: StrPath) -> dict[str, Any] | None:
    """The last whole line of such a log, however long it is; None where there is none among its last few.

    Raises:
      FileError: it cannot be read.
    """
    lines = _log_lines(_log_content(Path(path), last=1 << 15))
    return next((value for _, value in reversed(lines) if value is not None), None)


class JsonLines:
    """A log of one JSON object a line, each with the ``step`` it belongs to, that one process after another continues.

    Of earlier writers' lines those up to a step stay as they are. Later ones go, since they will come again, and so
    does half a line at the end, as a killed writer leaves it. Anything else that is amiss is told in a warning, and the
    log as it was is then kept beside it, with ``.damaged`` after its name: lines that are no JSON, which go, and lines
    that are missing or changed, where it is known what there should be.

    Args:
      path: the log, made where missing.
      upto: the last step whose lines stay.
      state: what `get_state` said after that step; ``lines`` alone says how many there should be.
      otherwise: what the user may do instead of mending the folder or the disk, for messages.

    Raises:
      FileError: it cannot be read or written.
    """

    def __init__(self, path: StrPath, *, upto: int, state: Mapping[str, int] | None = None,
                 otherwise: str = "choose another folder"):
        self._path, self._otherwise = Path(path), otherwise
        content = _log_content(self._path)
        kept = self._continued(content, upto, state or {})
        try:
            if kept != content:
                write(path, kept, otherwise=otherwise)
            # Unbuffered, so that a failed write leaves nothing to be written again when the file is closed.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise write_error(path, error, otherwise) from error
        self._size, self._crc, self._lines = len(kept), zlib.crc32(kept), kept.count(b"\n")

    def add(self, value: Mapping[str, Any]) -> None:
        """Appends a line and hands it to the operating system. A number that is not finite becomes null, as elsewhere.

        Raises:
          FileError: the disk is full or the file is gone; no part of the line stays.
        """
        line = json.dumps(finite(value), allow_nan=False).encode() + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise write_error(self._path, error, self._otherwise) from error
        self._size, self._crc, self._lines = self._size + len(line), zlib.crc32(line, self._crc), self._lines + 1

    def get_state(self) -> dict[str, int]:
        """How many lines there are, and their checksum: by these a later writer knows them again."""
        return {"lines": self._lines, "crc": self._crc}

    def close(self) -> None:
        """Closes the file.

        Raises:
          FileError: the file system refuses what was written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error, self._otherwise) from error

    def _continued(self, content: bytes, upto: int, state: Mapping[str, int]) -> bytes:
        """The lines that stay."""
        lines = _log_lines(content)
        kept = [line + b"\n" for line, value in lines if value is not None and value["step"] <= upto]
        amiss, damaged = [], [number for number, (_, value) in enumerate(lines, 1) if value is None]
        if damaged and damaged[-1] == len(lines) and lines[-1][0].startswith(b"{") and not content.endswith(b"\n"):
            damaged.pop()
        if damaged:
            more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
            amiss.append(f"what cannot be read is left out (line {', '.join(map(str, damaged[:5]))}{more})")
        expected = state.get("lines", len(kept))
        if len(kept) != expected or (upto and not kept):
            amiss.append(f"it has {len(kept)} lines up to step {upto}, where {expected or 'more'} had been written")
        elif zlib.crc32(b"".join(kept)) != state.get("crc", zlib.crc32(b"".join(kept))):
            amiss.append(f"its lines up to step {upto} are not those that had been written")
        if amiss:
            before = self._path.with_name(f"{self._path.name}.damaged")
            if content:
                write(before, content, otherwise=self._otherwise)
                amiss.append(f"as it was it is kept as {before.name}")
            logger.warning("%s has been damaged or changed: %s", self._path, "; ".join(amiss))
        return b"".join(kept)


def _log_content(path: Path, last: int | None = None) -> bytes:
    try:
        with open_file(path) as file:
            if last is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise FileError(f"{path} cannot be read as a log ({error.strerror or error}); restore it, or move it away"
                        ) from error


def _log_lines(content: bytes) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Lines of a log that are not blank, each with its value, which is None where it is no object with a ``step``."""
    lines = []
    for line in content.split(b"\n"):
        if line.strip():
            try:
                value = parse_json(line, what="a line", fix="", where="a log")
            except FileError:
                value = {}
            step = value.get("step")
            lines.append((line, value if type(step) is int and 0 <= step < 2**63 else None))
    return lines


@contextlib.contextmanager
def closing(close: Callable[[], object]) -> Iterator[None]:
    """Calls ``close`` when the block ends. Where it fails, its error is the one that is raised, not one of closing."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    close()


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
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}.partial")


_MACHINE = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:6]
"""Six hex digits of this machine's name, in the names of hidden files: several machines may share a folder, and the
number of a process means nothing on another one."""


def _sync_folder(folder: Path) -> None:
    """Makes a rename itself durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
