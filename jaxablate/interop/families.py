"""How Hugging Face writes each family of decoders: ``config.json`` as fields of `ModelConfig`, tensors as
parameters."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxablate.config import ModelConfig, from_dict
from jaxablate.errors import ConfigError
from jaxablate.interop.layout import Entry, linear, norm, same

MISSING = object()


class Settings:
    """A ``config.json``, every key of which must be read or be known to have no effect on what the model computes."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self.where = values, where
        self._read: set[str] = set(HARMLESS)

    def take(self, name: str, default: Any = MISSING, *, kind: type | tuple[type, ...] = int) -> Any:
        """The value of a key, of this kind (numbers are taken for float), or its default where it is not there."""
        self._read.add(name)
        value = self._values.get(name, default)
        if value is MISSING:
            raise ConfigError(f"{self.where} has no {name}, which this family needs; take the config.json that belongs "
                              "to the weights")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = (*kinds, int) if float in kinds else kinds
        fits = value is default or (isinstance(value, allowed) and (bool in kinds or not isinstance(value, bool)))
        if not fits:
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise ConfigError(f"{self.where} has {name}={value!r:.80}, which must be of type {wanted}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a key whose value is another than those that this program computes."""
        self._read.add(name)
        value = self._values.get(name, allowed[0])
        if value not in allowed or type(value) not in {type(x) for x in allowed}:
            raise ConfigError(f"{self.where} has {name}={value!r:.80}, which is not supported; only "
                              f"{' or '.join(map(repr, allowed))} is")

    def choice(self, name: str, meanings: Mapping[str, str], default: str) -> str:
        """What the value of a key is called here."""
        value = self.take(name, default, kind=str)
        if value not in meanings:
            raise ConfigError(f"{self.where} has {name}={value!r:.80}, which is not supported; choose one of "
                              f"{', '.join(meanings)}")
        return meanings[value]

    def finish(self) -> None:
        """Refuses keys that nobody has read, but for those that are null."""
        unread = [name for name, value in self._values.items() if name not in self._read and value is not None]
        if unread:
            told = ", ".join(f"{name}={self._values[name]!r:.60}" for name in unread[:10])
            raise ConfigError(f"{self.where} has settings of which this program does not know what they do: {told}; "
                              "if they have no effect, remove them")


HARMLESS: frozenset[str] = frozenset((
    "_attn_implementation", "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "attn_pdrop",
    "bos_token_id", "cache_implementation", "classifier_dropout", "dtype", "embd_pdrop", "embed_dropout",
    "eos_token_id", "finetuning_task", "gradient_checkpointing", "hidden_dropout", "id2label", "initializer_range",
    "is_decoder", "label2id", "max_length", "model_type", "n_ctx", "n_special", "num_labels", "output_past",
    "pad_token_id", "predict_special_tokens", "pretraining_tp", "reorder_and_upcast_attn", "resid_dropout",
    "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache",
))
"""Keys without effect on what a decoder computes here: dropout, which no run of this package has, types of storage,
tokens, initialisation, settings of generation and of other heads."""

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
                "silu": "silu", "swish": "silu", "relu": "relu"}
_KINDS = {"global": "global", "local": "local", "full_attention": "global", "sliding_attention": "local"}


