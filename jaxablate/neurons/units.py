"""The units of a decoder that are measured, and random directions of the spaces they live in.

In each layer there are F neurons and D attention channels (the concatenated head outputs). Both are read on the clean
stream, on the ablated stream as the next layer sees them (activation times gate), and as gates.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.config import ModelConfig, UnitKind
from jaxablate.errors import ConfigError
from jaxablate.gating import GATES, gate
from jaxablate.models.decoder import (
    DecoderOutput,
    LayerActivations,
    SelfAblatingTransformer,
    StreamActivations,
    score_input,
    score_source,
)
from jaxablate.models.layers import activated, normalised
from jaxablate.types import Params

FIRES_ABOVE = 0.5
"""A gate fires on a token when it exceeds this."""

Values = dict[str, list[jax.Array]]
"""Name of a kind -> float32 [tokens, units] of each layer, the tokens of a batch one after another."""
PARTS: tuple[UnitKind, ...] = ("neurons", "attention")
A = TypeVar("A", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of units, the same in every layer."""

    name: str
    """Name of the kind in tables and figures, for example ``neurons clean`` or ``attention gates``."""
    width: int
    """Units of a layer."""
    signed: bool = False
    """Whether large negative values count as firing: attention channels have no preferred sign, neurons do."""
    threshold: float | None = None
    """Value above which a unit fires; None: chosen for each unit so that it fires on a given share of the tokens."""
    binary: bool = False
    """Whether all values are 0 or 1, as those of hard gates."""
    directions: Literal["values", "scores", "pre-activations"] = "values"
    """What is read of a random direction: a value like that of a unit, the score of a gate, or a neuron *before* the
    activation function, which is not monotone and would blur the order of its values."""
    activation: str = "gelu_tanh"
    """The activation function that pre-activations go through, a name of `jaxablate.models.layers.ACTIVATIONS`."""


def kinds(config: ModelConfig) -> tuple[Kind, ...]:
    """The kinds of units a model has; without gates, those of the clean stream."""
    result = []
    for part, width in (("neurons", config.mlp_width), ("attention", config.attention_width)):
        # Of a gated MLP's neuron no single number comes before its activation function.
        signed, values = part == "attention", part == "attention" or config.mlp == "gated"
        result.append(Kind(name=f"{part} clean", width=width, signed=signed, activation=config.activation,
                           directions="values" if values else "pre-activations"))
        if config.gated:
            result += [Kind(name=f"{part} ablated", width=width, signed=signed),
                       Kind(name=f"{part} gates", width=width, threshold=FIRES_ABOVE, binary=GATES[config.gate].binary,
                            directions="scores")]
    return tuple(result)


def layer_values(layer: LayerActivations) -> dict[str, jax.Array]:
    """Every unit of a layer on every token, by kind: [B, T, F], or [B, T, N, H] of attention channels but their gates.

    Under `jax.jit` what nobody reads is not computed.
    """
    values = {"neurons clean": layer.clean.mlp_post, "attention clean": layer.clean.head_out}
    neurons, attention = layer.neuron_gates, layer.attention_gates
    if layer.ablated is not None and neurons is not None and attention is not None:
        heads = layer.ablated.head_out
        values |= {"neurons ablated": layer.ablated.mlp_post * neurons, "neurons gates": neurons,
                   "attention ablated": heads * attention.reshape(heads.shape), "attention gates": attention}
    return values


def decoder_output(model: SelfAblatingTransformer, params: Params, tokens_BT: jax.typing.ArrayLike, **changes: Any
                   ) -> DecoderOutput:
    """A decoder's activations on tokens; ``changes`` are the gates and the edit that it takes."""
    return cast(DecoderOutput, model.apply({"params": params}, tokens_BT, **changes))


def unit_values(out: DecoderOutput) -> Values:
    """Every unit on every token of a batch, by kind and layer."""
    layers = [layer_values(layer) for layer in out.layers]
    return {name: [_rows(values[name]) for values in layers] for name in layers[0]}


