"""The part of the graph that can still change the output, and its values, while ACDC walks from the end to the start.

When the edges into one layer are tested, three things are known exactly, and nothing else has to be computed:

* every source of an earlier layer writes what it writes in the clean run;
* a node with no surviving outgoing edge does not matter;
* a change of a node reaches later nodes over surviving edges only.

So the state is what the live nodes of the later layers read and write now. To test a set of patched edges, the changes
they make to what their destinations read are followed along surviving edges to the end. Many nested sets are followed
at once. A node that only the last position of anything reads is computed at its last position alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.divergence import Readout, divergence, readout
from jaxablate.circuits.graph import PORTS, Destination, Graph
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import Run, exact
from jaxablate.config import ModelConfig
from jaxablate.ops.attention import masked_attention

Arrays = dict[int, jax.Array]
_MOST_TERMS = 4


@flax.struct.dataclass
class Prepared:
    """A batch of prompts: the clean run, and what patching changes in what every source writes."""

    sources: jax.Array
    """[S, n, T, D] of the clean run."""
    change: jax.Array
    """[S, n, T, D] replacement minus clean."""
    change_at_end: jax.Array
    """[S, n, 1, D] the same at the last position."""
    streams: jax.Array
    """[2 L + 1, n, T, D] of the clean run."""
    visible: jax.Array
    """[L, n, T, T] bool."""
    head_gates: jax.Array | None
    """[L, N, n, T, H], or None."""
    neuron_gates: jax.Array | None
    """[L, n, T, F], or None."""
    readout: Readout


@functools.partial(jax.jit, static_argnums=0)
def prepare(config: ModelConfig, params: Params, inputs: Inputs, clean: Run, replacement: jax.Array) -> Prepared:
    """What testing edges on these prompts needs."""
    length, head_gates, neuron_gates = inputs.tokens.shape[1], None, None
    if inputs.attention_gates is not None:
        gate = inputs.attention_gates
        spread = jax.vmap(lambda g: nodes.spread_gate(g.reshape(g.shape[0], -1), length), 1)(gate)
        head_gates = spread.reshape(*spread.shape[:3], *gate.shape[2:]).transpose(0, 3, 1, 2, 4)
        neuron_gates = jax.vmap(lambda g: nodes.spread_gate(g, length), 1)(inputs.neuron_gates)
    change = replacement - clean.sources
    return Prepared(
        sources=clean.sources, change=change, change_at_end=change[:, :, -1:], streams=clean.streams,
        visible=jnp.stack(nodes.visible(config, inputs.valid)), head_gates=head_gates, neuron_gates=neuron_gates,
        readout=readout(params, clean.final),
    )


@dataclasses.dataclass(frozen=True)
class Values:
    """What the live nodes read and write now, on one batch of prompts. Never changed in place."""

    reads: Arrays
    """destination index -> [n, T or 1, D] residual stream it reads."""
    ports: Arrays
    """index of a head's destination -> [n, T or 1, H] queries, keys or values."""
    writes: Arrays
    """source index -> [n, T or 1, D]."""


class LiveGraph:
    """Surviving edges, the nodes they keep alive, and where each of these is read.

    Attributes:
      kept: [destinations, S] bool, edges not yet patched, those never tested included.
      live: [S] bool, sources with a kept edge into a live destination of a layer that is done.
      whole: [S] bool, sources that are read at every position; the others at the last alone.
    """

    def __init__(self, graph: Graph, removed: np.ndarray):
        self.graph = graph
        self.kept = graph.matrix(~removed).astype(bool)
        self.live = np.zeros(graph.n_sources, bool)
        self.whole = np.zeros(graph.n_sources, bool)

    def copy(self) -> "LiveGraph":
        """One that goes its own way."""
        other = object.__new__(LiveGraph)
        other.graph = self.graph
        other.kept, other.live, other.whole = self.kept.copy(), self.live.copy(), self.whole.copy()
        return other

    def remove(self, edges: np.ndarray) -> None:
        """Takes edges out."""
        self.kept[self.graph.edge_destination[edges], self.graph.edge_source[edges]] = False

    def enter(self, layer: int) -> None:
        """Says which nodes of a layer are alive, once all edges into later layers are decided."""
        for d in (self.graph.destinations[i] for i in self.graph.by_layer[layer]):
            if d.source is None or d.port in ("K", "V"):
                continue
            readers = [r for r in np.flatnonzero(self.kept[:, d.source])
                       if self.graph.destinations[r].layer > layer and self.reads(self.graph.destinations[r])]
            self.live[d.source] = bool(readers)
            self.whole[d.source] = any(self.everywhere(self.graph.destinations[r]) for r in readers)

    def reads(self, d: Destination) -> bool:
        """Whether what a destination reads can matter."""
        return d.source is None or bool(self.live[d.source])

    def everywhere(self, d: Destination) -> bool:
        """Whether it matters at every position; at the last alone otherwise."""
        return d.port in ("K", "V") or (d.source is not None and bool(self.whole[d.source]))


