"""Read and write the SAFR classifier of the paper's PyTorch code."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxablate.config import ClassificationObjective, ClassifierConfig
from jaxablate.errors import CheckpointError
from jaxablate.interop.files import Source, read_arrays
from jaxablate.interop.layout import Entry, config_of, linear, norm, same, settings_of, to_state_dict, to_tree

_WHAT = "a SAFR classifier"
_EMBEDDING, _POSITIONS = "embedding.weight", "pos_encoder.pe"
_AXES = {_EMBEDDING: ("vocab_size", "d_model"), _POSITIONS: ("", "max_length", ""),
         "vmask.linear_layer.weight": ("vmask_width", ""), "layers.0.ff.linear1.weight": ("d_mlp", ""),
         "fc.weight": ("n_classes", "")}
"""Arrays that show the sizes."""
_NAMES = {
    "vocab_size": "vocab_size",
    "max_seq_length": "max_length",
    "d_model": "d_model",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "d_ff": "d_mlp",
    "num_classes": "n_classes",
    "mask_hidden_dim": "vmask_width",
    "dropout": "dropout",
}


def classifier_from_reference(
    source: Source, *, reference_config: Mapping[str, Any] | None = None, **overrides: Any
) -> tuple[ClassifierConfig, dict[str, Any]]:
    """Read a SAFR classifier of the paper's code.

    Sizes are read off the arrays. What is not in them (the number of heads, dropout) comes from `overrides`, else from
    `reference_config`, else from the settings in the file, else it is `ClassifierConfig`'s default; the number of heads
    must be given in one of these ways. `padding` is "paper", as those models were trained.

    Args:
      source: a state dict (names to NumPy, JAX or PyTorch arrays), or the path of a `.npz`, `.safetensors`, `.pt`,
        `.pth` or `.bin` file; only weights are ever loaded.
      reference_config: the reference's settings under its own names (`num_heads`, `mask_hidden_dim`, ...); names it
        does not share with us (seed, lambdas) are passed over.
      **overrides: fields of `ClassifierConfig`, for example `n_heads=8, padding="masked"`.

    Returns:
      (config, params): params are NumPy arrays in the tree that `SafrClassifier(config)` takes.

    Raises:
      CheckpointError: the file is unreadable; arrays are missing, unexpected, of another shape or not finite (named);
        the position table is not the sinusoidal one.
      ConfigError: a setting is missing, unknown, out of range, or contradicts the arrays.
    """
    arrays, stored = read_arrays(source)
    reference = {**stored, **(reference_config or {})}
    given = {ours: reference[name] for name, ours in _NAMES.items() if reference.get(name) is not None}
    given = {"padding": "paper"} | given | overrides
    config = config_of(ClassifierConfig, _WHAT, arrays, given, axes=_AXES, layer=r"layers\.(\d+)\.", entries=_stored,
                       needed=("n_heads",))
    _check_positions(arrays[_POSITIONS], config)
    return config, to_tree(_entries(config), arrays, config.param_dtype)


def classifier_to_reference(config: ClassifierConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Write a classifier as the paper's code stores it: the inverse of `classifier_from_reference`.

    The model has VMASK and no gates, as there; the state dict includes the position table.

    Raises:
      CheckpointError: parameters are missing, unexpected or of another shape for this config (named).
    """
    state = to_state_dict(_entries(config), params, _WHAT)
    return state | {_POSITIONS: _position_table(config).astype(state[_EMBEDDING].dtype)}


def classification_objective_from_reference(source: Source) -> ClassificationObjective:
    """The two lambdas of the paper's code.

    Args:
      source: the reference's settings (`importance_lambda`, `interaction_lambda`), or the path of a file that has them
        in `config_json`.

    Raises:
      ConfigError: one is missing.

    Example:
      >>> classification_objective_from_reference({"importance_lambda": 1.0, "interaction_lambda": 0.5}).interaction
      0.5
    """
    importance, interaction = settings_of(source, ("importance_lambda", "interaction_lambda"))
    return ClassificationObjective(importance=importance, interaction=interaction)


def _entries(config: ClassifierConfig) -> Iterator[Entry]:
    """Every array of the state dict but the position table, in the reference's order."""
    d = config.d_model
    yield same(_EMBEDDING, "embed/embedding", config.vocab_size, d)
    yield from linear("vmask.linear_layer", "vmask/hidden", d, config.vmask_width)
    yield from linear("vmask.hidden2p", "vmask/out", config.vmask_width, 2)
    for i in range(config.n_layers):
        yield from _block_entries(config, f"layers.{i}", f"layer_{i}")
    yield from linear("fc", "classes", d, config.n_classes)


def _stored(config: ClassifierConfig) -> list[Entry]:
    """Every array of the state dict."""
    return [*_entries(config), same(_POSITIONS, "", 1, config.max_length, config.d_model)]


def _block_entries(config: ClassifierConfig, name: str, path: str) -> Iterator[Entry]:
    d, f, heads = config.d_model, config.mlp_width, (config.n_heads, config.head_width)
    for part in ("query", "key", "value"):
        yield Entry(f"{name}.attention.{part}.weight", f"{path}/attention/{part}/kernel", (d, d), (d, *heads))
        yield Entry(f"{name}.attention.{part}.bias", f"{path}/attention/{part}/bias", (d,), heads)
    yield Entry(f"{name}.attention.out.weight", f"{path}/attention/out/kernel", (d, d), (*heads, d))
    yield same(f"{name}.attention.out.bias", f"{path}/attention/out/bias", d)
    yield from norm(f"{name}.norm1", f"{path}/ln_1", d)
    yield from linear(f"{name}.ff.linear1", f"{path}/mlp/up", d, f)
    yield from linear(f"{name}.ff.linear2", f"{path}/mlp/down", f, d)
    yield from norm(f"{name}.norm2", f"{path}/ln_2", d)


def _position_table(config: ClassifierConfig) -> np.ndarray:
    from jaxablate.models.classifier import sinusoids  # reading arrays needs no model

    return sinusoids(config.max_length, config.d_model)[None]


def _check_positions(stored: np.ndarray, config: ClassifierConfig) -> None:
    if not np.abs(stored - _position_table(config)).max() <= 1e-4:  # NaN neither
        raise CheckpointError(f"{_POSITIONS} is not the sinusoidal table that {_WHAT} has; it cannot be read")
