"""Figures as tables: for the terminal (rich), Markdown, CSV and LaTeX."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxablate.reports.compare import Cell, Column, Comparison, Row
from jaxablate.reports.panels import Passages
from jaxablate.reports.results import Results

ARROWS = {"up": "↑", "down": "↓", "none": ""}
LATEX_ARROWS = {"up": r"$\uparrow$", "down": r"$\downarrow$", "none": ""}
_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "|": r"$|$", "±": r"$\pm$", "–": "--", "≥": r"$\ge$"}


def number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number as people read it: as many decimals as its interval warrants, else four significant digits.

    >>> number(6.4712, 6.31, 6.63), number(0.00012345), number(14535249), number(None)
    ('6.47', '0.0001234', '14,535,249', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1e4):
        return f"{int(value):,}"
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        decimals = max(0, min(6, 1 - math.floor(math.log10((high - low) / 2))))
        return f"{value:,.{decimals}f}"
    return _significant(value)


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -5:
        return f"{value:.3e}"
    return f"{value:,.{max(0, 3 - size)}f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval, with the decimals its width warrants; empty where there is none.

    >>> interval(6.31, 6.63), interval(None, None)
    ('6.31 – 6.63', '')
    """
    if low is None or high is None:
        return ""
    return f"{number(low, low, high)} – {number(high, low, high)}"


def cell_text(cell: Cell | None) -> str:
    """``mean ± half width`` where the interval is even about the value, ``value [low, high]`` else, ``-`` for nothing.

    >>> cell_text(Cell(value=6.5, low=6.38, high=6.62, n=3))
    '6.50 ± 0.12'
    """
    if cell is None:
        return "-"
    value = number(cell.value, cell.low, cell.high)
    if cell.low is None or cell.high is None or cell.high <= cell.low:
        return value
    if cell.n > 1:
        return f"{value} ± {number((cell.high - cell.low) / 2, cell.low, cell.high)}"
    return f"{value} [{number(cell.low, cell.low, cell.high)}, {number(cell.high, cell.low, cell.high)}]"


def score_table(results: Results, title: str = "") -> Table:
    """Headline figures of one checkpoint for the terminal."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name, justify in (("suite", "left"), ("figure", "left"), ("value", "right"), ("95 % interval", "center"),
                          ("unit", "left"), ("better", "center")):
        table.add_column(name, justify=justify)
    for name, record in results.suites.items():
        rows = record.figures
        for i, f in enumerate(rows):
            value, ends = number(f.value, f.low, f.high), interval(f.low, f.high)
            table.add_row(name if i == 0 else "", f.name, value, ends, f.unit, ARROWS[f.better],
                          end_section=i == len(rows) - 1)
    return table


def first_passages(results: Results) -> list[Text]:
    """The first text of each panel of texts that every voice goes on with: the given in bold, then its own words."""
    panels = [p for record in results.suites.values() for p in record.panels if isinstance(p, Passages) and p.passages]
    lines = []
    for panel in panels:
        full = (p for p in panel.passages if all(text.strip() for _, text in p.said))
        shown = next(full, panel.passages[0])
        lines += [Text.assemble((f"{voice}: ", "dim"), (shown.given, "bold"), " ", prose(text) or "(ends at once)")
                  for voice, text in shown.said]
    return lines


def prose(text: str) -> str:
    """Text without blank lines at its ends and without more than one in a row.

    >>> prose(" a\\n\\n \\nb ")
    'a\\n\\nb'
    """
    return re.sub(r"\n\s*\n", "\n\n", text.strip())


def comparison_tables(comparison: Comparison, width: int) -> Group:
    """The comparison for a terminal of ``width`` columns: one table where it fits, else one below another by suite,
    and as many of a suite as it needs."""
    every = range(len(comparison.columns))
    if _fits(comparison, every, width):
        return Group(_rich_table(comparison, every, ""), *_rich_notes(comparison))
    parts = []
    for suite in dict.fromkeys(c.suite for c in comparison.columns):
        chosen = [i for i in every if comparison.columns[i].suite == suite]
        parts += [_rich_table(comparison, part, suite) for part in _fitting_parts(comparison, chosen, width)]
    return Group(*parts, *_rich_notes(comparison))


def _fits(comparison: Comparison, chosen: Sequence[int], width: int) -> bool:
    return Console(width=10_000).measure(_rich_table(comparison, chosen, "")).maximum <= width


def _fitting_parts(comparison: Comparison, chosen: Sequence[int], width: int) -> list[list[int]]:
    """The columns in their order, as many in each part as fit; at least one."""
    parts: list[list[int]] = []
    for i in chosen:
        if parts and _fits(comparison, [*parts[-1], i], width):
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def _rich_table(comparison: Comparison, chosen: Sequence[int], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name in (*comparison.fields, "n", "checkpoint"):
        table.add_column(short(name), no_wrap=True)
    for i in chosen:
        table.add_column("\n".join(textwrap.wrap(_heading(comparison.columns[i]), 16)), justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*row.labels, str(len(row.runs)), steps_text(row), *(cell_text(row.cells[i]) for i in chosen))
    return table


def _rich_notes(comparison: Comparison) -> list[Text]:
    return [Text(f"note: {note}", style="yellow") for note in comparison.notes]


def short(field: str) -> str:
    """Last part of a dotted configuration name; the first is where the setting lives, which a reader seldom needs.

    >>> short("model.k_neurons")
    'k_neurons'
    """
    return field.rsplit(".", 1)[-1]


def steps_text(row: Row) -> str:
    """Step of the row's checkpoints, or the range over its runs."""
    low, high = row.steps[0], row.steps[-1]
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _heading(column: Column) -> str:
    return f"{column.name} {ARROWS[column.better]}".strip()


