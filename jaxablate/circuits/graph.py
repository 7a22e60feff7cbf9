"""The edge-factorised graph of a decoder: who writes to the residual stream, who reads from it, and every edge between.

Sources write: ``Resid Start`` (token and position embedding), each head ``A<layer>.<head>``, each ``MLP <layer>``.
Destinations read: queries, keys and values of each head (``A<layer>.<head>.Q`` ...), each ``MLP <layer>``, and
``Resid End``. An edge joins a source to every destination of a later layer, where attention and MLP of a block are two
layers. The paper's model (8 blocks, 16 heads) has 23,981 edges. Names and numbering are those of AutoCircuit.
"""

import dataclasses
import difflib
import functools
from typing import Literal

import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.errors import DataError

Port = Literal["Q", "K", "V"]
PORTS: tuple[Port, ...] = ("Q", "K", "V")
START, END = "Resid Start", "Resid End"


@dataclasses.dataclass(frozen=True)
class Destination:
    """One reader of the residual stream, with a copy of the stream of its own."""

    name: str
    layer: int
    """Layer in the graph: 2 i for attention of block i, 2 i + 1 for its MLP, 2 L for the end."""
    source: int | None
    """Index of the source this destination's node writes as; None for the end."""
    fan_in: int
    """Its sources are those of index 0 .. fan_in - 1."""
    offset: int
    """Index of its edge from source 0; its edges lie side by side, ordered by source."""
    port: Port | None = None
    head: int | None = None

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
    first, within a layer by head, then Q, K, V, then by source, ascending.

    Example:
      >>> graph = Graph(n_layers=8, n_heads=16)
      >>> graph.n_edges, graph.edge_names[:2]
      (23981, ('Resid Start->Resid End', 'A0.0->Resid End'))
      >>> graph.edge("A0.1->A1.2.Q") == graph.destination("A1.2.Q").offset + graph.source("A0.1")
      True
    """

    n_layers: int
    n_heads: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Graph":
        """The graph of a model."""
        return cls(config.n_layers, config.n_heads)

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

    @functools.cached_property
    def destinations(self) -> tuple[Destination, ...]:
        """In canonical order: the end first, the queries, keys and values of block 0 last."""
        readers: list[tuple[str, int, int | None, int, Port | None, int | None]] = [
            (END, 2 * self.n_layers, None, self.n_sources, None, None)]
        for i in reversed(range(self.n_layers)):
            readers.append((f"MLP {i}", 2 * i + 1, self.mlp(i), self.mlp(i), None, None))
            readers.extend((f"A{i}.{h}.{port}", 2 * i, self.head(i, h), self.head(i, 0), port, h)
                           for h in range(self.n_heads) for port in PORTS)
        offsets = np.cumsum([0, *(r[3] for r in readers)]).tolist()
        return tuple(Destination(name, layer, source, fan_in, offset, port, head)
                     for (name, layer, source, fan_in, port, head), offset in zip(readers, offsets, strict=False))

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
