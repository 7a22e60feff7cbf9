"""``results.json``: every figure of a scored checkpoint together with the conditions it was measured under.

One file a working directory. It belongs to one checkpoint (step and a digest of the parameters); each suite's
record carries its own provenance, since suites may be run on different days, machines and revisions.
"""

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxablate.errors import CheckpointError
from jaxablate.provenance import Provenance
from jaxablate.reports.panels import Panel, panel_from_dict

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
Better = Literal["up", "down", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One headline number of a suite; tables and comparisons are built from these alone."""

    name: str
    value: float | None
    """None where the model does not have it (an ablated loss without an ablated stream)."""
    unit: str = ""
    better: Better = "none"
    """Whether larger (up) or smaller (down) is better, or neither."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval, both or neither."""

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ValueError(f"figure {self.name!r}: give both ends of the interval or neither")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRecord:
    """What one suite found, and under which conditions."""

    suite: str
    about: str
    """One line: what the suite measures."""
    provenance: Provenance
    options: Mapping[str, Any]
    wall_seconds: float
    """Wall time of the suite, compilation included."""
    figures: tuple[Figure, ...]
    panels: tuple[Panel, ...]
    details: Mapping[str, Any]
    """The suite's whole result as plain JSON values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All that is known of one checkpoint."""

    config: Mapping[str, Any]
    """The run's `Config` as nested dict."""
    seed: int
    step: int
    params_digest: str
    """First 16 hex digits of the SHA-256 of all parameters: two checkpoints are the same when this is."""
    data_hash: str
    """Hash of the validation tokens the suites read."""
    parameters: int
    suites: Mapping[str, SuiteRecord] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def same_checkpoint(self, other: "Results") -> bool:
        """Whether figures of both may stand in one file: same parameters, settings of the model, and data."""
        names = ("params_digest", "step", "data_hash", "schema_version")
        same_model = self.config.get("model") == other.config.get("model")
        return same_model and all(getattr(self, name) == getattr(other, name) for name in names)


def merge(old: Results | None, new: Results) -> Results:
    """New results together with those suites of ``old`` that were not run again.

    Args:
      old: what the file holds, None for nothing.
      new: what was just measured.

    Returns:
      ``new`` with the other suites of ``old`` where both are of one checkpoint; else ``new`` alone.
    """
    if old is None or not old.same_checkpoint(new):
        return new
    return dataclasses.replace(new, suites={**old.suites, **new.suites})


def to_json(results: Results) -> str:
    """Results as indented JSON text. A number that is not finite becomes null, since JSON has no such number."""
    return json.dumps(_finite(dataclasses.asdict(results)), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Results:
    """Inverse of `to_json`.

    Raises:
      ValueError: not JSON, of another schema version, or a field is missing; the message says which.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or "schema_version" not in values:
        raise ValueError("it has no schema_version")
    if values["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"it has schema version {values['schema_version']!r}, this program reads {SCHEMA_VERSION}")
    try:
        suites = {name: _record(record) for name, record in values["suites"].items()}
        return Results(**{**values, "suites": suites})
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"a field is missing or of the wrong kind ({e})") from e


def read(workdir: str | os.PathLike[str]) -> Results:
    """Results of a working directory.

    Raises:
      CheckpointError: the folder or its ``results.json`` is missing or cannot be read; says what to run.
    """
    path = Path(workdir) / FILE_NAME
    if not Path(workdir).is_dir():
        raise CheckpointError(f"{workdir} is not a working directory; give the --workdir of a training run")
    if not path.exists():
        raise CheckpointError(f"{workdir} has no {FILE_NAME}; run: python eval.py score --workdir {workdir}")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise CheckpointError(
            f"{path} cannot be read: {reason}; delete it and run: python eval.py score --workdir {workdir}"
        ) from e


def write(workdir: str | os.PathLike[str], results: Results) -> Path:
    """Writes ``results.json`` of a working directory in one step (a reader never meets half a file).

    Returns:
      The file's path.

    Raises:
      CheckpointError: the folder cannot be written to.
    """
    path = Path(workdir) / FILE_NAME
    write_text(path, to_json(results))
    return path


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file's content atomically: a temporary file beside it, flushed to disk, then renamed.

    Raises:
      CheckpointError: the folder is missing, not writable or full; nothing is left behind.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            temporary = f.name
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as e:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise CheckpointError(f"{path} cannot be written ({e.strerror}); free space or choose another folder") from e


def digest(arrays: Mapping[str, Any]) -> str:
    """First 16 hex digits of a SHA-256 over named arrays: names, shapes, types and values, in sorted order.

    Args:
      arrays: name -> array with ``shape``, ``dtype`` and ``tobytes()``.
    """
    h = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        h.update(f"{name}:{array.dtype}:{array.shape};".encode())
        h.update(array.tobytes())
    return h.hexdigest()[:16]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _record(values: Mapping[str, Any]) -> SuiteRecord:
    return SuiteRecord(**{
        **values,
        "provenance": Provenance(**values["provenance"]),
        "figures": tuple(Figure(**f) for f in values["figures"]),
        "panels": tuple(panel_from_dict(p) for p in values["panels"]),
    })


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