def explanation(comparison: Comparison) -> str:
    """What the numbers in the table are, for a caption."""
    most = max((len(row.runs) for row in comparison.rows), default=1)
    single = "a run alone: value and, where its suite gives one, the 95 % interval within the run"
    if most == 1:
        return f"One run a row ({single})."
    return f"n runs of a configuration: mean ± half the 95 % interval (Student t over the runs); {single}."


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table with its notes."""
    head = [*map(short, comparison.fields), "n", "checkpoint", *map(_heading, comparison.columns)]
    rule = ["---"] * (len(comparison.fields) + 2) + ["---:"] * len(comparison.columns)
    lines = [markdown_row(head), markdown_row(rule)]
    lines += [markdown_row([*row.labels, str(len(row.runs)), steps_text(row), *map(cell_text, row.cells)])
              for row in comparison.rows]
    notes = [f"- {note}" for note in comparison.notes]
    return "\n".join([*lines, "", explanation(comparison), *([""] if notes else []), *notes, ""])


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def csv_text(comparison: Comparison) -> str:
    """The comparison as CSV: value, interval ends and n of each figure in columns of their own, full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = [f"{c.suite}/{c.name}{suffix}" for c in comparison.columns for suffix in ("", " low", " high", " n")]
    writer.writerow([*comparison.fields, "runs", "seeds", "steps", *parts])
    for row in comparison.rows:
        values = [v for cell in row.cells for v in _csv_cells(cell)]
        writer.writerow([*row.labels, ";".join(row.runs), ";".join(map(str, row.seeds)), ";".join(map(str, row.steps)),
                         *values])
    return out.getvalue()


def _csv_cells(cell: Cell | None) -> tuple[object, ...]:
    if cell is None:
        return ("", "", "", 0)
    return (cell.value, "" if cell.low is None else cell.low, "" if cell.high is None else cell.high, cell.n)


def latex(comparison: Comparison) -> str:
    """The comparison as a LaTeX ``tabular`` (package booktabs)."""
    head = [*(latex_escape(short(f)) for f in comparison.fields), "$n$", "checkpoint"]
    head += [f"{latex_escape(c.name)} {LATEX_ARROWS[c.better]}".strip() for c in comparison.columns]
    spec = "l" * (len(comparison.fields)) + "rr" + "r" * len(comparison.columns)
    rows = [" & ".join([*map(latex_escape, row.labels), str(len(row.runs)), latex_escape(steps_text(row)),
                        *(latex_escape(cell_text(c)) for c in row.cells)]) + r" \\" for row in comparison.rows]
    comment = f"% {explanation(comparison)}"
    top = [comment, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*top, *rows, r"\bottomrule", r"\end{tabular}", ""])


def latex_escape(text: str) -> str:
    """Text with what LaTeX would read as its own, and signs it lacks, written its way."""
    return "".join(_LATEX.get(c, c) for c in text)
