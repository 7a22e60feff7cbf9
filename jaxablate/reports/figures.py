"""Panels as figures for print: PNG, SVG and PDF by matplotlib, the same bytes for the same panel.

Widths are those of one column or of the whole page of a paper. matplotlib is imported by what draws, not by this file.
"""

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxablate import files
from jaxablate.reports.circuit_graph import NARROW, PORT, WIDTH, Band, Box, Drawing, curve, place, size_text, widest_row
from jaxablate.reports.panels import Bars, Beside, CircuitGraph, Curves, Heatmap, HistogramGrid, Network, Panel
from jaxablate.reports.svg import MOST_BESIDE, Range, arcs, heaviest, one_set_of_labels, shade_range, short

COLUMN, PAGE = 3.4, 7.0
"""Width in inches of one column, and of the page, of a paper."""
DPI = 300
"""Dots an inch of PNG files."""
FORMATS = ("png", "svg", "pdf")
HUES = ("#2f6db5", "#d0682a", "#7aa8db", "#eaa97e", "#3d8a63", "#8a5aa8")
SHADES = ("#ffffff", "#9dc0e3", "#2f6db5", "#12325e")
"""Colours of a heat map, from the least value to the greatest."""
POSITIVE, NEGATIVE = "#2f6db5", "#d0682a"
PORT_HUES = {"Q": "#3d8a63", "K": "#8a5aa8", "V": "#a07a16"}
INK, SOFT, GROUND = "#1d2128", "#5d6570", "#f4f5f4"
MOST_NARROW = 6
"""Heads in a row that still fit one column of a paper."""
LEGEND = 30.0
"""Height of the explanation under the picture, in the units of the drawing."""
TALLEST = 8.6
"""Inches; higher drawings are squeezed to the page."""
_STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7, "axes.titlesize": 7.5,
    "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5,
    "axes.linewidth": 0.6, "axes.edgecolor": "#8a9099", "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.color": "#3a4049", "ytick.color": "#3a4049",
    "svg.hashsalt": "jaxablate", "pdf.fonttype": 42, "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
_UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figure(panel: Panel, path_without_suffix: str | os.PathLike[str], formats: Sequence[str] = ("png", "svg")
                 ) -> list[Path]:
    """Draws a panel and writes it, one file for each format.

    Args:
      panel: of any kind that is a picture (not a table or texts).
      path_without_suffix: where; the folder is made.
      formats: of `FORMATS`; PNG has 300 dots an inch.

    Returns:
      The files, in the order of ``formats``.

    Raises:
      FileError: a file cannot be written; each is there whole or not at all.
      ValueError: an unknown format, or a panel that is no picture.
    """
    base = Path(path_without_suffix)
    drawn = figure_bytes(panel, formats)
    paths = [base.with_name(f"{base.name}.{suffix}") for suffix in formats]
    for path, suffix in zip(paths, formats, strict=True):
        files.write(path, drawn[suffix])
    return paths


