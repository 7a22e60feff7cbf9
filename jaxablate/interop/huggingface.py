"""Folders of Hugging Face: any decoder of the families that this program has, read and written.

A folder has ``config.json`` and ``model.safetensors``, or several files that ``model.safetensors.index.json`` lists.
Neither torch nor transformers is needed. What a folder cannot say of one of our models, its score heads, gates and
types, lies in a folder ``jaxablate`` inside it, which other programs pass over.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate import files
from jaxablate.config import ModelConfig, from_dict, to_dict
from jaxablate.errors import CheckpointError, ConfigError, FileError
from jaxablate.interop.families import FAMILIES, HARMLESS, Family, Tensor, canonical, family_of
from jaxablate.interop.layout import check_arrays
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.sharding import param_shardings, path_name

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OURS, OUR_CONFIG, OUR_WEIGHTS = "jaxablate", "model.json", "weights.safetensors"
"""What other programs pass over: a folder, and in it the model's config and the parameters that they do not have."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_WRITTEN_AS = "5.24.0"
"""The version of transformers whose keys and names these are."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
_CHANGEABLE = ("param_dtype", "compute_dtype", "remat")

Flat = dict[str, np.ndarray]
"""Parameters by path."""


def from_huggingface(folder: str | os.PathLike[str], *, mesh: Mesh | None = None, **overrides: Any
                     ) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a decoder.

    Args:
      folder: with config.json and model.safetensors (or several files and their index).
      mesh: lay each parameter on the devices of a mesh as training does (`jaxablate.sharding`), one after another, so
        that the host never holds more than one tensor. Without, parameters are NumPy arrays.
      **overrides: param_dtype, compute_dtype or remat. By default both types are float32, or float64 where the folder
        has such tensors; float16 and bfloat16 become float32.

    Returns:
      (config, params): the parameters in the tree that `SelfAblatingTransformer(config)` takes, finite all.

    Raises:
      ConfigError: the family is another one, or a setting is not known, not supported, or missing.
      CheckpointError: a file is missing or damaged; tensors are missing, unexpected, not finite, of another shape or no
        floats; the matrix of a tied model is there twice and differs.

    Example:
      >>> config, params = from_huggingface("~/models/gpt2")  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    if wrong := sorted(overrides.keys() - set(_CHANGEABLE)):
        raise ConfigError(f"{', '.join(wrong)} is settled by the folder; only {', '.join(_CHANGEABLE)} can be given")
    values = read_settings(folder)
    _, family = family_of(values, str(folder / CONFIG))
    stored_config = family.model_config(values, str(folder / CONFIG))
    config = _our_config(folder, stored_config)
    with contextlib.ExitStack() as stack:
        weights = stack.enter_context(_open_weights(folder))
        ours = stack.enter_context(_open_ours(folder))
        dtype = "float64" if "F64" in (weights.kinds | ours.kinds).values() else "float32"
        if config is None:
            config = dataclasses.replace(stored_config, param_dtype=dtype, compute_dtype=dtype)
        config = from_dict(ModelConfig, to_dict(config) | overrides)
        flat = _parameters(folder, family, stored_config, config, weights, ours)
        return config, flax.traverse_util.unflatten_dict(_placed(flat, config, mesh), sep="/")


def to_huggingface(config: ModelConfig, params: Mapping[str, Any], folder: str | os.PathLike[str], *,
                   tokenizer: str | os.PathLike[str] | None = None, settings: Mapping[str, Any] | None = None) -> str:
    """Writes a decoder's clean stream as a folder that transformers opens; nothing is left where that fails.

    The family is the one of `jaxablate.config.FAMILIES` that computes the same: biases that a model does not have are
    written as zeros, and a scale of the scores that the family does not have goes into the queries. The ablated stream
    has no counterpart there; its score heads, and all settings, are in the folder ``jaxablate``, by which
    `from_huggingface` gives back the very same config and parameters.

    Args:
      config: of the model.
      params: its parameters.
      folder: replaced where it is there already.
      tokenizer: folder with ``tokenizer.json``, which is copied.
      settings: further keys of config.json, such as ``eos_token_id``.

    Returns:
      The family's name.

    Raises:
      ConfigError: no family computes what the config says; the fields in which the nearest differs are named.
      CheckpointError: parameters are missing, unexpected or of another shape for this config.
      FileError: the folder cannot be written.
    """
    import safetensors.numpy

    name, family, written = _represented(config)
    flat = {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    check_arrays("the parameter tree", "the config", {path: x.shape for path, x in flat.items()}, _shapes(config))
    adapted = _adapted(flat, config, family, written)
    tensors = {t.name: np.ascontiguousarray(t.joined([adapted[path] for path in t.paths]))
               for t in family.all_tensors(written)}
    values = {
        "architectures": [family.architecture], "bos_token_id": None, "dtype": config.param_dtype,
        "eos_token_id": None, "model_type": name, "pad_token_id": None, "transformers_version": _WRITTEN_AS,
    } | family.write(written) | dict(settings or {})
    read = family.model_config(values, CONFIG)
    types = {"param_dtype": config.param_dtype, "compute_dtype": config.param_dtype}
    given_back = _undone(read, config, {path: adapted[path] for t in family.all_tensors(read)
                                                for path in t.paths})
    own = {path: x for path, x in flat.items()
           if path not in given_back or not np.array_equal(given_back[path].astype(x.dtype), x)}
    generation = {"_from_model_config": True, "transformers_version": _WRITTEN_AS} | {
        key: values[key] for key in ("bos_token_id", "eos_token_id") if values[key] is not None}
    with files.atomic_folder(folder) as staging:
        files.write_json(staging / CONFIG, dict(sorted(values.items())))
        files.write_json(staging / "generation_config.json", generation)
        safetensors.numpy.save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        if own or dataclasses.replace(read, **types) != config:
            files.write_json(staging / OURS / OUR_CONFIG, to_dict(config))
            safetensors.numpy.save_file({path: np.ascontiguousarray(x) for path, x in own.items()},
                                        staging / OURS / OUR_WEIGHTS)
        for file in TOKENIZER_FILES if tokenizer is not None else ():
            if (Path(tokenizer or "") / file).is_file():
                files.write(staging / file, (Path(tokenizer or "") / file).read_bytes())
    return name


def read_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = Path(folder).expanduser() / CONFIG
    try:
        return files.read_json(path, what="a model's config.json", fix="restore it")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give a folder with {CONFIG} and {WEIGHTS}, as save_pretrained "
                              "of transformers writes it") from error
    except FileError as error:
        raise CheckpointError(str(error)) from error


def kept_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of a folder's ``config.json`` that no `ModelConfig` has and an export should have again, such as the ids
    of special tokens."""
    about = {"architectures", "dtype", "model_type", "torch_dtype", "transformers_version", "_name_or_path"}
    return {name: value for name, value in read_settings(folder).items() if name in HARMLESS - about}


