"""`jaxablate neurons`: end to end on a tiny model, interrupted and gone on with, searched and shown, and bad input."""

import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import commands
from helpers.commands import ROOT, run_command

from jaxablate.commands import neuron_graphs
from jaxablate.commands.neurons import NeuronsSettings
from jaxablate.config import ClassificationConfig, Config, ModelConfig, to_dict
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError
from jaxablate.reports.neuron_records import GraphOptions, named_before, neuron_file, read_index, read_record, search
from jaxablate.runs import run as runs

FEW = ("--examples", 6, "--build", 3, "--context", 8, "--candidates", 2, "--tokens", 1024, "--score-tokens", 1500,
       "--batch-size", 8, "--importance", 0.02)
CHANNELS = ("--stream", "ablated", "--units", "channels")
LAYERS, UNITS = 2, 64


def neurons(workdir, *arguments):
    run_command("neurons", "--workdir", workdir, *arguments)


def error_of(capsys, workdir, *arguments):
    return commands.error_of(capsys, "neurons", "--workdir", workdir, *arguments)


@pytest.fixture(scope="module")
def graphs(language_run, tmp_path_factory):
    """Folder of the graphs."""
    folder = tmp_path_factory.mktemp("made") / "graphs"
    neurons(language_run, *FEW, "--out", folder)
    return folder


