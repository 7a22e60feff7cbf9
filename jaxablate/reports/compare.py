"""Several runs in one table: seeds of one configuration become a mean with a 95 % interval.

`compare` joins the runs; the rest writes the comparison into files. ``differences.py`` shows it in a terminal,
``explorer.py`` as a page.
"""

import dataclasses
import difflib
import fnmatch
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxablate import files, stats
from jaxablate.config import INCIDENTAL, flatten
from jaxablate.errors import ConfigError
from jaxablate.reports.figures import write_figure
from jaxablate.reports.panels import Bar, Bars, Cell, Grid
from jaxablate.reports.results import Better, Results, SuiteRecord
from jaxablate.reports.tables import csv_text, csv_words, heading, latex, markdown
from jaxablate.stats import Estimate

SEED_FIELDS = ("train.seed", "data.embedded_seed")
"""Repetitions: runs that differ in nothing else are one row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One scored working directory."""

    name: str
    results: Results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One figure over all rows."""

    suite: str
    name: str
    unit: str
    better: Better

    @property
    def heading(self) -> str:
        """The figure's name with its unit and an arrow to what is better."""
        return heading(self.name, self.unit, self.better)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Runs of one configuration."""

    labels: tuple[str, ...]
    """Values of `Comparison.fields`, in that order."""
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    """Distinct steps of the checkpoints, ascending."""
    cells: tuple[Estimate, ...]
    """One for each of `Comparison.columns`; its n is the number of runs that have the figure, and may be 0."""
    samples: tuple[tuple[float | None, ...], ...] = ()
    """For each column the number of each run, None where it lacks the figure."""
    repetitions: tuple[tuple[int | None, ...], ...] = ()
    """What each run repeats: its values of `SEED_FIELDS`."""

    @property
    def steps_text(self) -> str:
        """Step of the checkpoints, or the range over the runs."""
        low, high = self.steps[0], self.steps[-1]
        return f"{low:,}" if low == high else f"{low:,}–{high:,}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs side by side."""

    fields: tuple[str, ...]
    """Settings that differ between the rows' configurations, dotted names; ``run`` where none does."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What a reader should know: runs left out, suites that some runs lack, settings that differ."""

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites that any run has."""
        return tuple(dict.fromkeys(c.suite for c in self.columns))

    @property
    def short_fields(self) -> tuple[str, ...]:
        """Last parts of the dotted names: a reader seldom needs to know where a setting lives."""
        return tuple(field.rsplit(".", 1)[-1] for field in self.fields)

    @property
    def explanation(self) -> str:
        """What the numbers are, for a caption."""
        single = "a run alone: value and, where its suite gives one, the 95 % interval within the run"
        better = "↑: larger is better, ↓: smaller is better."
        if all(len(row.runs) == 1 for row in self.rows):
            return f"One run a row ({single}). {better}"
        return f"n runs of a configuration: mean and its 95 % interval (Student t over the runs); {single}. {better}"

    def label(self, row: Row) -> str:
        """A row's configuration, or its name where that is all that differs."""
        if self.fields == ("run",):
            return row.labels[0]
        return ", ".join(f"{name} {value}" for name, value in zip(self.short_fields, row.labels, strict=True))


def compare(runs: Sequence[ScoredRun]) -> Comparison:
    """One table over runs: a row for each configuration, in the order in which the first runs of each are given.

    With n > 1 runs the interval is Student's t over the runs; a single run keeps the interval its suite gave, or has
    none.
    """
    runs, notes = _without_copies(runs)
    groups: dict[str, list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run.results), sort_keys=True), []).append(run)
    settings = [_settings(group[0].results) for group in groups.values()]
    fields = _differing_fields(settings)
    columns = _columns(runs)
    rows = []
    for group, values in zip(groups.values(), settings, strict=True):
        alone = group[0].name if len(group) == 1 else "all"
        rows.append(Row(
            labels=tuple(_label(values.get(name)) for name in fields) or (alone,), runs=tuple(r.name for r in group),
            seeds=tuple(r.results.seed for r in group), steps=tuple(sorted({r.results.step for r in group})),
            cells=tuple(_cell(group, column) for column in columns),
            samples=tuple(tuple(_number(run, column) for run in group) for column in columns),
            repetitions=tuple(_repetition(run) for run in group)))
    return Comparison(fields=fields or ("run",), columns=columns, rows=tuple(rows), notes=(*notes, *_gaps(runs)))


