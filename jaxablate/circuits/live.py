"""The part of the graph that can still change the output, and its values, while ACDC walks from the end to the start.

When the edges into one layer are tested, three things are known exactly, and nothing else has to be computed:

* every source of an earlier layer writes what it writes in the clean run;
* a node with no surviving outgoing edge does not matter;
* a change of a node reaches later nodes over surviving edges only.

So the state is what the live nodes of the later layers read and write now. To test a set of patched edges, the changes
they make to what their destinations read are followed along surviving edges to the end. Many nested sets are followed
at once. A node that only the last position of anything reads is computed at its last position alone.

Where a norm follows attention, each destination has a sum of its own of what the heads of each earlier block write
(`jaxablate.circuits.patching`); those that differ from the clean run's are part of the state.

This is the one forward pass that does not loop over blocks; `tests/test_acdc.py` holds it against `patching`.
"""

import copy
import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.blocks import Block, Decoder, Inputs, blocks, exact, stack
from jaxablate.circuits.graph import PORTS, Destination, Graph
from jaxablate.circuits.metrics import Divergence
from jaxablate.circuits.patching import Run
from jaxablate.types import Params

Arrays = dict[int, jax.Array]
Rows = dict[int, np.ndarray]
Totals = dict[tuple[int, int], jax.Array]
_MOST_TERMS = 4  # arrays added in one compiled call


@flax.struct.dataclass
class Prepared:
    """A batch of prompts: the clean run, and what patching changes in what every source writes."""

    decoder: Decoder = flax.struct.field(pytree_node=False)
    params: Params
    blocks: Block
    """Stacked."""
    sources: jax.Array
    """[S, n, T, D] of the clean run."""
    change: jax.Array
    """[S, n, T, D] replacement minus clean."""
    change_at_end: jax.Array
    """[S, n, 1, D] the same at the last position."""
    streams: jax.Array
    """[2 L + 1, n, T, D] of the clean run."""
    totals: jax.Array | None
    """[L, n, T, D] what all heads of a block and the bias write together in the clean run, if a norm follows."""
    divergence: Divergence
    """KL from the clean run."""

    def sharing(self, other: "Prepared") -> "Prepared":
        """The same batch with the arrays of another batch for what no prompt is part of, so that these are held once.
        """
        return dataclasses.replace(
            self, params=other.params, blocks=dataclasses.replace(self.blocks, weights=other.blocks.weights),
            divergence=dataclasses.replace(self.divergence, table=other.divergence.table))


@functools.partial(jax.jit, static_argnums=0)
def prepare(decoder: Decoder, params: Params, inputs: Inputs, clean: Run, replacement: jax.Array) -> Prepared:
    """What testing edges on these prompts needs."""
    change = replacement - clean.sources
    return Prepared(
        decoder=decoder, params=params, blocks=stack(blocks(decoder, params, inputs)), sources=clean.sources,
        change=change, change_at_end=change[:, :, -1:], streams=clean.streams,
        totals=clean.totals if decoder.post_norms else None,
        divergence=Divergence.of(decoder.unembedding(params), clean.final, decoder.logit_cap))


@dataclasses.dataclass(frozen=True)
class Values:
    """What the live nodes read and write now, on one batch of prompts. Never changed in place."""

    reads: Arrays
    """destination index -> [1, n, T or 1, D] residual stream it reads."""
    ports: Arrays
    """index of a head's destination -> [1, n, T or 1, H] queries, keys or values."""
    writes: Arrays
    """source index -> [1, n, T or 1, D]."""
    totals: Totals
    """(destination index, block) -> [1, n, T or 1, D] what the heads of that block write together as the destination
    reads it, where a norm follows and it is not what it is in the clean run."""

    @classmethod
    def none(cls) -> "Values":
        """Those of no node."""
        return cls({}, {}, {}, {})

    def updated(self, by: "Values") -> "Values":
        """These values, with others in place of those that others have."""
        names = [field.name for field in dataclasses.fields(self)]
        return Values(**{name: {**getattr(self, name), **getattr(by, name)} for name in names})


