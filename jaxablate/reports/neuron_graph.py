"""A neuron's graph as SVG, and a page of chosen neurons: pictures, scores, examples.

The picture reads as text does: the pivot, at which the neuron fires, is at the right, and what has to come before it is
to its left. It carries its own colours for light and dark screens, so it is the same alone and in a page.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxablate.reports.html import template
from jaxablate.reports.neuron_records import ExampleRecord, NeuronRecord, NodeRecord, Scores
from jaxablate.reports.svg import escape, text
from jaxablate.stats import number

MOST_PATTERNS, MOST_COLUMNS, MOST_TOKENS, MOST_LETTERS = 12, 8, 5, 16
"""Limits of a picture; what is not drawn is counted under it."""
_LINE, _GAP_X, _GAP_Y, _LETTER, _PAD = 16, 54, 10, 7.3, 7

_STYLE = """
.neuron-graph{--n-page:#ffffff;--n-ink:#1d2128;--n-soft:#626b78;--n-hue:#2f6db5;--n-rule:#c3c8cf}
@media (prefers-color-scheme:dark){
.neuron-graph{--n-page:#1c2027;--n-ink:#e6e8eb;--n-soft:#98a1ad;--n-hue:#6ea8e8;--n-rule:#4a525e}}
.neuron-graph .ground{fill:var(--n-page)}
.neuron-graph text{fill:var(--n-ink);font:12px ui-monospace,"DejaVu Sans Mono",monospace}
.neuron-graph .note{fill:var(--n-soft);font:11px system-ui,"DejaVu Sans",sans-serif}
.neuron-graph .box{fill:var(--n-page);stroke:var(--n-rule)}.neuron-graph .pivot{stroke:var(--n-ink);stroke-width:1.6}
.neuron-graph .shade{fill:var(--n-hue)}.neuron-graph .way{fill:none;stroke:var(--n-rule);stroke-width:1.4}
.neuron-graph .more{fill:var(--n-soft)}
"""


@dataclasses.dataclass(eq=False)
class _Box:
    """A node with the middle of its box."""

    node: NodeRecord
    column: int
    """Columns from the right: 0 for a pivot."""
    gap: int
    """Tokens that may be anything between it and its parent."""
    children: list["_Box"] = dataclasses.field(default_factory=list)
    cut: int = 0
    """Patterns that go on from here and are not drawn, for want of columns."""
    x: float = 0.0
    y: float = 0.0

    def __post_init__(self):
        tokens = self.node.tokens or ()
        self.lines = [visible(t, MOST_LETTERS) for t in tokens[:MOST_TOKENS]]
        if len(tokens) > MOST_TOKENS:
            self.lines.append(f"+{len(tokens) - MOST_TOKENS} more")
        self.height = _LINE * len(self.lines) + _PAD
        self.width = _LETTER * max(map(len, self.lines), default=0) + 2 * _PAD

    def move(self, by: float) -> None:
        """Moves the box and all before it down."""
        self.y += by
        for child in self.children:
            child.move(by)


def visible(token: str, most: int | None = None) -> str:
    """A token with its spaces and line ends to be seen.

    >>> visible(" dog"), visible("\\n\\n"), visible("incomprehensible", 8)
    ('·dog', '↵↵', 'incompr…')
    """
    shown = "".join({" ": "·", "\n": "↵", "\t": "⇥"}.get(c, c if c.isprintable() else "�") for c in token) or "∅"
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def graph_svg(record: NeuronRecord) -> str:
    """The picture of a graph."""
    roots, boxes = _forest(record)
    if not boxes:
        return _picture(f"Neuron {record.neuron}: no graph", 360, 44, [text(12, 27, no_graph(record), "note", "start")])
    width, height = _place(roots, boxes)
    notes = _notes(record, boxes)
    marks = [mark for box in boxes for mark in _lines_to(box)] + [mark for box in boxes for mark in _box_marks(box)]
    marks += [text(10, height + 14 + 15 * i, note, "note", "start") for i, note in enumerate(notes)]
    return _picture(f"What fires neuron {record.neuron}", max(width, 10 + 6.2 * max(map(len, notes))),
                    height + 15 * len(notes) + 10, marks)


def no_graph(record: NeuronRecord) -> str:
    """Why a neuron has no graph."""
    if record.strongest <= 0:
        return "never active in the text of the examples: no graph"
    most = max((len(e.tokens) for e in record.examples), default=0)
    return f"in no example do its last {most} tokens alone keep half of the activation: no graph"


def _forest(record: NeuronRecord) -> tuple[list[_Box], list[_Box]]:
    """Pivots, and all boxes of the strongest patterns; tokens that may be anything have none."""
    boxes: dict[int, _Box] = {}
    roots: list[_Box] = []
    places = {id(node): i for i, node in enumerate(record.nodes)}
    for path in record.paths()[:MOST_PATTERNS]:
        after, gap = None, 0
        for node in reversed(path):
            if node.tokens is None:
                gap += 1
                continue
            at = places[id(node)]
            if after is not None and after.column == MOST_COLUMNS - 1 and at not in boxes:
                after.cut += 1
                break
            if at not in boxes:
                boxes[at] = _Box(node, 0 if after is None else after.column + 1, gap)
                (roots if after is None else after.children).append(boxes[at])
            after, gap = boxes[at], 0
    return roots, list(boxes.values())


def _place(roots: list[_Box], boxes: list[_Box]) -> tuple[float, float]:
    """Gives each box its middle; returns width and height of the drawing."""
    columns = max(box.column for box in boxes) + 1
    widths = [max(box.width for box in boxes if box.column == c) for c in range(columns)]
    right = 12.0 + 40 + sum(widths) + _GAP_X * (columns - 1)
    for box in boxes:
        box.x = right - sum(widths[: box.column]) - _GAP_X * box.column - widths[box.column] / 2
    bottom = 12.0
    for root in roots:
        bottom = _rows(root, bottom)
    return right + 12, bottom


def _rows(box: _Box, top: float) -> float:
    """Places a box beside the middle of what comes before it; returns where the next one may begin."""
    bottom = top
    for child in box.children:
        bottom = _rows(child, bottom)
    if box.children:
        middle = (box.children[0].y + box.children[-1].y) / 2
        shift = max(0.0, top + box.height / 2 - middle)
        for child in box.children:
            child.move(shift)
        box.y = middle + shift
        return max(bottom + shift, box.y + box.height / 2 + _GAP_Y)
    box.y = top + box.height / 2
    return top + box.height + _GAP_Y


def _lines_to(box: _Box) -> list[str]:
    """Lines from what comes before to a box, and how many tokens between them may be anything."""
    marks = []
    for child in box.children:
        a, b = child.x + child.width / 2, box.x - box.width / 2
        middle = (a + b) / 2
        marks.append(f'<path class="way" d="M{a:g} {child.y:g}C{middle:g} {child.y:g} {middle:g} {box.y:g} {b:g} '
                     f'{box.y:g}"/>')
        if child.gap:
            marks.append(text(a + 4, child.y - 4, f"{child.gap} any", "note", "start"))
    return marks


def _box_marks(box: _Box) -> list[str]:
    node = box.node
    left, top = box.x - box.width / 2, box.y - box.height / 2
    shape = f'x="{left:g}" y="{top:g}" width="{box.width:g}" height="{box.height:g}" rx="4"'
    shade = 0.08 + 0.5 * min(max(node.importance or 0.0, 0.0), 1.0)
    title = " ".join(map(visible, node.tokens or ()))  # all of them, also those that do not fit into the box
    title += " (pivot)" if node.parent is None else (
        f" ({node.offset} before the pivot, importance {number(node.importance)})")
    marks = [f'<g><title>{escape(title)}</title>',
             f'<rect class="box{" pivot" if node.parent is None else ""}" {shape}/>',
             f'<rect class="shade" fill-opacity="{shade:.2f}" {shape}/>']
    for i, line in enumerate(box.lines):
        style = ' class="more"' if i == MOST_TOKENS else ""
        y = top + _PAD + 8.5 + _LINE * i
        marks.append(f'<text{style} x="{left + _PAD:g}" y="{y:g}">{escape(line)}</text>')
    marks.append("</g>")
    if node.strength is not None or box.cut:
        share = "…" if node.strength is None else f"{node.strength:.0%}"
        marks.append(text(left - 6, box.y + 4, share, "note", "end"))
    return marks


def _notes(record: NeuronRecord, boxes: Sequence[_Box]) -> list[str]:
    """What the marks mean, and how much is not drawn."""
    notes = ["The neuron fires at the framed token. Shade: importance. “2 any”: two tokens that may be anything.",
             "At the left: activation of a pattern's strongest example, as a share of the neuron's maximum.",
             "· is a space, ↵ a line end."]
    patterns, named = len(record.paths()), sum(node.tokens is not None for node in record.nodes)
    if patterns > MOST_PATTERNS or named > len(boxes):
        notes.append(f"Drawn: {min(patterns, MOST_PATTERNS)} of {patterns} patterns, {len(boxes)} of {named} nodes; "
                     "the JSON file has all.")
    return notes


def _picture(title: str, width: float, height: float, marks: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="neuron-graph" {size} role="img" '
            f'aria-label="{escape(title)}"><style>{_STYLE}</style>'
            f'<rect class="ground" width="100%" height="100%" rx="6"/>{"".join(marks)}</svg>\n')


def neuron_page(records: Sequence[NeuronRecord], title: str, conditions: str) -> str:
    """A page of chosen neurons; ``conditions`` is one line on the checkpoint and its surroundings."""
    shown = [{"record": r, "picture": graph_svg(r), "verdict": verdict(r.scores),
              "examples": [_shaded(e) for e in r.examples]} for r in records]
    return template("neuron.html").render(title=title, neurons=shown, conditions=conditions)


def verdict(scores: Scores) -> str:
    """What the graph is worth, in a sentence.

    >>> from jaxablate.stats import Estimate
    >>> verdict(Scores(tokens=900, fires=0, predicted=0, hits=0, precision=None, recall=None, f1=Estimate(None),
    ...                f1_shuffled=None, f1_pivot=None))
    'The neuron does not fire in the 900 tokens of held-out text, so its graph has no score.'
    """
    if not scores.fires:
        return (f"The neuron does not fire in the {scores.tokens:,} tokens of held-out text, so its graph has no "
                "score.")
    precision, recall, pivots, other = ("-" if value is None else f"{value:.2f}" for value in (
        scores.precision, scores.recall, scores.f1_pivot, scores.f1_shuffled))
    return (f"Held-out text of {scores.tokens:,} tokens: it fires at {scores.fires:,}, the graph says so at "
            f"{scores.predicted:,}, {scores.hits:,} of them rightly. Precision {precision}, recall {recall}, "
            f"F1 {scores.f1}; its pivots alone {pivots}, another neuron's graph {other}.")


def _shaded(example: ExampleRecord) -> dict[str, Any]:
    """Tokens of an example as (text, shade in percent, whether it is the pivot, title)."""
    words, first = [], len(example.tokens) - len(example.importance)
    for i, token in enumerate(example.tokens):
        pivot, weight = i == len(example.tokens) - 1, example.importance[i - first] if i >= first else 0.0
        shade = round(70 * min(max(weight, 0.0), 1.0)) if not pivot else 0
        title = f"importance {weight:.2f}" if i >= first and not pivot else ""
        words.append((token, shade, pivot, title))
    note = "" if example.suffix is None else "no suffix is enough" if not example.suffix else (
        "the pivot is enough" if example.suffix == 1 else f"the last {example.suffix} tokens are enough")
    return {"words": words, "activation": example.activation, "note": note}