def _without_copies(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], list[str]]:
    """Drops a run whose parameters were met before: the same checkpoint twice is not a second seed."""
    distinct, notes, seen = [], [], {}
    for run in runs:
        first = seen.setdefault((run.results.params_digest, run.results.step), run.name)
        if first == run.name:
            distinct.append(run)
        else:
            notes.append(f"{run.name} holds the same parameters as {first} and is counted once")
    return distinct, notes


def _settings(results: Results) -> dict[str, Any]:
    """What makes a configuration, the data included where it is not drawn from a seed."""
    flat = flatten(results.config)
    skip = SEED_FIELDS + INCIDENTAL
    out = {k: v for k, v in flat.items() if k not in skip and not k.startswith(tuple(f"{s}." for s in skip))}
    if not out.get("objective.regularizers"):  # results of version 0.1 have no such field
        out.pop("objective.regularizers", None)
    if flat.get("model.ablation") == "none":
        inert = ("model.k_", "model.gate", "model.surrogate", "model.temperature_", *_inert_objective(results))
        out = {k: v for k, v in out.items() if not k.startswith(inert)}
    if flat.get("data.source") != "embedded":
        out["validation data"] = results.data_hash[:8]
    return out


def _inert_objective(results: Results) -> tuple[str, ...]:
    """Settings of the loss that a model without gates does not use: those of two streams, and a language model's
    regularisers where all coefficients are 0 (as in results of versions that had none)."""
    streams = ("objective.clean", "objective.ablated", "objective.reconstruction")
    if results.config.get("task") == "classification":
        return (*streams, "objective.stream")
    objective = results.config["objective"]
    regularized = any(objective.get(name) for name in ("importance", "interaction", "regularizers"))
    return (*streams, "objective.regularized_stream") if regularized else ("objective.",)