class LiveGraph:
    """Surviving edges, the nodes they keep alive, and where each of these is read.

    Attributes:
      kept: [destinations, S] bool, edges not yet patched, those never tested included.
      live: [S] bool, sources with a kept edge into a live destination of a layer that is done.
      read_everywhere: [S] bool, sources that are read at every position; the others at the last alone.
    """

    def __init__(self, graph: Graph, removed: np.ndarray):
        self.graph = graph
        self.kept = graph.matrix(~removed).astype(bool)
        self.live = np.zeros(graph.n_sources, bool)
        self.read_everywhere = np.zeros(graph.n_sources, bool)

    def copy(self) -> "LiveGraph":
        """A copy that shares no array."""
        other = copy.copy(self)
        other.kept, other.live, other.read_everywhere = (
            self.kept.copy(), self.live.copy(), self.read_everywhere.copy())
        return other

    def remove(self, edges: np.ndarray) -> None:
        """Takes edges out."""
        self.kept[self.graph.edge_destination[edges], self.graph.edge_source[edges]] = False

    def enter(self, layer: int) -> None:
        """Says which nodes of a layer are alive, once all edges into later layers are decided."""
        for d in (self.graph.destinations[i] for i in self.graph.by_layer[layer]):
            if d.port in ("K", "V"):
                continue
            for node in d.nodes:
                readers = [r for r in np.flatnonzero(self.kept[:, node])
                           if self.graph.destinations[r].layer > layer and self.reads(self.graph.destinations[r])]
                self.live[node] = bool(readers)
                self.read_everywhere[node] = any(self.everywhere(self.graph.destinations[r]) for r in readers)

    def reads(self, d: Destination) -> bool:
        """Whether what a destination reads can matter."""
        return not d.nodes or any(self.live[node] for node in d.nodes)

    def everywhere(self, d: Destination) -> bool:
        """Whether it matters at every position; at the last alone otherwise."""
        return d.port in ("K", "V") or any(self.read_everywhere[node] for node in d.nodes)


