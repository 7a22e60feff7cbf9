"""What is on file of neurons' graphs, as plain dataclasses: one JSON file a neuron, and the index of all.

``layer_L/neuron_U.json``, one neuron (`NeuronRecord`):

    format, version       "jaxablate neuron graph", 2
    neuron, site          "3.17", "clean.layer_3.mlp_post"
    strongest, threshold  largest activation in the text of the examples; above the threshold, half of it, it fires
    examples              strongest first: tokens and ids up to the pivot, activation; of those the graph was made from
                          also suffix (tokens that are enough, 0 where none are), importance (of each token of the
                          suffix), named (their places, counted back from the pivot)
    nodes                 of the trie: parent (null for a pivot), offset (tokens before the pivot), tokens and ids that
                          may stand there (null for any), importance; strength and examples where a pattern is complete
    edges                 [parent, child], by number of node
    scores                on text that no example is of; see `Scores`. In version 1 f1 was a number, its interval beside
                          it as f1_interval

``index.json``: scores and patterns of all neurons, for searching, and the summaries of the layers and of all. Tokens of
a pattern are read back from the pivot; in version 1 they were in the order of the text.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from jaxablate import files
from jaxablate.errors import ConfigError, FileError
from jaxablate.reports.panels import from_json
from jaxablate.stats import Estimate

FORMAT, INDEX_FORMAT = "jaxablate neuron graph", "jaxablate neuron graphs"
VERSION, VERSIONS = 2, (1, 2)
INDEX = "index.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """How graphs are made, as the index records it.

    Raises:
      ConfigError: a value is out of range.
    """

    units: Literal["neurons", "channels"] = "neurons"
    """neurons: of the MLPs, after the activation function. channels: of the concatenated heads of attention."""
    stream: Literal["clean", "ablated"] = "clean"
    """ablated: what the gates let through, of a model with gates."""
    examples: int = 20
    """Top examples of each neuron, each of another window of the training text."""
    build: int = 20
    """How many of them a graph is made from."""
    context: int = 24
    """Tokens of an example, the one at which the neuron is strong included."""
    tokens: int = 400_000
    """Tokens of training text in which examples are looked for."""
    score_tokens: int = 200_000
    """At most so many tokens of validation text on which graphs are scored."""
    importance: float = 0.4
    """Share of the activation that must be lost without a context token for it to be in the graph."""
    candidates: int = 8
    """Tokens of most similar embeddings that are tried in the place of each token of a pattern."""

    def __post_init__(self):
        for name in ("examples", "build", "context", "tokens", "score_tokens", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.build > self.examples:
            raise ConfigError(f"build={self.build} examples of {self.examples} cannot be used; raise --examples or "
                              "lower --build")
        if not 0 < self.importance < 1:
            raise ConfigError(f"importance={self.importance:g} must be between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleRecord:
    """A place where the neuron is strong. Tokens read forward, the pivot last; importance is that of the last ones."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    activation: float
    suffix: int | None = None
    """None for an example the graph was not made from."""
    importance: tuple[float, ...] = ()
    named: tuple[int, ...] = ()

    def __post_init__(self):
        if len(self.importance) > len(self.tokens):
            raise ValueError(f"an example of {len(self.tokens)} tokens has {len(self.importance)} importances")


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
    """The graph as a classifier of firing, on held-out text. None: nothing fires, or nothing is predicted."""

    tokens: int
    fires: int
    predicted: int
    hits: int
    """Places where the neuron fires, where the graph says so, both."""
    precision: float | None
    recall: float | None
    f1: Estimate
    """With its interval over stories."""
    f1_shuffled: float | None
    """F1 of the graph of another neuron of the layer."""
    f1_pivot: float | None
    """F1 of the pivots alone, whatever comes before them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronRecord:
    """All of one neuron; see the module's docstring."""

    neuron: str
    site: str
    strongest: float
    threshold: float
    examples: tuple[ExampleRecord, ...]
    nodes: tuple[NodeRecord, ...]
    """Each after its parent, and one token farther from the pivot."""
    scores: Scores

    def __post_init__(self):
        for i, node in enumerate(self.nodes):
            parent, before = node.parent, -1
            if parent is not None:
                before = self.nodes[parent].offset if 0 <= parent < i else node.offset
            if node.offset != before + 1:
                raise ValueError(f"node {i} at offset {node.offset} cannot have the parent {parent}")

    def paths(self) -> list[list[NodeRecord]]:
        """Each pattern as its nodes in reading order, the pivot last; the strongest pattern first."""
        paths = []
        for end in sorted((n for n in self.nodes if n.strength is not None), key=lambda n: -(n.strength or 0)):
            path = [end]
            while path[-1].parent is not None:
                path.append(self.nodes[path[-1].parent])
            paths.append(path)
        return paths


