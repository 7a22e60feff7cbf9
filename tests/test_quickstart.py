"""``jaxablate quickstart``: two models, a comparison and a page; what somebody has put into its folder stays."""

import io
import json

import pytest
from helpers.commands import error_of, in_this_process, run_command
from helpers.runs import copy_run

from jaxablate.commands import quickstart, sweep
from jaxablate.errors import ConfigError
from jaxablate.runs.workdir import read_config
from jaxablate.terminal import PlainConsole

TINY = ("model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.k_attention=3", "model.k_neurons=5",
        "model.context_length=32", "train.sequence_length=32", "train.steps=4", "train.eval_batches=1",
        "train.tensorboard=false", "data.embedded_stories=60", "data.embedded_valid_stories=40", "mesh.data=1")


@pytest.fixture
def finished(language_run, baseline_run, tmp_path, monkeypatch):
    """A folder with a quickstart that is done: the shared tiny runs in the place of its two."""
    configs = {run: read_config(run) for run in (language_run, baseline_run)}
    for run, name in ((language_run, "quickstart"), (baseline_run, "quickstart-baseline")):
        copy_run(run, tmp_path / "runs" / name)
        run_command("score", tmp_path / "runs" / name, "--suites", "weights")
    monkeypatch.setattr(quickstart, "SUITES", ("weights",))
    monkeypatch.setattr(quickstart, "load_config", lambda name: configs[language_run])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quickstart/notes.txt").write_text("mine")
    return tmp_path / "runs"


def free(console, *arguments):
    return quickstart.parse(list(arguments), prog="q")._free(console)


def test_a_whole_run_stays_and_another_name_is_taken(finished, capsys):
    plain = PlainConsole()
    assert str(free(plain)) == "runs/quickstart-2"
    assert "runs/quickstart is there already and stays as it is; this one goes to runs/quickstart-2" in " ".join(
        capsys.readouterr().out.split())
    copy_run(finished / "quickstart", finished / "quickstart-2-baseline")  # gated, where a baseline would be
    assert str(free(plain)) == "runs/quickstart-3"
    assert str(free(plain, "--set", "train.steps=7")) == "runs/quickstart-3"  # other settings are another run
    assert (finished / "quickstart/notes.txt").read_text() == "mine"


def test_what_was_stopped_goes_on_in_its_place(finished):
    (finished / "quickstart-baseline/results.json").unlink()
    assert str(free(PlainConsole())) == "runs/quickstart"
    (finished / "quickstart/checkpoints/6/seal.json").unlink()
    assert str(free(PlainConsole())) == "runs/quickstart"


@pytest.mark.parametrize("folder", ["", ".", "..", "a/..", "/"])
def test_a_folder_without_a_name_has_nothing_beside_it(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--only", "gated")):
        assert "must end in a name of its own" in error_of(capsys, "quickstart", "--workdir", folder, *more)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "file/run" in error_of(capsys, "quickstart", "--workdir", "file/run")


@pytest.mark.parametrize(("answer", "path"), [("", "runs/quickstart-2"), ("Y", "runs/quickstart-2"), ("n", None),
                                              (None, None)])
def test_on_a_terminal_it_asks(finished, monkeypatch, answer, path):
    def asked():
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(quickstart.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", asked)
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=80)
    if path is None:
        with pytest.raises(ConfigError, match="is there already; name another folder: jaxablate quickstart --workdir"):
            free(console)
    else:
        assert str(free(console)) == path
    assert "Go on in runs/quickstart-2?" in " ".join(out.getvalue().split())


@pytest.mark.system
def test_it_trains_scores_and_compares_both(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "start", in_this_process)
    monkeypatch.setattr(quickstart, "SUITES", ("perplexity", "ioi", "gates", "weights", "samples"))
    run_command("quickstart", "--set", *TINY)
    out = capsys.readouterr().out
    assert "perplexity clean" in out and "difference" in out and "\nclean: " in out
    assert "Open runs/quickstart.html in a browser" in out and (tmp_path / "runs/quickstart.html").exists()
    for name, ablation in (("quickstart", "local"), ("quickstart-baseline", "none")):
        found = json.loads((tmp_path / "runs" / name / "results.json").read_text())
        assert found["config"]["model"]["ablation"] == ablation and found["step"] == 4
        assert set(found["suites"]) == set(quickstart.SUITES) - ({"gates"} if ablation == "none" else set())