class Follower:
    """Follows changes through the live graph on one batch of prompts; the arithmetic of `jaxablate.circuits.acdc`."""

    def __init__(self, prepared: Prepared):
        self.prepared, self.graph = prepared, prepared.decoder.graph

    def enter(self, values: Values, live: LiveGraph, layer: int) -> Values:
        """Adds the live nodes of a layer as they are in the clean run."""
        entered = Values.none()
        for index in self.graph.by_layer[layer]:
            d = self.graph.destinations[index]
            if not live.reads(d):
                continue
            entered.reads[index] = _one_of(self.prepared.streams, layer, live.everywhere(d))
            for node in d.nodes if d.port in (None, "Q") else ():
                entered.writes[node] = _one_of(self.prepared.sources, node, bool(live.read_everywhere[node]))
            if d.port is not None:
                entered.ports[index] = self._project(d, entered.reads[index])
        return values.updated(entered)

    def divergences(self, values: Values, live: LiveGraph, edges: np.ndarray, width: int) -> jax.Array:
        """[width] sums over prompts of the divergence with edges[: i + 1] patched besides; beyond the edges, any.

        All edges lead into one layer, whose nodes and all later ones are in ``values``.
        """
        touched = self._touched(edges)
        alone = len(touched) == 1
        reads = {i: self._nested(values, live, i, edges[at], width if alone else None) for i, at in touched.items()}
        position = np.arange(width)
        rows = {} if alone else {i: np.searchsorted(at, position, side="right") for i, at in touched.items()}
        return _divergences(self.prepared, self._follow(values, live, reads, rows, None))

    def patch(self, values: Values, live: LiveGraph, edges: np.ndarray) -> Values:
        """Values with edges patched for good; they may lead into any layers that are in ``values``."""
        changed = Values.none()
        reads = {i: self._together(values, live, i, edges[at], changed) for i, at in self._touched(edges).items()}
        self._follow(values, live, reads, {}, changed)
        return values.updated(changed)

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
        change, read = self._change(everywhere), values.reads[index]
        if self.prepared.totals is None:
            return _nested_reads(change, read, filled, width is None)
        totals = self._totals(values, index, everywhere)
        return _nested_reads_through_norms(self.prepared.blocks, change, read, totals, filled, width is None)

    def _together(self, values: Values, live: LiveGraph, index: int, edges: np.ndarray, changed: Values) -> jax.Array:
        """What a destination reads with all these edges patched, [1, n, T or 1, D]; new totals go to ``changed``."""
        sources = self.graph.edge_source[edges]
        room = _power_of_two(len(sources))
        weights = (np.arange(room) < len(sources)).astype(np.float32)
        everywhere = live.everywhere(self.graph.destinations[index])
        change, read, filled = self._change(everywhere), values.reads[index], np.resize(sources, room)
        if self.prepared.totals is None:
            return _patched_read(change, read, filled, weights)
        totals = self._totals(values, index, everywhere)
        read, totals = _patched_read_through_norms(self.prepared.blocks, change, read, totals, filled, weights)
        blocks = (self.graph.block_of(source) for source in sources.tolist())
        changed.totals.update({(index, block): _one_of(totals, block, True) for block in blocks if block is not None})
        return read

    def _change(self, everywhere: bool) -> jax.Array:
        return self.prepared.change if everywhere else self.prepared.change_at_end

    def _total(self, values: Values, index: int, block: int, everywhere: bool) -> jax.Array:
        """What the heads of a block write together as a destination reads it, [1, n, T or 1, D]."""
        if (index, block) in values.totals:
            return values.totals[index, block]
        return _one_of(self.prepared.totals, block, everywhere)

    def _totals(self, values: Values, index: int, everywhere: bool) -> jax.Array:
        """The same of all blocks, [L, n, T or 1, D]."""
        return jnp.concatenate([self._total(values, index, i, everywhere) for i in range(self.graph.n_layers)])

    def _follow(self, values: Values, live: LiveGraph, reads: Arrays, rows: Rows, changed: Values | None
                ) -> jax.Array:
        """From changed reads to what the end reads, [m, n, 1, D].

        Args:
          values: as they are.
          live: the live graph.
          reads: destination index -> [v, n, T or 1, D], changed ones; filled up on the way.
          rows: destination index -> [m], which of the v holds in each of the m runs; v = m where it is missing.
          changed: receives the new values on the way; only for m = 1.
        """
        first = min(self.graph.destinations[index].layer for index in reads)
        # Source index, or None for the end, -> what the node changes in what it writes, [m, n, T or 1, D].
        changes: dict[int | None, jax.Array] = {}
        for layer in range(first, 2 * self.graph.n_layers + 1):
            nodes, ports = self._nodes_of(layer, live), {}
            # First the changes of earlier nodes arrive at this layer's destinations over surviving edges ...
            for index in dict.fromkeys(index for of_node in nodes.values() for index in of_node):
                coming = [s for s in changes if s is not None and live.kept[index, s]]
                if coming:
                    read = reads.get(index, values.reads[index])
                    reads[index] = self._arrive(values, index, read, {s: changes[s] for s in coming}, changed)
                if index in reads and self.graph.destinations[index].port is not None:
                    ports[index] = self._project(self.graph.destinations[index], reads[index])
            # ... then each node with a destination that has changed is computed anew.
            for node, of_node in nodes.items():
                if any(index in reads for index in of_node):
                    changes[node] = self._node(values, node, of_node, reads, ports, rows, changed)
            if changed is not None:
                changed.reads.update({i: reads[i] for of_node in nodes.values() for i in of_node if i in reads})
                changed.ports.update(ports)
        return changes[None] if None in changes else jnp.zeros(())

    def _arrive(self, values: Values, index: int, read: jax.Array, changes: dict[int, jax.Array],
                changed: Values | None) -> jax.Array:
        """What a destination reads when sources write what they wrote and these changes."""
        if self.prepared.totals is None:
            return _add(read, list(changes.values()))
        by_block: dict[int | None, list[jax.Array]] = {}
        for source, change in changes.items():
            by_block.setdefault(self.graph.block_of(source), []).append(change)
        for block, terms in by_block.items():
            if block is None:
                read = _add(read, terms)
                continue
            known = values if changed is None or (index, block) not in changed.totals else changed
            before = self._total(known, index, block, read.shape[-2] == self.prepared.change.shape[-2])
            total = _add(before, terms)
            read = _exchanged(self.prepared.blocks, block, read, before, total)
            if changed is not None:
                changed.totals[index, block] = total
        return read

    def _nodes_of(self, layer: int, live: LiveGraph) -> dict[int | None, list[int]]:
        """Source index, or None for the end, -> indices of its destinations, of a layer's live nodes."""
        by_node: dict[int | None, list[int]] = {}
        for index in self.graph.by_layer[layer]:
            d = self.graph.destinations[index]
            for node in d.nodes or (None,):
                if node is None or live.live[node]:
                    by_node.setdefault(node, []).append(index)
        return by_node

    def _node(self, values: Values, node: int | None, of_node: Sequence[int], reads: Arrays, ports: Arrays, rows: Rows,
              changed: Values | None) -> jax.Array:
        """What a node changes in what it writes, [m, n, T or 1, D]; for the end what it reads."""
        if node is None:
            return reads[of_node[0]]
        d = self.graph.destinations[of_node[0]]
        if d.port is None:  # the only destination of its layer, so each run has a read of its own
            change = _mlp_change(self.prepared.blocks, d.block, reads[of_node[0]], values.writes[node])
        else:
            now = [jnp.take(ports[i], rows[i], axis=0) if i in ports and i in rows else ports.get(i, values.ports[i])
                   for i in of_node]
            runs = max(x.shape[0] for x in now)
            q, k, v = (jnp.broadcast_to(x, (runs, *x.shape[1:])) for x in now)
            change = _head_change(self.prepared.blocks, d.block, d.head, q, k, v, values.writes[node])
        if changed is not None:
            changed.writes[node] = values.writes[node] + change
        return change

    def _project(self, d: Destination, read: jax.Array) -> jax.Array:
        assert d.port is not None  # only heads project
        return _project(self.prepared.blocks, PORTS.index(d.port), d.block, d.head, read)