def to_json(record: NeuronRecord) -> str:
    """The file's text; numbers have six digits."""
    values = {"format": FORMAT, "version": VERSION} | _rounded(dataclasses.asdict(record))
    values["edges"] = [[n.parent, i] for i, n in enumerate(record.nodes) if n.parent is not None]
    return json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n"


def neuron_file(folder: Path, name: str) -> Path:
    """Where a neuron's graph lies: 3.17 in layer_3/neuron_17.json."""
    layer, unit = name.split(".")
    return folder / f"layer_{int(layer)}" / f"neuron_{int(unit)}.json"


def read_record(path: Path) -> NeuronRecord:
    """A neuron's file.

    Raises:
      FileError: it is missing or damaged.
    """
    fix = f"delete the folder {path.parent} and run jaxablate neurons again"
    try:
        values: dict[str, Any] = files.read_json(path, what="a neuron's graph", fix=fix, format=FORMAT,
                                                 versions=VERSIONS)
        return from_dict(values)
    except (FileNotFoundError, ValueError) as error:
        raise FileError(f"{path} cannot be read as a neuron's graph ({' '.join(str(error).split())}); {fix}") from error


def from_dict(values: Mapping[str, Any]) -> NeuronRecord:
    """The record of a file's values; raises ValueError where they are none of this format."""
    scores = values.get("scores")
    if values.get("version") == 1 and isinstance(scores, Mapping):  # F1 and its interval were two fields
        interval = scores.get("f1_interval")
        low, high = (None, None) if interval is None else from_json(interval, tuple[float, float])
        f1 = {"value": scores.get("f1"), "low": low, "high": high}
        values = {**values, "scores": {name: x for name, x in scores.items() if name != "f1_interval"} | {"f1": f1}}
    return from_json(values, NeuronRecord)


def write_index(folder: Path, about: Mapping[str, Any], summaries: Sequence[Any], units: int) -> None:
    """Writes the index from the neurons' files, with summaries (dataclasses) of all units and then of each layer.

    Raises:
      FileError: a neuron's file is damaged, or the index cannot be written.
    """
    overall, *layers = map(dataclasses.asdict, summaries)
    names = [f"{layer}.{unit}" for layer in range(len(layers)) for unit in range(units)]
    values = {"format": INDEX_FORMAT, "version": VERSION, "about": dict(about), "summary": overall, "layers": layers,
              "units": units, "neurons": [_entry(read_record(neuron_file(folder, name))) for name in names]}
    files.write_json(folder / INDEX, values, indent=None, otherwise="choose another --out")


def _entry(record: NeuronRecord) -> dict[str, Any]:
    patterns = []
    for path in record.paths():
        places: list[Any] = [None] * (path[0].offset + 1)
        for node in path:
            places[node.offset] = node.ids
        patterns.append({"tokens": places, "strength": path[0].strength, "examples": path[0].examples})
    scores = record.scores
    return {"neuron": record.neuron, "strongest": record.strongest, "f1": scores.f1.value,
            "precision": scores.precision, "recall": scores.recall, "fires": scores.fires, "patterns": patterns}


class _IndexSettings(TypedDict):
    units: str


class _IndexProvenance(TypedDict):
    revision: str | None
    date: str


class _IndexAbout(TypedDict):
    """What the page of a neuron tells of the checkpoint."""

    step: int
    params_digest: str
    settings: _IndexSettings
    provenance: _IndexProvenance


