"""jaxablate sae end to end on a really trained tiny model: stored, measured, interrupted, refused."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from faults.hostile import JSON
from helpers.commands import error_of, run_command
from helpers.explorer import shown_titles
from helpers.runs import copy_run
from safetensors.numpy import load_file

from jaxablate import features
from jaxablate.commands import sae as command
from jaxablate.commands import score
from jaxablate.commands.sae import SaeSettings
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, FileError
from jaxablate.features.files import autoencoder_folders
from jaxablate.reports import results as files
from jaxablate.runs import run as runs
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.workdir import read_config

SITE = "clean.layer_0.mlp_out"
QUICK = ("--steps", "12", "--tokens-per-step", "64", "--buffer-batches", "8", "--width", "2", "--learning-rate", "1e-2",
         "--batch-size", "64")


@pytest.fixture
def workdir(long_run, tmp_path):
    """A copy of a run of two blocks without gates, D = 16, without autoencoders."""
    return copy_run(long_run, tmp_path / "run")


def sae(workdir, *arguments):
    run_command("sae", "--workdir", workdir, *QUICK, *arguments)


def refusal(capsys, workdir, *arguments):
    """The one line with which the command fails."""
    return error_of(capsys, "sae", "--workdir", workdir, *QUICK, *arguments)


def weights(workdir):
    """Arrays of each stored autoencoder, by the start of its folder's name."""
    return {path.name.rpartition("-")[0]: load_file(path / "sae_weights.safetensors")
            for path in autoencoder_folders(workdir)}


FOUR = ("--l1", 2, 0.5, "--seeds", 0, 1)
SAVING = (*FOUR, "--save-every", 1e-9)


@pytest.fixture(scope="module")
def trained(long_run, tmp_path_factory):
    """The run with four autoencoders, two coefficients and two seeds; what was on the disk at the second saving; and
    what the command printed."""
    killed, save, saved = tmp_path_factory.mktemp("killed") / "run", command._Rounds.save, []

    def snapshot(self, state):
        save(self, state)
        saved.append(int(state.step))
        if len(saved) == 2:
            shutil.copytree(long_run, killed)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(command._Rounds, "save", snapshot)
        patch.setattr(command, "MOST_OF_TIME", 1e9)
        sae(long_run, *SAVING)
    assert saved == [4, 8]
    return long_run, killed, out.getvalue()


@pytest.fixture
def stored(trained):
    return trained[0]


@pytest.fixture
def unmeasured(stored, monkeypatch):
    """The command shows the figures of the stored autoencoders and measures none."""
    monkeypatch.setattr(command, "score", lambda *_: files.read(stored))


def test_every_combination_is_stored_with_what_decided_it(stored):
    params, _ = restore_params(stored)
    model = read_config(stored).model
    assert set(weights(stored)) == {f"{SITE}-l1-{l1}-seed-{seed}" for l1 in ("2", "0.5") for seed in (0, 1)}
    for folder in autoencoder_folders(stored):
        saved = features.load(folder, model, params)
        identity = saved.details["identity"]
        assert (saved.name, identity["control"], identity["settings"]["steps"]) == (SITE, "none", 12)
        assert identity["run"]["l1"] in (2, 0.5) and identity["model_step"] == 6 and saved.details["trained"]
        assert saved.density.shape == (32,) and 0 < saved.density.max() <= 1
    different = list(weights(stored).values())
    assert all(np.any(a["W_enc"] != b["W_enc"]) for i, a in enumerate(different) for b in different[:i])
    (job,) = (stored / "autoencoders" / "jobs").iterdir()
    assert sorted(path.name for path in job.iterdir()) == [".lock", "job.json", "metrics.jsonl"]
    lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[::4]] == [4, 8, 12]
    assert {(line["l1"], line["seed"]) for line in lines} == {(2, 0), (2, 1), (0.5, 0), (0.5, 1)}
    assert lines[-1]["figures"]["loss"] > 0 and lines[-1]["site"] == SITE


def test_the_suite_has_measured_all_of_them(stored):
    record = files.read(stored).suites["sae"]
    rows = record.details["autoencoders"]
    assert len(rows) == 4 and rows[0]["tokens"] > 10_000 and record.details["unit"] == "stories"
    assert {(row["kind"], row["seed"], row["control"]) for row in rows} == {
        (kind, seed, "none") for kind in ("L1 2", "L1 0.5") for seed in (0, 1)}
    for row in rows:
        for name in ("l0", "explained_variance", "cosine", "kl"):
            x = row["measures"][name]
            assert x["low"] <= x["value"] <= x["high"], name
    figures = {figure.name: figure for figure in record.figures}
    assert list(figures)[:3] == ["L0 at L1 0.5", "CE score at L1 0.5", "explained var. at L1 0.5"]
    both = [row["measures"]["l0"]["value"] for row in rows if row["kind"] == "L1 0.5"]
    l0 = figures["L0 at L1 0.5"].estimate
    assert l0.value == pytest.approx(np.mean(both)) and l0.low is not None
    assert {"Sparsity, and what the model loses", "Densities of latents"} <= set(shown_titles(stored / "report.html"))


