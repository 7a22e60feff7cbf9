"""A circuit task's edges as the explorer draws them: who reads whom, by every method's score, in every circuit."""

import dataclasses
from collections.abc import Mapping

from jaxablate.reports.packed import Packed
from jaxablate.stats import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """How faithful the circuits of one method's scores are, on prompts the scores have not seen."""

    method: str
    percents: tuple[float, ...]
    """Size of each circuit, percent of all edges."""
    faithfulness: tuple[float, ...]
    """Share of the logit difference that it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptEdges:
    """One circuit of a stream."""

    name: str
    kept: Packed
    """uint8 [n], 1 for its edges among those of `StreamEdges`."""
    edges: int
    faithfulness: Estimate
    """On prompts it was not found on; without a value where there is nothing to explain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamEdges:
    """Edges of one stream's graph: those of the largest scores, and all that a circuit has; n of them."""

    stream: str
    edges: int
    """Number of edges of the whole graph."""
    accuracy: Estimate
    """Fraction of the prompts on which the model prefers the right answer."""
    sources: tuple[str, ...]
    """Names of all that write to the residual stream, in the order of computation."""
    destinations: tuple[str, ...]
    """Names of all that read it."""
    source: Packed
    """uint16 [n] place of each edge's source."""
    destination: Packed
    """uint16 [n]."""
    scores: Mapping[str, Packed]
    """By label of a method float32 [n]: positive for an edge that helps the answer, by as much as it says."""
    circuits: tuple[KeptEdges, ...]
    curves: tuple[Curve, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEdges:
    """What the suite ``circuits`` found in one checkpoint."""

    params_digest: str
    step: int
    task: str
    prompts: int
    """Prompts that circuits are found on."""
    n_layers: int
    n_heads: int
    shown_method: str
    """Label of the method whose scores are shown first."""
    streams: tuple[StreamEdges, ...]
