"""The units of a decoder that are measured, and random directions of the spaces they live in.

In each layer there are F neurons and D attention channels (the concatenated head outputs). Both are read on the clean
stream, on the ablated stream as the next layer sees them (activation times gate), and as gates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.models.decoder import DecoderOutput
from jaxablate.ops.normalization import layer_norm

FIRES_ABOVE = 0.5
"""A gate fires on a token when it exceeds this."""

Params = Mapping[str, Any]
Arrays = dict[str, list[jax.Array]]
"""Name of a kind -> one array [n, units] for each layer; rows are tokens, those of a batch one after another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of units.

    Attributes:
      part: which units of a layer.
      source: where they are read.
    """

    part: Literal["neurons", "attention"]
    source: Literal["clean", "ablated", "gates"]

    @property
    def name(self) -> str:
        """As in every table: ``neurons clean``, ``attention gates``."""
        return f"{self.part} {self.source}"

    @property
    def signed(self) -> bool:
        """Whether large negative values count as firing: attention channels have no preferred sign, neurons do."""
        return self.part == "attention" and self.source != "gates"

    @property
    def space(self) -> str:
        """Name of the space whose random directions are its null; gates share the clean stream's."""
        return f"{self.part} {'ablated' if self.source == 'ablated' else 'clean'}"

    def width(self, config: ModelConfig) -> int:
        """Units of a layer."""
        return config.mlp_width if self.part == "neurons" else config.d_model


def kinds(config: ModelConfig) -> tuple[Kind, ...]:
    """The kinds of units a model has; without gates, those of the clean stream."""
    sources = ("clean", "ablated", "gates") if config.gated else ("clean",)
    return tuple(Kind(part=part, source=source) for part in ("neurons", "attention") for source in sources)


def unit_values(out: DecoderOutput) -> Arrays:
    """Every unit on every token of a batch.

    Args:
      out: of a batch [B, T].

    Returns:
      By kind and layer [B * T, units], float32.
    """
    found: Arrays = {}
    for layer in out.layers:
        values = {"neurons clean": layer.clean.mlp_post, "attention clean": layer.clean.head_out}
        if layer.ablated is not None:
            heads, neurons, attention = layer.ablated.head_out, layer.neuron_gates, layer.attention_gates
            values |= {"neurons ablated": layer.ablated.mlp_post * neurons, "neurons gates": neurons,
                       "attention ablated": heads * attention.reshape(heads.shape), "attention gates": attention}
        for name, value in values.items():
            found.setdefault(name, []).append(_rows(value))
    return found


def draw_directions(config: ModelConfig, params: Params, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Random units of each layer.

    A random neuron has the length of in-weights and the bias of a neuron of its layer, drawn at random, and the
    direction of its weights uniformly random: it reads what neurons read, but nothing in particular. A random channel
    is a column of a random rotation of the layer's D channels.

    Args:
      config: of the model.
      params: its parameters.
      count: R, random units of each sort and layer.
      seed: of the draws.

    Returns:
      For each layer ``up`` [D, R], ``bias`` [R], ``rotation`` [D, R], float32.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(config.n_layers):
        up = {name: np.asarray(x, np.float64) for name, x in params[f"layer_{i}"]["mlp"]["up"].items()}
        model = rng.integers(0, config.mlp_width, count)
        direction = rng.standard_normal((config.d_model, count))
        direction *= np.linalg.norm(up["kernel"][:, model], axis=0) / np.linalg.norm(direction, axis=0)
        square = (config.d_model, config.d_model)
        turns = [np.linalg.qr(rng.standard_normal(square))[0] for _ in range(-(-count // config.d_model))]
        layer = {"up": direction, "bias": up["bias"][model], "rotation": np.concatenate(turns, axis=1)[:, :count]}
        drawn.append({name: x.astype(np.float32) for name, x in layer.items()})
    return drawn


def direction_values(config: ModelConfig, params: Params, out: DecoderOutput, drawn: list[dict[str, jax.Array]]
                     ) -> Arrays:
    """Every random unit on every token of a batch.

    Returns:
      By space and layer [B * T, R], float32: random neurons *before* the activation function, which is not monotone
      and would blur their order, and random channels.
    """
    values = unit_values(out)
    found: Arrays = {}
    for i, (layer, random) in enumerate(zip(out.layers, drawn, strict=True)):
        norm = params[f"layer_{i}"]["ln_2"]
        for stream, activations in (("clean", layer.clean), ("ablated", layer.ablated)):
            if activations is None:
                continue
            read = layer_norm(_rows(activations.resid_mid), norm["scale"], norm["bias"], config.layer_norm_eps)
            pre = read.astype(jnp.float32) @ random["up"] + random["bias"]
            found.setdefault(f"neurons {stream}", []).append(pre)
            turned = values[f"attention {stream}"][i] @ random["rotation"]
            found.setdefault(f"attention {stream}", []).append(turned)
    return found


def fires(values: jax.Array, threshold: jax.Array, signed: bool) -> jax.Array:
    """bool [n, units], where a unit is beyond its threshold [units], or below minus the threshold if it is signed."""
    return (jnp.abs(values) if signed else values) > threshold


def _rows(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [B * T, units], float32."""
    return x.reshape(x.shape[0] * x.shape[1], -1).astype(jnp.float32)
