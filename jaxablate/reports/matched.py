"""Two checkpoints of equal quality side by side: every figure of one beside the other's."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxablate.reports.results import Better, Results
from jaxablate.reports.table import ARROWS, LATEX_ARROWS, latex_escape, markdown_row
from jaxablate.stats import Estimate, number

COLUMNS = ("suite", "figure", "model", "baseline", "difference", "intervals overlap", "unit", "better")
_WORDS = ("suite", "figure", "unit")
"""Columns of words, to the left; the others are to the right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchedRow:
    """One figure of both."""

    suite: str
    name: str
    unit: str
    better: Better
    model: Estimate
    baseline: Estimate

    @property
    def difference(self) -> float:
        """Model minus baseline."""
        return self.model.value - self.baseline.value

    @property
    def overlap(self) -> bool | None:
        """Whether the two 95 % intervals overlap; None where one has none. Apart means different; overlapping ones do
        not mean equal."""
        return self.model.overlaps(self.baseline)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    name: str
    """Of the run."""
    step: int
    summary: str
    """The model in one line."""
    loss: Estimate
    """Clean validation loss, nats a token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """The whole comparison."""

    model: Side
    baseline: Side
    tolerance: float
    """Nats by which the losses may differ."""
    rows: tuple[MatchedRow, ...]
    """The losses first."""
    notes: tuple[str, ...]

    @property
    def gap(self) -> float:
        """Loss of the model minus that of the baseline, nats."""
        return self.model.loss.value - self.baseline.loss.value

    @property
    def equal(self) -> bool:
        """Whether the losses are within the tolerance of each other."""
        return abs(self.gap) <= self.tolerance

    @property
    def verdict(self) -> str:
        """What the losses say, in one sentence."""
        gap = f"the validation losses differ by {abs(self.gap):.4f} nats"
        if self.equal:
            return f"Matched: {gap}, within the tolerance of {self.tolerance:g}."
        worse = "worse" if self.gap > 0 else "better"
        return (f"NOT matched: {gap}, more than the tolerance of {self.tolerance:g}; the model is the {worse} of the "
                "two, and what differs below may be due to that.")


def match_rows(model: Results, baseline: Results, suites: Sequence[str]
               ) -> tuple[tuple[MatchedRow, ...], tuple[str, ...]]:
    """Figures that both have, in the order of the model's suites, and the suite of each that only the model has."""
    rows, lacking = [], []
    for suite in suites:
        others = {f.name: f for f in baseline.suites[suite].figures if f.estimate.value is not None}
        for f in model.suites[suite].figures:
            if f.estimate.value is None or f.name not in others:
                lacking.append(suite)
            else:
                rows.append(MatchedRow(suite=suite, name=f.name, unit=f.unit, better=f.better, model=f.estimate,
                                       baseline=others[f.name].estimate))
    return tuple(rows), tuple(lacking)


def cells(row: MatchedRow) -> tuple[str, ...]:
    """The texts of a row, one for each of `COLUMNS`."""
    overlap = {True: "yes", False: "no", None: "-"}[row.overlap]
    return row.suite, row.name, str(row.model), str(row.baseline), _signed(row), overlap, row.unit, ARROWS[row.better]


def _signed(row: MatchedRow) -> str:
    """The difference with a sign, and as many decimals as the wider of the two intervals warrants."""
    ends = [x.interval for x in (row.model, row.baseline) if x.interval is not None]
    half = max([high - low for low, high in ends if math.isfinite(high - low)], default=0) / 2
    size = number(abs(row.difference), *((-half, half) if half else ()))
    return f"{'-' if row.difference < 0 else '+'}{size}" if row.difference else "0"


def rich_view(matched: Matched) -> Group:
    """The comparison for a terminal."""
    table = Table(title=_title(matched), title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name.replace(" ", "\n"), justify="left" if name in _WORDS else "right")
    last = None
    for row in matched.rows:
        suite, *others = cells(row)
        if last not in (None, suite):
            table.add_section()
        table.add_row("" if suite == last else suite, *others)
        last = suite
    verdict = Text(matched.verdict, style="green" if matched.equal else "bold red")
    return Group(table, verdict, *(Text(f"note: {note}", style="yellow") for note in matched.notes))


def _title(matched: Matched) -> str:
    m, b = matched.model, matched.baseline
    return f"model: {m.name} at step {m.step:,}; baseline: {b.name} at step {b.step:,}"


def markdown(matched: Matched) -> str:
    """The comparison as a Markdown table with its notes."""
    rule = ["---" if name in _WORDS else "---:" for name in COLUMNS]
    lines = [f"{_title(matched)}.", "", matched.verdict, "", markdown_row(COLUMNS), markdown_row(rule)]
    lines += [markdown_row(cells(row)) for row in matched.rows]
    notes = [f"- {note}" for note in matched.notes]
    return "\n".join([*lines, "", EXPLANATION, *([""] if notes else []), *notes, ""])


EXPLANATION = ("Each interval is that of the suite, within one run. Intervals apart mean that the figures differ "
               "between these two checkpoints; overlapping ones do not mean that they are equal. One run each says "
               "nothing of other seeds.")


def csv_text(matched: Matched) -> str:
    """The comparison as CSV in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["suite", "figure", "unit", "better", *(f"{side}{end}" for side in ("model", "baseline")
                                                            for end in ("", " low", " high")),
                     "difference", "overlap", "model step", "baseline step", "matched"])
    for row in matched.rows:
        ends = [v for f in (row.model, row.baseline) for v in (f.value, f.low, f.high)]
        writer.writerow([row.suite, row.name, row.unit, row.better, *ends, row.difference, row.overlap,
                         matched.model.step, matched.baseline.step, matched.equal])
    return out.getvalue()


def latex(matched: Matched) -> str:
    """The comparison as a LaTeX ``tabular`` (package booktabs)."""
    head = " & ".join(latex_escape(name) for name in COLUMNS) + r" \\"
    rows = [" & ".join([*(latex_escape(x) for x in cells(row)[:-1]), LATEX_ARROWS[row.better]]) + r" \\"
            for row in matched.rows]
    top = [f"% {_title(matched)}", f"% {matched.verdict}", f"% {EXPLANATION}", r"\begin{tabular}{llrrrrll}",
           r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *rows, r"\bottomrule", r"\end{tabular}", ""])
