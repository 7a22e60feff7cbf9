"""Joins results of several runs into one table: seeds of one configuration become a mean and a 95 % interval."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jaxablate import stats
from jaxablate.config import INCIDENTAL, flatten
from jaxablate.reports.results import Better, Figure, Results
from jaxablate.stats import Estimate

SEED_FIELDS = ("train.seed", "data.embedded_seed")
"""Repetitions: runs that differ in nothing else are one row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
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
    """One for each of `Comparison.columns`, without a value where no run has it."""
    counts: tuple[int, ...]
    """Number of runs behind each cell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole table."""

    fields: tuple[str, ...]
    """What differs between the rows' configurations, dotted names; ``run`` where nothing does."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What a reader should know: runs left out, suites that some runs lack, settings that differ."""


def compare(runs: Sequence[Run]) -> Comparison:
    """One table over runs.

    Args:
      runs: scored working directories, in the order their rows should take.

    Returns:
      A row for each configuration. With n > 1 runs the interval is Student's t over the runs; a single run keeps the
      interval its suite gave, or has none.
    """
    runs, notes = _without_copies(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run.results), []).append(run)
    fields = _differing_fields([g[0].results for g in groups.values()])
    columns = _columns(runs)
    rows = tuple(_row(group, fields, columns) for group in groups.values())
    return Comparison(fields=fields or ("run",), columns=columns, rows=rows, notes=(*notes, *_gaps(runs)))


def _without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Drops a run whose parameters were met before: the same checkpoint twice is not a second seed."""
    kept, notes, seen = [], [], {}
    for run in runs:
        first = seen.setdefault((run.results.params_digest, run.results.step), run.name)
        if first == run.name:
            kept.append(run)
        else:
            notes.append(f"{run.name} holds the same parameters as {first} and is counted once")
    return kept, notes


def _settings(results: Results) -> dict[str, Any]:
    """What makes a configuration, the data included where it is not drawn from a seed."""
    flat = flatten(results.config)
    skip = SEED_FIELDS + INCIDENTAL
    out = {k: v for k, v in flat.items() if k not in skip and not k.startswith(tuple(f"{s}." for s in skip))}
    if not out.get("objective.regularizers"):  # older results have no such field
        out.pop("objective.regularizers", None)
    if flat.get("model.ablation") == "none":
        inert = ("model.k_", "model.gate", "model.surrogate", "model.temperature_", *_inert_objective(results))
        out = {k: v for k, v in out.items() if not k.startswith(inert)}
    if flat.get("data.source") != "embedded":
        out["validation data"] = results.data_hash[:8]
    return out


def _inert_objective(results: Results) -> tuple[str, ...]:
    """Settings of the loss that a model without gates does not use: those of two streams, and a language model's
    regularisers where both coefficients are 0 (as in results of versions that had none)."""
    streams = ("objective.clean", "objective.ablated", "objective.reconstruction")
    if results.config.get("task") == "classification":
        return (*streams, "objective.stream")
    objective = results.config["objective"]
    regularized = any(objective.get(name) for name in ("importance", "interaction", "regularizers"))
    return (*streams, "objective.regularized_stream") if regularized else ("objective.",)


def _identity(results: Results) -> str:
    return json.dumps(_settings(results), sort_keys=True)


def _differing_fields(results: Sequence[Results]) -> tuple[str, ...]:
    """Settings that are not the same everywhere, those of the model first."""
    settings = [_settings(r) for r in results]
    names = {name: None for s in settings for name in s}
    varied = [n for n in names if len({json.dumps(s[n]) for s in settings if n in s}) > 1]
    return tuple(sorted(varied, key=lambda n: (not n.startswith("model."), n != "model.ablation")))


def _columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """Every figure any run has, suites and figures in the order first met."""
    suites: dict[str, dict[str, Figure]] = {}
    for run in runs:
        for name, record in run.results.suites.items():
            for figure in record.figures:
                suites.setdefault(name, {}).setdefault(figure.name, figure)
    return tuple(Column(suite=suite, name=f.name, unit=f.unit, better=f.better)
                 for suite, figures in suites.items() for f in figures.values())


def _row(group: Sequence[Run], fields: Sequence[str], columns: Sequence[Column]) -> Row:
    settings = _settings(group[0].results)
    labels = tuple(_label(settings.get(name)) for name in fields) or (group[0].name if len(group) == 1 else "all",)
    figures = [_figures(group, column) for column in columns]
    return Row(
        labels=labels, runs=tuple(r.name for r in group), seeds=tuple(r.results.seed for r in group),
        steps=tuple(sorted({r.results.step for r in group})),
        cells=tuple(_cell(found) for found in figures), counts=tuple(map(len, figures)))


def _label(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _figures(group: Sequence[Run], column: Column) -> list[Figure]:
    """A column's figure of each run that has its number."""
    records = [run.results.suites[column.suite] for run in group if column.suite in run.results.suites]
    return [f for record in records for f in record.figures if f.name == column.name and f.estimate.value is not None]


def _cell(figures: Sequence[Figure]) -> Estimate:
    """One run's own estimate, or the mean over several runs."""
    values = [f.estimate.value for f in figures if f.estimate.value is not None]
    if len(values) < 2:
        return figures[0].estimate if figures else Estimate(None)
    return stats.student(values, within=figures[0].range or stats.UNBOUNDED)


def _gaps(runs: Sequence[Run]) -> list[str]:
    """Notes on suites measured in some runs only, and on suites measured with other options."""
    notes = []
    gated = {r.name for r in runs if flatten(r.results.config).get("model.ablation") != "none"}
    for suite in dict.fromkeys(name for r in runs for name in r.results.suites):
        have = [r for r in runs if suite in r.results.suites]
        kinds = {r.name in gated for r in have}
        lacking = [r.name for r in runs if r not in have and (r.name in gated) in kinds]
        notes += [f"{x} lacks {suite}; run: python eval.py score --workdir {x} --suites {suite}" for x in lacking]
        options = {json.dumps(r.results.suites[suite].options, sort_keys=True) for r in have}
        if len(options) > 1:
            notes.append(f"{suite} was run with different options: {'; '.join(sorted(options))}")
    return notes
