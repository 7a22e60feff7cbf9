"""The program: choosing a command, and what it makes of Ctrl-C and SIGTERM wherever they come."""

import os
import signal
import sys

import pytest
from helpers.commands import error_of

from jaxablate.commands import base
from jaxablate.commands.main import main
from jaxablate.data import __main__ as data
from jaxablate.exits import guarded


class Interrupting:
    """An importer during whose work Ctrl-C or SIGTERM comes."""

    def __init__(self, name, stop):
        self.name, self.stop = name, stop

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            self.stop()


def ctrl_c():
    raise KeyboardInterrupt


STOPS = pytest.mark.parametrize(("stop", "code", "line"), [
    (ctrl_c, 130, "stopped by Ctrl-C\n"), (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM\n"),
], ids=["Ctrl-C", "SIGTERM"])


@STOPS
@pytest.mark.parametrize(("program", "arguments", "module"), [
    (main, ["score", "--workdir", "x"], "jaxablate.commands.score"),
    (data.main, ["prepare"], "jaxablate.data.program"),
], ids=["jaxablate", "jaxablate.data"])
def test_a_signal_while_modules_are_imported_is_one_line(monkeypatch, capsys, program, arguments, module, stop, code,
                                                          line):
    """Every program's imports take seconds; those of ``python -m jaxablate.data`` were outside of what is guarded."""
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(module, stop), *sys.meta_path])
    assert program(arguments) == code
    assert capsys.readouterr().err == line


@STOPS
def test_a_command_that_keeps_what_it_has_says_so(capsys, stop, code, line):
    def run():
        with base.terminable("stopped; what is done is kept"):
            stop()

    with pytest.raises(SystemExit, match=str(code)):
        guarded(run)
    assert capsys.readouterr().err == "stopped; what is done is kept\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (["scroe"], "unknown command 'scroe'; did you mean score? There are quickstart, train"),
    (["x" * 100_000], "unknown command 'xxx"),
    (["score", "--workdir", "w", "--checkpoint", "9" * 5000], "checkpoint='999"),
    (["score", "--workdir", "w", "--batch-size", "2147483648"], "batch_size=2147483648 is out of range"),
    (["score", "--workdir", "w", "--batch-size", "100000"], "batch_size=100000 must be at most 65,536"),
    (["sae", "--workdir", "w", "--save-every", "inf"], "save_every=inf must be a finite number"),
    (["sae", "--workdir", "w", "--seeds", "0", "9223372036854775808"], "seeds=9223372036854775808 is out of range"),
    (["circuit", "--workdir", "w", "--prompts", "2147483647"], "prompts=2147483647 must be at most 100,000"),
    (["neurons", "--workdir", "w", "--examples", "4294967296"], "examples=4294967296 is out of range"),
    (["compare", "w", "--out", ""], "out='' is empty"),
], ids=["typo", "long", "digits", "int32", "rows", "infinite", "int64", "prompts", "nested", "empty"])
def test_what_no_command_can_take_is_refused_in_one_line(capsys, arguments, message):
    line = error_of(capsys, *arguments)
    assert message in line and len(line) < 600
