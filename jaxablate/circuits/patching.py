"""A decoder run edge by edge: what every source writes, and the output when chosen edges carry another run's values.

Pure functions of weights, prompts, an edge mask and a replacement. A destination's input is the sum over its sources of
what the source writes now, or, over a patched edge, of its replacement, plus the output biases
(docs/papers.md, Circuit localisation). All positions of a source are patched together. The result is read at the last
position.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.ops.attention import masked_attention

Stream = Literal["clean", "ablated"]
Ablation = Literal["resample", "zero", "mean", "mean_per_position"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "zero", "mean", "mean_per_position")


@flax.struct.dataclass
class Run:
    """One ordinary run, source by source."""

    sources: jax.Array
    """[S, n, T, D] what each source adds to the residual stream."""
    streams: jax.Array
    """[2 L + 1, n, T, D] the residual stream that enters each layer of the graph."""
    final: jax.Array
    """[n, D] after the final norm, last position."""

    def logits(self, params: Params) -> jax.Array:
        """[n, V] at the last position."""
        return nodes.unembed(params, self.final)


def circuit_config(config: ModelConfig, dtype: str = "float32") -> ModelConfig:
    """The model's config with all arithmetic in one type: float32, or float64 with `jax.enable_x64`."""
    return dataclasses.replace(config, compute_dtype=dtype, param_dtype=dtype)


def exact(function):
    """Matrix products in the full precision of their type, on accelerators too: an edge's effect may be tiny."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return inner


def make_inputs(config: ModelConfig, params: Params, tokens: np.ndarray, valid: np.ndarray, stream: Stream = "clean"
                ) -> Inputs:
    """Prompts for the nodes; for the ablated stream with the gates the model itself gives their last tokens.

    The gates are computed on the prompt as it is and stay so: they are part of the nodes, not of the graph.

    Args:
      config: of the model.
      params: its weights.
      tokens: [n, T] int, padding at the left.
      valid: [n, T] bool.
      stream: "clean", or "ablated" for a model with gates.

    Raises:
      ConfigError: the model has no ablated stream.
    """
    inputs = Inputs(tokens=jnp.asarray(tokens), valid=jnp.asarray(valid))
    if stream == "clean":
        return inputs
    if not config.gated:
        raise ConfigError("stream='ablated' needs a model with gates, this one has ablation='none'; take 'clean'")
    attention, neuron = _last_gates(config, params, inputs)
    return inputs.replace(attention_gates=attention, neuron_gates=neuron)


@functools.partial(jax.jit, static_argnums=0)
@exact
def _last_gates(config: ModelConfig, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Gates of the last position, [n, L, N, H] and [n, L, F], by the model's own run with the padding at the right."""
    lengths = inputs.valid.sum(-1)
    place = (jnp.arange(inputs.valid.shape[1]) - lengths[:, None]) % inputs.valid.shape[1]
    tokens = jnp.take_along_axis(inputs.tokens, place, axis=1)
    gates = SelfAblatingTransformer(config).apply({"params": params}, tokens).gates
    rows = jnp.arange(len(lengths))
    attention, neuron = (g[rows, lengths - 1] for g in (gates.attention, gates.neuron))
    return attention.reshape(*attention.shape[:2], config.n_heads, config.head_width), neuron


@functools.partial(jax.jit, static_argnums=0)
@exact
def run(config: ModelConfig, params: Params, inputs: Inputs) -> Run:
    """An ordinary run: nothing patched."""
    length, visible = inputs.tokens.shape[1], nodes.visible(config, inputs.valid)
    x = nodes.embed(config, params, inputs)
    sources, streams = [x[None]], [x]
    for i in range(config.n_layers):
        block = params[f"layer_{i}"]
        ports = jnp.broadcast_to(x, (3, config.n_heads, *x.shape))
        heads = _heads(config, block, ports, visible[i], head_gate(inputs, i, length))
        x = x + heads.sum(0) + block["attention"]["out"]["bias"]
        streams.append(x)
        out = nodes.mlp(config, block, x, neuron_gate(inputs, i, length))
        x = x + out
        streams.append(x)
        sources += [heads, out[None]]
    final = nodes.final_norm(config, params, x[:, -1])
    return Run(jnp.concatenate(sources), jnp.stack(streams), final)


