"""Preparation: made once, used again, made anew when anything changed, safe against kills and company."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.external import real_data

from jaxablate.config import DataConfig
from jaxablate.data import corpus, preparation, token_file
from jaxablate.data.preparation import prepare
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError, DataError, FileError

EOT = "<|endoftext|>"


def write_stories(path, n, word="ball"):
    path.write_text("".join(f"Tom has {i} {word}s. Sue has a {word}.\n{EOT}\n" for i in range(n)))


@pytest.fixture
def config(tmp_path):
    write_stories(tmp_path / "train.txt", 40)
    write_stories(tmp_path / "valid.txt", 5, "cat")
    return DataConfig(source="text", train_path=str(tmp_path / "train.txt"), valid_path=str(tmp_path / "valid.txt"),
                      cache_dir=str(tmp_path / "cache"), tokenizer="bpe", bpe_vocab_size=300)


@pytest.fixture
def written(monkeypatch):
    """Names of the token files that were written."""
    names = []

    def write(path, *args):
        names.append(path.name.split("-")[0])
        token_file.write_token_file(path, *args)

    monkeypatch.setattr(preparation, "write_token_file", write)
    return names


def later(path, seconds=5):
    """Move a file's modification time."""
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def token_path(config, split):
    return next(Path(config.cache_dir).glob(f"{split}-*.tokens"))


def leftovers(config):
    return [p.name for p in Path(config.cache_dir).iterdir() if not re.search(r"\.(tokens|json|lock)$", p.name)]


def test_stories_come_out_of_the_token_file_as_they_went_in(config):
    data = prepare(config)
    assert (data.train.n_stories, data.valid.n_stories) == (40, 5)
    offsets = data.train.story_offsets
    for i in (0, 17, 39):
        text = data.tokenizer.decode(data.train.tokens[offsets[i] : offsets[i + 1]])
        assert text == f"Tom has {i} balls. Sue has a ball.{EOT}"
    assert np.count_nonzero(data.train.tokens == data.tokenizer.eot_id) == 40
    for file in (data.train, data.valid):
        assert file.header.tokenizer_fingerprint == data.tokenizer.fingerprint()
    assert leftovers(config) == []


def test_nothing_is_written_where_the_text_is_as_it_was(config, written):
    first = prepare(config)
    again = prepare(config)
    assert first.train.header == again.train.header
    assert first.tokenizer.fingerprint() == again.tokenizer.fingerprint()
    later(config.train_path)
    prepare(config)
    assert written == ["train", "valid"]


def test_changed_validation_text_is_made_anew_alone(config, written):
    before = prepare(config)
    write_stories(Path(config.valid_path), 5, "dog")
    later(config.valid_path)
    after = prepare(config)
    assert written == ["train", "valid", "valid"]
    assert after.valid.data_hash != before.valid.data_hash
    assert after.train.data_hash == before.train.data_hash


def test_changed_training_text_changes_the_tokenizer_and_both_files(config, written):
    before = prepare(config)
    write_stories(Path(config.train_path), 41, "kite")
    after = prepare(config)
    assert written == ["train", "valid"] * 2
    assert after.tokenizer.fingerprint() != before.tokenizer.fingerprint()


def test_another_vocabulary_size_or_format_and_force_make_everything_anew(config, written, monkeypatch):
    prepare(config)
    prepare(dataclasses.replace(config, bpe_vocab_size=310))
    prepare(config)
    assert written == ["train", "valid"] * 2
    prepare(config, force=True)
    assert written == ["train", "valid"] * 3
    monkeypatch.setattr(token_file, "FORMAT_VERSION", token_file.FORMAT_VERSION + 1)
    prepare(config)
    assert written == ["train", "valid"] * 4


