"""eval.py end to end on a really trained tiny model."""

import contextlib
import io
import json
import pathlib
import shutil

import pytest
from scripts import load_script

from jaxablate.commands import score as runner
from jaxablate.commands.score import ScoreSettings
from jaxablate.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from jaxablate.errors import TooLittleDataError
from jaxablate.neurons import gate_information, probe
from jaxablate.reports import results as files
from jaxablate.suites import circuits
from jaxablate.training.loop import train

evaluation = load_script("eval")


def tiny(folder, ablation="local", seed=0):
    return Config(
        model=ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=2, n_heads=2, k_attention=3,
                          k_neurons=5, ablation=ablation),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir=str(folder / "data"), embedded_stories=60,
                        embedded_valid_stories=40),
        train=TrainConfig(steps=4, batch_size=8, sequence_length=32, seed=seed, log_every=1, eval_every=2,
                          eval_batches=1, checkpoint_every=2, tensorboard=False),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(folder), folder / "local")
    return folder / "local"


@pytest.fixture
def workdir(trained, tmp_path):
    """An unscored copy that a test may change."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("results*", "*.html")))


@pytest.fixture(scope="module")
def scored(trained):
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as few, contextlib.redirect_stdout(out):
        for name, count in (("PROMPTS", 6), ("BATCHES", 2), ("ORDERS", 1), ("RANDOM_MODELS", 1)):
            few.setattr(circuits, name, count)
        for module, name in ((gate_information, "SHUFFLES"), (probe, "UPDATES"), (probe, "TOKEN_EPOCHS")):
            few.setattr(module, name, 2)
        assert evaluation.main(["score", "--workdir", str(trained)]) == 0
    for stream in ("clean", "ablated"):
        assert f"\n{stream}: " in out.getvalue()
    return trained


def error_of(capsys, *argv):
    """Runs eval.py, which must fail as a user's error does, and gives its one line."""
    assert evaluation.main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_score_keeps_every_figure_with_its_conditions(scored):
    r = files.read(scored)
    assert list(r.suites) == ["perplexity", "ioi", "gates", "weights", "samples", "circuits", "neurons", "leakage"]
    assert (r.step, r.seed, r.config["model"]["k_neurons"]) == (4, 0, 5)
    for record in r.suites.values():
        assert record.provenance.versions["jax"] and record.provenance.date and "cpu" in record.provenance.device
        assert record.wall_seconds >= 0
    assert len(r.data_hash) >= 16
    figures = {f.name: f for record in r.suites.values() for f in record.figures}
    assert figures["perplexity clean"].low < figures["perplexity clean"].value < figures["perplexity clean"].high
    assert r.suites["gates"].details["layers"][0]["mean_winners"] == 3


