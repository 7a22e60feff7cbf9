"""Several processes that train together: joining, and ending all of them where one ends."""

import logging
import threading
import time

import jax
import pytest
from faults.two_processes import Case, Fault, run, write_config
from helpers.commands import error_of

from jaxablate.commands.train import load_config, parse
from jaxablate.errors import ConfigError, TrainingError
from jaxablate.training import processes
from jaxablate.training.loop import train


@pytest.mark.system
def test_both_end_with_one_line_where_one_fails_or_is_killed_and_the_resumed_pair_has_the_same_bits(tmp_path):
    """One of two that met an error of its own waited for the other for minutes, and the other for it; one that lost the
    other ended after a minute or more by SIGABRT."""
    # Two devices of one process add the same numbers.
    train(load_config(write_config(tmp_path)), tmp_path / "whole", devices=jax.devices()[:2])
    case = Case((Fault("error", (0,), step=7, unwinding=2), Fault("SIGKILL", (1,), step=4, unwinding=2)))
    assert run(case, tmp_path / "case") is None


@pytest.fixture
def ended(monkeypatch):
    """What `os._exit` was called with, once it was."""
    codes, called = [], threading.Event()

    def leave(code):
        codes.append(code)
        called.set()
        raise SystemExit(code)  # of the thread

    monkeypatch.setattr(processes.os, "_exit", leave)
    monkeypatch.setattr(processes, "_ending", threading.Lock())
    monkeypatch.setattr(processes, "_OTHERS_SECONDS", 0.0)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    return lambda: codes if called.wait(20) else None


def test_an_error_ends_the_process_though_what_closes_files_waits_for_others(monkeypatch, ended, capsys):
    monkeypatch.setattr(processes, "UNWINDING_SECONDS", 0.1)
    monkeypatch.setattr(processes, "_joined", True)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with pytest.raises(TrainingError), processes.unwinding():
        raise TrainingError("a loss is not finite")
    assert ended() == [2]
    assert capsys.readouterr().err == "error: a loss is not finite\n"


def test_a_process_alone_may_close_files_as_long_as_it_likes(monkeypatch, ended):
    monkeypatch.setattr(processes, "UNWINDING_SECONDS", 0.0)
    with pytest.raises(TrainingError), processes.unwinding():
        raise TrainingError("a loss is not finite")
    time.sleep(0.2)
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize(("error", "code", "line"), [
    (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore"), 2,
     "error: another process of this training has ended or cannot be reached, so this one ends, too (UNKNOWN: Gloo "
     "all-reduce failed: Connection closed by peer); its own messages say why. The same command in all processes goes "
     "on from the last checkpoint"),
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 2,
     "error: another process of this training has ended or cannot be reached, so this one ends, too (UNKNOWN: Gloo "
     "AllGather failed: Connection closed by peer); its own messages say why. The same command in all processes goes "
     "on from the last checkpoint"),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), 2,
     "error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.); use a machine with more, or less "
     "data at once"),
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
])
def test_whatever_ends_one_of_several_is_one_line(ended, capsys, error, code, line):
    with pytest.raises(SystemExit):
        processes._end(error)
    assert ended() == [code]
    assert capsys.readouterr().err.strip() == line


def test_what_other_threads_meet_after_the_line_is_not_told(ended, caplog):
    with pytest.raises(SystemExit):
        processes._end(TrainingError("another process has ended"))
    logging.getLogger("jaxablate").warning("a checkpoint cannot be used")
    assert ended() == [2] and not caplog.records


def test_without_a_cluster_there_is_nothing_to_join(tmp_path, capsys):
    line = error_of(capsys, "train", "--config", "quickstart", "--workdir", tmp_path / "w", "--distributed")
    assert "--distributed could not join the other processes" in line
    assert not (tmp_path / "w").exists()
    with pytest.raises(ConfigError, match="join_seconds=0 must be at least 1"):
        parse(["--config", "quickstart", "--workdir", "w", "--join-seconds", "0"])
