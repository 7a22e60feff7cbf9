"""Compiled programs, kept in a folder of the user from one start of the program to the next.

The folder is the compilation cache of JAX, which decides what belongs there and by which key. Its own reader and writer
of files are replaced: they write in place, so that a program that a kill cut short is read with a warning at every
later start and never replaced, and where a limit of size is set nothing more is kept after it.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import platform
import re
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from jaxablate import files
from jaxablate.errors import FileError

MOST_BYTES = 1 << 30
"""Bytes of all programs that are kept, those of other machines apart; the ones not used for longest go first."""
LEAST_SECONDS = 0.1
"""What compiles faster is not kept. JAX takes 1; a run has some dozen programs between the two."""
_OF_FREE = 10
"""A program is kept where the disk has so many times its size: a run's own files need the room more."""
_ELSEWHERE = ("set JAX_COMPILATION_CACHE_DIR to another folder, or JAX_ENABLE_COMPILATION_CACHE=false to keep none")

logger = logging.getLogger(__name__)


def keep_compiled() -> None:
    """Lets JAX keep what this process compiles, and use what earlier ones have, under ``~/.cache/jaxablate``.

    ``XDG_CACHE_HOME`` moves it. Nothing is done where JAX was told something else: a folder of its own
    (``JAX_COMPILATION_CACHE_DIR``, also an empty one), or to keep nothing (``JAX_ENABLE_COMPILATION_CACHE=false``).
    ``JAX_COMPILATION_CACHE_MAX_SIZE`` is the limit in bytes in place of `MOST_BYTES`.
    """
    import jax

    settings: Any = jax.config  # type checkers do not see the names that are added to it
    told = "JAX_COMPILATION_CACHE_DIR" in os.environ or settings.jax_compilation_cache_dir is not None
    if told or not settings.jax_enable_compilation_cache:
        return
    try:
        folder = _own_folder(_root() / _machine())
    except (OSError, RuntimeError) as error:  # the latter without a home
        logger.warning("compiled programs are not kept (%s); %s", error, _ELSEWHERE)
        return
    most = settings.jax_compilation_cache_max_size
    with contextlib.suppress(ImportError):  # an inner part of JAX; without it JAX reads and writes by itself
        cache: Any = importlib.import_module("jax._src.compilation_cache")
        cache.get_file_cache = lambda path: (CompiledPrograms(Path(path), MOST_BYTES if most < 0 else most), path)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_dir", str(folder))


class CompiledPrograms:
    """A folder of compiled programs, as JAX's compilation cache wants it: `get` and `put` of bytes by key.

    Any number of processes may share it. A program appears whole or not at all, begins with its checksum, and is as old
    as its last use. A folder that cannot be read or written ends nothing: it is warned of once, then left alone.

    Args:
      folder: it exists.
      most_bytes: of all programs together.
    """

    def __init__(self, folder: Path, most_bytes: int):
        self._path = folder  # JAX's name
        self._most_bytes = most_bytes
        self._writable = True

    def get(self, key: str) -> bytes | None:
        """The program of a key; None where there is none, or a damaged one, which is removed."""
        path = self._of(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if _digest(program) != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, if there is room."""
        if not self._writable or len(value) > self._most_bytes:
            return
        try:
            if shutil.disk_usage(self._path).free >= _OF_FREE * len(value):
                self._make_room(len(value))
                files.write(self._of(key), _digest(value) + value, otherwise=_ELSEWHERE)
        except (FileError, OSError) as error:
            self._writable = False
            logger.warning("compiled programs are no longer kept: %s", error)

    def _of(self, key: str) -> Path:
        return self._path / f"{key}{_SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Removes programs, the one not used for longest first, until one more of this size is within the limit."""
        found = []
        for entry in os.scandir(self._path):
            with contextlib.suppress(OSError):  # another process has removed it
                facts = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_SUFFIX):
                    found.append((facts.st_mtime, facts.st_size, entry.path))
                elif entry.name.endswith(".partial") and time.time() - facts.st_mtime > _ABANDONED_SECONDS:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in found) + size
        for _, of_program, path in sorted(found):
            if total <= self._most_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= of_program


_SUFFIX = "-program"
_DIGEST_BYTES = 32
_ABANDONED_SECONDS = 3600.0


def _digest(program: bytes) -> bytes:
    return hashlib.sha256(program).digest()


def _root() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, by the specification.
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "jaxablate" / "compiled"


def _machine() -> str:
    """Machine code of a CPU runs on CPUs of the same abilities; a home may be shared by others."""
    try:
        found = re.search(r"(?m)^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    abilities = found[0] if found else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(abilities.encode()).hexdigest()[:12]}"


def _own_folder(path: Path) -> Path:
    """A folder that nobody else writes to, made where missing: what is in it is run.

    Raises:
      OSError: it cannot be made or written to, or others can.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by others")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written")
    return path