class Follower:
    """Follows changes through the live graph on one batch of prompts; the arithmetic of `jaxablate.circuits.acdc`.

    Args:
      config: of the model, in the type of the arithmetic (`patching.circuit_config`).
      params: its weights in that type.
      blocks: the same, stacked (`nodes.stack_blocks`).
      prepared: the prompts.
    """

    def __init__(self, config: ModelConfig, params: Params, blocks: Params, prepared: Prepared):
        self.config, self.params, self.blocks, self.prepared = config, params, blocks, prepared
        self.graph = Graph.of(config)

    def enter(self, values: Values, live: LiveGraph, layer: int) -> Values:
        """Adds the live nodes of a layer as they are in the clean run."""
        reads, ports, writes = dict(values.reads), dict(values.ports), dict(values.writes)
        for index in self.graph.by_layer[layer]:
            d = self.graph.destinations[index]
            if not live.reads(d):
                continue
            reads[index] = self._stream(layer, live.everywhere(d))
            if d.source is not None and d.port in (None, "Q"):
                writes[d.source] = _cut(self.prepared.sources[d.source], live.whole[d.source])
            if d.port is not None:
                ports[index] = self._project(d, reads[index][None])[0]
        return Values(reads, ports, writes)

    def divergences(self, values: Values, live: LiveGraph, edges: np.ndarray, width: int) -> jax.Array:
        """[width] sums over prompts of the divergence with edges[: i + 1] patched besides; beyond the edges, any.

        All edges lead into one layer, whose nodes and all later ones are in ``values``.
        """
        touched = self._touched(edges)
        alone = len(touched) == 1
        reads = {i: self._nested(values, live, i, edges[at], width if alone else None) for i, at in touched.items()}
        position = np.arange(width)
        rows = {} if alone else {i: np.searchsorted(at, position, side="right") for i, at in touched.items()}
        end = self._follow(values, live, reads, rows, None)
        return _divergences(self.config, self.params, self.prepared.readout, end)

    def patch(self, values: Values, live: LiveGraph, edges: np.ndarray) -> Values:
        """Values with edges patched for good; they may lead into any layers that are in ``values``."""
        reads = {i: self._together(values, live, i, edges[at]) for i, at in self._touched(edges).items()}
        found = Values({}, {}, {})
        self._follow(values, live, reads, {}, found)
        return Values({**values.reads, **found.reads}, {**values.ports, **found.ports},
                      {**values.writes, **found.writes})

    def _touched(self, edges: np.ndarray) -> dict[int, np.ndarray]:
        """destination index -> positions in ``edges`` of its edges."""
        destinations = self.graph.edge_destination[edges]
        return {int(index): np.flatnonzero(destinations == index) for index in np.unique(destinations)}

    def _nested(self, values: Values, live: LiveGraph, index: int, edges: np.ndarray, width: int | None) -> jax.Array:
        """What a destination reads with one, two ... of its edges patched, [width, n, T or 1, D].

        Without a width, for all powers of two in number, with none patched first.
        """
        sources = self.graph.edge_source[edges]
        filled = np.resize(sources, width or _power_of_two(len(sources)))
        everywhere = live.everywhere(self.graph.destinations[index])
        return _nested_reads(self._change(everywhere), values.reads[index], filled, width is None)

    def _together(self, values: Values, live: LiveGraph, index: int, edges: np.ndarray) -> jax.Array:
        """What a destination reads with all these edges patched, [1, n, T or 1, D]."""
        sources = self.graph.edge_source[edges]
        room = _power_of_two(len(sources))
        weights = (np.arange(room) < len(sources)).astype(np.float32)
        everywhere = live.everywhere(self.graph.destinations[index])
        return _patched_read(self._change(everywhere), values.reads[index], np.resize(sources, room), weights)

    def _change(self, everywhere: bool) -> jax.Array:
        return self.prepared.change if everywhere else self.prepared.change_at_end

    def _follow(self, values: Values, live: LiveGraph, reads: Arrays, rows: dict[int, np.ndarray],
                found: Values | None) -> jax.Array | None:
        """From changed reads to what the end reads, [m, n, D]; None where nothing reaches it.

        Args:
          values: as they are.
          live: the live graph.
          reads: destination index -> [v, n, T or 1, D], changed ones; filled up on the way.
          rows: destination index -> [m], which of the v holds in each of the m runs; v = m where it is missing.
          found: receives the new values on the way; only for m = 1.
        """
        first = min(self.graph.destinations[index].layer for index in reads)
        changes: dict[int | None, jax.Array] = {}
        for layer in range(first, 2 * self.graph.n_layers + 1):
            for node, ports in self._nodes_of(layer, live):
                self._arrive(values, live, ports, changes, reads)
                if any(index in reads for index in ports):
                    changes[node] = self._node(values, node, ports, reads, rows, found)
        return changes.get(None)

    def _nodes_of(self, layer: int, live: LiveGraph):
        """(source index or None for the end, indices of its destinations) of a layer's live nodes."""
        by_node: dict[Any, list[int]] = {}
        for index in self.graph.by_layer[layer]:
            d = self.graph.destinations[index]
            if live.reads(d):
                by_node.setdefault(d.source, []).append(index)
        return by_node.items()

    def _arrive(self, values: Values, live: LiveGraph, ports: Sequence[int], changes: dict, reads: Arrays) -> None:
        """Adds what changed sources bring to the destinations of one node."""
        for index in ports:
            coming = [s for s in changes if live.kept[index, s]]
            if coming:
                everywhere = live.everywhere(self.graph.destinations[index])
                base = reads.get(index, values.reads[index])
                reads[index] = _add(base, [_cut(changes[s], everywhere) for s in coming])

    def _node(self, values, node, ports, reads, rows, found):
        """What a node changes in what it writes, [m, n, T or 1, D]; for the end what it reads, [m, n, D]."""
        if found is not None:
            found.reads.update({index: reads[index][0] for index in ports if index in reads})
        if node is None:
            return _rows(reads[ports[0]], rows.get(ports[0]))[:, :, -1]
        d = self.graph.destinations[ports[0]]
        if d.port is None:
            change = self._mlp(values, d, _rows(reads[ports[0]], rows.get(ports[0])))
        else:
            change = self._head(values, d, ports, reads, rows, found)
        if found is not None:
            found.writes[node] = values.writes[node] + change[0]
        return change

    def _mlp(self, values, d, read):
        gates = self.prepared.neuron_gates
        return _mlp_change(self.config, self.blocks, d.block, read, gates, values.writes[d.source])

    def _head(self, values, d, ports, reads, rows, found):
        projected = []
        for index in ports:
            old = values.ports[index][None]
            if index in reads:
                new = self._project(self.graph.destinations[index], reads[index])
                if found is not None:
                    found.ports[index] = new[0]
                old = _rows(new, rows.get(index))
            projected.append(old)
        gates = self.prepared.head_gates
        return _head_change(self.config, self.blocks, d.block, d.head, *_common(projected), self.prepared.visible,
                            gates, values.writes[d.source])

    def _project(self, d: Destination, read: jax.Array) -> jax.Array:
        return _project(self.config, PORTS.index(d.port), self.blocks, d.block, d.head, read)

    def _stream(self, layer: int, everywhere: bool) -> jax.Array:
        return _cut(self.prepared.streams[layer], everywhere)


