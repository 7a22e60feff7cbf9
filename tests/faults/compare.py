"""What a folder holds, but for times and dates, so that two runs can be compared bit for bit.

Arrays of checkpoints are read by TensorStore alone, not by the code under test.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.explorer import read_page

Contents = dict[str, str]
"""Name of a file, or of an array of the newest checkpoint -> its text or digest."""

_TIMES = re.compile(r"date|started|trained|resumed|revision|.*seconds|.*_per_second|mtime_ns|log")
"""Keys of JSON that tell when, how fast and by which revision; a checkpoint's ``log`` is of lines with speeds."""
_CLOCK = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+-]+Z?|\b\d+(\.\d+)? ?(s|ms|min)\b|\b[0-9a-f]{12}(-dirty)?\b")
"""The same in text."""
_PARTIAL = re.compile(r"\.partial$|\.orbax-checkpoint-tmp|\.tmp$")
_SKIPPED = re.compile(r"(^|/)(tensorboard/|\.[^/]*lock$)|checkpoints/")


def contents(folder: Path) -> Contents:
    """All files of a folder; of ``checkpoints`` the newest one's arrays and progress."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not _SKIPPED.search(name) and not _PARTIAL.search(name):
            found[name] = _content(path)
    for checkpoints in folder.glob("**/checkpoints"):
        steps = sorted((int(p.name) for p in checkpoints.iterdir() if p.name.isdecimal()), reverse=True)
        for step in steps[:1]:
            name = f"{checkpoints.relative_to(folder)}/{step}"
            found |= {f"{name}/{key}": value for key, value in checkpoint(checkpoints / str(step)).items()}
    return found


def checkpoint(folder: Path) -> Contents:
    """Arrays of one checkpoint, chunk by chunk, and its progress but for what it says of the log, which is compared."""
    import tensorstore

    found = {}
    for item in ("params", "optimizer"):
        base = {"driver": "file", "path": f"{folder / item}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for key in store.list().result():
            found[f"{item}/{key.decode()}"] = _digest(store.read(key).result().value)
    progress = json.loads((folder / "progress" / "metadata").read_text())
    progress.pop("log", None)
    return found | {"progress": json.dumps(_timeless(progress), indent=1)}


def left_over(folder: Path) -> list[str]:
    """What an interrupted writer left and nobody removed."""
    return [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if _PARTIAL.search(p.name)]


def differences(got: Mapping[str, str], wanted: Mapping[str, str],
                matters: Callable[[str], bool] = lambda name: True) -> list[str]:
    """One line for each name of which the two do not hold the same."""
    lines = []
    for name in sorted(got.keys() | wanted.keys()):
        if not matters(name) or got.get(name) == wanted.get(name):
            continue
        if name not in got or name not in wanted:
            lines.append(f"{name} is {'missing' if name not in got else 'too much'}")
        else:
            one, other = got[name].splitlines(), wanted[name].splitlines()
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                      min(len(one), len(other)))
            first, second = (repr(x[at].strip()[:120]) if at < len(x) else "its end" for x in (one, other))
            lines.append(f"{name}, line {at + 1}: {first} for {second}")
    return lines


def _content(path: Path) -> str:
    raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            return json.dumps(_timeless(json.loads(raw)), indent=1)
        if path.suffix == ".jsonl":
            return "\n".join(json.dumps(_timeless(json.loads(line))) for line in raw.splitlines())
    except (ValueError, RecursionError):
        return _digest(raw)
    if path.suffix == ".html" and b'id="manifest"' in raw:
        return json.dumps(_timeless(read_page(path)), indent=1)
    return _CLOCK.sub("TIME", raw.decode()) if path.suffix == ".html" else _digest(raw)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not _TIMES.fullmatch(k)}
    return [_timeless(v) for v in value] if isinstance(value, list | tuple) else value


def _digest(raw: bytes) -> str:
    return f"{len(raw)} bytes {hashlib.sha256(raw).hexdigest()}"
