"""``report.html``: an application in one file that shows runs, with their data inside, compressed.

The application is the built bundle ``explorer.html``, made from the sources in ``explorer/`` of the repository. Python
adds a `Manifest`, which says what there is, and blobs, which the browser unpacks when they are first looked at:
results, histories, and what suites attach for the explorer alone. Where one file would be larger than `LARGEST_PAGE`,
the blobs lie beside it, in a folder of the same name with ``-data`` after it.
"""

import base64
import dataclasses
import functools
import gzip
import html
import importlib.resources
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxablate import files
from jaxablate.errors import FileError
from jaxablate.files import StrPath
from jaxablate.provenance import package_versions
from jaxablate.reports import compare, differences, results
from jaxablate.reports.compare import Comparison, ScoredRun
from jaxablate.reports.differences import Difference
from jaxablate.reports.results import Results
from jaxablate.terminal import printable

FILE_NAME = "report.html"
FOLDER_NAME = "explorer"
"""Folder of a working directory with what suites attach."""
LARGEST_PAGE = 15_000_000
"""Bytes of one page with all data inside; a browser reads as much in a blink, and most mail takes it."""
MOST_REFERENCES = 12
"""Configurations that others may be set against; each is a test of every figure of all others."""
MOST_POINTS = 1000
"""Points of a logged number; longer logs are averaged over equal stretches."""
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedMetric:
    """One number of the training log over steps."""

    name: str
    split: str
    """``train`` or ``valid``."""
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """What was logged while a run trained."""

    metrics: tuple[LoggedMetric, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run of an explorer."""

    name: str
    summary: str
    """The model in one line."""
    started: str | None
    """When its training began, ISO 8601; None where that is not on record, as for the other facts."""
    device: str | None
    revision: str | None
    baseline: str | None
    """Name of the run of this page without gates and regularisers that this one is set beside; None where there is no
    such run, and of itself."""
    results: int
    """Number of the blob with `Results`, as in ``results.json``."""
    history: int
    """Number of the blob with its `History`."""
    attachments: Mapping[str, int]
    """Name of what a suite attached -> number of the blob."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences:
    """What all configurations differ by from one of them."""

    explanation: str
    """How intervals and tests were made."""
    found: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an explorer holds."""

    version: str
    """Version of this package."""
    runs: tuple[RunEntry, ...]
    comparison: int
    """Number of the blob with the `Comparison` of all runs."""
    differences: tuple[int, ...]
    """Numbers of the blobs with the `Differences` from each of its first rows, in their order."""
    notes: tuple[str, ...]
    folder: str | None
    """Folder beside the page that holds the blobs; None where they are inside it."""
    live: str | None = None
    """Name of this page's data at the program that answers at its address; None for a page that is a file."""
    schema_version: int = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownRun:
    """What an explorer shows of one run."""

    name: str
    results: Results
    history: Sequence[Mapping[str, Any]] = ()
    """Lines of the training log, see `read_history`."""
    attachments: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """JSON of what suites attached, by name."""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The run's record of its conditions, as in ``run.json``."""


def write_explorer(workdirs: Iterable[StrPath], path: StrPath) -> Path:
    """Writes the explorer of scored working directories; returns the page's path.

    The same directories give the same bytes.

    Raises:
      CheckpointError: a directory has no results.
      FileError: a file cannot be read or written.
    """
    return write_runs([read_run(workdir) for workdir in workdirs], path)


def read_run(workdir: StrPath) -> ShownRun:
    """All that an explorer shows of a scored working directory; attachments of another checkpoint are left out."""
    folder = Path(workdir)
    found = results.read(folder)
    record = files.read_json(folder / "run.json", what="a run's record", fix="restore it, or delete it"
                             ) if (folder / "run.json").exists() else {}
    return ShownRun(name=run_name(folder), results=found, history=read_history(folder / "metrics.jsonl"), record=record,
                    attachments=_read_attachments(folder / FOLDER_NAME, found))


def write_runs(runs: Sequence[ShownRun], path: StrPath, notes: Sequence[str] = ()) -> Path:
    """Writes the explorer of these runs: one page, or a page and a folder of its data beside it.

    Raises:
      FileError: a file cannot be written.
    """
    path = Path(path)
    manifest, blobs = build(runs, notes)
    packed = [_pack_blob(blob) for blob in blobs]
    folder = path.with_name(f"{path.stem}-data")
    if sum(map(len, packed)) + len(_bundle()) > LARGEST_PAGE:
        with files.atomic_folder(folder) as staging:
            for i, blob in enumerate(packed):
                (staging / f"blob-{i}.js").write_text(f'explorerBlob({i}, "{blob}");\n')
        return files.write(path, page(dataclasses.replace(manifest, folder=folder.name), ()))
    files.write(path, page(manifest, packed))
    if folder.is_dir() and all(x.name.startswith("blob-") and x.suffix == ".js" for x in folder.iterdir()):
        shutil.rmtree(folder)  # of an earlier, larger page
    return path


def build(runs: Sequence[ShownRun], notes: Sequence[str] = ()) -> tuple[Manifest, list[bytes]]:
    """The manifest of these runs and its blobs, each UTF-8 JSON."""
    blobs: list[bytes] = []

    def add(content: Any) -> int:
        blobs.append(content if isinstance(content, bytes) else _json(dataclasses.asdict(content)).encode())
        return len(blobs) - 1

    runs = _distinct(runs)
    joined = compare.compare([ScoredRun(name=run.name, results=run.results) for run in runs])
    entries = tuple(RunEntry(
        name=run.name, summary=summary(run.results), started=_words(run.record, "started"),
        device=_words(run.record, "device"), revision=_words(run.record, "revision"), baseline=_baseline(run, runs),
        results=add(run.results), history=add(thinned(run.history)),
        attachments={name: add(content) for name, content in sorted(run.attachments.items())}) for run in runs)
    references = range(min(len(joined.rows), MOST_REFERENCES)) if len(joined.rows) > 1 else ()
    against = tuple(add(_differences(joined, i)) for i in references)
    version = package_versions(("jaxablate",)).get("jaxablate", "unknown")
    return Manifest(version=version, runs=entries, comparison=add(joined), differences=against,
                    notes=tuple(notes), folder=None), blobs


def page(manifest: Manifest, packed: Sequence[str]) -> str:
    """The application with a manifest and the blobs that are to be inside it, as `write_runs` packs them."""
    names = ", ".join(run.name for run in manifest.runs[:3]) + (", ..." if len(manifest.runs) > 3 else "")
    # No "<" in a script's data: nothing in it can end the script.
    data = _json(dataclasses.asdict(manifest)).replace("<", "\\u003c")
    scripts = [f'<script type="application/json" id="manifest">{data}</script>',
               *(f'<script type="application/octet-stream" id="blob-{i}">{blob}</script>'
                 for i, blob in enumerate(packed))]
    before, after = _bundle().split("<!--data-->")
    title = html.escape(printable(f"{names} · jaxablate"))
    return "\n".join([before.replace("<title>jaxablate</title>", f"<title>{title}</title>"), *scripts, after.lstrip()])


def write_attachment(workdir: StrPath, name: str, attachment: Any) -> Path:
    """Keeps what a suite attached (a dataclass with a ``params_digest``) for later explorers of the directory.

    Raises:
      FileError: it cannot be written.
    """
    return files.write_json(Path(workdir) / FOLDER_NAME / f"{name}.json", dataclasses.asdict(attachment), indent=None)


def _read_attachments(folder: Path, found: Results) -> dict[str, bytes]:
    """Attachments of the checkpoint that the results are of."""
    out = {}
    for path in sorted(folder.glob("*.json")):
        fix = "delete it and score the run again"
        values = files.read_json(path, what="data of the explorer", fix=fix)
        if values.get("params_digest") == found.params_digest:
            out[path.stem] = _json(values).encode()
    return out


def run_name(folder: Path) -> str:
    """How a page calls a working directory; one of several seeds (``seed-0``) with its parent's name.

    >>> run_name(Path("runs/local-k8")), run_name(Path("runs/sst2/seed-1"))
    ('local-k8', 'sst2/seed-1')
    """
    path = folder.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("seed-") else path.name


def summary(results: Results) -> str:
    """The model in one line."""
    m = results.config["model"]
    shape = (f"{m['n_layers']} layer{'s' if m['n_layers'] > 1 else ''}, width {m['d_model']}, {m['n_heads']} heads, "
             f"{results.parameters:,} parameters")
    gates = "no ablation"
    if m["ablation"] != "none":
        k, neurons = (x if isinstance(x, int) else " ".join(map(str, x)) for x in (m["k_attention"], m["k_neurons"]))
        gates = f"{m['ablation']} ablation, {m['gate']} gates, k {k} attention / {neurons} neurons"
    if results.config.get("task") != "classification":
        return f"{shape}, {gates}"
    weights = results.config["objective"]
    parts = [shape, "VMASK" if m["vmask"] else "no VMASK",
             f"λ importance {weights['importance']:g}, λ interaction {weights['interaction']:g}",
             "padding as in the paper" if m["padding"] == "paper" else "padding masked"]
    return ", ".join(parts if m["ablation"] == "none" else [*parts, gates])


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; damaged ones are passed over, and a missing file is an empty history."""
    return [entry for entry in files.read_jsonl(path)
            if all(isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
                   for name, value in entry.items() if name != "split")]


def thinned(history: Sequence[Mapping[str, Any]]) -> History:
    """Every logged number over steps, at most `MOST_POINTS` of them, a mean over equal stretches of a longer log.

    A step that was trained twice (a run resumed from an older checkpoint) counts with its last value.
    """
    logged: dict[tuple[str, str], dict[int, float]] = {}
    for entry in history:
        for name, value in entry.items():
            if name not in ("step", "split") and entry.get("split") in ("train", "valid"):
                logged.setdefault((name, entry["split"]), {})[entry["step"]] = value
    metrics = []
    for (name, split), values in sorted(logged.items()):
        points, size = sorted(values.items()), -(-len(values) // MOST_POINTS)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        steps, means = (tuple(sum(p[axis] for p in g) / len(g) for g in groups) for axis in (0, 1))
        metrics.append(LoggedMetric(name=name, split=split, steps=steps, values=means))
    return History(metrics=tuple(metrics))


def _distinct(runs: Sequence[ShownRun]) -> list[ShownRun]:
    """The runs under names of which no two are the same."""
    out: list[ShownRun] = []
    for run in runs:
        names = {r.name for r in out}
        name, i = run.name, 1
        while name in names:
            name, i = f"{run.name} ({i + 1})", i + 1
        out.append(dataclasses.replace(run, name=name))
    return out


def _differences(joined: Comparison, reference: int) -> Differences:
    found = differences.differences(joined, reference)
    name = joined.label(joined.rows[reference])
    return Differences(explanation=differences.explanation(found, name) if found else "", found=found)


def _baseline(run: ShownRun, runs: Sequence[ShownRun]) -> str | None:
    """The first run of the same task and data without gates and regularisers, for one that has them."""
    def plain(x: ShownRun) -> bool:
        objective = x.results.config["objective"]
        return x.results.config["model"]["ablation"] == "none" and not any(
            objective.get(name) for name in ("importance", "interaction", "regularizers"))

    same = (x for x in runs if plain(x) and x.results.data_hash == run.results.data_hash
            and x.results.config.get("task") == run.results.config.get("task"))
    return None if plain(run) else getattr(next(same, None), "name", None)


def _words(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) else None


def _json(value: Any) -> str:
    return json.dumps(files.finite(value), allow_nan=False, separators=(",", ":"))


def _pack_blob(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


@functools.cache
def _bundle() -> str:
    """The built application.

    Raises:
      FileError: it was not built.
    """
    path = importlib.resources.files("jaxablate.reports") / "explorer.html"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing; install the package again, or build it: npm --prefix explorer run build"
                        ) from error

