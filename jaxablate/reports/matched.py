"""Two checkpoints of equal quality side by side: every figure of one beside the other's."""

import dataclasses
import math
from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from jaxablate.reports.panels import Grid
from jaxablate.reports.results import Better, Results
from jaxablate.reports.tables import NARROWEST, csv_text, fitted, heading, latex, markdown, terminal
from jaxablate.stats import Estimate, number

EXPLANATION = ("Each interval is that of the suite, within one run. Intervals apart mean that the figures differ "
               "between these two checkpoints; overlapping ones do not mean that they are equal. One run each says "
               "nothing of other seeds.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchedRow:
    """One figure of both; neither number is missing."""

    suite: str
    name: str
    unit: str
    better: Better
    model: Estimate
    baseline: Estimate

    @property
    def difference(self) -> float:
        """Model minus baseline."""
        return float(self.model) - float(self.baseline)

    @property
    def difference_text(self) -> str:
        """The difference with a sign, and as many decimals as the wider of the two intervals warrants."""
        ends = [x.interval for x in (self.model, self.baseline) if x.interval is not None]
        half = max([high - low for low, high in ends if math.isfinite(high - low)], default=0) / 2
        size = number(abs(self.difference), *((-half, half) if half else ()))
        return f"{'-' if self.difference < 0 else '+'}{size}" if self.difference else "0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two checkpoints."""

    name: str
    """Name of the run."""
    step: int
    summary: str
    """The model in one line."""
    loss: Estimate
    """Clean validation loss, nats a token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """Two checkpoints and all their figures."""

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
        return float(self.model.loss) - float(self.baseline.loss)

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
        others = {f.name: f.estimate for f in baseline.suites[suite].figures if f.estimate.value is not None}
        for f in model.suites[suite].figures:
            if f.estimate.value is None or f.name not in others:
                lacking.append(suite)
            else:
                rows.append(MatchedRow(suite=suite, name=f.name, unit=f.unit, better=f.better, model=f.estimate,
                                       baseline=others[f.name]))
    return tuple(rows), tuple(lacking)


def table(matched: Matched) -> Grid:
    """The comparison for readers."""
    m, b = matched.model, matched.baseline
    overlap = {True: "yes", False: "no", None: "-"}
    rows = tuple((x.suite, heading(x.name, x.unit, x.better), x.model, x.baseline, x.difference_text,
                  overlap[x.model.overlaps(x.baseline)]) for x in matched.rows)
    return Grid(title=f"model: {m.name} at step {m.step:,}; baseline: {b.name} at step {b.step:,}", rows=rows,
                caption=f"{matched.verdict} {EXPLANATION}",
                columns=("suite", "figure", "model", "baseline", "difference", "intervals overlap"))


def data_table(matched: Matched) -> Grid:
    """The comparison for programs."""
    rows = tuple((x.suite, x.name, x.unit, x.better, x.model, x.baseline, x.difference, x.model.overlaps(x.baseline),
                  matched.model.step, matched.baseline.step, matched.equal) for x in matched.rows)
    return Grid(title="", caption="", rows=rows, columns=(
        "suite", "figure", "unit", "better", "model", "baseline", "difference", "overlap", "model step",
        "baseline step", "matched"))


def terminal_view(matched: Matched, width: int = 120) -> Group:
    """The comparison for a terminal of ``width`` columns; intervals stand below their numbers where it is narrow."""
    grid = dataclasses.replace(table(matched), caption=EXPLANATION)
    both = fitted(grid, width) or fitted(grid, width, stacked=True, widest=11) or terminal(
        grid, grouped=True, most=NARROWEST, widest=10, stacked=True)
    verdict = Text(matched.verdict, style="green" if matched.equal else "bold red")
    return Group(both, verdict, *(Text(f"note: {note}", style="yellow") for note in matched.notes))


def texts(matched: Matched) -> dict[str, str]:
    """Content of every file of the comparison, by suffix."""
    grid = table(matched)
    return {".md": markdown(grid, matched.notes), ".csv": csv_text(data_table(matched)), ".tex": latex(grid)}