def _differing_fields(settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Settings that are not the same everywhere, those of the model first."""
    names = {name: None for s in settings for name in s}
    varied = [n for n in names if len({json.dumps(s[n]) for s in settings if n in s}) > 1]
    return tuple(sorted(varied, key=lambda n: (not n.startswith("model."), n != "model.ablation")))


def _columns(runs: Sequence[ScoredRun]) -> tuple[Column, ...]:
    """Every figure any run has, suites and figures in the order first met."""
    suites: dict[str, dict[str, Column]] = {}
    for run in runs:
        for suite, record in run.results.suites.items():
            for f in record.figures:
                column = Column(suite=suite, name=f.name, unit=f.unit, better=f.better)
                suites.setdefault(suite, {}).setdefault(f.name, column)
    return tuple(column for columns in suites.values() for column in columns.values())


def _label(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _cell(group: Sequence[ScoredRun], column: Column) -> Estimate:
    """The only run's own estimate, or the mean over several runs."""
    records = [run.results.suites[column.suite] for run in group if column.suite in run.results.suites]
    figures = [f for record in records for f in record.figures
               if f.name == column.name and f.estimate.value is not None]
    if len(figures) < 2:
        return dataclasses.replace(figures[0].estimate, n=1) if figures else Estimate(None, n=0)
    return stats.student([float(f.estimate) for f in figures], within=figures[0].range or stats.UNBOUNDED)


def _number(run: ScoredRun, column: Column) -> float | None:
    figures = run.results.suites[column.suite].figures if column.suite in run.results.suites else ()
    found = next((f.estimate.value for f in figures if f.name == column.name), None)
    return None if found is None else float(found)


def _repetition(run: ScoredRun) -> tuple[int | None, ...]:
    flat = flatten(run.results.config)
    return tuple(flat.get(name) for name in SEED_FIELDS)


def select(runs: Sequence[ScoredRun], suites: Sequence[str] = (), figures: Sequence[str] = ()) -> list[ScoredRun]:
    """The runs with some of their figures alone.

    Args:
      runs: scored runs.
      suites: names of suites; none given keeps all.
      figures: what ``suite/figure`` has to contain, or to match as a pattern (``ioi/acc*``); none given keeps all.

    Raises:
      ConfigError: no run has a suite of that name, or a figure that fits; what there is is told.
    """
    there = {f"{suite}/{f.name}": None for run in runs for suite, r in run.results.suites.items() for f in r.figures}
    _require_all(suites, list(dict.fromkeys(name.partition("/")[0] for name in there)), lambda a, b: a == b, "--suites")
    _require_all(figures, list(there), _fits, "--rows")

    def kept(suite: str, record: SuiteRecord) -> SuiteRecord:
        return dataclasses.replace(record, figures=tuple(
            f for f in record.figures if not figures or any(_fits(x, f"{suite}/{f.name}") for x in figures)))

    out = []
    for run in runs:
        records = {name: kept(name, record) for name, record in run.results.suites.items()
                   if not suites or name in suites}
        left = {name: record for name, record in records.items() if record.figures or not figures}
        out.append(dataclasses.replace(run, results=dataclasses.replace(run.results, suites=left)))
    return out


def _fits(wanted: str, name: str) -> bool:
    wanted, name = wanted.lower(), name.lower()
    return wanted in name or fnmatch.fnmatchcase(name, wanted) or fnmatch.fnmatchcase(name.partition("/")[2], wanted)


def _require_all(wanted: Sequence[str], there: Sequence[str], fits: Callable[[str, str], bool], option: str) -> None:
    for text in wanted:
        if not any(fits(text, name) for name in there):
            near = difflib.get_close_matches(text, [*there, *(name.partition("/")[2] for name in there)], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there)}"
            raise ConfigError(f"{option} {text!r:.80} is in no run; {hint}")


def _gaps(runs: Sequence[ScoredRun]) -> list[str]:
    """Notes on suites measured in some runs only, and on suites measured with other options."""
    notes = []
    gated = {r.name for r in runs if flatten(r.results.config).get("model.ablation") != "none"}
    for suite in dict.fromkeys(name for r in runs for name in r.results.suites):
        have = [r for r in runs if suite in r.results.suites]
        kinds = {r.name in gated for r in have}
        lacking = [r.name for r in runs if r not in have and (r.name in gated) in kinds]
        notes += [f"{x} lacks {suite}; run: jaxablate score --workdir {x} --suites {suite}" for x in lacking]
        options = [r.results.suites[suite].options for r in have]
        for name in sorted(set().union(*options)):
            values = {json.dumps(x[name], sort_keys=True) if name in x else "not recorded" for x in options}
            if len(values) > 1:
                notes.append(f"{suite} was run with different {name}: {'; '.join(sorted(values))}")
    return notes


def table(comparison: Comparison) -> Grid:
    """The comparison for readers: a row for each configuration, a column for each figure."""
    rows = tuple((*row.labels, len(row.runs), row.steps_text, *row.cells) for row in comparison.rows)
    columns = (*comparison.short_fields, "n", "checkpoint", *(c.heading for c in comparison.columns))
    return Grid(title="", caption=comparison.explanation, columns=columns, rows=rows)


