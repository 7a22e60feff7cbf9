"""How fast training is: steps per second, the arithmetic of a step, and what the devices can do at most."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from jaxablate.config import ModelConfig


class Throughput:
    """Steps per second of training alone: evaluation, saving and the first compilation stop the clock.

    Where batches come in several lengths, the first one of each is compiled within an interval, which is then slow.
    """

    def __init__(self):
        self._began: float | None = None
        self._steps = 0

    def restart(self) -> None:
        """Begins a new interval; nothing before it counts."""
        self._began = time.perf_counter()
        self._steps = 0

    def count(self) -> None:
        """Notes that one more step is done."""
        self._steps += 1

    def rate(self) -> float | None:
        """Steps per second since `restart`, or None before the first step."""
        if self._began is None or self._steps == 0:
            return None
        return self._steps / (time.perf_counter() - self._began)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What one device can do at most, from the vendors' data sheets."""

    flops: float
    """Operations a second of dense bfloat16 matrix products."""
    float32_flops: float
    """The same of float32 arrays as JAX multiplies them by default: TF32 on GPUs, one pass of bfloat16 on TPUs."""
    bandwidth: float
    """Bytes a second of its memory."""


ACCELERATORS: dict[str, Accelerator] = {
    "NVIDIA A100": Accelerator(flops=312e12, float32_flops=156e12, bandwidth=2.04e12),
    "NVIDIA B200": Accelerator(flops=2250e12, float32_flops=1125e12, bandwidth=7.67e12),
    "NVIDIA H100": Accelerator(flops=989e12, float32_flops=494e12, bandwidth=3.35e12),
    "NVIDIA H200": Accelerator(flops=989e12, float32_flops=494e12, bandwidth=4.8e12),
    "NVIDIA L4": Accelerator(flops=121e12, float32_flops=60e12, bandwidth=0.3e12),
    "TPU v4": Accelerator(flops=275e12, float32_flops=275e12, bandwidth=1.228e12),
    "TPU v5 lite": Accelerator(flops=197e12, float32_flops=197e12, bandwidth=0.819e12),
    "TPU v5": Accelerator(flops=459e12, float32_flops=459e12, bandwidth=2.765e12),
    "TPU v6 lite": Accelerator(flops=918e12, float32_flops=918e12, bandwidth=1.64e12),
}
"""By the start of ``device_kind``."""


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward pass for one token of a batch with rows of T tokens.

    A matrix product of n weights is 2 n operations forward and 4 n backward. Each stream pays for its projections,
    MLP, output head and, on average over a causal window, (T + 1) / 2 scores and values; score heads are paid once.
    Recomputation, norms, gates and the optimiser do not count.
    """
    d, f, layers, t = config.d_model, config.mlp_width, config.n_layers, sequence_length
    seen = [min(t, config.layer_window(layer) or t) for layer in range(layers)]
    pairs = sum(w * (2 * t - w + 1) / (2 * t) for w in seen)  # mean number of keys that a query sees, over all layers
    units, shared = config.attention_width, config.key_heads * config.head_width
    block = 2 * d * units + 2 * d * shared + (3 if config.mlp == "gated" else 2) * d * f
    stream = layers * block + 2 * units * pairs + d * config.vocab_size
    heads = {"none": 0, "local": 1, "global": 1, "both": 2}[config.ablation] * layers * (d * units + d * f)
    return 6.0 * (stream * (2 if config.gated else 1) + heads)


def accelerator(device_kind: str) -> Accelerator | None:
    """What a kind of device can do, or None where it is not in `ACCELERATORS` (a CPU, for example)."""
    # The longest name first: "TPU v5 lite" is no "TPU v5".
    names = [name for name in sorted(ACCELERATORS, key=len, reverse=True) if device_kind.startswith(name)]
    return ACCELERATORS[names[0]] if names else None


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Bfloat16 peak of all JAX devices together, or None where a kind is not in `ACCELERATORS`."""
    kinds = [accelerator(device.device_kind) for device in devices]
    return None if None in kinds else sum(kind.flops for kind in kinds if kind)
