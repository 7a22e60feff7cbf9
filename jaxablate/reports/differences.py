"""Configurations against one of them: differences of every figure with intervals, and tests over seeds.

Where both configurations were run with the same seeds, runs of one seed are a pair: they share the order of the data
and what is drawn at the start, and the test is of the pairs' differences.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxablate import stats
from jaxablate.reports.compare import Comparison, Row, figures_table
from jaxablate.reports.compare import table as broad_table
from jaxablate.reports.panels import Cell, Grid
from jaxablate.reports.tables import fitted, narrowest, table_width, terminal
from jaxablate.stats import Estimate

_BARE = "The configurations' own intervals are left out here: a wider terminal shows them, and --out has them."
FEW = 3
"""Configurations up to which figures stand below each other, with differences beside them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of a configuration minus that of the reference."""

    row: int
    """Place of the configuration among `Comparison.rows`."""
    column: int
    """Place of the figure among `Comparison.columns`."""
    estimate: Estimate
    kind: str
    """What interval and test are made of: ``paired`` or ``unpaired`` seeds, ``single`` runs; empty for neither."""
    p: float | None = None
    """Two-sided p of a t-test over seeds."""
    corrected: float | None = None
    """The same after Holm's correction for all tests that are shown together."""


def differences(comparison: Comparison, reference: int = 0) -> tuple[Difference, ...]:
    """Every figure that a configuration and the reference both have, by figure, then by configuration."""
    base = comparison.rows[reference]
    found = [_difference(i, j, row, base) for j in range(len(comparison.columns))
             for i, row in enumerate(comparison.rows)
             if i != reference and row.cells[j].value is not None and base.cells[j].value is not None]
    tested = [i for i, d in enumerate(found) if d.p is not None]
    corrected = dict(zip(tested, stats.holm([p for d in found if (p := d.p) is not None]), strict=True))
    return tuple(dataclasses.replace(d, corrected=corrected.get(i)) for i, d in enumerate(found))


def _difference(i: int, j: int, row: Row, base: Row) -> Difference:
    ours, theirs = (_numbers(x, j) for x in (row, base))
    if min(len(ours), len(theirs)) >= 2:
        paired = ours.keys() == theirs.keys()
        keys = list(ours)
        estimate, p = stats.t_test(list(ours.values()), [theirs[k] for k in keys] if paired else list(theirs.values()),
                                   paired=paired)
        return Difference(row=i, column=j, estimate=estimate, kind="paired" if paired else "unpaired", p=p)
    if len(row.runs) == len(base.runs) == 1:
        estimate = stats.difference(row.cells[j], base.cells[j])
        return Difference(row=i, column=j, estimate=estimate, kind="single" if estimate.has_interval else "")
    alone = Estimate(float(row.cells[j]) - float(base.cells[j]))
    return Difference(row=i, column=j, estimate=alone, kind="")


def _numbers(row: Row, j: int) -> dict[tuple[object, ...], float]:
    """Each run's number by what it repeats; runs that repeat the same thing are told apart by their place."""
    seen: dict[tuple[object, ...], float] = {}
    for place, (key, value) in enumerate(zip(row.repetitions, row.samples[j], strict=True)):
        if value is not None:
            seen[key if key not in seen else (*key, place)] = value
    return seen


def explanation(found: Sequence[Difference], name: str) -> str:
    """What the differences are, for a caption; ``name`` is the reference."""
    kinds = {d.kind for d in found}
    parts = [f"Differences are from {name}, with 95 % intervals."]
    if "paired" in kinds:
        parts.append("Seeds are paired: Student's t-test of the differences of runs of one seed.")
    if "unpaired" in kinds:
        parts.append("Seeds that are not the same on both sides are unpaired: Welch's t-test.")
    tests = sum(d.corrected is not None for d in found)
    if tests:
        parts.append(f"p is corrected by Holm's method for the {tests} tests shown here; other choices of rows make "
                     "other corrections." if tests > 1 else "p is of the only test shown here.")
    if "single" in kinds:
        parts.append("Of one run on each side the interval is made of the two runs' own, as if they were independent: "
                     "it tells nothing of other seeds, and there is no test.")
    if "" in kinds:
        parts.append("A difference without an interval has too few runs, or figures without one.")
    return " ".join(parts)