class Tensor(NamedTuple):
    """One tensor of a folder: its name and shape there, the parameters that it holds, and the way between."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Those of the parameters."""
    apart: Callable[[np.ndarray], Sequence[np.ndarray]]
    """The tensor as its parameters."""
    joined: Callable[[Sequence[np.ndarray]], np.ndarray]
    """The inverse."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one family is written."""

    architecture: str
    prefix: str
    """How names of all tensors but the output matrix begin; some folders leave it out."""
    head: str
    """Name of the output matrix where it is not the embedding."""
    buffers: str
    """Expression for names of tensors that older versions of transformers stored and that are no parameters."""
    read: Callable[[Settings], dict[str, Any]]
    """Settings -> fields of `ModelConfig`."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The inverse, as far as the family has what the config says."""
    tensors: Callable[[ModelConfig], Iterator[Tensor]]
    """All tensors of a model but the output matrix."""

    def model_config(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """The model that a ``config.json`` describes.

        Raises:
          ConfigError: a setting is missing, not supported, or not known.
        """
        settings = Settings(values, where)
        fields = self.read(settings)
        settings.finish()
        return from_dict(ModelConfig, fields | {"ablation": "none"})

    def all_tensors(self, config: ModelConfig) -> list[Tensor]:
        """Those of a model in the order of computation, with the names that transformers writes."""
        rest = [] if config.tied else [_table(self.head, "unembed/kernel", config.vocab_size, config.d_model)]
        return [tensor._replace(name=f"{self.prefix}{tensor.name}") for tensor in self.tensors(config)] + rest


def family_of(values: Mapping[str, Any], where: str) -> tuple[str, Family]:
    """The family that a ``config.json`` names.

    Raises:
      ConfigError: it names none, or another one; the nearest is given.
    """
    name = values.get("model_type")
    if not isinstance(name, str):
        raise ConfigError(f"{where} has no model_type; it is not the config.json of a model")
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{where} is of the family {name!r:.60}, which is not supported; the nearest that is is "
                          f"{near!r}, of {', '.join(FAMILIES)}")
    return name, FAMILIES[name]


def canonical(config: ModelConfig) -> ModelConfig:
    """The config of the clean stream alone, with every size resolved: equal where two models compute the same."""
    scaled = config.scale_attention
    kinds = _cycle(_kinds(config, {"global": "global", "local": "local"}))
    default = ModelConfig()
    of_gates = {name: getattr(default, name) for name in (
        "k_attention", "k_neurons", "gate", "surrogate", "temperature_attention", "temperature_neurons", "gate_eps",
        "param_dtype", "compute_dtype", "remat", "position_std")}
    return dataclasses.replace(
        config, **of_gates, ablation="none", d_mlp=config.mlp_width, head_dim=config.head_width,
        kv_heads=config.key_heads, attention_layers=kinds,
        attention_scale_width=(config.attention_scale_width or config.head_width) if scaled else None,
        window_size=config.window_size if "local" in kinds else default.window_size)


# Settings ------------------------------------------------------------------------------------------------------------