def test_what_is_stored_is_not_trained_again(stored, unmeasured, capsys):
    before = {path: path.stat().st_mtime_ns for path in (stored / "autoencoders").rglob("*.safetensors")}
    sae(stored, "--l1", 2, "--seeds", 0, 1)
    assert "2 of 2 autoencoders were stored already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (stored / "autoencoders").rglob("*.safetensors")}


def test_too_little_training_is_warned_of(trained):
    assert f"warning: the autoencoder at {SITE} (L1 2, seed 1) explains less than the mean vector" in trained[2]


def test_sites_of_two_widths(workdir, capsys):
    sites = ("clean.layer_0.mlp_post", "clean.layer_0.mlp_out")
    sae(workdir, "--sites", *sites)
    said = capsys.readouterr().out
    assert "an autoencoder 64 -> 128 at clean.layer_0.mlp_post" in said and "step 12/12" in said
    rows = files.read(workdir).suites["sae"].details["autoencoders"]
    assert {(row["site"], row["latents"]) for row in rows} == {(sites[0], 128), (sites[1], 32)}


def test_controls_stand_beside(stored, workdir, capsys, monkeypatch):
    with monkeypatch.context() as patch:  # measured with the other one
        patch.setattr(command, "score", lambda *_: files.read(stored))
        sae(workdir, "--control", "gaussian")
    sae(workdir, "--control", "random-weights")
    record = files.read(workdir).suites["sae"]
    rows = {row["control"]: row for row in record.details["autoencoders"]}
    assert set(rows) == {"gaussian", "random-weights"} and record.figures == ()  # controls are no headline
    for control, row in rows.items():
        assert row["measures"]["l0"]["low"] <= row["measures"]["l0"]["value"], control
        assert row["measures"]["ce_score_zero"]["value"] is None and row["tokens"] > 10_000
    assert "random weights" in capsys.readouterr().out
    (folder,) = (path for path in autoencoder_folders(workdir) if "gaussian" in path.name)
    moments = features.load(folder).moments
    np.testing.assert_allclose(moments.root[0], moments.root[0].T, atol=1e-6)
    (folder / "moments.safetensors").unlink()
    score.score(SaeSettings(workdir=workdir, batch_size=64).score())
    assert "are missing" in files.read(workdir).suites["sae"].details["passed_over"][0][1]


def test_a_killed_training_goes_on_to_the_same_weights(trained, unmeasured, capsys):
    """From what was on the disk while it ran."""
    stored, killed, _ = trained
    assert not autoencoder_folders(killed)
    sae(killed, *SAVING)
    assert "goes on from step 8" in capsys.readouterr().out
    same(killed, stored)


def test_a_signal_ends_it_after_the_round(stored, workdir, unmeasured, capsys, monkeypatch):
    def signalled(self, step, means):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(command._Rounds, "_refuse_nonfinite", signalled)
        with pytest.raises(SystemExit, match="143"):
            sae(workdir, *FOUR)
    assert "stopped at step 4 of 12; the same command goes on from there" in capsys.readouterr().err
    sae(workdir, *FOUR)
    assert "goes on from step 4" in capsys.readouterr().out
    same(workdir, stored)


def same(workdir, stored):
    """The weights of the uninterrupted run, bit for bit, and nothing left of the interruption."""
    expected, found = weights(stored), weights(workdir)
    for name, arrays in expected.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[name][key], array, err_msg=f"{name} {key}")
    assert not list((workdir / "autoencoders").rglob("state.safetensors"))
    steps = [json.loads(line)["step"] for path in (workdir / "autoencoders" / "jobs").glob("*/metrics.jsonl")
             for line in path.read_text().splitlines()]
    assert {step: steps.count(step) for step in set(steps)} == dict.fromkeys((4, 8, 12), len(found))


def test_a_disk_that_is_full_for_the_rounds_is_one_error(tmp_path):
    """Closing the log raised the same error again, as a traceback in place of the line."""
    settings = SaeSettings(workdir=tmp_path)
    job, = command.plan(settings, ModelConfig(), 256, {"control": "none"})
    limits, shown = resource.getrlimit(resource.RLIMIT_FSIZE), []
    metrics = features.StepMetrics(*(np.ones((2, 1)) for _ in features.StepMetrics._fields))

    def rounds():
        with command._Rounds(job, tmp_path, settings, lambda *line: shown.append(line), 0) as rounds:
            rounds(types.SimpleNamespace(step=32), metrics)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
            rounds(types.SimpleNamespace(step=64), metrics)

    try:
        with pytest.raises(FileError, match=r"disk full while writing .*metrics.jsonl"):
            rounds()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line, = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 32 and len(shown) == 1


