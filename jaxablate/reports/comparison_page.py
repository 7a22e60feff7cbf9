"""Comparisons as one HTML page, and the files of a comparison: Markdown, CSV, LaTeX, HTML, figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxablate import files
from jaxablate.reports import matched as matches
from jaxablate.reports.compare import Column, Comparison, Row
from jaxablate.reports.html import template
from jaxablate.reports.matched import Matched
from jaxablate.reports.panels import Bar, Bars
from jaxablate.reports.table import ARROWS, csv_text, explanation, latex, markdown, short, steps_text

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headings, the first of them above labels and the others above numbers, and rows of texts."""


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one page: which runs, then for each suite its figures as a table and as bars."""
    suites = tuple(dict.fromkeys(c.suite for c in comparison.columns))
    runs = [[_label(comparison, row), str(len(row.runs)), steps_text(row), " ".join(map(str, row.seeds)),
             ", ".join(row.runs)] for row in comparison.rows]
    sections = [("runs", (("configuration", "n", "checkpoint", "seeds", "runs"), runs), ())]
    for suite in suites:
        chosen = [i for i, c in enumerate(comparison.columns) if c.suite == suite]
        sections.append((suite, _suite_table(comparison, chosen), suite_bars(comparison, suite)))
    said = [("shown:", f"{explanation(comparison)} Bars have the same intervals as whiskers.")]
    return template("comparison.html").render(title="Comparison of runs", said=said, sections=sections,
                                              notes=comparison.notes)


def suite_bars(comparison: Comparison, suite: str) -> tuple[Bars, ...]:
    """A picture for each figure of a suite that two rows or more have."""
    found = []
    for i, column in enumerate(comparison.columns):
        cells = [(_label(comparison, row), row.cells[i]) for row in comparison.rows]
        bars = tuple(Bar(label, cell) for label, cell in cells if cell.value is not None)
        if column.suite == suite and len(bars) > 1:
            found.append(Bars(title=_heading(column), caption="", bars=bars, unit=column.unit))
    return tuple(found)


def write_comparison(comparison: Comparison, out: str, *, figures: bool = False) -> list[Path]:
    """Writes Markdown, CSV, LaTeX and HTML, and for print a picture of each figure.

    Args:
      comparison: what to write.
      out: an existing folder or a name that ends in ``/`` (files ``table.*`` inside), else the files' common prefix.
      figures: whether to draw each figure that two rows have as PNG and SVG, into a folder ``...-figures``.

    Returns:
      The files' paths; of the figures their folder.

    Raises:
      FileError: a folder cannot be made or written to.
    """
    prefix = Path(out) / "table" if out.endswith("/") or Path(out).is_dir() else Path(out)
    texts = {".md": markdown(comparison), ".csv": csv_text(comparison), ".tex": latex(comparison),
             ".html": comparison_page(comparison)}
    paths = write_tables(prefix, texts)
    if figures:
        paths.append(prefix.with_name(f"{prefix.name}-figures"))
        _write_figures(comparison, paths[-1])
    return paths


def write_tables(prefix: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes one file for each suffix.

    Raises:
      FileError: the folder cannot be made or written to.
    """
    return [files.write(prefix.with_name(prefix.name + suffix), text, otherwise="choose another --out")
            for suffix, text in texts.items()]


def matched_page(matched: Matched) -> str:
    """Two matched checkpoints as one page: the losses, then for each suite both figures as a table and as bars."""
    sections = []
    for suite in dict.fromkeys(row.suite for row in matched.rows):
        rows = [row for row in matched.rows if row.suite == suite]
        table = matches.COLUMNS[1:], [matches.cells(row)[1:] for row in rows]
        sections.append((suite, table, [_pair(row) for row in rows]))
    said = [(f"{name}:", f"{side.name} at step {side.step:,}, {side.summary}")
            for name, side in (("model", matched.model), ("baseline", matched.baseline))]
    return template("comparison.html").render(
        title="At equal validation loss" if matched.equal else "At the nearest validation loss",
        said=[*said, ("losses:", matched.verdict), ("shown:", matches.EXPLANATION)], sections=sections,
        notes=matched.notes)


def matched_texts(matched: Matched) -> dict[str, str]:
    """Every table of a matched comparison by suffix."""
    return {".md": matches.markdown(matched), ".csv": matches.csv_text(matched), ".tex": matches.latex(matched),
            ".html": matched_page(matched)}


def _pair(row: matches.MatchedRow) -> Bars:
    bars = (Bar("model", row.model), Bar("baseline", row.baseline))
    return Bars(title=f"{row.name} {ARROWS[row.better]}".strip(), caption="", bars=bars, unit=row.unit)


def _suite_table(comparison: Comparison, chosen: Sequence[int]) -> Table:
    """Figures as rows and configurations as columns: there are more figures than a page is wide."""
    head = ["figure", *(_label(comparison, row) for row in comparison.rows), "unit"]
    rows = [[_heading(comparison.columns[i]), *(str(row.cells[i]) for row in comparison.rows),
             comparison.columns[i].unit] for i in chosen]
    return head, rows


def _label(comparison: Comparison, row: Row) -> str:
    """A row's configuration in words, its name where that is all that differs."""
    if comparison.fields == ("run",):
        return row.labels[0]
    return ", ".join(f"{short(name)} {value}" for name, value in zip(comparison.fields, row.labels, strict=True))


def _heading(column: Column) -> str:
    return f"{column.name} {ARROWS[column.better]}".strip()


def _write_figures(comparison: Comparison, folder: Path) -> None:
    from jaxablate.reports.figures import write_figure

    folder.mkdir(parents=True, exist_ok=True)
    for suite in dict.fromkeys(c.suite for c in comparison.columns):
        for panel in suite_bars(comparison, suite):
            name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in panel.title.rstrip(" ↑↓"))
            write_figure(panel, folder / f"{suite}-{name}")

