"""Panels as inline SVG: charts, heat maps and arc diagrams.

They are coloured by the page's own style sheet, so that they follow its light and dark themes. Shades are the opacity
of one colour, which then runs from the page to that colour in both.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Iterable, Sequence

from jaxablate.reports.panels import Bars, Beside, Curves, Edge, Heatmap, Histogram, HistogramGrid, Network
from jaxablate.stats import number
from jaxablate.terminal import printable

Range = tuple[float, float]
COLOURS = 6
"""Series colours the style sheet knows, as classes ``c0`` .. ``c5``."""
WIDTH = 900
GAP = 28
"""Between pictures beside each other."""
SHADES = 24
"""Steps of the scale under a heat map."""
LETTER = 7.5
"""Mean width of a letter, for what has to be laid out before it is drawn."""
LARGEST = 1e150
"""Numbers of this size and above are not drawn: their differences and squares would not be finite."""
MOST_BESIDE = 26
"""Networks of more nodes are too wide to stand beside each other; they stand one above the other."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to positions between start and end; logarithmic on request."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (math.log10(max(x, 1e-300)) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)
        share = 0.5 if a == b else (v - a) / (b - a)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, about: int = 5) -> tuple[float, ...]:
        """Round values inside the scale: powers of ten, or 1, 2, 5 times one."""
        low, high = self.low, self.high
        if not self.log or not 0 < low < LARGEST or high / low < 10:
            return linear_ticks(low, high, about)
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < 2:  # less than two decades: a few round values in between
            powers = range(math.floor(math.log10(low)), last + 1)
            return tuple(m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high)
        every = max(1, math.ceil((last - first + 1) / about))
        return tuple(10.0**p for p in range(last, first - 1, -every))[::-1]