def contents(folder):
    """Content of every file but the index, whose date differs, and what is kept beside it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix in (".json", ".svg") and p.name != "index.json"}


def test_every_neuron_has_its_files_and_its_line_in_the_index(graphs):
    index = read_index(graphs, "")
    assert [x["neuron"] for x in index["neurons"]] == [f"{i}.{u}" for i in range(LAYERS) for u in range(UNITS)]
    assert len(contents(graphs)) == 2 * LAYERS * UNITS and not list(graphs.glob(".*.partial"))
    about = index["about"]
    assert about["step"] == 6 and about["settings"]["build"] == 3 and "versions" in about["provenance"]
    lengths = set()
    for entry in index["neurons"]:
        record = read_record(neuron_file(graphs, entry["neuron"]))
        assert record.threshold == pytest.approx(record.strongest / 2, rel=1e-5) and len(record.examples) == 6
        assert record.scores.f1.value == entry["f1"]
        assert [p["tokens"] for p in entry["patterns"]] == [
            [next((list(n.ids) for n in path if n.offset == o and n.ids), None) for o in range(len(path))]
            for path in record.paths()]  # read back from the pivot
        lengths |= {len(p["tokens"]) for p in entry["patterns"]}
        assert all(len(e.tokens) <= 8 for e in record.examples)
        assert [e.suffix is None for e in record.examples[3:]] == [True] * 3
    assert max(lengths) > 1
    whole = index["summary"]
    assert whole["units"] == LAYERS * UNITS and whole["scored"] + whole["rare"] + whole["inactive"] == LAYERS * UNITS
    assert whole["f1"]["low"] <= whole["f1"]["value"] <= whole["f1"]["high"]


def test_an_interrupted_job_goes_on_and_ends_the_same(language_run, graphs, tmp_path, monkeypatch, capsys):
    folder, write = tmp_path / "graphs", neuron_graphs.write_layer

    def interrupted(path, *rest):
        if path.name == "layer_1":
            (folder / ".layer_1.left.partial").mkdir()
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(neuron_graphs, "write_layer", interrupted)
    with pytest.raises(SystemExit, match="130"):
        neurons(language_run, *FEW, "--out", folder)
    assert "stopped; the layers in" in capsys.readouterr().err
    assert not (folder / "index.json").exists() and (folder / "layer_0").exists()
    assert "a job was begun and not finished" in error_of(capsys, language_run, "--out", folder, "--search", " was")
    monkeypatch.undo()
    neurons(language_run, *FEW, "--out", folder)
    assert "going on with an interrupted job: 1 of 2 layers are done" in capsys.readouterr().out
    assert contents(folder) == contents(graphs) and not list(folder.glob(".*.partial"))


def test_finished_graphs_are_not_made_again_and_other_settings_replace_them(language_run, graphs, tmp_path, capsys):
    folder = tmp_path / "graphs"
    shutil.copytree(graphs, folder)
    neurons(language_run, *FEW, "--out", folder)
    assert "all layers were made before" in capsys.readouterr().out
    neurons(language_run, *FEW, *CHANNELS, "--seed", 1, "--out", folder)
    assert "all layers were made before" not in capsys.readouterr().out
    index = json.loads((folder / "index.json").read_text())
    assert index["about"]["settings"]["seed"] == 1 and index["units"] == 16


def test_other_streams_and_units(language_run, capsys):
    neurons(language_run, *FEW, *CHANNELS)
    folder = language_run / "neurons" / "graphs-ablated-channels"
    index = json.loads((folder / "index.json").read_text())
    assert index["units"] == 16 and len(index["neurons"]) == LAYERS * 16
    assert read_record(folder / "layer_1" / "neuron_3.json").site == "ablated.layer_1.head_out"
    assert "jaxablate neurons --workdir" in error_of(capsys, language_run, "--search", " was")


def test_search_finds_neurons_by_the_end_of_a_text(language_run, graphs, capsys):
    index = read_index(graphs, "")
    entry, pattern = next((x, p) for x in index["neurons"] for p in x["patterns"]
                          if len(p["tokens"]) == 2 and p["tokens"][0] != p["tokens"][1])
    pivot, before = (ids[0] for ids in pattern["tokens"])
    matches = {x.neuron: x for x in search(index, [before, pivot])}
    assert not matches[entry["neuron"]].conditional and 0 < matches[entry["neuron"]].strength <= 1
    assert entry["neuron"] in dict(named_before(index, before))
    text = load_tokenizer(language_run / "tokenizer").decode([before, pivot])
    neurons(language_run, "--out", graphs, "--search", text)
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
    assert named_before(index, 4) == [("0.2", 1)] and named_before(index, 1) == []


def test_an_index_of_version_1_has_its_patterns_in_the_order_of_the_text(graphs, tmp_path):
    index = json.loads((graphs / "index.json").read_text())
    older = index | {"version": 1, "neurons": [x | {"patterns": [p | {"tokens": p["tokens"][::-1]}
                                                                 for p in x["patterns"]]} for x in index["neurons"]]}
    (tmp_path / "index.json").write_text(json.dumps(older))
    assert read_index(tmp_path, "")["neurons"] == index["neurons"]


def test_show_prints_neurons_and_writes_their_page(language_run, graphs, capsys):
    neurons(language_run, "--out", graphs, "--show", "1.03", "0.5", "1.3")
    printed = capsys.readouterr().out
    assert "where it is strongest" in printed and "neurons-1.3-0.5.html" in printed.replace("\n", "")
    page = (graphs / "neurons-1.3-0.5.html").read_text()
    assert "Neuron 1.3" in page and page.count("<svg") == 2 and f"Neurons 1.3, 0.5 of {language_run.name}" in page


def test_searching_loads_no_jax(language_run, graphs):
    code = ("import sys; from jaxablate.commands.main import main\n"
            f"main(['neurons', '--workdir', {str(language_run)!r}, '--out', {str(graphs)!r}, '--search', ' was'])\n"
            "print('jax' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(("arguments", "line"), [
    (("--show", "2.0"), "neuron 2.0 does not exist; there are layers 0..1 of neurons 0..63"),
    (("--show", "0.64"), "neuron 0.64 does not exist"),
    (("--show", "first"), "'first' names no neuron"),
    (("--search", " zebra"), "is not among the 318 words"),
    (("--search", ""), "has no text"),
    (("--search", " was", "--show", "0.1"), "are two commands"),
    (("--examples", "40", "--tokens", "1024"), "1,024 tokens of training text are too few: 40 examples of windows of "
     "32 tokens need at least 1,280"),
    (("--score-tokens", "100"), "100 tokens of validation text are too few"),
    (("--build", "21"), "build=21 examples of 20"),
    (("--context", "64"), "context=64 must be at most"),
    (("--checkpoint", "77"), "77"),
])
def test_bad_input_is_one_line(language_run, graphs, capsys, arguments, line):
    assert line in error_of(capsys, language_run, *arguments, "--out", graphs)


def test_runs_that_do_not_fit(tmp_path, capsys):
    assert "is not the --workdir of a training run" in error_of(capsys, tmp_path)
    plain = Config(model=ModelConfig(ablation="none"))
    for name, config in (("classifier", ClassificationConfig()), ("plain", plain)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_dict(config)))
    assert "is a text classifier's run; graphs are made of the neurons" in error_of(capsys, tmp_path / "classifier")
    assert "has ablation='none'" in error_of(capsys, tmp_path / "plain", "--stream", "ablated")


def test_damaged_parameters_and_files(language_run, graphs, tmp_path, capsys, monkeypatch):
    @functools.wraps(runs.restore_params)
    def damaged(*arguments, restore=runs.restore_params, **options):
        params, step = restore(*arguments, **options)
        kernel = params["layer_1"]["mlp"]["up"]["kernel"]
        return params | {"layer_1": params["layer_1"] | {"mlp": params["layer_1"]["mlp"] | {
            "up": params["layer_1"]["mlp"]["up"] | {"kernel": kernel.at[0, 7].set(np.nan)}}}}, step

    monkeypatch.setattr(runs, "restore_params", damaged)
    message = error_of(capsys, language_run, *FEW, "--out", tmp_path)
    assert "unit 1.7 and 0 others have activations that are NaN" in message
    assert not list(tmp_path.glob("layer_*")) and not (tmp_path / "index.json").exists()
    folder = tmp_path / "copy"
    shutil.copytree(graphs, folder)
    (folder / "layer_0" / "neuron_3.json").write_text("{")
    assert "cannot be read as a neuron's graph" in error_of(capsys, language_run, "--out", folder, "--show", "0.3")
    (folder / "index.json").write_text("[]")
    assert "index" in error_of(capsys, language_run, "--out", folder, "--search", " was")


def test_a_folder_that_cannot_be_written(language_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error_of(capsys, language_run, *FEW, "--out", tmp_path / "file" / "graphs")


def test_settings():
    for bad in ({"seed": -1}, {"show": ("x",)}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            NeuronsSettings(workdir=ROOT, **bad)
    for bad in ({"importance": 1.5}, {"examples": 0}):
        with pytest.raises(ConfigError):
            GraphOptions(**bad)
    other = NeuronsSettings(workdir=ROOT / "x", graphs=GraphOptions(stream="ablated"))
    assert other.folder == ROOT / "x" / "neurons" / "graphs-ablated" and "--stream ablated" in other.command
