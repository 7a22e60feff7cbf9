"""Autoencoders on disk, in SAELens's layout, and the state of a training run.

A folder holds ``sae_weights.safetensors`` (W_enc [D, S], b_enc, W_dec [S, D], b_dec, and threshold of a jumprelu),
``cfg.json`` and, where densities are known, ``sparsity.safetensors`` (log10 of each latent's density). cfg.json is
flat, as SAELens up to version 5 writes it and later versions still read it. What SAELens has no word for is under the
key ``jaxablate``, which it passes over. batchtopk becomes a jumprelu, as in SAELens. `jaxablate.features.saelens` says
what folders that SAELens wrote mean here.
"""

import dataclasses
import hashlib
import json
import os
import warnings
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
from jaxablate.features import saelens
from jaxablate.features.config import SaeRun, SaeTrainConfig
from jaxablate.features.sae import AutoencoderConfig, SparseAutoencoder, plain
from jaxablate.features.sites import Moments, find_site
from jaxablate.features.training import TrainState, abstract_state
from jaxablate.types import Params

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
MOMENTS = "moments.safetensors"
FOLDER = "autoencoders"
"""Folder of a run's working directory that its autoencoders lie in."""
_EMPTY = 1e-10
"""Added to densities before the logarithm, as in SAELens."""


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
    weights = {name: np.asarray(getattr(sae, name), order="C") for name in saelens.weight_shapes(config)}
    if wrong := [name for name, array in weights.items() if not np.all(np.isfinite(array))]:
        raise DataError(f"{', '.join(wrong)} of the autoencoder at {name} are NaN or infinite; nothing was written")
    contents = {WEIGHTS: safetensors.numpy.save(weights)}
    if density is not None:
        logs = np.log10(np.asarray(density, np.float32) + np.float32(_EMPTY))
        contents[SPARSITY] = safetensors.numpy.save({"sparsity": logs})
    if moments is not None:
        arrays = {name: np.asarray(getattr(moments, name), order="C") for name in ("mean", "root")}
        contents[MOMENTS] = safetensors.numpy.save(arrays)
    for name_of_file, content in contents.items():
        files.write(folder / name_of_file, content)
    own = {"site": name, "config": plain(config), "details": dict(details or {}),
           "model": None if params is None else fingerprint(params),
           "crc": {name_of_file: zlib.crc32(content) for name_of_file, content in contents.items()}}
    settings = saelens.settings_of(config, name, site, model, model_name, dataset) | {"jaxablate": own}
    files.write_json(folder / CONFIG, settings, indent=1)
    return folder


