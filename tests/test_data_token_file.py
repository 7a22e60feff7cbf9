"""Token files: what is written comes back; damage of any kind is seen; failures leave nothing behind."""

import errno
import gc
import hashlib
import json
import os
import struct

import numpy as np
import pytest

from jaxablate.data import token_file as tf
from jaxablate.data.pipeline import train_batches, validation_batches
from jaxablate.errors import DataError, FileError

SOURCE = tf.SourceRecord(name="stories.txt", size=10, mtime_ns=5, sha256="ab" * 32)
STORIES = [[[1, 2, 3], [4]], [[], [5, 6]]]
EXPECTED = [1, 2, 3, 9, 4, 9, 9, 5, 6, 9]


class Ids:
    """A tokenizer as far as a token file needs one."""

    name, pad_id, unk_id = "ids", 0, None
    encode = encode_batch = decode = save = None

    def __init__(self, vocab_size=10, eot_id=9):
        self.vocab_size, self.eot_id = vocab_size, eot_id

    def fingerprint(self):
        return "cd" * 32


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.tokens"
    tf.write_token_file(path, STORIES, Ids(), SOURCE)
    return path


def test_what_is_written_comes_back(path):
    file = tf.open_token_file(path)
    assert file.tokens.tolist() == EXPECTED
    assert file.story_offsets.tolist() == [0, 4, 6, 7, 10]
    assert file.story_of(np.arange(12)).tolist() == [0] * 4 + [1] * 2 + [2] + [3] * 5
    assert (file.n_tokens, file.n_stories, file.vocab_size, file.header.eot_id) == (10, 4, 10, 9)
    assert file.header.tokenizer_fingerprint == "cd" * 32
    assert file.header.source == SOURCE
    assert isinstance(file.tokens, np.memmap) and not file.tokens.flags.writeable
    assert file.data_hash == hashlib.sha256(np.array(EXPECTED, "<u2").tobytes()).hexdigest()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_width_of_an_id_follows_the_vocabulary(tmp_path, vocab_size, dtype):
    path = tmp_path / "a.tokens"
    tf.write_token_file(path, [[[0, vocab_size - 2]]], Ids(vocab_size, vocab_size - 1), SOURCE)
    file = tf.open_token_file(path)
    assert file.tokens.dtype == np.dtype(dtype)
    assert file.tokens.tolist() == [0, vocab_size - 2, vocab_size - 1]


@pytest.mark.parametrize(("stories", "message"), [
    *[([[[1]], [[2, bad]]], rf"token id {bad} is beyond the vocabulary of tokenizer ids; ids are 0\.\.9")
      for bad in (10, 70000, -1)], ([], "holds no story")])
