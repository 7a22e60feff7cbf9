"""Checks that config dataclasses make of themselves, and the mark of fields that do not change what is learned."""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, Literal

from jaxablate.errors import ConfigError


def require(ok: bool, message: str) -> None:
    """Raises ConfigError with the message unless ok."""
    if not ok:
        raise ConfigError(message)


LARGEST = 2**31 - 1
"""Largest whole number that a setting may have, but for seeds: sizes, indices and steps are int32 on devices."""
LARGEST_SEED = 2**63 - 1


def require_numbers(config: Any) -> None:
    """Refuses numbers that arrays and JSON cannot hold, in a settings dataclass and those inside it.

    Raises:
      ConfigError: a whole number is beyond `LARGEST` (a seed beyond `LARGEST_SEED`), or another one is not finite.
    """
    for name, value in _numbers("", config):
        largest = LARGEST_SEED if name.rpartition(".")[2] in ("seed", "seeds") or name.endswith("_seed") else LARGEST
        if isinstance(value, int) and abs(value) > largest:
            shown = value if value.bit_length() < 200 else f"a number of {value.bit_length():,} bits"
            raise ConfigError(f"{name}={shown} is out of range; choose -{largest:,}..{largest:,}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value} must be a finite number")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """Every number of a settings dataclass, its parts and its tuples, with its dotted name."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(f"{name}.{field.name}" if name else field.name, getattr(value, field.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _numbers(name, part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def divisors(number: int) -> list[int]:
    """Those of a positive number, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n < number]


def require_positive(config: Any, *names: str) -> None:
    """Refuses a config in which one of these fields is not positive."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name}={value} must be positive")


def require_literals(config: Any) -> None:
    """Refuses a config in which a field whose type is a `Literal` has a value that is none of its own."""
    for field in dataclasses.fields(config):
        hint = _hints(type(config))[field.name]
        if typing.get_origin(hint) is Literal:
            value, allowed = getattr(config, field.name), typing.get_args(hint)
            require(value in allowed, f"{field.name}={value!r:.80} must be one of {', '.join(map(repr, allowed))}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def incidental(default: Any, *, continuable: bool = True) -> Any:
    """A dataclass field that has no effect on what is learned beyond rounding: where files lie, how work is shared out,
    what is logged. With another value of a ``continuable`` one a run may also be continued.
    """
    return dataclasses.field(default=default, metadata={"incidental": True, "continuable": continuable})


def marked(mark: str, *configs: type) -> tuple[str, ...]:
    """Dotted names of the fields that have a mark of `incidental`, in the config dataclasses given and inside them."""
    names: dict[str, None] = {}
    for config in configs:
        for field in dataclasses.fields(config):
            if field.metadata.get(mark):
                names[field.name] = None
            elif dataclasses.is_dataclass(type(field.default)):
                names |= {f"{field.name}.{name}": None for name in marked(mark, type(field.default))}
    return tuple(names)
