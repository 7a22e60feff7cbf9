"""Settings of a SAFR text classifier: encoder with VMASK, loss with regularisers, sentiment data, length of a run."""

import dataclasses
from typing import ClassVar, Literal

from jaxablate.config.checks import incidental, require, require_numbers, require_positive
from jaxablate.config.gated import GatedModelConfig
from jaxablate.config.run import MeshConfig, OptimizerConfig, RegularizedObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig(GatedModelConfig):
    """Shape of the SAFR encoder (docs/papers.md, SAFR); the defaults are the paper's, with one layer."""

    vocab_size: int = 0
    """Rows of the embedding; 0 takes the size of the data's vocabulary."""
    max_length: int = 128
    """Rows of the sinusoidal position table; longer texts are cut. The paper takes 128 for SST-2, 256 for IMDB."""
    d_model: int = 256
    """Width D of embeddings and blocks."""
    n_layers: int = 1
    """Number of blocks."""
    n_heads: int = 8
    """Attention heads N of a layer."""
    n_classes: int = 2
    """Classes that a text may have."""
    dropout: float = 0.1
    """Share of the first block's inputs set to zero in training, after the positions were added."""
    padding: Literal["masked", "paper"] = "masked"
    """masked: padding is outside the pooled mean and both regularisers, so no result depends on it; paper: it is
    inside, as in the released code, and every text is padded to max_length."""
    vmask: bool = True
    """Whether each token's embedding is masked by VMASK (Chen & Ji 2020) before the first block."""
    vmask_width: int = 300
    """Hidden units of VMASK's MLP."""

    ablation: Literal["none", "local"] = "none"
    """local: each block's own scores choose k channels and k neurons a token, in a second stream beside the ordinary
    one, as in the self-ablating transformer."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "max_length", "vmask_width")
        require(self.vocab_size >= 0, f"vocab_size={self.vocab_size} must not be negative")
        require(self.n_classes >= 2, f"n_classes={self.n_classes} must be at least 2")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must be in [0, 1)")
        require(self.d_model % 2 == 0, f"d_model={self.d_model} must be even (sines and cosines of the positions)")

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores before the softmax."""
        return self.head_width**-0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationObjective(RegularizedObjective):
    """Coefficients of ``clean * CE + ablated * CE(ablated) + regularisers`` (docs/papers.md, SAFR).

    Without gates there is one cross-entropy, and its coefficient is 1: `clean` and `ablated` are not used.
    """

    importance: float = 1.0
    """Coefficient of SAFR's importance loss, `jaxablate.regularizers.polysemanticity`; the paper takes 1."""
    interaction: float = 1.0
    """Coefficient of SAFR's interaction loss, `jaxablate.regularizers.interference`; the paper takes 1."""
    information: float = 0.0
    """Coefficient of VMASK's information term, `jaxablate.regularizers.information` (beta of Chen & Ji 2020; SAFR has
    no such term)."""
    clean: float = 1.0
    """Coefficient of the clean stream's cross-entropy, in a gated model."""
    ablated: float = 1.0
    """Coefficient of the ablated stream's cross-entropy, in a gated model."""
    layers: tuple[int, ...] = (0,)
    """Layers whose attention and neurons regularisers read; a term is the mean over them."""
    importance_site: Literal["embedding", "neurons"] = "embedding"
    """What terms that read vectors, such as the importance loss, are given: the masked embeddings, as in the paper, or
    the activated MLP neurons (in the ablated stream times their gates)."""
    stream: Literal["clean", "ablated", "both"] = "clean"
    """Stream of the regularised attention and neurons, in a gated model."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("clean", "ablated"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name}={value} must not be negative")
        require(len(self.layers) > 0, "objective.layers is empty; give at least one layer, counted from 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentimentDataConfig:
    """Labelled texts and how they become tokens."""

    source: Literal["sst2", "imdb"] = "sst2"
    """sst2: Stanford Sentiment Treebank without its neutral sentences; imdb: Large Movie Review Dataset."""
    path: str | None = incidental(None)
    """sst2: folder of PTB trees (train.txt, dev.txt, test.txt) or of GLUE (train.tsv, dev.tsv). imdb: aclImdb_v1.tar.gz
    or its unpacked folder. None: cache_dir, downloaded where a network allows."""
    cache_dir: str = incidental("data")
    """Folder of downloads."""
    vocabulary: Literal["words", "gpt2"] = "words"
    """words: white-space words of the training split; gpt2: byte pairs by tiktoken."""
    min_count: int = 2
    """words: occurrences in the training split from which one is in the vocabulary."""
    balance: bool = True
    """sst2: cut the training split's larger class to the size of the smaller one, as in the paper. The full treebank
    loses 300 of 6,920 sentences; an unbalanced subset may lose most of its texts."""
    split_seed: int = 0
    """Decides which reviews of imdb's training half, or training phrases of GLUE's sst2, are the development split."""

    def __post_init__(self):
        require_numbers(self)
        require_positive(self, "min_count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochTrainConfig:
    """Length of a run in epochs, and how often it is measured, logged and saved."""

    epochs: int = 100
    """Epochs at most."""
    patience: int = 3
    """Epochs without a better development accuracy after which training stops; 0 never stops early."""
    batch_size: int = 32
    """Texts of one optimiser step, over all devices."""
    bucket_multiple: int = 8
    """Texts of similar length share a batch, which is padded to the next multiple of this many tokens; 0 pads every
    batch to max_length. `model.padding="paper"` always does."""
    seed: int = 0
    """Seed of the weights, of the order of the data, and of what is drawn in training."""
    log_every: int = incidental(50)
    """Steps between two lines of the log."""
    keep_last: int = incidental(1)
    """Newest checkpoints kept, besides the best one by development accuracy."""
    tensorboard: bool = incidental(True)
    """Write the metrics for TensorBoard, too: WORKDIR/tensorboard."""
    wandb_project: str | None = incidental(None)
    """Also log to this Weights & Biases project (extra ``wandb``)."""

    def __post_init__(self):
        require_numbers(self)
        require_positive(self, "epochs", "batch_size", "log_every", "keep_last")
        require(self.patience >= 0, f"patience={self.patience} must not be negative")
        require(self.bucket_multiple >= 0, f"bucket_multiple={self.bucket_multiple} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """One run of a text classifier, stored as ``config.json`` in its working directory."""

    task: ClassVar[str] = "classification"

    model: ClassifierConfig = ClassifierConfig()
    objective: ClassificationObjective = ClassificationObjective()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, schedule="constant", clip_norm=None)
    data: SentimentDataConfig = SentimentDataConfig()
    train: EpochTrainConfig = EpochTrainConfig()
    mesh: MeshConfig = incidental(MeshConfig())

    def __post_init__(self):
        layers = self.model.n_layers
        wrong = [layer for layer in self.objective.layers if not 0 <= layer < layers]
        require(not wrong, f"objective.layers={wrong} must be in 0..{layers - 1} for model.n_layers={layers}")
        require(self.objective.information == 0 or self.model.vmask,
                f"objective.information={self.objective.information} needs VMASK; set it to 0 or model.vmask=True")
        require(self.objective.stream == "clean" or self.model.gated,
                f"objective.stream={self.objective.stream!r} needs a gated model; set model.ablation='local' or take "
                "'clean'")

    def model_for(self, vocab_size: int) -> ClassifierConfig:
        """The model's settings with the size of the data's vocabulary filled in."""
        return dataclasses.replace(self.model, vocab_size=self.model.vocab_size or vocab_size)
