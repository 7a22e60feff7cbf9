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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.features.config import AutoencoderConfig, SaeRun, SaeTrainConfig
from jaxablate.features.controls import Moments
from jaxablate.features.sae import Autoencoder
from jaxablate.features.sites import FIELDS, Site, find_site
from jaxablate.features.training import TrainState, abstract_state
from jaxablate.files import write

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
MOMENTS = "moments.safetensors"
"""Of a Gaussian control."""
_EMPTY = 1e-10
"""Added to densities before the logarithm, as in SAELens."""
_HOOKS = {
    "resid_pre": "hook_resid_pre", "head_out": "attn.hook_z", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
}
"""Field -> its name in TransformerLens within a block."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """An autoencoder from disk.

    Attributes:
      sae, config: itself, for raw activations.
      site: where it belongs, by this package's name.
      density: [S] share of tokens for which a latent is active, or None.
      details: what was saved with it, such as run and settings.
      fingerprint: of the decoder's parameters, or None.
      moments: mean [1, D] and root of the covariance [1, D, D] of the vectors that a Gaussian control was trained on;
        None of all others.
    """

    sae: Autoencoder
    config: AutoencoderConfig
    site: str
    density: np.ndarray | None
    details: Mapping[str, Any]
    fingerprint: str | None = None
    moments: Moments | None = None


def fingerprint(params: Any) -> str:
    """SHA-256 of a model's parameters, names, types and shapes included: tells one model from another."""
    digest = hashlib.sha256()
    for path, leaf in sorted(((jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))):
        array = np.asarray(leaf, order="C")
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hook_name(site: Site) -> str:
    """TransformerLens's name of a site, ``ablated.`` before it in the stream that it does not know."""
    prefix = "" if site.stream == "clean" else f"{site.stream}."
    return f"{prefix}blocks.{site.layer}.{_HOOKS[site.field]}"


def save_autoencoder(
    folder: str | os.PathLike[str], sae: Autoencoder, config: AutoencoderConfig, site: str, model: ModelConfig, *,
    params: Any = None, density: np.ndarray | None = None, model_name: str = "self-ablating-transformer",
    dataset: str = "", details: Mapping[str, Any] | None = None, moments: Moments | None = None,
) -> Path:
    """Write one autoencoder of raw activations (the scale folded in) so that SAELens can open it.

    Args:
      folder: made if it is not there; each file in it appears whole or not at all, cfg.json last.
      sae, config: the autoencoder.
      site: where it belongs.
      model: the decoder's config.
      params: the decoder's parameters; their fingerprint is saved, so that another model is refused later.
      density: [S] share of tokens for which a latent is active.
      model_name, dataset: for cfg.json.
      details: JSON-able, kept and given back.
      moments: of the vectors that a Gaussian control was trained on, of this one site.

    Returns:
      The folder.

    Raises:
      ConfigError: the site does not exist, or the autoencoder has not its width.
      DataError: weights that are not finite, or a folder that cannot be written.
    """
    import safetensors.numpy  # only files need it

    folder, place = Path(folder), find_site(model, site)
    _check_width(folder, sae.W_enc.shape[0], place)
    threshold = config.architecture in ("batchtopk", "jumprelu")
    names = ("W_enc", "b_enc", "W_dec", "b_dec") + (("threshold",) if threshold else ())
    weights = {name: np.asarray(getattr(sae, name), order="C") for name in names}
    wrong = [name for name, array in weights.items() if not np.all(np.isfinite(array))]
    if wrong:
        raise DataError(f"{', '.join(wrong)} of the autoencoder at {site} are NaN or infinite; nothing was written")
    write(folder / WEIGHTS, safetensors.numpy.save(weights))
    if density is not None:
        logs = np.log10(np.asarray(density, np.float32) + np.float32(_EMPTY))
        write(folder / SPARSITY, safetensors.numpy.save({"sparsity": logs}))
    if moments is not None:
        arrays = {"mean": np.asarray(moments.mean), "root": np.asarray(moments.root)}
        write(folder / MOMENTS, safetensors.numpy.save(arrays))
    settings = _settings(config, place, model) | {"model_name": model_name, "dataset_path": dataset}
    settings["jaxablate"] = {
        "site": site, "config": dataclasses.asdict(config), "details": dict(details or {}),
        "model": None if params is None else fingerprint(params),
    }
    write(folder / CONFIG, json.dumps(settings, indent=1).encode())
    return folder


