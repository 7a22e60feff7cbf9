"""What a suite shows beyond its headline figures: charts, tables, texts and pictures of a text's tokens, as plain data.

A panel says *what* is to be seen. How it looks is decided elsewhere: on the page by ``svg``, ``circuit_graph`` and the
templates, in print by ``figures``, in a terminal by ``tables``. Panels are stored in ``results.json``, so a report can
be drawn again without the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from jaxablate import stats
from jaxablate.stats import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Titled:
    """What every panel has."""

    title: str
    caption: str
    """What is to be seen, in one to three sentences; may be empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """One small histogram of a grid: counts between edges, with an optional bar apart and an optional mark."""

    title: str
    edges: tuple[float, ...]
    """Bin edges, ascending, one more than counts; positive where ``log_x``."""
    counts: tuple[int, ...]
    apart: int | None = None
    """Count drawn as a bar of its own at the left (units that never fired), None for no such bar."""
    apart_label: str = ""
    mark: float | None = None
    """Position of a dashed line, for example what chance would give."""
    note: str = ""
    """One short line under the title."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistogramGrid(Titled):
    """Histograms of one kind, drawn side by side with one scale."""

    x_label: str
    histograms: tuple[Histogram, ...]
    log_x: bool = True
    mark_label: str = ""
    kind: str = "histograms"


@dataclasses.dataclass(frozen=True, init=False)
class Bar:
    """One bar; its interval, where the number has one, is drawn as a whisker."""

    label: str
    estimate: Estimate

    def __init__(self, label: str, estimate: Estimate | float | None):
        vars(self).update(label=label, estimate=stats.estimate(estimate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars(Titled):
    """Horizontal bars with values written beside them."""

    bars: tuple[Bar, ...]
    unit: str = ""
    mark: float | None = None
    mark_label: str = ""
    kind: str = "bars"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(Titled):
    """Curves over one pair of axes."""

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    kind: str = "curves"


Cell = str | int | float | Estimate | None
"""What a table may hold: words, a number, an `Estimate`, or nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Titled):
    """A small table. A number is written with four significant digits, an `Estimate` with its interval."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kind: str = "grid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """One text in parts: what was given, then what each voice said."""

    given: str
    said: tuple[tuple[str, str], ...]
    """Pairs (voice, text)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passages(Titled):
    """Texts to read."""

    passages: tuple[Passage, ...]
    kind: str = "passages"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap(Titled):
    """Numbers by row and column as shades of one hue, from 0 (or the least, if negative) to the greatest."""

    rows: tuple[str, ...]
    """Labels from top to bottom, for example the tokens of a text in reading order."""
    values: tuple[tuple[float, ...], ...]
    """A row of numbers for each label, all equally long."""
    x_label: str
    value_label: str
    """What a shade stands for."""
    columns: tuple[str, ...] = ()
    """Labels of the columns, written where there is room and shown on hovering; none for their numbers."""
    bars: tuple[float, ...] = ()
    """One number in [0, 1] for each row, drawn as a bar at its right end; none for no bars."""
    bar_label: str = ""
    kind: str = "heatmap"

    def __post_init__(self):
        widths = {len(row) for row in self.values}
        fits = len(self.values) == len(self.rows) and len(widths) <= 1
        if not fits or len(self.bars) not in (0, len(self.rows)) or {len(self.columns)} - widths - {0}:
            raise ValueError(f"heat map {self.title!r}: {len(self.rows)} rows, {len(self.columns)} column labels and "
                             f"{len(self.bars)} bars do not fit {len(self.values)} rows of {sorted(widths)} values")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a network."""

    label: str
    size: float
    """In [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edge:
    """A tie between two nodes, by their places; it has no direction."""

    first: int
    second: int
    weight: float
    """Positive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Titled):
    """Nodes in an order that matters (the tokens of a text), drawn on a line with an arc for each edge."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    size_label: str
    weight_label: str
    kind: str = "network"

    def __post_init__(self):
        for e in self.edges:
            if not 0 <= min(e.first, e.second) < max(e.first, e.second) < len(self.nodes):
                raise ValueError(f"network {self.title!r}: no edge can join {e.first} and {e.second} of "
                                 f"{len(self.nodes)} nodes")


Port = Literal["", "Q", "K", "V"]
"""What of a head reads an edge: queries, keys or values; empty for other nodes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitNode:
    """A part of a model that a circuit's edges join."""

    name: str
    """Name of the node in the graph of the model, for example ``A3.7`` for head 7 of block 3."""
    kind: Literal["start", "head", "mlp", "end"]
    layer: int
    """Row from the bottom: -1 the start, 2 i the heads of block i, 2 i + 1 its MLP, twice the blocks the end."""
    x: float
    """Place in its row, in [-1, 1]; all but heads are at 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitEdge:
    """What one node reads of another, by their places in `CircuitGraph.nodes`."""

    source: int
    destination: int
    port: Port = ""
    score: float | None
    """None where it is infinite or there is none."""
    negative: bool
    weight: float
    """In [0, 1]: how wide it is drawn; grows with the score's size."""
    label: str
    """Its names and its score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitGraph(Titled):
    """The kept edges of a circuit and their nodes, drawn from the bottom to the top of the model.

    ``circuit_graph.circuit_panel`` makes it from names and scores.
    """

    nodes: tuple[CircuitNode, ...]
    edges: tuple[CircuitEdge, ...]
    score_label: str
    """What an edge's score is."""
    kind: str = "circuit"

    def __post_init__(self):
        for e in self.edges:
            if not 0 <= min(e.source, e.destination) <= max(e.source, e.destination) < len(self.nodes):
                raise ValueError(f"circuit {self.title!r}: no edge can join {e.source} and {e.destination} of "
                                 f"{len(self.nodes)} nodes")
            source, destination = self.nodes[e.source], self.nodes[e.destination]
            if source.layer >= destination.layer or (destination.kind == "head") != (e.port != ""):
                raise ValueError(f"circuit {self.title!r}: no edge can lead from {source.name} to "
                                 f"{destination.name} {e.port}".rstrip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside(Titled):
    """Heat maps or networks side by side, with one scale."""

    labels: tuple[str, ...]
    """What stands over each."""
    panels: tuple[Heatmap, ...] | tuple[Network, ...]
    """Two or more of one kind."""
    kind: str = "beside"

    def __post_init__(self):
        kinds = {panel.kind for panel in self.panels}
        if len(self.panels) < 2 or len(self.panels) != len(self.labels) or kinds not in ({"heatmap"}, {"network"}):
            raise ValueError(f"panels beside each other, {self.title!r}: give two or more heat maps or networks and a "
                             f"label for each, not {len(self.panels)} of {sorted(kinds)} and {len(self.labels)} labels")


Panel = HistogramGrid | Bars | Curves | Grid | Passages | Heatmap | Network | CircuitGraph | Beside

_PANELS: dict[str, type] = {cls.kind: cls for cls in get_args(Panel)}
_PARTS: dict[type, dict[str, Any]] = {
    HistogramGrid: {"histograms": Histogram}, Bars: {"bars": Bar}, Curves: {"series": Series},
    Passages: {"passages": Passage}, Network: {"nodes": Node, "edges": Edge},
    CircuitGraph: {"nodes": CircuitNode, "edges": CircuitEdge},
}
"""Fields of a panel that hold dataclasses of their own."""


def panel_from_dict(values: Mapping[str, Any]) -> Panel:
    """Inverse of ``dataclasses.asdict`` for any panel, also after a trip through JSON.

    Raises:
      KeyError, TypeError: not a panel of this version.
    """
    cls = _PANELS[values["kind"]]
    fields = {name: _tuples(value) for name, value in values.items()}
    for name, part in _PARTS.get(cls, {}).items():
        fields[name] = tuple(part(**{k: _tuples(v) for k, v in p.items()}) for p in values[name])
    if cls is Beside:
        fields["panels"] = tuple(panel_from_dict(p) for p in values["panels"])
    return cls(**fields)


def _tuples(value: Any) -> Any:
    """JSON lists back to tuples, and mappings that are an estimate to estimates, all the way down."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else stats.from_json(value)
