"""JSON Schemas of ``results.json`` and of the explorer's data, made from the dataclasses that Python writes them from.

They lie in ``schemas/`` as files, for other programs, and are what the explorer's TypeScript types are made from:
``python -m jaxablate.reports.schemas`` writes them anew. msgspec makes schemas too, but of no type with a choice of
dataclasses in it, as panels are.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jaxablate import files
from jaxablate.reports.circuits import TaskEdges
from jaxablate.reports.compare import Comparison
from jaxablate.reports.explorer import Differences, History, Manifest
from jaxablate.reports.results import Results
from jaxablate.reports.texts import ClassifiedTexts, LanguageTexts
from jaxablate.reports.units import UnitsData

SCHEMAS: dict[str, tuple[Any, ...]] = {
    "circuits": (TaskEdges,), "explorer": (Manifest, History, Comparison, Differences), "results": (Results,),
    "texts": (LanguageTexts | ClassifiedTexts,), "units": (UnitsData,),
}
"""Kind of file -> the dataclass it holds, or a choice of them, and those of its further parts."""
FOLDER = Path(__file__).parent / "schemas"
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, type(None): {"type": "null"},
    float: {"type": ["number", "null"]}, Any: {},
}
"""A number that is not finite is written as null."""


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 7, which json-schema-to-typescript reads) of a kind of file."""
    definitions: dict[str, Any] = {}
    root, *_ = (_schema(part, definitions) for part in SCHEMAS[kind])
    title = getattr(SCHEMAS[kind][0], "__name__", kind.capitalize())
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **definitions.pop(title, root),
            "definitions": dict(sorted(definitions.items()))}


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of a type; the dataclasses that it has are put into ``definitions``."""
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # it may hold itself
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/definitions/{kind.__name__}"}
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(x, definitions) for x in inside]}
    if origin is tuple and inside[-1] is Ellipsis:
        return {"type": "array", "items": _schema(inside[0], definitions)}
    if origin is tuple:
        return {"type": "array", "items": [_schema(x, definitions) for x in inside], "additionalItems": False,
                "minItems": len(inside), "maxItems": len(inside)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema(inside[1], definitions)}
    raise TypeError(f"no JSON Schema is known for {kind}; add it to jaxablate/reports/schemas.py")


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of a dataclass, all of whose fields are written; a ``kind`` is the word by which it is known."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: {"const": field.default} if field.name == "kind" and isinstance(field.default, str)
              else _schema(hints[field.name], definitions) for field in dataclasses.fields(kind)}
    about = (kind.__doc__ or "").split("\n\n")[0]
    return {"type": "object", "description": " ".join(about.split()), "properties": fields,
            "required": list(fields), "additionalProperties": False}


def write_schemas(folder: Path = FOLDER) -> list[Path]:
    """Writes every schema; returns the paths."""
    return [files.write_json(folder / f"{kind}.schema.json", schema(kind)) for kind in SCHEMAS]


if __name__ == "__main__":
    write_schemas()
