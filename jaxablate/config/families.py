"""Families of decoders as presets: the fields of `ModelConfig` in which they differ from GPT-Neo, the papers' model."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxablate.config.language import ModelConfig
from jaxablate.errors import ConfigError

_LLAMA: dict[str, Any] = {
    "norm": "rms", "layer_norm_eps": 1e-6, "positions": "rotary", "scale_attention": True, "mlp": "gated",
    "activation": "silu", "mlp_bias": False, "out_bias": False,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "gpt_neo": {},
    "gpt2": {"scale_attention": True, "qkv_bias": True},
    "gpt_neox": {"scale_attention": True, "qkv_bias": True, "positions": "rotary", "rotary_fraction": 0.25,
                 "parallel": True, "activation": "gelu", "tied": False},
    "llama": _LLAMA | {"tied": False},
    "qwen2": _LLAMA | {"qkv_bias": True},
    "gemma2": _LLAMA | {"norm": "rms_offset", "post_norms": True, "activation": "gelu_tanh", "scale_embedding": True,
                        "attention_layers": ("local", "global"), "attention_cap": 50.0, "logit_cap": 30.0},
})
"""Settings of each family by the name that Hugging Face gives it (``model_type``); sizes are not among them."""


def family(name: str, **fields: Any) -> ModelConfig:
    """The config of a model of a family, with sizes and whatever else differs.

    Raises:
      ConfigError: there is no such family (the nearest is named), or a field is bad.

    Example:
      >>> config = family("llama", d_model=64, n_layers=2, n_heads=8, kv_heads=2, ablation="local")
      >>> config.norm, config.positions, config.key_heads
      ('rms', 'rotary', 2)
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}? It is" if near else "; choose"
        raise ConfigError(f"there is no family {name!r:.80}{hint} one of {', '.join(FAMILIES)}")
    return ModelConfig(**{**FAMILIES[name], **fields})
