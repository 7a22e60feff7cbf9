"""Seals: the last file of a checkpoint, by which a whole one is told from an unfinished or damaged one."""

import dataclasses
import json
import math
import zlib
from pathlib import Path

SEAL = "seal.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seal:
    """What was known of a checkpoint when it was whole.

    Attributes:
      step: updates behind it.
      valid_loss: clean validation loss measured at this very step, or None.
      arrays: ``"params/ln_f/scale" -> "float32[128]"`` for every array.
      files: path inside the folder -> (bytes, CRC-32).
    """

    step: int
    valid_loss: float | None
    arrays: dict[str, str]
    files: dict[str, tuple[int, int]]


def write_seal(folder: Path, step: int, valid_loss: float | None, arrays: dict[str, str]) -> None:
    """Seals a checkpoint whose files are all written.

    Args:
      folder: of the checkpoint.
      step: its number.
      valid_loss: None where it was not measured; one that is not finite counts as not measured.
      arrays: description of every array.
    """
    files = {str(p.relative_to(folder)): (p.stat().st_size, _crc(p)) for p in _files(folder)}
    loss = valid_loss if valid_loss is not None and math.isfinite(valid_loss) else None
    seal = Seal(step=step, valid_loss=loss, arrays=arrays, files=files)
    body = json.dumps(dataclasses.asdict(seal), sort_keys=True)
    partial = folder / f"{SEAL}.partial"
    partial.write_text(json.dumps({"crc": zlib.crc32(body.encode()), "seal": json.loads(body)}, sort_keys=True))
    partial.replace(folder / SEAL)


def read_seal(folder: Path) -> Seal | None:
    """The seal, or None where it is missing or not what was written."""
    try:
        outer = json.loads((folder / SEAL).read_text())
        body = json.dumps(outer["seal"], sort_keys=True)
        if outer["crc"] != zlib.crc32(body.encode()):
            return None
        files = {name: tuple(value) for name, value in outer["seal"]["files"].items()}
        return Seal(**outer["seal"] | {"files": files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None; reads every byte of it once."""
    seal = read_seal(folder)
    if seal is None:
        return f"its {SEAL} is missing or damaged (the save never finished, or the file was changed)"
    for name, (size, crc) in seal.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if _crc(path) != crc:
            return f"the content of {name} has changed"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SEAL))


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
