"""The exact effect of patching one edge alone, for every edge: the oracle that attribution estimates.

With one edge patched, everything before its destination is the clean run and everything after it is an ordinary run of
the model. So many edges into one layer run together from that layer on, as if they were prompts; no stream has copies,
and of the last block only the last position is computed.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.batches import Batch, batches
from jaxablate.circuits.gradients import no_edits, norm, ordinary_run
from jaxablate.circuits.graph import PORTS, Graph
from jaxablate.circuits.metrics import Target
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import exact, head_gate, neuron_gate, run
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.ops.attention import masked_attention

Progress = Callable[[int, int], None]
"""Called with the number of edges done and of all edges."""

_MEBI = 2**20
_VOCABULARY_PART = 4096
"""Logits of one prompt that the divergence holds at a time."""


@flax.struct.dataclass
class _Known:
    """A batch of prompts and its clean run, by layer along a leading axis, so that one program serves every layer."""

    change: jax.Array
    """[S, m, T, D] replacement minus clean."""
    sources: jax.Array
    """[S, m, T, D]."""
    streams: jax.Array
    """[2 L + 1, m, T, D]."""
    ports: jax.Array
    """[L, 3, N, m, T, H] queries, keys and values."""
    blocks: Params
    """Weights [L, ...]."""
    kernels: jax.Array
    """[L, 3, D, N, H] of the ports."""
    visible: jax.Array
    """[L, m, T, T] bool."""
    head_gates: jax.Array | None
    """[L, N, m, T, H], or None."""
    neuron_gates: jax.Array | None
    """[L, m, T, F], or None."""
    target: Target
    weight: jax.Array
    """[m]."""


def single_edge_effects(
    config: ModelConfig, params: Params, inputs: Inputs, replacement: jax.Array, target: Target, *,
    edges: Sequence[int] | np.ndarray | None = None, batch_size: int = 64, memory_mb: int = 256,
    progress: Progress | None = None,
) -> np.ndarray:
    """What patching each edge alone does to the metric, exactly.

    Args:
      config: of the model (`patching.circuit_config`).
      params: its weights.
      inputs: clean prompts [n, T], with gates for the ablated stream.
      replacement: [S, n or 1, T or 1, D] what patched edges carry (`patching.make_replacement`).
      target: metric of these prompts (`metrics.make_target`).
      edges: indices of the edges looked at, in any order; all by default.
      batch_size: prompts at once.
      memory_mb: about how many MiB the edges that run together may take, beside what the clean run takes.
      progress: told after every call how many edges are done.

    Returns:
      [edges] float64: mean over prompts of the metric with the edge patched, less that of the model.

    Raises:
      ConfigError: an edge is not in the graph, or batch_size or memory_mb is below 1.
    """
    graph = Graph.of(config)
    chosen = np.arange(graph.n_edges) if edges is None else np.asarray(edges, int)
    _check(graph, chosen, memory_mb)
    n = inputs.tokens.shape[0]
    out, done = np.zeros(len(chosen)), 0
    for batch, real in batches(inputs, replacement, target, batch_size):
        known, base = _known(config, params, batch)
        count = _edges_at_once(config, batch, memory_mb)
        for places, effect in _by_layer(config, params, known, chosen, count):
            out[places] += np.asarray(effect, np.float64)[: len(places)] - float(base)
            done += len(places) * real
            if progress is not None:
                progress(done // n, len(chosen))
    return out


def _check(graph: Graph, edges: np.ndarray, memory_mb: int) -> None:
    if memory_mb < 1:
        raise ConfigError(f"memory_mb={memory_mb} must be at least 1; 256 is the default")
    wrong = edges[(edges < 0) | (edges >= graph.n_edges)]
    if wrong.size:
        raise ConfigError(f"edge {int(wrong[0])} is not in the graph; its edges are 0 .. {graph.n_edges - 1}")


def _edges_at_once(config: ModelConfig, batch: Batch, memory_mb: int) -> int:
    """Edges that fit: streams and ports, neurons before and after activation, attention weights, some logits."""
    m, t = batch.inputs.tokens.shape
    per_prompt = t * (8 * config.d_model + 3 * config.mlp_width) + 3 * config.n_heads * t * t + 3 * _VOCABULARY_PART
    return max(1, memory_mb * _MEBI // (m * per_prompt * batch.replacement.dtype.itemsize))


def _by_layer(config: ModelConfig, params: Params, known: _Known, edges: np.ndarray, count: int
              ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """(places in ``edges``, their metric) of edges into one layer, at most ``count`` at a time.

    All calls are filled up to the same number of edges, so that each kind of destination is compiled once.
    """
    graph = Graph.of(config)
    layers = graph.edge_layer[edges]
    heads = np.array([0 if d.head is None else d.head for d in graph.destinations])
    ports = np.array([0 if d.port is None else PORTS.index(d.port) for d in graph.destinations])
    size = min(count, np.bincount(layers).max(initial=0))
    for layer in np.unique(layers).tolist():
        of_layer = np.flatnonzero(layers == layer)
        for start in range(0, len(of_layer), size):
            places = of_layer[start : start + size]
            filled = edges[np.concatenate([places, np.repeat(places[-1:], size - len(places))])]
            source, destination = graph.edge_source[filled], graph.edge_destination[filled]
            if layer == 2 * config.n_layers:
                yield places, _into_end(config, params, known, source)
            elif layer % 2:
                yield places, _into_mlp(config, params, known, layer // 2, source)
            else:
                yield places, _into_heads(config, params, known, layer // 2, source, heads[destination],
                                          ports[destination])


@functools.partial(jax.jit, static_argnums=0)
@exact
def _known(config: ModelConfig, params: Params, batch: Batch) -> tuple[_Known, jax.Array]:
    """What is known of the prompts, and the metric [] of the clean run."""
    inputs, length = batch.inputs, batch.inputs.tokens.shape[1]
    clean, blocks = run(config, params, inputs), nodes.stack_blocks(config, params)
    entering = ordinary_run(config, params, inputs, clean.sources[0], no_edits(config, clean.sources[0]))
    gated = inputs.attention_gates is not None
    layers = range(config.n_layers)
    known = _Known(
        change=batch.replacement - clean.sources, sources=clean.sources, streams=clean.streams,
        ports=jnp.stack(entering.ports), blocks=blocks,
        kernels=jnp.stack([blocks["attention"][name]["kernel"] for name in nodes.PORT_NAMES], axis=1),
        visible=jnp.stack(nodes.visible(config, inputs.valid)),
        head_gates=jnp.stack([head_gate(inputs, i, length) for i in layers]) if gated else None,
        neuron_gates=jnp.stack([neuron_gate(inputs, i, length) for i in layers]) if gated else None,
        target=batch.target, weight=batch.weight,
    )
    return known, _metric(known, clean.final)


def _metric(known: _Known, final: jax.Array) -> jax.Array:
    """Weighted sum over prompts [...] of runs that end in ``final`` [..., m, D]."""
    return known.target.values(final) @ known.weight


@functools.partial(jax.jit, static_argnums=0)
@exact
def _into_end(config: ModelConfig, params: Params, known: _Known, source: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the end."""
    x = known.streams[-1][:, -1] + known.change[:, :, -1][source]
    return _metric(known, nodes.final_norm(config, params, x))


