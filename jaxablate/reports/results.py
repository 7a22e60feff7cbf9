"""``results.json``: every figure of a scored checkpoint together with the conditions it was measured under.

One file a working directory. It belongs to one checkpoint (step and a digest of the parameters); each suite's
record carries its own provenance, since suites may be run on different days, machines and revisions.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from jaxablate import files, stats
from jaxablate.config import run_from_dict, to_dict
from jaxablate.errors import CheckpointError, ConfigError, FileError
from jaxablate.provenance import Provenance
from jaxablate.reports.panels import Panel, from_json, panel_from_dict
from jaxablate.stats import Estimate

SCHEMA_VERSION = 2
FILE_NAME = "results.json"
Better = Literal["up", "down", "none"]


@dataclasses.dataclass(frozen=True, init=False)
class Figure:
    """One headline number of a suite; tables and comparisons are built from these alone.

    Args:
      name: what tables call it; unique within its suite.
      estimate: the number, with its interval where it has one; None where the model does not have it (an ablated loss
        without an ablated stream).
      unit: unit of the number.
      better: whether larger (up) or smaller (down) is better, or neither.
      range: least and greatest number possible, for the interval of a mean over seeds, which is cut there
        (`stats.FRACTION`, `stats.COUNT`); None for no limits.
    """

    name: str
    estimate: Estimate
    unit: str
    better: Better
    range: tuple[float, float] | None

    def __init__(self, name: str, estimate: Estimate | float | None, unit: str = "", better: Better = "none",
                 range: tuple[float, float] | None = None):
        vars(self).update(name=name, estimate=stats.estimate(estimate), unit=unit, better=better, range=range)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRecord:
    """What one suite measured, and under which conditions."""

    suite: str
    about: str
    """One line: what the suite measures."""
    provenance: Provenance
    options: Mapping[str, Any]
    wall_seconds: float
    """Wall time of the suite, compilation included."""
    figures: tuple[Figure, ...]
    panels: tuple[Panel, ...]
    details: Mapping[str, Any]
    """The suite's whole result as plain JSON values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All that has been measured of one checkpoint."""

    config: Mapping[str, Any]
    """The run's `Config` as nested dict."""
    seed: int
    step: int
    params_digest: str
    """First 16 hex digits of the SHA-256 of all parameters: two checkpoints are the same when this is."""
    data_hash: str
    """Hash of the validation tokens the suites read."""
    parameters: int
    suites: Mapping[str, SuiteRecord] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def same_checkpoint(self, other: "Results") -> bool:
        """Whether figures of both may stand in one file: same parameters, settings of the model, and data."""
        mine, others = ((x.params_digest, x.step, x.data_hash, x.config.get("model")) for x in (self, other))
        return mine == others


def merge(old: Results | None, new: Results) -> Results:
    """New results with those suites of the stored ones that were not run again, where both are of one checkpoint."""
    if old is None or not old.same_checkpoint(new):
        return new
    return dataclasses.replace(new, suites={**old.suites, **new.suites})


def read(workdir: str | os.PathLike[str]) -> Results:
    """Results of a working directory; those of an earlier schema version are migrated.

    Raises:
      CheckpointError: the folder or its ``results.json`` is missing; says what to run.
      FileError: the file cannot be read.
    """
    path = Path(workdir) / FILE_NAME
    if not Path(workdir).is_dir():
        raise CheckpointError(f"{workdir} is not a working directory; give the --workdir of a training run")
    if not path.exists():
        raise CheckpointError(f"{workdir} has no {FILE_NAME}; run: jaxablate score --workdir {workdir}")
    fix = f"delete it and run: jaxablate score --workdir {workdir}"
    try:
        return from_dict(files.read_json(path, what="results of a checkpoint", fix=fix))
    except ValueError as error:
        raise FileError(f"{path} cannot be read: {' '.join(str(error).split())}; {fix}") from error


def write(workdir: str | os.PathLike[str], results: Results) -> Path:
    """Writes ``results.json`` of a working directory in one step (a reader never meets half a file).

    Raises:
      FileError: the folder cannot be written to.
    """
    return files.write_json(Path(workdir) / FILE_NAME, dataclasses.asdict(results), indent=1)