def _power_of_two(count: int) -> int:
    """The next one: few shapes, so few compilations."""
    return 1 << (count - 1).bit_length()


@functools.partial(jax.jit, static_argnums=2)
def _one_of(values: jax.Array, index: int, everywhere: bool) -> jax.Array:
    """Selects one of the values [X, n, T, D] by its index: [1, n, T, D], or [1, n, 1, D] at the last position alone."""
    one = jax.lax.dynamic_index_in_dim(values, index)
    return one if everywhere else one[..., -1:, :]


def _add(base: jax.Array, terms: Sequence[jax.Array]) -> jax.Array:
    for start in range(0, len(terms), _MOST_TERMS):
        base = _sum(base, *terms[start : start + _MOST_TERMS])
    return base


@jax.jit
def _sum(base: jax.Array, *terms: jax.Array) -> jax.Array:
    """The sum at the positions that the base has: all, or the last alone."""
    for term in terms:
        base = base + term[..., -base.shape[-2] :, :]
    return base


@functools.partial(jax.jit, static_argnums=3)
def _nested_reads(change: jax.Array, read: jax.Array, sources: jax.Array, with_none: bool) -> jax.Array:
    def step(read: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        read = read + change[source]
        return read, read

    nested = jax.lax.scan(step, read[0], sources)[1]
    return jnp.concatenate([read, nested]) if with_none else nested


@jax.jit
def _patched_read(change: jax.Array, read: jax.Array, sources: jax.Array, weights: jax.Array) -> jax.Array:
    def step(read: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        source, weight = term
        return read + weight.astype(read.dtype) * change[source], None

    return jax.lax.scan(step, read[0], (sources, weights))[0][None]


@functools.partial(jax.jit, static_argnums=5)
@exact
def _nested_reads_through_norms(blocks: Block, change: jax.Array, read: jax.Array, totals: jax.Array,
                                sources: jax.Array, with_none: bool) -> jax.Array:
    nested = _through_norms(blocks, change, read, totals, sources, jnp.ones(len(sources), read.dtype))[2]
    return jnp.concatenate([read, nested]) if with_none else nested


@jax.jit
@exact
def _patched_read_through_norms(blocks: Block, change: jax.Array, read: jax.Array, totals: jax.Array,
                                sources: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    read, totals, _ = _through_norms(blocks, change, read, totals, sources, weights)
    return read, totals


def _through_norms(blocks: Block, change: jax.Array, read: jax.Array, totals: jax.Array, sources: jax.Array,
                   weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A read [1, n, T or 1, D] with changes of sources [m] added one after another, where heads pass a norm together.

    Returns:
      The last read, the totals [L, n, T or 1, D] that go with it, and all reads [m, n, T or 1, D].
    """
    graph = blocks.decoder.graph
    block_of = jnp.array([-1 if (i := graph.block_of(s)) is None else i for s in range(graph.n_sources)])

    def step(state: tuple[jax.Array, jax.Array], term: tuple[jax.Array, jax.Array]
             ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (read, totals), (source, weight) = state, term
        moved, block = weight.astype(read.dtype) * change[source], block_of[source]

        def of_head() -> tuple[jax.Array, jax.Array]:
            total = totals[block] + moved
            norm = blocks.take(block).post_norm
            return read + (norm(total) - norm(totals[block])), totals.at[block].set(total)

        state = jax.lax.cond(block < 0, lambda: (read + moved, totals), of_head)
        return state, state[0]

    (last, totals), nested = jax.lax.scan(step, (read[0], totals), (sources, weights))
    return last[None], totals, nested


@jax.jit
@exact
def _exchanged(blocks: Block, index: int, read: jax.Array, before: jax.Array, total: jax.Array) -> jax.Array:
    """A read with another total of the heads of a block in it."""
    norm = blocks.take(index).post_norm
    return read + (norm(total) - norm(before))


@functools.partial(jax.jit, static_argnums=1)
@exact
def _project(blocks: Block, port: int, index: int, head: int, read: jax.Array) -> jax.Array:
    """Queries, keys or values [m, n, T or 1, H] of one head."""
    block = blocks.take(index)
    return block.project(port, block.decoder.read(block.weights, read), head)


@jax.jit
@exact
def _head_change(blocks: Block, index: int, head: int, q: jax.Array, k: jax.Array, v: jax.Array, written: jax.Array
                 ) -> jax.Array:
    """What a head writes now minus what it wrote, [m, n, T or 1, D]."""
    block = blocks.take(index)
    return block.decoder.write(block.weights, block.channels(q, k, v, head), head) - written


@jax.jit
@exact
def _mlp_change(blocks: Block, index: int, read: jax.Array, written: jax.Array) -> jax.Array:
    return blocks.take(index).mlp(read) - written


@jax.jit
@exact
def _divergences(prepared: Prepared, end: jax.Array) -> jax.Array:
    final = prepared.decoder.final_norm(prepared.params, end[:, :, -1])
    return prepared.divergence.values(final).sum(-1)
