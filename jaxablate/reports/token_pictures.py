"""Pictures of a text's tokens as inline SVG: heat maps and arc diagrams, alone or beside each other.

Shades are the opacity of one colour of the page, so that they run from the page to that colour in both themes.
"""

import html
import math
from collections.abc import Sequence

from jaxablate.reports.axes import short, tick_label
from jaxablate.reports.panels import Beside, Edge, Heatmap, Network
from jaxablate.reports.svg import picture, text
from jaxablate.stats import number

WIDTH = 900
GAP = 28
"""Between pictures beside each other."""
SHADES = 24
"""Steps of the scale under a heat map."""
LETTER = 7.5
"""Mean width of a letter, for what has to be laid out before it is drawn."""
MOST_BESIDE = 26
"""Networks of more nodes are too wide to stand beside each other; they stand one above the other."""

Range = tuple[float, float]


def heatmap(panel: Heatmap) -> str:
    """Shaded cells, a row for each label, with bars at the right."""
    parts, height = _heatmap(panel, WIDTH, shade_range([panel]), labelled=True)
    return picture(WIDTH, height + 34, panel.title, parts + _legend(panel, shade_range([panel]), height))


def network(panel: Network) -> str:
    """Nodes in their order on a line, an arc above it for each edge."""
    parts, height = _network(panel, WIDTH, heaviest([panel]), widest([panel]))
    return picture(WIDTH, height, panel.title, parts)


def beside(panel: Beside) -> str:
    """Pictures of one kind in a row, or in a column where they are wide; each under its label."""
    return _heatmaps_beside(panel) if panel.panels[0].kind == "heatmap" else _networks_beside(panel)


def shade_range(panels: Sequence[Heatmap]) -> Range:
    """Ends of the shades' scale: the greatest value, and 0 or what is below it."""
    values = [v for panel in panels for row in panel.values for v in row if math.isfinite(v)]
    low, high = min([0.0, *values]), max([0.0, *values])
    return low, high if high > low else low + 1.0


def heaviest(panels: Sequence[Network]) -> float:
    """Weight of the widest arc."""
    return max([e.weight for panel in panels for e in panel.edges], default=1.0)


def widest(panels: Sequence[Network]) -> int:
    """Nodes that the farthest-reaching arc steps over, which gives all pictures the same height."""
    return max([abs(e.second - e.first) for panel in panels for e in panel.edges], default=1)


def arcs(edges: Sequence[Edge], most: float) -> list[tuple[Edge, float]]:
    """Edges with their strength in [0, 1], strong ones last so that they are drawn over the others."""
    return [(e, min(1.0, e.weight / most)) for e in sorted(edges, key=lambda e: e.weight)]


def one_set_of_labels(panels: Sequence[Heatmap]) -> bool:
    """Whether heat maps beside each other have the same rows, so that one set of labels serves all."""
    return len({panel.rows for panel in panels}) == 1


def _heatmaps_beside(panel: Beside) -> str:
    shared, span = one_set_of_labels(panel.panels), shade_range(panel.panels)
    label = _label_width(panel.panels[0])
    room = WIDTH - GAP * (len(panel.panels) - 1) - (label if shared else 0)
    parts, at, tallest = [], 0.0, 0.0
    for i, (title, part) in enumerate(zip(panel.labels, panel.panels, strict=True)):
        labelled = i == 0 or not shared
        width = room / len(panel.panels) + (label if labelled and shared else 0)
        inner, height = _heatmap(part, width, span, labelled)
        parts += [text(at + (_label_width(part) if labelled else 0), 14, title, "cell-title", "start"),
                  _moved(inner, at, 18)]
        at, tallest = at + width + GAP, max(tallest, height + 18)
    parts += _legend(panel.panels[0], span, tallest)
    return picture(WIDTH, tallest + 34, panel.title, parts)


