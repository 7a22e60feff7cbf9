"""How fast training is: steps per second, the arithmetic of a step, and what the devices can do at most."""

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


PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 matrix products per second by the start of ``device_kind``, from the vendors' data sheets."""


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward pass for one token of a batch with rows of T tokens.

    A matrix product of n weights is 2 n operations forward and 4 n backward. Each stream pays for its projections,
    MLP, output head and, on average over a causal window, (T + 1) / 2 scores and values; score heads are paid once.
    Recomputation, norms, gates and the optimiser do not count.
    """
    d, f, layers, t = config.d_model, config.mlp_width, config.n_layers, sequence_length
    seen = [min(t, config.layer_window(layer) or t) for layer in range(layers)]
    pairs = sum(w * (2 * t - w + 1) / (2 * t) for w in seen)  # mean number of keys that a query sees, over all layers
    stream = layers * (4 * d * d + 2 * d * f) + 2 * d * pairs + d * config.vocab_size
    heads = {"none": 0, "local": 1, "global": 1, "both": 2}[config.ablation] * layers * (d * d + d * f)
    return 6.0 * (stream * (2 if config.gated else 1) + heads)


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Peak of all JAX devices together, or None where a kind is not in `PEAK_FLOPS` (a CPU, for example)."""
    total = 0.0
    for device in devices:
        # The longest name first: "TPU v5 lite" is no "TPU v5".
        names = [name for name in sorted(PEAK_FLOPS, key=len, reverse=True) if device.device_kind.startswith(name)]
        if not names:
            return None
        total += PEAK_FLOPS[names[0]]
    return total
