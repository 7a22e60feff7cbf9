"""Decisions of a search on disk, so that it can go on after an interruption. Values are computed anew from them."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate.circuits.acdc_branch import Branch
from jaxablate.circuits.nodes import Params
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.errors import CheckpointError
from jaxablate.files import atomic_write

_COUNTS = ("evaluated", "decided", "rechecked")
_ARRAYS = ("removed", "kl", "margins")


def search_digest(
    config: ModelConfig, params: Params, pairs: PromptPairs, taus: Sequence[float], options: Sequence[str],
    order: np.ndarray,
) -> str:
    """Hex digest of everything the decisions of a search depend on."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(config), list(taus), list(options), pairs.digest()],
                                       default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    digest.update(np.ascontiguousarray(order, np.int64).tobytes())
    return digest.hexdigest()


def save_progress(path: Path, digest: str, search: Any, branches: Sequence[Branch]) -> None:
    """Writes the decisions; the file is there whole or not at all."""
    arrays = {"digest": np.array(digest), "counts": np.array([getattr(search, name) for name in _COUNTS])}
    for i, branch in enumerate(branches):
        arrays |= {f"{i}/{name}": getattr(branch, name) for name in _ARRAYS}
        arrays[f"{i}/taus"] = np.array(branch.taus)
        arrays[f"{i}/scalars"] = np.array([branch.position, branch.now, branch.width], np.float64)
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_progress(path: Path, digest: str, search: Any) -> list[Branch]:
    """The branches of an interrupted search, their values restored; none where there is no file.

    Raises:
      CheckpointError: the file is damaged, or of another search.
    """
    if not path.exists():
        return []
    try:
        with path.open("rb") as file, np.load(file) as stored:
            arrays = dict(stored)
        found, counts = str(arrays["digest"]), arrays["counts"].tolist()
        branches = [_branch(arrays, i, search) for i in range(sum(name.endswith("/taus") for name in arrays))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise CheckpointError(f"{path} cannot be read as an interrupted search ({e}); delete it to begin anew") from e
    if found != digest:
        raise CheckpointError(f"{path} is an interrupted search of another model, task or setting; "
                              "delete it to begin anew, or name another file")
    for name, count in zip(_COUNTS, counts, strict=True):
        setattr(search, name, int(count))
    for branch in branches:
        search.restore(branch)
    return branches


def _branch(arrays: dict[str, np.ndarray], i: int, search: Any) -> Branch:
    branch = search.begin(tuple(arrays[f"{i}/taus"].tolist()))
    for name in _ARRAYS:
        setattr(branch, name, arrays[f"{i}/{name}"])
    position, branch.now, width = arrays[f"{i}/scalars"].tolist()
    branch.position, branch.width = int(position), int(width)
    return branch
