"""Circuits: what is kept, what dangles, and their files; the MIB benchmark's format both ways."""

import dataclasses
import functools
import json
import math
import os

import numpy as np
import pytest
from helpers.toy_circuits import patched_metrics, problem
from helpers.weights import drawn_params

from jaxablate import circuits
from jaxablate.circuits import effects, faithfulness
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.formats import load_circuit, load_mib, mib_edge_names, save_circuit, save_mib
from jaxablate.circuits.graph import Graph
from jaxablate.config import family
from jaxablate.errors import DataError, FileError
from jaxablate.models.decoder import SelfAblatingTransformer

GRAPH = Graph(2, 2)
PATH = {"Resid Start->A0.1.V": 0.5, "A0.1->A1.0.K": -0.25, "A1.0->Resid End": 2.0}
"""A whole way from start to end."""


def some(seed=0, graph=GRAPH, **about):
    """Random kept edges and scores, with every kind of number that is not finite."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=graph.n_edges) * 10.0 ** rng.integers(-30, 5, graph.n_edges)
    scores[:3] = math.inf, -math.inf, math.nan
    return Circuit(graph=graph, kept=rng.random(graph.n_edges) < 0.4, scores=scores, about=about)


def test_a_circuit_of_names_has_their_scores_in_the_graphs_order():
    circuit = Circuit.of_edges(GRAPH, PATH, {"method": "hand"})
    assert circuit.n_kept == 3 and circuit.about == {"method": "hand"}
    assert circuit.edge_names() == ("A1.0->Resid End", "A0.1->A1.0.K", "Resid Start->A0.1.V")
    assert circuit.scored_edges()[1] == ("A0.1->A1.0.K", -0.25)
    assert circuit.scores.sum() == 2.25 and circuit.kept.dtype == bool
    assert Circuit.of_edges(GRAPH, list(PATH)).scores.max() == 1.0
    with pytest.raises(DataError, match="did you mean 'A0.1.Q'|did you mean 'A0.1.V'"):
        Circuit.of_edges(GRAPH, ["Resid Start->A0.1.W"])


def test_arrays_that_do_not_fit_the_graph_are_refused():
    n = GRAPH.n_edges
    with pytest.raises(DataError, match=f"kept of a circuit has shape \\(3,\\), but the graph has {n} edges"):
        Circuit(graph=GRAPH, kept=np.ones(3, bool), scores=np.zeros(n))
    with pytest.raises(DataError, match="scores of a circuit has shape"):
        Circuit(graph=GRAPH, kept=np.ones(n, bool), scores=np.zeros((n, 1)))
    with pytest.raises(DataError, match="kept of float64"):
        Circuit(graph=GRAPH, kept=np.ones(n), scores=np.zeros(n))


def test_a_circuit_does_not_change_with_the_arrays_it_was_made_from():
    kept, scores = np.ones(GRAPH.n_edges, bool), np.zeros(GRAPH.n_edges, np.float32)
    circuit = Circuit(graph=GRAPH, kept=kept, scores=scores)
    kept[:], scores[:] = False, 5
    assert circuit.n_kept == GRAPH.n_edges and circuit.scores.max() == 0 and circuit.scores.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        circuit.kept[0] = False


def test_dangling_edges_are_those_off_every_path():
    dangling = {"Resid Start->A0.0.Q": 1.0,  # A0.0 leads nowhere
                "A0.0->A1.1.V": 1.0,  # reached from the start, but A1.1 leads nowhere
                "MLP 0->A1.0.Q": 1.0,  # leads to the end, but nothing leads to MLP 0
                "A1.1->MLP 1": 1.0}  # neither on to the end ... nor, without the edges above, from the start
    circuit = Circuit.of_edges(GRAPH, PATH | dangling)
    assert set(circuit.connected().edge_names()) == set(PATH)
    assert set(circuit.connected("end").edge_names()) == {*PATH, "MLP 0->A1.0.Q"}
    assert set(circuit.connected("start").edge_names()) == {*PATH, "Resid Start->A0.0.Q", "A0.0->A1.1.V", "A1.1->MLP 1"}
    assert circuit.connected().scores.tolist() == circuit.scores.tolist()


def by_paths(circuit):
    """Edges on a path from start to end, by walking every way there is."""
    links, found = {}, set()
    for name in circuit.edge_names():
        source, _, target = name.partition("->")
        links.setdefault(source, []).append((target.removesuffix(".Q").removesuffix(".K").removesuffix(".V"), name))
    def walk(node, behind):
        if node == "Resid End":
            found.update(behind)
        for target, name in links.get(node, []):
            walk(target, (*behind, name))
    walk("Resid Start", ())
    return found


@pytest.mark.parametrize("seed", range(8))
def test_connected_edges_are_those_on_a_path(seed):
    rng = np.random.default_rng(seed)
    kept = rng.random(GRAPH.n_edges) < rng.choice([0.1, 0.2, 0.4])
    circuit = Circuit(graph=GRAPH, kept=kept, scores=np.zeros(GRAPH.n_edges))
    assert set(circuit.connected().edge_names()) == by_paths(circuit)
    assert (circuit.kept >= circuit.reaching_end).all() and (circuit.kept >= circuit.reached_from_start).all()


def test_extremes_of_connection():
    every = Circuit(graph=GRAPH, kept=np.ones(GRAPH.n_edges, bool), scores=np.zeros(GRAPH.n_edges))
    assert every.connected().n_kept == GRAPH.n_edges
    none = every.restrict(np.zeros(GRAPH.n_edges, bool))
    assert none.connected().n_kept == 0 and none.edge_names() == () and none.scored_edges() == ()


def test_restriction_by_scores_of_either_ranking():
    scores = {"Resid Start->Resid End": 1.0, "MLP 0->Resid End": -3.0, "MLP 1->Resid End": 2.0,
              "A0.0->Resid End": math.nan, "A0.1->Resid End": math.inf}
    circuit = Circuit.of_edges(GRAPH, scores)
    def names(c):
        return {name.split("->")[0] for name in c.edge_names()}
    assert names(circuit.above(2.0)) == {"MLP 0", "MLP 1", "A0.1"}
    assert names(circuit.above(2.0, "signed")) == {"MLP 1", "A0.1"}
    assert names(circuit.strongest(2)) == {"A0.1", "MLP 0"}
    assert names(circuit.strongest(3, "signed")) == {"A0.1", "MLP 1", "Resid Start"}
    assert names(circuit.strongest(4, "signed")) == {"A0.1", "MLP 1", "Resid Start", "MLP 0"}
    assert circuit.strongest(99).n_kept == 5 and circuit.strongest(0).n_kept == 0
    with pytest.raises(DataError, match="n=-1"):
        circuit.strongest(-1)
    with pytest.raises(DataError, match="nan"):
        circuit.above(math.nan)


def test_an_edge_of_score_minus_infinity_comes_before_one_without_score():
    circuit = Circuit.of_edges(GRAPH, {"Resid Start->Resid End": math.nan, "MLP 0->Resid End": -math.inf})
    assert circuit.strongest(1, "signed").edge_names() == ("MLP 0->Resid End",)


def test_signed_ranking_takes_edges_that_matter_first():
    """What lowers the logit difference when patched helps the answer."""
    scores = {"Resid Start->Resid End": 1.0, "MLP 0->Resid End": -3.0, "MLP 1->Resid End": -2.0}
    circuit = Circuit.of_edges(GRAPH, scores, {"metric": "logit_difference"})
    assert circuit.strongest(2, "signed").edge_names() == ("MLP 0->Resid End", "MLP 1->Resid End")
    assert circuit.above(2.5, "signed").edge_names() == ("MLP 0->Resid End",)
    rise = Circuit.of_edges(GRAPH, scores, {"metric": "kl"})
    assert rise.strongest(1, "signed").edge_names() == ("Resid Start->Resid End",)


def test_of_equal_scores_the_first_edges_stay():
    circuit = Circuit(graph=GRAPH, kept=np.ones(GRAPH.n_edges, bool), scores=np.ones(GRAPH.n_edges))
    assert circuit.strongest(3).edge_names() == GRAPH.edge_names[:3]


def test_nodes_count_where_edges_lead_in_and_out():
    def nodes(*names):
        circuit = Circuit.of_edges(GRAPH, names)
        return {name for name, within in zip(GRAPH.source_names[1:], circuit.nodes[1:], strict=True) if within}

    assert nodes() == set() == nodes("Resid Start->Resid End", "Resid Start->A0.0.Q", "MLP 1->Resid End")
    path = "Resid Start->A0.0.K", "A0.0->MLP 0", "MLP 0->A1.1.V", "A1.1->Resid End"
    assert nodes(*path) == {"A0.0", "MLP 0", "A1.1"}


def test_our_file_comes_back_bit_for_bit(tmp_path):
    circuit = some(method="acdc", tau=[0.1, np.float64(0.03)], params_digest="ab12", n=np.int32(3), at=np.arange(2),
                   limit=math.inf, deep={"x": (1, None, True)})
    assert save_circuit(circuit, tmp_path / "c.json") == tmp_path / "c.json"
    back = load_circuit(tmp_path / "c.json", graph=Graph(2, 2), params_digest="ab12")
    assert back.graph == circuit.graph and (back.kept == circuit.kept).all()
    assert back.scores.tobytes() == circuit.scores.tobytes()
    assert back.about == {"method": "acdc", "tau": [0.1, 0.03], "params_digest": "ab12", "n": 3, "at": [0, 1],
                          "limit": "inf", "deep": {"x": [1, None, True]}}
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_our_file_is_json_that_any_reader_takes(tmp_path):
    def refuse(name):
        raise AssertionError(name)

    values = json.loads(save_circuit(some(), tmp_path / "c.json").read_text(), parse_constant=refuse)
    assert (values["format"], values["version"]) == ("jaxablate circuit", 1)
    assert values["graph"] == {"n_layers": 2, "n_heads": 2, "kv_heads": 2, "parallel": False, "n_edges": GRAPH.n_edges}
    assert len(values["kept"]) + len(values["cut"]) == GRAPH.n_edges
    scores = values["kept"] | values["cut"]
    assert [scores[name] for name in GRAPH.edge_names[:3]] == ["inf", "-inf", None]


def test_a_file_with_the_kept_edges_alone_will_do(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(
        {"format": "jaxablate circuit", "version": 1, "graph": {"n_layers": 2, "n_heads": 2}, "kept": PATH}))
    circuit = load_circuit(tmp_path / "c.json", params_digest="any")
    assert dict(circuit.scored_edges()) == PATH and np.isnan(circuit.scores[~circuit.kept]).all()


def test_the_papers_shape_makes_a_round_trip_in_both_formats(tmp_path):
    circuit = some(graph=Graph(8, 16))
    save_circuit(circuit, tmp_path / "c.json")
    save_mib(circuit, tmp_path / "m.json", d_model=64, metric="logit_difference")
    assert (load_circuit(tmp_path / "c.json").kept == circuit.kept).all()
    mib = load_mib(tmp_path / "m.json", graph=circuit.graph)
    assert (mib.kept == circuit.kept).all() and (mib.scores[3:] == circuit.scores[3:]).all()


def edited(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"version": 2}, "is a circuit file of version 2, this program reads 1"),
    ({"version": ...}, "of version None"),
    ({"format": "other"}, "is no circuit file .format 'other'"),
    ({"format": ..., "cfg": {}, "nodes": {}, "edges": {}}, "read it with load_mib"),
    ({"graph": ...}, "n_layers and n_heads are not numbers"),
    ({"graph": {"n_layers": True, "n_heads": 2}}, "n_layers and n_heads are not numbers"),
    ({"graph": {"n_layers": 10**9, "n_heads": 2}}, "from 1 to 1000"),
    ({"graph": {"n_layers": 2, "n_heads": 2, "n_edges": 5}}, "have 46 edges, it says 5"),
    ({"kept": ...}, "'kept' is missing"), ({"kept": []}, "'kept' is of type list"),
    ({"cut": "x"}, "'cut' is of type str"),
    ({"about": 3}, "'about' is of type int"),
    ({"kept": {"A7.0->Resid End": 1.0}}, "has an edge 'A7.0->Resid End', which a graph of 2 layers of 2 heads has not"),
    ({"kept": {"MLP 1->Resid End": 1}, "cut": {"MLP 1->Resid End": 1}}, "'MLP 1->Resid End' is both kept and cut"),
    ({"kept": {"MLP 1->Resid End": "many"}}, "has the score 'many' at edge 'MLP 1->Resid End'"),
    ({"kept": {"MLP 1->Resid End": True}}, "has the score True"), ({"kept": {"MLP 1->Resid End": [1]}}, "the score "),
    ({"kept": {"MLP 1->Resid End": 10**400}}, "scores are numbers"),
    ({"kept": {"MLP 1->Resid End": math.nan}}, "NaN is no number of JSON"),
])
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, changes, complaint):
    path = save_circuit(Circuit.of_edges(GRAPH, PATH), tmp_path / "c.json")
    edited(path, **({"cut": {}} | changes))
    with pytest.raises(DataError, match=complaint) as e:
        load_circuit(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"kept": {"a": 1', b"not json", b"\xff\xfe", b"[" * 100_000,
                                     b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("load", [load_circuit, load_mib])
def test_what_is_no_json_is_refused(tmp_path, content, load):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no whole JSON file") as e:
        load(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_file_of_pytorchs_is_told_by_its_kind(tmp_path):
    (tmp_path / "graph.pt").write_bytes(b"PK\x03\x04 an archive")
    with pytest.raises(DataError, match="is a zip archive, as PyTorch writes.*Graph.from_pt.file..to_json"):
        load_mib(tmp_path / "graph.pt")


@pytest.mark.parametrize("load", [load_circuit, load_mib])
def test_other_files_are_refused(tmp_path, load):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match="its value is of type list"):
        load(tmp_path / "list.json")
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            load(path)


def test_any_cut_off_file_is_refused(tmp_path):
    path = save_circuit(Circuit.of_edges(GRAPH, PATH), tmp_path / "c.json")
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="no whole JSON"):
            load_circuit(path)


def test_a_circuit_of_another_model_is_refused(tmp_path):
    path = save_circuit(some(params_digest="ab12"), tmp_path / "c.json")
    mib = save_mib(some(metric="kl"), tmp_path / "m.json", d_model=8)
    for load, at in ((load_circuit, path), (load_mib, mib)):
        with pytest.raises(DataError, match="another model: its graph has 2 layers of 2 heads, this model's has "
                                            "8 layers of 16 heads"):
            load(at, graph=Graph(8, 16))
    with pytest.raises(DataError, match="another model: its params_digest is ab12, this model's is cd34"):
        load_circuit(path, graph=GRAPH, params_digest="cd34")


def test_a_value_that_json_cannot_hold_is_named_and_nothing_written(tmp_path):
    with pytest.raises(DataError, match=r"about\['a'\]\['b'\] of a circuit is a function"):
        save_circuit(some(a={"b": lambda: 1}), tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_circuit(some(0), tmp_path / "c.json")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: save_circuit(some(1), path), lambda: save_mib(some(1), path, d_model=4, metric="kl")):
        with pytest.raises(FileError):
            write()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.json"]
    monkeypatch.undo()
    with pytest.raises(FileError):
        save_circuit(some(), path / "c.json")


def theirs(n_layers, n_heads, parallel=False):
    """Edge names of the benchmark, built up as its graph is: sources so far -> heads by q, k, v; then -> the MLP, which
    in a parallel block reads what the heads read."""
    names, stream = [], ["input"]
    for i in range(n_layers):
        heads = [f"a{i}.h{h}" for h in range(n_heads)]
        names += [f"{s}->{head}<{port}>" for s in stream for head in heads for port in "qkv"]
        names += [f"{s}->m{i}" for s in (stream if parallel else stream + heads)]
        stream += [*heads, f"m{i}"]
    return names + [f"{s}->logits" for s in stream]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 16)])
def test_mib_has_the_same_edges_under_other_names(shape, parallel):
    graph = Graph(*shape, parallel=parallel)
    names = mib_edge_names(graph)
    assert sorted(names) == sorted(theirs(*shape, parallel)) and len(set(names)) == graph.n_edges


@pytest.mark.parametrize("parallel", [False, True])
def test_a_mib_file_has_shared_keys_and_values_for_each_head(tmp_path, parallel):
    """EAP-IG gives every query head keys and values of its own, with a part of the score each; they add up again."""
    graph = Graph(2, 4, kv_heads=2, parallel=parallel)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=graph.n_edges)
    circuit = Circuit(graph=graph, kept=rng.random(graph.n_edges) < 0.5, scores=scores, about={"metric": "kl"})
    path = save_mib(circuit, tmp_path / "m.json", d_model=8)
    values = json.loads(path.read_text())
    assert values["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": parallel, "d_model": 8}
    assert set(values["edges"]) == set(theirs(2, 4, parallel))
    i = graph.edge("A0.1->A1.2-3.K")
    for head in (2, 3):
        assert values["edges"][f"a0.h1->a1.h{head}<k>"] == {"score": scores[i] / 2, "in_graph": bool(circuit.kept[i])}
    assert values["edges"]["a0.h1->a1.h2<q>"]["score"] == scores[graph.edge("A0.1->A1.2.Q")]
    back, apart = load_mib(path, graph=graph), load_mib(path)
    np.testing.assert_allclose(back.scores, scores, rtol=1e-15)
    assert (back.kept == circuit.kept).all() and back.graph == graph and apart.graph == graph.split
    assert save_mib(apart, tmp_path / "again.json", d_model=8).read_text().split('"about"')[0] == (
        path.read_text().split('"about"')[0])
    edge = "a0.h1->a1.h3<k>"
    edited(path, edges=values["edges"] | {edge: {"score": 1.0, "in_graph": not circuit.kept[i]}})
    with pytest.raises(DataError, match="keeps 'A0.1->A1.2-3.K' for 1 of the 2 heads that share it"):
        load_mib(path, graph=graph)
    with pytest.raises(DataError, match="another model: its graph has 2 .*layers of 4 heads"):
        load_mib(path, graph=Graph(2, 4, kv_heads=2, parallel=not parallel))


def test_an_edge_that_nothing_removes_stays_first_where_keys_are_shared(tmp_path):
    graph = Graph(1, 4, kv_heads=1)
    scores = np.where(np.arange(graph.n_edges) == graph.edge("Resid Start->A0.0-3.K"), np.inf, 1.0)
    path = save_mib(Circuit(graph=graph, kept=scores > 0, scores=scores, about={"metric": "kl"}), tmp_path / "m.json",
                    d_model=8)
    edges = json.loads(path.read_text())["edges"]
    assert {name for name, edge in edges.items() if edge["score"] > 1} == {f"input->a0.h{h}<k>" for h in range(4)}


def test_names_in_both_formats():
    names = dict(zip(GRAPH.edge_names, mib_edge_names(GRAPH), strict=True))
    assert names["Resid Start->A0.0.Q"] == "input->a0.h0<q>" and names["A0.1->A1.0.K"] == "a0.h1->a1.h0<k>"
    assert names["MLP 0->A1.1.V"] == "m0->a1.h1<v>" and names["A1.1->MLP 1"] == "a1.h1->m1"
    assert names["MLP 0->Resid End"] == "m0->logits" and names["Resid Start->Resid End"] == "input->logits"


def test_layout_of_a_mib_file(tmp_path):
    circuit = Circuit.of_edges(GRAPH, PATH | {"MLP 0->Resid End": 7.0}, {"metric": "kl", "tau": np.float32(0.5)})
    values = json.loads(save_mib(circuit, tmp_path / "m.json", d_model=8).read_text())
    assert list(values) == ["cfg", "nodes", "edges", "about"] and values["about"] == {"metric": "kl", "tau": 0.5}
    assert values["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert list(values["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert {n for n, node in values["nodes"].items() if node == {"in_graph": True}} == {
        "input", "a0.h1", "a1.h0", "logits"}  # m0 sends, but nothing leads into it
    assert set(values["edges"]) == set(theirs(2, 2))
    assert values["edges"]["a0.h1->a1.h0<k>"] == {"score": -0.25, "in_graph": True}
    assert values["edges"]["input->logits"] == {"score": 0.0, "in_graph": False}


def test_scores_of_a_mib_file_are_greater_where_an_edge_matters_more(tmp_path):
    """The logit difference falls where an edge that matters is patched; MIB attributes with the metric as a loss."""
    circuit = Circuit.of_edges(GRAPH, PATH, {"metric": "logit_difference", "method": "eap"})
    path = save_mib(circuit, tmp_path / "m.json", d_model=8)
    edges = json.loads(path.read_text())["edges"]
    assert edges["a1.h0->logits"]["score"] == -2.0 and edges["a0.h1->a1.h0<k>"]["score"] == 0.25
    back = load_mib(path)
    np.testing.assert_array_equal(back.scores, circuit.scores)
    assert back.about == {"method": "eap", "metric": "logit_difference", "file": "m.json", "d_model": 8}
    assert save_mib(back, tmp_path / "again.json", d_model=8).read_text().split('"about"')[0] == (
        path.read_text().split('"about"')[0])
    np.testing.assert_array_equal(load_mib(path, metric="kl").scores, -circuit.scores)
    greater = save_mib(circuit, tmp_path / "kl.json", d_model=8, metric="kl")
    assert json.loads(greater.read_text())["edges"]["a1.h0->logits"]["score"] == 2.0
    np.testing.assert_array_equal(load_mib(greater).scores, circuit.scores)


def test_scores_of_unknown_meaning_are_not_written_for_mib(tmp_path):
    for about in ({}, {"metric": "probability"}):
        with pytest.raises(DataError, match="give metric='logit_difference' for how that changes when an edge is pat"):
            save_mib(Circuit.of_edges(GRAPH, PATH, about), tmp_path / "m.json", d_model=8)
    assert not list(tmp_path.iterdir())
    earlier = Circuit.of_edges(GRAPH, PATH, {"method": "acdc"})  # files of ACDC's that name no metric
    assert json.loads(save_mib(earlier, tmp_path / "m.json", d_model=8).read_text())["about"]["metric"] == "kl"


def cpr_by_mibs_rule(path, task, search):
    """CPR as MIB's evaluation has it: edges of the greatest signed score, what dangles cut, trapezoids over shares.

    Followed: evaluate_area_under_curve of hannamw/MIB-circuit-track at b759df3 with ``absolute=False``, which is its
    default, and Graph.apply_topn, apply_greedy and prune of EAP-IG.
    """
    scores = {name: edge["score"] for name, edge in json.loads(path.read_text())["edges"].items()}
    ends = {name: tuple(name.split("<")[0].split("->")) for name in scores}

    def top(n):
        return set(sorted(scores, key=scores.__getitem__, reverse=True)[:n])

    def greedy(n):
        nodes, chosen = {"logits"}, set()
        while len(chosen) < n:
            best = max((e for e in scores if ends[e][1] in nodes and e not in chosen), key=scores.__getitem__)
            chosen.add(best)
            nodes.add(ends[best][0])
        return chosen

    def pruned(edges):
        while True:
            fed, read = {"input"} | {ends[e][1] for e in edges}, {"logits"} | {ends[e][0] for e in edges}
            left = {e for e in edges if ends[e][0] in fed and ends[e][1] in read}
            if left == edges:
                return edges
            edges = left

    shares = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1)
    choose = {"top": top, "greedy": greedy}[search]
    chosen = [set(scores), set(), *(pruned(choose(int(share * len(scores)))) for share in shares)]
    masks = np.array([[name not in circuit for name in mib_edge_names(task.graph)] for circuit in chosen])
    whole, empty, *metric = patched_metrics(task, masks).mean(1)
    f = [(m - empty) / (whole - empty) for m in metric]
    return sum((b - a) * (left + right) / 2 for a, b, left, right in zip(shares, shares[1:], f, f[1:], strict=False))


@functools.cache
def of_family(name, **fields):
    """A tiny model of a family; heads that share keys and values have them apart, as MIB does."""
    config = family(name, n_heads=4, vocab_size=13, context_length=8, d_model=16, n_layers=2, d_mlp=12, ablation="none",
                    **fields)
    params = drawn_params(SelfAblatingTransformer(config), np.zeros((1, 4), np.int32), scale=0.6)
    return circuits.problem(config, params, problem().pairs, split=True)


TASKS = {
    "toy": lambda: problem(), "divergence": lambda: problem(metric="kl"),
    "parallel": lambda: of_family("gpt_neox", rotary_fraction=0.5),
    "shared keys": lambda: of_family("llama", kv_heads=2),
}


@pytest.mark.parametrize(("name", "search"), [*((name, "greedy") for name in TASKS), ("toy", "top"),
                                              ("divergence", "top")])
def test_mibs_evaluation_of_our_file_gives_our_cpr(tmp_path, name, search):
    task = TASKS[name]()
    scores = effects(task)
    about = {"metric": task.metric}
    circuit = Circuit(graph=task.graph, kept=np.ones(len(scores), bool), scores=scores, about=about)
    path = save_mib(circuit, tmp_path / "m.json", d_model=8)
    ours = faithfulness(task, scores, search=search).cpr()
    assert cpr_by_mibs_rule(path, task, search) == pytest.approx(ours, abs=1e-5 * max(1, abs(ours)))
    assert faithfulness(task, load_mib(path).scores, search=search).cpr() == ours
    turned = save_mib(dataclasses.replace(circuit, scores=-scores), path, d_model=8)
    assert abs(cpr_by_mibs_rule(turned, task, search) - ours) > 0.1


def test_scores_that_are_not_finite_keep_their_rank_in_a_mib_file(tmp_path):
    scores = np.zeros(GRAPH.n_edges)
    scores[:5] = math.inf, -math.inf, math.nan, 3.0, -4.0
    circuit = Circuit(graph=GRAPH, kept=scores != 0, scores=scores, about={"metric": "kl"})
    back = load_mib(save_mib(circuit, tmp_path / "m.json", d_model=8))
    assert back.scores[:5].tolist() == [8.0, -8.0, 0.0, 3.0, -4.0]
    never = Circuit(graph=GRAPH, kept=np.ones(GRAPH.n_edges, bool), scores=np.full(GRAPH.n_edges, math.inf))
    assert (load_mib(save_mib(never, tmp_path / "m.json", d_model=8, metric="kl")).scores == 1.0).all()
    with pytest.raises(DataError, match="d_model=0"):
        save_mib(never, tmp_path / "m.json", d_model=0)


def mib_file(path, nodes=None, cfg=None, **edges):
    cfg = {"n_layers": 2, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False} | (cfg or {})
    path.write_text(json.dumps({"cfg": cfg, "nodes": nodes or {}, "edges": edges}))
    return path


def test_a_mib_file_of_scores_alone_is_a_circuit_to_choose_from(tmp_path):
    path = mib_file(tmp_path / "importances.json", {"a0.h0": {"in_graph": False, "score": 3.0}, "m0": True},
                    **{"input->logits": {"score": math.inf, "in_graph": False},
                       "m0->logits": {"score": -1.5, "in_graph": False}})
    circuit = load_mib(path)
    assert circuit.n_kept == 0 and circuit.about == {
        "method": "MIB file", "file": "importances.json", "d_model": 8, "metric": "logit_difference"}
    assert circuit.scores[GRAPH.edge("MLP 0->Resid End")] == 1.5 and np.count_nonzero(circuit.scores) == 2
    assert load_mib(path, metric="kl").scores[GRAPH.edge("MLP 0->Resid End")] == -1.5


@pytest.mark.parametrize(("values", "complaint"), [
    ({"cfg": {"parallel_attn_mlp": "x"}}, "parallel is no flag"), ({"cfg": {"n_heads": "x"}}, "n_heads"),
    ({"m9->logits": {"score": 1, "in_graph": True}}, "'m9->logits', which a graph of 2 layers of 2 heads has not"),
    ({"input->a0.h0": {"score": 1, "in_graph": True}}, "'input->a0.h0'"),
    ({"m0->logits": 1.0}, "'m0->logits' has no score and in_graph"),
    ({"m0->logits": {"score": 1.0}}, "'m0->logits' has no score and in_graph"),
    ({"m0->logits": {"score": "x", "in_graph": True}}, "the score 'x'"),
    ({"nodes": {"a0.h0": {"in_graph": True, "neurons": [True, False, True]}}}, "only 2 of 3 neurons of a0.h0"),
])
def test_mib_files_that_do_not_fit_are_refused(tmp_path, values, complaint):
    with pytest.raises(DataError, match=complaint) as e:
        load_mib(mib_file(tmp_path / "m.json", **values))
    assert str(tmp_path / "m.json") in str(e.value) and "\n" not in str(e.value)


def test_other_json_is_no_mib_file(tmp_path):
    with pytest.raises(DataError, match="is no circuit of the MIB benchmark: it has no 'cfg'"):
        load_mib(save_circuit(some(), tmp_path / "c.json"))