def data_table(comparison: Comparison) -> Grid:
    """The comparison for programs: all names in full, every run and seed."""
    rows = tuple((*row.labels, ";".join(map(csv_words, row.runs)), ";".join(map(str, row.seeds)),
                  ";".join(map(str, row.steps)), *row.cells) for row in comparison.rows)
    columns = (*comparison.fields, "runs", "seeds", "steps", *(f"{c.suite}/{c.name}" for c in comparison.columns))
    return Grid(title="", caption="", columns=columns, rows=rows)


def figures_table(comparison: Comparison, rows: Sequence[Row]) -> Grid:
    """Some configurations side by side: the suite's name and the figure, then a column for each."""
    lines: list[tuple[Cell, ...]] = [("runs", "n", *(len(row.runs) for row in rows)),
                                     ("runs", "checkpoint", *(row.steps_text for row in rows))]
    lines += [(c.suite, c.heading, *(row.cells[i] for row in rows)) for i, c in enumerate(comparison.columns)]
    return Grid(title="", caption="", columns=("suite", "figure", *map(comparison.label, rows)), rows=tuple(lines))




def suite_bars(comparison: Comparison, suite: str) -> tuple[Bars, ...]:
    """A picture for each figure of a suite that two rows or more have."""
    pictures = []
    for i, column in enumerate(comparison.columns):
        bars = tuple(Bar(comparison.label(row), row.cells[i]) for row in comparison.rows
                     if row.cells[i].value is not None)
        if column.suite == suite and len(bars) > 1:
            pictures.append(Bars(title=heading(column.name, "", column.better), caption="", bars=bars,
                                 unit=column.unit))
    return tuple(pictures)


def write(comparison: Comparison, out: str, *, more: Grid | None = None, figures: bool = False) -> list[Path]:
    """Writes Markdown, CSV and LaTeX; returns the files' paths, and of the figures their folder.

    Args:
      comparison: what to write.
      out: see `file_path`.
      more: a second table, which Markdown has below the first.
      figures: whether to draw each figure that two rows have as PNG and SVG, into a folder ``...-figures``.

    Raises:
      FileError: a folder cannot be made or written to.
    """
    grid = table(comparison)
    second = f"\n{markdown(more)}" if more is not None and more.rows else ""
    makers: dict[str, Callable[[], str]] = {
        ".md": lambda: markdown(grid, comparison.notes) + second, ".csv": lambda: csv_text(data_table(comparison)),
        ".tex": lambda: latex(grid)}
    wanted = {suffix: path for suffix in makers if (path := file_path(out, suffix)) is not None}
    paths = [files.write(path, makers[suffix](), otherwise="choose another --out") for suffix, path in wanted.items()]
    folder = file_path(out, "-figures") if figures else None
    if folder is not None:
        paths.append(folder)
        names: set[str] = set()
        for suite in comparison.suites:
            for bars in suite_bars(comparison, suite):
                names.add(name := _file_name(f"{suite}-{bars.title.rstrip(' ↑↓')}", names))
                write_figure(bars, folder / name)
    return paths


SUFFIXES = (".md", ".csv", ".tex", ".html")
"""Suffixes that a file of a comparison may have."""


def file_path(out: str, suffix: str) -> Path | None:
    """Path of a file of a comparison: ``table`` and the suffix in ``out``, where that is an existing folder or ends in
    ``/``, else ``out`` and the suffix. An ``out`` that ends in one of `SUFFIXES` is the only file; None for others."""
    if out.endswith("/") or Path(out).is_dir():
        return Path(out) / f"table{suffix}"
    path = Path(out)
    if path.suffix in SUFFIXES and suffix in SUFFIXES:
        return path if path.suffix == suffix else None
    return path.with_name(f"{path.stem if path.suffix in SUFFIXES else path.name}{suffix}")


def _file_name(title: str, taken: Collection[str]) -> str:
    """A title as a file's name: one that no other title has, is not too long, and leads to no other folder."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in title)[:100].lstrip(".-")
    names = (name if i == 1 else f"{name}-{i}" for i in itertools.count(1))
    return next(x for x in names if x and x not in taken)
