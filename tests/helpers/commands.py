"""The program's commands as a user calls them."""

import pathlib

import pytest

from jaxablate.commands.main import main

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_command(*arguments: object) -> None:
    """Runs ``jaxablate ARGUMENTS``, which must succeed: ``run_command("score", "--workdir", folder)``."""
    assert main([str(a) for a in arguments]) == 0


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs ``jaxablate ARGUMENTS``, which must fail as a user's error does, and returns its one line."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
