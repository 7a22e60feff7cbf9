"""What README and docs say: the examples run, commands and flags are known, folders and links exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jaxablate.commands.main import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str, text: str = README) -> list[str]:
    return [content for kind, content in FENCED.findall(text) if kind == language]


def commands() -> list[str]:
    """Every ``jaxablate NAME ...`` of README and docs, and what eval.py and train.py stand for."""
    lines = [line for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
             for line in "".join(blocks("bash", path.read_text())).splitlines()]
    lines = [re.sub(r"^python train\.py", "jaxablate train", re.sub(r"^python eval\.py", "jaxablate", line))
             for line in lines]
    return sorted({shlex.join(shlex.split(line, comments=True)[1:]) for line in lines if line.startswith("jaxablate ")})


def parse(line: str):
    name, *arguments = shlex.split(line)
    return importlib.import_module(f"jaxablate.commands.{name}").parse(arguments, prog=name)


def test_the_library_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    example = next(block for block in blocks("python") if "range(200)" in block)
    fewer = example.replace("range(200)", "range(30)")  # unoptimised code is slow: enough to see it learn
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(fewer, "README.md", "exec"), names)
    assert float(names["metrics"]["loss"]) < 4.5  # 5.8, log of the vocabulary, before training
    assert names["gates"].sum(-1).tolist() == [8.0] * 4
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == ["(8, 64, 318) (8, 64, 318)", "(8, 64, 1, 64) (8, 64, 1, 256)"]
    assert shown[3].startswith("Once upon a time, there was a")


def test_the_circuit_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(next(block for block in blocks("python") if "known" in block), "README.md", "exec"), {})
    assert re.fullmatch(r"\d+ of 262 edges\n", capsys.readouterr().out)


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = commands()
    assert {line.split()[0] for line in lines} == set(COMMANDS)
    for line in lines:
        parse(line)


def test_flags_in_the_text_are_known(capsys):
    helps = [f"{name} --help-all" for name in COMMANDS] + ["train --config sst2 --help-all"]
    for line in helps:
        with pytest.raises(SystemExit):
            parse(line)
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]+", FENCED.sub("", README)))
    assert len(named) > 10
    assert not named - known


def test_links_and_folders_are_there():
    (folders,) = (block for block in blocks("") if "jaxablate/ops/" in block)
    named = [line.split()[0] for line in folders.splitlines()] + re.findall(r"\]\(([\w./]+)\)", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
