"""Heat maps, networks and panels beside each other: as data, drawn, and in print; what tells classifiers apart."""

import dataclasses
import json
import os
import struct
import xml.etree.ElementTree as ElementTree

import pytest
from helpers.results import PANELS, record, results

from jaxablate.config import ClassificationConfig, ClassificationObjective, ClassifierConfig, EpochTrainConfig, to_dict
from jaxablate.errors import FileError
from jaxablate.reports import figures, html
from jaxablate.reports import results as files
from jaxablate.reports.compare import ScoredRun, compare
from jaxablate.reports.explorer import summary
from jaxablate.reports.panels import Beside, Edge, Grid, Heatmap, Network, Node, panel_from_dict

WORDS = ("a", "$witty$ <film>", "incomprehensibilities", "\n", "电影")
SVG = "{http://www.w3.org/2000/svg}"


def heatmap(scale=1.0, rows=WORDS, width=6, **options):
    values = tuple(tuple(scale * (i == j) + 0.1 * (j == 5) for j in range(width)) for i in range(len(rows)))
    options = {"bars": tuple(i / len(rows) for i in range(len(rows))), "bar_label": "capacity"} | options
    return Heatmap(title="H <1>", caption="c", rows=tuple(rows), values=values, x_label="neurons",
                   value_label="activation", **options)


def network(weight=0.9, nodes=WORDS):
    edges = (Edge(first=0, second=1, weight=weight), Edge(first=4, second=1, weight=weight / 3))
    return Network(title="N", caption="c", nodes=tuple(Node(label=n, size=0.5) for n in nodes), edges=edges,
                   size_label="keep", weight_label="alignment")


def beside(*panels):
    return Beside(title="Both", caption="", labels=tuple(f"panel {i}" for i in range(len(panels))), panels=panels)


LONG = tuple(f"word{i}" for i in range(40))
PICTURES = {
    "heatmap": heatmap(), "wide": heatmap(width=120, bars=()), "named": heatmap(width=8, columns=tuple("abcdefgh")),
    "no columns": heatmap(width=0), "network": network(), "long network": network(nodes=LONG),
    "one node": Network(title="N", caption="", nodes=(Node(label="x", size=1.0),), edges=(), size_label="k",
                        weight_label="w"),
    "beside": beside(heatmap(), heatmap(0.5)), "other rows": beside(heatmap(), heatmap(rows=LONG)),
    "networks beside": beside(network(), network(0.3)), "networks below": beside(*[network(nodes=LONG)] * 3),
}


