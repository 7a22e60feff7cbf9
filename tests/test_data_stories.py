"""Story files: every form the public release and its neighbours come in, and every file that is none."""

import hashlib
import os

import pytest

from jaxablate.data import corpus, stories
from jaxablate.data.stories import EmbeddedSource, TextSource, batched_by_length
from jaxablate.errors import ConfigError, DataError

EOT = "<|endoftext|>"


def source(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return TextSource(path, tmp_path)


FORMS = {
    "public release": f"One day.\n\nTom ran.\n{EOT}\nSue sat.\n{EOT}\n",
    "last without marker": f"One day.\n\nTom ran.\n{EOT}\nSue sat.",
    "windows line ends": f"One day.\r\n\r\nTom ran.\r\n{EOT}\r\nSue sat.\r\n{EOT}\r\n",
    "marker within a line": f"One day.\n\nTom ran.{EOT}Sue sat.{EOT}",
    "empty stories": f"{EOT}\n\n{EOT}\nOne day.\n\nTom ran.\n{EOT}\n \t\n{EOT}\n{EOT}\nSue sat.\n{EOT}\n\n\n",
    "byte order mark": f"\ufeffOne day.\n\nTom ran.\n{EOT}\nSue sat.\n{EOT}\n",
    "joined files, each with a byte order mark": f"\ufeffOne day.\n\nTom ran.\n{EOT}\n\ufeffSue sat.\n{EOT}\n\ufeff",
}


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 1 << 22])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_stories_however_it_is_cut(tmp_path, monkeypatch, form, chunk):
    monkeypatch.setattr(stories, "_CHUNK", chunk)
    assert list(source(tmp_path, FORMS[form]).stories()) == ["One day.\n\nTom ran.", "Sue sat."]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 22])
def test_letters_of_several_bytes_survive_the_cuts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(stories, "_CHUNK", chunk)
    assert list(source(tmp_path, f"Zoë 🎉 “ran”\n{EOT}\né").stories()) == ["Zoë 🎉 “ran”", "é"]


def test_record_and_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "_CHUNK", 20)
    content = FORMS["byte order mark"].encode()
    reports = []
    text = source(tmp_path, content)
    list(text.stories(lambda *report: reports.append(report)))
    record = text.record()
    assert (record.name, record.size, record.sha256) == ("a.txt", len(content), hashlib.sha256(content).hexdigest())
    assert record.mtime_ns == os.stat(tmp_path / "a.txt").st_mtime_ns
    assert [done for _, done, _ in reports] == [*range(20, len(content), 20), len(content)]
    assert {total for _, _, total in reports} == {len(content)}


@pytest.mark.parametrize("chunk", [4, 1 << 22])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xe2\x80"])
def test_bytes_that_are_no_text_are_named_by_offset(tmp_path, monkeypatch, chunk, bad):
    monkeypatch.setattr(stories, "_CHUNK", chunk)
    start = f"\ufeffTom ran. é\n{EOT}\nSue ".encode()
    with pytest.raises(DataError, match=f"a.txt is not UTF-8: byte {len(start)} is 0x{bad[0]:02x}"):
        list(source(tmp_path, start + bad + f"\n{EOT}\n".encode()).stories())


