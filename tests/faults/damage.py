"""Damage to the files of a folder, drawn from a seed: cut, zeroed, flipped, emptied, removed, replaced."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.hostile import JSON

MOST_ZEROED = 4096
"""Bytes of the longest block that is zeroed, but for files that are zeroed whole."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """One file as it is after damage."""

    file: str
    """Path inside the folder."""
    kind: str
    """What was done, for people: ``cut to 17 of 300 bytes``."""
    content: bytes | None
    """None where the file is gone."""

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}"

    def apply(self, folder: Path) -> None:
        """Damages the file in this folder, or in a copy of it."""
        path = Path(folder) / self.file
        if self.content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(self.content)


def cases(folder: Path, seed: int, n: int, *, only: Callable[[str], bool] = lambda file: True) -> Iterator[Damage]:
    """`n` cases of damage to the files of a folder as they are now, the same ones for the same seed and files.

    Files come in turn, each with another kind of damage; ``only`` chooses among their paths inside the folder.
    """
    rng = random.Random(seed)
    names = sorted(name for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()
                   and only(name := str(path.relative_to(folder))))
    for i in range(n if names else 0):
        if i % len(names) == 0:
            rng.shuffle(names)
        name = names[i % len(names)]
        yield damaged(name, (Path(folder) / name).read_bytes(), rng)


def damaged(name: str, content: bytes, rng: random.Random) -> Damage:
    """One file's content with damage of a kind that fits it."""
    kinds = [_cut, _zeroed_block, _zeroed, _flipped, _emptied, _removed, _replaced, _grown]
    if name.endswith(".json"):
        kinds += [_other_value] * 4
    if name.endswith(".jsonl"):
        kinds += [_other_line] * 4
    kind, damage = rng.choice(kinds)(content, rng)
    return Damage(name, kind, damage)


def _cut(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    length = rng.randrange(len(content) + 1)
    return f"cut to {length} of {len(content)} bytes", content[:length]


def _zeroed_block(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    start, length = rng.randrange(len(content) + 1), rng.randint(1, MOST_ZEROED)
    zeros = min(length, len(content) - start)
    return f"{zeros} bytes from {start} zeroed", content[:start] + bytes(zeros) + content[start + zeros :]


def _zeroed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    return "zeroed", bytes(len(content))


def _flipped(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    bits = bytearray(content)
    places = [rng.randrange(8 * len(bits)) for _ in range(rng.choice((1, 1, 8)))] if bits else []
    for place in places:
        bits[place // 8] ^= 1 << place % 8
    return f"bits {places} flipped", bytes(bits)


def _emptied(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    return "emptied", b""


def _removed(content: bytes, rng: random.Random) -> tuple[str, None]:
    return "removed", None


def _replaced(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    other = rng.choice(JSON)
    return f"replaced by {other[:20]!r}", other


def _grown(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    more = rng.choice((b"\0", b"x" * 100, content, b"\n{}\n"))
    return f"{len(more)} bytes longer", content + more


def _other_value(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """JSON in which one value, drawn among all, is another."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return _replaced(content, rng)
    path, changed = other_value(values, rng)
    return f"{path} changed", json.dumps(changed).encode()


def _other_line(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """JSON lines of which one is damaged."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return _replaced(content, rng)
    at = rng.randrange(len(lines))
    kind, line = rng.choice((_cut, _flipped, _emptied, _replaced, _other_value))(lines[at].rstrip(b"\n"), rng)
    return f"line {at + 1} {kind}", b"".join([*lines[:at], line + b"\n", *lines[at + 1 :]])


def refusal(read: Callable[[], Any], *kinds: type[Exception]) -> str | None:
    """Message of the error of these kinds that a call raises, one line; None where it raises none."""
    try:
        read()
    except kinds as error:
        message = str(error)
    else:
        return None
    assert message and len(message.splitlines()) == 1, message
    return message


OTHERS: tuple[Any, ...] = (None, 5, -1, 0, 2.5, 1e308, -1e308, 10**30, True, "abc", "", "[/b]", [], [1, 2], [[]], {},
                           {"a": None})
"""Values that take the place of another one."""


def other_value(values: Any, rng: random.Random) -> tuple[str, Any]:
    """JSON-able values with one of them, drawn among all at every depth, exchanged, removed or repeated; and where."""
    places = list(_places(values, "$"))
    where, holder, key = places[rng.randrange(len(places))] if places else ("$", None, None)
    if holder is None:
        return "$", rng.choice(OTHERS)
    changed = json.loads(json.dumps(values))
    holder = {w: h for w, h, _ in _places(changed, "$")}[where]
    action = rng.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = rng.choice(OTHERS)
    return where, changed


def _places(value: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, holder and key of each value inside another."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        path = f"{where}.{key}" if isinstance(value, dict) else f"{where}[{key}]"
        yield path, value, key
        yield from _places(inner, path)