def _networks_beside(panel: Beside) -> str:
    columns = 1 if max(len(p.nodes) for p in panel.panels) > MOST_BESIDE else len(panel.panels)
    width = (WIDTH - GAP * (columns - 1)) / columns
    most, reach = heaviest(panel.panels), widest(panel.panels)
    parts, down, tallest = [], 0.0, 0.0
    for i, (title, part) in enumerate(zip(panel.labels, panel.panels, strict=True)):
        inner, height = _network(part, width, most, reach)
        if columns == 1 and i:
            down, tallest = down + tallest, 0.0
        at = (width + GAP) * i if columns > 1 else 0.0
        parts += [text(at, down + 14, title, "cell-title", "start"), _moved(inner, at, down + 18)]
        tallest = max(tallest, height + 18)
    return picture(WIDTH, down + tallest, panel.title, parts)


def _moved(parts: Sequence[str], right: float, down: float) -> str:
    return f'<g transform="translate({right:g},{down:g})">{"".join(parts)}</g>'


def _label_width(panel: Heatmap) -> float:
    return 14 + LETTER * max((len(short(row)) for row in panel.rows), default=0)


def _overhang(panel: Heatmap) -> float:
    """How far the name of a column that leans to the right stands out behind its cell."""
    return 0.5 * LETTER * max((len(short(c)) for c in panel.columns), default=0)


def _heatmap(panel: Heatmap, width: float, span: Range, labelled: bool) -> tuple[list[str], float]:
    """Marks of one heat map without its scale, and their height."""
    columns = len(panel.values[0]) if panel.values else 0
    left = _label_width(panel) if labelled else 0.0
    right = width - (96 if panel.bars else _overhang(panel))
    cell = (right - left) / max(columns, 1)
    row = 20.0 if len(panel.rows) <= 40 else 14.0
    named = columns > 0 and cell >= 14 and len(panel.columns) > 0
    top = 12 + (LETTER * max(len(short(c)) for c in panel.columns) * 0.9 if named else 8)
    base = top + row * len(panel.rows)
    parts = [f'<rect class="ground" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{base - top:g}"/>']
    if named:
        parts += [text(left + cell * (j + 0.6), top - 5, short(c), "tick", "start", rotate=-60)
                  for j, c in enumerate(panel.columns)]
    for i, name in enumerate(panel.rows):
        y = top + row * i
        if labelled:
            parts.append(text(left - 8, y + row / 2 + 4, short(name), "label", "end"))
        parts += _cells(panel, i, (left, y, cell, row - 1), span)
    if panel.bars:
        parts += _row_bars(panel, right + 10, top, row)
    parts.append(text((left + right) / 2, base + 18, panel.x_label, "axis", "middle"))
    return parts, base + 24


def _cells(panel: Heatmap, i: int, box: tuple[float, float, float, float], span: Range) -> list[str]:
    """Cells of a row that have any shade; what they stand for is shown on hovering."""
    left, y, width, height = box
    parts = []
    for j, value in enumerate(panel.values[i]):
        shade = round((value - span[0]) / (span[1] - span[0]), 3) if math.isfinite(value) else 0.0
        if shade <= 0:
            continue
        column = panel.columns[j] if panel.columns else str(j)
        what = html.escape(f"{short(panel.rows[i])}, {column}: {number(value)}")
        size = f'x="{left + width * j:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}"'
        parts.append(f'<rect class="shade" {size} fill-opacity="{shade:g}"><title>{what}</title></rect>')
    return parts


def _row_bars(panel: Heatmap, left: float, top: float, row: float) -> list[str]:
    parts = [text(left, top - 6, panel.bar_label, "tick", "start")]
    for i, (name, value) in enumerate(zip(panel.rows, panel.bars, strict=True)):
        y, length = top + row * i, 48 * min(max(value, 0.0), 1.0)
        what = html.escape(f"{short(name)}, {panel.bar_label}: {number(value)}")
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
    parts = [_arc(panel, edge, strength, (left, step, base, squeeze)) for edge, strength in arcs(panel.edges, most)]
    for i, (node, label) in enumerate(zip(panel.nodes, labels, strict=True)):
        at = round(left + step * (i + 0.5), 1)
        what = html.escape(f"{label}: {panel.size_label} {number(node.size)}")
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
    return f'<path class="arc" d="{path}" {look}><title>{html.escape(what)}</title></path>'
