"""Help of the commands, from the settings dataclasses alone: short with ``--help``, whole with ``--help-all``.

The short help has each option with the first sentence of its text, and of a configuration's many settings only those
that a command names; the whole one has everything. Texts are the docstrings under the fields, or those given to
``tyro.conf.arg``.
"""

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from jaxablate.registry import Registry

SHORT, WHOLE = ("-h", "--help"), "--help-all"
_WIDEST, _COLUMN = 100, 27
_SENTENCE = re.compile(r"(?<=[^.][.])\s+(?=[A-Z`'\"(])")
Sections = Mapping[str, Mapping[str, str]]
"""Further lists of a command's help: a title, names and what they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a command."""

    name: str
    """``--model.k-neurons``; of an argument without a flag what stands for it."""
    values: str
    """What follows the flag: ``INT``, ``{clean,ablated}``; empty for a switch."""
    about: str
    """Its text as one paragraph; empty where nobody wrote one."""
    default: str
    """Its default for people; empty where that says nothing."""
    required: bool
    group: str
    """Title of the group that it stands in; empty for the command's own options."""
    setting: str
    """Dotted name of the field."""


def asked(argv: Sequence[str]) -> bool | None:
    """Whether a command line asks for the whole help (True) or the short one (False); None where it asks for none."""
    return True if WHOLE in argv else False if any(flag in argv for flag in SHORT) else None


def show(console: Console, kind: type, *, prog: str, about: str, whole: bool, default: Any = None,
         prefixes: bool = False, common: Collection[str] = (), sections: Sections = types.MappingProxyType({})) -> None:
    """Prints the help of a command.

    Args:
      console: where to print.
      kind: dataclass of its settings.
      prog: the command as it is called.
      about: what it does, paragraphs.
      whole: every option with its whole text.
      default: an instance to take defaults from.
      prefixes: whether names of settings inside settings are dotted.
      common: settings inside settings that the short help has, by dotted name; none given shows all.
      sections: further lists.
    """
    found = [*options(kind, default, prefixes=prefixes)]
    shown = [x for x in found if whole or not x.group or not common or x.setting in common]
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(about).split("\n\n")]
    arguments = "".join(f" {x.name}" if x.required else f" [{x.name}]" for x in found if not x.name.startswith("-"))
    _print(console, f"usage: {prog}{arguments} [options]", "")
    for paragraph in paragraphs if whole else paragraphs[:1]:
        _print(console, *_wrapped(paragraph, console), "")
    for title in dict.fromkeys(x.group for x in shown):
        _heading(console, title or "options")
        for option in (x for x in shown if x.group == title):
            _entry(console, f"{option.name} {option.values}".strip(), _text(option, whole))
        if not title:
            _entry(console, f"{SHORT[1]}, {WHOLE}", "This help, short or whole.")
        console.print()
    for title, entries in sections.items():
        _heading(console, title)
        for name, what in entries.items():
            _entry(console, name, what if whole else first_sentence(what))
        console.print()
    left = len(found) - len(shown)
    more = f"{left} more settings and the whole text of all" if left else "the whole text of each option"
    if not whole:
        _print(console, *_wrapped(f"{prog} {WHOLE} shows {more}.", console))


def parts(registry: Registry[Any]) -> dict[str, str]:
    """A section of what a registry holds: names, and what each is ``about``."""
    return {part.name: part.about for part in registry}


def first_sentence(text: str) -> str:
    """The first sentence of a text.

    >>> first_sentence("In DIR/seed-0, DIR/seed-1, ... by seed. No figure depends on it.")
    'In DIR/seed-0, DIR/seed-1, ... by seed.'
    """
    return _SENTENCE.split(text, maxsplit=1)[0]


