"""Panels as inline SVG, coloured by the page's own style sheet so that they follow its light and dark themes."""

import html
import itertools
import math
from collections.abc import Iterable

from jaxablate.reports.axes import Scale, bounds, tick_label
from jaxablate.reports.panels import Bars, Curves, Histogram, HistogramGrid

COLOURS = 6
"""Series colours the style sheet knows, as classes ``c0`` .. ``c5``."""


def curves(panel: Curves, width: int = 900, height: int = 300) -> str:
    """Lines over one pair of axes, each labelled at its right end."""
    left, right, top, bottom = 58, 150, 14, 42
    xs = [x for s in panel.series for x in s.x]
    ys = [y for s in panel.series for y in s.y]
    x = Scale(*bounds(xs, panel.log_x, 0.0), left, width - right, panel.log_x)
    y = Scale(*bounds(ys, panel.log_y), height - bottom, top, panel.log_y)
    parts = [*_grid_y(y, left, width - right), *_ticks_x(x, height - bottom)]
    parts += [text((left + width - right) / 2, height - 6, panel.x_label, "axis", "middle"),
              text(14, (top + height - bottom) / 2, panel.y_label, "axis", "middle", rotate=-90)]
    ends = _spread([y(s.y[-1]) if s.y else 0.0 for s in panel.series], 14, top, height - bottom)
    for i, (series, end) in enumerate(zip(panel.series, ends, strict=True)):
        points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(b)]
        path = " ".join(f"{a:g},{b:g}" for a, b in points)
        parts.append(f'<polyline class="line c{i % COLOURS}" points="{path}"/>')
        if len(points) <= 40:
            parts += [f'<circle class="dot c{i % COLOURS}" cx="{a:g}" cy="{b:g}" r="2.5"/>' for a, b in points]
        parts.append(text(width - right + 8, end + 4, series.label, f"name c{i % COLOURS}", "start"))
    return picture(width, height, panel.title, parts)


def bars(panel: Bars, width: int = 900) -> str:
    """Horizontal bars from zero with whiskers and values."""
    label_width = min(380, 20 + int(7.2 * max((len(b.label) for b in panel.bars), default=0)))
    right, row, top = 190, 28, 8
    height = top + row * len(panel.bars) + (24 if panel.mark is not None else 6)
    reached = [v for b in panel.bars for v in (b.estimate.value, *(b.estimate.interval or ())) if v is not None]
    most, least = max([*reached, panel.mark or 0.0, 1e-12]), min([*reached, 0.0])
    x = Scale(least, most, label_width, width - right)
    parts = []
    for i, bar in enumerate(panel.bars):
        y = top + row * i
        start, end = sorted((x(0.0), x(bar.estimate.value or 0.0)))
        parts.append(text(label_width - 10, y + 18, bar.label, "label", "end"))
        parts.append(_bar(start, end, y + 5, y + 23, "bar c0", f"{bar.label}: {bar.estimate}"))
        reach = end
        if bar.estimate.interval is not None:
            low, high = map(x, bar.estimate.interval)
            parts.append(_whisker(low, high, y + 14))
            reach = max(end, high)
        parts.append(text(reach + 8, y + 18, str(bar.estimate), "value", "start"))
    if panel.mark is not None:
        at = x(panel.mark)
        parts += [f'<line class="mark" x1="{at}" x2="{at}" y1="{top - 4}" y2="{height - 18}"/>',
                  text(at, height - 5, panel.mark_label, "tick", "middle")]
    return picture(width, height, panel.title, parts)


