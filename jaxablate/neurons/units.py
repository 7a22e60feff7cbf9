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

from jaxablate.config import ModelConfig, UnitKind
from jaxablate.gating import gate
from jaxablate.models.decoder import DecoderOutput, LayerActivations, StreamActivations
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

    part: UnitKind
    source: Literal["clean", "ablated", "gates"]

    @property
    def name(self) -> str:
        """As in every table: ``neurons clean``, ``attention gates``."""
        return f"{self.part} {self.source}"

    @property
    def signed(self) -> bool:
        """Whether large negative values count as firing: attention channels have no preferred sign, neurons do."""
        return self.part == "attention" and self.source != "gates"

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
        for name, value in layer_values(layer).items():
            found.setdefault(name, []).append(_rows(value))
    return found


def layer_values(layer: LayerActivations) -> dict[str, jax.Array]:
    """Every unit of a layer on every token, by kind: [B, T, F], or [B, T, N, H] of attention channels but their gates.

    Under `jax.jit` what nobody reads is not computed.
    """
    values = {"neurons clean": layer.clean.mlp_post, "attention clean": layer.clean.head_out}
    if layer.ablated is not None:
        heads, neurons, attention = layer.ablated.head_out, layer.neuron_gates, layer.attention_gates
        values |= {"neurons ablated": layer.ablated.mlp_post * neurons, "neurons gates": neurons,
                   "attention ablated": heads * attention.reshape(heads.shape), "attention gates": attention}
    return values


def draw_directions(config: ModelConfig, params: Params, count: int, seed: int) -> list[dict[str, Any]]:
    """Random units of each layer: they read what trained units read, but nothing in particular.

    A random neuron has the length of in-weights and the bias of a neuron of its layer, drawn at random, and a uniformly
    random direction. A random gate is a random score likewise, of the stream (or both streams) that score heads read.
    A random channel is a column of a random rotation of the layer's D channels.

    Args:
      config: of the model.
      params: its parameters.
      count: R, random units of each sort and layer.
      seed: of the draws.

    Returns:
      For each layer ``up`` [D, R], ``bias`` [R], ``rotation`` [D, R], and ``neurons gates``, ``attention gates`` by
      what is read, [D, R]; float32.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(config.n_layers):
        up = params[f"layer_{i}"]["mlp"]["up"]
        model = rng.integers(0, config.mlp_width, count)
        layer: dict[str, Any] = {"up": _turned(up["kernel"], model, rng), "rotation": _rotations(config, count, rng),
                                 "bias": np.asarray(up["bias"], np.float32)[model]}
        for part in ("neurons", "attention") if config.gated else ():
            heads = _score_kernels(config, params, part, i)
            model = rng.integers(0, next(iter(heads.values())).shape[1], count)
            layer[f"{part} gates"] = {read: _turned(kernel, model, rng) for read, kernel in heads.items()}
        drawn.append(layer)
    return drawn


def _score_kernels(config: ModelConfig, params: Params, part: str, layer: int) -> dict[str, np.ndarray]:
    """Kernels [D, units] of a layer's scores by what they read: ``block``, its input, or ``final``, the last state."""
    name, found = {"neurons": "neuron_scores", "attention": "attention_scores"}[part], {}
    if config.ablation in ("local", "both"):
        found["block"] = np.asarray(params[f"layer_{layer}"][name]["kernel"])
    if config.ablation in ("global", "both"):
        found["final"] = np.split(np.asarray(params[name]["kernel"]), config.n_layers, axis=1)[layer]
    return found


def _turned(kernel: jax.typing.ArrayLike, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """These columns of a kernel [D, units], each in a random direction."""
    lengths = np.linalg.norm(np.asarray(kernel, np.float64)[:, columns], axis=0)
    direction = rng.standard_normal((len(kernel), len(columns)))
    return (direction * lengths / np.linalg.norm(direction, axis=0)).astype(np.float32)


def _rotations(config: ModelConfig, count: int, rng: np.random.Generator) -> np.ndarray:
    """[D, count] columns of random rotations, as many as it takes."""
    square = (config.d_model, config.d_model)
    turns = [np.linalg.qr(rng.standard_normal(square))[0] for _ in range(-(-count // config.d_model))]
    return np.concatenate(turns, axis=1)[:, :count].astype(np.float32)


def direction_values(config: ModelConfig, params: Params, out: DecoderOutput, drawn: list[dict[str, Any]]) -> Arrays:
    """Every random unit on every token of a batch.

    On the ablated stream as many random units as of the trained ones pass: winners by the random scores.

    Returns:
      By kind and layer [B * T, R], float32: random neurons of the clean stream *before* the activation function, which
      is not monotone and would blur their order; random channels; random scores; on the ablated stream activation
      times gate.
    """
    found: Arrays = {}
    for i, (layer, random) in enumerate(zip(out.layers, drawn, strict=True)):
        norm = params[f"layer_{i}"]["ln_2"]
        states = {"block": layer.clean.resid_pre, "final": out.final_clean}
        neurons, attention = _random_units(config, norm, random, layer.clean)
        values = {"neurons clean": neurons, "attention clean": attention}
        if layer.ablated is not None:
            neurons, attention = _random_units(config, norm, random, layer.ablated)
            for part, active in (("neurons", jax.nn.gelu(neurons, approximate=True)), ("attention", attention)):
                scores = sum(_rows(states[read]) @ kernel for read, kernel in random[f"{part} gates"].items())
                values |= {f"{part} gates": scores, f"{part} ablated": active * _winners(config, part, i, scores)}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


def _random_units(config: ModelConfig, norm: Params, random: Mapping[str, jax.Array], stream: StreamActivations
                  ) -> tuple[jax.Array, jax.Array]:
    """Random neurons before the activation function, and random channels, of one stream, [n, R]."""
    read = layer_norm(_rows(stream.resid_mid), norm["scale"], norm["bias"], config.layer_norm_eps)
    return read.astype(jnp.float32) @ random["up"] + random["bias"], _rows(stream.head_out) @ random["rotation"]


def _winners(config: ModelConfig, part: UnitKind, layer: int, scores: jax.Array) -> jax.Array:
    """Gates [n, R] that let about the same share of random units pass as of trained ones."""
    units, count = config.mlp_width if part == "neurons" else config.d_model, scores.shape[-1]
    k = min(max(round(count * config.layer_k(part, layer) / units), 1), count - 1)
    return gate(config, part, layer)(scores, k=k)


def fires(values: jax.Array, threshold: jax.Array, signed: bool) -> jax.Array:
    """bool [n, units], where a unit is beyond its threshold [units], or below minus the threshold if it is signed."""
    return (jnp.abs(values) if signed else values) > threshold


def _rows(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [B * T, units], float32."""
    return x.reshape(x.shape[0] * x.shape[1], -1).astype(jnp.float32)