def _cycle(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest cycle that, repeated, gives the layers' kinds.

    >>> _cycle(["local", "global", "local", "global"])
    ('local', 'global')
    """
    periods = (p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % p] for i in range(len(kinds))))
    return tuple(kinds[: next(periods, 0)])


def _layer_kinds(settings: Settings, kinds: Any, name: str, layers: int) -> tuple[str, ...]:
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _KINDS for kind in kinds):
        raise ConfigError(f"{settings.where} has {name}={kinds!r:.80}, which must be {layers} of {', '.join(_KINDS)}")
    return _cycle([_KINDS[kind] for kind in kinds])


def _gpt_fields(settings: Settings, *, d_model: str, heads: str, layers: str, d_mlp: str, positions: str
                ) -> dict[str, Any]:
    """What GPT-2 and GPT-Neo name differently but mean alike."""
    return {
        "vocab_size": settings.take("vocab_size"), "d_model": settings.take(d_model), "n_heads": settings.take(heads),
        "n_layers": settings.take(layers), "d_mlp": settings.take(d_mlp, None, kind=(int, type(None))),
        "context_length": settings.take(positions),
        "activation": settings.choice("activation_function", _ACTIVATIONS, "gelu_new"),
        "layer_norm_eps": settings.take("layer_norm_epsilon", 1e-5, kind=float),
        "tied": settings.take("tie_word_embeddings", True, kind=bool),
    }


def _read_gpt_neo(settings: Settings) -> dict[str, Any]:
    fields = _gpt_fields(settings, d_model="hidden_size", heads="num_heads", layers="num_layers",
                         d_mlp="intermediate_size", positions="max_position_embeddings")
    layers, types = fields["n_layers"], settings.take("attention_types", None, kind=(list, type(None)))
    kinds = settings.take("attention_layers", None, kind=(list, type(None)))
    if types is not None:
        try:
            told = [kind for cycle, times in types for _ in range(min(int(times), layers)) for kind in cycle]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{settings.where} has attention_types={types!r:.80}, which must be a list of pairs, "
                              "kinds and how often they repeat") from error
        if kinds not in (None, told):
            raise ConfigError(f"{settings.where} has attention_layers={kinds!r:.80}, but attention_types={types!r:.80}")
        kinds = told
    if kinds is None:
        raise ConfigError(f"{settings.where} has neither attention_types nor attention_layers; which layers see a "
                          "window only cannot be read off the weights")
    return fields | {"attention_layers": _layer_kinds(settings, kinds, "attention_types", layers),
                     "window_size": settings.take("window_size", 256)}


def _read_gpt2(settings: Settings) -> dict[str, Any]:
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("add_cross_attention", False)
    return _gpt_fields(settings, d_model="n_embd", heads="n_head", layers="n_layer", d_mlp="n_inner",
                       positions="n_positions") | {
        "scale_attention": settings.take("scale_attn_weights", True, kind=bool), "qkv_bias": True}


def _rotary(settings: Settings, fraction: float = 1.0) -> dict[str, Any]:
    """Rotary positions as transformers 5 writes them, ``rope_parameters``, or as earlier versions did."""
    fraction = settings.take("partial_rotary_factor", settings.take("rotary_pct", fraction, kind=float), kind=float)
    theta = settings.take("rope_theta", settings.take("rotary_emb_base", 10_000.0, kind=float), kind=float)
    for name in ("rope_parameters", "rope_scaling"):
        given = settings.take(name, None, kind=(dict, type(None)))
        if given is not None:
            inner = Settings(given, f"{name} of {settings.where}")
            inner.only("rope_type", "default")
            inner.only("type", "default")
            theta = inner.take("rope_theta", theta, kind=float)
            fraction = inner.take("partial_rotary_factor", fraction, kind=float)
            inner.finish()
    return {"positions": "rotary", "rotary_fraction": float(fraction), "rotary_theta": float(theta)}


def _common_fields(settings: Settings, *, tied: bool) -> dict[str, Any]:
    """What all families with rotary positions call alike."""
    return {
        "vocab_size": settings.take("vocab_size"), "d_model": settings.take("hidden_size"),
        "n_heads": settings.take("num_attention_heads"), "n_layers": settings.take("num_hidden_layers"),
        "d_mlp": settings.take("intermediate_size"), "context_length": settings.take("max_position_embeddings"),
        "tied": settings.take("tie_word_embeddings", tied, kind=bool), "scale_attention": True,
    }


def _read_gpt_neox(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias", True, kind=bool)
    return _common_fields(settings, tied=False) | _rotary(settings, 0.25) | {
        "activation": settings.choice("hidden_act", _ACTIVATIONS, "gelu"),
        "layer_norm_eps": settings.take("layer_norm_eps", 1e-5, kind=float), "qkv_bias": bias, "out_bias": bias,
        "parallel": settings.take("use_parallel_residual", True, kind=bool)}


def _llama_fields(settings: Settings, *, tied: bool, activation: str = "hidden_act", default: str = "silu"
                  ) -> dict[str, Any]:
    """What Llama, Qwen2 and Gemma 2 have in common."""
    fields = _common_fields(settings, tied=tied) | _rotary(settings)
    return fields | {
        "norm": "rms", "layer_norm_eps": settings.take("rms_norm_eps", 1e-6, kind=float), "mlp": "gated",
        "mlp_bias": False, "out_bias": False, "activation": settings.choice(activation, _ACTIVATIONS, default),
        "kv_heads": settings.take("num_key_value_heads", None, kind=(int, type(None))),
        "head_dim": settings.take("head_dim", None, kind=(int, type(None)))}


def _read_llama(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias", False, kind=bool)
    return _llama_fields(settings, tied=False) | {
        "qkv_bias": bias, "out_bias": bias, "mlp_bias": settings.take("mlp_bias", False, kind=bool)}


def _read_qwen2(settings: Settings) -> dict[str, Any]:
    fields = _llama_fields(settings, tied=False)
    layers, window = fields["n_layers"], settings.take("sliding_window", 4096, kind=(int, type(None)))
    first = settings.take("max_window_layers", 28)
    slides = settings.take("use_sliding_window", False, kind=bool) and window is not None
    kinds = ["local" if slides and i >= first else "global" for i in range(layers)]
    kinds = settings.take("layer_types", kinds, kind=list)
    return fields | {"qkv_bias": True} | _windows(settings, kinds, window, layers)


def _read_gemma2(settings: Settings) -> dict[str, Any]:
    settings.only("use_bidirectional_attention", None, False)
    settings.take("hidden_act", None, kind=(str, type(None)))  # of the first versions, which did not read it either
    fields = _llama_fields(settings, tied=True, activation="hidden_activation", default="gelu_pytorch_tanh")
    bias, layers = settings.take("attention_bias", False, kind=bool), fields["n_layers"]
    kinds = settings.take("layer_types", [("local", "global")[i % 2] for i in range(layers)], kind=list)
    caps = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
    return fields | {
        "norm": "rms_offset", "post_norms": True, "scale_embedding": True, "qkv_bias": bias, "out_bias": bias,
        "head_dim": settings.take("head_dim", 256),
        "attention_scale_width": settings.take("query_pre_attn_scalar", 256),
    } | {ours: settings.take(name, default, kind=(float, type(None)))
         for (ours, name), default in zip(caps.items(), (50.0, 30.0), strict=True)} | _windows(
        settings, kinds, settings.take("sliding_window", 4096, kind=(int, type(None))), layers)


def _windows(settings: Settings, kinds: Any, window: int | None, layers: int) -> dict[str, Any]:
    cycle = _layer_kinds(settings, kinds, "layer_types", layers)
    if "local" in cycle and window is None:
        raise ConfigError(f"{settings.where} has layers with a window, but sliding_window is null")
    return {"attention_layers": cycle} | ({"window_size": window} if "local" in cycle else {})


def _written(activation: str, tanh: str) -> str:
    return tanh if activation == "gelu_tanh" else activation


def _kinds(config: ModelConfig, names: Mapping[str, str]) -> list[str]:
    kinds = config.attention_layers
    return [names[kinds[i % len(kinds)]] for i in range(config.n_layers)]


def _write_gpt_neo(config: ModelConfig) -> dict[str, Any]:
    kinds = _kinds(config, {"global": "global", "local": "local"})
    period = len(_cycle(kinds))
    whole = period if config.n_layers % period == 0 else config.n_layers
    return {
        "activation_function": _written(config.activation, "gelu_new"), "attention_dropout": 0.0,
        "attention_layers": kinds, "attention_types": [[kinds[:whole], config.n_layers // whole]],
        "classifier_dropout": 0.1, "embed_dropout": 0.0, "hidden_size": config.d_model, "initializer_range": 0.02,
        "intermediate_size": config.d_mlp, "layer_norm_epsilon": config.layer_norm_eps,
        "max_position_embeddings": config.context_length, "num_heads": config.n_heads, "num_layers": config.n_layers,
        "resid_dropout": 0.0, "tie_word_embeddings": config.tied, "use_cache": True, "vocab_size": config.vocab_size,
        "window_size": config.window_size}


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "activation_function": _written(config.activation, "gelu_new"), "add_cross_attention": False,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": config.layer_norm_eps,
        "n_embd": config.d_model, "n_head": config.n_heads, "n_inner": config.d_mlp, "n_layer": config.n_layers,
        "n_positions": config.context_length, "reorder_and_upcast_attn": False, "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": config.scale_attention,
        "tie_word_embeddings": config.tied, "use_cache": True, "vocab_size": config.vocab_size}


def _write_common(config: ModelConfig) -> dict[str, Any]:
    rope = {"rope_theta": config.rotary_theta, "rope_type": "default"}
    # Versions of transformers before 5 read the base from a key of its own.
    earlier = {} if config.rotary_theta == 10_000.0 else {"rope_theta": config.rotary_theta}
    return earlier | {
        "attention_dropout": 0.0, "hidden_size": config.d_model, "initializer_range": 0.02,
        "intermediate_size": config.mlp_width, "max_position_embeddings": config.context_length,
        "num_attention_heads": config.n_heads, "num_hidden_layers": config.n_layers, "rope_parameters": rope,
        "tie_word_embeddings": config.tied, "use_cache": True, "vocab_size": config.vocab_size}


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    common = _write_common(config)
    rope = {"partial_rotary_factor": config.rotary_fraction} | common["rope_parameters"]
    # As above: versions before 5.
    earlier = {} if config.rotary_fraction == 0.25 else {"rotary_pct": config.rotary_fraction}
    earlier |= {"rotary_emb_base": common.pop("rope_theta")} if "rope_theta" in common else {}
    return common | earlier | {
        "attention_bias": config.qkv_bias or config.out_bias, "classifier_dropout": 0.1, "hidden_act": config.activation
        if config.activation != "gelu_tanh" else "gelu_new", "hidden_dropout": 0.0, "is_decoder": False,
        "layer_norm_eps": config.layer_norm_eps, "rope_parameters": rope, "use_parallel_residual": config.parallel}


def _write_llama_like(config: ModelConfig) -> dict[str, Any]:
    return _write_common(config) | {"num_key_value_heads": config.key_heads, "rms_norm_eps": config.layer_norm_eps}


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return _write_llama_like(config) | {
        "attention_bias": config.qkv_bias or config.out_bias, "head_dim": config.head_width,
        "hidden_act": _written(config.activation, "gelu_pytorch_tanh"), "mlp_bias": config.mlp_bias,
        "pretraining_tp": 1}


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    windows = "local" in config.attention_layers
    own_width = {} if config.head_width * config.n_heads == config.d_model else {"head_dim": config.head_width}
    return _write_llama_like(config) | own_width | {
        "hidden_act": _written(config.activation, "gelu_pytorch_tanh"), "max_window_layers": 28,
        "layer_types": _kinds(config, {"global": "full_attention", "local": "sliding_attention"}),
        "sliding_window": config.window_size if windows else None, "use_sliding_window": windows}


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return _write_llama_like(config) | {
        "attention_bias": config.qkv_bias or config.out_bias, "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.logit_cap, "head_dim": config.head_width,
        "hidden_activation": _written(config.activation, "gelu_pytorch_tanh"),
        "layer_types": _kinds(config, {"global": "full_attention", "local": "sliding_attention"}),
        "query_pre_attn_scalar": config.attention_scale_width or config.head_width,
        "sliding_window": config.window_size, "use_bidirectional_attention": None}


# Tensors -------------------------------------------------------------------------------------------------------------


def _of(entry: Entry) -> Tensor:
    """A tensor that is one parameter."""
    return Tensor(entry.name, entry.reference_shape, (entry.path,), (entry.shape,), lambda x: [entry.to_ours(x)],
                  lambda parts: entry.to_reference(parts[0]))


def _table(name: str, path: str, rows: int, width: int) -> Tensor:
    """A matrix that lies alike on both sides."""
    return Tensor(name, (rows, width), (path,), ((rows, width),), lambda x: [x], lambda parts: parts[0])


def _norm(name: str, path: str, config: ModelConfig) -> Iterator[Tensor]:
    entries = norm(name, path, config.d_model)
    yield from map(_of, entries if config.norm == "layer" else [next(entries)])


def _linear(name: str, path: str, inputs: int, outputs: int, bias: bool) -> Iterator[Tensor]:
    entries = linear(name, path, inputs, outputs)
    yield from map(_of, entries if bias else [next(entries)])


def _heads(name: str, path: str, config: ModelConfig, heads: int) -> Iterator[Tensor]:
    """A projection to heads, each a block of rows."""
    shape, rows = (heads, config.head_width), heads * config.head_width
    yield _of(Entry(f"{name}.weight", f"{path}/kernel", (rows, config.d_model), (config.d_model, *shape)))
    if config.qkv_bias:
        yield _of(Entry(f"{name}.bias", f"{path}/bias", (rows,), shape))


def _out(name: str, path: str, config: ModelConfig) -> Iterator[Tensor]:
    d, shape = config.d_model, (config.n_heads, config.head_width)
    yield _of(Entry(f"{name}.weight", f"{path}/kernel", (d, config.attention_width), (*shape, d)))
    if config.out_bias:
        yield _of(same(f"{name}.bias", f"{path}/bias", d))


def _turned(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    """Weights that lie (in, out), as those of GPT-2's Conv1D."""
    for tensor in tensors:
        if tensor.name.endswith(".weight"):
            yield tensor._replace(shape=tensor.shape[::-1], apart=lambda x, t=tensor: t.apart(x.T),
                                  joined=lambda parts, t=tensor: t.joined(parts).T)
        else:
            yield tensor


_PROJECTIONS = ("query", "key", "value")


def _gpt_neo_tensors(config: ModelConfig) -> Iterator[Tensor]:
    yield _table("wte.weight", "embed/embedding", config.vocab_size, config.d_model)
    yield _table("wpe.weight", "pos_embed/embedding", config.context_length, config.d_model)
    for i in range(config.n_layers):
        name, path = f"h.{i}", f"layer_{i}"
        yield from _norm(f"{name}.ln_1", f"{path}/ln_1", config)
        for part in _PROJECTIONS:
            yield from _heads(f"{name}.attn.attention.{part[0]}_proj", f"{path}/attention/{part}", config,
                              config.n_heads)
        yield from _out(f"{name}.attn.attention.out_proj", f"{path}/attention/out", config)
        yield from _norm(f"{name}.ln_2", f"{path}/ln_2", config)
        yield from _linear(f"{name}.mlp.c_fc", f"{path}/mlp/up", config.d_model, config.mlp_width, config.mlp_bias)
        yield from _linear(f"{name}.mlp.c_proj", f"{path}/mlp/down", config.mlp_width, config.d_model, config.mlp_bias)
    yield from _norm("ln_f", "ln_f", config)


def _fused(name: str, path: str, config: ModelConfig, *, turned: bool, heads_first: bool) -> Iterator[Tensor]:
    """Queries, keys and values in one tensor: one after another, or head by head.

    Its rows (columns where ``turned``) are [3, N, H], or [N, 3, H] where heads come first.
    """
    d, n, h = config.d_model, config.n_heads, config.head_width
    paths = tuple(f"{path}/{part}" for part in _PROJECTIONS)
    rows, axis = ((n, 3, h), 1) if heads_first else ((3, n, h), 0)

    def apart(x: np.ndarray) -> list[np.ndarray]:
        x = (x.T if turned else x).reshape(*rows, d)
        return [np.take(x, i, axis).transpose(2, 0, 1) for i in range(3)]

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        x = np.stack([part.transpose(1, 2, 0) for part in parts], axis).reshape(3 * n * h, d)
        return x.T if turned else x

    shape = (d, 3 * n * h) if turned else (3 * n * h, d)
    yield Tensor(f"{name}.weight", shape, tuple(f"{p}/kernel" for p in paths), ((d, n, h),) * 3, apart, joined)
    if config.qkv_bias:
        yield Tensor(f"{name}.bias", (3 * n * h,), tuple(f"{p}/bias" for p in paths), ((n, h),) * 3,
                     lambda x: [np.take(x.reshape(rows), i, axis) for i in range(3)],
                     lambda parts: np.stack(parts, axis).reshape(3 * n * h))


def _gpt2_tensors(config: ModelConfig) -> Iterator[Tensor]:
    d, f = config.d_model, config.mlp_width
    yield _table("wte.weight", "embed/embedding", config.vocab_size, d)
    yield _table("wpe.weight", "pos_embed/embedding", config.context_length, d)
    for i in range(config.n_layers):
        name, path = f"h.{i}", f"layer_{i}"
        yield from _norm(f"{name}.ln_1", f"{path}/ln_1", config)
        yield from _fused(f"{name}.attn.c_attn", f"{path}/attention", config, turned=True, heads_first=False)
        yield from _turned(_out(f"{name}.attn.c_proj", f"{path}/attention/out", config))
        yield from _norm(f"{name}.ln_2", f"{path}/ln_2", config)
        yield from _turned(_linear(f"{name}.mlp.c_fc", f"{path}/mlp/up", d, f, config.mlp_bias))
        yield from _turned(_linear(f"{name}.mlp.c_proj", f"{path}/mlp/down", f, d, config.mlp_bias))
    yield from _norm("ln_f", "ln_f", config)


def _gpt_neox_tensors(config: ModelConfig) -> Iterator[Tensor]:
    d, f = config.d_model, config.mlp_width
    yield _table("embed_in.weight", "embed/embedding", config.vocab_size, d)
    for i in range(config.n_layers):
        name, path = f"layers.{i}", f"layer_{i}"
        yield from _norm(f"{name}.input_layernorm", f"{path}/ln_1", config)
        yield from _norm(f"{name}.post_attention_layernorm", f"{path}/ln_2", config)
        yield from _fused(f"{name}.attention.query_key_value", f"{path}/attention", config, turned=False,
                          heads_first=True)
        yield from _out(f"{name}.attention.dense", f"{path}/attention/out", config)
        yield from _linear(f"{name}.mlp.dense_h_to_4h", f"{path}/mlp/up", d, f, config.mlp_bias)
        yield from _linear(f"{name}.mlp.dense_4h_to_h", f"{path}/mlp/down", f, d, config.mlp_bias)
    yield from _norm("final_layer_norm", "ln_f", config)


def _llama_tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Tensors of Llama, Qwen2 and, with two more norms a block, Gemma 2."""
    d, f = config.d_model, config.mlp_width
    norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
    if config.post_norms:
        norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_1_post",
                 "pre_feedforward_layernorm": "ln_2", "post_feedforward_layernorm": "ln_2_post"}
    yield _table("embed_tokens.weight", "embed/embedding", config.vocab_size, d)
    for i in range(config.n_layers):
        name, path = f"layers.{i}", f"layer_{i}"
        for theirs, ours in norms.items():
            yield from _norm(f"{name}.{theirs}", f"{path}/{ours}", config)
        for part in _PROJECTIONS:
            heads = config.n_heads if part == "query" else config.key_heads
            yield from _heads(f"{name}.self_attn.{part[0]}_proj", f"{path}/attention/{part}", config, heads)
        yield from _out(f"{name}.self_attn.o_proj", f"{path}/attention/out", config)
        for part in ("gate", "up"):
            yield from _linear(f"{name}.mlp.{part}_proj", f"{path}/mlp/{part}", d, f, config.mlp_bias)
        yield from _linear(f"{name}.mlp.down_proj", f"{path}/mlp/down", f, d, config.mlp_bias)
    yield from _norm("norm", "ln_f", config)


_ROTARY_BUFFERS = r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"

FAMILIES: Mapping[str, Family] = {
    "gpt_neo": Family(
        architecture="GPTNeoForCausalLM", prefix="transformer.", head="lm_head.weight",
        buffers=r".*attn\.attention\.(masked_)?bias", read=_read_gpt_neo, write=_write_gpt_neo,
        tensors=_gpt_neo_tensors),
    "gpt2": Family(
        architecture="GPT2LMHeadModel", prefix="transformer.", head="lm_head.weight",
        buffers=r".*\.attn\.(masked_)?bias", read=_read_gpt2, write=_write_gpt2, tensors=_gpt2_tensors),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM", prefix="gpt_neox.", head="embed_out.weight",
        buffers=r".*\.attention\.(masked_)?bias|" + _ROTARY_BUFFERS, read=_read_gpt_neox, write=_write_gpt_neox,
        tensors=_gpt_neox_tensors),
    "llama": Family(
        architecture="LlamaForCausalLM", prefix="model.", head="lm_head.weight", buffers=_ROTARY_BUFFERS,
        read=_read_llama, write=_write_llama, tensors=_llama_tensors),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM", prefix="model.", head="lm_head.weight", buffers=_ROTARY_BUFFERS,
        read=_read_qwen2, write=_write_qwen2, tensors=_llama_tensors),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM", prefix="model.", head="lm_head.weight", buffers=_ROTARY_BUFFERS,
        read=_read_gemma2, write=_write_gemma2, tensors=_llama_tensors),
}
"""By ``model_type``; `jaxablate.config.FAMILIES` has presets of the same names."""
