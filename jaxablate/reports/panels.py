"""What a suite shows beyond its headline figures: charts, tables, texts and pictures of a text's tokens, as plain data.

A panel says *what* is to be seen. How it looks is decided elsewhere: on the page by ``svg``, ``circuit_graph`` and the
templates, in print by ``figures``, in a terminal by ``tables``. Panels are stored in ``results.json``, so a report can
be drawn again without the model.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

import msgspec

from jaxablate import stats
from jaxablate.stats import Estimate

MOST_WIRES, MOST_ROWS = 2000, 2000
"""Edges of a circuit's picture, each of which is led around the nodes; and its rows, twice the blocks of the model."""


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

    def __post_init__(self):
        if len(self.edges) != len(self.counts) + 1 or any(a > b for a, b in itertools.pairwise(self.edges)):
            raise ValueError(f"histogram {self.title!r}: {len(self.counts)} counts need one edge more, ascending, not "
                             f"{len(self.edges)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistogramGrid(Titled):
    """Histograms of one kind, drawn side by side with one scale."""

    x_label: str
    histograms: tuple[Histogram, ...]
    log_x: bool = True
    mark_label: str = ""
    kind: str = "histograms"

    def __post_init__(self):
        if not self.histograms or (self.log_x and min(h.edges[0] for h in self.histograms) <= 0):
            raise ValueError(f"histograms {self.title!r}: there must be one, and edges above 0 where they are "
                             "logarithmic")


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
    """Heights at the places ``x``, as many as these; a point whose height is not finite is left out."""

    def __post_init__(self):
        if len(self.x) != len(self.y):
            raise ValueError(f"curve {self.label!r}: {len(self.x)} places do not fit {len(self.y)} values")


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
    """Each as long as ``columns``."""
    kind: str = "grid"

    def __post_init__(self):
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"table {self.title!r}: a row of {len(wrong[0])} does not fit {len(self.columns)} columns")


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
        if len(self.edges) > MOST_WIRES or len(self.nodes) > 2 * len(self.edges):
            raise ValueError(f"circuit {self.title!r}: {len(self.nodes):,} nodes of {len(self.edges):,} edges cannot "
                             f"be drawn; at most {MOST_WIRES:,} edges can, and nodes that one of them touches")
        for node in self.nodes:
            if not (-1 <= node.layer <= MOST_ROWS and -1 <= node.x <= 1):
                raise ValueError(f"circuit {self.title!r}: {node.name} has no place at {node.x:g} of row {node.layer}")
        for e in self.edges:
            if not (0 <= e.weight <= 1 and math.isfinite(e.score or 0)):
                raise ValueError(f"circuit {self.title!r}: the weight {e.weight:g} of {e.label} is not in [0, 1], or "
                                 "its score not finite")
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


class _BesideValues(TypedDict):
    """`Beside` with panels that are still to be read."""

    title: str
    caption: str
    labels: tuple[str, ...]
    panels: tuple[dict[str, Any], ...]


def panel_from_dict(values: Mapping[str, Any]) -> Panel:
    """Inverse of ``dataclasses.asdict`` for any panel, also after a trip through JSON.

    Raises:
      ValueError: not a panel of this version; the message says where in it.
    """
    kind = values.get("kind")
    cls = _PANELS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"a panel of kind {kind!r} is none of {', '.join(_PANELS)}")
    if cls is not Beside:
        return from_json(values, cls)
    outer = from_json(values, _BesideValues)
    panels: Any = tuple(map(panel_from_dict, outer["panels"]))  # of one kind, as Beside sees to
    return Beside(title=outer["title"], caption=outer["caption"], labels=outer["labels"], panels=panels)


T = typing.TypeVar("T")


def from_json(values: Any, cls: type[T]) -> T:
    """A dataclass or typed dict from what JSON makes of it, where numbers that are not finite are null.

    Raises:
      ValueError: a value is missing or of another kind; the message says where.
    """
    try:
        return msgspec.convert(_with_numbers(values, cls), cls)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _with_numbers(value: Any, kind: Any) -> Any:
    """NaN in the place of null where there must be a number, and no interval where an end of it is null."""
    if isinstance(value, Mapping):
        if set(value) == _ESTIMATE and None in (value["low"], value["high"]):
            value = {**value, "low": None, "high": None}
        kinds = _field_kinds(kind) if dataclasses.is_dataclass(kind) else {}
        return {name: _with_numbers(inner, kinds.get(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        inside = get_args(kind)[0] if typing.get_origin(kind) is tuple else None
        return [_with_numbers(inner, inside) for inner in value]
    return math.nan if value is None and kind is float else value


_ESTIMATE = {field.name for field in dataclasses.fields(Estimate)}
_field_kinds = functools.cache(typing.get_type_hints)
