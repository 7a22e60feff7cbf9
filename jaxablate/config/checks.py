"""Checks that config dataclasses make of themselves, and the mark of fields that do not change what is learned."""

import dataclasses
from typing import Any

from jaxablate.errors import ConfigError


def require(ok: bool, message: str) -> None:
    """Raises ConfigError with the message unless ok."""
    if not ok:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Refuses a config in which one of these fields is not positive."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name}={value} must be positive")


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
