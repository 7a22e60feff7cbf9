"""jaxablate circuit: end to end on a really trained tiny model, killed, resumed, and with bad input."""

import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import typing

import numpy as np
import pytest
from rich.console import Console

from jaxablate.circuits import AcdcRun, Graph, load_circuit, load_mib, patching
from jaxablate.commands import circuit as command
from jaxablate.commands.circuit import CircuitSettings
from jaxablate.commands.main import main
from jaxablate.errors import ConfigError, DataError
from jaxablate.types import STREAMS

ROOT = pathlib.Path(__file__).parent.parent
FILES = ["circuit.html", "circuit.json", "circuit.mib.json", "circuit.png", "circuit.svg"]

@pytest.fixture(scope="module")
def workdir(language_run):
    """A run of two blocks of two heads, 46 edges."""
    return language_run


GRAPH = Graph(2, 2)
ACDC = ("--prompts", "12", "--tau", "1e-6")
"""So little is learnt in so few steps that effects are tiny, less than the noise of float32: float64 decides."""


def circuit(workdir, *arguments):
    return main(["circuit", "--workdir", str(workdir), *map(str, arguments)])


def error_of(capsys, workdir, *arguments):
    """Runs the command, which must fail as a user's error does, and gives its one line."""
    assert circuit(workdir, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def stored(folder):
    return load_circuit(folder / "circuit.json", graph=GRAPH)


@pytest.fixture(scope="module")
def found(workdir, tmp_path_factory):
    """Folder of the circuit that ACDC finds."""
    out = tmp_path_factory.mktemp("found") / "new" / "folder"
    assert circuit(workdir, *ACDC, "--out", out) == 0
    return out


def test_acdc_writes_a_circuit_with_its_conditions(found):
    assert sorted(p.name for p in found.iterdir()) == FILES
    of, about = stored(found), stored(found).about
    assert 0 < of.n_kept < GRAPH.n_edges
    assert (of.scores[of.kept] >= 1e-6).all() and (of.scores[~of.kept] < 1e-6 + 1e-9).all()
    assert (about["method"], about["tau"], about["stream"], about["ablation"]) == ("acdc", 1e-6, "clean", "resample")
    assert (about["task"], about["prompts"], about["seed"], about["step"]) == ("IOI", 12, 0, 6)
    assert len(about["prompts_digest"]) == 64 and len(about["params_digest"]) == 16 and "revision" in about
    assert about["model"]["d_model"] == 16
    measured = about["measured"]
    assert measured["kept"] == of.n_kept and measured["model"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    accuracy = measured["circuit"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    np.testing.assert_array_equal(load_mib(found / "circuit.mib.json", graph=GRAPH).kept, of.kept)


def test_the_page_and_the_pictures_show_it(found):
    page = (found / "circuit.html").read_text()
    assert "ACDC at tau 1e-06" in page and "<svg" in page and "faithfulness:" in page and "competence:" in page
    assert f"{stored(found).n_kept} of 46 edges" in page and "parameters" in page
    assert (found / "circuit.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (found / "circuit.svg").read_bytes()


def test_a_stored_circuit_is_measured_as_it_was(workdir, found, tmp_path, capsys):
    for name in ("circuit.json", "circuit.mib.json"):
        assert circuit(workdir, "--load", found / name, "--prompts", 12, "--out", tmp_path / name) == 0
        again, first = stored(tmp_path / name), stored(found)
        np.testing.assert_array_equal(again.kept, first.kept)
        assert again.about["measured"] == first.about["measured"]
    said = capsys.readouterr().out
    assert "model" in said and "all patched" in said and "was found with" not in said
    assert circuit(workdir, "--load", found / "circuit.json", "--prompts", 12, "--stream", "ablated", "--out",
                   tmp_path / "other") == 0
    assert "was found with stream clean; it is measured with ablated" in capsys.readouterr().out
    assert stored(tmp_path / "other").about["stream"] == "clean"


@pytest.mark.parametrize("method", ["eap", "eap-ig", "mask-gradient", "oracle", "random"])
def test_methods_that_score_edges(workdir, tmp_path, method, capsys):
    options = ("--search", "greedy", "--stream", "ablated") if method == "eap-ig" else ()
    out = tmp_path / method
    assert circuit(workdir, "--method", method, "--edges", 20, "--prompts", 12, *options, "--out", out) == 0
    said, of = capsys.readouterr().out, stored(out)
    assert sorted(p.name for p in out.iterdir()) == FILES and of.n_kept <= 20 and of.about["edges_asked"] == 20
    assert np.isfinite(of.scores).all() and (of.scores != 0).sum() > 20
    written = json.loads((out / "circuit.mib.json").read_text())["edges"].values()
    np.testing.assert_array_equal([edge["score"] for edge in written], -of.scores)  # greater where an edge matters
    np.testing.assert_array_equal(load_mib(out / "circuit.mib.json", graph=GRAPH).scores, of.scores)
    if method == "eap-ig":
        assert of.n_kept > 0 and of.about["search"] == "greedy" and "eap-ig, greedy 20 edges" in said


def test_a_method_that_is_trained_is_shown_beside_its_nulls(workdir, tmp_path, capsys):
    out = tmp_path / "pruned"
    assert circuit(workdir, "--method", "edge-pruning", "--edges", 20, "--steps", 2, "--prompts", 12, "--out", out) == 0
    said, of = capsys.readouterr().out, stored(out)
    groups = ["model", "random weights", "nonsense task"]
    assert [row["group"] for row in of.about["nulls"]] == groups and of.about["nulls"][0]["prompts"] == 6
    page = (out / "circuit.html").read_text()
    assert all(group in said and f"{group}:" in page for group in groups)
    settings = CircuitSettings(workdir=pathlib.Path("x"), method="edge-pruning", steps=5)
    assert settings.folder().name == "clean-edge-pruning-steps-5"


def test_prompts_of_a_file_and_a_model_that_cannot_do_the_task(workdir, tmp_path, capsys):
    write_prompts(tmp_path / "my task.json", {}, {"clean": "One day, Sue went", "corrupt": "One day, Sue gave"})
    assert circuit(workdir, "--prompt-file", tmp_path / "my task.json", "--method", "random", "--edges", 1) == 0
    said = capsys.readouterr().out
    assert "the model cannot do the task" in said and "does nothing" in said and "Circuit of my task in" in said
    folder = workdir / "circuits" / "clean-random-1-my-task"
    assert stored(folder).about["prompts"] == 2 and "warning:" in (folder / "circuit.html").read_text()


def write_prompts(path, *changes):
    prompt = {"clean": "One day, Tom", "corrupt": "One day, Sue", "answers": [" and"], "wrong_answers": [" to"]}
    path.write_text(json.dumps({"prompts": [prompt | change for change in changes]}))


KILLED = """
import importlib, os, signal, sys
acdc = importlib.import_module("jaxablate.circuits.acdc")
from jaxablate.commands import main as script
save, done = acdc.save_progress, []
def killed(*arguments):
    save(*arguments)
    done.append(1)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
acdc.save_progress, acdc.SAVE_SECONDS = killed, -1
sys.exit(script.main(sys.argv[1:]))
"""


def check_goes_on(workdir, found, out, capsys):
    """The same command finds in ``out`` what an interrupted one left, and ends with the circuit ``found``."""
    assert [p.name for p in out.iterdir()] == ["search.npz"]
    assert circuit(workdir, *ACDC, "--out", out) == 0
    assert "going on with the interrupted search" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == FILES
    np.testing.assert_array_equal(stored(out).kept, stored(found).kept)
    np.testing.assert_allclose(stored(out).scores, stored(found).scores, atol=1e-6)


def test_a_killed_search_goes_on_where_it_was(workdir, found, tmp_path, capsys):
    program = [sys.executable, "-c", KILLED, "circuit", "--workdir", str(workdir), *ACDC]
    done = subprocess.run([*program, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_goes_on(workdir, found, tmp_path / "out", capsys)


def test_a_search_stopped_by_sigterm_goes_on_where_it_was(workdir, found, tmp_path, capsys, monkeypatch):
    acdc = importlib.import_module("jaxablate.circuits.acdc")  # the package's name `acdc` is the function
    save, done = acdc.save_progress, []

    def stopped(*arguments):
        save(*arguments)
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(acdc, "save_progress", stopped)
        patch.setattr(acdc, "SAVE_SECONDS", -1)
        with pytest.raises(SystemExit, match="143"):
            circuit(workdir, *ACDC, "--out", tmp_path / "out")
    assert len(done) == 3 and capsys.readouterr().err.strip().startswith("stopped")
    check_goes_on(workdir, found, tmp_path / "out", capsys)


def test_an_interrupted_search_of_another_task_is_refused(workdir, tmp_path, capsys):
    (tmp_path / "search.npz").write_bytes(b"nothing")
    assert "cannot be read as an interrupted search" in error_of(capsys, workdir, *ACDC, "--out", tmp_path)


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("--tau", "0"), "tau=0 must be a number above 0"),
    (("--tau", "nan"), "tau=nan must be a finite number"),
    (("--prompts", "0"), "prompts=0 must be at least 1"),
    (("--batch-size", "0"), "batch_size=0 must be at least 1"),
    (("--seed", "-1"), "seed=-1 must not be negative"),
    (("--order-seed", "-1"), "order_seed=-1 must not be negative"),
    (("--checkpoint", "first"), "must be auto, newest, best or"),
    (("--method", "eap-gi"), "did you mean 'eap-ig'"),
    (("--method", "eap", "--edges", "0"), "edges=0 must be at least 1"),
    (("--method", "eap", "--edges", "47"), "edges=47 are more than the 46"),
    (("--method", "eap", "--tau", "1"), "no effect beside --method eap: --tau; leave that out, or choose another"),
    (("--method", "eap", "--steps", "5"), "no effect beside --method eap: --steps"),
    (("--edges", "5", "--search", "top"), "no effect beside --method acdc: --edges, --search"),
    (("--load", "FOUND", "--method", "eap", "--tau", "1"), "no effect beside --load: --method, --tau; leave that out"),
    (("--load", "nowhere.json"), "nowhere.json cannot be read"),
    (("--out", "FILE/below"), "cannot write"),
    (("--out", "FILE"), "cannot write"),
    (("--prompt-file", "nowhere.json"), "nowhere.json cannot be read"),
])
def test_bad_input_is_one_line(workdir, found, tmp_path, capsys, arguments, complaint):
    (tmp_path / "FILE").write_text("")
    places = {"FOUND": str(found / "circuit.json"), "FILE": str(tmp_path / "FILE"),
              "FILE/below": str(tmp_path / "FILE" / "below")}
    before = sorted(workdir.iterdir())
    assert complaint in error_of(capsys, workdir, *(places.get(a, a) for a in arguments))
    assert sorted(workdir.iterdir()) == before


@pytest.mark.parametrize(("change", "complaint"), [
    (None, "is empty"),
    ({"corrupt": "One day, Sue went"}, "prompt 1: clean has"),
    ({"answers": [" and to"]}, "prompt 1: answer ' and to' is 2 tokens"),
    ({"clean": "One day, Tom" + " and Tom" * 16, "corrupt": "One day, Sue" + " and Sue" * 16}, "context of 32"),
])
def test_bad_prompt_files(workdir, tmp_path, capsys, change, complaint):
    path, out = tmp_path / "prompts.json", tmp_path / "out"
    path.write_text("") if change is None else write_prompts(path, {}, change)
    line = error_of(capsys, workdir, "--prompt-file", path, "--out", out)
    assert complaint in line and "prompts.json" in line and not out.exists()


def test_circuits_of_other_models_are_refused(workdir, found, tmp_path, capsys):
    ours, mib = (json.loads((found / name).read_text()) for name in ("circuit.json", "circuit.mib.json"))
    cases = {"params": ours | {"about": ours["about"] | {"params_digest": "0" * 16}},
             "shape": ours | {"graph": {"n_layers": 3, "n_heads": 2, "n_edges": Graph(3, 2).n_edges}},
             "width": mib | {"cfg": mib["cfg"] | {"d_model": 8}},
             "shape of MIB": mib | {"cfg": mib["cfg"] | {"n_heads": 4}}}
    for name, values in cases.items():
        (tmp_path / "c.json").write_text(json.dumps(values))
        line = error_of(capsys, workdir, "--load", tmp_path / "c.json", "--out", tmp_path / "out")
        assert "of another model" in line, name
    (tmp_path / "c.json").write_text("{")
    assert "no whole JSON" in error_of(capsys, workdir, "--load", tmp_path / "c.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_have_no_such_circuit(workdir, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "classification"}')
    assert "text classifier's run" in error_of(capsys, tmp_path)
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["ablation"] = "none"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "needs a model with gates" in error_of(capsys, tmp_path / "run", "--stream", "ablated")
    assert "not the --workdir of a training run" in error_of(capsys, tmp_path / "nowhere")


def test_nothing_is_left_where_it_fails_late(workdir, tmp_path, monkeypatch, capsys):
    def fails(*arguments, **options):
        raise DataError("late")

    monkeypatch.setattr(command, "measure", fails)
    out = tmp_path / "new" / "out"
    assert "late" in error_of(capsys, workdir, "--method", "random", "--prompts", 12, "--out", out)
    assert not (tmp_path / "new").exists()


def test_settings_name_what_the_circuits_room_has():
    hints = typing.get_type_hints(CircuitSettings)
    assert typing.get_args(hints["ablation"]) == patching.ABLATIONS
    assert typing.get_args(hints["stream"]) == STREAMS


@pytest.mark.parametrize(("options", "name"), [
    ({}, "clean-acdc-0.03"),
    ({"stream": "ablated", "tau": 0.01, "prompts": 128}, "ablated-acdc-0.01-prompts-128"),
    ({"order_seed": 2, "ablation": "zero", "seed": 1}, "clean-acdc-0.03-zero-seed-1-order-seed-2"),
    ({"method": "eap-ig", "edges": 100, "search": "greedy"}, "clean-eap-ig-100-greedy"),
    ({"load": pathlib.Path("other/circuit.mib.json")}, "clean-load-other-circuit.mib"),
])
def test_folders_are_named_by_what_is_not_the_default(options, name):
    settings = CircuitSettings(workdir=pathlib.Path("runs/x"), **options)
    assert settings.folder() == pathlib.Path("runs/x/circuits") / name


def test_a_circuit_of_scores_has_a_twentieth_of_the_edges():
    settings = CircuitSettings(workdir=pathlib.Path("x"), method="eap")
    assert command.edge_count(settings, GRAPH) == 3
    with pytest.raises(ConfigError, match="choose 1 .. 46"):
        command.edge_count(CircuitSettings(workdir=pathlib.Path("x"), method="eap", edges=99), GRAPH)


def test_rises_are_over_the_last_edge_that_was_cut():
    run = AcdcRun(tau=0.5, order=np.array([3, 1, 0, 2, 4]), kl=np.array([0.9, 0.1, 0.1, 0.7, 0.3]),
                  removed=np.array([False, True, True, False, True]), kept=np.array([False, False, True, True, False]),
                  min_margin=0.1, final_kl=0.3, checked_kl=0.3)
    np.testing.assert_allclose(run.rises, [0.0, 0.1, 0.6, 0.9, 0.2])


def test_the_bar_says_what_is_left():
    out = io.StringIO()
    with command.search_progress(Console(file=out, force_terminal=True, width=100), "ACDC") as report:
        report(1000, 24000, 1200)
    assert "23,000 edges left, 1,200 evaluated" in out.getvalue()
    with command.search_progress(Console(file=out, force_terminal=True, width=100), "nothing"):
        pass
