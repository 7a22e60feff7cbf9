"""Autoencoders on disk, in SAELens's layout, and the state of a training run.

A folder holds ``sae_weights.safetensors`` (W_enc [D, S], b_enc, W_dec [S, D], b_dec, and threshold of a jumprelu),
``cfg.json`` and, where densities are known, ``sparsity.safetensors`` (log10 of each latent's density). cfg.json is
flat, as SAELens up to version 5 writes it and later versions still read it. What SAELens has no word for is under the
key ``jaxablate``, which it passes over. batchtopk becomes a jumprelu, as in SAELens.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxablate import files
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError, FileError
from jaxablate.features.config import SaeRun, SaeTrainConfig
from jaxablate.features.sae import ARCHITECTURES, AutoencoderConfig, SparseAutoencoder
from jaxablate.features.sites import Moments, Site, find_site
from jaxablate.features.training import TrainState, abstract_state
from jaxablate.types import Params

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
MOMENTS = "moments.safetensors"
FOLDER = "autoencoders"
"""Folder of a run's working directory that its autoencoders lie in."""
_EMPTY = 1e-10
"""Added to densities before the logarithm, as in SAELens."""
_HOOKS = {
    "resid_pre": "hook_resid_pre", "head_out": "attn.hook_z", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
}
"""Field -> its name in TransformerLens within a block."""


@dataclasses.dataclass(frozen=True)
class SavedAutoencoder:
    """An autoencoder of raw activations, from disk."""

    sae: SparseAutoencoder
    name: str
    """Where its activations are from: a site of a decoder, or any name."""
    density: np.ndarray | None
    """[S] share of tokens for which a latent is active."""
    details: Mapping[str, Any]
    """What was saved with it, such as run and settings."""
    fingerprint: str | None = None
    """Digest of the parameters of the decoder whose activations it was trained on; None where no model is named."""
    moments: Moments | None = None
    """Moments, with one site, of the vectors that a Gaussian control was trained on; None for other autoencoders."""


def fingerprint(params: Params) -> str:
    """SHA-256 of a model's parameters, names, types and shapes included: tells one model from another.

    Stored autoencoders are recognised by it, so it stays as it is beside the shorter `Run.digest`.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(((jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))):
        array = np.asarray(leaf, order="C")
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def autoencoder_folders(workdir: Path) -> list[Path]:
    """Folders of the autoencoders in a run's working directory, by name."""
    return sorted(path.parent for path in (workdir / FOLDER).glob(f"*/{CONFIG}"))


def identity_digest(identity: Any) -> str:
    """Eight hex digits of all that decides an autoencoder's weights, a JSON-able value."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def without_seed(identity: Mapping[str, Any]) -> str:
    """Digest of what autoencoders have in common that differ in the seed of their weights alone."""
    run = {name: value for name, value in identity["run"].items() if name != "seed"}
    return identity_digest({**identity, "run": run})


def hook_name(site: Site) -> str:
    """TransformerLens's name of a site, ``ablated.`` before it in the stream that it does not know."""
    prefix = "" if site.stream == "clean" else f"{site.stream}."
    return f"{prefix}blocks.{site.layer}.{_HOOKS[site.field]}"


