"""How arrays are named and laid out in a PyTorch state dict and in our parameter tree."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.traverse_util
import numpy as np

from jaxablate.config import from_dict
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.interop.files import Source, read_arrays

C = TypeVar("C")
MOST_NAMED = 200
"""Arrays of a kind that an error names."""


class Entry(NamedTuple):
    """One array of a state dict: its name there, its path in our tree, and its shape in each."""

    name: str
    path: str
    reference_shape: tuple[int, ...]
    shape: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's (out, in) as our (in, out), where heads are an axis of their own."""
        return (array.T if self.path.endswith("/kernel") else array).reshape(self.shape)

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Inverse of `to_ours`."""
        if self.path.endswith("/kernel"):
            return array.reshape(self.reference_shape[::-1]).T
        return array.reshape(self.reference_shape)


Shapes = Mapping[str, tuple[int, ...] | None]


def config_of(
    cls: type[C],
    what: str,
    arrays: Mapping[str, np.ndarray],
    given: Mapping[str, Any],
    *,
    axes: Mapping[str, tuple[str, ...]],
    layer: str,
    entries: Callable[[C], Iterable[Entry]],
    needed: Sequence[str],
) -> C:
    """The config of a model (``what``) in a state dict: sizes that its arrays show, and settings that were given.

    ``axes`` has, for arrays that show sizes, the field that each axis is the size of, or "". ``layer`` is an expression
    for the names of a layer's arrays, whose group is the layer's number; ``entries`` gives all arrays that the state
    dict of a config must have, and ``needed`` are the fields that must be given.

    Raises:
      CheckpointError: arrays are missing, unexpected or of another shape.
      ConfigError: a needed field was not given, or one contradicts the arrays.
    """
    found = {name: arrays[name].shape for name in axes if name in arrays}
    if wrong := [f"{name} {shape}" for name, shape in found.items() if len(shape) != len(axes[name])]:
        raise CheckpointError(f"the state dict does not fit {what}; of another number of axes: {', '.join(wrong)}")
    complete = len(found) == len(axes)
    pairs = (zip(axes[name], shape, strict=True) for name, shape in found.items() if complete)
    sizes = {field: size for pair in pairs for field, size in pair if field}
    # A number of 10 digits or more is no layer's; the array is unexpected then.
    layers = [int(m[1]) for m in (re.match(layer, name) for name in arrays) if m and len(m[1]) < 10]
    sizes["n_layers"] = 1 + max(layers, default=0)
    if layers and sizes["n_layers"] > len(arrays):
        raise CheckpointError(f"the state dict does not fit {what}; it has an array of layer {max(layers)}, but only "
                              f"{len(arrays)} arrays, fewer than so many layers have")
    # No array's shape depends on the heads and winners: here they are the least, which fits any sizes.
    least = {"n_heads": 1, "k_attention": 1, "k_neurons": 1, "vocab_size": 1} | sizes
    least["ablation"] = given.get("ablation", "none")
    expected = {e.name: e.reference_shape if complete else None for e in entries(from_dict(cls, least))}
    check_arrays("the state dict", what, {name: array.shape for name, array in arrays.items()}, expected)
    missing = [name for name in needed if name not in given]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} cannot be read off the arrays; give "
            f"{', '.join(f'{name}=...' for name in missing)} (d_model={sizes['d_model']}), or reference_config"
        )
    contradictions = [f"{name}={given[name]}, in the arrays {size}" for name, size in sizes.items()
                      if given.get(name, size) != size]
    if contradictions:
        raise ConfigError(f"settings contradict the arrays: {'; '.join(contradictions)}")
    dtype = "float64" if any(array.dtype == np.float64 for array in arrays.values()) else "float32"
    return from_dict(cls, {"param_dtype": dtype, "compute_dtype": dtype, **sizes, **given})


def settings_of(source: Source, names: Sequence[str]) -> list[float]:
    """Numbers among the settings of the papers' code, given as a mapping or stored in a file.

    Raises:
      ConfigError: one is missing or no number.
    """
    settings = source if isinstance(source, Mapping) else read_arrays(source)[1]
    missing = [name for name in names if name not in settings]
    if missing:
        raise ConfigError(f"the reference's settings lack {', '.join(missing)}; give all of {', '.join(names)}")
    numbers = []
    for name in names:
        try:
            numbers.append(float(settings[name]))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the reference's {name}={settings[name]!r:.80} must be a number") from error
    return numbers


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
    """Our parameter tree from a state dict whose names and shapes were checked.

    Raises:
      CheckpointError: numbers of an array are NaN or infinite (named).
    """
    entries = list(entries)
    if wrong := [e.name for e in entries if not np.isfinite(arrays[e.name]).all()]:
        raise CheckpointError(f"numbers are NaN or infinite in {_listed(wrong)}; the weights are damaged, or their "
                              "training diverged")
    flat = {e.path: np.array(e.to_ours(arrays[e.name]), dtype, order="C") for e in entries}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(entries: Iterable[Entry], params: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
    """State dict of a parameter tree.

    Raises:
      CheckpointError: parameters are missing, unexpected or of another shape (named).
    """
    entries = list(entries)
    arrays = {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    shapes = {path: array.shape for path, array in arrays.items()}
    check_arrays("the parameter tree", what, shapes, {e.path: e.shape for e in entries})
    return {e.name: np.ascontiguousarray(e.to_reference(arrays[e.path])) for e in entries}


def check_arrays(where: str, what: str, shapes: Shapes, expected: Shapes) -> None:
    """Raises one error that names what is missing, unexpected or misshapen; the expected shape None is any.

    Raises:
      CheckpointError: ``where`` does not fit ``what``.
    """
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} is {shape}, expected {expected[name]}"
        for name, shape in shapes.items()
        if name in expected and shape != (expected[name] or shape)
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    lines = [f"{kind}: {_listed(names)}" for kind, names in problems if names]
    if lines:
        raise CheckpointError(f"{where} does not fit {what}; {'; '.join(lines)}")


def _listed(names: Sequence[str]) -> str:
    """Names after one another, of a great many only the first."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(f'{name:.300}' for name in names[:MOST_NAMED])}{more}"
