"""Whole runs of a decoder: the ordinary one, with every value by name, and one in which chosen edges are patched.

A destination's input is the sum over its sources of what the source writes now, or, over a patched edge, of its
replacement, plus the output biases (docs/papers.md, ACDC). All positions of a source are patched together. Results are
read at the last position.

Where a norm follows attention (`Decoder.post_norms`, Gemma 2), a head's value is what it writes before that norm, and a
destination takes the norm of its own sum: of what the block's heads write now or, over patched edges, of their
replacements. So patching nothing is the clean run and patching everything the corrupt one, exactly, and a head that no
edge is read over does not matter. It is how EAP-IG evaluates circuits of such models (``evaluate_graph``).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxablate.circuits.blocks import Block, Decoder, Inputs, blocks, exact
from jaxablate.types import Params

Ablation = Literal["resample", "zero", "mean", "mean_per_position"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "zero", "mean", "mean_per_position")


@flax.struct.dataclass
class Edits:
    """Additions to an ordinary run; derivatives with respect to them are derivatives with respect to what they edit."""

    ports: tuple[tuple[jax.Array, ...], ...]
    """L times [N, n, T, H], to queries, and twice [K, n, T, H], to keys and values."""
    channels: tuple[jax.Array, ...]
    """L times [N, n, T, H], to head outputs after their gates."""
    mlp_inputs: tuple[jax.Array, ...]
    """L times [n, T, D], to what the MLP of a block reads, before its norm, and nothing else."""
    neurons: tuple[jax.Array, ...]
    """L times [n, T, F], to neurons after their gates."""
    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D], to the residual stream that enters each layer of the graph, for all who read it. So it
    is also the derivative with respect to what the nodes add whose first readers are there (`Graph.written_into`). The
    MLP of a parallel block, whose stream is that of its heads, has an edit of its own in ``mlp_inputs`` alone."""


@flax.struct.dataclass
class Activations:
    """One ordinary run, unit by unit."""

    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D]: what enters each layer of the graph."""
    ports: tuple[tuple[jax.Array, ...], ...]
    """L times queries [N, n, T, H], keys and values [K, n, T, H]."""
    channels: tuple[jax.Array, ...]
    """L times [N, n, T, H]: head outputs as the output matrix reads them, gates applied."""
    totals: tuple[jax.Array, ...]
    """L times [n, T, D]: what all heads and the bias write together, before a norm that follows."""
    neurons: tuple[jax.Array, ...]
    """L times [n, T, F]: neurons as the down-projection reads them, gates applied."""
    final: jax.Array
    """[n, D] after the final norm, last position."""


@flax.struct.dataclass
class Run:
    """One ordinary run, source by source."""

    sources: jax.Array
    """[S, n, T, D] what each source adds to the residual stream; heads before a norm that follows attention."""
    streams: jax.Array
    """[2 L + 1, n, T, D] the residual stream that enters each layer of the graph."""
    totals: jax.Array
    """[L, n, T, D] what all heads of a block and the bias write together."""
    final: jax.Array
    """[n, D] after the final norm, last position."""


def no_edits(decoder: Decoder, inputs: Inputs, dtype: jnp.dtype) -> Edits:
    """Zeros for every field."""
    (n, t), (width, neurons, head), graph = inputs.tokens.shape, decoder.sizes, decoder.graph
    queries, keys = (jnp.zeros((heads, n, t, head), dtype) for heads in (graph.n_heads, graph.kv_heads))
    layers, stream = graph.n_layers, jnp.zeros((n, t, width), dtype)
    return Edits(ports=((queries, keys, keys),) * layers, channels=(queries,) * layers, mlp_inputs=(stream,) * layers,
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
    streams, ports, channels, totals, neurons = [x], [], [], [], []
    for i, block in enumerate(blocks(decoder, params, inputs)):
        ports.append(tuple(p + e for p, e in zip(block.ports(x), edits.ports[i], strict=True)))
        channels.append(block.channels(*ports[i]) + edits.channels[i])
        totals.append(decoder.combine(block.weights, channels[i]))
        added = x + block.post_norm(totals[i])
        if not decoder.graph.parallel:
            added = x = added + edits.streams[2 * i + 1]
        streams.append(x)
        neurons.append(block.neurons(x + edits.mlp_inputs[i]) + edits.neurons[i])
        x = added + decoder.write_neurons(block.weights, neurons[i]) + edits.streams[2 * i + 2]
        streams.append(x)
    final = decoder.final_norm(params, x[:, -1])
    return Activations(tuple(streams), tuple(ports), tuple(channels), tuple(totals), tuple(neurons), final)


@dataclasses.dataclass(frozen=True)
class Written:
    """What the sources before a layer of the graph write, in a run that is under way."""

    blocks: Sequence[Block]
    """Those of which all heads have written."""
    sources: Sequence[jax.Array]
    """Some [s, n, T, D] a layer."""
    totals: Sequence[jax.Array]
    """[n, T, D] a block: its heads and its bias together."""


Read = Callable[[int, jax.Array, Written], jax.Array]
"""(layer of the graph, residual stream [n, T, D] that enters it, what is written so far) -> what its destinations read:
[N + 2 K, n, T, D] by the queries of a block's heads, by keys and by values, [n, T, D] by an MLP and by the end."""