def load(folder: str | os.PathLike[str], model: ModelConfig | None = None, params: Params = None) -> SavedAutoencoder:
    """Reads an autoencoder that this package or SAELens wrote (`jaxablate.features.saelens` says of what kinds).

    It is checked against ``model`` and ``params`` of the decoder it is to be used with, where these are given: its
    site and width, and the fingerprint where one was saved. Warns where it is of float64 and JAX has no such type
    (``jax_enable_x64``); it is of float32 then.

    Raises:
      DataError: files that are missing, damaged or of a kind this cannot read, or weights that are not finite.
      ConfigError: it belongs to another model, or its width is not the site's.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    own = settings.get("jaxablate") or _Own()
    config, weights = _opened(folder, settings, own)
    name = own.get("site") or saelens.site_name(settings)
    density, moments = _density(folder, config), _moments(folder, config)
    _check_unchanged(folder, own.get("crc") or {})
    if config.dtype == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        warnings.warn(f"{folder} is of float64 and becomes float32; jax_enable_x64 keeps it as it is", stacklevel=2)
        config = dataclasses.replace(config, dtype="float32")
    arrays = {"threshold": jnp.zeros(config.d_sae, config.dtype)}
    arrays |= {weight: jnp.asarray(array, config.dtype) for weight, array in weights.items()}
    sae = SparseAutoencoder(**arrays, config=config)
    if model is not None:
        find_site(model, name, config.d_in, f"{folder}: the autoencoder")
    of = own.get("model")
    if params is not None and of not in (None, fingerprint(params)):
        raise ConfigError(f"{folder} belongs to another model: its parameters have fingerprint {of[:12]}..., "
                          f"these {fingerprint(params)[:12]}...; use the model it was trained on")
    return SavedAutoencoder(sae, name, density, own.get("details") or {}, of, moments)


def export(workdir: Path, to: Path, model: ModelConfig, params: Params, model_name: str
           ) -> tuple[list[Path], list[tuple[str, str]]]:
    """Writes a run's autoencoders once more, for the clean stream of its model as other programs open it.

    They lie in ``to`` under their own names, with TransformerLens's hooks and ``model_name``, what SAELens is to open
    the exported model by. Left out are controls, and those of sites that the exported model has not.

    Returns:
      (folders written, pairs (folder, why) of those left out).

    Raises:
      FileError: a file cannot be written.
    """
    written, left_out = [], []
    for folder in autoencoder_folders(workdir):
        try:
            saved = load(folder, model, params)
        except (ConfigError, DataError) as error:
            left_out.append((folder.name, str(error)))
            continue
        identity = saved.details.get("identity")
        control = identity.get("control", "none") if isinstance(identity, dict) else "none"
        if control != "none":
            left_out.append((folder.name, f"it is a control, {control}"))
        elif find_site(model, saved.name).stream != "clean":
            left_out.append((folder.name, f"the exported model has no {saved.name}"))
        else:
            written.append(save(to / folder.name, saved.sae, saved.name, model=model, params=params,
                                density=saved.density, model_name=model_name, details=saved.details))
    return written, left_out


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


class _Own(TypedDict, total=False):
    """What this package keeps in cfg.json."""

    site: str | None
    model: str | None
    config: dict[str, Any] | None
    details: dict[str, Any] | None
    crc: dict[str, int] | None
    """CRC-32 of the other files, by name; the format has none."""


class _Settings(saelens.Settings, total=False):
    """What is read of cfg.json."""

    jaxablate: _Own | None


class _Scaler(TypedDict):
    """What is read of the file of a training run's scale."""

    scaling_factor: float | None


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
    saelens.check_weights(path, arrays, shapes)
    return {name: arrays[name] for name in shapes}


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


def _opened(folder: Path, settings: _Settings, own: _Own) -> tuple[AutoencoderConfig, dict[str, np.ndarray]]:
    """Config and weights: this package's where it wrote the folder, else what SAELens's mean."""
    try:
        if config := own.get("config"):
            msgspec.convert(config, AutoencoderConfig)
            ours = AutoencoderConfig(**config)
            return ours, _read_finite(folder / WEIGHTS, saelens.weight_shapes(ours))
        theirs = saelens.config_of(folder / CONFIG, settings)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise DataError(f"{folder / CONFIG} lacks a setting or has an unknown one: {error}") from error
    arrays, _ = _read_tensors(folder / WEIGHTS)
    scaler = saelens.Scaler(_scale(folder), _whitening(folder, theirs))
    return theirs, saelens.weights_of(folder / WEIGHTS, settings, theirs, arrays, scaler)


def _scale(folder: Path) -> float | None:
    """Factor by which a training run of SAELens multiplied activations; None where there is no file of it."""
    if not (folder / saelens.SCALER).is_file():
        return None
    try:
        values = files.read_json(folder / saelens.SCALER, _Scaler, what="a scale of activations", fix="restore it")
    except (OSError, FileError) as error:
        raise DataError(f"{folder / saelens.SCALER} cannot be read ({error})") from error
    factor = values["scaling_factor"]
    if factor is not None and not 0 < factor < float("inf"):
        raise DataError(f"{folder / saelens.SCALER}: scaling_factor={factor} must be a number above 0")
    return factor


def _whitening(folder: Path, config: AutoencoderConfig) -> dict[str, np.ndarray] | None:
    """The map by which a training run of SAELens whitened activations; None where there is no file of it."""
    path = folder / saelens.WHITENING
    return _read_finite(path, saelens.whitening_shapes(config)) if path.is_file() else None


def _leaves(state: TrainState) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _identity(runs: Sequence[SaeRun], config: AutoencoderConfig, settings: SaeTrainConfig) -> str:
    parts = {"runs": [dataclasses.asdict(run) for run in runs], "config": plain(config),
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
