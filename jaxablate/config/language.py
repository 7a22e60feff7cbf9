"""Settings of a self-ablating language model: shape and gates, loss, data, length of a run."""

import dataclasses
from typing import ClassVar, Literal

from jaxablate.config.checks import incidental, require, require_numbers, require_positive
from jaxablate.config.gated import GatedModelConfig
from jaxablate.config.run import MeshConfig, OptimizerConfig, RegularizedObjective

Ablation = Literal["none", "local", "global", "both"]
LayerKind = Literal["global", "local"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(GatedModelConfig):
    """Shape and gating of a self-ablating transformer (Ferrao et al. 2025); the defaults are the paper's shape.

    Raises:
      ConfigError: a field is out of range or does not fit the others.
    """

    vocab_size: int = 50257
    """Rows of the tied embedding; at least the tokenizer's size."""
    context_length: int = 256
    """Rows of the learned position table; the longest sequence the model takes."""
    attention_layers: tuple[LayerKind, ...] = ("global",)
    """Kind of each layer's attention, repeated to n_layers: causal, or causal within a window."""
    window_size: int = 256
    """A local layer's query i sees keys i - window_size + 1 .. i."""
    scale_attention: bool = False
    """Divide attention scores by sqrt(head width). GPT-Neo and the paper do not."""
    position_std: float = 1.0
    """Standard deviation of the position table at initialisation. The released code draws N(0, 1), twenty times the
    token embedding's 0.05 at d_model 128; a smaller table learns faster in short runs."""

    ablation: Ablation = "local"
    """Where relevance scores come from: local (each block), global (a clean pass first), both (their sum), none."""
    remat: Literal["none", "blocks"] = incidental("none")
    """blocks: recompute each block's activations in the backward pass (less memory, about a third more arithmetic)."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "vocab_size", "context_length", "window_size", "position_std")
        require(len(self.attention_layers) > 0, "attention_layers is empty; give 'global', 'local' or a cycle of them")

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores before the softmax."""
        return self.head_width**-0.5 if self.scale_attention else 1.0

    def layer_window(self, layer: int) -> int | None:
        """Attention window of a layer; None where it sees every earlier position."""
        kind = self.attention_layers[layer % len(self.attention_layers)]
        return self.window_size if kind == "local" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(RegularizedObjective):
    """Coefficients of ``clean * CE(clean) + ablated * CE(ablated) + reconstruction * R + regularisers``.

    The first three terms are the SAT loss (docs/papers.md, Losses). Regularisers read the activated neurons and the
    attention of the streams; neither paper has them on a language model.
    """

    clean: float = 0.5
    ablated: float = 0.5
    reconstruction: float = 0.0
    regularized_layers: tuple[int, ...] = ()
    """Layers that every regulariser is a mean over; none given takes all."""
    regularized_stream: Literal["clean", "ablated", "both"] = "both"
    """Streams that every regulariser is a mean over; a model without gates has the clean one only."""
    ce_chunk: int = incidental(0)
    """Tokens whose logits the linear cross-entropy holds at once; 0 lets the backend choose."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("clean", "ablated", "reconstruction", "ce_chunk"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}={value} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tokens come from."""

    source: Literal["tinystories", "text", "embedded"] = "tinystories"
    """tinystories / text: files of stories, one ``<|endoftext|>`` line after each; embedded: the package's corpus."""
    train_path: str | None = incidental(None)
    """Story file to train on; None takes TinyStories from ``cache_dir``, downloaded where a network allows."""
    valid_path: str | None = incidental(None)
    cache_dir: str = incidental("data")
    """Folder of token files and downloads."""
    tokenizer: Literal["gpt2", "bpe", "corpus"] = "gpt2"
    """gpt2 by tiktoken; a byte-level BPE trained on the training text; the embedded corpus's own words."""
    bpe_vocab_size: int = 4096
    embedded_stories: int = 20000
    """Stories of the embedded corpus to train on."""
    embedded_valid_stories: int = 500
    embedded_seed: int = 0

    def __post_init__(self):
        require_numbers(self)
        require_positive(self, "embedded_stories", "embedded_valid_stories")
        require(
            self.bpe_vocab_size >= 257,
            f"bpe_vocab_size={self.bpe_vocab_size} must be at least 257 (256 bytes and end-of-text)",
        )
        require(
            (self.source == "embedded") == (self.tokenizer == "corpus"),
            f"tokenizer={self.tokenizer!r} does not fit source={self.source!r}; the embedded corpus takes "
            "tokenizer='corpus', story files take 'gpt2' or 'bpe'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, and how often it is measured, logged and saved."""

    steps: int = 400_000
    batch_size: int = 24
    """Sequences of one optimiser step, over all devices and accumulation steps."""
    sequence_length: int = 256
    accumulation_steps: int = incidental(0, continuable=False)
    """Gradients of this many equal parts of the batch are averaged before one update; 0 takes parts of about 512
    tokens on CPU, fastest for models of the paper's size (small ones want 1), and a single one elsewhere."""
    seed: int = 0
    log_every: int = incidental(10)
    eval_every: int = incidental(1000)
    eval_batches: int = incidental(50, continuable=False)
    """Validation batches of a periodic evaluation, always the same ones."""
    checkpoint_every: int = incidental(1000)
    keep_last: int = incidental(2)
    """Newest checkpoints kept, besides the best one by validation loss."""
    tensorboard: bool = incidental(True)
    wandb_project: str | None = incidental(None)
    """Also log to this Weights & Biases project (extra ``wandb``)."""

    def __post_init__(self):
        require_numbers(self)
        require_positive(self, "steps", "batch_size", "sequence_length", "log_every", "eval_every",
                         "eval_batches", "checkpoint_every", "keep_last")
        require(
            self.accumulation_steps >= 0 and self.batch_size % max(1, self.accumulation_steps) == 0,
            f"accumulation_steps={self.accumulation_steps} must divide batch_size={self.batch_size}, or be 0",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run of a language model: all ``train.py`` needs, stored as ``config.json`` in its working directory."""

    task: ClassVar[str] = "language"

    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = incidental(MeshConfig())

    def __post_init__(self):
        require(
            self.train.sequence_length <= self.model.context_length,
            f"train.sequence_length={self.train.sequence_length} must not exceed "
            f"model.context_length={self.model.context_length}",
        )
        layers = self.model.n_layers
        wrong = [layer for layer in self.objective.regularized_layers if not 0 <= layer < layers]
        require(not wrong, f"objective.regularized_layers={wrong} must be in 0..{layers - 1}, the model's layers")
        regularized = any(self.objective.coefficients.values())
        require(
            self.objective.regularized_stream != "ablated" or self.model.gated or not regularized,
            "objective.regularized_stream='ablated' needs a gated model; set model.ablation or take 'clean'",
        )