def test_what_cannot_be_stored_is_refused_and_nothing_is_left(tmp_path, stories, message):
    with pytest.raises(DataError, match=message):
        tf.write_token_file(tmp_path / "a.tokens", stories, Ids(), SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_too_few_rows_is_told(path):
    tf.open_token_file(path).require_vocab(10)
    with pytest.raises(DataError, match="token ids up to 9, beyond the model's vocab_size=9; .* at least 10"):
        tf.open_token_file(path).require_vocab(9)


def test_every_flipped_byte_is_seen(path):
    whole = path.read_bytes()
    header_end = tf._PREAMBLE.size + struct.unpack_from("<I", whole, 12)[0]
    for at in [*range(0, header_end, 7), *range(tf.HEADER_BYTES, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"prepare the data again \(python -m jaxablate.data prepare\)"):
            tf.open_token_file(path)


@pytest.mark.parametrize(("change", "message"), [
    *[(lambda b, n=n: b[:n], "truncated|not a token file")
      for n in (0, 5, 100, tf.HEADER_BYTES - 1, tf.HEADER_BYTES, tf.HEADER_BYTES + 3, -1)],
    (lambda b: b + b"\0", "too long"),
    (lambda b: b[:8] + struct.pack("<I", tf.FORMAT_VERSION + 1) + b[12:], f"has format {tf.FORMAT_VERSION + 1}, this"),
])
def test_another_length_or_version_is_seen(path, change, message):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        tf.open_token_file(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path / "none.tokens", tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="cannot be read"):
            tf.open_token_file(path)


HEADERS = {
    "null": None, "number": 5, "text": "abc", "list": [1, 2], "empty": {}, "no source": {"source": None},
    "a source of more kinds": {"source": {"name": 5}}, "object dtype": {"dtype": "O"}, "float dtype": {"dtype": "<f4"},
    "no dtype": {"dtype": 5}, "negative": {"n_tokens": -1}, "no stories": {"n_stories": 0},
    "huge": {"n_tokens": 10**30}, "half a token": {"n_tokens": 9.5}, "more stories than tokens": {"n_stories": 10**9},
    "end of text": {"eot_id": 10},
    "a fingerprint": {"tokenizer_fingerprint": []}, "a hash": {"data_hash": None}, "a checksum": {"body_crc32": "0"},
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_of_another_kind_is_one_error_though_its_checksum_is_right(path, kind):
    whole, change = path.read_bytes(), HEADERS[kind]
    length = struct.unpack_from("<I", whole, 12)[0]
    values = json.loads(whole[tf._PREAMBLE.size : tf._PREAMBLE.size + length])
    path.write_bytes(with_header(whole, values | change if change and isinstance(change, dict) else change))
    with pytest.raises(DataError, match="prepare the data again") as error:
        tf.open_token_file(path)
    assert "\n" not in str(error.value)


def test_a_header_nested_too_deep_is_one_error(path):
    path.write_bytes(with_header(path.read_bytes(), None, b"[" * 3000))
    with pytest.raises(DataError, match="nested too deep"):
        tf.open_token_file(path)


def with_header(whole, values, text=None):
    text = text or json.dumps(values).encode()
    preamble = tf._PREAMBLE.pack(tf._MAGIC, tf.FORMAT_VERSION, len(text), hashlib.sha256(text).digest())
    return (preamble + text).ljust(tf.HEADER_BYTES, b"\0") + whole[tf.HEADER_BYTES :]


def test_a_file_that_is_cut_while_it_is_used_is_one_error(path):
    """The system ends a process with SIGBUS that touches a map of what is no longer there."""
    file = tf.open_token_file(path)
    assert file.windows([0, 5], 3).tolist() == [EXPECTED[:3], EXPECTED[5:8]]
    batches = [train_batches(file, batch_size=2, sequence_length=3, seed=0, prefetch=n) for n in (0, 2)]
    for made in batches:
        next(made)
    os.truncate(path, tf.HEADER_BYTES)
    readers = [lambda: file.windows([0], 3), lambda: list(validation_batches(file, batch_size=2, sequence_length=3)),
               *(lambda made=made: [next(made) for _ in range(9)] for made in batches)]
    for read in readers:
        with pytest.raises(DataError, match=r"a\.tokens was cut while it was in use; prepare the data again"):
            read()
    assert file.story_of(np.arange(3)).tolist() == [0, 0, 0]


def test_what_takes_the_name_of_an_open_file_changes_nothing(path):
    file = tf.open_token_file(path)
    os.replace(path, path.with_suffix(".old"))
    tf.write_token_file(path, [[[7] * 20]], Ids(), SOURCE)
    assert file.windows([0], 10).tolist() == [EXPECTED]


def test_a_closed_file_gives_its_descriptor_back(path):
    descriptor = tf.open_token_file(path).descriptor
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_without_verification_the_body_is_not_read(path):
    whole = bytearray(path.read_bytes())
    whole[tf.HEADER_BYTES] ^= 1
    path.write_bytes(whole)
    assert tf.open_token_file(path, verify=False).n_tokens == 10


def test_a_failing_source_leaves_the_old_file(path):
    before = path.read_bytes()

    def stories():
        yield STORIES[0]
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        tf.write_token_file(path, stories(), Ids(), SOURCE)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch, number):
    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match=r"disk full while writing .*a\.tokens.*; free some space"):
        tf.write_token_file(tmp_path / "a.tokens", STORIES, Ids(), SOURCE)
    assert list(tmp_path.iterdir()) == []
