"""Results on disk, comparisons over seeds, tables and the page: no model anywhere."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shutil
import stat

import pytest
from helpers.results import PANELS, record, results
from rich.console import Console

from jaxablate import stats
from jaxablate.errors import CheckpointError, FileError
from jaxablate.files import finite
from jaxablate.reports import compare as comparisons
from jaxablate.reports import differences, tables
from jaxablate.reports import results as files
from jaxablate.reports.compare import ScoredRun, compare
from jaxablate.reports.panels import (
    Bar,
    Grid,
    Passage,
    Passages,
    panel_from_dict,
)
from jaxablate.reports.results import Figure
from jaxablate.reports.svg import Scale, linear_ticks
from jaxablate.stats import Estimate


def runs(*found):
    return [ScoredRun(name=f"runs/{i}", results=r) for i, r in enumerate(found)]


def test_results_survive_json():
    figures = [Figure("f", None), Figure("g", 1.5, "nats"), Figure("h", Estimate(3, 1, 5, n=9), range=stats.COUNT)]
    r = results(suites={"s": record("s", figures, PANELS)})
    assert files.from_dict(json.loads(json.dumps(finite(dataclasses.asdict(r))))) == r


@pytest.mark.parametrize("panel", PANELS, ids=lambda p: p.kind)
def test_panels_survive_json(panel):
    assert panel_from_dict(json.loads(json.dumps(dataclasses.asdict(panel)))) == panel


def test_numbers_that_are_not_finite_become_null(tmp_path):
    files.write(tmp_path, results(suites={"s": record("s", [Figure("f", math.inf)])}))
    assert files.read(tmp_path).suites["s"].figures[0].estimate.value is None


def test_same_checkpoint_merges_and_another_replaces():
    old = results(suites={"a": record("a"), "b": record("b", seed=1)})
    new = results(suites={"b": record("b", seed=2)})
    merged = files.merge(old, new)
    assert set(merged.suites) == {"a", "b"} and merged.suites["b"].options == {"seed": 2}
    assert files.merge(None, new) == new
    for other in (dataclasses.replace(new, params_digest="other"), dataclasses.replace(new, data_hash="other"),
                  dataclasses.replace(new, step=7)):
        assert files.merge(old, other) == other


def test_settings_that_came_later_make_no_other_checkpoint(tmp_path):
    old = results()
    values = json.loads(files.write(tmp_path, old).read_text())
    del values["config"]["model"]["score_lag"], values["config"]["optimizer"]["nonzero_fraction"]
    (tmp_path / "results.json").write_text(json.dumps(values))
    read = files.read(tmp_path)
    assert read.config == old.config and set(files.merge(read, results(suites={})).suites) == {"perplexity"}


def test_write_leaves_one_readable_file(tmp_path):
    files.write(tmp_path, results(value=1.0))
    files.write(tmp_path, results(value=2.0))
    assert files.read(tmp_path) == results(value=2.0)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) & 0o400


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    files.write(tmp_path, results(value=1.0))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        files.write(tmp_path, results(value=2.0))
    assert files.read(tmp_path) == results(value=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("text", "complaint"), [
    ("{", "cannot be read"), ("[]", "not an object"), ("{}", "no schema_version"),
    ('{"schema_version": 99}', "schema version 99"),
    ('{"schema_version": 1}', "field is missing"),
    ('{"schema_version": 1, "suites": {"a": {}}}', "field is missing"),
])
def test_a_corrupt_file_is_named_with_the_command_to_run(tmp_path, text, complaint):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(FileError, match=complaint) as e:
        files.read(tmp_path)
    assert "jaxablate score --workdir" in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def schema_1(tmp_path):
    """A working directory with results of schema version 1, and the values in its file."""
    path = pathlib.Path(__file__).parent / "golden" / "results_schema_1.json"
    shutil.copy(path, tmp_path / "results.json")
    return tmp_path, json.loads(path.read_text())


def test_results_of_schema_1_are_read_and_written_as_schema_2(schema_1):
    folder, old = schema_1
    new = files.read(folder)
    assert new.schema_version == 2 and list(new.suites) == list(old["suites"])
    for name, suite in old["suites"].items():
        for figure, before in zip(new.suites[name].figures, suite["figures"], strict=True):
            e = figure.estimate
            assert (figure.name, e.value, e.low, e.high) == tuple(before[k] for k in ("name", "value", "low", "high"))
    files.write(folder, new)
    assert files.read(folder) == new and json.loads((folder / "results.json").read_text())["schema_version"] == 2


def test_tables_bars_and_details_of_schema_1_hold_estimates(schema_1):
    folder, old = schema_1
    new = files.read(folder)
    panels = {p.title: p for record in new.suites.values() for p in record.panels}
    before = {p["title"]: p for record in old["suites"].values() for p in record["panels"]}
    assert not [c for p in panels.values() if isinstance(p, Grid) for c in p.columns if c in ("95 % from", "to")]
    losses = panels["Losses"]
    assert losses.columns == ("stream, targets", "loss", "perplexity", "targets")
    label, value, low, high, *rest = before["Losses"]["rows"][0]
    assert losses.rows[0] == (label, Estimate(value, low, high), *rest)
    assert len(panels["Loss with gates replaced, in numbers"].columns) == 4  # two numbers with intervals
    bar = before["Perplexity"]["bars"][0]
    assert panels["Perplexity"].bars[0] == Bar(bar["label"], Estimate(bar["value"], bar["low"], bar["high"]))
    loss = new.suites["perplexity"].details["losses"][0]
    assert stats.from_json(loss["loss"]) == Estimate(value, low, high) and "loss_interval" not in loss
    edges = next(f for f in new.suites["circuits"].figures if f.unit == "edges")
    assert edges.range == stats.COUNT and new.suites["ioi"].figures[0].range == stats.FRACTION


def test_an_interval_over_seeds_ends_where_the_number_does():
    figures = [Figure("edges", v, "edges", range=stats.COUNT) for v in (0.0, 9.0)]
    (row,) = compare(runs(*(results(seed=s, suites={"c": record("c", [f])}) for s, f in enumerate(figures)))).rows
    assert row.cells[0].low == 0 and row.cells[0].high > 9


def test_missing_results_name_the_command(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(f"run: jaxablate score --workdir {tmp_path}")):
        files.read(tmp_path)


def test_seeds_are_joined_by_students_t():
    comparison = compare(runs(*(results(seed=s, value=v) for s, v in enumerate((5.0, 6.0, 7.0)))))
    (row,) = comparison.rows
    cell = row.cells[0]
    assert (cell.value, cell.n, row.seeds) == (6.0, 3, (0, 1, 2))
    half = 4.302652729911275 / math.sqrt(3)  # t quantile .975 of 2 degrees of freedom, standard deviation 1
    assert (cell.low, cell.high) == pytest.approx((6 - half, 6 + half))
    assert comparison.fields == ("run",)


def test_a_single_run_keeps_its_own_interval():
    assert compare(runs(results(value=6.0))).rows[0].cells[0].low == 5.5


def test_rows_are_labelled_by_what_differs():
    comparison = compare(runs(results("none"), results(k=4), results(k=8), results(k=8, seed=1)))
    assert comparison.fields == ("model.ablation", "model.k_neurons")
    assert [(row.labels, len(row.runs)) for row in comparison.rows] == [
        (("none", "-"), 1), (("local", "4"), 1), (("local", "8"), 2)]


def test_paths_and_mesh_do_not_split_a_row_but_other_data_does():
    same = results(seed=1, train_path="elsewhere/a.txt", cache_dir="b")
    assert len(compare(runs(results(), same)).rows) == 1
    other = compare(runs(results(), results(seed=1, data_hash="e" * 64)))
    assert len(other.rows) == 2 and other.fields == ("validation data",)


def test_other_regularisers_split_a_row_but_none_is_as_in_results_without_the_field():
    old, none, some = (results(seed=seed) for seed in (0, 1, 2))
    del old.config["objective"]["regularizers"]
    some.config["objective"]["regularizers"] = [["sparsity", 0.1]]
    rows = compare(runs(old, none, some)).rows
    assert [row.seeds for row in rows] == [(0, 1), (2,)]


def test_embedded_corpora_of_different_seeds_are_repetitions():
    embedded = {"source": "embedded", "tokenizer": "corpus"}
    comparison = compare(runs(results(**embedded), results(seed=1, data_hash="e", embedded_seed=1, **embedded)))
    assert len(comparison.rows) == 1


def test_the_same_checkpoint_twice_is_not_a_second_seed():
    comparison = compare(runs(results(), results()))
    assert comparison.rows[0].cells[0].n == 1
    assert "counted once" in comparison.notes[0]


def test_what_is_missing_is_a_dash_and_a_note():
    gates = record("gates", [Figure("live", 0.5)])
    both = results(suites={**results().suites, "gates": gates})
    comparison = compare(runs(both, results(seed=1), results("none")))
    assert comparison.rows[1].cells[1] == Estimate(None, n=0)
    assert comparison.notes == ("runs/1 lacks gates; run: jaxablate score --workdir runs/1 --suites gates",)
    assert comparison.rows[0].cells[1].n == 1


def test_different_options_are_noted():
    other = results(seed=1, suites={"perplexity": record(figures=[Figure("perplexity clean", 1.0)], n=5)})
    (note,) = compare(runs(results(), other)).notes
    assert re.fullmatch(r"perplexity was run with different n: (5; not recorded|\d+; 5|5; \d+)", note), note


def three():
    return compare(runs(results("none", value=5.73), results(value=6.4), results(seed=1, value=6.6)))


def test_markdown_has_one_line_a_row():
    lines = tables.markdown(comparisons.table(three())).splitlines()
    assert lines[0] == "| ablation | n | checkpoint | perplexity clean ↓ |"
    assert lines[2] == "| none | 1 | 100 | 5.73 [5.23, 6.23] |"
    assert lines[3] == "| local | 2 | 100 | 6.5 [5.2, 7.8] |"
    assert "Student t" in lines[5]


def test_csv_keeps_full_precision():
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(comparisons.data_table(three())))))
    assert float(rows[1]["perplexity/perplexity clean"]) == 6.5
    assert rows[1]["perplexity/perplexity clean n"] == "2" and rows[1]["seeds"] == "0;1"
    low, high = stats.student([6.4, 6.6]).interval
    assert float(rows[1]["perplexity/perplexity clean low"]) == low
    assert float(rows[1]["perplexity/perplexity clean high"]) == high


def test_latex_escapes_and_aligns():
    figure = Figure("a_b %", 1.0, better="up")
    text = tables.latex(comparisons.table(compare(runs(results(suites={"s": record("s", [figure])})))))
    assert r"a\_b \% $\uparrow$" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body}) == 1


@pytest.mark.parametrize(("out", "names"), [
    ("t", ["t.csv", "t.md", "t.tex"]), ("d/", ["d"]),
    ("v1.5", ["v1.5.csv", "v1.5.md", "v1.5.tex"])])
def test_comparison_files(tmp_path, out, names):
    paths = comparisons.write(three(), f"{tmp_path}/{out}")
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert all(p.read_text() for p in paths) and len(paths) == 3


def test_terminal_tables_show_every_figure():
    figures = [Figure(f"figure {i}", i + 0.5) for i in range(12)]
    wide = compare(runs(results(suites={"a": record("a", figures[:6]), "b": record("b", figures[6:])})))
    for width in (80, 300):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(differences.terminal_view(wide, width))
        text = " ".join(console.export_text().split())
        assert all(stats.number(i + 0.5) in text for i in range(12))
    one = compare(runs(results(suites={"a": record("a", figures)})))  # a suite too wide for one table
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(differences.terminal_view(one, 80))
    shown = console.export_text()
    assert "…" not in shown
    assert all(stats.number(i + 0.5) in shown for i in range(12))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.score_table(results(), "title"))
    assert "6.00 [5.50, 6.50]" in console.export_text()


def shown(renderable, width=80):
    """What a terminal of so many columns shows."""
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_two_runs_of_many_figures_stand_side_by_side_in_80_columns():
    figures = [Figure(f"figure {i}", Estimate(i + 0.5, i, i + 1.0), better="up") for i in range(40)]
    suites = {"first": record("first", figures[:20]), "second": record("second", figures[20:])}
    text = shown(differences.terminal_view(compare(runs(results(k=4, suites=suites), results(k=8, suites=suites))), 80))
    lines = text.splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 80 and lines[0].count("k_neurons") == 2
    assert sum(line.count("39.50") == 2 and "0.00 [-0.71, 0.71]" in line for line in lines) == 1  # and the difference


def test_words_of_data_are_no_markup():
    grid = Grid(title="[bold]t", caption="[/x] c", columns=("[red]a", "n"), rows=(("[/dim] [i]", 1.5),))
    text = shown(tables.terminal(grid))
    assert all(words in text for words in ("[bold]t", "[/x] c", "[red]a", "[/dim] [i]"))
    assert "[b]x" in shown(tables.score_table(results(suites={"s": record("s", [Figure("[b]x", 1.0)])}), "[/b]"))


def test_a_wide_table_loses_no_digit_in_a_narrow_terminal():
    cells = tuple(Estimate(i + 0.123456, i + 0.123451, i + 0.123461) for i in range(6))
    text = shown(tables.terminal(Grid(title="", caption="", columns=tuple("abcdef"), rows=(cells,))), 84)
    assert "…" not in text and all(f"{i}.123456" in text for i in range(6))


def test_ticks_are_round_and_inside():
    assert linear_ticks(0.13, 0.87) == (0.2, 0.4, 0.6, 0.8)
    for low, high in ((1.3, 2.4), (0.02, 3e5), (5.0, 50.0)):
        ticks = Scale(low, high, 0, 1, True).ticks()
        assert 2 <= len(ticks) <= 8 and all(low <= t <= high for t in ticks) and list(ticks) == sorted(set(ticks))
    assert Scale(0.0, 10.0, 100, 0)(2.5) == 75


def test_terminal_shows_a_text_that_every_voice_goes_on_with():
    passages = (Passage(given="one", said=(("clean", "a"), ("ablated", ""))),
                Passage(given="two", said=(("clean", "b"), ("ablated", "c"))))
    for chosen, lines in ((passages, ["clean: two b", "ablated: two c"]),
                          (passages[:1], ["clean: one a", "ablated: one (ends at once)"])):
        panel = Passages(title="P", caption="", passages=chosen)
        assert [str(x) for x in tables.first_passages(results(suites={"s": record("s", panels=[panel])}))] == lines
