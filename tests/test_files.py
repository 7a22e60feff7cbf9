"""Files are complete or absent, whatever happens; locks end with their process; logs lose half lines only."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from typing import TypedDict

import pytest

from jaxablate import files
from jaxablate.errors import ConfigError, FileError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_write_replaces_the_file_at_its_end_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write(path, "é")
    with files.atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "é"
    assert path.read_bytes() == b"new" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    files.write(tmp_path / "a", "old")

    def write_half():
        with files.atomic_write(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    def fill_half():
        with files.atomic_folder(tmp_path / "f") as folder:
            (folder / "new").touch()
            raise error

    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    for fail in (write_half, fill_half):
        with pytest.raises(error):
            fail()
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == ["old"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for name in ("one", "two"):
        with files.atomic_folder(tmp_path / "f") as folder:
            (folder / name).touch()
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["two"]


def test_a_group_is_written_beside_what_is_there_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "kept").touch()
    assert files.write_group(tmp_path, {"a": b"1", "b": b"2"}) == (tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="disk full"):
        files.write_group(tmp_path / "new" / "folder", {"c": b"3"})
    assert names(tmp_path) == ["a", "b", "kept"]


def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_one_line_says_why_a_file_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "a", tmp_path / "file" / "deeper" / "a"):
        for use in (files.atomic_write, files.atomic_folder, files.lock, files.sole_builder):
            with pytest.raises(FileError, match=r"cannot write .* or set an x$"), use(place, otherwise="set an x"):
                pytest.fail("nothing can be written here")
        with pytest.raises(FileError, match="cannot write"):
            files.JsonLines(place, upto=0)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match=r"disk full while writing .*/b .*; free some space"):
        files.write(tmp_path / "b", "")
    assert names(tmp_path) == ["file"]


def test_a_builder_removes_what_a_killed_one_left_of_this_file_only(tmp_path):
    left, other = tmp_path / ".a[1].tokens.77-ab.partial", tmp_path / ".b.tokens.77-ab.partial"
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    with files.sole_builder(tmp_path / "a[1].tokens"):
        assert not left.exists() and other.exists()


HOLD = """
import sys
from typing import TypedDict
from jaxablate import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_waits_for_a_lock_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_WAIT_S", 0.1)
    waited = []
    with files.lock(tmp_path / "lock"), pytest.raises(FileError, match="waited .* hours for another process"), \
            files.lock(tmp_path / "lock", waiting=lambda: waited.append(True)):
        pass
    assert waited == [True]


def test_a_lock_keeps_others_out_and_ends_with_a_killed_process(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileError, match="busy here"), files.lock(tmp_path / "lock", busy="busy here"):
            pytest.fail("two hold one lock")
        waited = []
        with files.lock(tmp_path / "lock", waiting=lambda: (waited.append(True), other.kill())):
            assert waited == [True]


@pytest.mark.parametrize(("content", "message"), [
    (b"{", "cannot be read as a thing"), (b"\xff", "cannot be read as a thing"), (b"[]", "a JSON array, not an object"),
    (b'{"format": "other"}', "format 'other', not 'mine'"),
    (b'{"format": "mine", "version": 3}', "of version 3, this program reads 1 or 2"),
])
def test_json_that_is_none_or_another_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileError, match=re.escape(message)) as caught:
        files.read_json(tmp_path / "a", what="a thing", fix="restore it", format="mine", versions=(1, 2))
    assert str(caught.value).endswith("; restore it")


def test_json_comes_back_without_numbers_that_it_has_not(tmp_path):
    files.write_json(tmp_path / "a", {"version": 1, 2: [float("nan"), (1.5, float("inf"))]})
    values = files.read_json(tmp_path / "a", what="a thing", fix="", versions=(1,))
    assert values == {"version": 1, "2": [None, [1.5, None]]}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b", what="a thing", fix="")


