"""SAELens's autoencoders: what its ``cfg.json`` and weights mean here, and what ours are called there.

What SAELens 6 writes, and versions back to 2 wrote in flat settings, becomes

    standard, topk, jumprelu                the same. Matryoshka and batchtopk autoencoders saved for inference are
                                            jumprelu there already
    batchtopk, matryoshka_batchtopk         batchtopk, with the threshold that the training run had reached
    gated                                   jumprelu: the gate x W_enc + b_gate is above 0 where the magnitude
                                            x W_enc exp(r_mag) + b_mag is above b_mag - b_gate exp(r_mag), the threshold
                                            (Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated Sparse
                                            Autoencoders, section 3.2)
    rescale_acts_by_decoder_norm            latents are those of unit decoder vectors: norms go into the encoder
    expected_average_only_in,               what a training run's activation_scaler.json, or
    covariance_whitening                    activation_whitening.safetensors, says goes into the weights
    layer_norm, constant_norm_rescale       `AutoencoderConfig.normalize`
    finetuning_scaling_factor               factors go into the decoder

All of it is exact but for rounding. Anything else that would change what comes out is refused by its name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.errors import DataError
from jaxablate.features.sae import ARCHITECTURES, AutoencoderConfig
from jaxablate.features.sites import Site

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
"""Files of a training run's folder: the factor by which activations were multiplied, the affine map that whitened them.
"""
_HOOKS = {
    "resid_pre": "hook_resid_pre", "head_out": "attn.hook_z", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
}
"""Field -> its name in TransformerLens within a block."""
_NORMALIZE = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
"""`AutoencoderConfig.normalize` -> SAELens's normalize_activations."""
_TRAINED = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of training runs, which SAELens saves for inference as jumprelu."""
FOREIGN = {
    "abstopk": "its latents have both signs",
    "matching_pursuit": "its latents are found one after another and not by one encoder",
    "temporal": "its latents are of sequences",
    **dict.fromkeys(("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
                    "it reconstructs another site than it reads"),
}
"""Architectures of SAELens that autoencoders here cannot be, and why."""


class Scaler(NamedTuple):
    """What a training run did to activations; None for what its folder does not say."""

    scale: float | None = None
    whitening: Mapping[str, np.ndarray] | None = None
    """``mean`` [D], ``matrix`` [D, D] and ``inverse_matrix`` [D, D]: z = (x - mean) matrix."""


class _Metadata(TypedDict, total=False):
    hook_name: str | None


class _Kwargs(TypedDict, total=False):
    k: float | None


class Settings(TypedDict, total=False):
    """What is read of SAELens's cfg.json; the types of what it leaves open are those of JSON."""

    metadata: _Metadata | None
    activation_fn_kwargs: _Kwargs | None
    activation_fn_str: str | None
    activation_fn: str | None
    architecture: str
    d_in: int
    d_sae: int
    dtype: str | None
    k: float | None
    apply_b_dec_to_input: bool
    hook_name: str | None
    hook_point: str | None
    reshape_activations: str | None
    normalize_activations: Any
    rescale_acts_by_decoder_norm: bool | None
    finetuning_scaling_factor: bool | None


def hook_name(site: Site) -> str:
    """TransformerLens's name of a site, ``ablated.`` before it in the stream that it does not know."""
    prefix = "" if site.stream == "clean" else f"{site.stream}."
    return f"{prefix}blocks.{site.layer}.{_HOOKS[site.field]}"


def site_name(settings: Settings) -> str:
    """This package's name of a hook within a block, else TransformerLens's; newer SAELens keeps it in `metadata`."""
    flat = settings.get("hook_name") or settings.get("hook_point")
    hook = str(flat or (settings.get("metadata") or {}).get("hook_name") or "unnamed")
    stream = "ablated" if hook.startswith("ablated.") else "clean"
    block, _, rest = hook.removeprefix("ablated.").removeprefix("blocks.").partition(".")
    field = {name: field for field, name in _HOOKS.items()}.get(rest)
    inside = hook.removeprefix("ablated.").startswith("blocks.") and block.isdigit()
    return f"{stream}.layer_{block}.{field}" if inside and field else hook


def settings_of(config: AutoencoderConfig, name: str, site: Site | None, model: ModelConfig | None, model_name: str,
                dataset: str) -> dict[str, Any]:
    """All that SAELens asks for, in the flat form of versions up to 5, which later ones still read."""
    topk = config.architecture == "topk"
    return {
        "architecture": config.kind.saelens or config.architecture, "d_in": config.d_in, "d_sae": config.d_sae,
        "dtype": config.dtype, "device": "cpu", "hook_name": hook_name(site) if site else name,
        "hook_layer": site.layer if site else 0, "hook_head_index": None,
        "activation_fn_str": "topk" if topk else "relu", "activation_fn_kwargs": {"k": int(config.k)} if topk else {},
        "apply_b_dec_to_input": config.center, "finetuning_scaling_factor": False,
        "normalize_activations": _NORMALIZE[config.normalize],
        "context_size": model.context_length if model else None, "prepend_bos": False,
        "dataset_trust_remote_code": False, "sae_lens_training_version": None, "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {}, "model_name": model_name, "dataset_path": dataset,
    }


