"""What the README says: its example runs, its commands parse, its folders exist."""

import re
import shlex
from pathlib import Path

import pytest

import eval as eval_script
from jaxablate.commands import train as cli
from jaxablate.commands.circuit import CircuitSettings
from jaxablate.commands.explain import ExplainSettings
from jaxablate.commands.match_settings import MatchSettings
from jaxablate.commands.neurons_settings import NeuronSettings
from jaxablate.commands.sae import SaeSettings
from jaxablate.commands.score import ScoreSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _blocks(language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(README) if kind == language]


def _commands(script: str) -> list[list[str]]:
    lines = "".join(_blocks("bash")).splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith(f"python {script}")]


def test_the_library_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    example = _blocks("python")[0]
    fewer = re.sub(r"(?<=in range\()\d+", "30", example)  # unoptimised code is slow: enough to see it learn
    assert fewer != example
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
    exec(compile(_blocks("python")[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == "8 of 262 edges\n"
    assert (tmp_path / "circuit.json").exists()


@pytest.mark.parametrize("arguments", _commands("train.py"), ids=" ".join)
def test_training_commands_parse(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.parse(arguments).workdir.parts[0] == "runs"


KINDS = {"score": ScoreSettings, "compare": eval_script.Compare, "explain": ExplainSettings, "circuit": CircuitSettings,
         "sae": SaeSettings, "neurons": NeuronSettings, "match": MatchSettings}


@pytest.mark.parametrize("arguments", _commands("eval.py"), ids=" ".join)
def test_scoring_commands_parse(arguments):
    assert isinstance(eval_script.parse(arguments), KINDS[arguments[0]])


def test_there_are_commands_of_every_kind():
    assert len(_commands("train.py")) >= 2
    assert {arguments[0] for arguments in _commands("eval.py")} == set(KINDS)


def test_flags_in_the_text_are_known(capsys):
    for config in ([], ["--config", str(ROOT / "configs" / "sst2.py")]):
        with pytest.raises(SystemExit):
            cli.parse([*config, "--help"])
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out)) | {"--suites"}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]+", FENCED.sub("", README)))
    assert len(named) > 10
    assert not named - known


def test_links_and_folders_are_there():
    (folders,) = (block for block in _blocks("") if "jaxablate/ops/" in block)
    named = [line.split()[0] for line in folders.splitlines()] + re.findall(r"\]\(([\w./]+)\)", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