def test_a_log_goes_on_after_a_kill_without_half_a_line(tmp_path, caplog):
    log = files.JsonLines(tmp_path / "log", upto=0)
    for step in range(3):
        log.add({"step": step})
    log.close()
    with open(tmp_path / "log", "a") as file:
        file.write('{"step"')
    assert steps(tmp_path / "log") == [0, 1, 2]
    log = files.JsonLines(tmp_path / "log", upto=1)
    log.add({"step": 7})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log").read_text().splitlines()] == [0, 1, 7]
    assert files.read_jsonl(tmp_path / "none") == []
    assert not caplog.text and names(tmp_path) == ["log"]


def steps(path):
    return [line["step"] for line in files.read_jsonl(path)]


def log_of_six(folder):
    """A log with steps 1 to 6 of which the last one was written after the state was noted; and that state."""
    log = files.JsonLines(folder / "log", upto=0)
    for step in range(1, 6):
        log.add({"step": step, "loss": 1 / step})
    state = log.get_state()
    log.add({"step": 6, "loss": 1 / 6})
    log.close()
    return state


@pytest.mark.parametrize("line", [
    b'{"step": 4, "loss": 0.25', b"null", b"5", b'"abc"', b"[1]", b"{}", b'{"step": "4"}', b'{"step": true}', b"\xff",
    b"[" * 100_000, bytes(60), b'{"step": 4, "loss": NaN}',
])
def test_one_damaged_line_of_a_log_costs_no_other_and_is_told(tmp_path, line, caplog):
    """A line in the middle of metrics.jsonl that was damaged took all good ones after it along, without a word."""
    state = log_of_six(tmp_path)
    lines = (tmp_path / "log").read_bytes().splitlines()
    damaged = b"\n".join([*lines[:3], line, *lines[4:]]) + b"\n"
    (tmp_path / "log").write_bytes(damaged)
    assert steps(tmp_path / "log") == [1, 2, 3, 5, 6]
    files.JsonLines(tmp_path / "log", upto=5, state=state).close()
    assert (tmp_path / "log").read_bytes() == b"".join(part + b"\n" for part in [*lines[:3], lines[4]])
    assert (tmp_path / "log.damaged").read_bytes() == damaged
    message, = caplog.messages
    assert "(line 4)" in message and "it has 4 lines up to step 5, where 5 had been written" in message
    assert message.endswith("log.damaged")


@pytest.mark.parametrize(("damage", "told"), [
    (lambda content: b"", "it has 0 lines up to step 5, where 5 had been written"),
    (lambda content: None, "it has 0 lines up to step 5, where 5 had been written"),
    (lambda content: bytes(len(content)), "left out (line 1); it has 0 lines up to step 5, where 5"),
    (lambda content: content[:60], "it has 2 lines up to step 5, where 5 had been written"),
    (lambda content: content.replace(b"0.25", b"0.35"), "its lines up to step 5 are not those"),
    (lambda content: content.replace(b'"step": 4', b'"step": 8'), "it has 4 lines up to step 5, where 5"),
    (lambda content: content + content, "it has 10 lines up to step 5, where 5 had been written"),
])
def test_a_log_that_lost_or_changed_lines_is_not_gone_on_with_in_silence(tmp_path, damage, told, caplog):
    """A log that was emptied, removed, cut or replaced was begun anew without a word."""
    state = log_of_six(tmp_path)
    content = damage((tmp_path / "log").read_bytes())
    if content is None:
        (tmp_path / "log").unlink()
    else:
        (tmp_path / "log").write_bytes(content)
    files.JsonLines(tmp_path / "log", upto=5, state=state).close()
    assert told in caplog.text
    assert not content or (tmp_path / "log.damaged").read_bytes() == content


def test_a_log_as_its_writer_left_it_is_gone_on_with_in_silence(tmp_path, caplog):
    state = log_of_six(tmp_path)
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes()[:-9])  # killed while it wrote step 6
    log = files.JsonLines(tmp_path / "log", upto=5, state=state)
    assert log.get_state() == state and steps(tmp_path / "log") == [1, 2, 3, 4, 5]
    log.close()
    assert not caplog.text and names(tmp_path) == ["log"]


