"""Settings of sparse autoencoders: their kind and shape, and how they are trained."""

import dataclasses
from typing import Literal

from jaxablate.errors import ConfigError

Architecture = Literal["standard", "topk", "batchtopk", "jumprelu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape and kind of a sparse autoencoder; the defaults are the paper's (docs/papers.md, Feature concentration).

    Raises:
      ConfigError: a field is out of range or does not fit the others.
    """

    d_in: int = 128
    """Width D of the activations."""
    d_sae: int = 2048
    """Number S of latents."""
    architecture: Architecture = "standard"
    """standard: ReLU and an L1 penalty. topk: the k largest of each token (Gao et al. 2024). batchtopk: k a token on
    average over a batch in training, a threshold at inference (Bussmann et al. 2024). jumprelu: a threshold for each
    latent; it can be used, not trained."""
    k: float = 32
    """Active latents a token, of topk (whole) and batchtopk."""
    decoder: Literal["unit", "free"] = "unit"
    """unit: each latent's decoder vector has norm 1 in every step, and the penalty is the plain L1. free: any norm,
    and the penalty weighs each latent with it (SAELens: scale_sparsity_penalty_by_decoder_norm)."""
    project_gradient: bool = True
    """Of a unit decoder: take away the part of the gradient along each vector, after clipping and before Adam.
    The recorded steps of SAELens 5.1.0, which has such a projection, are met without it and not with it: False."""
    center: bool = False
    """Subtract the decoder's bias from the input first (SAELens: apply_b_dec_to_input)."""
    init: Literal["kaiming", "constant_norm", "positive"] = "kaiming"
    """kaiming: U(-b, b) with b = sqrt(6 / D); the encoder is its transpose, the unit decoder is then normalised.
    constant_norm: the same directions with norm 0.1. positive: U(0, 1) directions with norm 0.1, which is what SAELens
    5.1.0's decoder_heuristic_init draws."""
    auxiliary: float = 1.0
    """topk and batchtopk: coefficient of the loss that has dead latents explain the error (Gao et al. 2024, A.2)."""
    threshold_rate: float = 0.01
    """batchtopk: rate of the running mean of the smallest active latent, the threshold at inference."""
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        for name in ("d_in", "d_sae"):
            _require(getattr(self, name) >= 2, f"{name}={getattr(self, name)} must be at least 2")
        _require(self.auxiliary >= 0, f"auxiliary={self.auxiliary} must not be negative")
        _require(0 < self.threshold_rate <= 1, f"threshold_rate={self.threshold_rate} must be above 0 and at most 1")
        if self.architecture in ("topk", "batchtopk"):
            _require(0 < self.k < self.d_sae, f"k={self.k} must be above 0 and below d_sae={self.d_sae}")
        if self.architecture == "topk":
            _require(self.k == int(self.k), f"k={self.k} of topk must be a whole number; batchtopk takes any mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeTrainConfig:
    """Length and pace of a training run; the defaults are the paper's (docs/papers.md, Feature concentration).

    Raises:
      ConfigError: a number is out of range.
    """

    steps: int = 100_000
    batch_tokens: int = 4096
    """Tokens M of an optimiser step."""
    learning_rate: float = 1e-5
    warmup: float = 0.0
    """Part of the steps over which the learning rate rises linearly from 1 step's worth to its full value."""
    decay: float = 0.2
    """Last part of the steps, over which it falls linearly to 0."""
    l1_warmup: float = 0.05
    """First part of the steps, over which the L1 coefficient rises linearly from 0."""
    beta1: float = 0.0
    beta2: float = 0.999
    adam_eps: float = 1e-8
    clip_norm: float | None = 1.0
    """Largest global gradient norm of one autoencoder."""
    dead_steps: int = 1000
    """A latent that fired for no token in so many steps counts as dead."""
    buffer_batches: int = 64
    """Steps' worth of activations in the shuffle buffer, an even number; half of it is renewed at a time."""
    seed: int = 0
    """Decides the mixing of the buffer; each run's own seed decides its weights."""
    chunk: int = 0
    """Tokens whose latents are held at once; 0 lets the backend choose."""

    def __post_init__(self):
        for name in ("steps", "batch_tokens", "dead_steps", "buffer_batches"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup", "decay", "l1_warmup"):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be a fraction in 0..1")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in 0..1, 1 excluded")
        _require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be above 0")
        _require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be above 0, or None")
        _require(self.chunk >= 0, f"chunk={self.chunk} must not be negative")
        _require(self.buffer_batches % 2 == 0, f"buffer_batches={self.buffer_batches} must be even")

    @property
    def round_steps(self) -> int:
        """Steps between two fillings of the buffer: half of it."""
        return self.buffer_batches // 2

    @property
    def rounds(self) -> int:
        """How often half the buffer is trained on; the last time perhaps on a part of it."""
        return -(-self.steps // self.round_steps)

    @property
    def tokens(self) -> int:
        """Tokens the model sees in all: one half buffer a round, and one more at the start."""
        return (self.rounds + 1) * self.round_steps * self.batch_tokens


@dataclasses.dataclass(frozen=True)
class SaeRun:
    """What may differ between autoencoders that are trained together."""

    site: str
    l1: float = 5.0
    """L1 coefficient; not used by topk and batchtopk."""
    seed: int = 0

    def __post_init__(self):
        _require(self.l1 >= 0, f"l1={self.l1} must not be negative")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
