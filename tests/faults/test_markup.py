"""Names and texts of users and data are data in every file that is written: Markdown, CSV, LaTeX, HTML, SVG."""

import csv
import html.parser
import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from helpers.commands import error_of, run_command
from helpers.explorer import read_page
from helpers.results import PANELS, record, results
from markdown_it import MarkdownIt

from faults.hostile import TEXTS, folder_names, seen
from jaxablate.commands.circuit import CircuitSettings
from jaxablate.reports import compare as comparisons
from jaxablate.reports import results as files
from jaxablate.reports import svg, tables
from jaxablate.reports.compare import ScoredRun, compare
from jaxablate.reports.explorer import ShownRun, write_runs
from jaxablate.reports.figures import standalone
from jaxablate.reports.html import circuit_page
from jaxablate.reports.panels import Bar, Bars, CircuitGraph, Curves, Grid, Heatmap, Network, Node, Series
from jaxablate.reports.results import Figure
from jaxablate.terminal import printable

TEXTS = tuple(text for text in TEXTS if text.strip() and len(text) < 1000)


def line(text):
    return printable(" ".join(text.split()))


class Words(html.parser.HTMLParser):
    """Text of a page, and names of its elements and attributes."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.marks = [], set()
        self.feed(page)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_starttag(self, tag, attrs):
        self.marks |= {tag, *(name for name, _ in attrs)}
        self.texts += [value for _, value in attrs if value]


def grid(text):
    return Grid(title=text, caption=text, columns=(text, "n"), rows=((text, 1.5), ("b", 2.5)))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_markdown_shows_the_text_in_its_own_cell(text):
    """A line break in a name broke the table, and angle brackets in a cell stayed an element."""
    shown = MarkdownIt("commonmark").enable("table").render(tables.markdown(grid(text), [text]))
    words = Words(shown)
    assert words.marks == {"p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "style"}
    assert shown.count("<td") == 4 and [x.strip() for x in words.texts].count(line(text)) == 4


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_csv_holds_no_formula(text):
    """A run in the folder ``=1+1`` was a formula in the spreadsheet that opened the table."""
    rows = list(csv.reader(io.StringIO(tables.csv_text(grid(text)), newline="")))
    assert len(rows) == 3 and {len(row) for row in rows} == {2}
    for cell in (rows[0][0], rows[1][0]):
        assert cell in (printable(text), f"'{printable(text)}") and (cell[0] not in "=+-@\t\r" or cell == "-")


def test_csv_keeps_negative_numbers_and_guards_each_run_of_a_cell():
    assert [tables.csv_words(x) for x in ("-0.5", "-1e-5", "-", "-a", "\uff1dx")] == ["-0.5", "-1e-5", "-", "'-a",
                                                                                   "'\uff1dx"]
    runs = [ScoredRun(name=name, results=results(seed=seed)) for seed, name in enumerate(("a", "=1+1"))]
    assert comparisons.data_table(compare(runs)).rows[0][1] == "a;'=1+1"


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_latex_has_one_row_a_line_and_no_command_of_the_text(text):
    """A line break ended a comment, and a cell that begins with a bracket was the option of the row before it."""
    lines = tables.latex(grid(text)).splitlines()
    assert len(lines) == 10 and lines[0].startswith("% ") and lines[1].startswith("% ")
    body = [x for x in lines[2:] if x.endswith(r"\\")]
    assert [re.sub(r"\\&", "", x).count("&") for x in body] == [1, 1, 1]
    assert not [x for x in body if x.startswith(("[", "*"))]
    known = r"\\(text\w+\{\}|char34\{\}|[&%$#_{}]|\\$)|\$[^$]*\$"
    assert not re.search(r"[\\$&#^_~%]", re.sub(known, "", body[1]).replace(" & ", "", 1))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_the_explorer_holds_the_text_as_data_and_nothing_of_it_as_markup(text, tmp_path):
    figures = [Figure(text, 1.5, text)]
    found = results(suites={text: record(text, figures, [grid(text), *PANELS], **{"option": text})}, tokenizer=text)
    plain = results(suites={"s": record("s", [Figure("f", 1.5)], PANELS)})
    marks = Words(write_runs([ShownRun(name="run", results=plain)], tmp_path / "plain.html").read_text()).marks
    page = write_runs([ShownRun(name=text, results=found)], tmp_path / "page.html", notes=[text])
    assert Words(page.read_text()).marks == marks
    manifest, blobs = read_page(page)
    assert manifest["runs"][0]["name"] == text == manifest["notes"][0]
    assert blobs[manifest["runs"][0]["results"]]["suites"][text]["figures"][0]["name"] == text


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_pictures_are_whole_xml(text):
    """A control character in a name made an SVG file that no program opens."""
    panels = (
        Bars(title=text, caption="", bars=(Bar(text, 1.0),), mark=0.5, mark_label=text),
        Curves(title=text, caption="", x_label=text, y_label=text, series=(Series(label=text, x=(1, 2), y=(1, 2)),)),
        Heatmap(title=text, caption="", rows=(text,), values=((1.0,),), x_label=text, value_label=text,
                columns=(text,), bars=(0.5,), bar_label=text),
        Network(title=text, caption="", nodes=(Node(label=text, size=1.0),), edges=(), size_label=text,
                weight_label=text),
        *PANELS[:1])
    for panel in panels:
        ElementTree.fromstring(standalone(panel))
    graph = CircuitGraph(title=text, caption=text, nodes=(), edges=(), score_label=text)
    assert "<script>alert" not in circuit_page(graph, [(text, text)], text)
    assert ElementTree.fromstring(svg.picture(1, 1, text, [])).get("aria-label") is not None


def test_compare_shows_every_name_of_a_folder(tmp_path, monkeypatch, capsys):
    """A folder ``a[/b]`` raised MarkupError after the work was done; ``[k=2]`` was shown as another path."""
    monkeypatch.chdir(tmp_path)
    for name in folder_names():
        files.write(tmp_path / name, results())
        capsys.readouterr()
        run_command("compare", f"./{name}", "--out", f"./{name}/")
        out = capsys.readouterr().out
        assert seen(name) in seen(out) and "\x1b" not in out and (tmp_path / name / "table.md").is_file()


def test_a_figure_of_a_hostile_suite_stays_in_its_folder(tmp_path):
    """The name of a suite is from results.json, and became the path of a picture."""
    names = ("../../a", "/a", "a|b", "a*b", "..", "a" * 300)
    suites = {name: record(name, [Figure("x/../y", 1.5)]) for name in names}
    comparison = compare([ScoredRun(name=str(i), results=results(k=4 + i, suites=suites)) for i in range(2)])
    folder = comparisons.write(comparison, f"{tmp_path}/out", figures=True)[-1]
    assert len(list(folder.glob("*.svg"))) == len(names) and {p.name for p in tmp_path.iterdir()} == {
        "out.md", "out.csv", "out.tex", "out-figures"}


def test_folders_made_from_names_lie_in_the_working_directory(tmp_path):
    for name, at in itertools.product(("../../a", "[/b]", "=1", "a\nb"), ("prompt_file", "load")):
        settings = CircuitSettings(workdir=tmp_path, **{at: tmp_path / f"{name}.json"})
        assert settings.folder().parent == tmp_path / "circuits" and re.fullmatch(r"[\w.+-]+", settings.folder().name)


@pytest.mark.parametrize("argument", ["--text", "--search"])
def test_a_text_that_is_no_unicode_is_refused(tmp_path, capsys, argument):
    """An argument of bytes that are not UTF-8 comes as halves of surrogate pairs, which no file takes."""
    command = {"--text": "explain", "--search": "neurons"}[argument]
    assert "is not UTF-8" in error_of(capsys, command, "--workdir", tmp_path, argument, "a\udcff")