class _IndexPattern(TypedDict):
    tokens: list[list[int] | None]
    strength: float


class _IndexNeuron(TypedDict):
    neuron: str
    f1: float | None
    precision: float | None
    patterns: list[_IndexPattern]


class _Index(TypedDict):
    """What searching and showing take of an index."""

    version: int
    about: _IndexAbout
    layers: list[Any]
    units: int
    neurons: list[_IndexNeuron]


def read_index(folder: Path, command: str) -> dict[str, Any]:
    """The index of a folder's graphs, which ``command`` makes.

    Raises:
      FileError: there is none, or it is damaged.
    """
    what, fix = "an index of graphs", f"delete it and run: {command}"
    try:
        index: dict[str, Any] = files.read_json(folder / INDEX, what=what, fix=fix, format=INDEX_FORMAT,
                                                versions=VERSIONS)
        from_json(index, _Index)
    except FileNotFoundError:
        begun = " (a job was begun and not finished)" if any(folder.glob("layer_*")) else ""
        raise FileError(f"no graphs of neurons in {folder}{begun}; run: {command}") from None
    except ValueError as error:
        raise FileError(f"{folder / INDEX} is not {what} ({error}); {fix}") from error
    if index["version"] == 1:
        for pattern in (p for neuron in index["neurons"] for p in neuron["patterns"]):
            pattern["tokens"] = pattern["tokens"][::-1]
    return index


def neuron_name(name: str, index: Mapping[str, Any]) -> str:
    """A neuron's name without needless zeros.

    Raises:
      ConfigError: the model has no such layer or neuron.
    """
    layer, unit = (int(x) for x in name.split("."))
    layers, units = len(index["layers"]), index["units"]
    if layer >= layers or unit >= units:
        raise ConfigError(f"neuron {name} does not exist; there are layers 0..{layers - 1} of neurons 0..{units - 1}")
    return f"{layer}.{unit}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A neuron whose graph matches at the end of a text."""

    neuron: str
    strength: float
    """Strength of the strongest pattern that matches, as a share of the neuron's maximum."""
    f1: float | None
    precision: float | None
    """Scores of the whole graph on held-out text; None where it has none."""
    pattern: tuple[tuple[int, ...] | None, ...]
    """Ids that may stand at each place, read back from the last token; None for any."""
    conditional: bool
    """Whether the pattern asks for more tokens before the text than the text has."""


def search(index: Mapping[str, Any], ids: Sequence[int]) -> list[Match]:
    """Neurons whose graph matches at the last token of a text.

    A pattern that reaches back beyond the text matches under a condition: that what it asks for came before. Of each
    neuron the best pattern is given: those without condition first, then by strength times F1.
    """
    def fits(tokens: Iterable[Any]) -> bool:
        return all(allowed is None or i in allowed for allowed, i in zip(tokens, reversed(ids), strict=False))

    matches = []
    for neuron in index["neurons"]:
        fitting = [(len(p["tokens"]) > len(ids), -p["strength"], p) for p in neuron["patterns"] if fits(p["tokens"])]
        if fitting:
            conditional, _, best = min(fitting, key=lambda x: x[:2])
            matches.append(Match(
                neuron=neuron["neuron"], strength=best["strength"], f1=neuron["f1"], precision=neuron["precision"],
                pattern=tuple(None if t is None else tuple(t) for t in best["tokens"]), conditional=conditional))
    return sorted(matches, key=lambda x: (x.conditional, -x.strength * (x.f1 or 0.0), x.neuron))


def named_before(index: Mapping[str, Any], token: int) -> list[tuple[str, int]]:
    """Neurons for which a token matters before the one at which they fire: (neuron, in how many patterns)."""
    counts = [(neuron["neuron"], sum(any(t is not None and token in t for t in p["tokens"][1:])
                                     for p in neuron["patterns"])) for neuron in index["neurons"]]
    return sorted(((name, n) for name, n in counts if n), key=lambda x: (-x[1], x[0]))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    return [_rounded(x) for x in value] if isinstance(value, list | tuple) else value