def _settings(config: AutoencoderConfig, place: Site, model: ModelConfig) -> dict[str, Any]:
    """What SAELens asks of cfg.json."""
    architecture = "jumprelu" if config.architecture == "batchtopk" else config.architecture
    topk = architecture == "topk"
    return {
        "architecture": architecture, "d_in": config.d_in, "d_sae": config.d_sae, "dtype": config.dtype,
        "device": "cpu", "hook_name": hook_name(place), "hook_layer": place.layer, "hook_head_index": None,
        "activation_fn_str": "topk" if topk else "relu", "activation_fn_kwargs": {"k": int(config.k)} if topk else {},
        "apply_b_dec_to_input": config.center, "finetuning_scaling_factor": False, "normalize_activations": "none",
        "context_size": model.context_length, "prepend_bos": False, "dataset_trust_remote_code": False,
        "sae_lens_training_version": None, "neuronpedia_id": None, "model_from_pretrained_kwargs": {},
    }


def load_autoencoder(folder: str | os.PathLike[str], model: ModelConfig | None = None, params: Any = None) -> Saved:
    """Read an autoencoder that this package or SAELens wrote.

    Args:
      folder: with cfg.json and sae_weights.safetensors.
      model: config of the decoder it is to be used with; None checks nothing.
      params: the decoder's parameters, compared with the fingerprint where one was saved.

    Returns:
      `Saved`.

    Raises:
      DataError: files that are missing, damaged or of a kind this cannot read, or weights that are not finite.
      ConfigError: it belongs to another model, or its width is not the site's.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    own = settings.get("jaxablate", {})
    weights = _read_tensors(folder / WEIGHTS)
    config = _config(folder, settings, own)
    site = own.get("site") or _site_name(folder, settings)
    sae = _autoencoder(folder, weights, config)
    if model is not None:
        _check_width(folder, config.d_in, find_site(model, site))
    if params is not None and own.get("model") not in (None, fingerprint(params)):
        raise ConfigError(f"{folder} belongs to another model: its parameters have fingerprint {own['model'][:12]}..., "
                          f"these {fingerprint(params)[:12]}...; use the model it was trained on")
    density = None
    if (folder / SPARSITY).is_file():
        logs = _read_tensors(folder / SPARSITY).get("sparsity")
        density = None if logs is None else np.maximum(10.0 ** logs.astype(np.float64) - _EMPTY, 0)
    return Saved(sae, config, site, density, own.get("details", {}), own.get("model"), _moments(folder, config))


def _moments(folder: Path, config: AutoencoderConfig) -> Moments | None:
    if not (folder / MOMENTS).is_file():
        return None
    found, width = _read_tensors(folder / MOMENTS), config.d_in
    if {name: array.shape for name, array in found.items()} != {"mean": (1, width), "root": (1, width, width)}:
        raise DataError(f"{folder / MOMENTS} must hold mean [1, {width}] and root [1, {width}, {width}]")
    return Moments(jnp.asarray(found["mean"]), jnp.asarray(found["root"]))


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text())
    except OSError as error:
        raise DataError(f"{folder} holds no autoencoder: {CONFIG} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{folder / CONFIG} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{folder / CONFIG} must be an object of settings, got {type(settings).__name__}")
    return settings


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise DataError(f"{path} cannot be read or is damaged: {str(error).splitlines()[0]}") from error


def _config(folder: Path, settings: dict[str, Any], own: dict[str, Any]) -> AutoencoderConfig:
    """Our own settings where they are there, else what SAELens's mean."""
    scaling = settings.get("normalize_activations", "none")
    if scaling not in ("none", None, False):
        raise DataError(f"{folder / CONFIG}: normalize_activations={scaling!r} is not folded into the weights; fold it")
    if settings.get("rescale_acts_by_decoder_norm"):
        raise DataError(f"{folder / CONFIG}: rescale_acts_by_decoder_norm=true is not folded into the weights; fold it")
    try:
        if own.get("config"):
            return AutoencoderConfig(**own["config"])
        architecture, kwargs = settings.get("architecture", "standard"), settings.get("activation_fn_kwargs") or {}
        k = {"k": settings.get("k", kwargs.get("k"))} if architecture == "topk" else {}
        if architecture not in ("standard", "topk", "jumprelu"):
            raise DataError(f"{folder / CONFIG}: architecture={architecture!r} cannot be read; standard, topk and "
                            "jumprelu can")
        return AutoencoderConfig(d_in=settings["d_in"], d_sae=settings["d_sae"], architecture=architecture,
                                 center=settings.get("apply_b_dec_to_input", True), decoder="free", **k)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / CONFIG} lacks a setting or has an unknown one: {error}") from error


