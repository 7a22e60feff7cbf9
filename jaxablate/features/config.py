"""How sparse autoencoders are trained: length and pace, presets, and what differs between those trained together."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxablate.features.sae import require

Preset = Literal["quick", "paper"]
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"steps": 4000, "learning_rate": 3e-3, "project_gradient": True},
    "paper": {"steps": 100_000, "learning_rate": None, "project_gradient": False},
}
"""Settings that a preset decides. quick: docs/features.md has the comparison that its learning rate comes from. paper:
100,000 steps at 1e-5 as SAELens 5.1.0 makes them; in fewer steps a rate that goes as far."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeTrainConfig:
    """Length and pace of a training run; the defaults are the paper's (docs/papers.md, Feature concentration).

    Raises:
      ConfigError: a number is out of range.
    """

    steps: int = 100_000
    batch_tokens: int = 4096
    """Tokens M of an optimiser step."""
    learning_rate: float | None = None
    """Adam's step size. None becomes 1 / steps, at most 3e-3: 1e-5 in the paper's 100,000 steps, and in fewer steps as
    far a way in all, for at 1e-5 a few hundred steps leave the weights where they began."""
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
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup", "decay", "l1_warmup"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be a fraction in 0..1")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in 0..1, 1 excluded")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", min(1 / self.steps, 3e-3))
        require(0 < self.rate < float("inf"), f"learning_rate={self.learning_rate} must be a number above 0")
        require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be above 0, or None")
        require(self.chunk >= 0, f"chunk={self.chunk} must not be negative")
        require(self.buffer_batches % 2 == 0, f"buffer_batches={self.buffer_batches} must be even")

    @property
    def rate(self) -> float:
        """The learning rate as a number; it is never None once made."""
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def round_steps(self) -> int:
        """Steps between two fillings of the buffer: half of it."""
        return self.buffer_batches // 2

    @property
    def tokens(self) -> int:
        """Tokens the model sees in all: half a buffer for each round, and one more at the start."""
        rounds = -(-self.steps // self.round_steps)
        return (rounds + 1) * self.round_steps * self.batch_tokens


@dataclasses.dataclass(frozen=True)
class SaeRun:
    """What may differ between autoencoders that are trained together."""

    site: str
    """Where its activations are from: a site of a decoder, or any name."""
    l1: float = 5.0
    """L1 coefficient; without effect on an architecture without penalty, such as topk."""
    seed: int = 0
    """Seed of the weights at the start."""

    def __post_init__(self):
        require(0 <= self.l1 < float("inf"), f"l1={self.l1} must be a number of at least 0")