def draw_directions(config: ModelConfig, params: Params, count: int, seed: int) -> list[dict[str, Any]]:
    """Random units of each layer: they read what trained units read, but nothing in particular.

    A random neuron has the length of in-weights and the bias of a neuron of its layer, drawn at random, and a uniformly
    random direction, or two of a gated MLP. A random gate is a random score likewise, of the stream (or both streams)
    that score heads read. A random channel is a column of a random rotation of the layer's N H channels. There are R of
    each sort and layer.

    Returns:
      For each layer ``up`` [D, R], ``bias`` [R], of a gated MLP also ``gate`` and ``gate_bias``, ``rotation``
      [N H, R], and ``neurons gates``, ``attention gates`` by what is read, [D, R]; float32.

    Raises:
      ConfigError: it is not known what the model's score heads read.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(config.n_layers):
        mlp = params[f"layer_{i}"]["mlp"]
        neurons = rng.integers(0, config.mlp_width, count)
        layer: dict[str, Any] = {"up": _turned(mlp["up"]["kernel"], neurons, rng),
                                 "rotation": rotation(config.attention_width, count, rng),
                                 "bias": _biases(mlp["up"], neurons)}
        if config.mlp == "gated":
            layer |= {"gate": _turned(mlp["gate"]["kernel"], neurons, rng), "gate_bias": _biases(mlp["gate"], neurons)}
        for part in PARTS if config.gated else ():
            heads = _score_kernels(config, params, part, i)
            units = rng.integers(0, next(iter(heads.values())).shape[1], count)
            layer[f"{part} gates"] = {read: _turned(kernel, units, rng) for read, kernel in heads.items()}
        drawn.append(layer)
    return drawn


def _score_kernels(config: ModelConfig, params: Params, part: UnitKind, layer: int) -> dict[str, np.ndarray]:
    """Kernels [D, units] of a layer's scores by what they read: ``block``, its input, or ``final``, the last state."""
    name, kernels = {"neurons": "neuron_scores", "attention": "attention_scores"}[part], {}
    if config.ablation in ("local", "both"):
        kernels["block"] = np.asarray(params[f"layer_{layer}"][name]["kernel"])
    if config.ablation in ("global", "both"):
        kernels["final"] = np.split(np.asarray(params[name]["kernel"]), config.n_layers, axis=1)[layer]
    if not kernels:
        raise ConfigError(f"ablation={config.ablation!r}: what its score heads read is not known, so no random gates "
                          "can be drawn beside them; measure a model with local, global, both or none")
    return kernels


def _biases(linear: Params, units: np.ndarray) -> np.ndarray:
    return np.asarray(linear["bias"], np.float32)[units] if "bias" in linear else np.zeros(len(units), np.float32)


def _turned(kernel: jax.typing.ArrayLike, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """These columns of a kernel [D, units], each in a random direction."""
    lengths = np.linalg.norm(np.asarray(kernel, np.float64)[:, columns], axis=0)
    direction = rng.standard_normal((np.shape(kernel)[0], len(columns)))
    return (direction * lengths / np.linalg.norm(direction, axis=0)).astype(np.float32)


def rotation(width: int, count: int, rng: np.random.Generator) -> Float[np.ndarray, "width count"]:
    """Columns of random rotations of a space of ``width`` dimensions, of as many rotations as it takes."""
    turns = [np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(-(-count // width))]
    return np.concatenate(turns, axis=1)[:, :count].astype(np.float32)


def direction_values(config: ModelConfig, params: Params, out: DecoderOutput, drawn: list[dict[str, Any]]) -> Values:
    """Every random unit on every token of a batch, by kind and layer; `Kind.directions` says what is read of them.

    On the ablated stream as many random units as of the trained ones pass: winners by the random scores.
    """
    result: Values = {}
    for i, (layer, random) in enumerate(zip(out.layers, drawn, strict=True)):
        norm = params[f"layer_{i}"]["ln_2"]
        read = score_input(config, out.layers[score_source(config, i)].clean.resid_pre)
        states = {"block": read, "final": out.final_clean}
        neurons, attention = _random_units(config, norm, random, layer.clean)
        values = {"neurons clean": neurons, "attention clean": attention}
        if layer.ablated is not None:
            neurons, attention = _random_units(config, norm, random, layer.ablated)
            neurons = neurons if config.mlp == "gated" else activated(config.activation, neurons)
            for part, active in zip(PARTS, (neurons, attention), strict=True):
                scores = jnp.asarray(sum(_rows(states[read]) @ kernel
                                         for read, kernel in random[f"{part} gates"].items()))
                values |= {f"{part} gates": scores, f"{part} ablated": active * _winners(config, part, i, scores)}
        for name, value in values.items():
            result.setdefault(name, []).append(value)
    return result


def _random_units(config: ModelConfig, norm: Params, random: Mapping[str, jax.Array], stream: StreamActivations
                  ) -> tuple[jax.Array, jax.Array]:
    """Random neurons, in a plain MLP before the activation function, and random channels, of one stream, [n, R]."""
    x = stream.resid_pre if config.parallel else stream.resid_mid
    read = normalised(config.norm, norm, _rows(x), config.layer_norm_eps).astype(jnp.float32)
    neurons = read @ random["up"] + random["bias"][None]
    if config.mlp == "gated":
        neurons = activated(config.activation, read @ random["gate"] + random["gate_bias"][None], neurons)
    return neurons, _rows(stream.head_out) @ random["rotation"]


def _winners(config: ModelConfig, part: UnitKind, layer: int, scores: jax.Array) -> jax.Array:
    """Gates [n, R] that let about the same share of random units pass as of trained ones."""
    units, count = config.mlp_width if part == "neurons" else config.attention_width, scores.shape[-1]
    k = min(max(round(count * config.layer_k(part, layer) / units), 1), count - 1)
    return gate(config, part, layer)(scores, k=k)


def fires(values: A, threshold: Any, signed: bool) -> A:
    """bool [tokens, units]: is a unit beyond its threshold [units], or below minus the threshold if it is signed?"""
    return (abs(values) if signed else values) > threshold


def _rows(x: Float[Array, "batch time *unit"]) -> Float[Array, "tokens units"]:
    """[B, T, ...] -> [B * T, units], float32."""
    return x.reshape(x.shape[0] * x.shape[1], -1).astype(jnp.float32)