def _power_of_two(count: int) -> int:
    """The next one: few shapes, so few compilations."""
    return 1 << (count - 1).bit_length()


def _cut(x: jax.Array, everywhere: Any) -> jax.Array:
    """All positions, or the last alone."""
    return x if everywhere or x.shape[-2] == 1 else x[..., -1:, :]


def _rows(x: jax.Array, rows: np.ndarray | None) -> jax.Array:
    return x if rows is None else jnp.take(x, rows, axis=0)


def _common(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The same number of runs for each."""
    runs = max(x.shape[0] for x in arrays)
    return [jnp.broadcast_to(x, (runs, *x.shape[1:])) for x in arrays]


def _add(base: jax.Array, terms: Sequence[jax.Array]) -> jax.Array:
    for start in range(0, len(terms), _MOST_TERMS):
        base = _sum(base, *terms[start : start + _MOST_TERMS])
    return base


@jax.jit
def _sum(base, *terms):
    for term in terms:
        base = base + term
    return base


@functools.partial(jax.jit, static_argnums=3)
def _nested_reads(change, read, sources, with_none):
    def step(read, source):
        read = read + change[source]
        return read, read

    nested = jax.lax.scan(step, read, sources)[1]
    return jnp.concatenate([read[None], nested]) if with_none else nested


@jax.jit
def _patched_read(change, read, sources, weights):
    def step(read, term):
        source, weight = term
        return read + weight.astype(read.dtype) * change[source], None

    return jax.lax.scan(step, read, (sources, weights))[0][None]


@functools.partial(jax.jit, static_argnums=(0, 1))
@exact
def _project(config, port, blocks, block, head, read):
    """Queries, keys or values [m, n, T or 1, H] of one head."""
    kernel = blocks["attention"][nodes.PORT_NAMES[port]]["kernel"][block, :, head]
    return nodes.project_head(config, jax.tree.map(lambda x: x[block], blocks["ln_1"]), kernel, read)


@functools.partial(jax.jit, static_argnums=0)
@exact
def _head_change(config, blocks, block, head, q, k, v, visible, gates, written):
    """What a head writes now minus what it wrote, [m, n, T or 1, D]."""
    queries = q.shape[-2]
    out = masked_attention(q, k, v, visible[block][:, -queries:], scale=config.attention_scale)
    if gates is not None:
        out = out * gates[block, head][:, -queries:]
    return out @ blocks["attention"]["out"]["kernel"][block, head] - written


@functools.partial(jax.jit, static_argnums=0)
@exact
def _mlp_change(config, blocks, block, read, gates, written):
    gate = None if gates is None else gates[block][:, -read.shape[-2] :]
    weights = jax.tree.map(lambda x: x[block], {name: blocks[name] for name in ("ln_2", "mlp")})
    return nodes.mlp(config, weights, read, gate) - written


@functools.partial(jax.jit, static_argnums=0)
@exact
def _divergences(config, params, clean, end):
    return divergence(clean, nodes.final_norm(config, params, end)).sum(-1)
