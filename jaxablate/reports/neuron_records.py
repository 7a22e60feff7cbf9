"""What is on file of one neuron's graph: the JSON of ``neuron_U.json``, and the dataclasses it is read into.

    format, version       "jaxablate neuron graph", 1
    neuron, site          "3.17", "clean.layer_3.mlp_post"
    strongest, threshold  largest activation in the text of the examples; above the threshold, half of it, it fires
    examples              strongest first: tokens and ids up to the pivot, activation; of those the graph was made from
                          also suffix (tokens that are enough, 0 where none are), importance (of each token of the
                          suffix), named (their places, counted back from the pivot)
    nodes                 of the trie: parent (null for a pivot), offset (tokens before the pivot), tokens and ids that
                          may stand there (null for any), importance; strength and examples where a pattern is complete
    edges                 [parent, child], by number of node
    scores                on text that no example is of; see `Scores`
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxablate.errors import DataError

FORMAT, VERSION = "jaxablate neuron graph", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleRecord:
    """A place where the neuron is strong. Tokens read forward, the pivot last; importance goes with the last of them.

    suffix is None for an example the graph was not made from.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    activation: float
    suffix: int | None = None
    importance: tuple[float, ...] = ()
    named: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """A node of the trie; see the module's docstring."""

    parent: int | None
    offset: int
    tokens: tuple[str, ...] | None
    ids: tuple[int, ...] | None
    importance: float | None
    strength: float | None
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The graph as a classifier of firing, on held-out text. None: not defined, nothing fires or nothing is predicted.

    Attributes:
      tokens: of the text.
      fires, predicted, hits: places where the neuron fires, where the graph says so, both.
      precision, recall, f1: of the graph.
      f1_interval: 95 %, bootstrap over stories.
      f1_shuffled: of the graph of another neuron of the layer.
      f1_pivot: of the pivots alone, whatever comes before them.
    """

    tokens: int
    fires: int
    predicted: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float | None
    f1_interval: tuple[float, float] | None
    f1_shuffled: float | None
    f1_pivot: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Graphs of many units together. Means are over units that fire often enough; intervals are 95 %, over stories.

    Attributes:
      units: how many there are.
      inactive: never above 0 in the text of the examples; they have no graph and are in no mean.
      rare: of the others, those that fire at fewer than 10 places of the held-out text; they are in no mean.
      scored: all others.
      without_graph: of these, those with no example of which any suffix is enough; their F1 counts as 0.
      recall, f1: means over the scored units.
      precision: mean over those whose graph says anything.
      f1_shuffled: the null: each graph against the firing of another unit of its layer.
      f1_pivot: of the pivots alone.
      gain: mean of f1 - f1_pivot: what context adds.
    """

    units: int
    inactive: int
    rare: int
    scored: int
    without_graph: int
    precision: float | None
    recall: float | None
    f1: float | None
    f1_shuffled: float | None
    f1_pivot: float | None
    gain: float | None
    intervals: Mapping[str, tuple[float, float] | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronRecord:
    """All of one neuron; see the module's docstring."""

    neuron: str
    site: str
    strongest: float
    threshold: float
    examples: tuple[ExampleRecord, ...]
    nodes: tuple[NodeRecord, ...]
    scores: Scores

    def paths(self) -> list[list[NodeRecord]]:
        """Each pattern as its nodes in reading order, the pivot last; the strongest pattern first."""
        out = []
        for end in sorted((n for n in self.nodes if n.strength is not None), key=lambda n: -n.strength):
            path = [end]
            while path[-1].parent is not None:
                path.append(self.nodes[path[-1].parent])
            out.append(path)
        return out


def to_json(record: NeuronRecord) -> str:
    """The file's text; numbers have six digits."""
    values = {"format": FORMAT, "version": VERSION} | _rounded(dataclasses.asdict(record))
    values["edges"] = [[n.parent, i] for i, n in enumerate(record.nodes) if n.parent is not None]
    return json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n"


def read_record(path: Path) -> NeuronRecord:
    """A neuron's file.

    Raises:
      DataError: it is missing or damaged.
    """
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a neuron's graph ({' '.join(str(error).split())}); delete the "
                        f"folder {path.parent} and run eval.py neurons again") from error


def from_dict(values: Mapping[str, Any]) -> NeuronRecord:
    """The record of a file's values; raises KeyError, TypeError or ValueError where they are none of this format."""
    if (values["format"], values["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {values['format']!r} {values['version']}, this version reads {FORMAT!r} {VERSION}")
    plain = {name: values[name] for name in ("neuron", "site", "strongest", "threshold")}
    return NeuronRecord(
        **plain, examples=tuple(ExampleRecord(**_tuples(x)) for x in values["examples"]),
        nodes=tuple(NodeRecord(**_tuples(x)) for x in values["nodes"]), scores=Scores(**_tuples(values["scores"])))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    return [_rounded(x) for x in value] if isinstance(value, list | tuple) else value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
