"""`jaxablate score` and `compare` end to end on a really trained tiny model."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import pytest
from helpers.commands import error_of, few_draws, run_command
from helpers.explorer import shown_results
from helpers.runs import copy_run

from jaxablate.commands import score as runner
from jaxablate.commands.main import main
from jaxablate.commands.score import ScoreSettings
from jaxablate.errors import TooLittleDataError
from jaxablate.registry import Registry
from jaxablate.reports import results as files

RUN_ELSEWHERE = ("neurons", "units", "texts")


@pytest.fixture
def workdir(language_run, tmp_path):
    """An unscored copy that a test may change."""
    return copy_run(language_run, tmp_path / "run")


@pytest.fixture(scope="module")
def scored(language_run):
    """The run with the figures of all suites but those that tests of their own run on it, few of each."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as few, contextlib.redirect_stdout(out):
        few_draws(few)
        few.setattr(runner, "SUITES", Registry("suite", [s for s in runner.SUITES if s.name not in RUN_ELSEWHERE]))
        run_command("score", "--workdir", language_run, "--batch-size", 64)
    for stream in ("clean", "ablated"):
        assert f"\n{stream}: " in out.getvalue()
    return language_run


def test_score_keeps_every_figure_with_its_conditions(scored):
    r = files.read(scored)
    assert list(r.suites) == ["perplexity", "ioi", "gates", "weights", "samples", "circuits", "leakage"]
    assert (r.step, r.seed, r.config["model"]["k_neurons"]) == (6, 0, 5)
    for record in r.suites.values():
        assert record.provenance.versions["jax"] and record.provenance.date and "cpu" in record.provenance.device
        assert record.wall_seconds >= 0
    assert len(r.data_hash) >= 16
    figures = {f.name: f for record in r.suites.values() for f in record.figures}
    clean = figures["perplexity clean"].estimate
    assert clean.low < clean.value < clean.high
    assert r.suites["gates"].details["layers"][0]["mean_winners"] == 3