def test_a_log_of_rounds_that_lost_lines_is_not_gone_on_with_in_silence(tmp_path, caplog):
    settings = SaeSettings(workdir=tmp_path)
    job, = command.plan(settings, ModelConfig(), 256, {"control": "none"})
    (tmp_path / "metrics.jsonl").write_text('{"step": 32}\n{"step": 64\n{"step": 96}\n')
    with command._Rounds(job, tmp_path, settings, print, 96):
        pass
    assert "(line 2)" in caplog.text and "it has 2 lines up to step 96, where 3 had been written" in caplog.text


def test_a_record_of_a_job_that_is_other_json_is_passed_over(tmp_path):
    job, = command.plan(SaeSettings(workdir=tmp_path), ModelConfig(), 256, {"control": "none"})
    folder = tmp_path / "jobs" / job.digest
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"")
    for content in (*JSON, b'{"autoencoders": 5}', b'{"autoencoders": [[]]}'):
        (folder / "job.json").write_bytes(content)
        assert not list(command._interrupted(tmp_path, job)), content[:20]


def test_an_interrupted_job_goes_on_where_more_is_asked_for(tmp_path):
    def job(*l1):
        return command.plan(SaeSettings(workdir=tmp_path, l1=l1), ModelConfig(), 256, {"control": "none"})[0]

    half = tmp_path / "jobs" / job(2, 1).digest
    half.mkdir(parents=True)
    (half / "state.safetensors").write_bytes(b"")
    (half / "job.json").write_text(json.dumps({"autoencoders": [job(2, 1).name(run) for run in job(2, 1).runs]}))
    assert [part.digest for part in command._interrupted(tmp_path, job(3, 1, 2))] == [job(2, 1).digest]
    assert not list(command._interrupted(tmp_path, job(3, 1)))  # one of its autoencoders is not asked for
    (tmp_path / job(1).name(job(1).runs[0])).mkdir()
    (tmp_path / job(1).name(job(1).runs[0]) / "cfg.json").write_text("{}")
    assert [run.l1 for run in job(3, 1, 2).without_stored(tmp_path).runs] == [3, 2]


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("--sites", "clean.layer_0.mlp_otu"), "'clean.layer_0.mlp_otu' does not exist; nearest: clean.layer_0.mlp_out"),
    (("--sites", SITE, SITE), f"--sites {SITE} {SITE} has a value twice"),
    (("--l1", "-1"), "l1=-1.0 must be a number of at least 0"),
    (("--learning-rate", "0"), "learning_rate=0.0 must be a number above 0"),
    (("--k", "3"), "no effect beside --architecture standard: --k"),
    (("--architecture", "topk", "--l1", "2"), "no effect beside --architecture topk: --l1"),
    (("--architecture", "topk", "--k", "64"), "k=64.0 must be above 0 and below d_sae=32"),
    (("--buffer-batches", "3"), "buffer_batches=3 must be even"),
    (("--seeds", "-1"), "no seed may be negative"),
    (("--warmup", "2"), "warmup=2.0 must be a fraction in 0..1"),
    (("--steps", "0"), "steps=0 must be at least 1"),
    (("--buffer-batches", "2000000000"), "and the activations of 2,000,000,000 steps need"),
    (("--width", "2000000000"), "autoencoders of 32,000,000,000 latents and the activations of"),
    (("--architecture", "jumprelu"), "can be used but not trained"),
    (("--architecture", "topkk"), "did you mean 'topk'?"),
])
def test_bad_input_is_one_line(stored, capsys, arguments, complaint):
    before = sorted((stored / "autoencoders").rglob("*"))
    assert complaint in refusal(capsys, stored, *arguments)
    assert sorted((stored / "autoencoders").rglob("*")) == before


def test_activations_that_are_not_finite(workdir, capsys, monkeypatch):
    def damaged(*arguments, **options):
        params, step = restore_params(*arguments, **options)
        return jax.tree.map(lambda x: np.full_like(x, np.nan), params), step

    monkeypatch.setattr(runs, "restore_params", damaged)
    assert f"activations at {SITE} are NaN or infinite" in refusal(capsys, workdir)
    assert not (workdir / "autoencoders").exists()


