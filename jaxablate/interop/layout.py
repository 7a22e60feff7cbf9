"""How arrays are named and laid out in a PyTorch state dict and in our parameter tree."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from jaxablate.errors import CheckpointError, ConfigError


class Entry(NamedTuple):
    """One array of a state dict: its name there, its path in our tree, and its shape in each."""

    name: str
    path: str
    reference_shape: tuple[int, ...]
    shape: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's (out, in) to our (in, out), heads apart."""
        return (array.T if self._transposed else array).reshape(self.shape)

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Inverse of `to_ours`."""
        if self._transposed:
            return array.reshape(self.reference_shape[::-1]).T
        return array.reshape(self.reference_shape)

    @property
    def _transposed(self) -> bool:
        return self.path.endswith("/kernel")


Shapes = Mapping[str, tuple[int, ...] | None]


def same(name: str, path: str, *shape: int) -> Entry:
    """An array that both sides store alike."""
    return Entry(name, path, shape, shape)


def norm(name: str, path: str, width: int) -> Iterator[Entry]:
    """Scale and bias of a layer norm."""
    yield same(f"{name}.weight", f"{path}/scale", width)
    yield same(f"{name}.bias", f"{path}/bias", width)


def linear(name: str, path: str, inputs: int, outputs: int) -> Iterator[Entry]:
    """Kernel and bias of a linear map."""
    yield Entry(f"{name}.weight", f"{path}/kernel", (outputs, inputs), (inputs, outputs))
    yield same(f"{name}.bias", f"{path}/bias", outputs)


def to_tree(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Our parameter tree from a state dict that was checked."""
    flat = {e.path: np.array(e.to_ours(arrays[e.name]), dtype, order="C") for e in entries}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(entries: Iterable[Entry], params: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
    """State dict of a parameter tree.

    Raises:
      CheckpointError: parameters are missing, unexpected or of another shape (all named).
    """
    entries = list(entries)
    arrays = {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    found = {path: array.shape for path, array in arrays.items()}
    check_arrays("the parameter tree", what, found, {e.path: e.shape for e in entries})
    return {e.name: np.ascontiguousarray(e.to_reference(arrays[e.path])) for e in entries}


def check_arrays(where: str, what: str, found: Shapes, expected: Shapes) -> None:
    """One error that names everything missing, unexpected or misshapen; the shape None stands for any.

    Raises:
      CheckpointError: ``where`` does not fit ``what``.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {shape}, expected {expected[name]}"
        for name, shape in found.items()
        if name in expected and shape != (expected[name] or shape)
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    lines = [f"{kind}: {', '.join(names)}" for kind, names in problems if names]
    if lines:
        raise CheckpointError(f"{where} does not fit {what}; {'; '.join(lines)}")


def check_settings(sizes: Mapping[str, Any], given: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Refuses settings that the arrays do not show and nobody gave, and ones that contradict the arrays.

    Raises:
      ConfigError: see above.
    """
    missing = [name for name in needed if name not in given]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} cannot be read off the arrays; give "
            f"{', '.join(f'{name}=...' for name in missing)} (d_model={sizes['d_model']}), or reference_config"
        )
    wrong = [f"{name}={given[name]}, in the arrays {n}" for name, n in sizes.items() if given.get(name, n) != n]
    if wrong:
        raise ConfigError(f"settings contradict the arrays: {'; '.join(wrong)}")
