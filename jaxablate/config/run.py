"""Settings that every kind of run has: optimiser and mesh."""

import dataclasses
from typing import Literal

from jaxablate.config.checks import require, require_positive


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
        require_positive(self, "learning_rate", "eps")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}={value} must be in [0, 1)")
        require(0 <= self.final_fraction <= 1, f"final_fraction={self.final_fraction} must be in [0, 1]")
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

    def __post_init__(self):
        require(self.data == -1 or self.data > 0, f"mesh.data={self.data} must be positive, or -1 for the rest")
        require_positive(self, "fsdp", "tensor")
