"""A circuit for print: the marks of `circuit_graph.place` drawn by matplotlib."""

from collections.abc import Sequence
from typing import Any

from jaxablate.reports.circuit_graph import NARROW, PORT, WIDTH, Band, Box, Drawing, curve, place, size_text, widest_row
from jaxablate.reports.panels import CircuitGraph

POSITIVE, NEGATIVE = "#2f6db5", "#d0682a"
PORT_HUES = {"Q": "#3d8a63", "K": "#8a5aa8", "V": "#a07a16"}
INK, SOFT, GROUND = "#1d2128", "#5d6570", "#f4f5f4"
MOST_NARROW = 6
"""Heads in a row that still fit one column of a paper."""
LEGEND = 30.0
"""Height of the explanation under the picture, in the units of the drawing."""
TALLEST = 8.6
"""Inches; higher drawings are squeezed to the page."""


def narrow(panel: CircuitGraph) -> bool:
    """Whether a circuit fits one column of a paper."""
    return widest_row(panel) <= MOST_NARROW and len(panel.edges) <= 60


def size(panel: CircuitGraph, page: float, column: float) -> tuple[float, float]:
    """Width and height of the figure in inches, for the widths of a page and of a column."""
    if not panel.edges:
        return column, 1.05
    drawing = _placed(panel)
    width = column if narrow(panel) else page
    return width, min(TALLEST, max(1.05, (drawing.height + _legend_height(panel)) * width / drawing.width))


def draw(axes: Any, panel: CircuitGraph) -> None:
    """Draws a circuit over the whole of some axes."""
    axes.set_axis_off()
    if not panel.edges:
        axes.text(0.5, 0.5, "no edge is kept", ha="center", va="center")
        return
    drawing = _placed(panel)
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height + _legend_height(panel), 0)
    for band in drawing.bands:
        _band(axes, band, drawing.width)
    _wires(axes, drawing)
    for box in drawing.boxes:
        _box(axes, box)
    _legend(axes, panel, drawing)


def _placed(panel: CircuitGraph) -> Drawing:
    return place(panel, NARROW if narrow(panel) else WIDTH)


def _legend_height(panel: CircuitGraph) -> float:
    return LEGEND * (2 if narrow(panel) else 1)


def _band(axes: Any, band: Band, width: float) -> None:
    from matplotlib.patches import Rectangle

    if band.label:
        axes.add_patch(Rectangle((0, band.top), width, band.bottom - band.top, color=GROUND, lw=0, zorder=0))
        axes.text(5, (band.top + band.bottom) / 2, band.label, color=SOFT, va="center", fontsize=5.5)
    if band.note:
        axes.text(5, band.bottom + 17, f"{band.note}: no edge", color=SOFT, va="center", fontsize=5.5)


def _wires(axes: Any, drawing: Drawing) -> None:
    """All edges, weak ones first; widths are those of the page, whose 900 units are 7 inches here."""
    from matplotlib.collections import LineCollection

    wires = drawing.wires
    axes.add_collection(LineCollection(
        [curve(wire.points) for wire in wires], linewidths=[0.56 * wire.width for wire in wires], capstyle="round",
        colors=[NEGATIVE if wire.edge.negative else POSITIVE for wire in wires], zorder=1,
        alpha=[wire.opacity for wire in wires]))


def _box(axes: Any, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    left, top = box.x - box.width / 2, box.y - box.height / 2
    fill = "white" if box.node.kind == "head" else "#e9eaea"
    axes.add_patch(FancyBboxPatch((left + 3, top + 3), box.width - 6, box.height - 6, fc=fill, ec=SOFT, lw=0.5,
                                  boxstyle="round,pad=3", mutation_aspect=1.0, zorder=2))
    axes.text(box.x, box.y, box.node.name, color=INK, ha="center", va="center_baseline", fontsize=5, zorder=3)
    for port in box.ports:
        _port(axes, port, box.port_x(port), box.y + box.height / 2)


def _port(axes: Any, port: str, x: float, top: float) -> None:
    from matplotlib.patches import Rectangle

    if port:
        axes.add_patch(Rectangle((x - PORT / 2, top + 1), PORT, PORT - 1, color=PORT_HUES[port], lw=0, zorder=2))
        axes.text(x, top + PORT / 2 + 0.5, port, color="white", ha="center", va="center_baseline", fontsize=4,
                  fontweight="bold", zorder=3)


def _legend(axes: Any, panel: CircuitGraph, drawing: Drawing) -> None:
    """Scores of the strongest, the middle and the weakest edge; what colours and letters mean."""
    wires, y = drawing.wires, drawing.height + 0.6 * LEGEND
    samples = {w.edge.weight: w for w in (wires[-1], wires[len(wires) // 2], wires[0])}
    marks = [(size_text(w.edge), POSITIVE, w.width, w.opacity) for w in samples.values()]
    at = _samples(axes, 8.0, y, marks)
    axes.text(at, y, f"size of {panel.score_label}", color=SOFT, va="center", fontsize=5.5)
    at += 24 + 5.6 * (8 + len(panel.score_label))
    if narrow(panel):
        at, y = 8.0, y + LEGEND
    if any(e.negative for e in panel.edges):
        strong = wires[-1].width, wires[-1].opacity
        at = _samples(axes, at, y, [("positive", POSITIVE, *strong), ("negative", NEGATIVE, *strong)])
    if any(e.port for e in panel.edges):
        for port, word in (("Q", "queries"), ("K", "keys"), ("V", "values")):
            _port(axes, port, at + PORT / 2, y - PORT / 2)
            axes.text(at + PORT + 4, y, word, color=SOFT, va="center", fontsize=5.5)
            at += PORT + 16 + 5.6 * len(word)


def _samples(axes: Any, at: float, y: float, marks: Sequence[tuple[str, str, float, float]]) -> float:
    """Short lines with a word each; returns where the next thing may stand."""
    for word, hue, width, opacity in marks:
        axes.plot([at, at + 22], [y, y], color=hue, lw=0.56 * width, alpha=opacity)
        axes.text(at + 28, y, word, color=SOFT, va="center", fontsize=5.5)
        at += 42 + 5.6 * len(word)
    return at