def histograms(panel: HistogramGrid, columns: int = 4, cell: tuple[int, int] = (228, 164)) -> str:
    """Small multiples with one horizontal and one vertical scale."""
    columns = max(1, min(columns, len(panel.histograms)))
    rows = math.ceil(len(panel.histograms) / columns)
    width, height = columns * cell[0], rows * cell[1] + 16
    edges = [e for h in panel.histograms for e in h.edges]
    span = min(edges), max(edges)
    most = _tallest(panel)
    parts = []
    for i, histogram in enumerate(panel.histograms):
        at = (i % columns) * cell[0], (i // columns) * cell[1]
        inner = _histogram(histogram, span, most, panel.log_x, cell)
        parts.append(f'<g transform="translate({at[0]},{at[1]})">{"".join(inner)}</g>')
    parts.append(text(width / 2, height - 3, panel.x_label, "axis", "middle"))
    return picture(width, height, panel.title, parts)


def _tallest(panel: HistogramGrid) -> float:
    """Upper end of the counts' axis. A bar apart that is much taller is cut off there; its number is written on it."""
    counts = max([c for h in panel.histograms for c in h.counts] + [1])
    return min(max([counts, *(h.apart or 0 for h in panel.histograms)]), 1.5 * counts)


def _histogram(h: Histogram, span: tuple[float, float], most: float, log: bool, cell: tuple[int, int]) -> list[str]:
    width, height = cell
    left, right, top, bottom = 36, 8, 44, 26
    base = height - bottom
    first = left + (30 if h.apart is not None else 0)
    x, y = Scale(*span, first, width - right, log), Scale(0, most, base, top)
    parts = [text(left, 14, h.title, "cell-title", "start"), text(left, 27, h.note, "cell-note", "start")]
    parts += _grid_y(y, left, width - right, about=3)
    if h.apart is not None:
        tip = y(min(h.apart, most))
        parts += [_bar(left + 3, left + 19, tip, base, "apart", f"{h.apart_label}: {h.apart}"),
                  text(left + 11, tip - 3, str(h.apart), "tick", "middle"),
                  text(left + 11, base + 14, h.apart_label, "tick", "middle")]
    for count, low, high in zip(h.counts, h.edges, h.edges[1:], strict=False):
        if count:
            what = f"{tick_label(low)} to {tick_label(high)}: {count}"
            parts.append(_bar(x(low) + 0.5, x(high) - 0.5, y(count), base, "bar c0", what))
    if h.mark is not None:
        parts.append(f'<line class="mark" x1="{x(h.mark)}" x2="{x(h.mark)}" y1="{top}" y2="{base}"/>')
    return parts + _ticks_x(x, base, about=3)


def _bar(start: float, end: float, top: float, base: float, style: str, what: str) -> str:
    size = f'x="{start:.2f}" y="{top:g}" width="{max(end - start, 0.8):.2f}" height="{max(base - top, 0):.2f}"'
    return f'<rect class="{style}" {size}><title>{html.escape(what)}</title></rect>'


def _whisker(start: float, end: float, y: float) -> str:
    return (f'<path class="whisker" d="M{start:g} {y}H{end:g}M{start:g} {y - 4}v8M{end:g} {y - 4}v8"/>')


def _grid_y(y: Scale, start: float, end: float, about: int = 5) -> list[str]:
    lines = [f'<line class="grid" x1="{start}" x2="{end}" y1="{y(t)}" y2="{y(t)}"/>' for t in y.ticks(about)]
    return lines + [text(start - 6, y(t) + 3.5, tick_label(t), "tick", "end") for t in y.ticks(about)]


def _ticks_x(x: Scale, base: float, about: int = 6) -> list[str]:
    lines = [f'<line class="base" x1="{x.start}" x2="{x.end}" y1="{base}" y2="{base}"/>']
    return lines + [text(x(t), base + 14, tick_label(t), "tick", "middle") for t in x.ticks(about)]


def _spread(positions: list[float], apart: float, low: float, high: float) -> list[float]:
    """Moves labels apart vertically, keeping their order."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    out = list(positions)
    for before, here in itertools.pairwise(order):
        out[here] = max(out[here], out[before] + apart)
    over = max(out, default=low) - high
    return [max(low, p - over) if over > 0 else p for p in out]


def text(x: float, y: float, words: str, style: str, anchor: str, rotate: int = 0) -> str:
    """Words at a point: ``anchor`` is start, middle or end, ``rotate`` in degrees clockwise."""
    turn = f' transform="rotate({rotate} {x:g} {y:g})"' if rotate else ""
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{turn}>{html.escape(words)}</text>'


def picture(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole ``<svg>`` of marks; the title is for who cannot see it."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img"'
    return f'{head} aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg>'
