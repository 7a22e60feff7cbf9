"""Circuits as pictures: from names and scores to a panel, from the panel to places on a drawing, and to SVG.

Both the page's SVG and the figure for print are drawn from `place`, so they agree in everything but marks.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from jaxablate.reports.panels import CircuitEdge, CircuitGraph, CircuitNode, Port
from jaxablate.reports.svg import WIDTH, escape, picture, text
from jaxablate.stats import number

MOST_EDGES = 600
"""Edges of a picture; of larger circuits the strongest are drawn."""
NODE = {"start": (104.0, 20.0), "head": (36.0, 18.0), "mlp": (42.0, 20.0), "end": (104.0, 20.0)}
"""Width and height of each kind of node."""
PORT = 10.0
"""Side of the little ports under a head."""
_PORT_SHIFT = {"": 0.0, "Q": -11.5, "K": 0.0, "V": 11.5}
_LEFT, _EDGE = 58.0, 10.0
"""Room for the labels of blocks, and at the other sides."""
_TO_MLP, _TO_BLOCK, _SKIPPED = 54.0, 68.0, 26.0
"""Height from a row of heads to its MLP, from a block to the next, and what a gap of several blocks adds."""
_LANE = 150.0
"""Width of the middle, where edges between MLPs and ends run; wide drawings have more heads on either side."""
_LEGEND = 40
"""Height of the explanation under the page's picture."""
_SWEEPS = 6
_INFINITE_SHARE = 0.75
"""Weight of the strongest finite score where there are infinite ones."""
_NAME = re.compile(r"(?:(?P<start>Resid Start)|(?P<end>Resid End)|MLP (?P<mlp>\d+)|"
                   r"A(?P<block>\d+)\.(?P<head>\d+)(?:-(?P<last>\d+))?)(?:\.(?P<port>[QKV]))?")