# Tensors of a folder -------------------------------------------------------------------------------------------------


class _Weights(NamedTuple):
    """Tensors of one or several open files."""

    kinds: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    file_of: dict[str, files.StoredTensors]

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        try:
            return self.file_of[name].read(name)
        except FileError as error:
            raise CheckpointError(str(error)) from error


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[_Weights]:
    with contextlib.ExitStack() as stack:
        if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
            opened = {WEIGHTS: _open_file(stack, folder / WEIGHTS)}
            listed = dict.fromkeys(opened[WEIGHTS].shapes, WEIGHTS)
        else:
            listed = _weight_map(folder)
            opened = {name: _open_file(stack, folder / name) for name in sorted(set(listed.values()))}
            lost = [name for name, file in listed.items() if name not in opened[file].shapes]
            if lost:
                raise CheckpointError(f"{folder / listed[lost[0]]} lacks {lost[0]}, which {INDEX} says it has"
                                      f"{f', and {len(lost) - 1} more' if lost[1:] else ''}; restore the file")
            # What the index does not list is no part of the model.
        yield _Weights({name: opened[file].kinds[name] for name, file in listed.items()},
                       {name: opened[file].shapes[name] for name, file in listed.items()},
                       {name: opened[file] for name, file in listed.items()})


@contextlib.contextmanager
def _open_ours(folder: Path) -> Iterator[_Weights]:
    """Parameters that only this program knows, by path."""
    path = folder / OURS / OUR_WEIGHTS
    with contextlib.ExitStack() as stack:
        if not (folder / OURS).is_dir():
            yield _Weights({}, {}, {})
            return
        file = _open_file(stack, path)
        yield _Weights(file.kinds, file.shapes, dict.fromkeys(file.shapes, file))