def save(
    folder: str | os.PathLike[str], sae: SparseAutoencoder, name: str, *, model: ModelConfig | None = None,
    params: Params = None, density: np.ndarray | None = None, model_name: str = "self-ablating-transformer",
    dataset: str = "", details: Mapping[str, Any] | None = None, moments: Moments | None = None,
) -> Path:
    """Writes one autoencoder of raw activations (the scale folded in) so that SAELens can open it; returns the folder.

    Each file appears whole or not at all, cfg.json last. ``name`` is where the activations are from: a site of
    ``model``, or without a model any name. The fingerprint of the decoder's ``params`` is saved, so that another model
    is refused later. ``density``, ``details`` (JSON-able) and ``moments`` are those of `SavedAutoencoder`;
    ``model_name`` and ``dataset`` are for SAELens.

    Raises:
      ConfigError: the model has no such site, or the autoencoder has not its width.
      DataError: weights that are not finite.
      FileError: the folder cannot be written.
    """
    import safetensors.numpy  # only files need it

    folder, config = Path(folder), sae.config
    site = None if model is None else find_site(model, name, config.d_in, f"{folder}: the autoencoder")
    weights = {name: np.asarray(getattr(sae, name), order="C") for name in _weight_shapes(config)}
    if wrong := [name for name, array in weights.items() if not np.all(np.isfinite(array))]:
        raise DataError(f"{', '.join(wrong)} of the autoencoder at {name} are NaN or infinite; nothing was written")
    contents = {WEIGHTS: safetensors.numpy.save(weights)}
    if density is not None:
        logs = np.log10(np.asarray(density, np.float32) + np.float32(_EMPTY))
        contents[SPARSITY] = safetensors.numpy.save({"sparsity": logs})
    if moments is not None:
        arrays = {"mean": np.asarray(moments.mean), "root": np.asarray(moments.root)}
        contents[MOMENTS] = safetensors.numpy.save(arrays)
    for name_of_file, content in contents.items():
        files.write(folder / name_of_file, content)
    topk = config.architecture == "topk"
    settings = {  # all that SAELens asks for
        "architecture": config.kind.saelens or config.architecture, "d_in": config.d_in, "d_sae": config.d_sae,
        "dtype": config.dtype, "device": "cpu", "hook_name": hook_name(site) if site else name,
        "hook_layer": site.layer if site else 0, "hook_head_index": None,
        "activation_fn_str": "topk" if topk else "relu", "activation_fn_kwargs": {"k": int(config.k)} if topk else {},
        "apply_b_dec_to_input": config.center, "finetuning_scaling_factor": False, "normalize_activations": "none",
        "context_size": model.context_length if model else None, "prepend_bos": False,
        "dataset_trust_remote_code": False, "sae_lens_training_version": None, "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {}, "model_name": model_name, "dataset_path": dataset,
        "jaxablate": {"site": name, "config": dataclasses.asdict(config), "details": dict(details or {}),
                      "model": None if params is None else fingerprint(params),
                      "crc": {name_of_file: zlib.crc32(content) for name_of_file, content in contents.items()}},
    }
    files.write_json(folder / CONFIG, settings, indent=1)
    return folder


def load(folder: str | os.PathLike[str], model: ModelConfig | None = None, params: Params = None) -> SavedAutoencoder:
    """Reads an autoencoder that this package or SAELens wrote.

    It is checked against ``model`` and ``params`` of the decoder it is to be used with, where these are given: its
    site and width, and the fingerprint where one was saved.

    Raises:
      DataError: files that are missing, damaged or of a kind this cannot read, or weights that are not finite.
      ConfigError: it belongs to another model, or its width is not the site's.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    own = settings.get("jaxablate") or _Own()
    config, name = _config(folder, settings, own), own.get("site") or _name(settings)
    shapes = _weight_shapes(config)
    weights = _read_finite(folder / WEIGHTS, shapes)
    density, moments = _density(folder, config), _moments(folder, config)
    _check_unchanged(folder, own.get("crc") or {})
    arrays = {"threshold": jnp.zeros(config.d_sae, config.dtype)}
    arrays |= {weight: jnp.asarray(weights[weight], config.dtype) for weight in shapes}
    sae = SparseAutoencoder(**arrays, config=config)
    if model is not None:
        find_site(model, name, config.d_in, f"{folder}: the autoencoder")
    of = own.get("model")
    if params is not None and of not in (None, fingerprint(params)):
        raise ConfigError(f"{folder} belongs to another model: its parameters have fingerprint {of[:12]}..., "
                          f"these {fingerprint(params)[:12]}...; use the model it was trained on")
    return SavedAutoencoder(sae, name, density, own.get("details") or {}, of, moments)


def save_state(
    path: str | os.PathLike[str], state: TrainState, runs: Sequence[SaeRun], config: AutoencoderConfig,
    settings: SaeTrainConfig,
) -> None:
    """Writes a training state to one ``.safetensors`` file; a run that goes on from it makes the same numbers.

    The state is one between two rounds, as ``progress`` of `train` is given it.

    Raises:
      FileError: the file cannot be written.
    """
    import safetensors.numpy

    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _leaves(state).items()}
    metadata = {"identity": _identity(runs, config, settings), "crc": _crc(arrays)}
    files.write(path, safetensors.numpy.save(arrays, metadata=metadata))


def load_state(
    path: str | os.PathLike[str], runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig
) -> TrainState:
    """Reads a training state back.

    Raises:
      DataError: the file is missing, damaged, or of other runs or settings.
    """
    (arrays, metadata), like = _read_tensors(Path(path)), abstract_state(runs, config, settings)
    if (identity := metadata.get("identity", "{}")) != (own := _identity(runs, config, settings)):
        try:
            there = files.parse_json(identity, _Identity, what="a training state", fix="", where=str(path))
        except FileError as error:
            raise DataError(f"{path} is damaged: it does not say what it is a state of") from error
        raise DataError(f"{path} is of other runs or settings: {_difference(there, json.loads(own))}; "
                        "go on with those, or start anew with another file")
    shapes = {name: (x.shape, np.dtype(x.dtype)) for name, x in _leaves(like).items()}
    if {name: (x.shape, x.dtype) for name, x in arrays.items()} != shapes:
        raise DataError(f"{path} is damaged: its arrays do not have the shapes of its settings")
    crc = _crc(arrays)
    if metadata.get("crc", crc) != crc:
        raise DataError(f"{path} is damaged: its arrays are not those that were saved")
    return jax.tree.unflatten(jax.tree.structure(like), [jax.device_put(arrays[name]) for name in shapes])


def _crc(arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32 of all arrays, by name; the file format has none."""
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ravel(arrays[name]).view(np.uint8).data, value)
    return str(value)