Key = tuple[int, int, int]
"""A node: its layer, and its head in it, or the first and the last of the heads that share keys and values."""
Points = tuple[tuple[float, float], ...]
"""Start, two control points and end of a cubic Bezier curve."""


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a node is drawn."""

    node: CircuitNode
    x: float
    """Middle."""
    y: float
    width: float
    height: float
    ports: tuple[str, ...]
    """Those that an edge of the picture leads into."""

    def port_x(self, port: str) -> float:
        """Middle of a port, of the node itself for none."""
        return self.x + _PORT_SHIFT[port]

    @property
    def entry(self) -> float:
        """Height where edges end: the lower side, ports included."""
        return self.y + self.height / 2 + (PORT if self.node.kind == "head" else 0.0)


@dataclasses.dataclass(frozen=True)
class Wire:
    """Where an edge is drawn: a cubic Bezier curve."""

    edge: CircuitEdge
    points: Points
    width: float
    opacity: float


@dataclasses.dataclass(frozen=True)
class Band:
    """Height of a block's rows, for its label and ground; ``note`` tells of blocks below it that have no node."""

    label: str
    top: float
    bottom: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """All places of a picture; y grows downwards, so the start of the model has the greatest."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    """Weak ones first, so that strong ones are drawn over them."""
    bands: tuple[Band, ...]


def _size(node: CircuitNode) -> tuple[float, float]:
    """Width and height of a node; names of heads that share keys and values are long."""
    width, height = NODE[node.kind]
    return (max(width, 6.0 * len(node.name)) if node.kind == "head" else width), height


def circuit_panel(edges: Sequence[tuple[str, float]], *, n_layers: int, title: str, caption: str, score_label: str,
                  most: int = MOST_EDGES) -> CircuitGraph:
    """The panel of a circuit. The same edges give the same panel.

    It has the nodes that an edge touches, from the bottom to the top of the model and, in each row, from left to right,
    ordered so that few edges cross. Keys and values that heads share are a node of their own, ``A1.4-7``.

    Args:
      edges: pairs (name, score) of the kept edges, as ``Circuit.scored_edges`` gives them: names as
        ``A0.1->A1.2.Q``; scores may be infinite, and NaN where there is none.
      n_layers: blocks of the model.
      title: of the panel.
      caption: text under it; a remark is added where not all edges are drawn.
      score_label: what a score is, for example ``EAP score``.
      most: edges to draw at most; those of the greatest scores in size are.

    Raises:
      ValueError: a name is of no edge of a graph.
    """
    sizes = [-1.0 if math.isnan(score) else abs(score) for _, score in edges]
    chosen = sorted(sorted(range(len(edges)), key=lambda i: -sizes[i])[:most])
    if len(chosen) < len(edges):
        caption = f"{caption} Drawn are the {len(chosen):,} strongest of {len(edges):,} edges.".strip()
    ends = [_ends(edges[i][0], n_layers) for i in chosen]
    keys = sorted({key for source, destination, _ in ends for key in (source, destination)})
    heads = [key for key in keys if key[0] % 2 == 0 and key[0] < 2 * n_layers]
    x = dict.fromkeys(keys, 0.0) | _across(heads, [(source, destination) for source, destination, _ in ends])
    keys.sort(key=lambda key: (key[0], x[key]))
    places = {key: i for i, key in enumerate(keys)}
    weights = _weights([edges[i][1] for i in chosen])
    drawn = []
    for i, (source, destination, port), weight in zip(chosen, ends, weights, strict=True):
        name, score = edges[i]
        score_text = "none" if math.isnan(score) else number(score).replace("inf", "∞")
        drawn.append(CircuitEdge(
            source=places[source], destination=places[destination], port=port, negative=score < 0, weight=weight,
            score=float(score) if math.isfinite(score) else None,
            label=f"{name.replace('->', ' → ')}: {score_label} {score_text}"))
    nodes = tuple(_node(key, n_layers, round(x[key], 4)) for key in keys)
    return CircuitGraph(title=title, caption=caption, nodes=nodes, edges=tuple(drawn), score_label=score_label)


def size_text(edge: CircuitEdge) -> str:
    """Size of an edge's score, as a threshold."""
    if edge.score is not None:
        return number(abs(edge.score))
    return "∞" if edge.weight > 0 else "none"


def levels(edges: Sequence[CircuitEdge]) -> list[int]:
    """Rank of each edge's weight among the different weights, from 0: the steps of a threshold."""
    ranks = {weight: i for i, weight in enumerate(sorted({e.weight for e in edges}))}
    return [ranks[e.weight] for e in edges]


def place(panel: CircuitGraph, width: float = WIDTH) -> Drawing:
    """Where everything of a circuit is drawn.

    Rows stand in the order of the model, its start at the bottom; blocks without any node are left out and said so.
    MLPs and both ends are in the middle, heads at both sides. Edges leave at the top of a node and enter at the bottom,
    bent so that they pass few nodes that they do not touch. The width is a least one; rows of many heads are wider.
    """
    heads = [node.layer for node in panel.nodes if node.kind == "head"]
    widest_row = max(map(heads.count, heads), default=1)
    step = 4.0 + max((_size(node)[0] for node in panel.nodes if node.kind == "head"), default=0.0)
    side = max((width - _LEFT - _EDGE - _LANE) / 2, step * math.ceil(widest_row / 2))
    width = max(width, 2 * side + _LANE + _LEFT + _EDGE)
    heights, bands, height = _rows(panel, room=min(1.6, max(1.0, (len(panel.edges) / 150) ** 0.3)))
    middle = _LEFT + _LANE / 2 + side
    ports: dict[int, set[str]] = {}
    for e in panel.edges:
        ports.setdefault(e.destination, set()).add(e.port)
    boxes = tuple(
        Box(node, round(middle + (math.copysign(_LANE / 2, node.x) + node.x * side if node.kind == "head" else 0), 1),
            heights[node.layer], *_size(node), tuple(p for p in ("Q", "K", "V") if p in ports.get(i, ())))
        for i, node in enumerate(panel.nodes))
    order = sorted(range(len(panel.edges)), key=lambda i: panel.edges[i].weight)
    # The more there is to draw, the thinner and the more translucent.
    crowd = min(1.0, (16 / max(sum(e.weight for e in panel.edges), 1.0)) ** 0.55)
    wires = tuple(Wire(e, _route(e, boxes, (_LEFT - 12, width - 4)), round(0.75 + 4.0 * crowd * e.weight, 2),
                       round((0.4 + 0.5 * e.weight) * (0.5 + 0.5 * crowd), 3)) for e in (panel.edges[i] for i in order))
    return Drawing(width, height, boxes, wires, bands)