@functools.partial(jax.jit, static_argnums=0)
@exact
def patched_final(
    config: ModelConfig, params: Params, inputs: Inputs, patched: jax.Array, replacement: jax.Array, edits: Any = None
) -> jax.Array:
    """The stream after the final norm, last position, with chosen edges patched.

    Args:
      config: of the model.
      params: its weights.
      inputs: prompts.
      patched: [E] in 0 .. 1, 1 where an edge carries the replacement; between, a mixture.
      replacement: [S, n, T, D], or with 1 in place of n and T: what patched edges carry.
      edits: [2 L + 1] list of arrays or None, added to the inputs of the destinations of each layer of the graph:
        [3, N, n, T, D] for attention, [n, T, D] for an MLP and for the end. Derivatives with respect to them are
        derivatives with respect to what the destinations read.

    Returns:
      [n, D].
    """
    graph, length, visible = Graph.of(config), inputs.tokens.shape[1], nodes.visible(config, inputs.valid)
    edits = edits or [None] * (2 * config.n_layers + 1)
    written = nodes.embed(config, params, inputs)[None]
    stream = written[0]
    for i in range(config.n_layers):
        block = params[f"layer_{i}"]
        mask = _attention_mask(graph, patched, i)
        ports = _read(stream, written, mask, replacement, edits[2 * i])
        heads = _heads(config, block, ports, visible[i], head_gate(inputs, i, length))
        stream = stream + heads.sum(0) + block["attention"]["out"]["bias"]
        written = jnp.concatenate([written, heads])
        x = _read(stream, written, patched[graph.destination(f"MLP {i}").edges], replacement, edits[2 * i + 1])
        out = nodes.mlp(config, block, x, neuron_gate(inputs, i, length))
        stream = stream + out
        written = jnp.concatenate([written, out[None]])
    end = patched[graph.destinations[0].edges]
    return nodes.final_norm(config, params, _read(stream, written, end, replacement, edits[-1])[:, -1])


def patched_logits(config: ModelConfig, params: Params, inputs: Inputs, patched: jax.Array, replacement: jax.Array
                   ) -> jax.Array:
    """Logits [n, V] at the last position with chosen edges patched; arguments of `patched_final`."""
    return nodes.unembed(params, patched_final(config, params, inputs, patched, replacement))


def _attention_mask(graph: Graph, patched: jax.Array, block: int) -> jax.Array:
    """[3, N, sources] of the edges into a block's heads."""
    first, width = graph.destination(f"A{block}.0.Q"), 3 * graph.n_heads
    edges = patched[first.offset : first.offset + width * first.fan_in]
    return edges.reshape(graph.n_heads, 3, first.fan_in).swapaxes(0, 1)


def _read(stream, written, mask, replacement, edit):
    """Inputs [..., n, T, D] of destinations with edges mask [..., sources] patched."""
    change = replacement[: written.shape[0]] - written
    x = stream + jnp.einsum("...s,sntd->...ntd", mask.astype(stream.dtype), change)
    return x if edit is None else x + edit


def _heads(config: ModelConfig, block: Params, ports: jax.Array, visible: jax.Array, gate) -> jax.Array:
    """What all heads of a block write, [N, n, T, D], from ports [3, N, n, T, D]."""
    q, k, v = (nodes.project(config, block, port, ports[port]) for port in range(3))
    out = masked_attention(q, k, v, visible, scale=config.attention_scale)
    return nodes.write_heads(block, out if gate is None else out * gate)