def drawn(panel):
    return ElementTree.fromstring(str(html.draw(panel)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def titles(svg):
    return [x.text for x in svg.iter(f"{SVG}title")]


def inches(png):
    """Width and height of a PNG file with 300 dots an inch."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return tuple(x / 300 for x in struct.unpack(">II", png[16:24]))


@pytest.mark.parametrize("panel", PICTURES.values(), ids=PICTURES)
def test_pictures_survive_json(panel):
    assert panel_from_dict(json.loads(json.dumps(dataclasses.asdict(panel)))) == panel


@pytest.mark.parametrize("panel", PICTURES.values(), ids=PICTURES)
def test_the_page_draws_well_formed_svg_inside_its_frame(panel):
    svg = drawn(panel)
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert width == 900 and 20 < height < 2000
    for mark in svg.iter(f"{SVG}rect"):
        assert 0 <= float(mark.get("x")) <= width and float(mark.get("width")) <= width
        assert float(mark.get("y")) <= height


def test_each_cell_says_its_value_and_zero_cells_are_left_out():
    said = titles(drawn(heatmap(2.0)))
    assert "a, 0: 2.000" in said and "$witty$ <film>, 5: 0.1000" in said and "␣, capacity: 0.6000" in said
    assert len(said) == 2 * len(WORDS) + len(WORDS)
    assert "a, b: 2.000" in titles(drawn(heatmap(2.0, width=2, columns=("b", "c"))))


def test_arcs_are_as_strong_as_their_edges():
    paths = list(drawn(network()).iter(f"{SVG}path"))
    assert [p[0].text for p in paths] == ["$witty$ <film> – 电影: alignment 0.3000",
                                          "a – $witty$ <film>: alignment 0.9000"]
    weak, strong = (float(p.get("stroke-opacity")) for p in paths)
    assert strong == pytest.approx(0.85) and weak == pytest.approx(0.15 + 0.7 / 3, abs=0.01)


def test_panels_beside_each_other_have_one_scale():
    shades = [float(r.get("fill-opacity")) for r in drawn(beside(heatmap(1.0), heatmap(0.25))).iter(f"{SVG}rect")
              if r.get("class") == "shade" and len(r)]
    assert max(shades) == 1.0 and 0.25 in shades
    arcs = [float(p.get("stroke-width")) for p in drawn(beside(network(0.8), network(0.4))).iter(f"{SVG}path")]
    assert max(arcs[:2]) == 4.0 and max(arcs[2:]) == pytest.approx(0.6 + 3.4 / 2)


def test_values_below_zero_stretch_the_scale_and_nan_has_no_shade():
    panel = dataclasses.replace(heatmap(rows=("x",), width=3, bars=()), values=((-1.0, 1.0, float("nan")),))
    assert titles(drawn(panel)) == ["x, 1: 1.000"]
    assert figures.figure_bytes(panel, ["png"])["png"]


@pytest.mark.parametrize("make", [
    lambda: heatmap(bars=(1.0,)), lambda: heatmap(columns=("a",)),
    lambda: dataclasses.replace(heatmap(), rows=("a",)), lambda: beside(heatmap()),
    lambda: beside(heatmap(), network()), lambda: beside(*PANELS[:2]), lambda: network(nodes=("a", "b")),
])
def test_panels_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match="heat map|network"):
        make()


@pytest.mark.parametrize("panel", PICTURES.values(), ids=PICTURES)
def test_print_figures_have_the_width_of_a_paper(panel):
    drawn = figures.figure_bytes(panel, figures.FORMATS)
    width, height = inches(drawn["png"])
    assert width in (figures.COLUMN, figures.PAGE) and 0.2 < height < 9
    assert ElementTree.fromstring(drawn["svg"]).tag == f"{SVG}svg" and drawn["pdf"].startswith(b"%PDF")


@pytest.mark.parametrize("panel", PANELS[:3], ids=lambda p: p.kind)
def test_charts_are_drawn_for_print_too(panel):
    width, _ = inches(figures.figure_bytes(panel, ["png"])["png"])
    assert width == (figures.PAGE if panel.kind == "histograms" and len(panel.histograms) > 2 else figures.COLUMN)


@pytest.mark.parametrize("panel", [*PICTURES.values(), *PANELS[:3]], ids=lambda p: p.kind)
def test_a_print_figure_carries_all_of_its_style(panel):
    drawn = figures.standalone(panel)
    assert "var(" not in drawn and ElementTree.fromstring(drawn).tag == f"{SVG}svg"


def test_the_same_panel_gives_the_same_bytes():
    for panel in (heatmap(), network()):
        assert figures.figure_bytes(panel) == figures.figure_bytes(panel)


def test_figures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    paths = figures.write_figure(network(), tmp_path / "v1.5")
    assert paths == [tmp_path / "v1.5.png", tmp_path / "v1.5.svg"] and all(p.stat().st_size > 1000 for p in paths)
    with pytest.raises(ValueError, match="'gif' is none of"):
        figures.write_figure(network(), tmp_path / "x", ["png", "gif"])
    with pytest.raises(ValueError, match="no picture"):
        figures.write_figure(Grid(title="", caption="", columns=(), rows=()), tmp_path / "x")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        figures.write_figure(network(), tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v1.5.png", "v1.5.svg"]


def classified(importance=0.5, seed=0, **model):
    config = ClassificationConfig(model=ClassifierConfig(**model), train=EpochTrainConfig(seed=seed),
                                  objective=ClassificationObjective(importance=importance))
    return dataclasses.replace(results(digest=f"{importance} {seed}"), config=to_dict(config), seed=seed,
                               parameters=1234)


@pytest.mark.parametrize(("model", "line"), [
    ({}, "1 layer, width 256, 8 heads, 1,234 parameters, VMASK, λ importance 0.5, λ interaction 1, padding masked"),
    ({"vmask": False, "padding": "paper", "n_layers": 2, "ablation": "local", "k_neurons": 4, "k_attention": 8},
     "2 layers, width 256, 8 heads, 1,234 parameters, no VMASK, λ importance 0.5, λ interaction 1, padding as in the "
     "paper, local ablation, hard gates, k 8 attention / 4 neurons"),
])
def test_summary_of_a_classifier(model, line):
    assert summary(classified(**model)) == line


def test_classifiers_that_differ_in_a_lambda_are_two_rows():
    runs = [ScoredRun(name=str(i), results=classified(importance=importance, seed=seed))
            for i, (importance, seed) in enumerate(((0.0, 0), (1.0, 0), (1.0, 1)))]
    table = compare(runs)
    assert table.fields == ("objective.importance",)
    assert [(row.labels, row.seeds) for row in table.rows] == [(("0.0",), (0,)), (("1.0",), (0, 1))]


def test_results_with_pictures_survive_json():
    r = dataclasses.replace(classified(), suites={"explanations": record(panels=tuple(PICTURES.values()))})
    assert files.from_dict(json.loads(json.dumps(dataclasses.asdict(r)))) == r