def curve(points: Sequence[tuple[float, float]], steps: int = 32) -> np.ndarray:
    """[steps + 1, 2] points of a cubic Bezier curve, both ends included."""
    t = np.linspace(0.0, 1.0, steps + 1)[:, None]
    a, b, c, d = np.array(points)
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


def _ends(name: str, n_layers: int) -> tuple[Key, Key, Port]:
    """Nodes and port of an edge ``source->destination``."""
    source, arrow, destination = name.partition("->")
    first, second = _NAME.fullmatch(source), _NAME.fullmatch(destination)
    if (not arrow or first is None or second is None or first["port"] or first["last"]
            or bool(second["port"]) != bool(second["block"]) or (second["last"] and second["port"] == "Q")):
        raise ValueError(f"{name!r} is no edge of a graph; edges are called, for example, 'A0.1->A1.2.Q'")
    ends = _key(first, n_layers), _key(second, n_layers)
    if ends[0][0] >= ends[1][0]:
        raise ValueError(f"{name!r} is no edge of a graph: {destination} does not come after {source}")
    return *ends, cast(Port, second["port"] or "")


def _key(name: re.Match[str], n_layers: int) -> Key:
    if name["start"] or name["end"]:
        return (-1, 0, 0) if name["start"] else (2 * n_layers, 0, 0)
    block = int(name["mlp"] or name["block"])
    if block >= n_layers:
        raise ValueError(f"{name[0]!r} is of block {block}, but the model has {n_layers}")
    return (2 * block + 1, 0, 0) if name["mlp"] else (2 * block, int(name["head"]), int(name["last"] or name["head"]))


def _node(key: Key, n_layers: int, x: float) -> CircuitNode:
    layer, head, last = key
    if layer in (-1, 2 * n_layers):
        name, kind = ("Resid Start", "start") if layer < 0 else ("Resid End", "end")
        return CircuitNode(name=name, kind=kind, layer=layer, x=0.0)
    if layer % 2:
        return CircuitNode(name=f"MLP {layer // 2}", kind="mlp", layer=layer, x=0.0)
    name = f"A{layer // 2}.{head}" if head == last else f"A{layer // 2}.{head}-{last}"
    return CircuitNode(name=name, kind="head", layer=layer, x=x)


def _weights(scores: Sequence[float]) -> list[float]:
    """Square roots of the scores' sizes as shares of the greatest: scores of circuits differ by powers of ten."""
    sizes = np.abs(scores)
    finite, infinite = np.isfinite(sizes), np.isinf(sizes)
    most = sizes[finite].max(initial=0.0) or 1.0
    weights = infinite.astype(float)
    weights[finite] = (_INFINITE_SHARE if infinite.any() else 1.0) * np.sqrt(sizes[finite] / most)
    return weights.tolist()


