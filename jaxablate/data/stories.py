"""Where stories come from: text files with one ``<|endoftext|>`` line after each, or the embedded corpus.

Both have a label for file names, a record that tells whether anything changed, and a stream of stories.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxablate import files
from jaxablate.data import corpus
from jaxablate.data.ids import END_OF_TEXT
from jaxablate.data.progress import Report, silent
from jaxablate.data.token_file import SourceRecord
from jaxablate.errors import DataError

ALWAYS_HASHED = 1 << 28
"""Bytes of a story file up to which its content is compared, whatever its modification time: 256 MiB take a second."""

_CHUNK = 1 << 22
_LONGEST_STORY = 1 << 26
_MARKER = END_OF_TEXT.encode()
_BYTE_ORDER_MARK = "\ufeff"
_PROBE_STORIES = 64
_WANTED = "give the path of a UTF-8 text file with one <|endoftext|> line after each story"


class TextSource:
    """A text file of stories.

    Stories are what lies between ``<|endoftext|>`` markers, without surrounding white space; ``\\r\\n`` becomes
    ``\\n``; empty ones are skipped; the last may lack its marker. The file is read in pieces of 4 MiB and must be
    UTF-8 (a byte order mark at the start of a story is skipped: files with one may have been joined).

    Args:
      path: the file.
      cache_dir: folder of token files; a file elsewhere gets a part of its path's hash into its label.
      fetch: called by `require` where the file is missing; it puts the file there or raises a DataError.

    Raises:
      ConfigError: the path is none that a file can have (`files.check_path`).
    """

    def __init__(self, path: str | os.PathLike[str], cache_dir: str | os.PathLike[str],
                 fetch: Callable[[], object] | None = None):
        files.check_path(path, "the story file")
        self.path = Path(path)
        resolved = self.path.resolve()
        inside = resolved.parent == Path(cache_dir).resolve()
        # Part of a token file's name; a file elsewhere is told from one of the same name in the folder.
        self.label = resolved.stem + ("" if inside else f"-{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}")
        self._fetch = fetch
        self._record: SourceRecord | None = None
        self._hash_at: tuple[int, str] | None = None

    def available(self) -> bool:
        """Whether the source is here; where it is not, a token file made earlier still serves."""
        return self.path.exists()

    def require(self) -> None:
        """Check that the file is there and not empty; fetch it where that is possible.

        Raises:
          DataError: it is missing, not a file, or empty.
        """
        if not self.path.exists():
            if self._fetch is None:
                raise DataError(f"story file {self.path} is missing; {_WANTED}")
            self._fetch()
        if not self.path.is_file():
            raise DataError(f"story file {self.path} is not a file; {_WANTED}")
        if self.path.stat().st_size == 0:
            raise DataError(f"story file {self.path} is empty; {_WANTED}")

    def unchanged(self, record: SourceRecord) -> bool:
        """Same size and same SHA-256.

        A file above `ALWAYS_HASHED` with the same modification time, too, is not read: one exchanged for another of the
        same size and time is not noticed.

        Raises:
          DataError: the file cannot be read.
        """
        try:
            status = self.path.stat()
            if status.st_size != record.size:
                return False
            known = status.st_size > ALWAYS_HASHED and status.st_mtime_ns == record.mtime_ns
            return known or self._hash(status.st_mtime_ns) == record.sha256
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def record(self) -> SourceRecord:
        """The source as it was when `stories` last ended."""
        if self._record is None:
            raise ValueError("record() before stories() was read to its end")
        return self._record

    def stories(self, report: Report = silent) -> Iterator[str]:
        """Every story of the file.

        Raises:
          DataError: the file is missing, empty, not UTF-8 (the byte's offset is named), has no story, or changed
            while it was read.
        """
        self.require()
        before = self.path.stat()
        digest = hashlib.sha256()
        count = 0
        for offset, piece in _pieces(self.path, digest, before.st_size, report):
            if story := _decode(self.path, offset, piece):
                count += 1
                yield story
        if count == 0:
            raise DataError(f"story file {self.path} holds no story, only white space and markers; {_WANTED}")
        after = self.path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise DataError(f"story file {self.path} changed while it was read; run again when it is complete")
        self._record = SourceRecord(name=self.path.name, size=before.st_size, mtime_ns=before.st_mtime_ns,
                                    sha256=digest.hexdigest())

    def _hash(self, mtime_ns: int) -> str:
        """SHA-256 of the file, read once for each modification time."""
        if self._hash_at is None or self._hash_at[0] != mtime_ns:
            with files.open_file(self.path) as file:
                self._hash_at = mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()
        return self._hash_at[1]


@dataclasses.dataclass
class EmbeddedSource:
    """A range of the embedded corpus, with the same methods; its record is a hash of a sample of the stories."""

    seed: int
    start: int
    count: int

    @classmethod
    def train(cls, seed: int, count: int) -> "EmbeddedSource":
        """The first `count` stories of a seed."""
        if count > corpus.VALID_START:
            raise DataError(f"embedded_stories={count} must be at most {corpus.VALID_START}")
        return cls(seed, 0, count)

    @classmethod
    def valid(cls, seed: int, count: int) -> "EmbeddedSource":
        """`count` stories that no training range reaches, the same ones however many are trained on."""
        return cls(seed, corpus.VALID_START, count)

    @property
    def label(self) -> str:
        return f"embedded-seed{self.seed}-from{self.start}-n{self.count}"

    def available(self) -> bool:
        return True

    def require(self) -> None:
        """Nothing can be missing."""

    def unchanged(self, record: SourceRecord) -> bool:
        return record == self.record()

    def record(self) -> SourceRecord:
        """Range, and SHA-256 of the corpus's version and of the range's first and last stories."""
        sha256 = _probe(corpus.CORPUS_VERSION, self.seed, self.start, self.count)
        return SourceRecord(name=self.label, size=self.count, mtime_ns=0, sha256=sha256)

    def stories(self, report: Report = silent) -> Iterator[str]:
        for done, story in enumerate(corpus.stories(self.seed, self.start, self.count), 1):
            yield story.text.strip()
            if done % 1000 == 0 or done == self.count:
                report("making stories", done, self.count)


@functools.lru_cache(maxsize=64)
def _probe(version: str, seed: int, start: int, count: int) -> str:
    """The hash of an embedded range's record; a program that opens a run twice makes the stories once."""
    n = min(count, _PROBE_STORIES)
    digest = hashlib.sha256(version.encode())
    for first in (start, start + count - n):
        for story in corpus.stories(seed, first, n):
            digest.update(story.text.encode() + b"\0")
    return digest.hexdigest()


StorySource = TextSource | EmbeddedSource
"""Stories that can be read again and again, and that tell whether they are still what they were."""


def batched_by_length(stories: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Lists of stories with at least `characters` characters each, the last with what is left."""
    batch, size = [], 0
    for story in stories:
        batch.append(story)
        size += len(story)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(path: Path, digest: Any, size: int, report: Report) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of everything between markers."""
    start, rest, done = 0, b"", 0
    for chunk in _chunks(path):
        digest.update(chunk)
        *pieces, rest = (rest + chunk).split(_MARKER)
        for piece in pieces:
            yield start, piece
            start += len(piece) + len(_MARKER)
        if len(rest) > _LONGEST_STORY:
            raise DataError(
                f"story file {path} has no <|endoftext|> in the {len(rest)} bytes from byte {start} on; a story has at "
                f"most {_LONGEST_STORY}, put a marker line after each"
            )
        done += len(chunk)
        report(f"reading {path.name}", done, size)
    yield start, rest


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with files.open_file(path) as file:
            first = file.read(_CHUNK)
            # Zero bytes are valid UTF-8 but no text: what UTF-16 files and binaries have at their start.
            if (zero := first[:8192].find(b"\0")) >= 0:
                raise DataError(f"story file {path} is binary, not text: byte {zero} is 0; convert it to UTF-8 text")
            yield first
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"story file {path} cannot be read ({error.strerror or error}); {_WANTED}")


def _decode(path: Path, offset: int, piece: bytes) -> str:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise DataError(
            f"story file {path} is not UTF-8: byte {at} is 0x{piece[error.start]:02x} ({error.reason}); "
            "convert the file (iconv -f latin1 -t utf-8), or remove the bytes (iconv -f utf-8 -t utf-8 -c)"
        ) from error
    return text.replace("\r\n", "\n").strip().removeprefix(_BYTE_ORDER_MARK).strip()