def _site_name(folder: Path, settings: dict[str, Any]) -> str:
    """This package's name of a TransformerLens hook; newer versions of SAELens keep it under `metadata`."""
    hook = settings.get("hook_name") or settings.get("metadata", {}).get("hook_name") or ""
    block, _, rest = hook.removeprefix("blocks.").partition(".")
    field = {name: field for field, name in _HOOKS.items()}.get(rest)
    if not hook.startswith("blocks.") or not block.isdigit() or field is None:
        raise DataError(f"{folder / CONFIG}: hook_name={hook!r} is no site of a decoder; sites are {', '.join(FIELDS)}")
    return f"clean.layer_{block}.{field}"


def _autoencoder(folder: Path, weights: dict[str, np.ndarray], config: AutoencoderConfig) -> Autoencoder:
    shapes = {"W_enc": (config.d_in, config.d_sae), "b_enc": (config.d_sae,), "W_dec": (config.d_sae, config.d_in),
              "b_dec": (config.d_in,)}
    if config.architecture in ("batchtopk", "jumprelu"):
        shapes["threshold"] = (config.d_sae,)
    for name, shape in shapes.items():
        found = weights[name].shape if name in weights else None
        if found != shape:
            raise DataError(f"{folder / WEIGHTS}: {name} has shape {found}, {CONFIG} says {shape}")
        if not np.all(np.isfinite(weights[name])):
            raise DataError(f"{folder / WEIGHTS}: {name} has values that are NaN or infinite; the file is damaged")
    zeros = np.zeros(config.d_sae, config.dtype)
    arrays = {name: jnp.asarray(weights[name], config.dtype) for name in shapes}
    return Autoencoder(**({"threshold": jnp.asarray(zeros)} | arrays))


def _check_width(folder: Path, width: int, place: Site) -> None:
    if width != place.width:
        raise ConfigError(f"{folder}: the autoencoder takes activations of width {width}, {place.name} of this model "
                          f"has {place.width}; it belongs to another model or site")


def save_state(
    path: str | os.PathLike[str], state: TrainState, runs: Sequence[SaeRun], config: AutoencoderConfig,
    settings: SaeTrainConfig,
) -> None:
    """Write a training state to one file, whole or not at all; a run that goes on from it makes the same numbers.

    Args:
      path: a ``.safetensors`` file.
      state: between two rounds, as `progress` of `train` is given it.
      runs, config, settings: what it belongs to; another is refused on reading.

    Raises:
      DataError: the file cannot be written.
    """
    import safetensors.numpy

    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named(state).items()}
    metadata = {"identity": _identity(runs, config, settings)}
    write(Path(path), safetensors.numpy.save(arrays, metadata=metadata))


def load_state(
    path: str | os.PathLike[str], runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig
) -> TrainState:
    """Read a training state back.

    Raises:
      DataError: the file is missing, damaged, or of other runs or settings.
    """
    import safetensors

    arrays, like = _read_tensors(Path(path)), abstract_state(runs, config, settings)
    with safetensors.safe_open(path, framework="numpy") as stored:
        identity = (stored.metadata() or {}).get("identity", "{}")
    if identity != _identity(runs, config, settings):
        raise DataError(f"{path} is of other runs or settings: {_difference(identity, runs, config, settings)}; go on "
                        "with those, or start anew with another file")
    if _shapes(arrays) != _shapes(_named(like)):
        raise DataError(f"{path} is damaged: its arrays do not have the shapes of its settings")
    leaves = [jnp.asarray(arrays[name]) for name in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(state: TrainState) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (array.shape, np.dtype(array.dtype)) for name, array in arrays.items()}


def _identity(runs, config, settings) -> str:
    parts = {"runs": [dataclasses.asdict(run) for run in runs], "config": dataclasses.asdict(config),
             "settings": dataclasses.asdict(settings)}
    return json.dumps(parts, sort_keys=True)


def _difference(identity: str, runs, config, settings) -> str:
    """The first setting that differs."""
    there, here = json.loads(identity), json.loads(_identity(runs, config, settings))
    for part in ("config", "settings"):
        for name, value in here[part].items():
            if there.get(part, {}).get(name) != value:
                return f"{name}={there.get(part, {}).get(name)!r} there, {value!r} here"
    return f"runs={there.get('runs')} there, {here['runs']} here"