def linear_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high].

    >>> linear_ticks(0, 10, 5)
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    if not 0 < high - low < LARGEST:
        return (low,)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def tick_label(value: float) -> str:
    """Short text of a tick.

    >>> tick_label(0.25), tick_label(20000), tick_label(1e-6)
    ('0.25', '20k', '10⁻⁶')
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if size == 0 or size >= 1e-3:
        return f"{value:g}"
    power = math.floor(math.log10(size) + 1e-9)
    lead = value / 10.0**power
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if abs(lead - 1) < 1e-9 else f"{lead:g}·10{digits}"


def short(label: str, most: int = 18) -> str:
    """A label on one line and not too long; white space alone becomes a visible sign.

    >>> short(" incomprehensibilities "), short("a b"), short("\\n")
    ('incomprehensibili…', 'a b', '␣')
    """
    line = " ".join(label.split()) or "␣"
    return line if len(line) <= most else f"{line[: most - 1]}…"


def bounds(values: Sequence[float], log: bool = False, room: float = 0.05) -> tuple[float, float]:
    """Least and greatest value with a little room; of positive values only where logarithmic.

    >>> bounds([1.0, 3.0], room=0.0)
    (1.0, 3.0)
    """
    drawable = [v for v in values if abs(v) < LARGEST and (v > 1 / LARGEST or not log)]
    if not drawable:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(drawable), max(drawable)
    if low == high:
        return (low / 1.2, high * 1.2) if log else (low - 0.5, high + 0.5)
    if log:
        factor = (high / low) ** room
        return low / factor, high * factor
    return low - room * (high - low), high + room * (high - low)


def text(x: float, y: float, words: str, style: str, anchor: str, rotate: int = 0) -> str:
    """Words at a point: ``anchor`` is start, middle or end, ``rotate`` in degrees clockwise."""
    turn = f' transform="rotate({rotate} {x:g} {y:g})"' if rotate else ""
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{turn}>{escape(words)}</text>'


def escape(words: str) -> str:
    """Words inside of an element or attribute of HTML and SVG, without characters that XML does not have."""
    return html.escape(printable(words))


def picture(width: float, height: float, title: str, parts: Iterable[str], *, style: str = "", role: str = "img"
            ) -> str:
    """A whole ``<svg>`` of marks; the title is for who cannot see it."""
    look = f' class="{style}"' if style else ""
    head = f'<svg{look} viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="{role}"'
    return f'{head} aria-label="{escape(title)}">{"".join(parts)}</svg>'


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
            ends = f"M{low:g} {y + 14}H{high:g}M{low:g} {y + 10}v8M{high:g} {y + 10}v8"
            parts.append(f'<path class="whisker" d="{ends}"/>')
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
    # A bar apart that is much taller than the counts is cut off; its number is written on it.
    counts = max([c for h in panel.histograms for c in h.counts] + [1])
    most = min(max([counts, *(h.apart or 0 for h in panel.histograms)]), 1.5 * counts)
    parts = [_moved(_histogram(histogram, span, most, panel.log_x, cell),
                    (i % columns) * cell[0], (i // columns) * cell[1]) for i, histogram in enumerate(panel.histograms)]
    parts.append(text(width / 2, height - 3, panel.x_label, "axis", "middle"))
    return picture(width, height, panel.title, parts)


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
    return f'<rect class="{style}" {size}><title>{escape(what)}</title></rect>'


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


def beside(panel: Beside) -> str:
    """Pictures of one kind in a row, or in a column where they are wide; each under its label."""
    maps = [p for p in panel.panels if isinstance(p, Heatmap)]
    arcs = [p for p in panel.panels if isinstance(p, Network)]
    return heatmaps(panel.title, maps, panel.labels) if maps else networks(panel.title, arcs, panel.labels)


def heatmaps(title: str, panels: Sequence[Heatmap], labels: Sequence[str] = ("",)) -> str:
    """Shaded cells, a row for each label, with bars at the right: heat maps in a row with one scale, each under its
    label, if it has one."""
    shared = len({panel.rows for panel in panels}) == 1  # one set of labels serves all
    label = _label_width(panels[0])
    values = [v for panel in panels for row in panel.values for v in row if math.isfinite(v)]
    span = min([0.0, *values]), max([0.0, *values])
    if span[0] == span[1]:
        span = 0.0, 1.0
    room = WIDTH - GAP * (len(panels) - 1) - (label if shared else 0)
    parts, at, tallest, down = [], 0.0, 0.0, 18 if any(labels) else 0
    for i, (name, panel) in enumerate(zip(labels, panels, strict=True)):
        labelled = i == 0 or not shared
        width = room / len(panels) + (label if labelled and shared else 0)
        inner, height = _heatmap(panel, width, span, labelled)
        parts += [text(at + (_label_width(panel) if labelled else 0), 14, name, "cell-title", "start"),
                  _moved(inner, at, down)]
        at, tallest = at + width + GAP, max(tallest, height + down)
    return picture(WIDTH, tallest + 34, title, parts + _legend(panels[0], span, tallest))


def networks(title: str, panels: Sequence[Network], labels: Sequence[str] = ("",)) -> str:
    """Nodes in their order on a line, an arc above it for each edge: diagrams with one scale, in a row or, where they
    are wide, in a column."""
    edges = [edge for panel in panels for edge in panel.edges]
    most = max([e.weight for e in edges], default=1.0) or 1.0
    reach = max([abs(e.second - e.first) for e in edges], default=1)  # the farthest arc gives all the same height
    columns = 1 if max(len(p.nodes) for p in panels) > MOST_BESIDE else len(panels)
    width = (WIDTH - GAP * (columns - 1)) / columns
    parts, top, tallest, down = [], 0.0, 0.0, 18 if any(labels) else 0
    for i, (name, panel) in enumerate(zip(labels, panels, strict=True)):
        inner, height = _network(panel, width, most, reach)
        if columns == 1:
            top, tallest = top + tallest, 0.0
        at = (width + GAP) * i if columns > 1 else 0.0
        parts += [text(at, top + 14, name, "cell-title", "start"), _moved(inner, at, top + down)]
        tallest = max(tallest, height + down)
    return picture(WIDTH, top + tallest, title, parts)


def _moved(parts: Sequence[str], right: float, down: float) -> str:
    return f'<g transform="translate({right:g},{down:g})">{"".join(parts)}</g>'


def _label_width(panel: Heatmap) -> float:
    return 14 + LETTER * max((len(short(row)) for row in panel.rows), default=0)


def _heatmap(panel: Heatmap, width: float, span: Range, labelled: bool) -> tuple[list[str], float]:
    """Marks of one heat map without its scale, and their height."""
    columns = len(panel.values[0]) if panel.values else 0
    left = _label_width(panel) if labelled else 0.0
    longest = LETTER * max((len(short(c)) for c in panel.columns), default=0)
    right = width - (96 if panel.bars else 0.5 * longest)  # a column's name leans to the right, behind its cell
    cell = (right - left) / max(columns, 1)
    row = 20.0 if len(panel.rows) <= 40 else 14.0
    named = columns > 0 and cell >= 14 and len(panel.columns) > 0
    top = 12 + (longest * 0.9 if named else 8)
    base = top + row * len(panel.rows)
    parts = [f'<rect class="ground" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{base - top:g}"/>']
    if named:
        parts += [text(left + cell * (j + 0.6), top - 5, short(c), "tick", "start", rotate=-60)
                  for j, c in enumerate(panel.columns)]
    for i, name in enumerate(panel.rows):
        y = top + row * i
        if labelled:
            parts.append(text(left - 8, y + row / 2 + 4, short(name), "label", "end"))
        for j, value in enumerate(panel.values[i]):
            shade = round((value - span[0]) / (span[1] - span[0]), 3) if math.isfinite(value) else 0.0
            if shade > 0:
                what = escape(f"{short(name)}, {panel.columns[j] if panel.columns else j}: {number(value)}")
                size = f'x="{left + cell * j:.2f}" y="{y:g}" width="{cell:.2f}" height="{row - 1:g}"'
                parts.append(f'<rect class="shade" {size} fill-opacity="{shade:g}"><title>{what}</title></rect>')
    if panel.bars:
        parts += _row_bars(panel, right + 10, top, row)
    parts.append(text((left + right) / 2, base + 18, panel.x_label, "axis", "middle"))
    return parts, base + 24


def _row_bars(panel: Heatmap, left: float, top: float, row: float) -> list[str]:
    parts = [text(left, top - 6, panel.bar_label, "tick", "start")]
    for i, (name, value) in enumerate(zip(panel.rows, panel.bars, strict=True)):
        y, length = top + row * i, 48 * min(max(value, 0.0), 1.0)
        what = escape(f"{short(name)}, {panel.bar_label}: {number(value)}")
        parts += [f'<rect class="ground" x="{left:g}" y="{y + 3:g}" width="48" height="{row - 7:g}"/>',
                  f'<rect class="bar c1" x="{left:g}" y="{y + 3:g}" width="{length:.2f}" height="{row - 7:g}">'
                  f"<title>{what}</title></rect>",
                  text(left + 54, y + row / 2 + 4, f"{value:.2f}", "tick", "start")]
    return parts


def _legend(panel: Heatmap, span: Range, top: float) -> list[str]:
    """The scale of the shades, with what they stand for."""
    width, right = 8.0, WIDTH - (96.0 if panel.bars else 0.0) - 40
    left, y = right - width * SHADES, top + 8
    swatches = [f'<rect class="shade" x="{left + width * i:g}" y="{y:g}" width="{width:g}" height="10" '
                f'fill-opacity="{(i + 0.5) / SHADES:.3f}"/>' for i in range(SHADES)]
    low = tick_label(float(f"{span[0]:.3g}"))
    return [*swatches, text(right + 6, y + 9, tick_label(float(f"{span[1]:.3g}")), "tick", "start"),
            text(left - 6, y + 9, f"{panel.value_label}  {low}", "tick", "end")]


def _network(panel: Network, width: float, most: float, reach: int) -> tuple[list[str], float]:
    """Marks of one arc diagram, and their height."""
    labels = [short(node.label) for node in panel.nodes]
    longest = LETTER * max(map(len, labels), default=0)
    left, step = 0.0, width / max(len(labels), 1)
    level = longest + 8 <= step
    if not level:  # a slanted label reaches to the left of its node
        left = max(0.0, *(0.5 * LETTER * len(label) - step * i for i, label in enumerate(labels)))
        step = (width - left) / len(labels)
    span = reach * step / 2
    squeeze = min(1.0, 190 / span)
    base = round(14 + span * squeeze, 1)
    parts = [_arc(panel, edge, min(1.0, edge.weight / most), (left, step, base, squeeze))
             for edge in sorted(panel.edges, key=lambda e: e.weight)]  # strong ones over the others
    for i, (node, label) in enumerate(zip(panel.nodes, labels, strict=True)):
        at = round(left + step * (i + 0.5), 1)
        what = escape(f"{label}: {panel.size_label} {number(node.size)}")
        radius = 2 + min(0.3 * step, 6) * math.sqrt(min(max(node.size, 0.0), 1.0))
        parts += [f'<circle class="node" cx="{at}" cy="{base}" r="{radius:.1f}"><title>{what}</title></circle>',
                  text(at, base + 24, label, "label", "middle") if level else
                  text(at + 4, base + 16, label, "label", "end", rotate=-60)]
    return parts, base + (32 if level else 24 + 0.87 * longest + 4)


def _arc(panel: Network, edge: Edge, strength: float, place: tuple[float, float, float, float]) -> str:
    """Half an ellipse from node to node; width and opacity are the edge's strength."""
    left, step, base, squeeze = place
    i, j = sorted((edge.first, edge.second))
    start, end, radius = left + step * (i + 0.5), left + step * (j + 0.5), step * (j - i) / 2
    what = f"{short(panel.nodes[i].label)} – {short(panel.nodes[j].label)}: {panel.weight_label} {number(edge.weight)}"
    path = f"M{start:.1f} {base}A{radius:.1f} {radius * squeeze:.1f} 0 0 1 {end:.1f} {base}"
    look = f'stroke-width="{0.6 + 3.4 * strength:.2f}" stroke-opacity="{0.15 + 0.7 * strength:.2f}"'
    return f'<path class="arc" d="{path}" {look}><title>{escape(what)}</title></path>'