def test_score_agrees_with_the_loss_that_training_measured(scored):
    lines = [json.loads(line) for line in (scored / "metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if x["split"] == "valid"][-1]
    quick = runner.score(ScoreSettings(workdir=scored, suites=("perplexity",), max_batches=1))
    losses = {(x["stream"], x["end_of_text"]): x["loss"]["value"] for x in quick.suites["perplexity"].details["losses"]}
    assert losses["clean", True] == pytest.approx(last["loss_clean"], rel=1e-5)
    assert losses["ablated", True] == pytest.approx(last["loss_ablated"], rel=1e-5)
    assert quick.suites["perplexity"].options["max_batches"] == 1


@pytest.mark.parametrize("name", ["[k=2]", "x[/k/y]:smile:"])
def test_brackets_in_a_path_are_shown(language_run, tmp_path, capsys, name):
    """They were read as Rich markup: another path was printed, or MarkupError came after all work was done."""
    workdir = copy_run(language_run, tmp_path / name)
    run_command("score", "--workdir", workdir, "--suites", "weights")
    out = capsys.readouterr().out
    assert f"{workdir}/results.json" in out and f"{name}atstep6" in "".join(out.split())


def test_report_stands_alone(scored):
    text = (scored / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    assert "samples" in shown_results(scored / "report.html")["suites"]


def test_the_same_checkpoint_merges_and_another_replaces(workdir, capsys):
    run_command("score", "--workdir", workdir, "--suites", "weights")
    assert "mean |w|" in capsys.readouterr().out
    run_command("score", "--workdir", workdir, "--suites", "gates", "--batch-size", "3")
    assert set(files.read(workdir).suites) == {"weights", "gates"}
    out = capsys.readouterr().out
    assert "live neurons" in out and "clean: " not in out
    assert "mean |w|" not in out  # what was measured before stays in the file and is not printed again
    run_command("score", "--workdir", workdir, "--suites", "weights", "--checkpoint", "2")
    assert set(files.read(workdir).suites) == {"weights"} and files.read(workdir).step == 2
    assert "mean |w|" in capsys.readouterr().out


def test_a_corrupt_results_file_is_set_aside_by_score(workdir, capsys):
    (workdir / "results.json").write_text("{")
    run_command("score", "--workdir", workdir, "--suites", "weights")
    assert (workdir / "results.json.unreadable").read_text() == "{"
    assert "renamed" in capsys.readouterr().out and set(files.read(workdir).suites) == {"weights"}


def test_every_suite_that_ran_is_kept_when_a_later_one_fails(workdir, monkeypatch):
    def broken(subject):
        raise RuntimeError("out of memory")

    first, second = (s for s in runner.SUITES if s.name in ("gates", "weights"))
    monkeypatch.setattr(runner, "SUITES",
                        Registry("test suite", (first, dataclasses.replace(second, run=broken))))
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.score(ScoreSettings(workdir=workdir))
    assert set(files.read(workdir).suites) == {first.name}


def test_a_split_that_is_too_short_for_a_suite_stops_score_only_where_it_was_asked_for(workdir, monkeypatch, capsys):
    def short(subject):
        raise TooLittleDataError("the audit needs at least 2,000 tokens")

    first, second = (s for s in runner.SUITES if s.name in ("gates", "weights"))
    monkeypatch.setattr(runner, "SUITES",
                        Registry("test suite", (dataclasses.replace(first, run=short), second)))
    run_command("score", "--workdir", workdir)
    assert f"{first.name} is left out: the audit needs at least 2,000 tokens" in capsys.readouterr().out
    assert set(files.read(workdir).suites) == {second.name} and (workdir / "report.html").exists()
    assert "at least 2,000" in error_of(capsys, "score", "--workdir", workdir, "--suites", first.name)


def test_score_names_what_is_wrong(workdir, tmp_path, capsys):
    assert "nowhere" in error_of(capsys, "score", "--workdir", tmp_path / "nowhere")
    assert "did you mean 'perplexity'" in error_of(capsys, "score", "--workdir", workdir, "--suites", "perplexty")
    assert "must be auto, newest, best or" in error_of(capsys, "score", "--workdir", workdir, "--checkpoint", "newer")
    assert "at least 1" in error_of(capsys, "score", "--workdir", workdir, "--batch-size", "0")
    assert "7" in error_of(capsys, "score", "--workdir", workdir, "--checkpoint", "7")
    shutil.rmtree(workdir / "checkpoints")
    assert "checkpoint" in error_of(capsys, "score", "--workdir", workdir)
    assert not (workdir / "results.json").exists()


def test_other_validation_data_than_the_runs_is_refused(workdir, capsys):
    record = json.loads((workdir / "run.json").read_text())
    record["data_hash"]["valid"] = "0" * 64
    (workdir / "run.json").write_text(json.dumps(record))
    line = error_of(capsys, "score", "--workdir", workdir, "--suites", "weights")
    assert "is not the run's" in line and "000000000000" in line


def test_a_suite_that_does_not_fit_says_why(workdir, capsys):
    stored = json.loads((workdir / "config.json").read_text())
    stored["model"]["ablation"] = "none"
    (workdir / "config.json").write_text(json.dumps(stored))
    line = error_of(capsys, "score", "--workdir", workdir, "--suites", "gates")
    assert "the model has no gates" in line and "--suites" in line


def test_compare_joins_seeds_and_writes_the_table(scored, tmp_path, capsys):
    for name, seed, shift in (("a", 0, 0.0), ("b", 1, 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        values = json.loads((scored / "results.json").read_text())
        values |= {"seed": seed, "params_digest": name}
        values["config"]["train"]["seed"] = seed
        values["suites"]["perplexity"]["figures"][0]["estimate"]["value"] += shift
        (tmp_path / name / "results.json").write_text(json.dumps(values))
    (tmp_path / "table.md").write_text("of an earlier comparison")
    out = tmp_path / "out" / "table"
    run_command("compare", *sorted(tmp_path.iterdir()), "--out", out)
    header, _, row = (out.parent / "table.md").read_text().splitlines()[:3]
    assert "perplexity clean" in header and "live neurons" in header and " [" in row and "| 2 |" in row
    assert sorted(p.name for p in out.parent.iterdir()) == ["table.csv", "table.html", "table.md", "table.tex"]
    assert "passed over" in capsys.readouterr().out


def test_compare_names_the_command_for_what_is_missing(scored, workdir, tmp_path, capsys):
    line = error_of(capsys, "compare", scored, workdir)
    assert f"score --workdir {workdir}" in line
    run_command("compare", scored, workdir, "--allow-missing")
    capsys.readouterr()
    assert "nowhere" in error_of(capsys, "compare", tmp_path / "nowhere")
    (workdir / "results.json").write_text('{"schema_version": 1')
    assert "cannot be read" in error_of(capsys, "compare", scored, workdir)
    assert "score one first" in error_of(capsys, "compare")


def test_unknown_flags_exit_with_2_and_name_the_nearest(capsys):
    with pytest.raises(SystemExit) as e:
        main(["score", "--workdir", "x", "--sutes", "weights"])
    assert e.value.code == 2 and "--suites" in capsys.readouterr().err
