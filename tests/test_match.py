"""eval.py match: the search for a checkpoint, the tables, and the command on really trained tiny runs."""

import csv
import dataclasses
import io
import json
import pathlib
import shutil

import pytest
from helpers import commands
from helpers.explorer import read_page
from helpers.runs import copy_run
from rich.console import Console

from jaxablate.commands import match as command
from jaxablate.commands import score as runner
from jaxablate.commands.main import main
from jaxablate.commands.match import measured_losses, nearest, passed
from jaxablate.registry import Registry
from jaxablate.reports import matched
from jaxablate.reports import results as files
from jaxablate.reports.matched import Matched, MatchedRow, Side
from jaxablate.runs.workdir import read_config
from jaxablate.stats import Estimate


@pytest.mark.parametrize(("target", "step", "most"), [(0.5, 90, 12), (10.0, 0, 2), (0.0, 99, 2), (1.0, 50, 10)])
def test_bisection_finds_the_nearest_of_a_falling_curve(target, step, most):
    asked = []

    def loss_of(step):
        asked.append(step)
        return {0.5: 50 - 0.55 * step, 1.0: 51 - step}.get(target, 2.0 - step / 100)

    losses = measured_losses(range(100), loss_of, target)
    assert nearest(losses, target) == step
    assert len(asked) == len(set(asked)) == len(losses) <= most and list(losses) == sorted(losses)


def test_few_checkpoints_are_all_measured_even_where_the_curve_is_not_monotone():
    curve = {100: 3.0, 200: 1.5, 300: 2.0, 400: 1.0}
    losses = measured_losses(list(curve), curve.__getitem__, 2.1)
    assert losses == curve and nearest(losses, 2.1) == 300
    assert nearest({1: 2.0, 2: 1.0}, 1.5) == 2


def test_where_a_logged_curve_passes_a_loss():
    curve = [(100, 4.0), (200, 2.0), (300, 1.0)]
    assert (passed(curve, 3.0), passed(curve, 1.0), passed(curve, 0.5), passed(curve, 5.0), passed([], 1.0)) == (
        150, 300, None, None, None)


def row(model, baseline, **changes):
    a, b = (Estimate(v, low, high) for v, low, high in (model, baseline))
    return MatchedRow(**{"suite": "circuits", "name": "edges", "unit": "", "better": "down", "model": a,
                         "baseline": b, **changes})


def comparison(gap=0.01, rows=(), notes=()):
    losses = [Estimate(v, v - 0.1, v + 0.1) for v in (2.0 + gap, 2.0)]
    sides = [Side(name=name, step=step, summary="2 layers", loss=loss)
             for name, step, loss in (("gated", 20, losses[0]), ("base", 10, losses[1]))]
    first = MatchedRow(suite="loss", name="loss", unit="nats", better="down", model=losses[0], baseline=losses[1])
    return Matched(model=sides[0], baseline=sides[1], tolerance=0.02, rows=(first, *rows), notes=tuple(notes))


def test_intervals_apart_overlapping_and_absent():
    pairs = [((5.0, 4.0, 6.0), (7.25, 6.0, 8.0)), ((5.0, 4.0, 5.9), (7.0, 6.0, 8.0)), ((1.0, None, None),) * 2]
    cells = matched.table(comparison(rows=[row(*pair) for pair in pairs])).rows[1:]
    assert list(map(str, cells[0][2:])) == ["5.0 [4.0, 6.0]", "7.2 [6.0, 8.0]", "-2.2", "yes"]
    assert cells[1][5] == "no" and cells[2][4:] == ("0", "-")


def test_every_table_says_whether_the_losses_match():
    near, far = comparison(0.019), comparison(-0.5, notes=["keep more"])
    assert near.equal and not far.equal
    assert "Matched: the validation losses differ by 0.0190 nats, within the tolerance of 0.02" in near.verdict
    assert far.verdict.startswith("NOT matched") and "the better of the two" in far.verdict
    texts = matched.texts(far)
    assert all("NOT matched" in texts[suffix] for suffix in (".md", ".tex"))
    assert "keep more" in texts[".md"]
    assert [r["matched"] for r in csv.DictReader(texts[".csv"].splitlines())] == ["False"]