def test_a_number_that_is_not_finite_is_null_in_a_log(tmp_path, caplog):
    """NaN, such as the explained variance of what does not vary, was written as such, which is no JSON: a later run
    took the line for a damaged one and left it out."""
    log = files.JsonLines(tmp_path / "log", upto=0)
    log.add({"step": 1, "figures": {"explained_variance": float("nan")}})
    log.close()
    files.JsonLines(tmp_path / "log", upto=1, state=log.get_state()).close()
    assert json.loads((tmp_path / "log").read_text()) == {"step": 1, "figures": {"explained_variance": None}}
    assert not caplog.records


def test_a_log_on_a_full_disk_ends_with_a_whole_line_and_one_error(tmp_path):
    """When the disk was full, closing the log wrote the same bytes again and raised in place of the right error."""
    log = files.JsonLines(tmp_path / "log", upto=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with files.closing(log.close):
            for step in range(100):
                log.add({"step": step})

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(FileError, match=r"disk full while writing .*/log \(File too large\)"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log").read_bytes().endswith(b"}\n") and len(steps(tmp_path / "log")) == 8


def test_what_ended_a_block_is_raised_and_not_what_closing_raised_then():
    def fails():
        raise OSError("closing")

    with pytest.raises(KeyboardInterrupt), files.closing(fails):
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="closing"), files.closing(fails):
        pass


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_one_line(tmp_path, make):
    make(tmp_path / "log")
    with pytest.raises(FileError, match="cannot be read as a log"):
        files.JsonLines(tmp_path / "log", upto=0)
    with pytest.raises(FileError, match="cannot be read as a log"):
        files.read_jsonl(tmp_path / "log")


@pytest.mark.parametrize("content", [
    b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b'{"a": "\xff"}', b'{"a": NaN}', b"", b"null", b"5",
    b'"abc"',
])
def test_json_too_deep_or_of_another_encoding_or_kind_is_one_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match="a.json .* a thing.*; restore it"):
        files.read_json(tmp_path / "a.json", what="a thing", fix="restore it")


def test_json_of_a_type_names_the_place_of_the_fault(tmp_path):
    class Thing(TypedDict):
        sizes: list[int]

    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"sizes": [1, 2], "new": 1}')  # with a byte order mark
    assert files.read_json(tmp_path / "a.json", Thing, what="a thing", fix="restore it")["sizes"] == [1, 2]
    (tmp_path / "a.json").write_text('{"sizes": [1, "2"]}')
    with pytest.raises(FileError, match=r"Expected `int`, got `str` - at `\$\.sizes\[1\]`"):
        files.read_json(tmp_path / "a.json", Thing, what="a thing", fix="restore it")


def test_no_more_is_read_than_was_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.read_bytes(tmp_path / "a", most=3) == b"abc"
    with pytest.raises(OSError, match="it has more than 2 bytes"):
        files.read_bytes(tmp_path / "a", most=2)


def test_json_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(FileError, match="a thing"):
            files.read_json(path, what="a thing", fix="restore it")


@pytest.mark.parametrize(("path", "message"), [
    ("", "is empty"), (" ", "is empty"), ("a\0b", "a NUL"), ("a\\b", "a backslash"),
    (os.fsdecode(b"a\xff"), "not UTF-8"),
    ("x" * 256, "a part of 256 bytes"), ("/x" * 3000, "6000 bytes"), ("loop/file", "symbolic links"),
])
def test_a_path_that_no_file_can_have_is_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(ConfigError, match=f"workdir=.*{message}.*"):
        files.check_path(path, "workdir")


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path):
    folder = tmp_path / "a[b]"  # no pattern
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = files._partial(folder / "log").name.replace(f"-{os.getpid()}-", f"-{int(killed.stdout)}-")
    alive, elsewhere = files._partial(folder / "log").name, dead.replace(files._MACHINE, "abcdef")
    folder.mkdir()
    for name in (dead, alive, elsewhere):
        (folder / name).touch()
    files.write(folder / "log", "new")
    assert names(folder) == sorted([alive, elsewhere, "log"])
    files.remove_partials(folder / "log")
    assert names(folder) == ["log"]
