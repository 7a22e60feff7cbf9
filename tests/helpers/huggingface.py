"""Folders of Hugging Face, made of the golden figures (tests/make_golden_huggingface.py)."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface.npz"


def names() -> list[str]:
    """Names of the models."""
    with np.load(GOLDEN) as stored:
        return sorted({name.split("/")[0] for name in stored.files})


def golden_folder(name: str, folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """A model's folder as transformers wrote it, and what transformers computed on ``input_ids``."""
    with np.load(GOLDEN) as stored:
        own = {n.removeprefix(f"{name}/"): stored[n] for n in stored.files if n.startswith(f"{name}/")}
    (folder / "config.json").write_text(str(own.pop("config_json")))
    weights = {n.removeprefix("weights/"): own.pop(n) for n in list(own) if n.startswith("weights/")}
    safetensors.numpy.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, own


def change_settings(folder: pathlib.Path, **changes: Any) -> None:
    """Changes keys of a folder's config.json; ``...`` removes one."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


def change_weights(folder: pathlib.Path, **changes: Any) -> None:
    """Changes tensors of a folder by a function of them; None removes one, an array adds it."""
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    for name, change in changes.items():
        if change is None:
            del weights[name]
        else:
            weights[name] = change(weights[name]) if callable(change) else change
    safetensors.numpy.save_file(weights, path)