def test_tables_have_every_row_once_and_columns_that_align():
    compared = comparison(rows=[row((5.0, 4.0, 6.0), (7.0, 6.0, 8.0), name="|w|_1 %")])
    texts = matched.texts(compared)
    assert set(texts) == {".md", ".csv", ".tex"}
    body = [line for line in texts[".tex"].splitlines() if line.endswith(r"\\")]
    assert len(body) == 3 and {line.count(" & ") for line in body} == {5}
    table = [line for line in texts[".md"].splitlines() if line.startswith("|")]
    assert len(table) == 4 and r"\|w\|\_1 %" in table[-1]
    rows = list(csv.DictReader(texts[".csv"].splitlines()))
    assert [(r["figure"], r["difference"], r["overlap"]) for r in rows][1] == ("|w|_1 %", "-2.0", "True")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(matched.terminal_view(compared))
    assert "|w|_1 %" in console.export_text()


@pytest.fixture
def runs(language_run, baseline_run, tmp_path):
    """Copies that a test may change of a gated run and a baseline, with checkpoints at 2, 4 and 6 steps."""
    copy_run(language_run, tmp_path / "gated")
    copy_run(baseline_run, tmp_path / "base")
    return tmp_path


def match(runs, *arguments):
    return main(["match", "--workdir", str(runs / "gated"), "--baseline", str(runs / "base"), *map(str, arguments)])


def error_of(capsys, runs, *arguments):
    """The one line of a command that fails and writes nothing."""
    line = commands.error_of(capsys, "match", "--workdir", runs / "gated", "--baseline", runs / "base", *arguments)
    assert not (runs / "gated" / "matched").exists()
    return line


def test_match_end_to_end(runs, capsys, monkeypatch):
    assert match(runs, "--suites", "weights", "--checkpoint", 4, "--tolerance", 5) == 0
    out, folder = capsys.readouterr().out, runs / "gated" / "matched"
    assert "Matched" in out and "left out: 1 of weights" in out
    names = ["report.html", "results.json", "table.csv", "table.html", "table.md", "table.tex"]
    assert sorted(p.name for p in folder.iterdir()) == names
    manifest, _ = read_page(folder / "table.html")
    assert manifest["runs"][0]["baseline"] == "base, matched" and manifest["notes"][0].startswith("Matched")
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert rows[0]["figure"] == "validation loss clean" and {r["suite"] for r in rows} == {"loss", "weights"}
    model, baseline = files.read(runs / "gated"), files.read(folder)
    assert (model.step, model.config["model"]["ablation"], baseline.config["model"]["ablation"]) == (4, "local", "none")
    assert set(model.suites) == set(baseline.suites) == {"weights", "perplexity"}
    known = {x.estimate.value for x in baseline.suites["weights"].figures}
    assert {float(r["baseline"]) for r in rows[1:]} <= known
    assert not (runs / "base" / "results.json").exists()

    asked = []
    real = runner.run_suite
    monkeypatch.setattr(runner, "run_suite", lambda suite, *x: asked.append(suite.name) or real(suite, *x))
    assert match(runs, "--suites", "weights", "--checkpoint", 4, "--tolerance", 5) == 0
    assert asked == ["perplexity"] * 2  # of the two other checkpoints of the baseline
    assert list(csv.DictReader((folder / "table.csv").read_text().splitlines())) == rows


def test_the_nearest_checkpoint_is_taken_and_the_distance_told(runs, capsys):
    losses = {}
    for step in (2, 4, 6):
        settings = command.MatchSettings(workdir=runs / "gated", baseline=runs / "base")
        losses[step] = command._open(settings, runs / "base", str(step), [], lambda line: None).loss.value
    assert losses[2] > losses[4] > losses[6]
    assert match(runs, "--suites", "weights", "--tolerance", 1e-6, "--out", runs / "out") == 0
    out = " ".join(capsys.readouterr().out.split())
    found = files.read(runs / "out")
    target = next(float(r["model"]) for r in csv.DictReader((runs / "out" / "table.csv").read_text().splitlines()))
    assert found.step == nearest(losses, target)
    assert "NOT matched" in out and ("--train.keep-last 50" in out or "train it longer" in out)


