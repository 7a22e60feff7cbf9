"""Compiled programs that are kept for the next start: where, when not, and that no folder's state ends a run."""

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from jaxablate.commands import compilation, main
from jaxablate.commands.compilation import CompiledPrograms

PROGRAM = """
import jax, jaxablate
from jaxablate.commands.compilation import keep_compiled
assert jaxablate.train and jax.config.jax_compilation_cache_dir is None  # the package itself sets nothing
keep_compiled()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x * 3 + 1)(5), sum(hits))
"""
MACHINE = compilation._machine()


def start(**environment):
    """What a program prints that multiplies and adds, and reads what earlier ones have compiled."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=plain | {"JAX_PLATFORMS": "cpu"} | environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.system
def test_the_second_start_reads_what_the_first_has_compiled_and_replaces_what_is_damaged(tmp_path):
    folder = tmp_path / "jaxablate" / "compiled" / MACHINE
    assert start(XDG_CACHE_HOME=str(tmp_path)) == (f"{folder} 16 0\n", "")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (kept,) = folder.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-1])  # as a full disk leaves it
    assert start(XDG_CACHE_HOME=str(tmp_path)) == (f"{folder} 16 0\n", "")
    assert start(XDG_CACHE_HOME=str(tmp_path)) == (f"{folder} 16 1\n", "")
    assert list(folder.iterdir()) == [kept]


@pytest.fixture
def untold(tmp_path, monkeypatch):
    """A process whose JAX was told nothing of compiled programs; it returns what `keep_compiled` sets."""
    settings = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True,
                "jax_compilation_cache_max_size": -1}
    import jax
    from jax._src import compilation_cache

    class Config:
        def __getattr__(self, name):
            return settings[name]

        def update(self, name, value):
            settings[name] = value

    monkeypatch.setattr(jax, "config", Config())
    monkeypatch.setattr(compilation_cache, "get_file_cache", None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def kept(**told):
        settings.update(told)
        compilation.keep_compiled()
        return settings, compilation_cache.get_file_cache

    return kept


def test_they_are_under_the_cache_of_the_user_within_a_limit(untold, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    settings, make = untold(jax_compilation_cache_max_size=5000)
    folder = str(tmp_path / "home" / ".cache" / "jaxablate" / "compiled" / MACHINE)
    assert settings["jax_compilation_cache_dir"] == folder
    assert settings["jax_persistent_cache_min_compile_time_secs"] == compilation.LEAST_SECONDS
    programs, path = make(folder)
    assert (str(programs._path), path, programs._most_bytes) == (folder, folder, 5000)


@pytest.mark.parametrize("told", [{"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, {"JAX_COMPILATION_CACHE_DIR": ""},
                                  {"jax_compilation_cache_dir": "/x"}, {"jax_enable_compilation_cache": False}])
def test_what_jax_was_told_stands(untold, tmp_path, monkeypatch, told):
    for name in [name for name in told if name.isupper()]:
        monkeypatch.setenv(name, told.pop(name))
    settings, make = untold(**told)
    assert settings["jax_compilation_cache_dir"] == told.get("jax_compilation_cache_dir") and make is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("state", ["a file", "open to others", "another's"])
def test_a_folder_that_cannot_be_used_is_one_warning(untold, tmp_path, monkeypatch, caplog, state):
    folder = tmp_path / "cache" / "jaxablate" / "compiled" / MACHINE
    if state == "a file":
        folder.parent.mkdir(parents=True)
        folder.touch()
    else:
        folder.mkdir(parents=True)
        folder.chmod(0o777 if state == "open to others" else 0o700)
    if state == "another's":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    settings, make = untold()
    assert settings["jax_compilation_cache_dir"] is None and make is None
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.message and "JAX_ENABLE_COMPILATION_CACHE=false" in record.message


def test_the_programs_not_used_for_longest_go_first(tmp_path):
    programs = CompiledPrograms(tmp_path, 400)
    for i, name in enumerate("abc"):
        programs.put(name, bytes(100))
        os.utime(tmp_path / f"{name}-program", (i, i))
    assert programs.get("a") == bytes(100)  # used now
    left = tmp_path / ".x.partial"
    left.touch()
    os.utime(left, (0, 0))
    programs.put("d", bytes(120))
    assert [programs.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert not left.exists()
    programs.put("e", bytes(401))
    assert programs.get("e") is None and programs.get("a") is not None
    assert time.time() - (tmp_path / "a-program").stat().st_mtime < 60


@pytest.mark.parametrize("kind", ["full", "gone", "little room"])
def test_a_disk_that_takes_no_more_is_warned_of_once(tmp_path, monkeypatch, caplog, kind):
    programs = CompiledPrograms(tmp_path / "folder", 1000)
    if kind != "gone":
        programs._path.mkdir()
    if kind == "full":
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    if kind == "little room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            programs.put("a", bytes(100))
            assert programs.get("a") is None
    told = ["compiled programs are no longer kept"] if kind != "little room" else []
    assert [record.message.partition(":")[0] for record in caplog.records] == told


class _Usage:
    free = 999


def test_only_commands_that_use_jax_ask_for_it(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(compilation, "keep_compiled", lambda: asked.append(True))
    assert main.main(["compare", str(tmp_path / "nothing")]) == 2 and not asked
    assert main.main(["neurons", "--workdir", str(tmp_path / "nothing")]) == 2 and asked
    assert "nothing" in capsys.readouterr().err