def head_gate(inputs: Inputs, block: int, length: int):
    """[N, n, T, H] factors of head outputs, or None."""
    if inputs.attention_gates is None:
        return None
    gate = inputs.attention_gates[:, block]
    spread = nodes.spread_gate(gate.reshape(gate.shape[0], -1), length)
    return spread.reshape(*spread.shape[:2], *gate.shape[1:]).transpose(2, 0, 1, 3)


def neuron_gate(inputs: Inputs, block: int, length: int):
    """[n, T, F] factors of neurons, or None."""
    return None if inputs.neuron_gates is None else nodes.spread_gate(inputs.neuron_gates[:, block], length)


def make_replacement(kind: Ablation, corrupt: Run, valid: jax.Array, gated: bool = False) -> jax.Array:
    """What patched edges carry.

    Args:
      kind: "resample": the corrupt run's own values. "zero". "mean": each source's mean over the corrupt run's real
        tokens. "mean_per_position": over its prompts, position by position counted from the end.
      corrupt: the run on the corrupt prompts, or on any data set of the same length.
      valid: [n, T] bool of those prompts.
      gated: the ablated stream: its last position, the only gated one, then has a mean of its own.

    Returns:
      [S, n or 1, T or 1, D].
    """
    return ablated_values(kind, corrupt.sources, valid, gated)


def ablated_values(kind: Ablation, values: jax.Array, valid: jax.Array, gated: bool = False) -> jax.Array:
    """As `make_replacement`, of any values [X, n, T, C] of the corrupt run; [X, n or 1, T or 1, C].

    Raises:
      ConfigError: there is no such ablation.
    """
    if kind not in ABLATIONS:
        raise ConfigError(f"ablation={kind!r} is unknown; choose among {', '.join(ABLATIONS)}")
    if kind == "resample":
        return values
    if kind == "zero":
        return jnp.zeros((values.shape[0], 1, 1, values.shape[-1]), values.dtype)
    weight = valid.astype(values.dtype)[None, :, :, None]
    by_position = (values * weight).sum(1, keepdims=True) / jnp.maximum(weight.sum(1, keepdims=True), 1)
    if kind == "mean_per_position":
        return by_position
    if not gated:
        return (values * weight).sum((1, 2), keepdims=True) / weight.sum()
    before, total = (values * weight)[:, :, :-1].sum((1, 2), keepdims=True), weight[:, :, :-1].sum()
    shape = (values.shape[0], 1, values.shape[2] - 1, values.shape[3])
    return jnp.concatenate([jnp.broadcast_to(before / jnp.maximum(total, 1), shape), by_position[:, :, -1:]], axis=2)


def make_replacements(kind: Ablation, corrupt: Sequence[Run], valid: Sequence[jax.Array], gated: bool = False
                      ) -> list[jax.Array]:
    """`make_replacement` for prompts in batches: means are over the prompts of all of them, so batches change nothing.

    Args:
      kind: as there.
      corrupt: runs on the corrupt prompts, one a batch, all of one length.
      valid: [n, T] bool of each batch.
      gated: as there.
    """
    if kind in ("resample", "zero"):
        return [make_replacement(kind, run, v, gated) for run, v in zip(corrupt, valid, strict=True)]
    first = corrupt[0]
    joined = first.replace(sources=jnp.concatenate([run.sources for run in corrupt], axis=1))
    return [make_replacement(kind, joined, jnp.concatenate(list(valid)), gated)] * len(corrupt)


def pair_inputs(config: ModelConfig, params: Params, pairs: PromptPairs, stream: Stream = "clean"
                ) -> tuple[Inputs, Inputs]:
    """Clean and corrupt prompts of a task for the nodes.

    Raises:
      DataError: the model cannot take the prompts (`PromptPairs.check_fits`).
      ConfigError: the model has no such stream.
    """
    pairs.check_fits(context_length=config.context_length, vocab_size=config.vocab_size)
    return tuple(make_inputs(config, params, tokens, pairs.valid, stream) for tokens in (pairs.clean, pairs.corrupt))
