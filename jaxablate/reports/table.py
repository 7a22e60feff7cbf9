"""Figures as tables: for the terminal (rich), Markdown, CSV and LaTeX."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxablate import stats
from jaxablate.reports.compare import Column, Comparison, Row
from jaxablate.reports.panels import Passages
from jaxablate.reports.results import Results
from jaxablate.stats import Estimate

ARROWS = {"up": "↑", "down": "↓", "none": ""}
LATEX_ARROWS = {"up": r"$\uparrow$", "down": r"$\downarrow$", "none": ""}
_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "|": r"$|$", "±": r"$\pm$", "–": "--", "≥": r"$\ge$"}


def cell_text(value: str | int | float | Estimate | None) -> str:
    """A cell of a table as text."""
    return value if isinstance(value, str) else str(stats.estimate(value))


def score_table(results: Results, title: str = "") -> Table:
    """Headline figures of one checkpoint for the terminal."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name, justify in (("suite", "left"), ("figure", "left"), ("value", "right"), ("unit", "left"),
                          ("better", "center")):
        table.add_column(name, justify=justify)
    for name, record in results.suites.items():
        rows = record.figures
        for i, f in enumerate(rows):
            table.add_row(name if i == 0 else "", f.name, str(f.estimate), f.unit, ARROWS[f.better],
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
        table.add_row(*row.labels, str(len(row.runs)), steps_text(row), *(str(row.cells[i]) for i in chosen))
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
    return f"n runs of a configuration: mean and its 95 % interval (Student t over the runs); {single}."


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table with its notes."""
    head = [*map(short, comparison.fields), "n", "checkpoint", *map(_heading, comparison.columns)]
    rule = ["---"] * (len(comparison.fields) + 2) + ["---:"] * len(comparison.columns)
    lines = [markdown_row(head), markdown_row(rule)]
    lines += [markdown_row([*row.labels, str(len(row.runs)), steps_text(row), *map(str, row.cells)])
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
        values = [v for cell, n in zip(row.cells, row.counts, strict=True)
                  for v in (*("" if x is None else x for x in (cell.value, cell.low, cell.high)), n)]
        writer.writerow([*row.labels, ";".join(row.runs), ";".join(map(str, row.seeds)), ";".join(map(str, row.steps)),
                         *values])
    return out.getvalue()


def latex(comparison: Comparison) -> str:
    """The comparison as a LaTeX ``tabular`` (package booktabs)."""
    head = [*(latex_escape(short(f)) for f in comparison.fields), "$n$", "checkpoint"]
    head += [f"{latex_escape(c.name)} {LATEX_ARROWS[c.better]}".strip() for c in comparison.columns]
    spec = "l" * (len(comparison.fields)) + "rr" + "r" * len(comparison.columns)
    rows = [" & ".join([*map(latex_escape, row.labels), str(len(row.runs)), latex_escape(steps_text(row)),
                        *(latex_escape(str(c)) for c in row.cells)]) + r" \\" for row in comparison.rows]
    comment = f"% {explanation(comparison)}"
    top = [comment, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    return "\n".join([*top, *rows, r"\bottomrule", r"\end{tabular}", ""])


def latex_escape(text: str) -> str:
    """Text with what LaTeX would read as its own, and signs it lacks, written its way."""
    return "".join(_LATEX.get(c, c) for c in text)