def test_a_loss_that_is_not_finite(workdir, capsys):
    line = refusal(capsys, workdir, "--learning-rate", "1e30")
    assert f"{SITE}-l1-5-seed-0" in line and "a lower --learning-rate than 1e+30 may help" in line
    assert not autoencoder_folders(workdir)


def test_a_damaged_state_is_said(workdir, capsys, monkeypatch):
    monkeypatch.setattr(command._Rounds, "_rate", lambda self, step: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        sae(workdir)
    (path,) = (workdir / "autoencoders").rglob("state.safetensors")
    path.write_bytes(b"nothing")
    capsys.readouterr()
    assert f"delete {path} to start anew" in refusal(capsys, workdir)


def test_other_peoples_autoencoders_are_passed_over(stored, workdir):
    shutil.copytree(stored / "autoencoders", workdir / "autoencoders")
    first, second, third, fourth = autoencoder_folders(workdir)
    (first / "sae_weights.safetensors").write_bytes(b"nothing")
    settings = json.loads((second / "cfg.json").read_text())
    settings["jaxablate"]["details"]["identity"]["model"] = "0" * 64
    (second / "cfg.json").write_text(json.dumps(settings))
    settings = json.loads((third / "cfg.json").read_text())
    del settings["jaxablate"]  # as SAELens would have written it
    (third / "cfg.json").write_text(json.dumps(settings))
    said = []
    score.score(SaeSettings(workdir=workdir, batch_size=64).score(), said.append)
    assert [line.split(": ")[1] for line in said if "passed over" in line] == [
        f"{first.name} is passed over", f"{second.name} is passed over"]
    record = files.read(workdir).suites["sae"]
    assert [row["name"] for row in record.details["autoencoders"]] == [third.name, fourth.name]
    why = dict(record.details["passed_over"])
    assert "damaged" in why[first.name] and "belongs to another model" in why[second.name]
    assert any(panel.title == "Passed over" for panel in record.panels)


def test_autoencoders_go_with_the_exported_model(stored, tmp_path, capsys):
    out = tmp_path / "model"
    run_command("export", "--workdir", stored, out)
    said = capsys.readouterr().out
    for folder in autoencoder_folders(stored):
        settings = json.loads((folder / "cfg.json").read_text())
        control = settings["jaxablate"]["details"]["identity"]["control"] != "none"
        assert (out / "autoencoders" / folder.name).exists() != control
        assert (f"the autoencoder {folder.name} is left out: " in said) == control
    first, *_ = autoencoder_folders(out)
    settings = json.loads((first / "cfg.json").read_text())
    assert settings["model_name"] == str(out) and settings["hook_name"] == "blocks.0.hook_mlp_out"
    assert (out / "model.safetensors").exists() and (out / "tokenizer.json").exists()


def test_an_export_that_fails_leaves_nothing(stored, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise FileError("disk full while writing cfg.json")

    monkeypatch.setattr("jaxablate.commands.export.export", full)
    assert "disk full" in error_of(capsys, "export", "--workdir", stored, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_too_few_tokens(stored, capsys):
    line = error_of(capsys, "score", "--workdir", stored, "--suites", "sae", "--max-batches", 2)
    assert "512 tokens were read; dead latents and densities need at least 10,000" in line


def test_scoring_trains_nothing(workdir):
    config, said = read_config(workdir), []
    names = [suite.name for suite in score.choose((), config, workdir, said.append)]
    assert "sae" not in names and "perplexity" in names
    assert any(f"train one: jaxablate sae --workdir {workdir}" in line for line in said)
    with pytest.raises(ConfigError, match="suite 'sae' has nothing to measure: no autoencoder is stored"):
        score.choose(("sae",), config, workdir)


def test_the_papers_preset():
    settings = SaeSettings(workdir="x", preset="paper")
    (job,) = command.plan(settings, ModelConfig(), 256, {"control": "none"})
    assert job.settings == features.SaeTrainConfig() and job.windows == (16, 256)
    assert (job.settings.steps, job.settings.learning_rate) == (100_000, 1e-5)
    assert job.config == features.AutoencoderConfig(project_gradient=False)
    assert job.runs == (features.SaeRun("clean.layer_6.mlp_out", 5.0, 0),)
    # As earlier versions named it, so that what they stored is found.
    assert job.name(job.runs[0]) == "clean.layer_6.mlp_out-l1-5-seed-0-742af6c0"


@pytest.mark.parametrize("length", [7, 100, 127, 128, 256, 1000])
def test_whole_sequences_fill_the_buffer(length):
    (job,) = command.plan(SaeSettings(workdir="x"), ModelConfig(context_length=1000), length,
                           {"control": "none"})
    half, (rows, _) = job.settings.round_steps * job.settings.batch_tokens, job.windows
    assert half % (rows * length) == 0 and rows * length <= max(4096, length)
