"""Pages of one circuit, explanation or neuron: HTML that needs nothing but a browser, with pictures drawn in Python.

What shows whole runs is the application of ``explorer.py``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jaxablate.reports import svg
from jaxablate.reports.circuit_graph import circuit_svg
from jaxablate.reports.panels import Bars, Beside, CircuitGraph, Curves, Heatmap, HistogramGrid, Network, Panel
from jaxablate.reports.tables import cell_text, text_columns
from jaxablate.stats import number
from jaxablate.terminal import printable

_DRAWINGS: dict[type, Callable[[Any], str]] = {
    HistogramGrid: svg.histograms, Bars: svg.bars, Curves: svg.curves, CircuitGraph: circuit_svg, Beside: svg.beside,
    Heatmap: lambda panel: svg.heatmaps(panel.title, [panel]),
    Network: lambda panel: svg.networks(panel.title, [panel]),
}

def template(name: str) -> jinja2.Template:
    """A page of this room, with the filters and globals that all of them use."""
    loader = jinja2.PackageLoader("jaxablate.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined, finalize=_shown)
    environment.filters |= {"number": number, "cell": cell_text, "draw": draw, "text_columns": text_columns}
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
    """SVG of a panel that is a picture; empty for others."""
    drawing = _DRAWINGS.get(type(panel))
    return Markup(drawing(panel) if drawing else "")
