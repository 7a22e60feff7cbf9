"""A circuit as inline SVG, which the script of ``circuit.html`` makes interactive and which reads well without it."""

import html
from collections.abc import Sequence

from jaxablate.reports.circuit_graph import PORT, WIDTH, Band, Box, Drawing, Wire, levels, place, size_text
from jaxablate.reports.panels import CircuitEdge, CircuitGraph
from jaxablate.reports.svg import picture, text

LEGEND = 40
"""Height of the explanation under the picture."""


def circuit(panel: CircuitGraph) -> str:
    """Blocks, edges and nodes, each with its name and score as a title, and what width and colour mean."""
    if not panel.edges:
        return picture(WIDTH, 40, panel.title, [text(WIDTH / 2, 25, "no edge is kept", "label", "middle")])
    drawing = place(panel)
    steps = levels([wire.edge for wire in drawing.wires])
    parts = [mark for band in drawing.bands for mark in _band(band, drawing.width)]
    parts += [_wire(wire, step) for wire, step in zip(drawing.wires, steps, strict=True)]
    parts += [_unit(i, box, panel.edges) for i, box in enumerate(drawing.boxes)]
    parts += _legend(panel, drawing)
    width, height = drawing.width, drawing.height + LEGEND
    head = f'<svg class="circuit" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="group"'
    return f'{head} aria-label="{html.escape(panel.title, quote=True)}">{"".join(parts)}</svg>'


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
            f"<title>{html.escape(edge.label)}</title></path>")


def _unit(index: int, box: Box, edges: Sequence[CircuitEdge]) -> str:
    """A node with its name, to be reached by the keyboard; a head's ports are under it, faint where nothing enters."""
    node, top = box.node, box.y + box.height / 2
    marks = [f'<rect class="body" x="{box.x - box.width / 2:g}" y="{box.y - box.height / 2:g}" width="{box.width:g}" '
             f'height="{box.height:g}" rx="4"/>', text(box.x, box.y + 4, node.name, "unit-name", "middle")]
    for port in ("Q", "K", "V") if node.kind == "head" else ():
        marks += _port(port, box.port_x(port) - PORT / 2, top, port in box.ports)
    what = html.escape(_counts(index, node.name, edges))
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
    wires, parts, at, y = drawing.wires, [], 8.0, drawing.height + LEGEND - 14
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
