"""Frozen configuration dataclasses: validated when made, exact through JSON.

A config file (``configs/*.py``) has one function ``get_config() -> Config``; the command line changes single
fields of it (``--model.k-neurons 4``). Everything a run depends on is here and is stored beside its checkpoints.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxablate.errors import ConfigError

Ablation = Literal["none", "local", "global", "both"]
LayerKind = Literal["global", "local"]
T = TypeVar("T")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{name}={value} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and gating of a self-ablating transformer (Ferrao et al. 2025); the defaults are the paper's shape.

    Raises:
      ConfigError: a field is out of range or does not fit the others.
    """

    vocab_size: int = 50257
    """Rows of the tied embedding; at least the tokenizer's size."""
    context_length: int = 256
    """Rows of the learned position table; the longest sequence the model takes."""
    d_model: int = 128
    """Width D of the residual stream."""
    n_layers: int = 8
    n_heads: int = 16
    d_mlp: int | None = None
    """Neurons F of a layer; None means 4 * d_model."""
    attention_layers: tuple[LayerKind, ...] = ("global",)
    """Kind of each layer's attention, repeated to n_layers: causal, or causal within a window."""
    window_size: int = 256
    """A local layer's query i sees keys i - window_size + 1 .. i."""
    scale_attention: bool = False
    """Divide attention scores by sqrt(head width). GPT-Neo and the paper do not."""
    layer_norm_eps: float = 1e-5
    position_std: float = 1.0
    """Standard deviation of the position table at initialisation. The released code draws N(0, 1), twenty times the
    token embedding's 0.05 at d_model 128; a smaller table learns faster in short runs."""

    ablation: Ablation = "local"
    """Where relevance scores come from: local (each block), global (a clean pass first), both (their sum), none."""
    k_attention: int | tuple[int, ...] = 8
    """Winners among a layer's D attention channels for each token; one number, or one a layer."""
    k_neurons: int | tuple[int, ...] = 8
    """Winners among a layer's F neurons for each token; one number, or one a layer."""
    gate: Literal["hard", "soft"] = "hard"
    """hard: exactly k ones forward, the soft gate's gradient backward; soft: the soft gate itself."""
    surrogate: Literal["sigmoid", "softmax"] = "sigmoid"
    """The soft gate: sigmoid as in the released code, softmax as in the paper's text."""
    temperature_attention: float = 1.0
    temperature_neurons: float = 1.0
    gate_eps: float = 1e-12
    """Added to temperature * gap, the soft gate's width."""

    param_dtype: Literal["float32", "float64"] = "float32"
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the matrix products' inputs; gates, softmax, norms and losses are at least float32."""
    remat: Literal["none", "blocks"] = "none"
    """blocks: recompute each block's activations in the backward pass (less memory, about a third more arithmetic)."""

    def __post_init__(self):
        _positive(self, "vocab_size", "context_length", "d_model", "n_layers", "n_heads", "window_size",
                  "layer_norm_eps", "position_std",
                  "temperature_attention", "temperature_neurons")
        _require(self.d_mlp is None or self.d_mlp > 1, f"d_mlp={self.d_mlp} must be at least 2")
        _positive(self, "gate_eps")
        _require(
            self.d_model % self.n_heads == 0,
            f"n_heads={self.n_heads} must divide d_model={self.d_model}; choose one of {_divisors(self.d_model)}",
        )
        _require(len(self.attention_layers) > 0, "attention_layers is empty; give 'global', 'local' or a cycle of them")
        self._check_k("k_attention", self.d_model, "attention channels")
        self._check_k("k_neurons", self.mlp_width, "neurons")

    def _check_k(self, name: str, units: int, noun: str) -> None:
        value = getattr(self, name)
        ks = (value,) if isinstance(value, int) else tuple(value)
        if not isinstance(value, int):
            _require(
                len(ks) == self.n_layers,
                f"{name} has {len(ks)} entries for n_layers={self.n_layers}; give one number or {self.n_layers}",
            )
        for k in ks:
            below = "must be at least 1" if k < 1 else f"must be below the {units} {noun} of a layer"
            _require(1 <= k < units, f"{name}={k} {below}; choose 1..{units - 1}")

    @property
    def head_width(self) -> int:
        """Width H of one attention head."""
        return self.d_model // self.n_heads

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores before the softmax."""
        return self.head_width**-0.5 if self.scale_attention else 1.0

    @property
    def mlp_width(self) -> int:
        """Neurons F of one layer, resolved."""
        return 4 * self.d_model if self.d_mlp is None else self.d_mlp

    @property
    def gated(self) -> bool:
        """Whether the model has gates and an ablated stream."""
        return self.ablation != "none"

    def layer_window(self, layer: int) -> int | None:
        """Attention window of a layer; None where it sees every earlier position."""
        kind = self.attention_layers[layer % len(self.attention_layers)]
        return self.window_size if kind == "local" else None

    def layer_k(self, kind: Literal["attention", "neurons"], layer: int) -> int:
        """Number of winners of one kind in a layer."""
        value = self.k_attention if kind == "attention" else self.k_neurons
        return value if isinstance(value, int) else value[layer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Coefficients of ``clean * CE(clean) + ablated * CE(ablated) + reconstruction * R`` (REFERENCE: SAT loss)."""

    clean: float = 0.5
    ablated: float = 0.5
    reconstruction: float = 0.0
    ce_chunk: int = 0
    """Tokens whose logits the linear cross-entropy holds at once; 0 lets the backend choose."""

    def __post_init__(self):
        for name in ("clean", "ablated", "reconstruction"):
            value = getattr(self, name)
            _require(value >= 0, f"objective.{name}={value} must not be negative")
        _require(self.ce_chunk >= 0, f"objective.ce_chunk={self.ce_chunk} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with global-norm clipping and a warm-up / cosine schedule; defaults as stored with the paper's runs."""

    learning_rate: float = 1.4e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    """Learning rate at the last step over its peak (cosine)."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None never clips."""

    def __post_init__(self):
        _positive(self, "learning_rate", "eps")
        _require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name}={value} must be in [0, 1)")
        _require(0 <= self.final_fraction <= 1, f"final_fraction={self.final_fraction} must be in [0, 1]")
        _require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        _require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tokens come from."""

    source: Literal["tinystories", "text", "embedded"] = "tinystories"
    """tinystories / text: files of stories, one ``<|endoftext|>`` line after each; embedded: the package's corpus."""
    train_path: str | None = None
    """Story file to train on; None takes TinyStories from ``cache_dir``, downloaded where a network allows."""
    valid_path: str | None = None
    cache_dir: str = "data"
    """Folder of token files and downloads."""
    tokenizer: Literal["gpt2", "bpe", "corpus"] = "gpt2"
    """gpt2 by tiktoken; a byte-level BPE trained on the training text; the embedded corpus's own words."""
    bpe_vocab_size: int = 4096
    embedded_stories: int = 20000
    """Stories of the embedded corpus to train on."""
    embedded_valid_stories: int = 500
    embedded_seed: int = 0

    def __post_init__(self):
        _positive(self, "embedded_stories", "embedded_valid_stories")
        _require(
            self.bpe_vocab_size >= 257,
            f"bpe_vocab_size={self.bpe_vocab_size} must be at least 257 (256 bytes and end-of-text)",
        )
        _require(
            (self.source == "embedded") == (self.tokenizer == "corpus"),
            f"tokenizer={self.tokenizer!r} does not fit source={self.source!r}; the embedded corpus takes "
            "tokenizer='corpus', story files take 'gpt2' or 'bpe'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each named axis of the mesh."""

    data: int = -1
    """Replicas, each with its own part of the batch; -1 takes the devices the other axes leave."""
    fsdp: int = 1
    """Parts of the batch that also share out parameters and optimiser state."""
    tensor: int = 1
    """Parts of heads, neurons and vocabulary."""

    def __post_init__(self):
        _require(self.data == -1 or self.data > 0, f"mesh.data={self.data} must be positive, or -1 for the rest")
        _positive(self, "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, and how often it is measured, logged and saved."""

    steps: int = 400_000
    batch_size: int = 24
    """Sequences of one optimiser step, over all devices and accumulation steps."""
    sequence_length: int = 256
    accumulation_steps: int = 0
    """Gradients of this many equal parts of the batch are averaged before one update; 0 takes parts of about 512
    tokens on CPU, fastest for models of the paper's size (small ones want 1), and a single one elsewhere."""
    seed: int = 0
    log_every: int = 10
    eval_every: int = 1000
    eval_batches: int = 50
    """Validation batches of a periodic evaluation, always the same ones."""
    checkpoint_every: int = 1000
    keep_last: int = 2
    """Newest checkpoints kept, besides the best one by validation loss."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (extra ``wandb``)."""

    def __post_init__(self):
        _positive(self, "steps", "batch_size", "sequence_length", "log_every", "eval_every",
                  "eval_batches", "checkpoint_every", "keep_last")
        _require(
            self.accumulation_steps >= 0 and self.batch_size % max(1, self.accumulation_steps) == 0,
            f"accumulation_steps={self.accumulation_steps} must divide batch_size={self.batch_size}, or be 0",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run: everything ``train.py`` needs, stored as ``config.json`` in its working directory."""

    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        _require(
            self.train.sequence_length <= self.model.context_length,
            f"train.sequence_length={self.train.sequence_length} must not exceed "
            f"model.context_length={self.model.context_length}",
        )
        _require(
            self.optimizer.warmup_steps < self.train.steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be below train.steps={self.train.steps}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, ready for JSON (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `to_dict`.

    Args:
      cls: a config dataclass, for example `Config`.
      values: nested mapping with its fields; missing ones take their defaults.

    Raises:
      ConfigError: an unknown field (the nearest known one is named) or a bad value.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    out = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(fields)}"
            raise ConfigError(f"{cls.__name__} has no field {key!r}{hint}")
        out[key] = _coerce(f"{cls.__name__}.{key}", hints[key], value)
    return cls(**out)


def differences(stored: Any, given: Any, ignore: tuple[str, ...] = ()) -> list[str]:
    """Fields in which two configs of a class differ, one line each: ``model.k_neurons: stored 8, given 4``.

    Args:
      stored: a config dataclass, usually read from a working directory.
      given: another of the same class.
      ignore: dotted names left out, with all below them (``("train.steps", "mesh")``).
    """
    a, b = _flatten(to_dict(stored)), _flatten(to_dict(given))
    skip = tuple(f"{name}." for name in ignore)
    names = [n for n in sorted(a.keys() | b.keys()) if n not in ignore and not n.startswith(skip)]
    return [f"{n}: stored {a.get(n)!r}, given {b.get(n)!r}" for n in names if a.get(n) != b.get(n)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return out


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """JSON value -> field value, checked against the field's type."""
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, Mapping), f"{name}={value!r} must be an object of settings")
        return from_dict(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _require(value in args, f"{name}={value!r} must be one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(name, args, value)
    if origin is tuple:
        _require(isinstance(value, list | tuple), f"{name}={value!r} must be a list")
        return tuple(_coerce(name, args[0], v) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    ok = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    _require(ok, f"{name}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    return value


def _coerce_union(name: str, args: tuple[Any, ...], value: Any) -> Any:
    for arg in args:
        if arg is type(None):
            if value is None:
                return None
            continue
        try:
            return _coerce(name, arg, value)
        except ConfigError:
            continue
    names = " or ".join(getattr(a, "__name__", str(a)) for a in args)
    raise ConfigError(f"{name}={value!r} must be of type {names}")
