"""Help: every option of every command has a line of text, and what is printed fits 80 columns."""

import contextlib
import importlib
import io
import re

import pytest
import tyro

from jaxablate.commands import base, train, usage
from jaxablate.commands.main import COMMANDS, main
from jaxablate.commands.train import ClassifierTrainSettings, TrainSettings
from jaxablate.suites import SUITES


def kinds():
    """Settings of every command by its name; training has one for each kind of run."""
    for name in COMMANDS:
        module = importlib.import_module(f"jaxablate.commands.{name}")
        found = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, base.Settings)
                 and x.__module__ == module.__name__]
        for kind in found:
            yield pytest.param(name, kind, id=kind.__name__)


def help_of(capsys, monkeypatch, *arguments, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "kind"), list(kinds()))
def test_every_option_of_every_command_has_its_text(name, kind):
    found = list(usage.options(kind, prefixes=name in ("train", "import")))
    assert found and not [x.name for x in found if len(x.about) < 10]
    assert len({x.name for x in found}) == len(found)


@pytest.mark.parametrize(("name", "kind"), list(kinds()))
def test_the_help_has_the_flags_that_are_parsed(name, kind, monkeypatch):
    """tyro makes the flags, and the help is made beside it from the same settings."""
    prefixes = name in ("train", "import")
    config = (tyro.conf.FlagCreatePairsOff, *(() if prefixes else (tyro.conf.OmitArgPrefixes,)))
    out = io.StringIO()
    monkeypatch.setenv("COLUMNS", "120")  # of one column
    with pytest.raises(SystemExit), contextlib.redirect_stdout(out):
        tyro.cli(kind, args=["--help"], config=config)
    lines = re.findall(r"^[ │] (--[a-z].*?)(?:  |$)", re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()), re.MULTILINE)
    parsed = [set(re.findall(r"--[\w.-]+", line)) for line in lines]  # each with its aliases
    ours = {x.name for x in usage.options(kind, prefixes=prefixes) if x.name.startswith("-")}
    assert len(parsed) == len(ours) and all(len(flags & ours) == 1 for flags in parsed)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_the_short_one_is_the_shorter(name, capsys, monkeypatch):
    short, whole = (help_of(capsys, monkeypatch, name, flag) for flag in ("--help", "--help-all"))
    for text in (short, whole):
        assert max(map(len, text.splitlines())) <= 80 and text.startswith(f"usage: jaxablate {name}")
    assert "--help-all" in short and len(short) <= len(whole) + 100
    assert help_of(capsys, monkeypatch, name, "-h") == short


def test_the_programs_own_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 90 and all(f"  {name} " in text for name in COMMANDS)


def test_the_short_help_of_training_has_what_is_changed_most(capsys, monkeypatch):
    short, whole = (help_of(capsys, monkeypatch, "train", flag) for flag in ("--help", "--help-all"))
    shown = set(re.findall(r"--[a-z]+\.[\w.-]+", short))
    assert {"--model.k-neurons", "--model.ablation", "--train.steps", "--train.seed"} <= shown
    assert "--optimizer.beta1" not in short and "--optimizer.beta1" in whole and "--mesh.fsdp" in whole
    assert len(short.splitlines()) < 110 < 200 < len(whole.splitlines()) and "quickstart " in short
    known = {x.setting for kind in (TrainSettings, ClassifierTrainSettings) for x in usage.options(kind, prefixes=True)}
    assert set(train.COMMON) <= known


def test_help_shows_the_values_of_the_configuration_that_is_named(capsys, monkeypatch):
    text = " ".join(help_of(capsys, monkeypatch, "train", "--config", "sst2", "--help").split())
    assert "--train.epochs INT Epochs at most. (default 100)" in text and "--train.steps" not in text
    text = " ".join(help_of(capsys, monkeypatch, "train", "--config", "quickstart", "--help").split())
    assert "--train.steps INT" in text and "(default 4500)" in text


def test_score_lists_its_suites(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "score", "--help")
    assert all(f"\n  {suite.name}" in text for suite in SUITES)


def test_what_a_switch_and_a_list_are_is_told(capsys, monkeypatch):
    text = " ".join(help_of(capsys, monkeypatch, "train", "--help-all").split())
    assert "--train.no-tensorboard Write the metrics" in text and "(on; this turns it off)" in text
    assert "(default )" not in text and "(default None)" not in text and "{None}" not in text
    assert "(required)" in text and "--model.attention-layers {global,local} ..." in text