def _by_source(decoder: Decoder, params: Params, inputs: Inputs, read: Read) -> Run:
    """A run in which every destination reads what ``read`` gives it, source by source."""
    graph, parallel = decoder.graph, decoder.graph.parallel
    start = decoder.embed(params, inputs)
    streams, before = [start], Written([], [start[None]], [])
    for i, block in enumerate(blocks(decoder, params, inputs)):
        ports = jnp.split(read(2 * i, streams[-1], before), [graph.n_heads, graph.n_heads + graph.kv_heads])
        projected = (block.project(p, decoder.read(block.weights, x)) for p, x in enumerate(ports))
        heads = decoder.write(block.weights, block.channels(*projected))
        total = heads.sum(0) + decoder.bias(block.weights)
        after = Written([*before.blocks, block], [*before.sources, heads], [*before.totals, total])
        stream = streams[-1] + block.post_norm(total)
        streams.append(streams[-1] if parallel else stream)
        out = block.mlp(read(2 * i + 1, streams[-1], before if parallel else after))
        streams.append(stream + out)
        before = dataclasses.replace(after, sources=[*after.sources, out[None]])
    end = read(2 * graph.n_layers, streams[-1], before)
    return Run(jnp.concatenate(before.sources), jnp.stack(streams), jnp.stack(before.totals),
               decoder.final_norm(params, end[:, -1]))


@functools.partial(jax.jit, static_argnums=0)
@exact
def source_run(decoder: Decoder, params: Params, inputs: Inputs) -> Run:
    """An ordinary run, source by source: to the last bit the patched run in which no edge is patched."""
    graph = decoder.graph

    def read(layer: int, stream: jax.Array, _: Written) -> jax.Array:
        of_heads = layer % 2 == 0 and layer < 2 * graph.n_layers
        return jnp.broadcast_to(stream, (graph.n_ports, *stream.shape)) if of_heads else stream

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
      edits: 2 L + 1 arrays, added to the inputs of the destinations of each layer of the graph: [N + 2 K, n, T, D] for
        attention (queries, keys, values), [n, T, D] for an MLP and for the end. Derivatives with respect to them are
        derivatives with respect to what the destinations read.
    """
    graph = decoder.graph
    changes: list[jax.Array] = []  # of the sources that a layer writes together

    def read(layer: int, stream: jax.Array, written: Written) -> jax.Array:
        if layer == 2 * graph.n_layers:
            mask = patched[graph.destinations[0].edges]
        elif layer % 2:
            mask = patched[graph.destination(f"MLP {layer // 2}").edges]
        else:
            mask = graph.by_port(layer // 2, patched)
        for sources in written.sources[len(changes):]:
            start = sum(map(len, changes))
            changes.append(replacement[start : start + len(sources)] - sources)
        change = jnp.concatenate(changes)
        if layer < 2 * graph.n_layers - 1:
            x = _patched(decoder, stream, mask.astype(stream.dtype), written, change)
        else:  # only the last position leads on, and the rest stays as it is
            at_end = dataclasses.replace(written, totals=[total[:, -1:] for total in written.totals])
            x = stream.at[:, -1:].set(
                _patched(decoder, stream[:, -1:], mask.astype(stream.dtype), at_end, change[:, :, -1:]))
        return x if edits is None else x + edits[layer]

    return _by_source(decoder, params, inputs, read).final


def _patched(decoder: Decoder, stream: jax.Array, mask: jax.Array, written: Written, change: jax.Array) -> jax.Array:
    """What destinations read [..., n, T, D] with their edges [..., sources] patched by the mask.

    ``change`` [sources, n, T, D] is what patching changes in what the sources write.
    """
    if not decoder.post_norms:
        return stream + _mixed(mask, change)
    graph = decoder.graph
    direct = np.flatnonzero(graph.source_layers[: len(change)] % 2)  # the embedding and MLPs
    x = stream + _mixed(mask[..., direct], change[direct])
    for i, (block, total) in enumerate(zip(written.blocks, written.totals, strict=True)):
        heads = slice(graph.head(i, 0), graph.mlp(i))
        mixed = total + _mixed(mask[..., heads], change[heads])
        x = x + (block.post_norm(mixed) - block.post_norm(total))
    return x


@jax.custom_vjp
def _mixed(mask: jax.Array, values: jax.Array) -> jax.Array:
    """[..., n, T, D] sums of values [s, n, T, D] by the weights of a mask [..., s].

    The derivative is JAX's, but for the order of its axes: with JAX's, XLA transposes arrays as large as the values.
    """
    return jnp.einsum("...s,sntd->...ntd", mask, values, precision="highest")


def _mixed_fwd(mask: jax.Array, values: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _mixed(mask, values), (mask, values)


def _mixed_bwd(residuals: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    mask, values = residuals
    rows, flat = mask.reshape(-1, mask.shape[-1]), values.reshape(len(values), -1)
    slopes = slope.reshape(len(rows), -1)
    of_mask = jnp.einsum("px,sx->ps", slopes, flat, precision="highest")
    of_values = jnp.einsum("ps,px->sx", rows, slopes, precision="highest")
    return of_mask.reshape(mask.shape), of_values.reshape(values.shape)


_mixed.defvjp(_mixed_fwd, _mixed_bwd)


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
