"""The program's commands as a user calls them, and files outside the package as modules."""

import importlib.util
import pathlib
import sys
import types

import pytest

from jaxablate.commands.main import main

ROOT = pathlib.Path(__file__).parent.parent.parent


def load_script(name: str) -> types.ModuleType:
    """``load_script("eval")`` is eval.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
