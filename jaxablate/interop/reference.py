"""Read and write the self-ablating transformer of the paper's PyTorch code (keenanpepper/self-ablating-transformers).

A PyTorch `Linear` stores (out, in) and computes `x @ W.T + b`; ours store (in, out), with an axis for heads.
The tied embedding is stored twice there, as `transformer.wte.weight` and `lm_head.weight`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxablate.config import ModelConfig, ObjectiveConfig
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.interop.files import Source, read_arrays
from jaxablate.interop.layout import Entry, config_of, linear, norm, same, settings_of, to_state_dict, to_tree

_WHAT = "a self-ablating transformer"
_EMBEDDING, _OUTPUT = "transformer.wte.weight", "lm_head.weight"
_POSITIONS = "transformer.wpe.weight"
_AXES = {_EMBEDDING: ("vocab_size", "d_model"), _POSITIONS: ("context_length", ""),
         "transformer.h.0.mlp.c_fc.weight": ("d_mlp", "")}
"""Arrays that show the sizes."""
_LOCAL_HEADS = re.compile(r"transformer\.h\.\d+\.(attention|neuron)_ablation_head\.")
_MASKS = re.compile(r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)")
"""Buffers of GPT-Neo that older versions of transformers saved."""
_GLOBAL_HEADS = re.compile(r"(attention|neuron)_ablations_head\.")

# The reference's settings: names that mean the same as ours, then values that have other names here.
_NAMES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "d_model",
    "num_layers": "n_layers",
    "mlp_hidden_size": "d_mlp",
    "num_heads": "n_heads",
    "attention_layers": "attention_layers",
    "window_size": "window_size",
    "k_attention": "k_attention",
    "k_neurons": "k_neurons",
    "temperature_attention": "temperature_attention",
    "temperature_neurons": "temperature_neurons",
    "top_k_epsilon": "gate_eps",
    "layer_norm_epsilon": "layer_norm_eps",
}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
                "relu": "relu", "silu": "silu", "swish": "silu"}
"""GPT-Neo's activation_function, which is gelu_new in the papers' code."""
_GATES = {"soft-top-K-version-1": "soft", "hard-top-K-with-soft-gradient": "hard"}
_LEVELS = {None: "none", "layer-by-layer": "local", "overall": "global", "both": "both"}
_FLAGS = ("has_layer_by_layer_ablation_mask", "has_overall_ablation_mask")
_ABLATIONS = {(False, False): "none", (True, False): "local", (False, True): "global", (True, True): "both"}


def transformer_from_reference(
    source: Source, *, reference_config: Mapping[str, Any] | None = None, **overrides: Any
) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a self-ablating transformer of the papers' code.

    Sizes and the kind of ablation are read off the arrays. What is not in them (the number of heads; k,
    temperatures and gate; attention windows, eps of the norms, activation function) comes from `overrides`, else from
    `reference_config`, else from the settings in the file, else it is `ModelConfig`'s default. The number of heads
    must be given in one of these ways, and k of a model with ablation heads. So must `attention_layers` of one
    without, whose arrays are those of any GPT-Neo: a window that is not known of would change what it computes.

    Args:
      source: a state dict (names to NumPy, JAX or PyTorch arrays), or the path of a `.npz`, `.safetensors`,
        `.pt`, `.pth` or `.bin` file; only weights are ever loaded. The tied matrix may be there once or twice.
      reference_config: the reference's settings under its own names (`num_heads`, `ablation_processing`, ...);
        names it does not share with us (seed, optimiser) are passed over.
      **overrides: fields of `ModelConfig`, for example `n_heads=16, k_neurons=8`.

    Returns:
      (config, params): params are NumPy arrays in the tree that `SelfAblatingTransformer(config)` takes.
      float64 stays float64, and `param_dtype` and `compute_dtype` say so; anything less becomes float32.

    Raises:
      CheckpointError: the file is unreadable; arrays are missing, unexpected, of another shape or not finite (named);
        the two copies of the tied matrix differ.
      ConfigError: a setting is missing, unknown, out of range, or contradicts the arrays.
    """
    arrays, stored = read_arrays(source, without=_MASKS)
    arrays = _tie(arrays)
    given = _model_fields({**stored, **(reference_config or {})}) | overrides
    local, overall = (any(map(pattern.match, arrays)) for pattern in (_LOCAL_HEADS, _GLOBAL_HEADS))
    given.setdefault("ablation", _ABLATIONS[local, overall])
    needed = ("n_heads", *(("attention_layers",) if given["ablation"] == "none" else ("k_attention", "k_neurons")))
    config = config_of(ModelConfig, _WHAT, arrays, given, axes=_AXES, layer=r"transformer\.h\.(\d+)\.", needed=needed,
                       entries=_entries)
    return config, to_tree(_entries(config), arrays, config.param_dtype)


