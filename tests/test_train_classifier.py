"""Text classifiers through the training loop, the command lines and the scores, on a sentiment set of a few words."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers.commands import error_of, run_command
from helpers.explorer import shown_results
from helpers.runs import SENTENCES, write_trees
from helpers.weights import drawn_state

from jaxablate.commands.main import main
from jaxablate.config import (
    ClassificationConfig,
    ClassificationObjective,
    ClassifierConfig,
    Config,
    DataConfig,
    EpochTrainConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SentimentDataConfig,
    TrainConfig,
    to_dict,
)
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.reports import results as files
from jaxablate.runs.checkpoint import restore_params, saved_steps
from jaxablate.sharding import batch_sharding, make_mesh
from jaxablate.training import loop
from jaxablate.training.classification import classification_learner, classification_task
from jaxablate.training.loop import make_program, train
from jaxablate.training.metrics import read_metrics
from jaxablate.training.program import compile_program

ROOT = Path(__file__).parent.parent
PER_EPOCH = 8
"""Steps: 60 training texts in batches of 8, so the last batch has four filler rows."""


def tree(rng):
    """A sentence of 2 to 12 words, one of which tells its label."""
    label = int(rng.choice([0, 1, 3, 4]))
    words = [f"w{n}" for n in rng.integers(0, 6, size=rng.integers(1, 12))]
    words.insert(int(rng.integers(0, len(words) + 1)), "good" if label > 2 else "bad")
    return f"({label} {' '.join(f'(2 {word})' for word in words)})"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("sst2"), np.random.default_rng(0)
    for split, count in (("train", 90), ("dev", 20), ("test", 20)):
        lines = [tree(rng) for _ in range(count)]
        if split == "train":  # thirty of each class
            lines = [line for low in (True, False) for line in [x for x in lines if (x[1] in "01") == low][:30]]
            assert len(lines) == 60
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def tiny(data, *, model=None, objective=None, optimizer=None, mesh=None, **settings):
    """A run of three epochs on one device, with everything that draws at random."""
    shape = {"max_length": 12, "d_model": 8, "n_heads": 2, "d_mlp": 8, "vmask_width": 4, "dropout": 0.1}
    settings = {"epochs": 3, "patience": 0, "batch_size": 8, "bucket_multiple": 0, "log_every": 1} | settings
    return ClassificationConfig(
        model=ClassifierConfig(**shape | (model or {})),
        objective=ClassificationObjective(**objective or {}),
        optimizer=OptimizerConfig(**{"learning_rate": 1e-2, "schedule": "constant"} | (optimizer or {})),
        data=SentimentDataConfig(path=data),
        train=EpochTrainConfig(tensorboard=False, **settings),
        mesh=mesh or MeshConfig(data=1),
    )


def measured(workdir, split="train"):
    """Step -> all metrics that do not depend on the clock."""
    timed = {"step", "split", "texts_per_second"}
    lines = read_metrics(workdir, split)
    assert len({line["step"] for line in lines}) == len(lines), "a step is in the log twice"
    return {line["step"]: {k: v for k, v in line.items() if k not in timed} for line in lines}


def assert_identical(one, other):
    for split in ("train", "valid"):
        assert measured(one, split) == measured(other, split)
    (a, step_a), (b, step_b) = restore_params(one), restore_params(other)
    assert step_a == step_b
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(tiny(data), workdir)
    assert (result.step, result.reason) == (3 * PER_EPOCH, "finished")
    return workdir


def test_a_run_learns_and_records_its_conditions(whole, data):
    lines, evaluations = measured(whole), measured(whole, "valid")
    assert set(lines) == set(range(1, 25)) and set(evaluations) == {8, 16, 24}
    names = {"loss", "cross_entropy", "accuracy", "importance", "interaction", "information", "kept"}
    assert names | {"grad_norm", "learning_rate"} == lines[1].keys() and names == evaluations[8].keys()
    assert np.mean([lines[s]["cross_entropy"] for s in (22, 23, 24)]) < lines[1]["cross_entropy"]
    record = json.loads((whole / "run.json").read_text())
    assert record["texts"] == {"train": 60, "dev": 20, "test": 20}
    assert len(set(record["data_hash"].values())) == 3
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(restore_params(whole)[0]))
    stored = json.loads((whole / "config.json").read_text())
    assert (stored["task"], stored["model"]["vocab_size"]) == ("classification", 0)
    assert restore_params(whole)[0]["embed"]["embedding"].shape == (2 + 8, 8)  # six words, good, bad


def test_the_best_checkpoint_is_the_one_of_highest_accuracy(whole):
    accuracy = {step: values["accuracy"] for step, values in measured(whole, "valid").items()}
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    assert restore_params(whole, step="best")[1] == best
    assert saved_steps(whole / "checkpoints") == sorted({best, 24})


def test_a_signal_in_the_middle_of_an_epoch_leaves_no_trace(data, whole, tmp_path, monkeypatch):
    real, seen = loop._to_devices, []

    def to_devices(batch, program):
        seen.append(batch)
        if len(seen) == PER_EPOCH + 3 + 3:  # an epoch, three batches of its evaluation, three steps
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch, program)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_to_devices", to_devices)
        result = train(tiny(data), tmp_path / "run")
    assert (result.step, result.reason) == (11, "interrupted")
    assert 11 in saved_steps(tmp_path / "run/checkpoints")
    assert train(tiny(data), tmp_path / "run").reason == "finished"
    assert_identical(tmp_path / "run", whole)
    best = [restore_params(path, step="best")[1] for path in (tmp_path / "run", whole)]
    assert best[0] == best[1]


def patient(data, **settings):
    """A run that stops where two epochs were no better."""
    return tiny(data, **{"epochs": 5, "patience": 2, "log_every": 4} | settings)


def test_training_stops_after_patience_epochs_without_a_better_one(data, tmp_path, capsys, monkeypatch):
    accuracy = [0.5, 0.8, 0.7, 0.8, 0.9]  # an equal one is no better, and the last one is never reached
    left = iter(accuracy)
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"accuracy": next(left)})
    result = train(patient(data), tmp_path / "run")
    assert (result.step, result.reason) == (4 * PER_EPOCH, "finished")
    assert "finished early: 32 steps in " in capsys.readouterr().out
    assert [v["accuracy"] for v in measured(tmp_path / "run", "valid").values()] == accuracy[:4]
    _best, step = restore_params(tmp_path / "run", step="best")  # it outlives newer ones
    assert accuracy[step // PER_EPOCH - 1] == 0.8
    assert saved_steps(tmp_path / "run/checkpoints")[-1] == 32
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "run.json"}
    again = train(patient(data), tmp_path / "run")
    assert (again.step, again.reason, again.metrics, again.valid) == (32, "finished", {}, {})
    assert before == {p: p.read_bytes() for p in before}


@pytest.fixture
def config_file(data, tmp_path):
    path = tmp_path / "tiny.py"
    values = json.dumps(to_dict(patient(data, log_every=1)))
    path.write_text("import json\nfrom jaxablate.config import run_from_dict\n\n"
                    f"def get_config():\n    return run_from_dict(json.loads({values!r}))\n")
    return path


def test_several_seeds_in_one_command(config_file, data, tmp_path, capsys):
    command = ["train", "--config", str(config_file), "--workdir", str(tmp_path / "runs"), "--train.log-every", "4"]
    assert main([*command, "--seeds", "0", "1"]) == 0
    runs = [tmp_path / "runs" / f"seed-{seed}" for seed in (0, 1)]
    stored = [json.loads((run / "config.json").read_text()) for run in runs]
    assert [(c["train"]["seed"], c["train"]["log_every"]) for c in stored] == [(0, 4), (1, 4)]
    one, other = (restore_params(run)[0]["layer_0"]["mlp"]["up"]["kernel"] for run in runs)
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3
    capsys.readouterr()
    assert main([*command, "--seeds", "2", "0", "2"]) == 2
    assert capsys.readouterr().err == "error: --seeds 2 0 2 has a seed twice; give each once\n"
    assert not (tmp_path / "runs/seed-2").exists()


def test_runs_that_differ_in_their_seed_share_a_program(data):
    mesh = make_mesh(MeshConfig(data=1))
    configs = [classification_task(tiny(data, seed=seed)).config for seed in (0, 1)]
    assert configs[0].model.vocab_size == 10
    programs = [make_program(config, mesh, 24) for config in configs]
    assert programs[0] is programs[1]
    assert make_program(configs[0], mesh, 32) is not programs[0]
    states = [programs[0].init(seed).params["embed"]["embedding"] for seed in (0, 1)]
    assert (np.asarray(states[0]) != np.asarray(states[1])).any()


def test_an_accuracy_of_as_many_texts_is_no_better_however_it_was_rounded(data):
    loss = classification_task(tiny(data)).valid_loss
    assert {loss({"accuracy": accuracy}) for accuracy in (0.7, 0.7 + 1e-9, float(np.float32(0.7)))} == {0.3}
    assert loss({"accuracy": 0.75}) < loss({"accuracy": 0.7})


def steps_of(data, mesh_config, steps, **changes):
    """Metrics of the first steps and of an evaluation after them."""
    config = tiny(data, mesh=mesh_config, model={"dropout": 0.0, "vmask": False}, **changes)
    mesh = make_mesh(mesh_config)
    task = classification_task(config)
    program = make_program(task.config, mesh, task.pace.steps)
    state, batches, found = drawn_state(program), task.train_batches(), []
    for _ in range(steps):
        state, values = program.step(state, loop._to_devices(next(batches), program))
        found.append({name: float(value) for name, value in values.items()})
    batches.close()
    return [*found, loop.evaluate(task, program, state.params)]


@functools.cache
def _on_one_device(data):
    return steps_of(data, MeshConfig(data=1), steps=4)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["8", "2x2x2"])
def test_one_and_eight_devices_train_alike(data, mesh):
    # Nothing is drawn: a batch that is taken in other parts draws other noise.
    for got, expected in zip(steps_of(data, mesh, steps=4), _on_one_device(data), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def test_parts_of_a_batch_give_the_whole_batchs_gradient(data):
    """In float64, with filler rows: three of four parts of two rows have a text, one of them a single one."""
    with jax.enable_x64(True):
        types = {"param_dtype": "float64", "compute_dtype": "float64", "dropout": 0.0, "vmask": False}
        config, mesh = tiny(data, model=types | {"vocab_size": 10}), make_mesh(MeshConfig(data=1))
        learner, ends = classification_learner(config, mesh), []
        for parts in (1, 4):
            parted = dataclasses.replace(learner, parts=lambda batch, n=parts: n)
            program = compile_program(parted, optax.sgd(1.0), lambda step: 1.0, mesh)
            ends.append(program.step(drawn_state(program), jax.device_put(_half_filled(), batch_sharding(mesh))))
        (one, whole), (other, parted) = ends
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one.params, other.params)
        assert {name: float(x) for name, x in parted.items()} == pytest.approx(
            {name: float(x) for name, x in whole.items()}, rel=1e-9)


def _half_filled():
    rng, lengths = np.random.default_rng(0), np.array([5, 3, 1, 7, 0, 0, 0, 0])
    mask = (np.arange(8) < lengths[:, None]).astype(np.float32)
    order = [0, 4, 1, 5, 2, 6, 7, 3]  # part i takes rows i and i + 4
    tokens = np.where(mask > 0, rng.integers(1, 10, (8, 8)), 0).astype(np.int32)
    batch = {"tokens": tokens, "mask": mask, "labels": np.int32([1, 0, 0, 1, 0, 0, 0, 0]),
             "weight": (lengths > 0).astype(np.float32)}
    return {name: rows[order] for name, rows in batch.items()}


def test_a_gated_classifier_with_the_papers_padding_trains_by_its_config_alone(data, tmp_path):
    model = {"ablation": "local", "k_attention": 3, "k_neurons": 4, "padding": "paper"}
    objective = {"stream": "both", "importance_site": "neurons", "information": 0.1}
    result = train(tiny(data, model=model, objective=objective, epochs=1), tmp_path / "run")
    assert result.reason == "finished" and {"importance", "accuracy_ablated"} <= result.valid.keys()
    assert all(np.isfinite(value) for value in (result.metrics | result.valid).values())


def test_the_decoder_trains_with_safrs_terms_by_its_config_alone(tmp_path):
    shape = {"vocab_size": 320, "context_length": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}
    config = Config(
        model=ModelConfig(**shape, k_attention=3, k_neurons=4),
        objective=ObjectiveConfig(importance=0.5, interaction=0.5),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir=str(tmp_path / "data"), embedded_stories=30,
                        embedded_valid_stories=5),
        train=TrainConfig(steps=2, batch_size=8, sequence_length=8, eval_every=2, eval_batches=1, tensorboard=False),
        mesh=MeshConfig(data=1),
    )
    mesh = make_mesh(config.mesh)
    task, program = loop.open_task(config, mesh), make_program(config, mesh, 2)
    evaluated = loop.evaluate(task, program, drawn_state(program).params)
    state, metrics = program.step(drawn_state(program), loop._to_devices(next(task.train_batches()), program))
    assert int(state.step) == 1
    for values in (metrics, evaluated):
        terms = 0.5 * (values["loss_clean"] + values["loss_ablated"] + values["importance"] + values["interaction"])
        assert values["loss"] == pytest.approx(float(terms), rel=1e-4)


@pytest.fixture
def workdir(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_score_runs_every_suite_of_classifiers(workdir):
    run_command("score", "--workdir", workdir)
    found = files.read(workdir)
    assert list(found.suites) == ["classification", "superposition", "importance", "explanations"]
    assert found.step == restore_params(workdir, step="best")[1]
    assert list(shown_results(workdir / "report.html")["suites"]) == list(found.suites)


def test_suites_of_the_other_kind_of_run_are_refused(workdir, capsys):
    line = error_of(capsys, "score", "--workdir", workdir, "--suites", "perplexity")
    assert "suite 'perplexity' does not fit: it measures language models; leave it out of --suites" in line
    (workdir / "config.json").write_text(json.dumps(to_dict(Config())))
    line = error_of(capsys, "score", "--workdir", workdir, "--suites", "superposition")
    assert "suite 'superposition' does not fit: it measures text classifiers" in line


def test_data_that_changed_since_training_is_refused(workdir, data, tmp_path, capsys):
    refused = {"dev": (CheckpointError, "was trained with data_hash="), "train": (DataError, "cursor has data_hash=")}
    for split, (kind, message) in refused.items():
        changed = Path(shutil.copytree(data, tmp_path / split))
        lines = (changed / f"{split}.txt").read_text().splitlines()
        (changed / f"{split}.txt").write_text("\n".join([*lines[1:], lines[0]]))
        stored = json.loads((workdir / "config.json").read_text())
        stored["data"]["path"] = str(changed)
        (workdir / "config.json").write_text(json.dumps(stored))
        line = error_of(capsys, "score", "--workdir", workdir, "--suites", "classification")
        assert f"the {split} data in '{changed}' is not the run's" in line
        with pytest.raises(kind, match=message):
            train(tiny(str(changed)), workdir)
    assert not (workdir / "results.json").exists()


def test_an_unknown_task_is_one_clear_line(workdir, capsys):
    stored = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(stored | {"task": "regression"}))
    line = error_of(capsys, "score", "--workdir", workdir)
    assert "config.json" in line and "task='regression' must be one of language, classification" in line


def test_what_balancing_leaves_out_is_said(tmp_path):
    write_trees(tmp_path, SENTENCES, [4] * 6 + [0] * 2)
    assert "4 training texts (4 more of the larger class left out by data.balance)" in classification_task(
        tiny(str(tmp_path))).about
    assert "8 training texts, " in classification_task(
        dataclasses.replace(tiny(""), data=SentimentDataConfig(path=str(tmp_path), balance=False))).about


def test_a_vocabulary_larger_than_the_models_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(ConfigError, match=r"model.vocab_size=9 is below the 10 tokens .* set it to 0"):
        train(tiny(data, model={"vocab_size": 9}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_split_over_the_devices_is_refused(data, tmp_path):
    config = dataclasses.replace(tiny(data, batch_size=12), mesh=MeshConfig())
    with pytest.raises(ConfigError, match=r"12 rows \(train.batch_size\) must be a multiple of 8"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
