"""Files of results, graphs, circuits and prompts that hold anything else give one line, and never half a report."""

import dataclasses
import json
import os
import random

import pytest
from helpers.commands import ROOT
from helpers.results import ALL_PANELS, HEATMAP, NETWORK, record, results

from faults.damage import OTHERS, other_value, refusal
from faults.hostile import JSON
from jaxablate import stats
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.formats import is_mib, load_circuit, load_mib, save_circuit
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.tasks import PromptText, load_prompts
from jaxablate.commands.match import clean_loss
from jaxablate.commands.neurons import neuron_tables
from jaxablate.errors import DataError, FileError
from jaxablate.files import DEEPEST_JSON, LARGEST_WHOLE, finite, parse_json
from jaxablate.reports import compare as comparisons
from jaxablate.reports import results as files
from jaxablate.reports import tables
from jaxablate.reports.compare import ScoredRun, compare
from jaxablate.reports.explorer import ShownRun, build, read_history, thinned
from jaxablate.reports.html import draw
from jaxablate.reports.neuron_graph import neuron_page
from jaxablate.reports.neuron_records import (
    INDEX,
    ExampleRecord,
    NeuronRecord,
    NodeRecord,
    Scores,
    named_before,
    read_index,
    read_record,
    search,
    to_json,
)
from jaxablate.reports.panels import Edge, panel_from_dict
from jaxablate.reports.results import Figure
from jaxablate.stats import Estimate


def measured(panels=ALL_PANELS):
    figures = [Figure("f", None), Figure("g", 1.5, "nats", "down"),
               Figure("h", Estimate(3, 1, 5, n=9), range=stats.COUNT)]
    return results(suites={"s": record("s", figures, panels)})


def plain(found):
    return json.loads(json.dumps(finite(dataclasses.asdict(found))))


def show(found):
    """Everything that is made of results without a model."""
    comparison = compare([ScoredRun(name="a", results=found), ScoredRun(name="b", results=results())])
    build([ShownRun(name="a", results=found), ShownRun(name="a", results=results())])
    for panel in (panel for suite in found.suites.values() for panel in suite.panels):
        draw(panel)
    for view in (tables.csv_text, tables.markdown, tables.latex):
        view(comparisons.data_table(comparison))
    tables.score_table(found)
    tables.first_passages(found)


@pytest.mark.parametrize("panels", [ALL_PANELS[i : i + 2] for i in range(0, len(ALL_PANELS), 2)],
                         ids=lambda p: p[0].kind)
def test_results_with_any_value_exchanged_are_refused_in_one_line_or_shown(tmp_path, panels):
    """Fields of other types passed `read` and raised KeyError, TypeError and AttributeError in table and report."""
    rng, whole = random.Random(panels[0].kind), plain(measured(panels))
    (tmp_path / "results.json").write_text(json.dumps(whole))
    assert files.read(tmp_path) == measured(panels)
    refused = 0
    for _ in range(30):
        where, changed = other_value(whole, rng)
        if rng.random() < 0.3 and isinstance(changed, dict):
            where, changed = other_value(changed, rng)
        (tmp_path / "results.json").write_text(json.dumps(changed))
        message = refusal(lambda: files.read(tmp_path), FileError)
        if message is None:
            show(files.read(tmp_path))
        else:
            refused += 1
            assert "jaxablate score --workdir" in message, where
    assert refused > 10


@pytest.mark.parametrize(("path", "value", "place"), [
    (("suites", "s", "panels", 0, "bars", 1, "label"), 5, r"\$.bars\[1\].label`, of panel 0, of suite s"),
    (("suites", "s", "figures", 2, "better"), "sideways", r"\$.better`, of figure 2, of suite s"),
    (("suites", "s", "provenance", "device"), None, r"\$.provenance.device`, of suite s"),
    (("config", "model", "n_layers"), "2", r"\$.n_layers`, of config.model"),
    (("step",), "6", r"\$.step"), (("suites", "s", "panels", 0, "kind"), [], "kind .* of panel 0"),
])
def test_the_place_of_what_is_wrong_is_named(tmp_path, path, value, place):
    changed = plain(measured((ALL_PANELS[1],)))
    *outer, last = path
    inner = changed
    for key in outer:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "results.json").write_text(json.dumps(changed))
    with pytest.raises(FileError, match=place):
        files.read(tmp_path)