def transformer_to_reference(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Write a model as the papers' code stores it: the exact inverse of `transformer_from_reference`.

    Returns:
      State dict of NumPy arrays of the parameters' type, the tied matrix under both of its names.

    Raises:
      ConfigError: the model has parts that the papers' code has not (named).
      CheckpointError: parameters are missing, unexpected or of another shape for this config (named).
    """
    _require_gpt_neo(config)
    state = to_state_dict(_entries(config), params, _WHAT)
    return state | {_OUTPUT: state[_EMBEDDING]}


def _require_gpt_neo(config: ModelConfig) -> None:
    """Raises ConfigError where a model has parts that the papers' code, a GPT-Neo, has not."""
    names = ("tied", "scale_embedding", "logit_cap", "positions", "norm", "post_norms", "parallel", "attention_cap",
             "qkv_bias", "out_bias", "mlp", "mlp_bias")
    plain = ModelConfig()
    foreign = [f"{name}={getattr(config, name)!r}" for name in names if getattr(config, name) != getattr(plain, name)]
    if config.key_heads != config.n_heads or config.attention_width != config.d_model:
        foreign.append(f"{config.key_heads} key heads and {config.n_heads} query heads of width {config.head_width}")
    if foreign:
        raise ConfigError(f"the papers' code has no {', '.join(foreign)}; jaxablate export writes such a model as a "
                          "Hugging Face folder")


def objective_from_reference(source: Source) -> ObjectiveConfig:
    """The loss coefficients of the papers' code.

    Args:
      source: the reference's settings under its own names (`loss_coeff_base`, `loss_coeff_ablated`,
        `reconstruction_coeff`, `reconstruction_loss_type`), or the path of a file that has them in `config_json`.

    Returns:
      The objective. Its reconstruction coefficient is 0 where `reconstruction_loss_type` is None, as there.

    Raises:
      ConfigError: a coefficient is missing, or the reconstruction loss is of an unknown type.

    Example:
      >>> objective_from_reference({"loss_coeff_base": 0.1, "loss_coeff_ablated": 0.9,
      ...                           "reconstruction_loss_type": None, "reconstruction_coeff": 0.1}).ablated
      0.9
    """
    settings = source if isinstance(source, Mapping) else read_arrays(source)[1]
    kind = settings.get("reconstruction_loss_type")
    if kind not in (None, "MSE"):
        raise ConfigError(f"reconstruction_loss_type={kind!r} is unknown; it must be None or 'MSE'")
    names = ("loss_coeff_base", "loss_coeff_ablated", *(("reconstruction_coeff",) if kind else ()))
    clean, ablated, *reconstruction = settings_of(settings, names)
    return ObjectiveConfig(clean=clean, ablated=ablated, reconstruction=sum(reconstruction, 0.0))


def _entries(config: ModelConfig) -> Iterator[Entry]:
    """Every array of the state dict but the second copy of the tied matrix, in the reference's order."""
    d, f, layers = config.d_model, config.mlp_width, config.n_layers
    yield same(_EMBEDDING, "embed/embedding", config.vocab_size, d)
    yield same(_POSITIONS, "pos_embed/embedding", config.context_length, d)
    for i in range(layers):
        yield from _block_entries(config, f"transformer.h.{i}", f"layer_{i}")
    yield from norm("transformer.ln_f", "ln_f", d)
    if config.ablation in ("global", "both"):
        yield from linear("attention_ablations_head", "attention_scores", d, layers * d)
        yield from linear("neuron_ablations_head", "neuron_scores", d, layers * f)


def _block_entries(config: ModelConfig, name: str, path: str) -> Iterator[Entry]:
    d, f, heads = config.d_model, config.mlp_width, (config.n_heads, config.head_width)
    yield from norm(f"{name}.ln_1", f"{path}/ln_1", d)
    for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
        reference = f"{name}.attn.attention.{short}_proj.weight"
        yield Entry(reference, f"{path}/attention/{long}/kernel", (d, d), (d, *heads))
    out = f"{name}.attn.attention.out_proj"
    yield Entry(f"{out}.weight", f"{path}/attention/out/kernel", (d, d), (*heads, d))
    yield same(f"{out}.bias", f"{path}/attention/out/bias", d)
    yield from norm(f"{name}.ln_2", f"{path}/ln_2", d)
    yield from linear(f"{name}.mlp.c_fc", f"{path}/mlp/up", d, f)
    yield from linear(f"{name}.mlp.c_proj", f"{path}/mlp/down", f, d)
    if config.ablation in ("local", "both"):
        yield from linear(f"{name}.attention_ablation_head", f"{path}/attention_scores", d, d)
        yield from linear(f"{name}.neuron_ablation_head", f"{path}/neuron_scores", d, f)


def _tie(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tied matrix under the embedding's name alone, after checking that both copies are one matrix."""
    arrays = dict(arrays)
    if _OUTPUT in arrays:
        output = arrays.pop(_OUTPUT)
        if not np.array_equal(arrays.setdefault(_EMBEDDING, output), output, equal_nan=True):
            raise CheckpointError(f"{_OUTPUT} and {_EMBEDDING} must be one tied matrix, but they differ")
    return arrays


def _model_fields(reference: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's settings as fields of `ModelConfig`; None is a setting not made."""
    fields = {ours: reference.get(name) for name, ours in _NAMES.items()}
    if reference.get("activation_function") is not None:
        fields["activation"] = _choice(reference, "activation_function", _ACTIVATIONS)
    if "ablation_processing" in reference:
        fields["gate"] = _choice(reference, "ablation_processing", _GATES)
    if _FLAGS[0] in reference and _FLAGS[1] in reference:
        fields["ablation"] = _ABLATIONS[bool(reference[_FLAGS[0]]), bool(reference[_FLAGS[1]])]
    elif "ablation_mask_level" in reference:  # the name in the settings stored with the published runs
        fields["ablation"] = _choice(reference, "ablation_mask_level", _LEVELS)
    return {name: value for name, value in fields.items() if value is not None}


def _choice(reference: Mapping[str, Any], name: str, meanings: Mapping[Any, str]) -> str:
    if not isinstance(reference[name], str | None) or reference[name] not in meanings:
        raise ConfigError(f"{name}={reference[name]!r:.80} is unknown; choose one of {', '.join(map(repr, meanings))}")
    return meanings[reference[name]]