def _open_file(stack: contextlib.ExitStack, path: Path) -> files.StoredTensors:
    try:
        return stack.enter_context(files.open_safetensors(path))
    except FileNotFoundError as error:
        others = sorted(p.name for p in path.parent.glob("*.bin")) if path.name == WEIGHTS else []
        fix = f"{others[0]} may run code and is not read: save the model as safetensors" if others else "bring it back"
        raise CheckpointError(f"{path} does not exist; {fix}") from error
    except FileError as error:
        raise CheckpointError(str(error)) from error


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        values = files.read_json(path, what="an index of safetensors", fix="restore it")
    except FileError as error:
        raise CheckpointError(str(error)) from error
    listed = values.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path} has no weight_map from tensors to files; restore it")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path} says that {name:.80} is in {file!r:.80}, which is no .safetensors file of "
                                  "this folder; restore it")
    return listed


def _parameters(folder: Path, family: Family, stored: ModelConfig, config: ModelConfig, weights: _Weights,
                ours: _Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter of the config in turn, finite and of its type."""
    names = _names(folder, family, stored, weights)
    shapes = _shapes(config) if ours.shapes or config.gated else {}
    wanted = {path for t in family.all_tensors(stored) for path in t.paths} - set(ours.shapes)
    if shapes:
        given = {path for path in wanted if path in shapes or not _is_bias(path)} | set(ours.shapes)
        check_arrays(f"{folder} with its {OURS}/{OUR_WEIGHTS}", f"{OURS}/{OUR_CONFIG}",
                     {path: ours.shapes.get(path, shapes.get(path)) for path in given}, shapes)
    for name, tensor in names.items():
        array = _finite(folder, name, weights.read(name), config.param_dtype)
        parts = dict(zip(tensor.paths, tensor.apart(array), strict=True))
        yield from _undone(stored, config, {k: v for k, v in parts.items() if k in wanted}).items()
    for path in ours.shapes:
        yield path, _finite(folder, path, ours.read(path), config.param_dtype)


def _names(folder: Path, family: Family, config: ModelConfig, weights: _Weights) -> dict[str, Tensor]:
    """The tensor behind each name of a folder, after checking that all are there and none else."""
    expected = {}
    for tensor in family.all_tensors(config):
        short = tensor.name.removeprefix(family.prefix)
        expected[short if tensor.name not in weights.shapes and short in weights.shapes else tensor.name] = tensor
    shapes = {name: shape for name, shape in weights.shapes.items()
              if name in expected or not re.fullmatch(family.buffers, name)}
    if config.tied and family.head in shapes:
        shapes.pop(family.head)
        table = next(name for name, tensor in expected.items() if tensor.paths == ("embed/embedding",))
        if table in shapes and not np.array_equal(weights.read(family.head), weights.read(table)):
            raise CheckpointError(f"{folder} has a {family.head} that is not its {table}, though tie_word_embeddings "
                                  f"of {CONFIG} says that they are one matrix")
    check_arrays(str(folder), f"its {CONFIG}", shapes, {name: tensor.shape for name, tensor in expected.items()})
    wrong = [f"{name} is {weights.kinds[name]}" for name in expected if weights.kinds[name] not in _FLOATS]
    if wrong:
        raise CheckpointError(f"{folder} has tensors that are no floats: {', '.join(wrong[:5])}; only "
                              f"{', '.join(sorted(_FLOATS))} are weights")
    return expected


def _finite(folder: Path, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{folder}: {name} has {np.count_nonzero(~np.isfinite(array)):,} values that are NaN or "
                              "infinite; the weights are damaged, or too large for their type")
    return array


def _placed(flat: Iterator[tuple[str, np.ndarray]], config: ModelConfig, mesh: Mesh | None) -> dict[str, Any]:
    """Parameters by path, copies in memory of their own or on the devices of a mesh."""
    if mesh is None:
        return {path: np.array(x, config.param_dtype, order="C") for path, x in flat}
    if config.param_dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("float64 parameters on devices need jax_enable_x64; set JAX_ENABLE_X64=1, or give "
                          "param_dtype='float32'")
    placed = {}
    for path, x in flat:
        parts = path.split("/")
        tree: Any = jax.ShapeDtypeStruct(x.shape, x.dtype)
        for part in reversed(parts):
            tree = {part: tree}
        place = jax.tree.leaves(param_shardings(mesh, tree))[0]
        placed[path] = jax.make_array_from_callback(x.shape, place, lambda index, x=x: np.ascontiguousarray(x[index]))
    return placed


# What a family does not have -----------------------------------------------------------------------------------------


def _represented(config: ModelConfig) -> tuple[str, Family, ModelConfig]:
    """The family that computes what a model computes, and the config of that family which does.

    Raises:
      ConfigError: there is none; the fields in which the nearest differs are named.
    """
    wanted = to_dict(canonical(config))
    found, different = [], {}
    for name, family in FAMILIES.items():
        values = family.write(dataclasses.replace(canonical(config), d_mlp=config.d_mlp))
        try:
            read = family.model_config(values, CONFIG)
        except ConfigError as error:
            different[name] = [str(error)]
            continue
        there = to_dict(canonical(read))
        fields = {field for field, value in wanted.items() if there[field] != value}
        biases = {f for f in fields if f in ("qkv_bias", "out_bias", "mlp_bias") and there[f]}
        scales = fields & {"scale_attention", "attention_scale_width"}
        if fields == biases | scales:
            found.append((len(biases) + 10 * len(scales), name, family, read))
        different[name] = [f"{field}={wanted[field]!r}" for field in sorted(fields - biases - scales)]
    if not found:
        nearest = min(different, key=lambda name: len(different[name]))
        raise ConfigError(f"no family of {', '.join(FAMILIES)} computes what this model does; nearest is {nearest}, "
                          f"which does not have {', '.join(different[nearest])}")
    _, name, family, read = min(found, key=lambda x: x[0])
    return name, family, read


def _adapted(flat: Flat, config: ModelConfig, family: Family, written: ModelConfig) -> Flat:
    """Parameters of a config as those of the config that a family has in its place."""
    dtype, ratio = np.dtype(config.param_dtype), config.attention_scale / written.attention_scale
    out = {path: x * dtype.type(ratio) if ratio != 1 and _is_query(path) else x for path, x in flat.items()}
    for tensor in family.all_tensors(written):
        for path, shape in zip(tensor.paths, tensor.shapes, strict=True):
            if path not in out and _is_bias(path):
                out[path] = np.zeros(shape, dtype)
    return out


def _undone(stored: ModelConfig, config: ModelConfig, flat: Flat) -> Flat:
    """The inverse of `_adapted`, of some of the parameters."""
    ratio = stored.attention_scale / config.attention_scale
    out = {path: x * x.dtype.type(ratio) if ratio != 1 and _is_query(path) else x for path, x in flat.items()}
    has = {"query": config.qkv_bias, "key": config.qkv_bias, "value": config.qkv_bias, "out": config.out_bias,
           "gate": config.mlp_bias, "up": config.mlp_bias, "down": config.mlp_bias}
    for path in [path for path in out if _is_bias(path) and not has.get(path.split("/")[-2], True)]:
        if np.any(out.pop(path)):
            raise CheckpointError(f"{path} of the folder is not zero, but {OURS}/{OUR_CONFIG} says that the model has "
                                  f"no such bias; remove {OURS} to read the model without it")
    return out


def _is_query(path: str) -> bool:
    return "/attention/query/" in path


def _is_bias(path: str) -> bool:
    return path.endswith("/bias") and not path.rpartition("/")[0].rpartition("/")[2].startswith("ln_")


def _our_config(folder: Path, stored: ModelConfig) -> ModelConfig | None:
    """The config that this program has written beside a folder's own; None where there is none."""
    path = folder / OURS / OUR_CONFIG
    if not (folder / OURS).is_dir():
        return None
    try:
        config = from_dict(ModelConfig, files.read_json(path, what="a model's settings", fix="restore it"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; restore it, or remove {folder / OURS}") from error
    except (FileError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or remove {folder / OURS}") from error
    if canonical(_represented(config)[2]) != canonical(stored):
        raise CheckpointError(f"{path} is of another model than {folder / CONFIG}; remove {folder / OURS} to read what "
                              f"{CONFIG} says")
    return config


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path."""
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    config = dataclasses.replace(config, param_dtype="float32", compute_dtype="float32")  # no shape depends on types
    made: Any = jax.eval_shape(SelfAblatingTransformer(config).init, jax.random.key(0), tokens)
    leaves: Sequence[Any] = jax.tree_util.tree_leaves_with_path(made["params"])
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