def table(comparison: Comparison, reference: int = 0) -> Grid:
    """Every difference in a row: suite, figure, configuration, difference, corrected p."""
    found = differences(comparison, reference)
    rows = tuple((comparison.columns[d.column].suite, comparison.columns[d.column].heading,
                  comparison.label(comparison.rows[d.row]), d.estimate, p_cell(d)) for d in found)
    return Grid(title="", caption=explanation(found, comparison.label(comparison.rows[reference])) if found else "",
                columns=("suite", "figure", "configuration", "difference", "p"), rows=rows)


def p_cell(difference: Difference) -> Cell:
    """The corrected p as tables write it: four decimals, and none below those."""
    p = difference.corrected
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


# In a terminal -------------------------------------------------------------------------------------------------------


def terminal_view(comparison: Comparison, width: int, reference: int | None = None) -> Group:
    """The comparison for a terminal of ``width`` columns.

    Two or three configurations stand side by side, a row for each figure, with differences from the reference (the
    first one, unless another is given). More of them are a row each where that fits, else figures stand below each
    other and as many configurations side by side as fit; differences are below where a reference is given.
    """
    first = 0 if reference is None else reference
    few = 1 < len(comparison.rows) <= FEW
    found = differences(comparison, first) if few or reference is not None else ()
    notes = [comparison.explanation]
    if not few:
        tables = _blocks(comparison, width)
    else:
        both, bare = _side_by_side(comparison, found if len(comparison.rows) == 2 else (), width)
        tables = [both]
        notes += [_BARE] if bare else []
    if found:
        notes.append(explanation(found, comparison.label(comparison.rows[first])))
        if len(comparison.rows) > 2:
            tables.append(narrowest(_without_repeats(table(comparison, first)), width))
    shown = [part for one in tables for part in (one, Text(""))]
    return Group(*shown, *(Text(note, style="dim") for note in notes),
                 *(Text(f"note: {x}", style="yellow") for x in comparison.notes))


def _side_by_side(comparison: Comparison, found: Sequence[Difference], width: int) -> tuple[Table, bool]:
    """All configurations with differences beside them, and whether the intervals of the configurations themselves are
    left out because it would be too wide with them."""
    grid = figures_table(comparison, comparison.rows)
    by_column = {d.column: d for d in found}
    tested = any(d.corrected is not None for d in found)
    more = ("difference", *(["p"] if tested else [])) if found else ()

    def rows(bare: bool) -> Iterator[tuple[Cell, ...]]:
        for i, row in enumerate(grid.rows):
            d = by_column.get(i - 2)  # the first two rows are numbers of runs and steps
            beside = ("",) * len(more) if d is None else (d.estimate, p_cell(d))[: len(more)]
            yield (*row[:2], *(_bare(cell) if bare else cell for cell in row[2:]), *beside)

    wide, compact = (dataclasses.replace(grid, columns=(*grid.columns, *more), rows=tuple(rows(bare)))
                     for bare in (False, True))
    fitting = fitted(wide, width)
    return (narrowest(compact, width), True) if fitting is None else (fitting, False)


def _bare(cell: Cell) -> Cell:
    return dataclasses.replace(cell, low=None, high=None) if isinstance(cell, Estimate) else cell


def _without_repeats(grid: Grid) -> Grid:
    """The figure's name in the first of its rows alone."""
    rows = [row if i == 0 or row[:2] != grid.rows[i - 1][:2] else (row[0], "", *row[2:])
            for i, row in enumerate(grid.rows)]
    return dataclasses.replace(grid, rows=tuple(rows), caption="")


def _blocks(comparison: Comparison, width: int) -> list[Table]:
    """A row for each configuration where that fits, else figures below each other, as many side by side as fit."""
    broad = terminal(dataclasses.replace(broad_table(comparison), caption=""))
    if table_width(broad) <= width:
        return [broad]
    parts: list[list[Row]] = []
    for row in comparison.rows:
        if parts and fitted(figures_table(comparison, [*parts[-1], row]), width) is not None:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [narrowest(figures_table(comparison, part), width) for part in parts]