def weight_shapes(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Weights of an autoencoder of ours, by name."""
    return _shapes(config.d_in, config.d_sae) | ({"threshold": (config.d_sae,)} if config.kind.has_threshold else {})


def _shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}


def config_of(where: Any, settings: Settings) -> AutoencoderConfig:
    """What SAELens's settings are here; ``where`` names the file in errors.

    Raises:
      DataError: an architecture, activation function or normalisation of the input that cannot be had here.
      KeyError: a setting is missing.
    """
    architecture, normalize = _architecture(where, settings), _normalize(where, settings)
    if (reshape := settings.get("reshape_activations")) not in (None, "none", "hook_z"):
        raise DataError(f"{where}: reshape_activations={reshape!r} cannot be read; none and hook_z can")
    d_in, d_sae = settings.get("d_in"), settings.get("d_sae")
    if d_in is None or d_sae is None:
        raise KeyError("d_in" if d_in is None else "d_sae")
    ours = {"gated": "jumprelu", **dict.fromkeys(_TRAINED, "batchtopk")}.get(architecture, architecture)
    k = settings.get("k", (settings.get("activation_fn_kwargs") or {}).get("k"))
    if ARCHITECTURES[ours].uses_k and k is None:
        raise KeyError("k")
    options: dict[str, Any] = {"k": k} if ARCHITECTURES[ours].uses_k else {}
    dtype = "float64" if str(settings.get("dtype")).endswith("float64") else "float32"
    return AutoencoderConfig(d_in=d_in, d_sae=d_sae, architecture=ours, normalize=normalize, dtype=dtype,
                             center=settings.get("apply_b_dec_to_input", True), decoder="free", **options)


def _architecture(where: Any, settings: Settings) -> str:
    """Its architecture, which older versions said to be standard where the activation function was topk."""
    architecture = settings.get("architecture", "standard")
    activation = settings.get("activation_fn_str") or settings.get("activation_fn") or "relu"
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    readable = [*(kind.name for kind in ARCHITECTURES if kind.saelens in (None, kind.name)), "gated", *_TRAINED]
    if architecture not in readable:
        reason = f": {FOREIGN[architecture]}" if architecture in FOREIGN else ""
        raise DataError(f"{where}: architecture={architecture!r} cannot be read{reason}; {', '.join(readable)} can")
    if activation not in ("relu", "topk") or (activation == "topk" and architecture != "topk"):
        raise DataError(f"{where}: the activation function {activation!r} of a {architecture} autoencoder cannot be "
                        "read; relu can, and topk of a topk")
    return architecture


def _normalize(where: Any, settings: Settings) -> Any:
    """`AutoencoderConfig.normalize`; none also where the `Scaler` is folded into the weights."""
    scaling = settings.get("normalize_activations")
    if _scaled(settings) or _whitened(settings) or scaling in (None, False):
        return "none"
    ours = {theirs: ours for ours, theirs in _NORMALIZE.items()}
    if not isinstance(scaling, str) or scaling not in ours:
        raise DataError(f"{where}: normalize_activations={scaling!r} cannot be read; {', '.join(ours)} can, and "
                        f"expected_average_only_in with its {SCALER}, covariance_whitening with its {WHITENING}")
    return ours[scaling]


def _scaled(settings: Settings) -> bool:
    return settings.get("normalize_activations") in (True, "expected_average_only_in")


def _whitened(settings: Settings) -> bool:
    return settings.get("normalize_activations") == "covariance_whitening"


def whitening_shapes(config: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Arrays of the file `WHITENING`."""
    d = config.d_in
    return {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)}


