"""Settings that every kind of run has: regularisers of the loss, optimiser, mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from jaxablate.config.checks import require, require_numbers, require_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizedObjective:
    """Coefficients of regularisers, the terms of `jaxablate.regularizers.REGULARIZERS`, which every loss can add."""

    importance: float = 0.0
    """Coefficient of SAFR's importance loss, `jaxablate.regularizers.polysemanticity`: tokens get neurons of their
    own."""
    interaction: float = 0.0
    """Coefficient of SAFR's interaction loss, `jaxablate.regularizers.interference`: tokens that attend to each other
    may share."""
    regularizers: tuple[tuple[str, float], ...] = ()
    """Further registered terms, each a name and its coefficient; a mapping from name to coefficient is taken, too."""

    def __post_init__(self):
        pairs = self.regularizers.items() if isinstance(self.regularizers, Mapping) else self.regularizers
        object.__setattr__(self, "regularizers", tuple((str(name), float(value)) for name, value in pairs))
        require_numbers(self)
        names = [name for name, _ in self.regularizers]
        fields = {field.name for field in dataclasses.fields(self)}
        twice = [name for name in names if name in fields or names.count(name) > 1]
        require(not twice, f"objective.regularizers has {twice} twice or beside the field of that name; give it once")
        for name, value in self.coefficients.items():
            require(value >= 0, f"objective.{name}={value} must not be negative")

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficient of every term by its registered name."""
        fields = [field.name for field in dataclasses.fields(self) if field.name in _NAMED_TERMS]
        return {name: getattr(self, name) for name in fields} | dict(self.regularizers)


_NAMED_TERMS = ("importance", "interaction", "information")
"""Registered terms whose coefficients are fields of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with global-norm clipping and a warm-up / cosine schedule; defaults as stored with the paper's runs."""

    learning_rate: float = 1.4e-3
    """Learning rate after the warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the learning rate falls to final_fraction of it at the last step; constant: it stays."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    final_fraction: float = 0.0
    """Learning rate at the last step over its peak (cosine)."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean square that Adam divides by."""
    weight_decay: float = 0.0
    """Part of each weight that a step takes away, times the learning rate."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None never clips."""
    nonzero_fraction: float = 1.0
    """Part of every weight matrix that is not zero after an update: the largest by magnitude, the others are set to 0
    (weight-sparse training, Gao et al. 2025). 1 leaves all."""
    nonzero_anneal: float = 0.5
    """First part of the steps, over which that part falls linearly from 1."""

    def __post_init__(self):
        require_numbers(self)
        require_positive(self, "learning_rate", "eps")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}={value} must be in [0, 1)")
        require(0 <= self.final_fraction <= 1, f"final_fraction={self.final_fraction} must be in [0, 1]")
        require(0 < self.nonzero_fraction <= 1, f"nonzero_fraction={self.nonzero_fraction} must be above 0, at most 1")
        require(0 <= self.nonzero_anneal <= 1, f"nonzero_anneal={self.nonzero_anneal} must be in [0, 1]")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each named axis of the mesh."""

    data: int = -1
    """Replicas, each with its own part of the batch; -1 takes the devices the other axes leave."""
    fsdp: int = 1
    """Parts of the batch that also share out parameters and optimiser state."""
    tensor: int = 1
    """Parts of heads, neurons and vocabulary."""
    vocab_multiple: int = 128
    """A language model's vocabulary is filled up with rows of zeros to a multiple of this, and of `tensor`, while it
    trains: 50,257 rows divide by nothing. They are never predicted, and in no checkpoint. CPUs need none but those that
    `tensor` divides."""

    def __post_init__(self):
        require_numbers(self)
        require(self.data == -1 or self.data > 0, f"mesh.data={self.data} must be positive, or -1 for the rest")
        require_positive(self, "fsdp", "tensor", "vocab_multiple")
