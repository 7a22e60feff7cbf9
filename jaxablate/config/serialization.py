"""Config dataclasses to plain dicts and back, checked field by field."""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxablate.config.checks import require
from jaxablate.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, ready for JSON (tuples become lists); a whole run says its ``task``."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"task": config.task, **plain} if hasattr(config, "task") else plain


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `to_dict`; missing fields take their defaults.

    Raises:
      ConfigError: an unknown field (the nearest known one is named) or a bad value.
    """
    config_class: Any = cls
    fields = [field.name for field in dataclasses.fields(config_class)]
    hints = typing.get_type_hints(cls)
    out = {}
    for key, value in values.items():
        if key == "task" and hasattr(cls, "task"):
            task = config_class.task
            require(value == task, f"{cls.__name__} is for task {task!r}, not {value!r:.80}")
            continue
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(fields)}"
            raise ConfigError(f"{cls.__name__} has no field {key!r:.80}{hint}")
        out[key] = _coerce(f"{cls.__name__}.{key}", hints[key], value)
    return cls(**out)


def differences(stored: Any, given: Any, ignore: tuple[str, ...] = ()) -> list[str]:
    """Fields in which two configs of a class differ, one line each: ``model.k_neurons: stored 8, given 4``.

    The dotted names to ignore (``("train.steps", "mesh")``) are left out with all below them.
    """
    a, b = flatten(to_dict(stored)), flatten(to_dict(given))
    skip = tuple(f"{name}." for name in ignore)
    names = [n for n in sorted(a.keys() | b.keys()) if n not in ignore and not n.startswith(skip)]
    return [f"{n}: stored {a.get(n)!r}, given {b.get(n)!r}" for n in names if a.get(n) != b.get(n)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict by dotted names.

    >>> flatten({"model": {"k": 8}, "x": 1})
    {'model.k': 8, 'x': 1}
    """
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return out


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """JSON value -> field value, checked against the field's type."""
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, Mapping), f"{name}={value!r:.80} must be an object of settings")
        return from_dict(typing.cast(type, hint), value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        require(value in args, f"{name}={value!r:.80} must be one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(name, args, value)
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name}={value!r:.80} must be a list")
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        require(len(kinds) == len(value), f"{name}={value!r:.80} must have {len(kinds)} entries")
        return tuple(_coerce(name, kind, v) for kind, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) <= sys.float_info.max, f"{name} must be at most {sys.float_info.max:.4g}")
        return float(value)
    ok = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    require(ok, f"{name}={value!r:.80} must be of type {getattr(hint, '__name__', hint)}")
    return value


def _coerce_union(name: str, args: tuple[Any, ...], value: Any) -> Any:
    for arg in args:
        if arg is type(None):
            if value is None:
                return None
            continue
        try:
            return _coerce(name, arg, value)
        except ConfigError:
            continue
    names = " or ".join(getattr(a, "__name__", str(a)) for a in args)
    raise ConfigError(f"{name}={value!r:.80} must be of type {names}")
