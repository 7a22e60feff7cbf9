"""The edge-factorised graph of a decoder: who writes to the residual stream, who reads from it, and every edge between.

Sources write: ``Resid Start`` (token and position embedding), each head ``A<layer>.<head>``, each ``MLP <layer>``.
Destinations read: queries, keys and values of each head (``A<layer>.<head>.Q`` ...), each ``MLP <layer>``, and
``Resid End``. An edge joins a source to every destination of a later layer, where attention and MLP of a block are two
layers. The paper's model (8 blocks, 16 heads) has 23,981 edges, GPT-2 small (12, 12) has 32,491. Names and numbering
are those of AutoCircuit.

Where several query heads share one key and value head, that is one destination for their keys, and one for their
values, named after all of them: ``A3.4-7.K``. `Graph.split` has keys and values for each query head instead, as EAP-IG
and the MIB benchmark do. Where attention and MLP of a block read the same stream (GPT-NeoX), no edge leads from a
block's heads to its own MLP.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError

Port = Literal["Q", "K", "V"]
PORTS: tuple[Port, ...] = ("Q", "K", "V")
START, END = "Resid Start", "Resid End"


@dataclasses.dataclass(frozen=True)
class Destination:
    """One reader of the residual stream, with a copy of the stream of its own."""

    name: str
    layer: int
    """Layer in the graph: 2 i for attention of block i, 2 i + 1 for its MLP, 2 L for the end."""
    nodes: tuple[int, ...]
    """Indices of the sources that compute with it: an MLP, a query head, for keys and values all heads that share them;
    none for the end."""
    fan_in: int
    """Its sources are those of index 0 .. fan_in - 1."""
    offset: int
    """Index of its edge from source 0; its edges lie side by side, ordered by source."""
    port: Port | None = None
    head: int | None = None
    """Query head, or key and value head, that it is of."""

    @property
    def block(self) -> int:
        """Block of the model that it belongs to; the number of blocks for the end."""
        return self.layer // 2

    @property
    def edges(self) -> slice:
        """Indices of its edges."""
        return slice(self.offset, self.offset + self.fan_in)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Sources, destinations and edges of a decoder with ``n_layers`` blocks of ``n_heads`` heads and an MLP.

    Edges are numbered in the canonical order in which ACDC visits them: layers of destinations from the last to the
    first, within a layer by head, then Q, K, V, then by source, ascending. Of heads that share keys and values, the
    queries of all come first.

    Raises:
      ConfigError: ``kv_heads`` does not divide ``n_heads``.

    Example:
      >>> graph = Graph(n_layers=8, n_heads=16)
      >>> graph.n_edges, graph.edge_names[:2]
      (23981, ('Resid Start->Resid End', 'A0.0->Resid End'))
      >>> graph.edge("A0.1->A1.2.Q") == graph.destination("A1.2.Q").offset + graph.source("A0.1")
      True
      >>> [d.name for d in Graph(1, 4, kv_heads=2).destinations][2:6]
      ['A0.0.Q', 'A0.1.Q', 'A0.0-1.K', 'A0.0-1.V']
    """

    n_layers: int
    n_heads: int
    """Query heads N of a block."""
    kv_heads: int = 0
    """Key and value heads K of a block; each is shared by N / K query heads that follow one another. 0 stands for N."""
    parallel: bool = False
    """Whether the MLP of a block reads the stream that its attention reads, before the block."""

    def __post_init__(self):
        object.__setattr__(self, "kv_heads", self.kv_heads or self.n_heads)
        if self.n_heads % self.kv_heads:
            raise ConfigError(f"kv_heads={self.kv_heads} must divide n_heads={self.n_heads}; each key and value head "
                              "is shared by as many query heads")

    @classmethod
    def of(cls, config: ModelConfig) -> "Graph":
        """The graph of a model."""
        return cls(config.n_layers, config.n_heads, config.key_heads, config.parallel)

    @property
    def split(self) -> "Graph":
        """The same graph with keys and values of their own for each query head."""
        return dataclasses.replace(self, kv_heads=self.n_heads)

    @property
    def group(self) -> int:
        """Query heads that share a key and value head, N / K."""
        return self.n_heads // self.kv_heads

    @property
    def n_sources(self) -> int:
        """1 + layers * (heads + 1)."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return sum(d.fan_in for d in self.destinations)

    @functools.cached_property
    def source_names(self) -> tuple[str, ...]:
        """Names by source index."""
        blocks = ([*(f"A{i}.{h}" for h in range(self.n_heads)), f"MLP {i}"] for i in range(self.n_layers))
        return (START, *(name for block in blocks for name in block))

    @functools.cached_property
    def source_layers(self) -> np.ndarray:
        """[S] layer in the graph of each source; -1 for the start."""
        block = [2 * i + (h == self.n_heads) for i in range(self.n_layers) for h in range(self.n_heads + 1)]
        return np.array([-1, *block])

    def head(self, block: int, head: int) -> int:
        """Source index of a head."""
        return 1 + block * (self.n_heads + 1) + head

    def mlp(self, block: int) -> int:
        """Source index of a block's MLP."""
        return self.head(block, self.n_heads)

    def block_of(self, source: int) -> int | None:
        """Block of a head; None for the start and for MLPs."""
        block, place = divmod(source - 1, self.n_heads + 1)
        return block if source and place < self.n_heads else None

    @functools.cached_property
    def written_into(self) -> np.ndarray:
        """[S] layer in the graph of the first destinations that read each source."""
        apart = self.parallel * (self.source_layers % 2 == 0)  # no MLP reads the heads of its own block
        return self.source_layers + 1 + apart

    @functools.cached_property
    def destinations(self) -> tuple[Destination, ...]:
        """In canonical order: the end first, the queries, keys and values of block 0 last."""
        end = Destination(END, 2 * self.n_layers, (), self.n_sources, 0)
        readers = [end]
        for i in reversed(range(self.n_layers)):
            before_mlp = self.head(i, 0) if self.parallel else self.mlp(i)
            readers.append(Destination(f"MLP {i}", 2 * i + 1, (self.mlp(i),), before_mlp, 0))
            readers.extend(reader for kv_head in range(self.kv_heads) for reader in self._readers(i, kv_head))
        offsets = np.cumsum([0, *(d.fan_in for d in readers)]).tolist()
        return tuple(dataclasses.replace(d, offset=offset) for d, offset in zip(readers, offsets, strict=False))

    def _readers(self, block: int, kv_head: int) -> Iterator[Destination]:
        """Queries of the heads that share a key and value head, then its keys and values; offsets are yet to come."""
        heads = range(kv_head * self.group, (kv_head + 1) * self.group)
        shared = f"{heads[0]}-{heads[-1]}" if self.group > 1 else f"{heads[0]}"
        nodes, fan_in = tuple(self.head(block, h) for h in heads), self.head(block, 0)
        for h, node in zip(heads, nodes, strict=True):
            yield Destination(f"A{block}.{h}.Q", 2 * block, (node,), fan_in, 0, "Q", h)
        for port in PORTS[1:]:
            yield Destination(f"A{block}.{shared}.{port}", 2 * block, nodes, fan_in, 0, port, kv_head)

    @property
    def n_ports(self) -> int:
        """Destinations of a block's attention: queries, keys and values, N + 2 K."""
        return self.n_heads + 2 * self.kv_heads

    def by_port(self, block: int, edges: jax.Array) -> jax.Array:
        """[N + 2 K, sources] of values [E] of edges: those into a block's queries, then keys, then values."""
        first = self.destinations[self.by_layer[2 * block][0]]
        of_block = edges[first.offset : first.offset + self.n_ports * first.fan_in]
        parts = of_block.reshape(self.kv_heads, self.group + 2, first.fan_in)
        queries = parts[:, : self.group].reshape(self.n_heads, first.fan_in)
        return jnp.concatenate([queries, parts[:, self.group], parts[:, self.group + 1]])

    def by_edge(self, ports: jax.Array) -> jax.Array:
        """The inverse of `by_port`: [(N + 2 K) sources] in canonical order."""
        queries, keys, values = jnp.split(ports, [self.n_heads, self.n_heads + self.kv_heads])
        queries = queries.reshape(self.kv_heads, self.group, -1)
        return jnp.concatenate([queries, keys[:, None], values[:, None]], axis=1).reshape(-1)

    @functools.cached_property
    def of_split(self) -> np.ndarray:
        """[edges of `split`] index here of each edge there; edges of keys and values that heads share come repeatedly.
        """
        places = {(d.layer, d.port, d.head): d.offset for d in self.destinations}
        own = ((d, d.head // self.group if d.head is not None and d.port != "Q" else d.head)
               for d in self.split.destinations)
        return np.concatenate([places[d.layer, d.port, head] + np.arange(d.fan_in) for d, head in own])

    @functools.cached_property
    def by_layer(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the destinations of each layer of the graph, 0 .. 2 L."""
        layers = [d.layer for d in self.destinations]
        return tuple(tuple(i for i, at in enumerate(layers) if at == layer) for layer in range(2 * self.n_layers + 1))

    @functools.cached_property
    def edge_source(self) -> np.ndarray:
        """[E] source index of each edge."""
        return np.concatenate([np.arange(d.fan_in) for d in self.destinations])

    @functools.cached_property
    def edge_destination(self) -> np.ndarray:
        """[E] index into `destinations` of each edge."""
        return np.repeat(np.arange(len(self.destinations)), [d.fan_in for d in self.destinations])

    @functools.cached_property
    def edge_layer(self) -> np.ndarray:
        """[E] layer in the graph of each edge's destination."""
        return np.array([d.layer for d in self.destinations])[self.edge_destination]

    @functools.cached_property
    def edge_names(self) -> tuple[str, ...]:
        """``source->destination``."""
        return tuple(f"{self.source_names[s]}->{d.name}" for d in self.destinations for s in range(d.fan_in))

    def source(self, name: str) -> int:
        """Index of a source by name; raises DataError where there is none, and names the nearest."""
        return _find("source", name, self._source_index)

    def destination(self, name: str) -> Destination:
        """A destination by name; raises DataError where there is none, and names the nearest."""
        return self.destinations[_find("destination", name, self._destination_index)]

    def edge(self, name: str) -> int:
        """Index of an edge by its name ``source->destination``.

        Raises:
          DataError: no such node, or the destination is not in a later layer than the source.
        """
        source_name, arrow, destination_name = name.partition("->")
        if not arrow:
            raise DataError(f"{name!r} is no edge; write source->destination, for example {self.edge_names[0]!r}")
        source, destination = self.source(source_name), self.destination(destination_name)
        if source >= destination.fan_in:
            raise DataError(f"there is no edge {name!r}: {destination_name} does not come after {source_name}")
        return destination.offset + source

    def matrix(self, edges: np.ndarray) -> np.ndarray:
        """Values of edges [E] laid out [destinations, sources], zero where there is no edge."""
        out = np.zeros((len(self.destinations), self.n_sources), np.asarray(edges).dtype)
        out[self.edge_destination, self.edge_source] = edges
        return out

    @functools.cached_property
    def _source_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.source_names)}

    @functools.cached_property
    def _destination_index(self) -> dict[str, int]:
        return {d.name: i for i, d in enumerate(self.destinations)}


def _find(kind: str, name: str, places: dict[str, int]) -> int:
    if name in places:
        return places[name]
    near = difflib.get_close_matches(name, places, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"the graph has no {kind} {name!r}{hint}")