@pytest.mark.parametrize("content", JSON, ids=lambda x: ascii(x[:9]))
def test_files_that_are_no_results(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(FileError) as error:
        files.read(tmp_path)
    assert "\n" not in str(error.value)


def test_results_of_schema_1_with_any_value_exchanged():
    old, rng = json.loads((ROOT / "tests" / "golden" / "results_schema_1.json").read_text()), random.Random(1)
    for _ in range(40):
        _, changed = other_value(old, rng)
        refusal(lambda changed=changed: files.from_dict(changed), ValueError)


def test_numbers_that_are_not_finite_come_back_in_panels():
    """A curve or heat map with a NaN could be written but not drawn again."""
    panel = dataclasses.replace(HEATMAP, values=((float("nan"), 2.0), (0.0, 3.0)))
    found = panel_from_dict(json.loads(json.dumps(finite(dataclasses.asdict(panel)))))
    assert found.values[0][0] != found.values[0][0] and found.values[1] == (0.0, 3.0)
    assert draw(found)


def test_ties_without_any_weight_are_drawn():
    nothing = dataclasses.replace(NETWORK, edges=(Edge(first=0, second=1, weight=0.0),))
    assert draw(nothing)


@pytest.mark.parametrize("losses", [*OTHERS, [5], [{"stream": "clean"}], [{"stream": "clean", "end_of_text": True,
                                                                         "loss": "x"}]], ids=lambda x: str(x)[:20])
def test_stored_losses_of_another_kind_count_as_not_measured(losses):
    """`match` raised StopIteration or TypeError on results without the losses that it looks for."""
    found = results(suites={"perplexity": dataclasses.replace(record(), details={"losses": losses})})
    assert clean_loss(found) is None
    loss = [{"stream": "clean", "end_of_text": True, "loss": dataclasses.asdict(Estimate(2.0))}]
    assert clean_loss(results(suites={"perplexity": dataclasses.replace(record(), details={"losses": loss})})
                      ) == Estimate(2.0)


@pytest.mark.parametrize("line", ['{"step": 1, "split": "train", "loss_clean": "x"}', '{"step": 1e9}', "{}",
                                  '{"step": true, "split": "train", "loss_clean": 1}',
                                  '{"step": 2, "split": "train", "loss_clean": 1' + "0" * 400 + "}",
                                  '{"step": 1' + "0" * 400 + ', "split": "train", "loss_clean": 1}'])
def test_lines_of_a_log_that_cannot_be_drawn_are_left_out(tmp_path, line):
    good = '{"step": 1, "split": "train", "loss_clean": 2.0}'
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n")
    (metric,) = thinned(read_history(tmp_path / "metrics.jsonl")).metrics
    assert metric.values[0] == 2.0


def test_json_that_could_not_be_written_again_is_refused():
    """An object nested a few hundred deep was read, and raised RecursionError when it was written again."""
    deep = "[" * (DEEPEST_JSON + 1) + "]" * (DEEPEST_JSON + 1)
    for text, reason in ((f'{{"a": {deep}}}', "nested more than"), (f'{{"a": [{LARGEST_WHOLE + 1}]}}', "whole number")):
        with pytest.raises(FileError, match=reason):
            parse_json(text, what="a thing", fix="mend it", where="x")
    assert parse_json(f'{{"a": {LARGEST_WHOLE}}}', what="a thing", fix="", where="x") == {"a": LARGEST_WHOLE}


# --- neurons' graphs ---

DOG = NodeRecord(parent=None, offset=0, tokens=(" dog",), ids=(3,), importance=1.0, strength=None, examples=0)
GRAPH = NeuronRecord(
    neuron="1.7", site="clean.layer_1.mlp_post", strongest=3.0, threshold=1.5,
    nodes=(DOG, dataclasses.replace(DOG, parent=0, offset=1, strength=0.9, examples=2),
           dataclasses.replace(DOG, parent=0, offset=1, tokens=None, ids=None, importance=None),
           dataclasses.replace(DOG, parent=2, offset=2, strength=1.0, examples=1)),
    scores=Scores(tokens=1000, fires=10, predicted=8, hits=6, precision=0.75, recall=0.6, f1=Estimate(0.6, 0.5, 0.8),
                  f1_shuffled=0.01, f1_pivot=0.4),
    examples=(ExampleRecord(tokens=(" a", "\n", " dog"), ids=(0, 2, 3), activation=3.0, suffix=2, importance=(0.8, 1.0),
                            named=(0, 1)), ExampleRecord(tokens=(" dog",), ids=(3,), activation=2.0)))


def test_graphs_of_neurons_with_any_value_exchanged(tmp_path):
    rng, whole = random.Random(0), json.loads(to_json(GRAPH))
    path, refused = tmp_path / "neuron_7.json", 0
    for version in (2, 1):
        scores = whole["scores"] if version == 2 else whole["scores"] | {"f1": 0.6, "f1_interval": [0.5, 0.8]}
        for _ in range(50):
            _, changed = other_value(whole | {"version": version, "scores": scores}, rng)
            path.write_text(json.dumps(changed))
            if refusal(lambda: read_record(path), FileError) is None:
                neuron_page([read_record(path)], "t", "c")
                neuron_tables(read_record(path))
            else:
                refused += 1
    assert refused > 30


@pytest.mark.parametrize(("i", "change"), [(0, {"parent": 0}), (1, {"parent": 1}), (1, {"parent": 10**9}),
                                           (0, {"offset": 10**12}), (1, {"parent": -1})], ids=str)
def test_nodes_that_lead_in_circles_or_nowhere_are_refused(i, change):
    """A node that is its own parent was followed for ever, and a giant offset took all memory."""
    nodes = list(GRAPH.nodes)
    nodes[i] = dataclasses.replace(nodes[i], **change)
    with pytest.raises(ValueError, match="cannot have the parent"):
        dataclasses.replace(GRAPH, nodes=tuple(nodes))


def test_an_index_with_any_value_exchanged(tmp_path):
    entry = {"neuron": "0.1", "strongest": 1.0, "f1": 0.5, "precision": None, "recall": 0.1, "fires": 3,
             "patterns": [{"tokens": [[1, 2], None, [3]], "strength": 0.5, "examples": 1}]}
    about = {"step": 6, "params_digest": "ab", "settings": {"units": "neurons"},
             "provenance": {"revision": None, "date": "d", "versions": {}}}
    whole = {"format": "jaxablate neuron graphs", "version": 2, "about": about, "summary": {}, "layers": [{}],
             "units": 2, "neurons": [entry]}
    rng = random.Random(0)
    for _ in range(150):
        _, changed = other_value(whole, rng)
        (tmp_path / INDEX).write_text(json.dumps(changed))
        if refusal(lambda: read_index(tmp_path, "command"), FileError) is None:
            search(read_index(tmp_path, "command"), [3, 7, 1])
            named_before(read_index(tmp_path, "command"), 3)


# --- circuits and prompts ---


@pytest.mark.parametrize("load", [load_circuit, load_mib])
@pytest.mark.parametrize("content", JSON, ids=lambda x: ascii(x[:9]))
def test_files_that_are_no_circuits(tmp_path, load, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        load(tmp_path / "c.json")
    assert "\n" not in str(error.value) and not is_mib(tmp_path / "c.json")


def test_a_few_bytes_ask_for_no_giant_graph(tmp_path):
    """A file of 100 bytes could say that its model has 1,000 layers of 1,000 heads, and took all memory."""
    shape = {"n_layers": 1000, "n_heads": 1000}
    own = {"format": "jaxablate circuit", "version": 1, "graph": shape, "kept": {}}
    for load, values in ((load_circuit, own), (load_mib, {"cfg": shape, "nodes": {}, "edges": {}})):
        (tmp_path / "c.json").write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"1000 layers of 1000 heads, whose graph has 1,500,503,501,501 edges"):
            load(tmp_path / "c.json")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (8, 16)])
