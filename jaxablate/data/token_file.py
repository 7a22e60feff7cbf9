"""Token files: a split as one array of token ids on disk, never read at once.

Layout, little-endian:

    0      magic ``JABLTOKN``, format version (uint32), length of the header's JSON (uint32), SHA-256 of that JSON
    48     the JSON: everything in `Header`; zeros up to byte 4096
    4096   n_tokens ids (uint16 where the vocabulary fits, else uint32), zeros up to a multiple of 8 bytes
    then   n_stories + 1 story offsets (int64): story i is ``tokens[offsets[i] : offsets[i + 1]]``, end-of-text included

`open_token_file` checks the size, the header's SHA-256 and the CRC-32 of everything after the header. The CRC reads
the file once (about 3 GB/s from memory; 0.3 s for the whole of TinyStories) and so warms the page cache that the
random windows need anyway. `data_hash`, the SHA-256 of the ids, is made while writing; `Header` records it.

Batches are read by `TokenFile.windows`, which notices that a file was cut after it was opened. A process that touches a
memory map beyond the end of its file is ended by the system.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from jaxablate import files
from jaxablate.data.ids import Tokenizer, bos_id
from jaxablate.data.progress import OTHERWISE
from jaxablate.errors import DataError, FileError

FORMAT_VERSION = 1
"""Raised whenever the layout, or how stories become tokens, changes; older files are then built anew."""

HEADER_BYTES = 4096
_MAGIC = b"JABLTOKN"
_PREAMBLE = struct.Struct("<8sII32s")
_FIX = "prepare the data again (python -m jaxablate.data prepare), or copy the file anew"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What a token file was made from: enough to see whether it changed."""

    name: str
    size: int
    """Bytes of the file; stories, for the embedded corpus."""
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The contents of a token file's header.

    Raises:
      DataError: numbers that no token file has.
    """

    dtype: str
    n_tokens: int
    """Number of ids, end-of-text ids included."""
    n_stories: int
    vocab_size: int
    """Every id is below it."""
    eot_id: int
    tokenizer_name: str
    tokenizer_fingerprint: str
    source: SourceRecord
    data_hash: str
    """SHA-256 of the ids as stored."""
    body_crc32: int

    def __post_init__(self):
        if self.dtype not in ("<u2", "<u4"):
            raise DataError(f"dtype {self.dtype!r} is neither <u2 nor <u4")
        if not 1 <= self.n_stories <= self.n_tokens or not 0 <= self.eot_id < self.vocab_size:
            raise DataError(f"n_stories={self.n_stories}, n_tokens={self.n_tokens}, eot_id={self.eot_id} and "
                            f"vocab_size={self.vocab_size} do not fit each other")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFile:
    """An open token file, which stays open while this is used: one that takes its name later changes nothing."""

    path: Path
    header: Header
    tokens: np.memmap
    """Token ids [n_tokens], uint16 or uint32; every story ends with the header's ``eot_id``. A read-only map of the
    file, of which nothing is in memory until it is used: `windows` reads one that may be cut meanwhile."""
    story_offsets: Int[np.ndarray, " stories+1"]
    """Where stories start, int64; the last one is n_tokens."""
    descriptor: int
    """The open file's descriptor, by which `windows` reads; closed with this object."""

    def __post_init__(self):
        weakref.finalize(self, os.close, self.descriptor)

    @property
    def n_tokens(self) -> int:
        return self.header.n_tokens

    @property
    def n_stories(self) -> int:
        return self.header.n_stories

    @property
    def vocab_size(self) -> int:
        return self.header.vocab_size

    @property
    def data_hash(self) -> str:
        return self.header.data_hash

    def windows(self, starts: Sequence[int], length: int) -> Int[np.ndarray, "n length"]:
        """Token ids of windows inside the file, read anew.

        Raises:
          DataError: the file was cut since it was opened, or cannot be read.
        """
        windows = np.empty((len(starts), length), self.header.dtype)
        itemsize = windows.itemsize
        try:
            size = sum(os.preadv(self.descriptor, (window.data,), HEADER_BYTES + start * itemsize)
                       for window, start in zip(windows, starts, strict=True))
        except OSError as error:
            raise DataError(f"token file {self.path} cannot be read ({error.strerror or error}); {_FIX}") from error
        if size < windows.nbytes:
            raise DataError(f"token file {self.path} was cut while it was in use; {_FIX}")
        return windows

    def story_of(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Index of the story that each position's token belongs to, int64; the last story's beyond the end."""
        return np.minimum(np.searchsorted(self.story_offsets, positions, side="right") - 1, self.n_stories - 1)

    def require_vocab(self, vocab_size: int) -> None:
        """DataError where a model with `vocab_size` embedding rows cannot take every id."""
        if self.vocab_size > vocab_size:
            raise DataError(
                f"{self.path.name} has token ids up to {self.vocab_size - 1}, beyond the model's "
                f"vocab_size={vocab_size}; set model.vocab_size to at least {self.vocab_size}"
            )


def write_token_file(path: str | os.PathLike[str], batches: Iterable[Sequence[Sequence[int]]], tokenizer: Tokenizer,
                     source: SourceRecord | Callable[[], SourceRecord]) -> None:
    """Write stories that are encoded already as a token file, which appears only when it is complete.

    Args:
      path: file to make or replace.
      batches: lists of stories, each a list of ids without end-of-text, taken one batch at a time.
      tokenizer: what encoded them; it gives the vocabulary and the end-of-text id that follows each story.
      source: the record to store, or a function that returns it, called after the last batch.

    Raises:
      DataError: no stories, or an id beyond the vocabulary.
      FileError: the file cannot be written.
    """
    with files.atomic_write(path, otherwise=OTHERWISE) as file:
        file.write(bytes(HEADER_BYTES))
        body = _Body(file, tokenizer)
        for stories in batches:
            body.add(stories)
        if not body.lengths:
            raise DataError(f"nothing to write to {Path(path).name}: the source holds no story")
        header = body.finish(source() if callable(source) else source)
        file.seek(0)
        file.write(_pack(header))


def open_token_file(path: str | os.PathLike[str], *, verify: bool = True) -> TokenFile:
    """Map a token file; `verify` checks the CRC-32 of its body too, which reads the whole file once.

    Raises:
      ConfigError: the path is none that a file can have.
      DataError: the file is missing, of another version, truncated or corrupt; the message names the fix.
    """
    files.check_path(path, "the token file")
    path = Path(path)
    try:
        with files.open_file(path) as file:
            header = _unpack(path, file.read(HEADER_BYTES))
            size, expected = os.fstat(file.fileno()).st_size, _offsets_start(header) + 8 * (header.n_stories + 1)
            if size != expected:
                what = "truncated" if size < expected else "too long"
                raise DataError(f"token file {path} is {what}: {size} bytes, its header says {expected}; {_FIX}")
            if verify and files.crc32(path, start=HEADER_BYTES) != header.body_crc32:
                raise DataError(f"token file {path} is corrupt: the checksum of its tokens differs; {_FIX}")
            tokens = np.memmap(file, header.dtype, "r", HEADER_BYTES, (header.n_tokens,))
            file.seek(_offsets_start(header))
            offsets = np.frombuffer(file.read(), "<i8")
            return TokenFile(path, header, tokens, offsets, os.dup(file.fileno()))
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the file was cut after its size was read
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"token file {path} cannot be read ({reason}); {_FIX}") from error


class _Body:
    """Everything after the header, written once from front to back, with its running checksums."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self._file = file
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._data_hash = hashlib.sha256()
        self._crc32 = 0
        self.lengths = array.array("q")  # 8 bytes a story: 17 MB for the 2.1 million of TinyStories

    def add(self, stories: Sequence[Sequence[int]]) -> None:
        """Append stories, end-of-text after each, and where the tokenizer has it beginning-of-text before."""
        bos, eot = bos_id(self._tokenizer), (self._tokenizer.eot_id,)
        before = () if bos is None else (bos,)
        parts = itertools.chain.from_iterable((before, story, eot) for story in stories)
        ids = np.fromiter(itertools.chain.from_iterable(parts), np.int64)
        bad = ids[(ids < 0) | (ids >= self._tokenizer.vocab_size)]
        if bad.size:
            raise DataError(
                f"token id {bad[0]} is beyond the vocabulary of tokenizer {self._tokenizer.name}; ids are "
                f"0..{self._tokenizer.vocab_size - 1}"
            )
        stored = ids.astype(self._dtype).tobytes()
        self._data_hash.update(stored)
        self._write(stored)
        self.lengths.extend(len(before) + len(story) + 1 for story in stories)

    def finish(self, source: SourceRecord) -> Header:
        """Append the story offsets; return the header that fits."""
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(self.lengths, np.int64))])
        n_tokens = int(offsets[-1])
        self._write(bytes(-n_tokens * self._dtype.itemsize % 8))
        self._write(offsets.astype("<i8").tobytes())
        return Header(
            dtype=self._dtype.str,
            n_tokens=n_tokens,
            n_stories=len(self.lengths),
            vocab_size=self._tokenizer.vocab_size,
            eot_id=self._tokenizer.eot_id,
            tokenizer_name=self._tokenizer.name,
            tokenizer_fingerprint=self._tokenizer.fingerprint(),
            source=source,
            data_hash=self._data_hash.hexdigest(),
            body_crc32=self._crc32,
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._crc32 = zlib.crc32(data, self._crc32)


def _pack(header: Header) -> bytes:
    text = json.dumps(dataclasses.asdict(header)).encode()
    packed = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, len(text), hashlib.sha256(text).digest()) + text
    if len(packed) > HEADER_BYTES:
        raise DataError(f"header of {len(packed)} bytes exceeds {HEADER_BYTES}; give the story file a shorter name")
    return packed.ljust(HEADER_BYTES, b"\0")


def _unpack(path: Path, data: bytes) -> Header:
    if not data.startswith(_MAGIC):
        raise DataError(f"{path} is not a token file (it starts with {data[:8]!r}); {_FIX}")
    if len(data) < HEADER_BYTES:
        raise DataError(f"token file {path} is truncated: {len(data)} bytes of {HEADER_BYTES} for its header; {_FIX}")
    _, version, length, digest = _PREAMBLE.unpack_from(data)
    if version != FORMAT_VERSION:
        raise DataError(f"token file {path} has format {version}, this version reads {FORMAT_VERSION}; {_FIX}")
    text = data[_PREAMBLE.size : _PREAMBLE.size + length]
    if hashlib.sha256(text).digest() != digest:
        raise DataError(f"token file {path} is corrupt: the checksum of its header differs; {_FIX}")
    try:
        return files.parse_json(text, Header, what="a token file's header", fix=_FIX, where=str(path))
    except FileError as error:
        raise DataError(str(error)) from error


def _offsets_start(header: Header) -> int:
    end = HEADER_BYTES + header.n_tokens * np.dtype(header.dtype).itemsize
    return end + -end % 8