DAMAGE = {
    "truncated": lambda b: b[: len(b) // 2],
    "emptied": lambda b: b"",
    "flipped header": lambda b: b[:60] + bytes([b[60] ^ 4]) + b[61:],
    "flipped token": lambda b: b[:4100] + bytes([b[4100] ^ 4]) + b[4101:],
    "garbage": lambda b: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_token_file_is_made_anew_or_named(config, written, damage):
    good = prepare(config).train.data_hash
    path = token_path(config, "train")
    damaged = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    assert prepare(config).train.data_hash == good
    assert written == ["train", "valid", "train"]
    path.write_bytes(damaged)
    os.remove(config.train_path)
    with pytest.raises(DataError, match=r"train.*; its text is not here either: story file .* is missing"):
        prepare(config)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"source": {}}', b"\xff\xfe", b"5", b"null", b"[" * 100_000])
def test_a_damaged_stored_tokenizer_is_trained_anew(config, written, content):
    good = prepare(config).tokenizer.fingerprint()
    stored = next(Path(config.cache_dir).glob("bpe-*.json"))
    stored.write_bytes(content)
    assert prepare(config).tokenizer.fingerprint() == good
    assert written == ["train", "valid"]


@pytest.mark.parametrize("field", ["format", "name", "fingerprint", "ranks", "source"])
def test_every_field_of_a_stored_tokenizer_is_checked(config, written, field):
    """Found by `make torture`: another name was taken as it was."""
    prepare(config)
    stored = next(Path(config.cache_dir).glob("bpe-*.json"))
    whole = json.loads(stored.read_text())
    other = {"format": 2, "source": whole["source"] | {"size": 1}}.get(field, "another")
    stored.write_text(json.dumps(whole | {field: other}))
    assert prepare(config).tokenizer.name == whole["name"]
    assert json.loads(stored.read_text()) == whole


def test_without_the_text_its_token_files_serve(config):
    before = prepare(config)
    os.remove(config.train_path)
    os.remove(config.valid_path)
    after = prepare(config)
    assert after.train.header == before.train.header
    assert after.tokenizer.fingerprint() == before.tokenizer.fingerprint()


def test_a_read_only_folder_serves_what_it_has(config, monkeypatch):
    prepare(config)

    def refuse(*args):
        raise AssertionError("nothing is to be locked or written")

    monkeypatch.setattr(preparation, "sole_builder", refuse)
    prepare(config)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_source_text_needs_both_files(config, split):
    with pytest.raises(DataError, match=rf"source='text' needs data\.{split}_path"):
        prepare(dataclasses.replace(config, **{f"{split}_path": None}))


@pytest.mark.parametrize(("folder", "message"), [
    ("/proc/self", r"cannot write /proc/self/.*\.lock \(No such file"), ("x" * 300, "cache_dir='xxx.*shorten it"),
    ("", "cache_dir='' is empty"), ("a\0b", "a NUL")])
def test_a_cache_folder_in_which_no_file_can_be_made_is_one_error(embedded, folder, message):
    """In /proc the system answers that there is no such file, at which the lock's library tries again for ever."""
    with pytest.raises((FileError, ConfigError), match=message):
        prepare(dataclasses.replace(embedded, cache_dir=folder))


def test_text_exchanged_for_another_of_the_same_size_and_time_is_noticed(config, written):
    before, status = prepare(config), os.stat(config.train_path)
    write_stories(Path(config.train_path), 40, "bell")
    os.utime(config.train_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(config).tokenizer.fingerprint() != before.tokenizer.fingerprint()
    assert written == ["train", "valid"] * 2


def test_a_missing_story_file_leaves_nothing(config):
    os.remove(config.train_path)
    with pytest.raises(DataError, match="train.txt is missing"):
        prepare(config)
    assert not Path(config.cache_dir).exists()


def test_bad_text_leaves_no_token_file(config):
    with open(config.valid_path, "ab") as file:
        file.write(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        prepare(config)
    assert list(Path(config.cache_dir).glob("valid*")) == [] == leftovers(config)


def test_a_full_disk_stops_with_one_line_and_leaves_nothing(config):
    """The limit on file size makes a real write fail in the middle, as a full disk does."""
    write_stories(Path(config.train_path), 3000)
    code = f"""
import resource
from jaxablate.config import DataConfig
from jaxablate.data.preparation import prepare
from jaxablate.errors import FileError
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    prepare(DataConfig(**{dataclasses.asdict(config)!r}))
except FileError as error:
    print(error)
"""
    result = run_python(code)
    assert re.match(r"disk full while writing .*train.*\.tokens", result), result
    assert list(Path(config.cache_dir).glob("*.tokens")) == [] == leftovers(config)
    assert prepare(config).train.n_stories == 3000


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


BUILD = """
import sys, time
from jaxablate.config import DataConfig
from jaxablate.data import preparation as module, token_file
def slow(path, batches, *args):
    def crawl():
        for batch in batches:
            yield batch
            print("writing", flush=True)
            time.sleep({pause})
    token_file.write_token_file(path, crawl(), *args)
module.write_token_file = slow
data = module.prepare(DataConfig(**{config!r}))
print(data.train.data_hash, data.valid.data_hash)
"""


def test_a_kill_in_the_middle_leaves_no_file_and_the_next_run_cleans_up(config):
    code = BUILD.format(pause=60, config=dataclasses.asdict(config))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert len(leftovers(config)) == 1
    assert list(Path(config.cache_dir).glob("*.tokens")) == []
    assert prepare(config).train.n_stories == 40
    assert leftovers(config) == []


def test_processes_that_prepare_at_once_build_once_and_agree(config):
    code = BUILD.format(pause=0.5, config=dataclasses.asdict(config))
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(line == "writing" for output in outputs for line in output) == 2
    assert len({output[-1] for output in outputs}) == 1
    assert leftovers(config) == []


def test_open_files_keep_their_content_when_they_are_made_anew(config):
    old = prepare(config)
    tokens = old.train.tokens[:].copy()
    write_stories(Path(config.train_path), 60, "drum")
    prepare(config)
    np.testing.assert_array_equal(old.train.tokens, tokens)


@pytest.fixture
def embedded(tmp_path):
    return DataConfig(source="embedded", tokenizer="corpus", embedded_stories=30, embedded_valid_stories=7,
                      embedded_seed=5, cache_dir=str(tmp_path))


def test_embedded_tokens_are_those_the_facts_speak_of(embedded):
    data = prepare(embedded)
    for split, start, count in (("train", 0, 30), ("valid", corpus.VALID_START, 7)):
        tokens, offsets = corpus.token_stream(5, start, count)
        file = getattr(data, split)
        np.testing.assert_array_equal(file.tokens, tokens)
        np.testing.assert_array_equal(file.story_offsets[:-1], offsets)


def test_embedded_is_used_again_until_something_changes(embedded, written, monkeypatch):
    prepare(embedded)
    prepare(embedded)
    assert len(written) == 2
    prepare(dataclasses.replace(embedded, embedded_stories=31))
    assert len(written) == 3
    monkeypatch.setattr(corpus, "CORPUS_VERSION", "another")
    prepare(embedded)
    assert len(written) == 5


def test_tokenizer_of_prepared_data_is_saved_beside_a_run(config, embedded, tmp_path):
    for i, settings in enumerate((config, embedded)):
        data = prepare(settings)
        data.tokenizer.save(tmp_path / f"run{i}")
        assert load_tokenizer(tmp_path / f"run{i}").fingerprint() == data.train.header.tokenizer_fingerprint


def test_real_stories_have_the_known_number_of_tokens(tmp_path):
    """1,993,359 and 106,705 GPT-2 tokens count the line break before and the one after each marker; stories here have
    none, so the files have two tokens a story less."""
    real = real_data("tinystories")
    config = DataConfig(train_path=str(real / "TinyStories-train.txt"), valid_path=str(real / "TinyStories-valid.txt"),
                        cache_dir=str(tmp_path))
    try:
        data = prepare(config)
    except DataError as error:
        if "TIKTOKEN_CACHE_DIR" not in str(error):
            raise
        pytest.skip("GPT-2's vocabulary is not here")
    assert (data.train.n_stories, data.valid.n_stories) == (9766, 500)
    assert data.train.n_tokens + 2 * 9766 == 1_993_359
    assert data.valid.n_tokens + 2 * 500 == 106_705
    start = time.perf_counter()
    prepare(config)
    assert time.perf_counter() - start < 10