def _across(heads: Sequence[Key], edges: Sequence[tuple[Key, Key]]) -> dict[Key, float]:
    """Place of each head in its row: sweeps up and down order them by the mean of their neighbours' places.

    Of all orders met, that with the fewest crossings of straight edges is taken, then that of the shortest edges.
    """
    rows = {layer: list(row) for layer, row in itertools.groupby(heads, key=lambda key: key[0])}
    x = {key: at for layer, row in rows.items() for key, at in _spread(row, layer).items()}
    below: dict[Key, list[Key]] = {}
    above: dict[Key, list[Key]] = {}
    for source, destination in edges:
        below.setdefault(destination, []).append(source)
        above.setdefault(source, []).append(destination)
    best = (_disorder(edges, x), dict(x))
    for sweep in range(2 * _SWEEPS):
        towards = above if sweep % 2 else below
        for layer in sorted(rows, reverse=bool(sweep % 2)):
            mean = {}
            for key in rows[layer]:
                places = [x.get(other, 0.0) for other in towards.get(key, [])]
                mean[key] = round(math.fsum(places) / len(places), 9) if places else x[key]
            x |= _spread(sorted(rows[layer], key=lambda key, mean=mean: (mean[key], key)), layer)
        best = min(best, (_disorder(edges, x), dict(x)), key=lambda order: order[0])
    return best[1]


