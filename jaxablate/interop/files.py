"""Arrays by name, and the settings beside them, out of `.npz`, `.safetensors`, `.pt` files or a mapping in memory.

Nothing here runs code of a file: NumPy reads without pickles, PyTorch with `weights_only=True`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate import files
from jaxablate.errors import CheckpointError, FileError

Source = Mapping[str, Any] | str | os.PathLike[str]
"""A mapping of names to arrays (NumPy, JAX or PyTorch), or the path of a file."""

_SETTINGS = "config_json"
_PREFIX = "param/"
_WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts save a state dict, beside their optimiser's."""


def read_arrays(source: Source, *, without: re.Pattern[str] | None = None
                ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a state dict.

    Args:
      source: a mapping of names to NumPy, JAX or PyTorch arrays, or the path of a file:

        * `.npz`: every array, or, where some are named `param/<name>`, only those; settings in `config_json`.
        * `.safetensors`: every tensor; settings in the metadata entry `config_json`.
        * `.pt`, `.pth`, `.bin` (needs torch): a state dict, or one under the key `model_state_dict`, `state_dict`
          (Lightning) or `model` (nanoGPT). Weights only.

      without: names of entries that are no weights and are left out, whatever they are: buffers.

    Returns:
      (arrays, settings): NumPy arrays of their own type (bfloat16 becomes float32) by name, and the
      settings stored beside them, empty where there are none.

    Raises:
      CheckpointError: the file is missing, damaged, of another kind, or holds more than weights.
    """
    entries, settings = (source, {}) if isinstance(source, Mapping) else _read(Path(source))
    if without is not None:
        entries = {name: value for name, value in entries.items() if not without.fullmatch(str(name))}
    return _to_numpy(entries, "the state dict" if isinstance(source, Mapping) else source), settings


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A file's entries by name, and its settings."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file; give a .npz, .safetensors, .pt, .pth or .bin file")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors,
               **dict.fromkeys((".pt", ".pth", ".bin"), _read_torch)}
    if path.suffix not in readers:
        raise CheckpointError(f"{path} is not a file this can read; give one ending in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except FileError as error:
        raise CheckpointError(str(error)) from error


def _read_npz(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    entries = files.read_npz(path)
    settings = _settings(path, str(entries.pop(_SETTINGS))) if _SETTINGS in entries else {}
    prefixed = {k.removeprefix(_PREFIX): v for k, v in entries.items() if k.startswith(_PREFIX)}
    return prefixed or entries, settings


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    arrays, metadata = files.read_safetensors(path)
    settings = _settings(path, metadata[_SETTINGS]) if _SETTINGS in metadata else {}
    return arrays, settings


def _read_torch(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    try:
        import torch  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise CheckpointError(
            f"reading {path} needs PyTorch; pip install 'jaxablate[torch]', or save the weights as .safetensors"
        ) from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # no list of what a damaged file makes PyTorch raise ends
        raise CheckpointError(
            f"{path} is damaged, or holds more than weights, which could run code and is not loaded; "
            f"save model.state_dict() alone ({_one_line(error)})"
        ) from error
    if isinstance(stored, Mapping):
        stored = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), Mapping)), stored)
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, not a state dict; save model.state_dict()")
    return stored, {}


def _to_numpy(entries: Mapping[str, Any], where: object) -> dict[str, np.ndarray]:
    arrays = {str(name): _array(str(name), value, where) for name, value in entries.items()}
    wrong = [name for name, array in arrays.items() if array.dtype.kind != "f"]
    if wrong:
        raise CheckpointError(f"{where} has entries that are not arrays of real numbers: {', '.join(sorted(wrong))}")
    return arrays


def _array(name: str, value: Any, where: object) -> np.ndarray:
    try:
        if hasattr(value, "detach"):  # a PyTorch tensor, whose bfloat16 NumPy does not know
            value = value.detach().cpu()
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"shape {tuple(value.shape)} is more than what is stored")  # rows of stride 0
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        array = np.asarray(value)
    except Exception as error:  # sparse, quantised, ragged, on no device ...
        raise CheckpointError(f"{where}: {name} is no plain array ({_one_line(error)})") from error
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _settings(path: Path, text: str) -> dict[str, Any]:
    return files.parse_json(text, what=f"settings ({_SETTINGS})", fix="mend or leave out that entry", where=str(path))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
