"""Scales of drawn axes: positions, round ticks and labels."""

import dataclasses
import math
from collections.abc import Sequence


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
        return _log_ticks(self.low, self.high, about) if self.log else linear_ticks(self.low, self.high, about)


def linear_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high].

    >>> linear_ticks(0, 10, 5)
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    if not high > low:
        return (low,)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if high / low < 10:
        return linear_ticks(low, high, about)
    if last - first < 2:  # less than two decades: a few round values in between
        powers = range(math.floor(math.log10(low)), last + 1)
        return tuple(m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high)
    every = max(1, math.ceil((last - first + 1) / about))
    return tuple(10.0**p for p in range(last, first - 1, -every))[::-1]


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
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not kept:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(kept), max(kept)
    if low == high:
        return (low / 1.2, high * 1.2) if log else (low - 0.5, high + 0.5)
    if log:
        factor = (high / low) ** room
        return low / factor, high * factor
    return low - room * (high - low), high + room * (high - low)