def _spread(row: Sequence[Key], layer: int) -> dict[Key, float]:
    """Places of heads in their order, as many at the left as at the right; the odd one at sides that take turns."""
    left = (len(row) + (layer // 2 + 1) % 2) // 2
    out = {}
    for side, part in ((-1, row[:left][::-1]), (1, row[left:])):
        step = min(1 / max(len(part), 1), 0.34)
        out |= {key: side * (i + 0.5) * step for i, key in enumerate(part)}
    return out


def _disorder(edges: Sequence[tuple[Key, Key]], x: Mapping[Key, float]) -> tuple[int, float]:
    """Crossings of straight edges, and their length across."""
    if not edges:
        return 0, 0.0
    y1, y2 = (np.array([pair[i][0] for pair in edges], float) for i in (0, 1))
    x1, x2 = (np.array([x.get(pair[i], 0.0) for pair in edges]) for i in (0, 1))
    low, high = np.maximum(y1[:, None], y1), np.minimum(y2[:, None], y2)
    slope = (x2 - x1) / (y2 - y1)

    def apart(y: np.ndarray) -> np.ndarray:
        at = x1[:, None] + slope[:, None] * (y - y1[:, None])
        return at - (x1 + slope * (y - y1))

    crossed = (low < high) & (apart(low) * apart(high) < -1e-9)
    return int(crossed.sum()) // 2, round(float(np.abs(x2 - x1).sum()), 6)


def _rows(panel: CircuitGraph, room: float) -> tuple[dict[int, float], tuple[Band, ...], float]:
    """Height of each occupied row, the blocks' bands, and the whole height; ``room`` stretches the space between."""
    layers = sorted({node.layer for node in panel.nodes})
    ends = {node.layer for node in panel.nodes if node.kind in ("start", "end")}
    up, at, before = {}, 0.0, None
    notes: dict[int, str] = {}
    for layer in layers:
        if before is not None:
            at += room * (_TO_MLP if layer % 2 and layer == before + 1 and before not in ends else _TO_BLOCK)
            skipped = range(before // 2 + 1, layer // 2)
            if skipped:
                at += _SKIPPED
                notes[layer] = f"block {skipped[0]}" if len(skipped) == 1 else f"blocks {skipped[0]}–{skipped[-1]}"
        up[layer], before = at, layer
    height = at + 2 * 22.0
    y = {layer: round(height - 22.0 - value, 1) for layer, value in up.items()}
    blocks: dict[int, list[int]] = {}
    for layer in layers:
        if layer not in ends:
            blocks.setdefault(layer // 2, []).append(layer)
    bands = tuple(Band(f"block {block}", y[rows[-1]] - 21, y[rows[0]] + 27, notes.get(rows[0], ""))
                  for block, rows in blocks.items())
    over = [Band("", y[layer] - 21, y[layer] + 27, notes[layer]) for layer in ends if layer in notes]
    return y, (*bands, *over), height


def _route(edge: CircuitEdge, boxes: Sequence[Box], frame: tuple[float, float]) -> Points:
    """Control points of a curve that is bent around nodes it only passes: of several bends the first of those that
    pass over fewest nodes."""
    source, destination = boxes[edge.source], boxes[edge.destination]
    rows: dict[int, list[Box]] = {}
    for box in boxes:
        if source.node.layer < box.node.layer < destination.node.layer:
            rows.setdefault(box.node.layer, []).append(box)
    if not rows:
        bends = [0.0]
    elif source.x != destination.x:
        bends = [0.0, 24.0, -24.0, 48.0, -48.0, 80.0, -80.0]
    else:  # straight up would run behind every node of the column; sides take turns
        first = 1.0 if (source.node.layer + destination.node.layer) % 4 < 2 else -1.0
        shift = 30.0 + 60.0 * (1 - math.exp(-len(rows) / 6))
        bends = [shift * sign * more for more in (1.0, 1.2) for sign in (first, -first)]
    curves = [_bent(edge, source, destination, bend) for bend in bends]
    return min(curves, key=lambda points: _passed(points, [*rows.values()], frame)) if rows else curves[0]


def _bent(edge: CircuitEdge, source: Box, destination: Box, bend: float) -> Points:
    x1, y1 = source.x, source.y - source.height / 2
    x2, y2 = destination.port_x(edge.port), destination.entry
    reach = min(0.5 * (y1 - y2), 26.0 + 0.12 * (y1 - y2))
    points = ((x1, y1), (x1 + bend, y1 - reach), (x2 + bend, y2 + reach), (x2, y2))
    return tuple((round(x, 1), round(y, 1)) for x, y in points)


def _passed(points: Points, rows: Sequence[Sequence[Box]], frame: tuple[float, float]) -> int:
    """Nodes of the rows that a curve runs behind; one that leaves the frame counts as running behind many."""
    line = curve(points)[::-1]
    count = 0 if frame[0] <= line[:, 0].min() and line[:, 0].max() <= frame[1] else 100
    for row in rows:
        box = row[0]
        heights = np.array([box.y - box.height / 2, box.y, box.entry])
        at = np.interp(heights, line[:, 1], line[:, 0])
        count += sum(bool((np.abs(at - b.x) < b.width / 2 + 3).any()) for b in row)
    return count


def circuit_svg(panel: CircuitGraph) -> str:
    """A circuit as inline SVG, which the script of ``circuit.html`` makes interactive and which reads well without it.

    Blocks, edges and nodes, each with its name and score as a title, and what width and colour mean.
    """
    if not panel.edges:
        return picture(WIDTH, 40, panel.title, [text(WIDTH / 2, 25, "no edge is kept", "label", "middle")])
    drawing = place(panel)
    steps = levels([wire.edge for wire in drawing.wires])
    parts = [mark for band in drawing.bands for mark in _band(band, drawing.width)]
    parts += [_wire(wire, step) for wire, step in zip(drawing.wires, steps, strict=True)]
    parts += [_unit(i, box, panel.edges) for i, box in enumerate(drawing.boxes)]
    parts += _legend(panel, drawing)
    return picture(drawing.width, drawing.height + _LEGEND, panel.title, parts, style="circuit", role="group")


def _band(band: Band, width: float) -> list[str]:
    parts = []
    if band.label:
        parts = [f'<rect class="block" x="0" y="{band.top:g}" width="{width:g}" height="{band.bottom - band.top:g}" '
                 f'rx="6"/>', text(8, (band.top + band.bottom) / 2 + 4, band.label, "tick", "start")]
    if band.note:
        parts.append(text(8, band.bottom + 21, f"{band.note}: no edge", "tick", "start"))
    return parts


def _wire(wire: Wire, level: int) -> str:
    edge = wire.edge
    (a, b), *rest = wire.points
    path = f"M{a:g} {b:g}C" + " ".join(f"{x:g} {y:g}" for x, y in rest)
    data = f'data-from="{edge.source}" data-to="{edge.destination}" data-level="{level}" data-size="{size_text(edge)}"'
    look = f'stroke-width="{wire.width:g}" stroke-opacity="{wire.opacity:g}"'
    style = "wire minus" if edge.negative else "wire"
    return (f'<path class="{style}" d="{path}" {look} {data} role="img" tabindex="-1">'
            f"<title>{escape(edge.label)}</title></path>")


def _unit(index: int, box: Box, edges: Sequence[CircuitEdge]) -> str:
    """A node with its name, to be reached by the keyboard; a head's ports are under it, faint where nothing enters."""
    node, top = box.node, box.y + box.height / 2
    marks = [f'<rect class="body" x="{box.x - box.width / 2:g}" y="{box.y - box.height / 2:g}" width="{box.width:g}" '
             f'height="{box.height:g}" rx="4"/>', text(box.x, box.y + 4, node.name, "unit-name", "middle")]
    for port in ("Q", "K", "V") if node.kind == "head" else ():
        marks += _port(port, box.port_x(port) - PORT / 2, top, port in box.ports)
    what = escape(_counts(index, node.name, edges))
    return (f'<g class="unit {node.kind}" data-node="{index}" tabindex="0" role="img" aria-label="{what}">'
            f"<title>{what}</title>{''.join(marks)}</g>")


def _port(port: str, left: float, top: float, used: bool = True) -> list[str]:
    style = port.lower() if used else "idle"
    return [f'<rect class="port {style}" x="{left:g}" y="{top + 1:g}" width="{PORT:g}" height="{PORT - 1:g}" rx="2"/>',
            text(left + PORT / 2, top + PORT - 2, port, "letter" if used else "letter idle", "middle")]


def _counts(index: int, name: str, edges: Sequence[CircuitEdge]) -> str:
    """Name of a node, and how many edges lead into it, by port, and out of it."""
    into = [e.port for e in edges if e.destination == index]
    out = sum(e.source == index for e in edges)
    ports = ", ".join(f"{port} {into.count(port)}" for port in ("Q", "K", "V") if port in into)
    return f"{name}: {len(into)} in{f' ({ports})' if ports else ''}, {out} out"


def _legend(panel: CircuitGraph, drawing: Drawing) -> list[str]:
    """The strongest, the middle and the weakest edge with their scores, what colours and letters mean."""
    wires, parts, at, y = drawing.wires, [], 8.0, drawing.height + _LEGEND - 14
    by_weight = {wire.edge.weight: wire for wire in (wires[0], wires[len(wires) // 2], wires[-1])}
    samples = [("wire", wire, size_text(wire.edge)) for _, wire in sorted(by_weight.items(), reverse=True)]
    size = [("", wires[-1], f"size of {panel.score_label}")]
    signs = [("wire", wires[-1], "positive"), ("wire minus", wires[-1], "negative")]
    for style, wire, words in samples + size + (signs if any(e.negative for e in panel.edges) else []):
        if style:
            look = f'stroke-width="{wire.width:g}" stroke-opacity="{wire.opacity:g}"'
            parts.append(f'<path class="{style}" d="M{at:g} {y:g}h28" {look}/>')
            at += 34
        parts.append(text(at, y + 4, words, "tick", "start"))
        at += 14 + 6.6 * len(words)
    if any(e.port for e in panel.edges):
        for port, words in (("Q", "queries"), ("K", "keys"), ("V", "values")):
            parts += [*_port(port, at, y - PORT / 2), text(at + PORT + 4, y + 4, words, "tick", "start")]
            at += PORT + 10 + 6.4 * len(words)
    return parts