def options(kind: Any, default: Any = None, *, prefixes: bool = False, prefix: str = "", group: str = ""
            ) -> Iterator[Option]:
    """Options of a settings dataclass and of those inside it, a group each, in the order of the fields.

    Args:
      kind: the dataclass.
      default: an instance to take defaults from; a value that it lacks, or that is tyro's mark for one, is required.
      prefixes: whether options of settings inside have dotted names.
      prefix: what their names begin with.
      group: title of the group that they stand in.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    inner = []
    for field in dataclasses.fields(kind):
        hint, marks = _unwrapped(hints[field.name])
        if tyro.conf.Suppress in marks:
            continue
        given = next((mark for mark in marks if hasattr(mark, "metavar")), None)
        name = field.name if given is None or given.name is None else given.name
        value = _default(field, default)
        if dataclasses.is_dataclass(hint):
            inner.append((hint, value, name))
            continue
        about = (given.help if given is not None else None) or _docs(kind).get(field.name, "")
        yield _option(f"{prefix}{name}", hint, value, positional=tyro.conf.Positional in marks, group=group,
                      about=" ".join(about.split()), metavar=None if given is None else given.metavar)
    for hint, value, name in inner:
        start = f"{prefix}{name}." if prefixes and name else prefix
        title = f"{start.rstrip('.')}: {_title(hint)}" if start else _title(hint)
        yield from options(hint, value, prefixes=prefixes, prefix=start, group=title if name else group)


def _option(name: str, hint: Any, value: Any, *, positional: bool, group: str, about: str, metavar: str | None
            ) -> Option:
    required, values = value is dataclasses.MISSING, metavar or _values(hint)
    if metavar and typing.get_origin(hint) is tuple:
        values = f"{metavar} ..."
    same: dict[str, Any] = {"about": about, "required": required, "group": group, "setting": name}
    if positional:
        shown = values if metavar or typing.get_origin(hint) is not tuple else f"{name.upper()} ..."
        return Option(name=shown, values="", default="", **same)
    if hint is bool:
        start, _, last = name.rpartition(".")
        flag = f"{start}.no-{last}".lstrip(".") if value is True else name
        return Option(name=_flag(flag), values="", default="on; this turns it off" if value is True else "", **same)
    return Option(name=_flag(name), values=values, default="" if required else _shown(value), **same)


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _default(field: "dataclasses.Field[Any]", default: Any) -> Any:
    """The field's value in the instance, or its own default; MISSING where it has to be given."""
    if default is not None:
        value = getattr(default, field.name, dataclasses.MISSING)
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = field.default
    return dataclasses.MISSING if value is tyro.MISSING else value


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what `Annotated` adds to it, and that."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        deeper, more = _unwrapped(inner)
        return deeper, (*more, *marks)
    return hint, ()


def _values(hint: Any) -> str:
    """What people write for a value of a type."""
    hint, origin = _unwrapped(hint)[0], typing.get_origin(_unwrapped(hint)[0])
    if origin is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if origin in (types.UnionType, typing.Union):
        kinds = [x for x in typing.get_args(hint) if x is not type(None)]
        lists = [x for x in kinds if typing.get_origin(x) is tuple]
        return _values((lists or kinds)[0]) if lists or len(kinds) == 1 else "|".join(map(_values, kinds))
    if origin is tuple:
        inner = [x for x in typing.get_args(hint) if x is not Ellipsis]
        repeated = Ellipsis in typing.get_args(hint)
        return " ".join(map(_values, inner)) + (" ..." if repeated else "")
    return {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}.get(hint, "VALUE")


def _shown(value: Any) -> str:
    if value is None or value == () or value == "":
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@functools.cache
def _docs(kind: type) -> dict[str, str]:
    """Docstrings under the fields of a dataclass and of those that it is derived from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(body, ast.ClassDef)
            last = None
            for node in body.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    last = node.target.id
                    continue
                if last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    docs[last] = str(node.value.value)
                last = None
    return docs


def _title(kind: type) -> str:
    """What settings are, by the first sentence of their class."""
    return first_sentence(" ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())).rstrip(".")


def _text(option: Option, whole: bool) -> str:
    """An option's text with its default."""
    text = (option.about if whole else first_sentence(option.about)).replace("``", "")
    if option.default and option.default != "False":
        default = option.default if option.default.startswith("on;") else f"default {option.default}"
        text = f"{text} ({default})".strip()
    return f"{text} (required)" if option.required else text


def _heading(console: Console, title: str) -> None:
    for line in _wrapped(f"{title}:".replace("`", ""), console):
        console.print(Text(line, style="bold"), soft_wrap=True)


def _entry(console: Console, name: str, text: str) -> None:
    """A name and its text, which stands beside it, or below where the name is long."""
    lines = _wrapped(text, console, _COLUMN)
    head = f"  {name}"
    if len(head) < _COLUMN - 1 and lines:
        _print(console, head.ljust(_COLUMN) + lines[0].strip())
        lines = lines[1:]
    else:
        _print(console, *textwrap.wrap(head, _width(console), subsequent_indent=" " * 6, break_on_hyphens=False,
                                       break_long_words=False))
    _print(console, *lines)


def _wrapped(text: str, console: Console, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, _width(console), initial_indent=" " * indent, subsequent_indent=" " * indent,
                         break_on_hyphens=False)


def _width(console: Console) -> int:
    return max(60, min(_WIDEST, console.width))


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
