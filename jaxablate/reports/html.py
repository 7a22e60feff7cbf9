"""``report.html``: one page that needs nothing but a browser, drawn from results and the training log alone."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxablate import files
from jaxablate.config import flatten
from jaxablate.reports import svg
from jaxablate.reports.circuit_graph import circuit_svg
from jaxablate.reports.panels import Bars, Beside, CircuitGraph, Curves, Heatmap, HistogramGrid, Network, Panel, Series
from jaxablate.reports.results import Results
from jaxablate.reports.tables import cell_text, headline, prose, text_columns
from jaxablate.stats import number
from jaxablate.terminal import printable

FILE_NAME = "report.html"
_DRAWINGS: dict[type, Callable[[Any], str]] = {
    HistogramGrid: svg.histograms, Bars: svg.bars, Curves: svg.curves, CircuitGraph: circuit_svg, Beside: svg.beside,
    Heatmap: lambda panel: svg.heatmaps(panel.title, [panel]),
    Network: lambda panel: svg.networks(panel.title, [panel]),
}
MOST_POINTS = 300
"""Points of a training curve; longer logs are averaged over equal stretches."""


def write_report(workdir: str | os.PathLike[str], results: Results) -> Path:
    """Writes the page of a scored working directory, with curves of training where it holds ``metrics.jsonl``.

    Raises:
      FileError: the folder cannot be written to.
    """
    folder = Path(workdir)
    return files.write(folder / FILE_NAME, page(results, read_history(folder / "metrics.jsonl"), run_name(folder)))


def run_name(folder: Path) -> str:
    """How a page calls a working directory; one of several seeds (``seed-0``) with its parent's name.

    >>> run_name(Path("runs/local-k8")), run_name(Path("runs/sst2/seed-1"))
    ('local-k8', 'sst2/seed-1')
    """
    path = folder.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("seed-") else path.name


def page(results: Results, history: Sequence[Mapping[str, Any]], name: str) -> str:
    """The page as text; ``history`` is from `read_history` and may be empty, ``name`` is the run's."""
    curves = training_curves(history, regularizers(results))
    tiles = [(suite, f) for suite, record in results.suites.items() for f in record.figures[:2]
             if f.estimate.value is not None]
    conditions = {json.dumps([p.revision, dict(p.versions), p.device], sort_keys=True)
                  for p in (record.provenance for record in results.suites.values())}
    return template("report.html").render(
        name=name, results=results, summary=summary(results), curves=curves, tiles=tiles[:8],
        settings=flatten(results.config), shared=len(conditions) <= 1)


def template(name: str) -> jinja2.Template:
    """A page of this room, with the filters and globals that all of them use."""
    loader = jinja2.PackageLoader("jaxablate.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined, finalize=_shown)
    environment.filters |= {"number": number, "cell": cell_text, "draw": draw, "headline": headline, "prose": prose,
                            "text_columns": text_columns}
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def explanation_page(title: str, lines: Sequence[tuple[str, str]], words: Sequence[tuple[str, float]],
                     panels: Sequence[Panel], conditions: str) -> str:
    """A page about one text: under the title pairs (what or who, text), then its words, each with a shade in [0, 1],
    and panels; ``conditions`` is one line on the checkpoint and its surroundings."""
    return template("explanation.html").render(title=title, lines=lines, words=words, panels=panels,
                                               conditions=conditions)


def circuit_page(panel: CircuitGraph, lines: Sequence[tuple[str, str]], conditions: str) -> str:
    """A page of one circuit, see `explanation_page`: nodes and edges to point at, and a slider for weak edges."""
    return explanation_page(panel.title, lines, (), [dataclasses.replace(panel, title="Circuit")], conditions)


def draw(panel: Panel) -> str:
    """SVG of a panel that is a picture; empty for tables and texts, which the template sets itself."""
    drawing = _DRAWINGS.get(type(panel))
    return Markup(drawing(panel) if drawing else "")


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


def regularizers(results: Results) -> tuple[str, ...]:
    """Names of the regularisers of a run's loss: SAFR's terms, and those that its config lists."""
    listed = results.config.get("objective", {}).get("regularizers", ())
    return ("importance", "interaction", *(name for name, _ in listed))


def training_curves(history: Sequence[Mapping[str, Any]], regularizers: Sequence[str] = ("importance", "interaction")
                    ) -> tuple[Curves, ...]:
    """What the log of a run shows: losses of a language model; accuracy and loss of a classifier; regularisers of both.

    A step that was trained twice (a run resumed from an older checkpoint) counts with its last value.
    """
    of_classifier = [entry for entry in history if "cross_entropy" in entry]
    pictures = (
        _curves(history, {"loss_clean": "clean", "loss_ablated": "ablated"}, ("training", "validation"),
                title="Training", y_label="loss", log_y=True,
                caption="Cross-entropy in nats per token, on a logarithmic scale."),
        _curves(history, {"accuracy": "", "accuracy_ablated": "ablated"}, ("training batches", "development"),
                title="Accuracy", y_label="accuracy", caption="Share of texts classified rightly."),
        _curves(of_classifier, {"loss": "loss", "cross_entropy": "cross-entropy"}, ("training", "dev"), title="Loss",
                y_label="nats", caption="The loss that is minimised, and its cross-entropy."),
        _curves(history, {name: name for name in regularizers}, ("training", "dev"), title="Regularisers",
                y_label="term", caption="Terms of the loss before their coefficients."),
    )
    return tuple(curves for curves in pictures if curves.series)


def _curves(history: Sequence[Mapping[str, Any]], names: Mapping[str, str], splits: tuple[str, str], **looks: Any
            ) -> Curves:
    """Numbers of the log over steps, by split; ``names`` maps their keys to what the legend calls them."""
    series = []
    for split, prefix in zip(("train", "valid"), splits, strict=True):
        for key, name in names.items():
            logged = {e["step"]: e[key] for e in history
                      if e.get("split") == split and isinstance(e.get(key), int | float) and abs(e[key]) < svg.LARGEST}
            points, size = sorted(logged.items()), -(-len(logged) // MOST_POINTS)
            groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
            x, y = (tuple(sum(p[axis] for p in g) / len(g) for g in groups) for axis in (0, 1))
            if points:
                series.append(Series(label=f"{prefix}, {name}" if name else prefix, x=x, y=y))
    return Curves(x_label="step", series=tuple(series), **looks)
