"""eval.py neurons: end to end on a tiny model, interrupted and gone on with, searched and shown, and bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.scripts import ROOT, load_script

from jaxablate.commands import neurons as neuron_runner
from jaxablate.commands import neurons_files as neuron_files
from jaxablate.commands.neurons_search import contexts, search
from jaxablate.commands.neurons_settings import NeuronSettings
from jaxablate.config import ClassificationConfig, Config, DataConfig, ModelConfig, TrainConfig, to_dict
from jaxablate.data.preparation import prepare
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.reports.neuron_records import read_record
from jaxablate.runs.checkpoint import Checkpoints
from jaxablate.training.program import TrainState

evaluation = load_script("eval")
FEW = ("--examples", "6", "--build", "3", "--context", "8", "--candidates", "2", "--tokens", "1024",
       "--score-tokens", "1500", "--batch-size", "8")
LAYERS, UNITS = 2, 24


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two blocks of 24 neurons, its parameters as they were drawn."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "run"
    config = Config(
        model=ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=LAYERS, n_heads=2, d_mlp=UNITS,
                          k_attention=3, k_neurons=5, ablation="local"),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir=str(folder / "data"), embedded_stories=60,
                        embedded_valid_stories=40),
        train=TrainConfig(steps=2, batch_size=8, sequence_length=32),
    )
    model = SelfAblatingTransformer(config.model)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    checkpoints = Checkpoints(run, 1)
    checkpoints.save(TrainState(step=jnp.int32(2), params=params, opt_state=(), key=jax.random.key(0)), {})
    checkpoints.close()
    data = prepare(config.data)
    data.tokenizer.save(run / "tokenizer")
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    (run / "run.json").write_text(json.dumps({"data_hash": {"train": data.train.data_hash}}))
    return run


def neurons(workdir, *arguments):
    return evaluation.main(["neurons", "--workdir", str(workdir), *map(str, arguments)])


def error_of(capsys, workdir, *arguments):
    """Runs eval.py neurons, which must fail as a user's error does, and gives its one line."""
    assert neurons(workdir, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def made(workdir, tmp_path_factory):
    """Folder of the graphs."""
    folder = tmp_path_factory.mktemp("made") / "graphs"
    assert neurons(workdir, *FEW, "--out", folder) == 0
    return folder


def files(folder):
    """Content of every file but the index, whose date differs, and what is kept beside it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix in (".json", ".svg") and p.name != "index.json"}


def test_every_neuron_has_its_files_and_its_line_in_the_index(made):
    index = json.loads((made / "index.json").read_text())
    assert [x["neuron"] for x in index["neurons"]] == [f"{i}.{u}" for i in range(LAYERS) for u in range(UNITS)]
    assert len(files(made)) == 2 * LAYERS * UNITS and not list(made.glob(".layer_*"))
    about = index["about"]
    assert about["step"] == 2 and about["settings"]["build"] == 3 and "versions" in about["provenance"]
    for entry in index["neurons"]:
        record = read_record(neuron_files.neuron_file(made, entry["neuron"]))
        assert record.threshold == pytest.approx(record.strongest / 2, rel=1e-5) and len(record.examples) == 6
        assert len(record.paths()) == len(entry["patterns"]) and record.scores.f1 == entry["f1"]
        assert all(len(e.tokens) <= 8 for e in record.examples)
        assert [e.suffix is None for e in record.examples[3:]] == [True] * 3
    whole = index["summary"]
    assert whole["units"] == LAYERS * UNITS and whole["scored"] + whole["rare"] + whole["inactive"] == LAYERS * UNITS
    low, high = whole["intervals"]["f1"]
    assert low <= whole["f1"] <= high and set(whole["intervals"]) == {"precision", "recall", "f1", "f1_shuffled",
                                                                     "f1_pivot", "gain"}


def test_an_interrupted_job_goes_on_and_ends_the_same(workdir, made, tmp_path, monkeypatch, capsys):
    folder, write = tmp_path / "graphs", neuron_files.write_layer

    def interrupted(path, number, *rest):
        if number == 1:
            (folder / ".layer_1.left").mkdir()
            raise KeyboardInterrupt
        write(path, number, *rest)

    monkeypatch.setattr(neuron_files, "write_layer", interrupted)
    with pytest.raises(SystemExit, match="130"):
        neurons(workdir, *FEW, "--out", folder)
    assert "stopped; the layers in" in capsys.readouterr().err
    assert not (folder / "index.json").exists() and (folder / "layer_0").exists()
    assert "a job was begun and not finished" in error_of(capsys, workdir, "--out", folder, "--search", " was")
    monkeypatch.undo()
    assert neurons(workdir, *FEW, "--out", folder) == 0
    assert "going on with an interrupted job: 1 of 2 layers are done" in capsys.readouterr().out
    assert files(folder) == files(made) and not list(folder.glob(".layer_*"))


def test_finished_graphs_are_not_made_again_and_other_settings_replace_them(workdir, made, tmp_path, capsys):
    folder = tmp_path / "graphs"
    shutil.copytree(made, folder)
    assert neurons(workdir, *FEW, "--out", folder) == 0
    assert "all layers were made before" in capsys.readouterr().out
    assert neurons(workdir, *FEW, "--seed", 1, "--out", folder) == 0
    assert "all layers were made before" not in capsys.readouterr().out
    assert json.loads((folder / "index.json").read_text())["about"]["settings"]["seed"] == 1


def test_other_streams_and_units(workdir, capsys):
    assert neurons(workdir, *FEW, "--stream", "ablated", "--units", "channels") == 0
    folder = workdir / "neurons" / "graphs-ablated-channels"
    index = json.loads((folder / "index.json").read_text())
    assert index["units"] == 16 and len(index["neurons"]) == LAYERS * 16
    assert read_record(folder / "layer_1" / "neuron_3.json").site == "ablated.layer_1.head_out"
    assert "eval.py neurons --workdir" in error_of(capsys, workdir, "--search", " was")


def test_search_finds_neurons_by_the_end_of_a_text(workdir, made, capsys):
    index = json.loads((made / "index.json").read_text())
    entry = max((x for x in index["neurons"] if x["patterns"]), key=lambda x: len(x["patterns"]))
    pivot = entry["patterns"][0]["tokens"][0][0]
    found = {x.neuron: x for x in search(index, [pivot])}
    assert entry["neuron"] in found and 0 < found[entry["neuron"]].strength <= 1
    text = load_tokenizer(workdir / "tokenizer").decode([pivot])
    assert neurons(workdir, "--out", made, "--search", text) == 0
    assert "whose graph fires at the end of" in capsys.readouterr().out


def test_search_by_hand():
    def entry(name, f1, *patterns):
        return {"neuron": name, "f1": f1, "precision": f1,
                "patterns": [{"tokens": list(p), "strength": s, "examples": 1} for p, s in patterns]}

    index = {"neurons": [entry("0.0", 0.5, (([1],), 0.8)), entry("0.1", 0.9, (([1], None, [2]), 0.9)),
                         entry("0.2", None, (([1, 3], [4]), 0.7), (([9],), 1.0)), entry("0.3", 0.1)]}
    assert [(x.neuron, x.conditional) for x in search(index, [1])] == [("0.0", False), ("0.1", True), ("0.2", True)]
    assert [(x.neuron, x.conditional) for x in search(index, [4, 1])] == [("0.0", False), ("0.2", False), ("0.1", True)]
    assert [x.neuron for x in search(index, [2, 5, 1])] == ["0.1", "0.0"] and search(index, [7]) == []
    assert contexts(index, 4) == [("0.2", 1)] and contexts(index, 1) == []


def test_show_prints_neurons_and_writes_their_page(workdir, made, capsys):
    assert neurons(workdir, "--out", made, "--show", "1.03", "0.5", "1.3") == 0
    said = capsys.readouterr().out
    assert "where it is strongest" in said and "neurons-1.3-0.5.html" in said.replace("\n", "")
    page = (made / "neurons-1.3-0.5.html").read_text()
    assert "Neuron 1.3" in page and page.count("<svg") == 2 and "Neurons 1.3, 0.5 of run" in page


def test_searching_loads_no_jax(workdir, made):
    code = ("import sys, pathlib; from jaxablate.evaluation.neurons import lookup, view\n"
            "from jaxablate.commands.neurons_settings import NeuronSettings\n"
            f"w, o = pathlib.Path({str(workdir)!r}), pathlib.Path({str(made)!r})\n"
            "s = NeuronSettings(workdir=w, out=o, search=' was')\n"
            "view.search_tables(lookup.find(s)); print('jax' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("arguments", "line"), [
    (("--show", "2.0"), "neuron 2.0 does not exist; there are layers 0..1 of neurons 0..23"),
    (("--show", "0.24"), "neuron 0.24 does not exist; there are layers 0..1 of neurons 0..23"),
    (("--show", "first"), "'first' names no neuron; give layer.number, for example 3.17"),
    (("--search", " zebra"), "is not among the 318 words"),
    (("--search", ""), 'has no text; give some, for example --search " dog"'),
    (("--search", " was", "--show", "0.1"), "--search and --show are two commands"),
    (("--examples", "40", "--tokens", "1024"), "1,024 tokens of training text are too few: 40 examples of windows of "
     "32 tokens need at least 1,280"),
    (("--score-tokens", "100"), "100 tokens of validation text are too few to score graphs on; at least 1,000"),
    (("--build", "21"), "build=21 examples of 20 cannot be used"),
    (("--context", "64"), "context=64 must be at most the model's context_length=32"),
    (("--importance", "1.5"), "importance=1.5 must be between 0 and 1"),
    (("--checkpoint", "77"), "77"),
])
def test_bad_input_is_one_line(workdir, made, capsys, arguments, line):
    assert line in error_of(capsys, workdir, *arguments, "--out", made)


def test_runs_that_do_not_fit(workdir, tmp_path, capsys):
    assert "is not the --workdir of a training run" in error_of(capsys, tmp_path)
    for name, config in (("classifier", ClassificationConfig()), ("plain", Config())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_dict(config)))
    assert "is a text classifier's run; graphs are made of the neurons" in error_of(capsys, tmp_path / "classifier")
    plain = dataclasses.replace(Config().model, ablation="none")
    (tmp_path / "plain" / "config.json").write_text(json.dumps(to_dict(dataclasses.replace(Config(), model=plain))))
    assert "has ablation='none'; take --stream clean" in error_of(capsys, tmp_path / "plain", "--stream", "ablated")


def test_damaged_parameters_and_files(workdir, made, tmp_path, capsys, monkeypatch):
    restore = neuron_runner.restore_params

    def damaged(*arguments, **options):
        params, step = restore(*arguments, **options)
        kernel = params["layer_1"]["mlp"]["up"]["kernel"]
        return params | {"layer_1": params["layer_1"] | {"mlp": params["layer_1"]["mlp"] | {
            "up": params["layer_1"]["mlp"]["up"] | {"kernel": kernel.at[0, 7].set(np.nan)}}}}, step

    monkeypatch.setattr(neuron_runner, "restore_params", damaged)
    assert "unit 1.7 and 0 others have activations that are NaN" in error_of(capsys, workdir, *FEW, "--out", tmp_path)
    assert not list(tmp_path.glob("layer_*")) and not (tmp_path / "index.json").exists()
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (folder / "layer_0" / "neuron_3.json").write_text("{")
    assert "cannot be read as a neuron's graph" in error_of(capsys, workdir, "--out", folder, "--show", "0.3")
    (folder / "index.json").write_text("[]")
    assert "cannot be read" in error_of(capsys, workdir, "--out", folder, "--search", " was")


def test_a_folder_that_cannot_be_written(workdir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error_of(capsys, workdir, *FEW, "--out", tmp_path / "file" / "graphs")


def test_settings():
    with pytest.raises(ConfigError, match="seed=-1 must not be negative"):
        NeuronSettings(workdir=ROOT, seed=-1).check()
    other = NeuronSettings(workdir=ROOT / "x", stream="ablated")
    assert other.folder() == ROOT / "x" / "neurons" / "graphs-ablated" and "--stream ablated" in other.command()
