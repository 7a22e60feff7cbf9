"""What a suite shows beyond its headline figures: histograms, bars, curves, tables and texts, as plain data.

A panel says *what* is to be seen; ``jaxablate.reports.svg`` and the page template decide how it looks. Panels are
stored in ``results.json``, so a report can be drawn again without the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


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
class HistogramGrid:
    """Histograms of one kind, drawn side by side with one scale."""

    title: str
    caption: str
    x_label: str
    histograms: tuple[Histogram, ...]
    log_x: bool = True
    mark_label: str = ""
    kind: str = "histograms"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, with an optional interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars with values written beside them."""

    title: str
    caption: str
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
class Curves:
    """Curves over one pair of axes."""

    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    kind: str = "curves"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A small table; numbers are written with four significant digits."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    kind: str = "grid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """One text in parts: what was given, then what each voice said."""

    given: str
    said: tuple[tuple[str, str], ...]
    """Pairs (voice, text)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passages:
    """Texts to read."""

    title: str
    caption: str
    passages: tuple[Passage, ...]
    kind: str = "passages"


Panel = HistogramGrid | Bars | Curves | Grid | Passages

_PANELS = {cls.kind: cls for cls in (HistogramGrid, Bars, Curves, Grid, Passages)}
_PARTS = {HistogramGrid: ("histograms", Histogram), Bars: ("bars", Bar), Curves: ("series", Series),
          Passages: ("passages", Passage)}


def panel_from_dict(values: Mapping[str, Any]) -> Panel:
    """Inverse of ``dataclasses.asdict`` for any panel, also after a trip through JSON.

    Raises:
      KeyError, TypeError: not a panel of this version.
    """
    cls = _PANELS[values["kind"]]
    fields = {name: _tuples(value) for name, value in values.items()}
    if cls in _PARTS:
        name, part = _PARTS[cls]
        parts = (part(**{k: _tuples(v) for k, v in p.items()}) for p in values[name])
        fields[name] = tuple(parts)
    return cls(**fields)


def _tuples(value: Any) -> Any:
    """JSON lists back to tuples, all the way down."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