def test_suites_that_do_not_fit_both_are_left_out_or_refused(runs, capsys):
    assert "suite 'gates' does not fit: the model has no gates" in error_of(capsys, runs, "--suites", "gates")
    assert "did you mean 'weights'" in error_of(capsys, runs, "--suites", "weihgts")
    settings = command.MatchSettings(workdir=runs / "gated", baseline=runs / "base")
    configs = [read_config(path) for path in (runs / "gated", runs / "base")]
    names = [s.name for s in command.fitting_suites(settings, configs, lambda line: None)]
    assert {"perplexity", "circuits", "weights"} <= set(names) and not {"gates", "leakage"} & set(names)


def test_other_data_another_tokenizer_and_wrong_runs_are_refused(runs, capsys):
    record = json.loads((runs / "base" / "run.json").read_text())
    for change, words in (({"data_hash": {"valid": "0" * 64}}, "has other valid data (hash 000000000000)"),
                          ({"data_hash": {"train": "1" * 64}}, "has other train data"),
                          ({"tokenizer": {"fingerprint": "f" * 64}}, "another tokenizer (fingerprint ffff")):
        changed = {k: v | change.get(k, {}) if isinstance(v, dict) else v for k, v in record.items()}
        (runs / "base" / "run.json").write_text(json.dumps(changed))
        assert words in error_of(capsys, runs)
    (runs / "base" / "run.json").write_text(json.dumps(record))
    assert "give another run" in error_of(capsys, runs, "--baseline", runs / "gated")
    assert "must be a number above 0" in error_of(capsys, runs, "--tolerance", 0)
    assert "is a working directory" in error_of(capsys, runs, "--out", runs / "base")
    assert "choose one of 2, 4, 6" in error_of(capsys, runs, "--checkpoint", 5)
    shutil.rmtree(runs / "base" / "checkpoints")
    assert "holds no undamaged checkpoint" in error_of(capsys, runs)


def test_damaged_checkpoints_of_the_baseline_are_passed_over(runs, capsys):
    said = []
    (runs / "base" / "checkpoints" / "4" / "seal.json").unlink()
    assert command.undamaged_steps(runs / "base", said.append) == [2, 6]
    assert len(said) == 1 and "checkpoint 4" in said[0] and "passed over" in said[0]


def test_results_of_another_checkpoint_stay(runs, capsys):
    commands.run_command("score", "--workdir", runs / "gated", "--suites", "weights")
    before = (runs / "gated" / "results.json").read_bytes()
    assert match(runs, "--suites", "weights", "--checkpoint", 2, "--tolerance", 5) == 0
    assert (runs / "gated" / "results.json").read_bytes() == before
    assert "is of another checkpoint and stays" in " ".join(capsys.readouterr().out.split())


def test_a_suite_that_fails_for_one_of_the_runs_is_left_out_unless_asked_for(runs, capsys, monkeypatch):
    from jaxablate.errors import DataError

    def refuse(subject):
        raise DataError("nothing stored for this checkpoint")

    weights = dataclasses.replace(runner.SUITES["weights"], run=refuse)
    monkeypatch.setattr(runner, "SUITES", Registry("suite", (weights,)))
    assert "nothing stored" in error_of(capsys, runs, "--suites", "weights")
    assert match(runs, "--tolerance", 5) == 0
    assert "weights is left out: nothing stored for this checkpoint" in " ".join(capsys.readouterr().out.split())
    table = (pathlib.Path(runs) / "gated" / "matched" / "table.md").read_text()
    assert "validation loss clean" in table and "mean |w|" not in table
