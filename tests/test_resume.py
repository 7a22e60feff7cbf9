"""Runs that are stopped, moved to other devices or pointed at the wrong directory; kills are in `faults.torture`."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import types

import jax
import numpy as np
import pytest
from faults.hostile import JSON

from jaxablate.config import Config, DataConfig, MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from jaxablate.data.preparation import prepare
from jaxablate.errors import CheckpointError, ConfigError, FileError, JaxablateError, TrainingError
from jaxablate.runs.checkpoint import restore_params, saved_steps
from jaxablate.runs.workdir import record_run
from jaxablate.sharding import make_mesh
from jaxablate.training import loop
from jaxablate.training.language import language_task
from jaxablate.training.loop import train
from jaxablate.training.metrics import read_metrics


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def tiny(cache, ablation="none", mesh=None, **settings):
    """A run of twelve steps."""
    settings = {"steps": 12, "log_every": 1, "eval_every": 4, "eval_batches": 2, "checkpoint_every": 4} | settings
    shape = {"vocab_size": 320, "context_length": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}
    return Config(
        model=ModelConfig(**shape, ablation=ablation, k_attention=3, k_neurons=4),
        objective=ObjectiveConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        data=DataConfig(
            source="embedded", tokenizer="corpus", cache_dir=cache, embedded_stories=30, embedded_valid_stories=5
        ),
        train=TrainConfig(batch_size=8, sequence_length=8, tensorboard=False, **settings),
        mesh=mesh or MeshConfig(data=1),
    )


def losses(workdir, split="train"):
    """Step -> all metrics that do not depend on the clock."""
    timed = {"step", "split", "tokens_per_second"}
    lines = read_metrics(workdir, split)
    assert len({line["step"] for line in lines}) == len(lines), "a step is in the log twice"
    return {line["step"]: {k: v for k, v in line.items() if k not in timed} for line in lines}


def params_of(workdir):
    params, step = restore_params(workdir)
    return step, jax.tree.map(np.asarray, params)


def assert_identical(one, other):
    assert losses(one) == losses(other)
    assert losses(one, "valid") == losses(other, "valid")
    (step_a, a), (step_b, b) = params_of(one), params_of(other)
    assert step_a == step_b
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal while the batch of a step goes to the devices."""
    real, seen = loop._to_devices, []

    def to_devices(batch, program):
        seen.append(batch)
        if "mask" not in batch and sum("mask" not in b for b in seen) == step:
            os.kill(os.getpid(), number)
        return real(batch, program)

    monkeypatch.setattr(loop, "_to_devices", to_devices)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """An uninterrupted gated run on one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(tiny(cache, "local"), workdir)
    assert (result.step, result.reason) == (12, "finished")
    return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues_bit_for_bit(cache, whole, tmp_path, monkeypatch, number, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 6, number)
        result = train(tiny(cache, "local"), tmp_path / "run")
    assert (result.step, result.reason) == (6, "interrupted")
    assert saved_steps(tmp_path / "run/checkpoints") == [4, 6]
    assert "saved step 6 of 12; the same command continues" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(tiny(cache, "local"), tmp_path / "run").reason == "finished"
    assert "continues from step 6" in capsys.readouterr().out
    assert_identical(tmp_path / "run", whole)
    assert [r["step"] for r in json.loads((tmp_path / "run/run.json").read_text())["resumed"]] == [6]


def test_a_finished_run_stays_as_it_is(cache, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    result = train(tiny(cache, "local"), tmp_path / "run")
    assert (result.step, result.reason, result.metrics) == (12, "finished", {})
    assert_identical(tmp_path / "run", whole)


def test_a_damaged_last_checkpoint_costs_time_and_no_bit(cache, whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/checkpoints/12/params/manifest.ocdbt").write_bytes(b"")
    train(tiny(cache, "local"), tmp_path / "run")
    assert "params/manifest.ocdbt has 0 bytes" in caplog.text
    assert_identical(tmp_path / "run", whole)


def test_a_run_killed_before_its_first_checkpoint_was_sealed_starts_again(cache, whole, tmp_path, caplog):
    """A kill between the rename of the first checkpoint and its seal left a run that was refused for ever."""
    shutil.copytree(whole, tmp_path / "run")
    for step in (8, 12):
        shutil.rmtree(tmp_path / f"run/checkpoints/{step}", ignore_errors=True)
    (tmp_path / "run/checkpoints/12").mkdir()
    train(tiny(cache, "local"), tmp_path / "run")
    assert_identical(tmp_path / "run", whole)
    assert "damaged or changed" not in caplog.text


def test_one_damaged_line_in_the_log_costs_no_other_and_is_told(cache, whole, tmp_path, caplog):
    """One damaged line of metrics.jsonl deleted all after it, without a word."""
    shutil.copytree(whole, tmp_path / "run")
    log = tmp_path / "run/metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], lines[3][:-1], *lines[4:]]) + "\n")
    train(tiny(cache, "local"), tmp_path / "run")
    assert losses(tmp_path / "run") == {step: line for step, line in losses(whole).items() if step != 4}
    assert losses(tmp_path / "run", "valid") == losses(whole, "valid")
    assert "(line 4)" in caplog.text and "it has 14 lines up to step 12, where 15 had been written" in caplog.text
    caplog.clear()
    log.unlink()
    train(tiny(cache, "local"), tmp_path / "run")
    assert "it has 0 lines up to step 12, where 15 had been written" in caplog.text


def test_a_disk_that_is_full_for_the_log_is_one_error_and_costs_nothing(cache, whole, tmp_path, monkeypatch):
    """Closing the log raised the same error again, as a traceback in place of the line."""
    limits, real = resource.getrlimit(resource.RLIMIT_FSIZE), loop._to_devices

    def to_devices(batch, program):
        log = tmp_path / "run/metrics.jsonl"
        if log.exists() and len(losses(tmp_path / "run")) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 9, limits[1]))
        return real(batch, program)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_to_devices", to_devices)
        try:
            with pytest.raises(FileError, match=r"disk full while writing .*/metrics.jsonl"):
                train(tiny(cache, "local"), tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(tiny(cache, "local"), tmp_path / "run")
    assert_identical(tmp_path / "run", whole)


def test_half_a_line_in_the_log_is_dropped(cache, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    log = tmp_path / "run/metrics.jsonl"
    log.write_text(log.read_text()[:-25])
    train(tiny(cache, "local"), tmp_path / "run")
    assert_identical(tmp_path / "run", whole)


def test_another_configuration_is_refused_with_the_differences(cache, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    config = dataclasses.replace(tiny(cache, "global", seed=3), optimizer=OptimizerConfig(learning_rate=0.5))
    with pytest.raises(CheckpointError) as caught:
        train(config, whole)
    message = str(caught.value)
    assert "model.ablation: stored 'local', given 'global'" in message
    assert "optimizer.learning_rate: stored 0.01, given 0.5" in message
    assert "train.seed: stored 0, given 3" in message
    assert "train.steps" not in message
    with pytest.raises(CheckpointError, match="train.steps: stored 12, given 24"):
        train(tiny(cache, "local", steps=24), whole)
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_settings_that_change_no_number_may_change(cache, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = tiny(cache, "local", keep_last=1, log_every=5, checkpoint_every=3, eval_every=2)
    mesh = make_mesh(config.mesh)
    assert loop.make_program(config, mesh, 12) is loop.make_program(tiny(cache, "local"), mesh, 12)
    parted = loop.make_program(tiny(cache, "local", accumulation_steps=2), mesh, 12)
    assert parted is not loop.make_program(config, mesh, 12)
    assert train(config, tmp_path / "run").reason == "finished"
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["train"]["keep_last"] == 1


def test_a_run_killed_before_its_first_record_starts_anew(cache, whole, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)  # the kill came while the first state was compiled
    train(tiny(cache, "local"), tmp_path / "run")
    assert_identical(tmp_path / "run", whole)


def test_a_run_without_its_configuration_is_refused(cache, whole, tmp_path):
    shutil.copytree(whole / "checkpoints", tmp_path / "run/checkpoints")
    with pytest.raises(CheckpointError, match="holds a run without its config.json"):
        train(tiny(cache, "local"), tmp_path / "run")


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_validation_sees_the_same_tokens_however_the_batch_is_divided(cache, parts):
    config = tiny(cache, accumulation_steps=parts)
    seen = []

    def evaluate(params, batch):
        seen.append(batch["targets"])
        return {"count": batch["mask"].sum(), "loss": batch["targets"].mean()}

    program = types.SimpleNamespace(mesh=make_mesh(config.mesh, jax.devices()[:1]), evaluate=evaluate)
    file = prepare(config.data).valid
    values = loop.evaluate(language_task(config, program.mesh), program, None)
    expected = file.tokens[1 : 1 + 2 * 8 * 8]  # two batches of 8 rows and 8 tokens
    np.testing.assert_array_equal(np.concatenate(seen).ravel(), expected)
    assert values == {"loss": pytest.approx(expected.mean())}


def test_other_data_under_the_same_settings_is_refused(cache, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["data_hash"]["valid"] = "0" * 64
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="was trained with data_hash=.* bring the data back"):
        train(tiny(cache, "local"), tmp_path / "run")


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl"])
def test_a_file_of_the_workdir_that_is_other_json_is_one_line(cache, whole, tmp_path, name):
    """`null`, a number, a list, bytes that are no text: all of them ended in a traceback or were accepted."""
    from jaxablate.runs.workdir import check_workdir, read_config, read_run

    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = tiny(cache, "local")
    for content in JSON:
        (tmp_path / "run" / name).write_bytes(content)
        if name == "metrics.jsonl":
            assert read_metrics(tmp_path / "run") == [], content[:20]
        elif name == "run.json":
            with pytest.raises(FileError, match="run.json .*; restore it, or delete it to go on without what it says"):
                read_run(tmp_path / "run")
        elif content == b"{}":
            assert read_config(tmp_path / "run") == Config()
        else:
            for read in (read_config, lambda workdir: check_workdir(workdir, config)):
                with pytest.raises(FileError, match="config.json .*; restore it, or choose another --workdir"):
                    read(tmp_path / "run")
    if name == "config.json":
        for values in ({"task": []}, {"model": 5}, {"model": {"d_model": "x"}}, {"optimizer": {"b1": 10**400}}):
            (tmp_path / "run" / name).write_text(json.dumps(values))
            with pytest.raises(JaxablateError, match="config.json"):
                read_config(tmp_path / "run")


def test_a_run_without_its_record_goes_on_with_the_same_data_and_says_so(cache, whole, tmp_path, caplog):
    """The record was begun anew without a word, and with it the hashes of the data."""
    shutil.copytree(whole, tmp_path / "run")
    before = json.loads((whole / "run.json").read_text())
    (tmp_path / "run/run.json").unlink()
    train(tiny(cache, "local"), tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert "run.json is gone" in caplog.text and "started" not in record
    assert record["data_hash"] == before["data_hash"] and [r["step"] for r in record["resumed"]] == [12]
    other = before["data_hash"] | {"valid": "0" * 64}
    (tmp_path / "run/run.json").unlink()
    with pytest.raises(CheckpointError, match="was trained with data_hash="):
        record_run(tmp_path / "run", tiny(cache, "local"), make_mesh(MeshConfig(data=1)), before, 12,
                   before={"data_hash": other})


def test_a_record_that_lacks_a_field_is_refused(cache, whole, tmp_path):
    """One of them could be gone without a word, and a run that went on wrote the record without it."""
    shutil.copytree(whole, tmp_path / "run")
    path, mesh = tmp_path / "run/run.json", make_mesh(MeshConfig(data=1))
    record = json.loads(path.read_text())
    conditions = {"started", "revision", "versions", "device", "mesh", "processes", "resumed"}
    facts = {name: value for name, value in record.items() if name not in conditions}
    assert {"parameters", "data_hash", "train_tokens", "valid_tokens", "tokenizer"} == facts.keys()
    for name in record:
        damaged = json.dumps({other: value for other, value in record.items() if other != name})
        for before in ({}, facts):
            path.write_text(damaged)
            with pytest.raises(JaxablateError, match=f"run.json.*{name}.*; restore it, or delete it to go on"):
                record_run(tmp_path / "run", tiny(cache, "local"), mesh, facts, 12, before=before)
            assert path.read_text() == damaged
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "train_tokens"}))
    without = {name: value for name, value in facts.items() if name != "train_tokens"}  # a version that wrote none
    record_run(tmp_path / "run", tiny(cache, "local"), mesh, facts, 12, before=without)


def test_a_checkpoint_of_other_settings_than_the_file_gives_is_not_opened(cache, whole, tmp_path):
    from jaxablate.runs.run import open_run

    shutil.copytree(whole, tmp_path / "run")
    values = json.loads((whole / "config.json").read_text())
    values["model"]["k_neurons"] += 1
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"with other settings .*model.k_neurons: stored 4, given 5"):
        open_run(tmp_path / "run")


def test_a_name_that_orbax_reads_as_another_is_refused_before_anything_is_written(cache, tmp_path, monkeypatch):
    """TensorStore took the backslash for a slash: the arrays lay elsewhere, and the run ended with `finished`."""
    monkeypatch.chdir(tmp_path)
    for name in ("b\\sl", "w/b\\sl", "", " "):
        with pytest.raises(ConfigError, match="workdir="):
            train(tiny(cache), name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["run", "run/below"])
def test_a_file_in_place_of_the_workdir(cache, tmp_path, place):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileError, match="cannot write .*/run.* another --workdir"):
        train(tiny(cache, "local"), tmp_path / place)


def test_a_read_only_workdir(cache, tmp_path):
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        with pytest.raises(FileError, match=r"cannot write .*Read-only file system\)"):
            train(tiny(cache, "local"), tmp_path / "run")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_two_processes_never_share_a_workdir(cache, whole, tmp_path):
    from jaxablate.runs.workdir import hold_workdir

    shutil.copytree(whole, tmp_path / "run")
    with hold_workdir(tmp_path / "run"), pytest.raises(FileError, match="another process is training in"):
        train(tiny(cache, "local"), tmp_path / "run")


def poison(monkeypatch, at):
    """Makes all parameters NaN with the update of a step, whose own loss is still finite."""
    real = loop.make_program

    def make_program(config, mesh, steps):
        program = real(config, mesh, steps)

        def step(state, batch):
            state, metrics = program.step(state, batch)
            if int(state.step) == at:
                state = state.replace(params=jax.tree.map(lambda x: x * np.float32("nan"), state.params))
            return state, metrics

        return dataclasses.replace(program, step=step)

    monkeypatch.setattr(loop, "make_program", make_program)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (5, r"step 6 gave grad_norm=nan, .*loss=nan, .*; the last good checkpoint is .*/checkpoints/4;"),
        (8, r"step 8 made .* not finite; the last good checkpoint is .*/checkpoints/4;"),
        (2, r"step 3 gave .*; there is no good checkpoint yet;"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(cache, tmp_path, monkeypatch, at, message):
    poison(monkeypatch, at)
    with pytest.raises(TrainingError, match=message):
        train(tiny(cache, "local", eval_every=12), tmp_path / "run")
    assert saved_steps(tmp_path / "run/checkpoints") == ([4] if at > 4 else [])
    assert max(losses(tmp_path / "run")) == at


def test_the_workdir_is_self_contained(cache, whole):
    from jaxablate.data.tokenizer import load_tokenizer
    from jaxablate.runs.workdir import read_config

    assert read_config(whole) == tiny(cache, "local")
    assert load_tokenizer(whole / "tokenizer").name == "corpus"
    record = json.loads((whole / "run.json").read_text())
    assert record["device"] == "1 x cpu" and record["data_hash"]["train"] != record["data_hash"]["valid"]
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(restore_params(whole)[0]))
    assert set(losses(whole)) == set(range(1, 13)) and set(losses(whole, "valid")) == {4, 8, 12}


def test_the_data_parallel_size_may_change_in_between(cache, tmp_path, monkeypatch):
    # Ungated: with gates a last bit may decide a winner, and float32 runs part for good.
    train(tiny(cache, mesh=MeshConfig(data=2)), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        train(tiny(cache, mesh=MeshConfig(data=2)), tmp_path / "run")
    train(tiny(cache, mesh=MeshConfig(data=2, fsdp=4)), tmp_path / "run")
    expected, got = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert got.keys() == expected.keys()
    for step, values in expected.items():
        assert got[step] == pytest.approx(values, abs=1e-5), step