def figure_bytes(panel: Panel, formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Content of the files that `write_figure` writes, by format."""
    import matplotlib

    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise ValueError(f"figure format {unknown[0]!r} is none of {', '.join(FORMATS)}")
    out = {}
    with matplotlib.rc_context(), warnings.catch_warnings(), _quiet():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # drawn as a box
        figure = draw_figure(panel)
        for suffix in formats:
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=DPI, metadata=_UNDATED[suffix])
            out[suffix] = content.getvalue()
    return out


def draw_figure(panel: Panel) -> Any:
    """The `matplotlib.figure.Figure` of a panel, in whatever style is set."""
    if type(panel) not in _DRAWINGS:
        raise ValueError(f"a panel of kind {panel.kind!r} is no picture")
    return _DRAWINGS[type(panel)](panel)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of matplotlib's and fontTools' loggers while fonts are embedded."""
    levels = {name: logging.getLogger(name).level for name in ("matplotlib", "fontTools")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(labels: Sequence[Any]) -> None:
    """Labels as they stand: a dollar sign in a token begins no formula."""
    for label in labels:
        label.set_parse_math(False)


def _heatmap(panel: Heatmap) -> Any:
    columns = len(panel.values[0]) if panel.values else 0
    return _shades([panel], ("",), _figure(PAGE if columns > 24 else COLUMN, _height(panel)))


def _network(panel: Network) -> Any:
    wide = len(panel.nodes) > 9
    figure = _figure(PAGE if wide else COLUMN, 2.6 if wide else 1.9)
    _arcs(figure.add_subplot(), panel, heaviest([panel]))
    return figure


def _beside(panel: Beside) -> Any:
    maps = [p for p in panel.panels if isinstance(p, Heatmap)]
    if maps:
        return _shades(maps, panel.labels, _figure(PAGE, _height(maps[0]) + 0.15))
    networks = [p for p in panel.panels if isinstance(p, Network)]
    rows = len(networks) if max(len(p.nodes) for p in networks) > MOST_BESIDE else 1
    figure = _figure(PAGE, 2.2 * rows if rows > 1 else 2.3)
    axes = figure.subplots(rows, len(networks) if rows == 1 else 1, sharey=True)
    for part, title, own in zip(networks, panel.labels, axes, strict=True):
        _arcs(own, part, heaviest(networks), title)
    return figure


def _shades(panels: Sequence[Heatmap], titles: Sequence[str], figure: Any) -> Any:
    """Draws heat maps in a row with one scale, each with its bars."""
    shared, span = one_set_of_labels(panels), shade_range(panels)
    shares = [share for p in panels for share in ((1, 0.16) if p.bars else (1,))]
    places = iter(figure.add_gridspec(1, len(shares), width_ratios=shares))
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        axes = figure.add_subplot(next(places))
        image = _cells(axes, panel, span, labelled=i == 0 or not shared)
        axes.set_title(title, loc="left", fontweight="bold")
        if panel.bars:
            _row_bars(figure.add_subplot(next(places), sharey=axes), panel)
    _scale(figure, image, panels[0])
    return figure


def _height(panel: Heatmap) -> float:
    named = bool(panel.columns) and len(panel.columns) <= 24
    return 0.75 + 0.135 * max(len(panel.rows), 4) + (0.07 * max(len(short(c)) for c in panel.columns) if named else 0)


def _cells(axes: Any, panel: Heatmap, span: Range, labelled: bool) -> Any:
    """Draws the cells of one heat map; returns the image that the scale belongs to."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("shades", SHADES)
    values = [[v if math.isfinite(v) else span[0] for v in row] or [span[0]] for row in panel.values] or [[span[0]]]
    image = axes.imshow(values, cmap=colours, vmin=span[0], vmax=span[1], aspect="auto", interpolation="nearest")
    axes.set_xlabel(panel.x_label)
    axes.set_yticks(range(len(panel.rows)), [short(row) for row in panel.rows] if labelled else [])
    axes.tick_params(length=0)
    named = panel.columns and len(panel.columns) <= 24
    axes.set_xticks(range(len(panel.columns)) if named else [], map(short, panel.columns) if named else [], rotation=60)
    axes.spines[:].set_visible(True)
    axes.hlines([i + 0.5 for i in range(len(panel.rows) - 1)], -0.5, len(values[0]) - 0.5, colors="#e6e8eb", lw=0.35)
    _plain([*axes.get_yticklabels(), *axes.get_xticklabels()])
    return image


def _row_bars(axes: Any, panel: Heatmap) -> None:
    axes.barh(range(len(panel.bars)), [1] * len(panel.bars), height=0.6, color="#eceef0")
    axes.barh(range(len(panel.bars)), panel.bars, height=0.6, color=HUES[1])
    for i, value in enumerate(panel.bars):
        axes.text(1.08, i, f"{value:.2f}", va="center", fontsize=5.5)
    axes.set_xlim(0, 1.75)
    axes.set_xticks([])
    axes.tick_params(left=False, labelleft=False)
    axes.set_title(panel.bar_label, loc="left", fontsize=6.5)
    axes.spines[:].set_visible(False)


def _scale(figure: Any, image: Any, panel: Heatmap) -> None:
    bar = figure.colorbar(image, ax=figure.axes, location="bottom", shrink=0.35, aspect=32, pad=0.03)
    bar.set_label(panel.value_label)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=2, width=0.4)
    bar.ax.locator_params(nbins=5)


def _arcs(axes: Any, panel: Network, most: float, title: str = "") -> None:
    """Half ellipses over the nodes, all of one shape, so that a tie twice as far reaches twice as high."""
    from matplotlib.collections import LineCollection

    turns = [math.pi * t / 48 for t in range(49)]
    ties = [(sorted((e.first, e.second)), strength) for e, strength in arcs(panel.edges, most)]
    lines = [[((i + j) / 2 - (j - i) / 2 * math.cos(t), (j - i) / 2 * math.sin(t)) for t in turns]
             for (i, j), _ in ties]
    if lines:
        widths, opacities = [0.3 + 1.9 * s for _, s in ties], [0.15 + 0.7 * s for _, s in ties]
        axes.add_collection(LineCollection(lines, linewidths=widths, colors=HUES[0], alpha=opacities, capstyle="round",
                                           clip_on=False))
    sizes = [3 + 26 * min(max(node.size, 0.0), 1.0) for node in panel.nodes]
    axes.scatter(range(len(panel.nodes)), [0] * len(panel.nodes), s=sizes, color=HUES[1], zorder=3, clip_on=False)
    tallest = max([(j - i) / 2 for (i, j), _ in ties], default=1.0)
    axes.set_xlim(-0.7, len(panel.nodes) - 0.3)
    axes.set_ylim(-0.03 * tallest, 1.04 * tallest)
    labels = [short(node.label) for node in panel.nodes]
    level = len(labels) * max(map(len, labels), default=0) < 50  # letters of one line of a column
    slant = {} if level else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(labels)), labels, **slant)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=4)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold")
    _plain(axes.get_xticklabels())


def _bars(panel: Bars) -> Any:
    figure = _figure(COLUMN, 0.45 + 0.2 * max(len(panel.bars), 2))
    axes = figure.add_subplot()
    axes.barh(range(len(panel.bars)), [b.estimate.value or 0.0 for b in panel.bars], height=0.65, color=HUES[0])
    for i, bar in enumerate(panel.bars):
        if bar.estimate.interval is not None:
            axes.plot(bar.estimate.interval, [i, i], color="#1d2128", lw=0.8, marker="|", ms=4, mew=0.8)
    if panel.mark is not None:
        axes.axvline(panel.mark, color=HUES[1], ls="--", lw=0.9, label=panel.mark_label)
        if panel.mark_label:
            axes.legend(frameon=False)
    axes.set_yticks(range(len(panel.bars)), [short(b.label, 40) for b in panel.bars])
    axes.invert_yaxis()
    axes.set_xlabel(panel.unit)
    _plain(axes.get_yticklabels())
    return figure


def _curves(panel: Curves) -> Any:
    figure = _figure(COLUMN, 2.3)
    axes = figure.add_subplot()
    for i, series in enumerate(panel.series):
        axes.plot(series.x, series.y, color=HUES[i % len(HUES)], lw=1.1, label=series.label)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, xscale="log" if panel.log_x else "linear",
             yscale="log" if panel.log_y else "linear")
    axes.grid(axis="y", color="#ecedea", lw=0.6)
    if panel.series:
        axes.legend(frameon=False)
    return figure


def _histograms(panel: HistogramGrid) -> Any:
    columns = min(4, max(len(panel.histograms), 1))
    rows = math.ceil(len(panel.histograms) / columns) or 1
    figure = _figure(PAGE if columns > 2 else COLUMN, 0.3 + 1.35 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, h in zip(grid.flat, panel.histograms, strict=False):
        axes.stairs(h.counts, h.edges, fill=True, color=HUES[0])
        axes.set_title(f"{h.title}: {h.note}" if h.note else h.title, loc="left")
        axes.set_xscale("log" if panel.log_x else "linear")
        if h.mark is not None:
            axes.axvline(h.mark, color=HUES[1], ls="--", lw=0.9)
        if h.apart is not None:
            axes.text(0.98, 0.97, f"{h.apart_label}: {h.apart}", transform=axes.transAxes, ha="right", va="top")
    for axes in grid.flat[len(panel.histograms):]:
        axes.set_visible(False)
    marked = f" (dashed: {panel.mark_label})" if panel.mark_label else ""
    figure.supxlabel(panel.x_label + marked, fontsize=7)
    return figure


def _narrow(panel: CircuitGraph) -> bool:
    """Whether a circuit fits one column of a paper."""
    return widest_row(panel) <= MOST_NARROW and len(panel.edges) <= 60


def _circuit(panel: CircuitGraph) -> Any:
    """A circuit over the whole of a figure: the places of `circuit_graph.place`."""
    from matplotlib.figure import Figure

    if not panel.edges:
        figure = Figure(figsize=(COLUMN, 1.05))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no edge is kept", ha="center", va="center")
        return figure
    drawing = place(panel, NARROW if _narrow(panel) else WIDTH)
    width, height = COLUMN if _narrow(panel) else PAGE, drawing.height + LEGEND * (2 if _narrow(panel) else 1)
    figure = Figure(figsize=(width, min(TALLEST, max(1.05, height * width / drawing.width))))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(height, 0)
    for band in drawing.bands:
        _band(axes, band, drawing.width)
    _wires(axes, drawing)
    for box in drawing.boxes:
        _box(axes, box)
    _circuit_legend(axes, panel, drawing)
    return figure


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


def _circuit_legend(axes: Any, panel: CircuitGraph, drawing: Drawing) -> None:
    """Scores of the strongest, the middle and the weakest edge; what colours and letters mean."""
    wires, y = drawing.wires, drawing.height + 0.6 * LEGEND
    samples = {w.edge.weight: w for w in (wires[-1], wires[len(wires) // 2], wires[0])}
    marks = [(size_text(w.edge), POSITIVE, w.width, w.opacity) for w in samples.values()]
    at = _samples(axes, 8.0, y, marks)
    axes.text(at, y, f"size of {panel.score_label}", color=SOFT, va="center", fontsize=5.5)
    at += 24 + 5.6 * (8 + len(panel.score_label))
    if _narrow(panel):
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


_DRAWINGS: dict[type, Callable[[Any], Any]] = {
    Heatmap: _heatmap, Network: _network, Beside: _beside, Bars: _bars, Curves: _curves, HistogramGrid: _histograms,
    CircuitGraph: _circuit,
}