@functools.partial(jax.jit, static_argnums=0)
@exact
def _into_mlp(config: ModelConfig, params: Params, known: _Known, block: jax.Array, source: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the MLP of a block."""
    stream = known.streams[2 * block + 1]

    def last():
        return stream[:, -1] + _mlp(config, known, block, stream[:, -1] + known.change[:, :, -1][source], at_end=True)

    def earlier():
        return _blocks(config, known, stream + _mlp(config, known, block, stream + known.change[source]), block + 1)

    x = jax.lax.cond(block == config.n_layers - 1, last, earlier)
    return _metric(known, nodes.final_norm(config, params, x))


@functools.partial(jax.jit, static_argnums=0)
@exact
def _into_heads(config: ModelConfig, params: Params, known: _Known, block: jax.Array, source: jax.Array,
                head: jax.Array, port: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the ports [b] of heads [b] of a block."""
    x = known.streams[2 * block + 1] + _head_change(config, known, block, source, head, port)

    def last():
        return x[:, :, -1] + _mlp(config, known, block, x[:, :, -1], at_end=True)

    def earlier():
        return _blocks(config, known, x + _mlp(config, known, block, x), block + 1)

    x = jax.lax.cond(block == config.n_layers - 1, last, earlier)
    return _metric(known, nodes.final_norm(config, params, x))


def _head_change(config, known, block, source, head, port):
    """[b, m, T, D] what changes in what heads [b] write when their ports [b] read changes of sources [b]."""
    weights = jax.tree.map(lambda x: x[block], known.blocks)
    normed = norm(config, weights["ln_1"], known.streams[2 * block] + known.change[source])
    kernel = known.kernels[block][port, :, head]
    read = jnp.einsum("bmtd,bdh->bmth", normed, kernel)
    clean = known.ports[block][:, head]
    q, k, v = (jnp.where((port == i)[:, None, None, None], read, clean[i]) for i in range(3))
    out = masked_attention(q, k, v, known.visible[block], scale=config.attention_scale)
    before = masked_attention(*clean, known.visible[block], scale=config.attention_scale)
    change = out - before if known.head_gates is None else (out - before) * known.head_gates[block][head]
    return jnp.einsum("bmth,bhd->bmtd", change, weights["attention"]["out"]["kernel"][head])


def _blocks(config: ModelConfig, known: _Known, x: jax.Array, first: jax.Array) -> jax.Array:
    """[b, m, D] stream of the last position at the end, from the stream [b, m, T, D] that enters block ``first``."""
    last = config.n_layers - 1

    def block(i, x):
        x = x + _attention(config, known, i, x)
        return x + _mlp(config, known, i, x)

    x = jax.lax.fori_loop(first, last, block, x)
    x = x[:, :, -1] + _attention(config, known, last, x, at_end=True)[:, :, 0]
    return x + _mlp(config, known, last, x, at_end=True)


def _attention(config: ModelConfig, known: _Known, block: jax.Array, x: jax.Array, at_end: bool = False) -> jax.Array:
    """What attention adds to streams [b, m, T, D]: [b, m, T, D], or [b, m, 1, D] for the last position alone."""
    weights, rows = jax.tree.map(lambda w: w[block], known.blocks), slice(-1 if at_end else 0, None)
    normed = norm(config, weights["ln_1"], x)
    queries = normed[:, :, rows]
    q, k, v = (jnp.einsum("bmtd,dnh->nbmth", y, kernel)
               for y, kernel in zip((queries, normed, normed), known.kernels[block], strict=True))
    out = masked_attention(q, k, v, known.visible[block][:, rows], scale=config.attention_scale)
    if known.head_gates is not None:
        out = out * known.head_gates[block][:, None, :, rows]
    attention = weights["attention"]["out"]
    return jnp.einsum("nbmth,nhd->bmtd", out, attention["kernel"]) + attention["bias"]


def _mlp(config: ModelConfig, known: _Known, block: jax.Array, x: jax.Array, at_end: bool = False) -> jax.Array:
    """What an MLP adds to streams [b, m, T, D], or to those of the last position [b, m, D]."""
    weights, gate = jax.tree.map(lambda w: w[block], known.blocks), None
    if known.neuron_gates is not None:
        gate = known.neuron_gates[block][:, -1] if at_end else known.neuron_gates[block]
    return nodes.mlp(config, weights, x, gate)
