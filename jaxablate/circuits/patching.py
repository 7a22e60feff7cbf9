"""Whole runs of a decoder: the ordinary one, with every value by name, and one in which chosen edges are patched.

A destination's input is the sum over its sources of what the source writes now, or, over a patched edge, of its
replacement, plus the output biases (docs/papers.md, ACDC). All positions of a source are patched together. Results are
read at the last position.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxablate.circuits.blocks import Decoder, Inputs, blocks, exact
from jaxablate.circuits.graph import Graph
from jaxablate.types import Params

Ablation = Literal["resample", "zero", "mean", "mean_per_position"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "zero", "mean", "mean_per_position")


@flax.struct.dataclass
class Edits:
    """Additions to an ordinary run; derivatives with respect to them are derivatives with respect to what they edit."""

    ports: tuple[tuple[jax.Array, ...], ...]
    """L times 3 times [N, n, T, H], to queries, keys and values."""
    channels: tuple[jax.Array, ...]
    """L times [N, n, T, H], to head outputs after their gates."""
    mlp_inputs: tuple[jax.Array, ...]
    """L times [n, T, D], to what the MLP of a block reads, before its norm, and nothing else."""
    neurons: tuple[jax.Array, ...]
    """L times [n, T, F], to neurons after their gates."""
    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D], to the residual stream that enters each layer of the graph, for all who read it. So it
    is also the derivative with respect to what the nodes of the layer before write."""


@flax.struct.dataclass
class Activations:
    """One ordinary run, unit by unit."""

    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D]: what enters each layer of the graph."""
    ports: tuple[tuple[jax.Array, ...], ...]
    """L times 3 times [N, n, T, H]: queries, keys and values."""
    channels: tuple[jax.Array, ...]
    """L times [N, n, T, H]: head outputs as the output matrix reads them, gates applied."""
    neurons: tuple[jax.Array, ...]
    """L times [n, T, F]: neurons as the down-projection reads them, gates applied."""
    final: jax.Array
    """[n, D] after the final norm, last position."""


@flax.struct.dataclass
class Run:
    """One ordinary run, source by source."""

    sources: jax.Array
    """[S, n, T, D] what each source adds to the residual stream."""
    streams: jax.Array
    """[2 L + 1, n, T, D] the residual stream that enters each layer of the graph."""
    final: jax.Array
    """[n, D] after the final norm, last position."""


def no_edits(decoder: Decoder, inputs: Inputs, dtype: jnp.dtype) -> Edits:
    """Zeros for every field."""
    (n, t), (width, neurons, head) = inputs.tokens.shape, decoder.sizes
    layers, heads = decoder.graph.n_layers, jnp.zeros((decoder.graph.n_heads, n, t, head), dtype)
    stream = jnp.zeros((n, t, width), dtype)
    return Edits(ports=((heads,) * 3,) * layers, channels=(heads,) * layers, mlp_inputs=(stream,) * layers,
                 neurons=(jnp.zeros((n, t, neurons), dtype),) * layers, streams=(stream,) * (2 * layers + 1))


def ordinary_run(decoder: Decoder, params: Params, inputs: Inputs, start: jax.Array | None = None,
                 edits: Edits | None = None) -> Activations:
    """A run in which nothing is patched.

    Args:
      decoder: the model.
      params: its weights.
      inputs: prompts.
      start: [n, T, D] in place of the embeddings.
      edits: additions; none by default.
    """
    x = decoder.embed(params, inputs) if start is None else start
    edits = edits or no_edits(decoder, inputs, x.dtype)
    x = x + edits.streams[0]
    streams, ports, channels, neurons = [x], [], [], []
    for i, block in enumerate(blocks(decoder, params, inputs)):
        ports.append(tuple(p + e for p, e in zip(block.ports(x), edits.ports[i], strict=True)))
        channels.append(block.channels(*ports[i]) + edits.channels[i])
        x = x + decoder.combine(block.weights, channels[i]) + edits.streams[2 * i + 1]
        streams.append(x)
        neurons.append(block.neurons(x + edits.mlp_inputs[i]) + edits.neurons[i])
        x = x + decoder.write_neurons(block.weights, neurons[i]) + edits.streams[2 * i + 2]
        streams.append(x)
    final = decoder.final_norm(params, x[:, -1])
    return Activations(tuple(streams), tuple(ports), tuple(channels), tuple(neurons), final)


Read = Callable[[int, jax.Array, Sequence[jax.Array]], jax.Array]
"""(layer of the graph, residual stream [n, T, D] that enters it, sources written so far, some [s, n, T, D] a layer) ->
what its destinations read: [3, N, n, T, D] by the ports of a block's heads, [n, T, D] by an MLP and by the end."""