BAD_FILES = {
    "empty": (b"", "is empty"),
    "white space": (b" \n\r\n ", "holds no story"),
    "markers only": (f"{EOT}\n{EOT}\n".encode(), "holds no story"),
    "zeros": (bytes(100), "is binary, not text: byte 0 is 0"),
    "another encoding": ("Tom ran.".encode("utf-16"), "is binary, not text: byte 3 is 0"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"\xff" * 50, "is not UTF-8: byte 0 is 0x89"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_without_stories_are_one_clear_error(tmp_path, kind):
    content, message = BAD_FILES[kind]
    with pytest.raises(DataError, match=message):
        list(source(tmp_path, content).stories())


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.txt is missing; give the path of a UTF-8 text file"):
        list(TextSource(tmp_path / "none.txt", tmp_path).stories())
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="is not a file"):
            list(TextSource(path, tmp_path).stories())


def test_text_without_markers_is_one_story_up_to_a_limit(tmp_path, monkeypatch):
    assert list(source(tmp_path, "all of Shakespeare").stories()) == ["all of Shakespeare"]
    monkeypatch.setattr(stories, "_LONGEST_STORY", 10)
    with pytest.raises(DataError, match="has no <|endoftext|> in the 18 bytes from byte 0 on; a story has at most 10"):
        list(source(tmp_path, "all of Shakespeare").stories())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    text = source(tmp_path, FORMS["public release"])
    reading = text.stories()
    next(reading)
    with open(tmp_path / "a.txt", "a") as file:
        file.write("more\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(reading)


def test_text_exchanged_for_another_of_the_same_size_and_time_is_noticed(tmp_path, monkeypatch):
    """A restored backup or `cp -p`. Of a file too large to be read at every start only size and time count."""
    text = source(tmp_path, FORMS["public release"])
    list(text.stories())
    record, path = text.record(), tmp_path / "a.txt"
    path.write_bytes(path.read_bytes().replace(b"Tom", b"Tim"))
    os.utime(path, ns=(1, record.mtime_ns))
    assert not source_again(path).unchanged(record)
    monkeypatch.setattr(stories, "ALWAYS_HASHED", 10)
    assert source_again(path).unchanged(record)


def source_again(path):
    return TextSource(path, path.parent)


@pytest.mark.parametrize(("name", "message"), [
    ("loop", "symbolic links"), ("x" * 300, "shorten it"), ("a\0b", "a NUL"), (os.fsdecode(b"a\xff"), "not UTF-8"),
    ("", "is empty"),
])
def test_a_path_that_no_file_can_have_is_one_error(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(ConfigError, match=message):
        TextSource(name, tmp_path)


def test_unchanged_looks_at_size_then_time_then_content(tmp_path):
    text = source(tmp_path, FORMS["public release"])
    list(text.stories())
    record, path = text.record(), tmp_path / "a.txt"
    assert text.unchanged(record)
    os.utime(path, ns=(1, record.mtime_ns + 10**9))
    assert text.unchanged(record)
    path.write_bytes(path.read_bytes().replace(b"Tom", b"Tim"))
    os.utime(path, ns=(1, record.mtime_ns + 2 * 10**9))
    assert not text.unchanged(record)
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(1, record.mtime_ns))
    assert not text.unchanged(record)


def test_labels_tell_files_of_one_name_apart(tmp_path):
    cache = tmp_path / "cache"
    labels = {TextSource(folder / "train.txt", cache).label for folder in (tmp_path / "a", tmp_path / "b", cache)}
    assert len(labels) == 3
    assert TextSource(cache / "train.txt", cache).label == "train"


def test_batches_hold_all_stories_in_order():
    texts = ["aa", "bbb", "c", "dddddd", "e"]
    assert list(batched_by_length(texts, 5)) == [["aa", "bbb"], ["c", "dddddd"], ["e"]]
    assert list(batched_by_length([], 5)) == []


def test_embedded_splits_are_the_corpus_and_disjoint():
    train, valid = EmbeddedSource.train(3, 5), EmbeddedSource.valid(3, 4)
    assert list(train.stories()) == [s.text for s in corpus.stories(3, 0, 5)]
    assert list(valid.stories()) == [s.text for s in corpus.stories(3, corpus.VALID_START, 4)]
    assert valid.start >= train.start + 10**9
    with pytest.raises(DataError, match="embedded_stories=1000000001 must be at most 1000000000"):
        EmbeddedSource.train(0, corpus.VALID_START + 1)


def test_embedded_record_follows_seed_count_and_version(monkeypatch):
    source = EmbeddedSource.train(3, 200)
    record = source.record()
    assert source.unchanged(record)
    assert not EmbeddedSource.train(4, 200).unchanged(record)
    assert not EmbeddedSource.train(3, 201).unchanged(record)
    assert not EmbeddedSource.valid(3, 200).unchanged(record)
    monkeypatch.setattr(corpus, "CORPUS_VERSION", "another")
    assert not source.unchanged(record)
