"""``report.html``: one page that needs nothing but a browser, drawn from results and the training log alone."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxablate.reports import svg
from jaxablate.reports.compare import flatten
from jaxablate.reports.panels import Bars, Curves, HistogramGrid, Panel, Series
from jaxablate.reports.results import Results, write_text
from jaxablate.reports.table import ARROWS, interval, number, prose

FILE_NAME = "report.html"
LOSSES = (("loss_clean", "clean"), ("loss_ablated", "ablated"))
MOST_POINTS = 300
"""Points of a training curve; longer logs are averaged over equal stretches."""


def write_report(workdir: str | os.PathLike[str], results: Results) -> Path:
    """Writes the page of a scored working directory.

    Args:
      workdir: holds ``metrics.jsonl``, from which the training curve is drawn where it exists.
      results: what to show.

    Returns:
      The page's path.

    Raises:
      CheckpointError: the folder cannot be written to.
    """
    folder = Path(workdir)
    path = folder / FILE_NAME
    write_text(path, page(results, read_history(folder / "metrics.jsonl"), folder.resolve().name))
    return path


def page(results: Results, history: Sequence[Mapping[str, Any]], name: str) -> str:
    """The page as text.

    Args:
      results: what to show.
      history: lines of the training log, see `read_history`; may be empty.
      name: of the run, for the title.
    """
    loader = jinja2.PackageLoader("jaxablate.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "draw": draw, "prose": prose}
    environment.globals |= {"interval": interval, "arrows": ARROWS}
    curve = training_curve(history)
    return environment.get_template("report.html").render(
        name=name, results=results, summary=summary(results), curve=curve, tiles=_tiles(results),
        settings=flatten(results.config), shared=_shared_provenance(results),
    )


def draw(panel: Panel) -> str:
    """SVG of a panel that is a picture; empty for tables and texts, which the template sets itself."""
    drawn = ""
    if isinstance(panel, HistogramGrid):
        drawn = svg.histograms(panel)
    elif isinstance(panel, Bars):
        drawn = svg.bars(panel)
    elif isinstance(panel, Curves):
        drawn = svg.curves(panel)
    return Markup(drawn)


def summary(results: Results) -> str:
    """The model in one line."""
    m = results.config["model"]
    k = f"k {_one(m['k_attention'])} attention / {_one(m['k_neurons'])} neurons"
    gates = "no ablation" if m["ablation"] == "none" else f"{m['ablation']} ablation, {m['gate']} gates, {k}"
    shape = f"{m['n_layers']} layers, width {m['d_model']}, {m['n_heads']} heads"
    return f"{shape}, {results.parameters:,} parameters, {gates}"


def _one(k: int | Sequence[int]) -> str:
    return str(k) if isinstance(k, int) else " ".join(map(str, k))


def _tiles(results: Results) -> list[tuple[str, Any]]:
    """First figures of each suite, for the top of the page."""
    return [(name, f) for name, record in results.suites.items() for f in record.figures[:2] if f.value is not None][:8]


def _shared_provenance(results: Results) -> bool:
    """Whether all suites ran under the same revision, versions and device."""
    found = {json.dumps([p.revision, dict(p.versions), p.device], sort_keys=True)
             for p in (r.provenance for r in results.suites.values())}
    return len(found) <= 1


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; a line cut off by a crash is left out, a missing file is an empty history."""
    if not path.exists():
        return []
    out = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            out.append(entry)
    return out


def training_curve(history: Sequence[Mapping[str, Any]]) -> Curves | None:
    """Losses over steps by split and stream; None where the log has none.

    A step that was trained twice (a run resumed from an older checkpoint) counts with its last value.
    """
    series = []
    for split, prefix in (("train", "training"), ("valid", "validation")):
        for key, stream in LOSSES:
            points = {e["step"]: e[key] for e in history
                      if e.get("split") == split and isinstance(e.get(key), int | float)}
            if points:
                x, y = _thinned(sorted(points.items()))
                series.append(Series(label=f"{prefix}, {stream}", x=x, y=y))
    if not series:
        return None
    return Curves(title="Training", caption="Cross-entropy in nats per token, on a logarithmic scale.", x_label="step",
                  y_label="loss", series=tuple(series), log_y=True)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    x = tuple(sum(p[0] for p in g) / len(g) for g in groups)
    return x, tuple(sum(p[1] for p in g) / len(g) for g in groups)
