"""The exact effect of patching one edge alone, for every edge: the oracle that attribution estimates.

With one edge patched, everything before its destination is the clean run and everything after it is an ordinary run of
the model. So many edges into one layer run together from that layer on, as if they were prompts; no stream has copies,
and of the last block only the last position is computed.
"""

from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxablate.circuits.blocks import Block, blocks, exact, stack
from jaxablate.circuits.graph import PORTS, Graph
from jaxablate.circuits.patching import ordinary_run, source_run
from jaxablate.circuits.problem import Batch, Problem, takes_problem
from jaxablate.errors import ConfigError

Progress = Callable[[int, int], None]
"""Called with the number of edges done and of all edges."""

_MEBI = 2**20
_VOCABULARY_PART = 4096  # logits of one prompt that the divergence holds at a time


@flax.struct.dataclass
class _Clean:
    """A batch of prompts and its clean run, by layer along a leading axis, so that one program serves every layer."""

    batch: Batch
    change: jax.Array
    """[S, m, T, D] replacement minus clean."""
    streams: jax.Array
    """[2 L + 1, m, T, D]."""
    ports: jax.Array
    """[L, 3, N, m, T, H] queries, keys and values."""
    blocks: Block
    """Stacked."""

    def metric(self, x: jax.Array) -> jax.Array:
        """[b] metric of runs whose last position is [b, m, D] before the final norm."""
        final = self.batch.decoder.final_norm(self.batch.params, x)
        return self.batch.target.values(final) @ self.batch.weight


@takes_problem
def effects(problem: Problem, *, edges: Sequence[int] | np.ndarray | None = None, batch_size: int | None = None,
            memory_mb: int = 256, progress: Progress | None = None) -> Float[np.ndarray, " chosen"]:
    """What patching each edge alone does to the metric, exactly.

    Args:
      problem: the model and its prompts.
      edges: indices of the edges looked at, in any order; all by default.
      batch_size: prompts at once.
      memory_mb: about how many MiB the edges that run together may take, beside what the clean run takes.
      progress: called with the number of edges done and of all, after every compiled call.

    Returns:
      float64, for each chosen edge: mean over prompts of the metric with it patched, less that of the model.

    Raises:
      ConfigError: an edge is not in the graph, or batch_size or memory_mb is below 1.
    """
    graph = problem.graph
    chosen = np.arange(graph.n_edges) if edges is None else np.asarray(edges, int)
    if memory_mb < 1:
        raise ConfigError(f"memory_mb={memory_mb} must be at least 1; 256 is the default")
    wrong = chosen[(chosen < 0) | (chosen >= graph.n_edges)]
    if wrong.size:
        raise ConfigError(f"edge {int(wrong[0])} is not in the graph; its edges are 0 .. {graph.n_edges - 1}")
    out, done, n = np.zeros(len(chosen)), 0, len(problem.pairs)
    for batch, real in problem.batches(batch_size):
        clean, base = _clean_run(batch)
        for places, values in _by_layer(graph, clean, chosen, _edges_at_once(batch, memory_mb)):
            out[places] += np.asarray(values, np.float64)[: len(places)] - float(base)
            done += len(places) * real
            if progress is not None:
                progress(done // n, len(chosen))
    return out


def _edges_at_once(batch: Batch, memory_mb: int) -> int:
    """Edges that fit: streams and ports, neurons before and after activation, attention weights, some logits."""
    (m, t), (width, neurons, _) = batch.inputs.tokens.shape, batch.decoder.sizes
    heads = batch.decoder.graph.n_heads
    per_prompt = t * (8 * width + 3 * neurons) + 3 * heads * t * t + 3 * _VOCABULARY_PART
    return max(1, memory_mb * _MEBI // (m * per_prompt * batch.replacement.dtype.itemsize))


def _by_layer(graph: Graph, clean: _Clean, edges: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """(places in ``edges``, their metric) of edges into one layer, at most ``count`` at a time.

    All calls are filled up to the same number of edges, so that each kind of destination is compiled once.
    """
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
            if layer == 2 * graph.n_layers:
                yield places, _into_end(clean, source)
            elif layer % 2:
                yield places, _into_mlp(clean, layer // 2, source)
            else:
                yield places, _into_heads(clean, layer // 2, source, heads[destination], ports[destination])


@jax.jit
@exact
def _clean_run(batch: Batch) -> tuple[_Clean, jax.Array]:
    """The clean run of a batch, and its metric []."""
    run = source_run(batch.decoder, batch.params, batch.inputs)
    ports = ordinary_run(batch.decoder, batch.params, batch.inputs).ports
    clean = _Clean(batch=batch, change=batch.replacement - run.sources, streams=run.streams,
                   ports=jnp.stack([jnp.stack(p) for p in ports]),
                   blocks=stack(blocks(batch.decoder, batch.params, batch.inputs)))
    return clean, batch.target.values(run.final) @ batch.weight


@jax.jit
@exact
def _into_end(clean: _Clean, source: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the end."""
    return clean.metric(clean.streams[-1][:, -1] + clean.change[:, :, -1][source])


@jax.jit
@exact
def _into_mlp(clean: _Clean, index: jax.Array, source: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the MLP of a block."""
    stream, block = clean.streams[2 * index + 1], clean.blocks.take(index)

    def last() -> jax.Array:
        end = stream[:, -1:]
        return (end + block.mlp(end + clean.change[:, :, -1:][source]))[:, :, 0]

    def earlier() -> jax.Array:
        return _blocks_from(clean, stream + block.mlp(stream + clean.change[source]), index + 1)

    return clean.metric(jax.lax.cond(index == clean.batch.decoder.graph.n_layers - 1, last, earlier))


@jax.jit
@exact
def _into_heads(clean: _Clean, index: jax.Array, source: jax.Array, head: jax.Array, port: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the ports [b] of heads [b] of a block."""
    block, decoder = clean.blocks.take(index), clean.batch.decoder
    normed = decoder.read(block.weights, clean.streams[2 * index] + clean.change[source])
    read = jax.vmap(block.project)(port, normed, head)
    before = clean.ports[index][:, head]
    q, k, v = (jnp.where((port == i)[:, None, None, None], read, before[i]) for i in range(3))
    change = block.channels(q, k, v, head) - block.channels(before[0], before[1], before[2], head)
    written = jax.vmap(lambda x, h: decoder.write(block.weights, x, h))(change, head)
    x = clean.streams[2 * index + 1] + written

    def last() -> jax.Array:
        return (x[:, :, -1:] + block.mlp(x[:, :, -1:]))[:, :, 0]

    def earlier() -> jax.Array:
        return _blocks_from(clean, x + block.mlp(x), index + 1)

    return clean.metric(jax.lax.cond(index == decoder.graph.n_layers - 1, last, earlier))


def _blocks_from(clean: _Clean, x: jax.Array, first: jax.Array) -> jax.Array:
    """[b, m, D] stream of the last position at the end, from the stream [b, m, T, D] that enters block ``first``."""
    last = clean.batch.decoder.graph.n_layers - 1

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        block = clean.blocks.take(i)
        x = x + block.attention(x)
        return x + block.mlp(x)

    x = jax.lax.fori_loop(first, last, step, x)
    block = clean.blocks.take(last)
    x = x[:, :, -1:] + block.attention(x, at_end=True)
    return (x + block.mlp(x))[:, :, 0]