def from_dict(values: Mapping[str, Any]) -> Results:
    """Inverse of ``dataclasses.asdict``, also after a trip through JSON, and for earlier schema versions.

    Raises:
      ValueError: the schema version is unknown, or a field is missing; the message says which.
    """
    version = values.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise ValueError("it has no schema_version" if version is None else
                         f"it has schema version {version!r}, this program reads 1 and {SCHEMA_VERSION}")
    try:
        outer = from_json(_from_version_1(values) if version == 1 else values, _Stored)
        _check_config(outer["config"])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"a field is missing or of the wrong kind ({error})") from error
    suites = {name: _record(name, record) for name, record in outer["suites"].items()}
    return Results(**{**outer, "suites": suites, "config": _with_defaults(outer["config"])})


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that came later than the file take their defaults, as they do in ``config.json``."""
    try:
        return to_dict(run_from_dict(config))
    except ConfigError:  # of a later version, or of a package that is not there: reports tell what it says
        return config


class _Stored(TypedDict):
    """`Results` with records that are still to be read."""

    config: dict[str, Any]
    seed: int
    step: int
    params_digest: str
    data_hash: str
    parameters: int
    suites: dict[str, dict[str, Any]]
    schema_version: int


class _StoredRecord(TypedDict):
    """`SuiteRecord` with figures and panels that are still to be read."""

    suite: str
    about: str
    provenance: Provenance
    options: dict[str, Any]
    wall_seconds: float
    figures: tuple[dict[str, Any], ...]
    panels: tuple[dict[str, Any], ...]
    details: dict[str, Any]


class _Model(TypedDict):
    """Settings of any model that reports tell."""

    n_layers: int
    d_model: int
    n_heads: int
    ablation: str
    gate: str
    k_attention: int | tuple[int, ...]
    k_neurons: int | tuple[int, ...]


class _Classifier(_Model):
    """Settings of a text classifier that reports tell besides."""

    vmask: bool
    padding: str


class _Objective(TypedDict):
    """Settings of a loss that reports tell."""

    importance: NotRequired[float]
    interaction: NotRequired[float]
    regularizers: NotRequired[tuple[tuple[str, Any], ...]]


class _ClassifierObjective(TypedDict):
    """Settings of a text classifier's loss that reports tell."""

    importance: float
    interaction: float


def _check_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a stored config lacks what reports tell of it, or has it of another kind."""
    of_classifier = config.get("task") == "classification"
    parts = {"model": [_Classifier if of_classifier else _Model],
             "objective": [_Objective, *([_ClassifierObjective] if of_classifier else [])]}
    for name, kinds in parts.items():
        for kind in kinds:
            with _inside(f"config.{name}"):
                from_json(config.get(name), kind)


def _record(name: str, values: Mapping[str, Any]) -> SuiteRecord:
    with _inside(f"suite {name}"):
        outer = from_json(values, _StoredRecord)
        figures, panels = [], []
        for i, figure in enumerate(outer["figures"]):
            with _inside(f"figure {i}"):
                figures.append(_figure(figure))
        for i, panel in enumerate(outer["panels"]):
            with _inside(f"panel {i}"):
                panels.append(panel_from_dict(panel))
    return SuiteRecord(**{**outer, "figures": tuple(figures), "panels": tuple(panels)})


@contextlib.contextmanager
def _inside(place: str) -> Iterator[None]:
    """Says of what is wrong in which part of the file it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}, of {place}") from error


def _figure(values: Mapping[str, Any]) -> Figure:
    limits = values.get("range")
    if isinstance(limits, list | tuple) and len(limits) == 2:  # JSON has no infinity
        limits = (-math.inf if limits[0] is None else limits[0], math.inf if limits[1] is None else limits[1])
    return from_json({**values, "range": limits}, Figure)


# Schema 1 had the ends of an interval as fields beside the value, and in a table as two columns after it.


def _from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Results of schema 1 as schema 2."""
    suites = {name: {**record, "figures": [_figure_1(f) for f in record["figures"]],
                     "panels": [_panel_1(p) for p in record["panels"]], "details": _details_1(record["details"])}
              for name, record in values["suites"].items()}
    return {**values, "suites": suites, "schema_version": SCHEMA_VERSION}


def _estimate_1(value: float | None, ends: Sequence[float | None] | None) -> dict[str, Any]:
    low, high = ends or (None, None)
    return dataclasses.asdict(Estimate(value, low, high))


def _figure_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """A figure; what its number can be follows from the unit, except for shares of a difference, which may be any."""
    unit = values["unit"]
    limits = {"edges": stats.COUNT, "fraction": None if "share" in values["name"] else stats.FRACTION}.get(unit)
    return {"name": values["name"], "unit": unit, "better": values["better"], "range": limits,
            "estimate": _estimate_1(values["value"], (values["low"], values["high"]))}


def _panel_1(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["kind"] == "bars":
        bars = [{"label": b["label"], "estimate": _estimate_1(b["value"], (b["low"], b["high"]))}
                for b in values["bars"]]
        return {**values, "bars": bars}
    if values["kind"] != "grid":
        return dict(values)
    columns = values["columns"]
    starts = [i for i in range(len(columns) - 2) if columns[i + 1 : i + 3] == ["95 % from", "to"]]
    others = [i for i in range(len(columns)) if i - 1 not in starts and i - 2 not in starts]
    rows = [[_estimate_1(row[i], row[i + 1 : i + 3]) if i in starts and row[i + 1] is not None else row[i]
             for i in others] for row in values["rows"]]
    return {**values, "columns": [columns[i] for i in others], "rows": rows}


def _details_1(value: Any) -> Any:
    """Fields ``x`` and ``x_interval`` joined, and mappings that are a value with its interval and nothing else."""
    if isinstance(value, list):
        return [_details_1(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"value", "interval"}:
        return _estimate_1(value["value"], value["interval"])
    if set(value) == {"value", "low", "high"}:
        return _estimate_1(value["value"], (value["low"], value["high"]))
    ends = {name.removesuffix("_interval"): name for name in value if name.endswith("_interval")}
    ends = {name: of for name, of in ends.items() if isinstance(value.get(name), float | int)}
    return {name: _estimate_1(v, value[ends[name]]) if name in ends else _details_1(v)
            for name, v in value.items() if name not in ends.values()}