def test_score_agrees_with_the_loss_that_training_measured(scored):
    lines = [json.loads(line) for line in (scored / "metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if x["split"] == "valid"][-1]
    quick = runner.score(ScoreSettings(workdir=scored, suites=("perplexity",), max_batches=1))
    losses = {(x["stream"], x["end_of_text"]): x["loss"] for x in quick.suites["perplexity"].details["losses"]}
    assert losses["clean", True] == pytest.approx(last["loss_clean"], rel=1e-5)
    assert losses["ablated", True] == pytest.approx(last["loss_ablated"], rel=1e-5)
    assert quick.suites["perplexity"].options["max_batches"] == 1


def test_report_stands_alone(scored):
    text = (scored / "report.html").read_text()
    assert "http" not in text.replace("http-equiv", "") and "<svg" in text and 'id="samples"' in text


def test_the_same_checkpoint_merges_and_another_replaces(workdir, capsys):
    assert evaluation.main(["score", "--workdir", str(workdir), "--suites", "weights"]) == 0
    assert evaluation.main(["score", "--workdir", str(workdir), "--suites", "gates", "--batch-size", "3"]) == 0
    assert set(files.read(workdir).suites) == {"weights", "gates"}
    assert "clean: " not in capsys.readouterr().out
    assert evaluation.main(["score", "--workdir", str(workdir), "--suites", "weights", "--checkpoint", "2"]) == 0
    assert set(files.read(workdir).suites) == {"weights"} and files.read(workdir).step == 2
    assert "mean |w|" in capsys.readouterr().out


def test_a_corrupt_results_file_is_set_aside_by_score(workdir, capsys):
    (workdir / "results.json").write_text("{")
    assert evaluation.main(["score", "--workdir", str(workdir), "--suites", "weights"]) == 0
    assert (workdir / "results.json.unreadable").read_text() == "{"
    assert "renamed" in capsys.readouterr().out and set(files.read(workdir).suites) == {"weights"}


def test_every_suite_that_ran_is_kept_when_a_later_one_fails(workdir, monkeypatch):
    def broken(subject):
        raise RuntimeError("out of memory")

    first, second = (s for s in runner.SUITES if s.name in ("gates", "weights"))
    monkeypatch.setattr(runner, "SUITES", (first, runner.dataclasses.replace(second, run=broken)))
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.score(ScoreSettings(workdir=workdir))
    assert set(files.read(workdir).suites) == {first.name}


def test_a_split_that_is_too_short_for_a_suite_stops_score_only_where_it_was_asked_for(workdir, monkeypatch, capsys):
    def short(subject):
        raise TooLittleDataError("the audit needs at least 2,000 tokens")

    first, second = (s for s in runner.SUITES if s.name in ("gates", "weights"))
    monkeypatch.setattr(runner, "SUITES", (runner.dataclasses.replace(first, run=short), second))
    assert evaluation.main(["score", "--workdir", str(workdir)]) == 0
    assert f"{first.name} is left out: the audit needs at least 2,000 tokens" in capsys.readouterr().out
    assert set(files.read(workdir).suites) == {second.name} and (workdir / "report.html").exists()
    assert "at least 2,000" in error_of(capsys, "score", "--workdir", workdir, "--suites", first.name)


def test_score_names_what_is_wrong(workdir, tmp_path, capsys):
    assert "nowhere" in error_of(capsys, "score", "--workdir", tmp_path / "nowhere")
    assert "did you mean 'perplexity'" in error_of(capsys, "score", "--workdir", workdir, "--suites", "perplexty")
    assert "must be auto, last, best or" in error_of(capsys, "score", "--workdir", workdir, "--checkpoint", "newest")
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
        values["suites"]["perplexity"]["figures"][0]["value"] += shift
        (tmp_path / name / "results.json").write_text(json.dumps(values))
    (tmp_path / "table.md").write_text("of an earlier comparison")
    out = tmp_path / "out" / "table"
    assert evaluation.main(["compare", *map(str, sorted(tmp_path.iterdir())), "--out", str(out)]) == 0
    header, _, row = (out.parent / "table.md").read_text().splitlines()[:3]
    assert "perplexity clean" in header and "live neurons" in header and " ± " in row and "| 2 |" in row
    assert sorted(p.name for p in out.parent.iterdir()) == ["table.csv", "table.html", "table.md", "table.tex"]
    assert "passed over" in capsys.readouterr().out


def test_compare_names_the_command_for_what_is_missing(scored, workdir, tmp_path, capsys):
    line = error_of(capsys, "compare", scored, workdir)
    assert f"python eval.py score --workdir {workdir}" in line
    assert evaluation.main(["compare", str(scored), str(workdir), "--allow-missing"]) == 0
    capsys.readouterr()
    assert "nowhere" in error_of(capsys, "compare", tmp_path / "nowhere")
    (workdir / "results.json").write_text('{"schema_version": 1')
    assert "cannot be read" in error_of(capsys, "compare", scored, workdir)
    assert "score one first" in error_of(capsys, "compare")


def test_unknown_flags_exit_with_2_and_name_the_nearest(capsys):
    with pytest.raises(SystemExit) as e:
        evaluation.main(["score", "--workdir", "x", "--sutes", "weights"])
    assert e.value.code == 2 and "--suites" in capsys.readouterr().err
