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
    """[S, m, T, D] what patching each source alone changes in a stream that reads it."""
    streams: jax.Array
    """[2 L + 1, m, T, D]."""
    totals: jax.Array
    """[L, m, T, D] what all heads of a block and the bias write together."""
    mlps: jax.Array
    """[L, m, T, D] what MLPs add."""
    ports: tuple[jax.Array, ...]
    """Queries [L, N, m, T, H], keys and values [L, K, m, T, H]."""
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
    decoder, graph = batch.decoder, batch.decoder.graph
    of_prompts = blocks(decoder, batch.params, batch.inputs)
    run = source_run(decoder, batch.params, batch.inputs)
    ports = ordinary_run(decoder, batch.params, batch.inputs).ports
    change = batch.replacement - run.sources
    if decoder.post_norms:
        for i, block in enumerate(of_prompts):
            heads, total = slice(graph.head(i, 0), graph.mlp(i)), run.totals[i]
            change = change.at[heads].set(block.post_norm(total + change[heads]) - block.post_norm(total))
    mlps = run.sources[np.array([graph.mlp(i) for i in range(graph.n_layers)])]
    clean = _Clean(batch=batch, change=change, streams=run.streams, totals=run.totals, mlps=mlps,
                   ports=tuple(jnp.stack(p) for p in zip(*ports, strict=True)), blocks=stack(of_prompts))
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
    graph, stream, block = clean.batch.decoder.graph, clean.streams[2 * index + 1], clean.blocks.take(index)
    # What the MLP adds to: the stream that it reads, and in a parallel block what attention adds.
    before = clean.streams[2 * index + 2] - clean.mlps[index] if graph.parallel else stream

    def last() -> jax.Array:
        return (before[:, -1:] + block.mlp(stream[:, -1:] + clean.change[:, :, -1:][source]))[:, :, 0]

    def earlier() -> jax.Array:
        return _blocks_from(clean, before + block.mlp(stream + clean.change[source]), index + 1)

    return clean.metric(jax.lax.cond(index == graph.n_layers - 1, last, earlier))


@jax.jit
@exact
def _into_heads(clean: _Clean, index: jax.Array, source: jax.Array, head: jax.Array, port: jax.Array) -> jax.Array:
    """Metric [b] with edges patched from sources [b] to the ports [b] of heads [b] of a block.

    A head is a query head where the port is the queries', and one of keys and values, for all that share it, elsewhere.
    """
    block, decoder, stream = clean.blocks.take(index), clean.batch.decoder, clean.streams[2 * index]
    normed = decoder.read(block.weights, stream + clean.change[source])
    changes = jax.vmap(lambda x, h, p: _written_change(block, [of[index] for of in clean.ports], x, h, p))
    total = clean.totals[index] + changes(normed, head, port)

    def last() -> jax.Array:
        end = stream[:, -1:]
        return block.after_attention(end, end + block.post_norm(total[:, :, -1:]))[:, :, 0]

    def earlier() -> jax.Array:
        return _blocks_from(clean, block.after_attention(stream, stream + block.post_norm(total)), index + 1)

    return clean.metric(jax.lax.cond(index == decoder.graph.n_layers - 1, last, earlier))


def _written_change(block: Block, ports: Sequence[jax.Array], normed: jax.Array, head: jax.Array, port: jax.Array
                    ) -> jax.Array:
    """What heads write [m, T, D] with one port read from another stream, less what they write in the clean run.

    Args:
      block: of the heads.
      ports: queries [N, m, T, H], keys and values [K, m, T, H] of the clean run.
      normed: [m, T, D] the other stream, normed.
      head: index of the query head, or of the key and value head.
      port: which of the three it reads.
    """
    group = block.decoder.graph.group
    shared = jnp.where(port == 0, head // group, head)
    members = shared * group + jnp.arange(group)
    now, before = [], []
    for i, heads in enumerate((members, shared[None], shared[None])):
        before.append(ports[i][heads])
        new = jnp.stack([block.project(i, normed, h) for h in heads])
        reads = (port == i) & ((heads == head) | (i > 0))
        now.append(jnp.where(reads[:, None, None, None], new, before[i]))
    of_members = jax.vmap(block.channels, in_axes=(0, None, None, 0))
    change = of_members(now[0], now[1][0], now[2][0], members) - of_members(
        before[0], before[1][0], before[2][0], members)
    return jax.vmap(lambda x, h: block.decoder.write(block.weights, x, h))(change, members).sum(0)


def _blocks_from(clean: _Clean, x: jax.Array, first: jax.Array) -> jax.Array:
    """[b, m, D] stream of the last position at the end, from the stream [b, m, T, D] that enters block ``first``."""
    last = clean.batch.decoder.graph.n_layers - 1
    x = jax.lax.fori_loop(first, last, lambda i, x: clean.blocks.take(i).after(x), x)
    return clean.blocks.take(last).after(x, at_end=True)[:, :, 0]