def _weight_shapes(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Weights that belong into the file, by name."""
    shapes = {"W_enc": (config.d_in, config.d_sae), "b_enc": (config.d_sae,), "W_dec": (config.d_sae, config.d_in),
              "b_dec": (config.d_in,)}
    return shapes | ({"threshold": (config.d_sae,)} if config.kind.has_threshold else {})


class _Own(TypedDict, total=False):
    """What this package keeps in cfg.json."""

    site: str | None
    model: str | None
    config: dict[str, Any] | None
    details: dict[str, Any] | None
    crc: dict[str, int] | None
    """CRC-32 of the other files, by name; the format has none."""


class _Metadata(TypedDict, total=False):
    hook_name: str | None


class _Kwargs(TypedDict, total=False):
    k: float | None


class _Settings(TypedDict, total=False):
    """What is read of cfg.json; the types of what SAELens leaves open are those of JSON."""

    jaxablate: _Own | None
    metadata: _Metadata | None
    activation_fn_kwargs: _Kwargs | None
    architecture: str
    d_in: int
    d_sae: int
    k: float | None
    apply_b_dec_to_input: bool
    hook_name: str | None
    normalize_activations: Any
    rescale_acts_by_decoder_norm: Any


def _read_settings(folder: Path) -> _Settings:
    try:
        return files.read_json(folder / CONFIG, _Settings, what="an autoencoder's settings", fix="restore it")
    except (OSError, FileError) as error:
        raise DataError(f"{folder} holds no autoencoder: {CONFIG} cannot be read ({error})") from error


def _check_unchanged(folder: Path, crcs: Mapping[str, int]) -> None:
    """Raises DataError where a file that was saved with cfg.json is another one now."""
    for name in (WEIGHTS, SPARSITY, MOMENTS):
        if name in crcs and (folder / name).is_file() and files.crc32(folder / name) != crcs[name]:
            raise DataError(f"{folder / name} is damaged: it is not what was saved; restore it, or train it anew")


def _read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of real numbers, and the metadata."""
    try:
        arrays, metadata = files.read_safetensors(path)
    except (OSError, FileError) as error:
        raise DataError(f"{path} cannot be read or is damaged: {error}") from error
    if wrong := [name for name, array in arrays.items() if not jnp.isdtype(array.dtype, ("real floating", "integral"))]:
        raise DataError(f"{path}: {wrong[0]} of type {arrays[wrong[0]].dtype} is no array of real numbers")
    return arrays, metadata


def _read_finite(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of these shapes whose numbers are all finite."""
    arrays, _ = _read_tensors(path)
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else None
            raise DataError(f"{path}: {name} has shape {found}, {CONFIG} says {shape}")
        if not np.all(np.isfinite(arrays[name])):
            raise DataError(f"{path}: {name} has values that are NaN or infinite; the file is damaged")
    return arrays


def _density(folder: Path, config: AutoencoderConfig) -> np.ndarray | None:
    if not (folder / SPARSITY).is_file():
        return None
    logs = _read_finite(folder / SPARSITY, {"sparsity": (config.d_sae,)})["sparsity"].astype(np.float64)
    if np.any(logs > 1):
        raise DataError(f"{folder / SPARSITY}: densities are shares of tokens, and cannot be above 1")
    return np.maximum(10.0**logs - _EMPTY, 0)


def _moments(folder: Path, config: AutoencoderConfig) -> Moments | None:
    if not (folder / MOMENTS).is_file():
        return None
    width = config.d_in
    arrays = _read_finite(folder / MOMENTS, {"mean": (1, width), "root": (1, width, width)})
    return Moments(jnp.asarray(arrays["mean"]), jnp.asarray(arrays["root"]))


def _config(folder: Path, settings: _Settings, own: _Own) -> AutoencoderConfig:
    """This package's settings where they are there, else what SAELens's mean."""
    scaling = settings.get("normalize_activations", "none")
    if scaling not in ("none", None, False):
        raise DataError(f"{folder / CONFIG}: normalize_activations={scaling!r} is not folded into the weights; fold it")
    if settings.get("rescale_acts_by_decoder_norm"):
        raise DataError(f"{folder / CONFIG}: rescale_acts_by_decoder_norm=true is not folded into the weights; fold it")
    try:
        if config := own.get("config"):
            msgspec.convert(config, AutoencoderConfig)
            return AutoencoderConfig(**config)
        architecture, kwargs = settings.get("architecture", "standard"), settings.get("activation_fn_kwargs") or {}
        k: dict[str, Any] = {"k": settings.get("k", kwargs.get("k"))} if architecture == "topk" else {}
        readable = [kind.name for kind in ARCHITECTURES if kind.saelens in (None, kind.name)]
        if architecture not in readable:
            raise DataError(f"{folder / CONFIG}: architecture={architecture!r} cannot be read; {', '.join(readable)} "
                            "can")
        d_in, d_sae = settings.get("d_in"), settings.get("d_sae")
        if d_in is None or d_sae is None:
            raise KeyError("d_in" if d_in is None else "d_sae")
        return AutoencoderConfig(d_in=d_in, d_sae=d_sae, architecture=architecture,
                                 center=settings.get("apply_b_dec_to_input", True), decoder="free", **k)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise DataError(f"{folder / CONFIG} lacks a setting or has an unknown one: {error}") from error


def _name(settings: _Settings) -> str:
    """This package's name of a hook within a block, else TransformerLens's; newer SAELens keeps it in `metadata`."""
    hook = str(settings.get("hook_name") or (settings.get("metadata") or {}).get("hook_name") or "unnamed")
    block, _, rest = hook.removeprefix("blocks.").partition(".")
    field = {name: field for field, name in _HOOKS.items()}.get(rest)
    return f"clean.layer_{block}.{field}" if hook.startswith("blocks.") and block.isdigit() and field else hook


def _leaves(state: TrainState) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _identity(runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig) -> str:
    parts = {"runs": [dataclasses.asdict(run) for run in runs], "config": dataclasses.asdict(config),
             "settings": dataclasses.asdict(settings)}
    return json.dumps(parts, sort_keys=True)


class _Identity(TypedDict):
    """What a training state is a state of; see `_identity`."""

    runs: list[dict[str, Any]]
    config: dict[str, Any]
    settings: dict[str, Any]


def _difference(there: _Identity, here: _Identity) -> str:
    """The first setting that differs between two identities."""
    for part in ("config", "settings"):
        for name, value in here[part].items():
            if there[part].get(name) != value:
                return f"{name}={there[part].get(name)!r} there, {value!r} here"
    return f"runs={there['runs']} there, {here['runs']} here"