def test_the_limit_counts_edges_as_the_graph_does(tmp_path, monkeypatch, shape):
    path, edges = tmp_path / "c.json", Graph(*shape).n_edges
    path.write_text(json.dumps({"cfg": dict(zip(("n_layers", "n_heads"), shape, strict=True)), "nodes": {},
                                "edges": {}}))
    monkeypatch.setattr("jaxablate.circuits.formats.MOST_EDGES", edges)
    load_mib(path)
    monkeypatch.setattr("jaxablate.circuits.formats.MOST_EDGES", edges - 1)
    with pytest.raises(DataError, match=f"{edges:,} edges"):
        load_mib(path)


def test_circuits_with_any_value_exchanged(tmp_path):
    graph = Graph(2, 2)
    path = save_circuit(Circuit.of_edges(graph, ["Resid Start->Resid End"], about={"a": 1}), tmp_path / "c.json")
    whole, rng = json.loads(path.read_text()), random.Random(0)
    for _ in range(80):
        _, changed = other_value(whole, rng)
        path.write_text(json.dumps(changed))
        if refusal(lambda: load_circuit(path), DataError) is None:
            save_circuit(load_circuit(path), tmp_path / "again.json")


def test_what_a_circuit_says_of_itself_can_be_written_again(tmp_path):
    path = save_circuit(Circuit.of_edges(Graph(1, 1), []), tmp_path / "c.json")
    deep = json.loads("[" * 300 + "]" * 300)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"about": {"x": deep}}))
    with pytest.raises(DataError, match="nested more than"):
        load_circuit(path)


def test_a_byte_order_mark_is_no_part_of_a_circuit(tmp_path):
    path = save_circuit(Circuit.of_edges(Graph(1, 1), []), tmp_path / "c.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_circuit(path).n_kept == 0


@pytest.mark.parametrize("load", [load_circuit, load_mib, load_prompts, lambda path: files.read(path.parent)])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, load):
    """Reading a named pipe that nobody writes to never ended."""
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises((DataError, FileError), match="a pipe or a device"):
        load(tmp_path / "results.json")


@pytest.mark.parametrize("content", JSON, ids=lambda x: ascii(x[:9]))
def test_files_that_are_no_prompts(tmp_path, content):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_prompts(tmp_path / "p.json")
    assert "\n" not in str(error.value)


def test_prompts_are_unicode():
    with pytest.raises(DataError, match="half of a surrogate pair"):
        PromptText(clean="a\ud800", corrupt="b", answers=(" c",), wrong_answers=(" d",))
