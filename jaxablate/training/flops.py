"""Arithmetic of a training step, and what devices can do at most."""

from collections.abc import Sequence

import jax

from jaxablate.config import ModelConfig

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
    """Floating-point operations of forward and backward pass for one token of a batch.

    A matrix product of n weights is 2 n operations forward and 4 n backward. Each stream pays for its projections,
    MLP, output head and, on average over a causal window, (T + 1) / 2 scores and values; score heads are paid once.
    Recomputation, norms, gates and the optimiser do not count.

    Args:
      config: the model.
      sequence_length: T.
    """
    d, f, layers, t = config.d_model, config.mlp_width, config.n_layers, sequence_length
    seen = [min(t, config.layer_window(layer) or t) for layer in range(layers)]
    pairs = sum(w * (2 * t - w + 1) / (2 * t) for w in seen)  # mean number of keys that a query sees, over all layers
    stream = layers * (4 * d * d + 2 * d * f) + 2 * d * pairs + d * config.vocab_size
    heads = {"none": 0, "local": 1, "global": 1, "both": 2}[config.ablation] * layers * (d * d + d * f)
    return 6.0 * (stream * (2 if config.gated else 1) + heads)


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Peak of all devices together, or None where a kind is not in `PEAK_FLOPS` (a CPU, for example)."""
    total = 0.0
    for device in devices:
        # The longest name first: "TPU v5 lite" is no "TPU v5".
        known = [name for name in sorted(PEAK_FLOPS, key=len, reverse=True) if device.device_kind.startswith(name)]
        if not known:
            return None
        total += PEAK_FLOPS[known[0]]
    return total