def _by_source(decoder: Decoder, params: Params, inputs: Inputs, read: Read) -> Run:
    """A run in which every destination reads what ``read`` gives it, source by source."""
    written = [decoder.embed(params, inputs)[None]]
    streams = [written[0][0]]
    for i, block in enumerate(blocks(decoder, params, inputs)):
        ports = read(2 * i, streams[-1], written)
        projected = (block.project(p, decoder.read(block.weights, ports[p])) for p in range(3))
        heads = decoder.write(block.weights, block.channels(*projected))
        streams.append(streams[-1] + heads.sum(0) + decoder.bias(block.weights))
        written.append(heads)
        out = block.mlp(read(2 * i + 1, streams[-1], written))
        streams.append(streams[-1] + out)
        written.append(out[None])
    end = read(2 * decoder.graph.n_layers, streams[-1], written)
    return Run(jnp.concatenate(written), jnp.stack(streams), decoder.final_norm(params, end[:, -1]))


@functools.partial(jax.jit, static_argnums=0)
@exact
def source_run(decoder: Decoder, params: Params, inputs: Inputs) -> Run:
    """An ordinary run, source by source: to the last bit the patched run in which no edge is patched."""
    graph = decoder.graph

    def read(layer: int, stream: jax.Array, _: Sequence[jax.Array]) -> jax.Array:
        of_heads = layer % 2 == 0 and layer < 2 * graph.n_layers
        return jnp.broadcast_to(stream, (3, graph.n_heads, *stream.shape)) if of_heads else stream

    return _by_source(decoder, params, inputs, read)


@functools.partial(jax.jit, static_argnums=0)
@exact
def patched_final(decoder: Decoder, params: Params, inputs: Inputs, patched: Float[Array, " edges"],
                  replacement: Float[Array, "sources _n _time width"], edits: Sequence[jax.Array] | None = None
                  ) -> Float[Array, "n width"]:
    """The stream after the final norm, last position, with chosen edges patched.

    Args:
      decoder: the model.
      params: its weights.
      inputs: n prompts.
      patched: 1 where an edge carries the replacement, 0 where it does not; between, a mixture.
      replacement: what patched edges carry; prompts and time may be 1.
      edits: 2 L + 1 arrays, added to the inputs of the destinations of each layer of the graph: [3, N, n, T, D] for
        attention, [n, T, D] for an MLP and for the end. Derivatives with respect to them are derivatives with respect
        to what the destinations read.
    """
    graph = decoder.graph

    def read(layer: int, stream: jax.Array, written: Sequence[jax.Array]) -> jax.Array:
        if layer == 2 * graph.n_layers:
            mask = patched[graph.destinations[0].edges]
        elif layer % 2:
            mask = patched[graph.destination(f"MLP {layer // 2}").edges]
        else:
            mask = _attention_mask(graph, patched, layer // 2)
        sources = jnp.concatenate(written)
        change = replacement[: len(sources)] - sources
        x = stream + jnp.einsum("...s,sntd->...ntd", mask.astype(stream.dtype), change)
        return x if edits is None else x + edits[layer]

    return _by_source(decoder, params, inputs, read).final


def _attention_mask(graph: Graph, patched: jax.Array, block: int) -> jax.Array:
    """[3, N, sources] of the edges into a block's heads."""
    first, width = graph.destination(f"A{block}.0.Q"), 3 * graph.n_heads
    edges = patched[first.offset : first.offset + width * first.fan_in]
    return edges.reshape(graph.n_heads, 3, first.fan_in).swapaxes(0, 1)


def ablated_values(kind: Ablation, values: Float[Array, "units n time width"], valid: Bool[Array, "n time"],
                   gated: bool = False) -> Float[Array, "units _n _time width"]:
    """What takes the place of values, from a run on the corrupt prompts.

    Args:
      kind: ``resample``: the run's own values. ``zero``. ``mean``: the mean over the run's real tokens.
        ``mean_per_position``: the mean over its prompts, position by position counted from the end.
      values: values of the corrupt run, for example `Run.sources`.
      valid: real tokens of those prompts.
      gated: the ablated stream: its last position, the only gated one, then has a mean of its own.

    Returns:
      With 1 in place of n where all prompts share a value, and in place of time where all positions do.
    """
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
