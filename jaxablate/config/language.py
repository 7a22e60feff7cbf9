"""Settings of a self-ablating language model: shape and gates, loss, data, length of a run."""

import dataclasses
from typing import ClassVar, Literal

from jaxablate.config.checks import (
    LARGEST,
    divisors,
    incidental,
    require,
    require_literals,
    require_numbers,
    require_positive,
)
from jaxablate.config.gated import GatedModelConfig
from jaxablate.config.run import MeshConfig, OptimizerConfig, RegularizedObjective

Ablation = Literal["none", "local", "global", "both"]
LayerKind = Literal["global", "local"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(GatedModelConfig):
    """Shape and gating of a self-ablating transformer (Ferrao et al. 2025); the defaults are the paper's shape.

    Every field is independent of the others as far as none says otherwise. `jaxablate.config.family` has those of
    GPT-2, GPT-NeoX, Llama, Qwen2 and Gemma 2.

    Raises:
      ConfigError: a field is out of range or does not fit the others.
    """

    vocab_size: int = 50257
    """Rows of the embedding; at least the tokenizer's size."""
    tied: bool = True
    """Logits are products with the embedding; if not, with an output matrix of their own."""
    scale_embedding: bool = False
    """Multiply token embeddings by sqrt(d_model), as Gemma does."""
    logit_cap: float | None = None
    """Logits are cap * tanh(logits / cap), as in Gemma 2; None leaves them."""

    context_length: int = 256
    """The longest sequence the model takes; rows of the learned position table."""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: a table added to the embedding; rotary: queries and keys turn with their position (Su et al. 2021)."""
    rotary_fraction: float = 1.0
    """Part of each head, from its first channel on, that turns; its two halves are the pairs' coordinates."""
    rotary_theta: float = 10_000.0
    """Wavelengths are 2 pi * rotary_theta^(i / pairs), in positions, for pairs i = 0, 1, ..."""

    norm: Literal["layer", "rms", "rms_offset"] = "layer"
    """layer: LayerNorm; rms: root mean square, without bias (Zhang and Sennrich 2019); rms_offset: the same with
    1 + scale as factor, as in Gemma."""
    post_norms: bool = False
    """A norm on what attention and MLP add to the residual stream, too, as in Gemma 2."""
    parallel: bool = False
    """Attention and MLP of a block read the same residual stream, each by its own norm, as in GPT-NeoX."""

    head_dim: int | None = None
    """Width H of a head; None means d_model / n_heads."""
    kv_heads: int | None = None
    """Key and value heads K, each shared by n_heads / K query heads that follow one another; None means n_heads."""
    attention_layers: tuple[LayerKind, ...] = ("global",)
    """Kind of each layer's attention, repeated to n_layers: causal, or causal within a window."""
    window_size: int = 256
    """A local layer's query i sees keys i - window_size + 1 .. i."""
    scale_attention: bool = False
    """Divide attention scores by sqrt(head width). GPT-Neo and the paper do not."""
    attention_scale_width: int | None = None
    """With scale_attention, divide by the square root of this in place of the head width, as Gemma 2 does."""
    attention_cap: float | None = None
    """Scaled attention scores are cap * tanh(scores / cap), as in Gemma 2; None leaves them."""
    qkv_bias: bool = False
    """Queries, keys and values have biases."""
    out_bias: bool = True
    """The heads' output projection has a bias."""
    mlp: Literal["plain", "gated"] = "plain"
    """plain: neurons are activation(up x); gated: activation(gate x) * up x (Shazeer 2020)."""
    activation: Literal["gelu_tanh", "gelu", "silu", "relu"] = "gelu_tanh"
    """The neurons' activation function; gelu_tanh is GELU by its tanh approximation."""
    mlp_bias: bool = True
    """Every projection of the MLP has a bias."""
    mlp_top_k: int | None = None
    """Only so many of a layer's neurons at a token, the largest in absolute value, are not zero (AbsTopK; Gao et al.
    2025, arXiv 2511.13653); None for all. The clean stream has them, too: it is no gate."""
    position_std: float = 1.0
    """Standard deviation of the learned position table at initialisation. The released code draws N(0, 1), twenty
    times the token embedding's 0.05 at d_model 128; a smaller table learns faster in short runs."""

    ablation: Ablation = "local"
    """Where relevance scores come from: local (each block), global (a clean pass first), both (their sum), none."""
    score_input: Literal["residual", "normalized"] = "residual"
    """What a block's score heads read: the clean residual stream that enters it, as in the paper, or that with mean 0
    and variance 1 over its channels."""
    score_lag: int = 0
    """A block's score heads read the residual stream that entered the block so many earlier, at the first blocks the
    embedding."""
    detach_scores: bool = False
    """Score heads learn, but no gradient goes through scores into what they read."""
    detach_clean: bool = False
    """No gradient of the ablated stream goes into the clean stream's keys and values."""
    remat: Literal["none", "blocks"] = incidental("none")
    """blocks: recompute each block's activations in the backward pass (less memory, about a third more arithmetic)."""

    def __post_init__(self):
        require_literals(self)
        super().__post_init__()
        require_positive(self, "vocab_size", "context_length", "window_size", "position_std", "rotary_theta")
        require(self.ablation in ("local", "both") or (self.score_lag == 0 and self.score_input == "residual"),
                f"score_input={self.score_input!r} and score_lag={self.score_lag} are of each block's own score heads, "
                f"which ablation={self.ablation!r} has none of; leave them out, or take local or both")
        require(0 <= self.score_lag < max(self.n_layers, 1), f"score_lag={self.score_lag} must be in "
                f"0..{self.n_layers - 1}, below n_layers={self.n_layers}")
        require(len(self.attention_layers) > 0, "attention_layers is empty; give 'global', 'local' or a cycle of them")
        for name in ("attention_scale_width", "attention_cap", "logit_cap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive, or None")
        require(self.mlp_top_k is None or 1 <= self.mlp_top_k < self.mlp_width, f"mlp_top_k={self.mlp_top_k} must be "
                f"at least 1, and below the {self.mlp_width} neurons of a layer; or None for all")
        require(self.scale_attention or self.attention_scale_width is None,
                f"attention_scale_width={self.attention_scale_width} needs scale_attention=True")
        self._check_positions()

    def _check_heads(self) -> None:
        if self.head_dim is None:
            super()._check_heads()
        require(self.head_dim is None or self.head_dim > 0, f"head_dim={self.head_dim} must be positive, or None")
        require(self.attention_width <= LARGEST, f"n_heads={self.n_heads} times head_dim={self.head_dim} must be at "
                f"most {LARGEST:,}; choose a smaller head_dim")
        k = self.kv_heads
        require(k is None or (k > 0 and self.n_heads % k == 0),
                f"kv_heads={k} must divide n_heads={self.n_heads}; choose one of "
                f"{', '.join(map(str, divisors(self.n_heads)))}")

    def _check_positions(self) -> None:
        if self.positions == "learned":
            for name in ("rotary_fraction", "rotary_theta"):
                value = getattr(self, name)
                require(value == type(self).__dataclass_fields__[name].default,
                        f"{name}={value} needs positions='rotary'; leave it out, or set positions")
            return
        require(0 < self.rotary_fraction <= 1, f"rotary_fraction={self.rotary_fraction} must be above 0, at most 1")
        require(self.rotary_width > 0 and self.rotary_width % 2 == 0,
                f"rotary_fraction={self.rotary_fraction} of heads of width {self.head_width} are {self.rotary_width} "
                "channels; they turn in pairs: choose a fraction that gives an even number above 0")

    @property
    def head_width(self) -> int:
        return super().head_width if self.head_dim is None else self.head_dim

    @property
    def key_heads(self) -> int:
        """Key and value heads K of one layer, resolved."""
        return self.n_heads if self.kv_heads is None else self.kv_heads

    @property
    def rotary_width(self) -> int:
        """Channels of each head that turn with the position; 0 without rotary positions."""
        return int(self.head_width * self.rotary_fraction) if self.positions == "rotary" else 0

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores before the softmax."""
        return (self.attention_scale_width or self.head_width) ** -0.5 if self.scale_attention else 1.0

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
    """Coefficient of the clean stream's cross-entropy."""
    ablated: float = 0.5
    """Coefficient of the ablated stream's cross-entropy."""
    reconstruction: float = 0.0
    """Coefficient of the distance R between the two streams' normalised residuals."""
    gate_information: float = 0.0
    """Coefficient of `information_of_gates`, at most what the gates of a layer tell of anything, in nats."""
    ablated_anneal: float = 0.0
    """First part of the training steps, over which the coefficient of the ablated stream rises linearly from 0."""
    gate_anneal: float = 0.0
    """First part of the training steps, over which gates close: from 1 for all units linearly to what they are."""
    random_gates: float = 0.0
    """Part of the tokens, drawn anew at each training step, whose gates in a layer are k random winners."""
    regularized_layers: tuple[int, ...] = ()
    """Layers that every regulariser is a mean over; none given takes all."""
    regularized_stream: Literal["clean", "ablated", "both"] = "both"
    """Streams that every regulariser is a mean over; a model without gates has the clean one only."""
    ce_chunk: int = incidental(0)
    """Tokens whose logits the linear cross-entropy holds at once; 0 lets the backend choose."""

    @property
    def changes(self) -> bool:
        """Whether the loss depends on when in the training it is, or draws anything."""
        return bool(self.ablated_anneal or self.gate_anneal or self.random_gates)

    def __post_init__(self):
        super().__post_init__()
        for name in ("clean", "ablated", "reconstruction", "gate_information", "ce_chunk"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}={value} must not be negative")
        for name in ("ablated_anneal", "gate_anneal", "random_gates"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"objective.{name}={value} must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tokens come from."""

    source: Literal["tinystories", "text", "embedded"] = "tinystories"
    """tinystories / text: files of stories, one ``<|endoftext|>`` line after each; embedded: the package's corpus."""
    train_path: str | None = incidental(None)
    """Story file to train on; None takes TinyStories from ``cache_dir``, downloaded where a network allows."""
    valid_path: str | None = incidental(None)
    """Story file to validate on; None takes that of TinyStories."""
    cache_dir: str = incidental("data")
    """Folder of token files and downloads."""
    tokenizer: Literal["gpt2", "bpe", "corpus", "file"] = "gpt2"
    """gpt2 by tiktoken; a byte-level BPE trained on the training text; the embedded corpus's own words; the
    ``tokenizer.json`` of a folder."""
    tokenizer_path: str | None = incidental(None)
    """That folder, as Hugging Face writes it."""
    bpe_vocab_size: int = 4096
    """Tokens of a byte-pair encoding that is trained on the text (tokenizer bpe)."""
    embedded_stories: int = 20000
    """Stories of the embedded corpus to train on."""
    embedded_valid_stories: int = 500
    """Stories of the embedded corpus to validate on."""
    embedded_seed: int = 0
    """Seed of the embedded corpus."""

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
            "tokenizer='corpus', story files take 'gpt2', 'bpe' or 'file'",
        )
        require(self.tokenizer_path is None or self.tokenizer == "file",
                f"tokenizer_path={self.tokenizer_path!r} needs tokenizer='file', not {self.tokenizer!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, and how often it is measured, logged and saved."""

    steps: int = 400_000
    """Updates of the run; the learning rate falls over as many as there are."""
    batch_size: int = 24
    """Sequences of one optimiser step, over all devices and accumulation steps."""
    sequence_length: int = 256
    """Tokens of a training window."""
    accumulation_steps: int = incidental(0, continuable=False)
    """Gradients of this many equal parts of the batch are averaged before one update; 0 takes parts of about 512
    tokens on CPU, fastest for models of the paper's size (small ones want 1), and a single one elsewhere."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    log_every: int = incidental(10)
    """Steps between two measurements of training in metrics.jsonl."""
    eval_every: int = incidental(1000)
    """Steps between two evaluations on the validation split."""
    eval_batches: int = incidental(50, continuable=False)
    """Validation batches of a periodic evaluation, always the same ones."""
    checkpoint_every: int = incidental(1000)
    """Steps between two checkpoints."""
    keep_last: int = incidental(2)
    """Newest checkpoints kept, besides the best one by validation loss."""
    tensorboard: bool = incidental(True)
    """Write the metrics for TensorBoard, too: WORKDIR/tensorboard."""
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
        changed = [name for name in ("gate_information", "ablated_anneal", "gate_anneal", "random_gates")
                   if getattr(self.objective, name)]
        require(self.model.gated or not changed, f"objective.{next(iter(changed), '')} needs a gated model; set "
                "model.ablation or leave it out")
        ks = {(self.model.layer_k("attention", i), self.model.layer_k("neurons", i)) for i in range(layers)}
        require(not self.objective.random_gates or len(ks) == 1, "objective.random_gates needs the same k in all "
                "layers; give model.k_attention and model.k_neurons one number each")
        regularized = any(self.objective.coefficients.values())
        require(
            self.objective.regularized_stream != "ablated" or self.model.gated or not regularized,
            "objective.regularized_stream='ablated' needs a gated model; set model.ablation or take 'clean'",
        )
