"""Circuits as pictures: from names and scores to a panel, on the page, and in print."""

import dataclasses
import itertools
import json
import math
import random
import re
import struct
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers.results import record, results

from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.graph import Graph
from jaxablate.reports import figures, html
from jaxablate.reports import results as files
from jaxablate.reports.circuit_graph import circuit_panel, curve, levels, place
from jaxablate.reports.panels import CircuitEdge, CircuitGraph, CircuitNode, panel_from_dict

PAPER = Graph(8, 16)
SVG = "{http://www.w3.org/2000/svg}"
EDGES = [("A2.0->Resid End", 2.0), ("A0.1->A2.0.K", -0.5), ("Resid Start->A2.0.Q", 0.125), ("Resid Start->A0.1.V", 0.5),
         ("Resid Start->MLP 3", 0.03125), ("MLP 3->Resid End", 0.0)]


def panel(edges=EDGES, n_layers=4, **options):
    options = {"title": "C <1>", "caption": "c", "score_label": "EAP score"} | options
    return circuit_panel(edges, n_layers=n_layers, **options)


def many(n, graph=PAPER, seed=0):
    """Pairs (name, score) of ``n`` edges, of scores that differ by powers of ten."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=graph.n_edges) ** 3 * rng.exponential(size=graph.n_sources)[graph.edge_source]
    kept = np.zeros(graph.n_edges, bool)
    kept[rng.choice(graph.n_edges, n, replace=False)] = True
    return list(Circuit(graph=graph, kept=kept, scores=scores).scored_edges())


CIRCUITS = {
    "few": panel(), "none": panel([]), "one": panel([("Resid Start->Resid End", 1.0)], 8),
    "inner": panel([("A0.0->A1.0.Q", 1.0), ("A0.0->A1.1.Q", 1.0)]), "medium": panel(many(80), 8),
    "large": panel(many(2000), 8),
    "never cut": panel([(name, math.inf) for name, _ in EDGES]),
    "wide": panel(many(300, Graph(3, 40)), 3), "no score": panel([(name, math.nan) for name, _ in EDGES]),
    "shared keys": panel(many(200, Graph(4, 16, kv_heads=4))), "parallel": panel(many(80, Graph(4, 4, parallel=True))),
}


def drawn(circuit):
    text = str(html.draw(circuit)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return ElementTree.fromstring(text)


def wires(svg):
    return [p for p in svg.iter(f"{SVG}path") if p.get("data-from")]


def test_names_become_nodes_from_bottom_to_top():
    nodes = panel().nodes
    assert [(n.name, n.kind, n.layer) for n in nodes] == [
        ("Resid Start", "start", -1), ("A0.1", "head", 0), ("A2.0", "head", 4), ("MLP 3", "mlp", 7),
        ("Resid End", "end", 8)]
    assert all((n.x == 0) == (n.kind != "head") for n in nodes)


def test_edges_keep_order_ports_signs_and_scores():
    circuit = panel()
    named = [(circuit.nodes[e.source].name, circuit.nodes[e.destination].name, e.port, e.score, e.negative)
             for e in circuit.edges]
    assert named[:3] == [("A2.0", "Resid End", "", 2.0, False), ("A0.1", "A2.0", "K", -0.5, True),
                         ("Resid Start", "A2.0", "Q", 0.125, False)]
    assert [e.weight for e in circuit.edges] == [1.0, 0.5, 0.25, 0.5, 0.125, 0.0]  # roots of shares of 2
    assert circuit.edges[1].label == "A0.1 → A2.0.K: EAP score -0.5000"
    assert levels(circuit.edges) == [4, 3, 2, 3, 1, 0]


def test_keys_that_heads_share_are_a_node_of_their_own():
    circuit = panel([("A0.3->A1.12-15.K", 1.0), ("A1.13->Resid End", 1.0), ("MLP 0->A1.13.Q", 1.0)])
    boxes = {box.node.name: box for box in place(circuit).boxes}
    assert boxes["A1.12-15"].ports == ("K",) and boxes["A1.13"].ports == ("Q",)
    assert boxes["A1.12-15"].width > boxes["A1.13"].width


def test_scores_that_are_not_finite():
    edges = panel([("A2.0->Resid End", math.inf), ("MLP 3->Resid End", 0.03), ("MLP 2->Resid End", -math.inf),
                   ("MLP 1->Resid End", math.nan)]).edges
    assert [(e.score, e.weight, e.negative) for e in edges] == [
        (None, 1.0, False), (0.03, 0.75, False), (None, 1.0, True), (None, 0.0, False)]
    assert [e.label.split(": ")[1] for e in edges] == [
        "EAP score ∞", "EAP score 0.03000", "EAP score -∞", "EAP score none"]


@pytest.mark.parametrize("name", ["A0.1", "A0.1->A2.0", "A0.1.Q->A2.0.Q", "MLP 1->MLP 2.Q", "MLP 9->Resid End",
                                  "x->Resid End", "Resid End->MLP 1", "MLP 2->MLP 1", "A1.0->A1.1.Q", "A0.0-1->MLP 1",
                                  "A0.0->A1.0-1.Q"])
def test_names_of_no_edge_are_refused(name):
    with pytest.raises(ValueError, match="edge|block 9"):
        panel([(name, 1.0)])


def test_nodes_and_edges_that_do_not_fit_are_refused():
    nodes = (CircuitNode(name="Resid Start", kind="start", layer=-1, x=0.0),
             CircuitNode(name="A0.0", kind="head", layer=0, x=0.1))
    edge = CircuitEdge(source=0, destination=1, port="Q", score=1.0, negative=False, weight=1.0, label="")
    CircuitGraph(title="", caption="", nodes=nodes, edges=(edge,), score_label="")
    for bad in ({"destination": 2}, {"source": 1, "destination": 0}, {"port": ""}, {"source": -1}):
        with pytest.raises(ValueError, match="circuit"):
            CircuitGraph(title="", caption="", nodes=nodes, edges=(dataclasses.replace(edge, **bad),), score_label="")


def test_only_the_strongest_of_many_edges_are_drawn_and_it_says_so():
    edges = many(2000)
    circuit = panel(edges, 8)
    assert len(circuit.edges) == 600
    assert circuit.caption == "c Drawn are the 600 strongest of 2,000 edges."
    strongest = sorted((abs(s) for _, s in edges), reverse=True)[:600]
    assert sorted((abs(e.score) for e in circuit.edges), reverse=True) == strongest
    touched = {i for e in circuit.edges for i in (e.source, e.destination)}
    assert touched == set(range(len(circuit.nodes)))


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_circuits_survive_json_and_are_small(circuit):
    text = json.dumps(dataclasses.asdict(circuit), allow_nan=False)
    assert panel_from_dict(json.loads(text)) == circuit and len(text) < 250_000


def test_the_same_circuit_gives_the_same_picture():
    edges = many(80)
    assert panel(edges, 8) == panel(edges, 8) and str(html.draw(panel(edges, 8))) == str(html.draw(panel(edges, 8)))
    shuffled = random.Random(0).sample(edges, len(edges))
    assert panel(shuffled, 8).nodes == panel(edges, 8).nodes


def test_sweeps_undo_a_crossing():
    edges = [("A0.0->A1.1.Q", 1.0), ("A0.1->A1.0.Q", 1.0), ("A0.2->A1.3.Q", 1.0), ("A0.3->A1.2.Q", 1.0)]
    nodes = [n.name for n in panel(edges, 2).nodes]
    below = [n.split(".")[1] for n in nodes[:4]]
    partner = {"0": "1", "1": "0", "2": "3", "3": "2"}
    assert [partner[h] for h in below] == [n.split(".")[1] for n in nodes[4:]]


@pytest.mark.parametrize("circuit", [c for c in CIRCUITS.values() if c.edges], ids=[k for k in CIRCUITS if k != "none"])
def test_places_go_up_do_not_overlap_and_stay_inside(circuit):
    drawing = place(circuit)
    rows = {}
    for box in drawing.boxes:
        rows.setdefault(box.node.layer, []).append(box)
        assert box.x - box.width / 2 >= 0 and box.x + box.width / 2 <= drawing.width
        assert box.y - box.height / 2 > 0 and box.y + box.height / 2 < drawing.height
    heights = [row[0].y for _, row in sorted(rows.items())]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(heights)
    for row in rows.values():
        middles = sorted(box.x for box in row)
        assert all(b - a >= row[0].width for a, b in itertools.pairwise(middles))
    for wire in drawing.wires:
        source, destination = drawing.boxes[wire.edge.source], drawing.boxes[wire.edge.destination]
        line = curve(wire.points)
        assert (np.diff(line[:, 1]) < 0).all() and line[:, 0].min() >= 0 and line[:, 0].max() <= drawing.width
        assert tuple(line[0]) == (source.x, source.y - source.height / 2)
        assert tuple(line[-1]) == pytest.approx((destination.port_x(wire.edge.port), destination.entry))
        assert wire.width > 0 and 0 < wire.opacity <= 1
    weights = [wire.edge.weight for wire in drawing.wires]
    assert weights == sorted(weights)


def test_an_edge_past_a_node_in_its_way_is_bent_around_it():
    circuit = panel([("Resid Start->MLP 0", 1.0), ("Resid Start->MLP 1", 1.0), ("Resid Start->Resid End", 1.0),
                     ("MLP 0->MLP 1", 1.0)], 2)
    drawing = place(circuit)
    blocked = {box.node.name: box for box in drawing.boxes}
    for wire in drawing.wires:
        ends = {circuit.nodes[wire.edge.source].name, circuit.nodes[wire.edge.destination].name}
        for name in {"MLP 0", "MLP 1"} - ends:
            box, line = blocked[name], curve(wire.points)[::-1]
            if line[0, 1] < box.y < line[-1, 1]:
                assert abs(np.interp(box.y, line[:, 1], line[:, 0]) - box.x) > box.width / 2


def test_blocks_without_a_node_are_left_out_and_said_so():
    notes = [band.note for band in place(panel()).bands]
    assert [band.label for band in place(panel()).bands] == ["block 0", "block 2", "block 3"]
    assert notes == ["", "block 1", ""]
    assert place(panel([("Resid Start->Resid End", 1.0)], 8)).bands[0].note == "blocks 0–7"


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_the_page_draws_every_edge_and_node_with_a_title(circuit):
    svg = drawn(circuit)
    assert [len(wires(svg)), sum(g.get("class", "").startswith("unit") for g in svg.iter(f"{SVG}g"))] == [
        len(circuit.edges), len(circuit.nodes)]
    assert sorted(p[0].text for p in wires(svg)) == sorted(e.label for e in circuit.edges)
    if not circuit.edges:
        assert "no edge is kept" in "".join(svg.itertext())


def test_widths_colours_and_steps_follow_the_scores():
    svg = drawn(panel())
    found = {p[0].text.split(":")[0]: p for p in wires(svg)}
    assert found["A0.1 → A2.0.K"].get("class") == "wire minus"
    assert found["A2.0 → Resid End"].get("class") == "wire"
    width = {name: float(p.get("stroke-width")) for name, p in found.items()}
    assert width["A2.0 → Resid End"] > width["A0.1 → A2.0.K"] == width["Resid Start → A0.1.V"] > width[
        "MLP 3 → Resid End"] > 0
    assert [found["A2.0 → Resid End"].get(f"data-{k}") for k in ("level", "size")] == ["4", "2.000"]


def test_a_heads_ports_are_shown_and_nodes_say_what_leads_where():
    svg = drawn(panel())
    units = {g[0].text.split(":")[0]: g for g in svg.iter(f"{SVG}g") if g.get("class", "").startswith("unit")}
    assert units["A2.0"][0].text == units["A2.0"].get("aria-label") == "A2.0: 2 in (Q 1, K 1), 1 out"
    assert units["Resid Start"][0].text == "Resid Start: 0 in, 3 out"
    ports = [r.get("class") for r in units["A2.0"].iter(f"{SVG}rect") if r.get("class").startswith("port")]
    assert ports == ["port q", "port k", "port idle"] and all(u.get("tabindex") == "0" for u in units.values())
    assert [t.text for t in units["A2.0"].iter(f"{SVG}text")] == ["A2.0", "Q", "K", "V"]


def test_the_page_needs_nothing_from_outside_and_works_without_its_script():
    page = html.circuit_page(panel(), [("model", "local <k> = 8")], "revision abc")
    assert "local &lt;k&gt; = 8" in page and "<h1>C &lt;1&gt;</h1>" in page and 'class="text"' not in page
    assert not re.findall(r'(?:src|href|url)[=(]["\']?(?!#)', page) and "http" not in page
    before, script = page.split("<script>")
    assert "<title>A0.1 → A2.0.K: EAP score -0.5000</title>" in before and 'class="controls" hidden' in before
    assert script.count("</script>") == 1 and "EAP" not in script.split("</script>")[0]


def test_a_circuit_without_edges_has_no_slider():
    page = html.circuit_page(panel([]), [], "")
    assert "<input" not in page and "<script>" not in page and "no edge is kept" in page


def test_a_circuit_stays_what_it_is_in_a_results_file():
    shown = [CIRCUITS[name] for name in ("few", "none", "medium", "never cut")]
    r = dataclasses.replace(results(), suites={"circuits": record("circuits", panels=tuple(shown))})
    assert files.from_dict(json.loads(json.dumps(dataclasses.asdict(r)))) == r


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_print_figures_have_the_width_of_a_paper(circuit):
    png = figures.figure_bytes(circuit, ["png"])["png"]
    width, height = (x / figures.DPI for x in struct.unpack(">II", png[16:24]))
    assert width <= figures.PAGE and 0.2 < height < 9


def test_print_figures_in_all_formats_are_the_same_each_time():
    drawn = figures.figure_bytes(panel(), figures.FORMATS)
    assert figures.figure_bytes(panel()) == {name: drawn[name] for name in ("png", "svg")}
    assert ElementTree.fromstring(drawn["svg"]).tag == f"{SVG}svg" and drawn["pdf"].startswith(b"%PDF")