def weights_of(where: Any, settings: Settings, config: AutoencoderConfig, arrays: Mapping[str, np.ndarray],
               scaler: Scaler) -> dict[str, np.ndarray]:
    """What SAELens's arrays are here, by `weight_shapes`, computed in float64 and of the config's type.

    Args:
      where: the weights' file, for errors.
      settings: cfg.json.
      config: `config_of` these settings.
      arrays: the file's arrays.
      scaler: what lies beside it.

    Raises:
      DataError: an array is missing, misshapen, not finite, or one that nothing here can use; or activations are to be
        multiplied by a factor, or whitened by a map, that the folder does not have.
    """
    architecture = _architecture(where, settings)
    w = _checked(where, architecture, config, arrays)
    if (factor := w.pop("scaling_factor", w.pop("finetuning_scaling_factor", None))) is not None:
        if np.any(factor != 1) and not settings.get("finetuning_scaling_factor"):
            raise DataError(f"{where}: it has factors of a fine-tuning, but cfg.json says that there was none")
        w["W_dec"] = w["W_dec"] * factor[:, None]
    if architecture == "gated":
        stretch = _exp(w.pop("r_mag"))
        w["W_enc"], w["b_enc"] = w["W_enc"] * stretch, w.pop("b_mag")
        w["threshold"] = w["b_enc"] - w.pop("b_gate") * stretch
    if "log_threshold" in w:
        w["threshold"] = _exp(w.pop("log_threshold"))
    if "topk_threshold" in w:
        w["threshold"] = np.full(config.d_sae, w.pop("topk_threshold"))
    # SAELens has this setting of these architectures, and passes it over in the others.
    rescaled = bool(settings.get("rescale_acts_by_decoder_norm")) and architecture in ("topk", *_TRAINED)
    # In SAELens's order, on which the units of rescaled latents depend.
    if _scaled(settings):
        _fold_scale(w, _there(where, settings, scaler.scale, SCALER, "fold_activation_norm_scaling_factor"), rescaled)
    if rescaled:
        size = np.maximum(np.linalg.norm(w["W_dec"], axis=1), np.finfo(np.float32).tiny)
        w |= {"W_enc": w["W_enc"] * size, "b_enc": w["b_enc"] * size, "W_dec": w["W_dec"] / size[:, None]}
    if _whitened(settings):
        _fold_whitening(w, _there(where, settings, scaler.whitening, WHITENING, "fold_activation_whitening"),
                        config.center)
    with np.errstate(over="ignore"):
        cast = {name: array.astype(config.dtype) for name, array in w.items()}
    if wrong := [name for name, array in cast.items() if not np.all(np.isfinite(array))]:
        raise DataError(f"{where}: {', '.join(wrong)} would not be finite in {config.dtype}; the file is damaged")
    return cast


def _exp(x: np.ndarray) -> np.ndarray:
    """Without a number that is not finite, which the check at the end would have a warning come before."""
    return np.exp(np.minimum(x, 600.0))


def _there(where: Any, settings: Settings, value: Any, file: str, function: str) -> Any:
    if value is None:
        raise DataError(f"{where}: activations are to be changed first (normalize_activations="
                        f"{settings.get('normalize_activations')!r}), and the folder has no {file} that says how; add "
                        f"it, or fold it in SAELens (SAE.{function})")
    return value


def _fold_scale(w: dict[str, np.ndarray], scale: float, rescaled: bool) -> None:
    """Into weights of an autoencoder of scale * x; a rescaled threshold is compared with what norms multiply."""
    w |= {"W_enc": w["W_enc"] * scale, "W_dec": w["W_dec"] / scale, "b_dec": w["b_dec"] / scale}
    if rescaled and "threshold" in w:
        w["threshold"] = w["threshold"] / scale


def _fold_whitening(w: dict[str, np.ndarray], whitening: Mapping[str, np.ndarray], center: bool) -> None:
    """Into weights of an autoencoder of (x - mean) M: M W_enc, W_dec M^-1, b_dec M^-1 + mean. Without ``center`` the
    mean's share of the pre-activations, mean M W_enc, leaves b_enc; with it, it is in what b_dec subtracts."""
    mean, matrix, inverse = (whitening[name].astype(np.float64) for name in ("mean", "matrix", "inverse_matrix"))
    w |= {"W_enc": matrix @ w["W_enc"], "W_dec": w["W_dec"] @ inverse, "b_dec": w["b_dec"] @ inverse + mean}
    if not center:
        w["b_enc"] = w["b_enc"] - mean @ w["W_enc"]


def _checked(where: Any, architecture: str, config: AutoencoderConfig, arrays: Mapping[str, np.ndarray]
             ) -> dict[str, np.ndarray]:
    """The arrays that an architecture has, in float64, after checking their names, shapes and values."""
    latents = (config.d_sae,)
    shapes = _shapes(config.d_in, config.d_sae)
    if architecture == "gated":
        shapes = {name: shape for name, shape in shapes.items() if name != "b_enc"}
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), latents)
    elif architecture in _TRAINED:
        shapes["topk_threshold"] = ()
    elif config.kind.has_threshold:
        shapes["log_threshold" if "log_threshold" in arrays else "threshold"] = latents
    shapes |= {name: latents for name in ("scaling_factor", "finetuning_scaling_factor") if name in arrays}
    if unknown := sorted(arrays.keys() - shapes.keys()):
        raise DataError(f"{where}: a {architecture} autoencoder has no use for {', '.join(map(repr, unknown[:5]))}; "
                        f"it has {', '.join(shapes)}")
    check_weights(where, arrays, shapes)
    return {name: arrays[name].astype(np.float64) for name in shapes}


def check_weights(where: Any, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises DataError where an array of these shapes is missing, misshapen or not finite."""
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else None
            raise DataError(f"{where}: {name} has shape {found}, cfg.json says {shape}")
        if not np.all(np.isfinite(arrays[name])):
            raise DataError(f"{where}: {name} has values that are NaN or infinite; the file is damaged")
