"""Circuits as files: our JSON, and the circuit format of the MIB benchmark.

Both are written whole or not at all, and read with every check that can be made without the model.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.graph import END, START, Graph
from jaxablate.circuits.metrics import METRICS, Metric, importance
from jaxablate.errors import DataError
from jaxablate.files import LARGEST_JSON, read_bytes, unusable, write

FORMAT = "jaxablate circuit"
VERSION = 1
MOST_EDGES = 1 << 22
"""Edges of a graph that a file may be of: a few bytes could ask for any number."""
_MIB_KEYS = ("cfg", "nodes", "edges")
_ZIP = b"PK"
"""How PyTorch's files begin."""
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, None: math.nan}
"""How numbers that JSON lacks stand in our files."""


def save_circuit(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """Writes a circuit as our JSON and returns the file's path.

    The file holds format and version, the graph's shape, `about`, and name -> score of the kept and of the cut edges in
    the graph's order. Scores come back bit for bit: infinite ones are the strings ``inf`` and ``-inf``, none is null.

    Args:
      circuit: what to write. Values of its `about` may be plain ones, NumPy's, and lists or mappings of such.
      path: the file; it is replaced in one step.

    Raises:
      DataError: a value of `about` is no JSON.
      FileError: the file cannot be written; nothing is left behind.
    """
    graph = circuit.graph
    scores = [score if math.isfinite(score) else None if math.isnan(score) else str(score)
              for score in circuit.scores.tolist()]
    edges = list(zip(graph.edge_names, scores, circuit.kept.tolist(), strict=True))
    kept, cut = ({name: score for name, score, k in edges if k == part} for part in (True, False))
    return _write(path, {
        "format": FORMAT, "version": VERSION,
        "graph": {**dataclasses.asdict(graph), "n_edges": graph.n_edges},
        "about": _plain_about(circuit.about),
        "kept": kept, "cut": cut,
    })


def load_circuit(path: str | os.PathLike[str], *, graph: Graph | None = None, params_digest: str | None = None
                 ) -> Circuit:
    """Reads a circuit that `save_circuit` wrote.

    Edges that the file leaves out are cut and have no score, so one that lists the kept edges alone will do.

    Args:
      path: the file.
      graph: graph of the model that it is to be used on; None takes any.
      params_digest: digest of that model's parameters; None takes any. A file whose `about` names none fits every model
        of its shape.

    Raises:
      DataError: the file is missing, damaged, of another format or version, has an edge that its graph lacks, or is of
        another model.
    """
    path = Path(path)
    values = _read(path, strict=True)
    if values.get("format") != FORMAT:
        mib = all(key in values for key in _MIB_KEYS)
        hint = "it looks like one of the MIB benchmark, read it with load_mib" if mib else "choose another"
        raise DataError(f"{path} is no circuit file (format {values.get('format')!r}, not {FORMAT!r}); {hint}")
    if values.get("version") != VERSION:
        raise DataError(f"{path} is a circuit file of version {values.get('version')!r}, this program reads {VERSION}; "
                        f"make it again or use the program that wrote it")
    stored = _graph(path, values.get("graph"))
    if values["graph"].get("n_edges", stored.n_edges) != stored.n_edges:
        raise _damaged(path, f"{_shape(stored)} have {stored.n_edges:,} edges, it says {values['graph']['n_edges']!r}")
    values = {"cut": {}, "about": {}} | values
    for part in ("kept", "cut", "about"):
        if not isinstance(values.get(part), dict):
            raise _damaged(path, f"{part!r} is {_kind(values.get(part))}, not a mapping")
    if (reason := unusable(values["about"])) is not None:
        raise _damaged(path, f"of 'about', {reason}")
    digest = values["about"].get("params_digest", params_digest)
    _check_model(path, stored, graph)
    if params_digest is not None and digest != params_digest:
        raise DataError(f"{path} is a circuit file of another model: its params_digest is {digest}, this model's is "
                        f"{params_digest}; give a circuit of this checkpoint")
    if both := values["kept"].keys() & values["cut"].keys():
        raise _damaged(path, f"edge {min(both)!r} is both kept and cut")
    places = {name: i for i, name in enumerate(stored.edge_names)}
    kept, scores = np.zeros(stored.n_edges, bool), np.full(stored.n_edges, np.nan)
    for part in ("kept", "cut"):
        for name, score in values[part].items():
            i = _place(path, places, stored, name)
            kept[i], scores[i] = part == "kept", _score(path, name, score)
    return Circuit(graph=stored, kept=kept, scores=scores, about=values["about"])


def save_mib(circuit: Circuit, path: str | os.PathLike[str], *, d_model: int, metric: Metric | None = None) -> Path:
    """Writes a circuit in the format of the MIB benchmark's circuit track and returns the file's path.

    It is what ``Graph.to_json`` of EAP-IG (hannamw/EAP-IG, ``src/eap/graph.py`` at commit 8fd10d9) writes and what the
    benchmark's evaluation reads: ``cfg`` (``n_layers``, ``n_heads``, ``parallel_attn_mlp``, ``d_model``), ``nodes``
    (name -> ``in_graph``) and ``edges`` (name -> ``score``, ``in_graph``) with every edge of the graph. That graph is
    `Graph.split`: each query head has queries, keys and values of its own, also where heads share them. An edge into
    shared keys or values is written once for each head, with an equal part of its score, as their derivatives add up. A
    node is in the graph when kept edges lead both into and out of it. The names differ: see `mib_edge_names`. `about`
    stands beside, and is passed over there.

    A score of ours says how the metric changes when the edge is patched. MIB attributes with the metric as a loss
    (``run_attribution.py``) and takes edges of the greatest signed score first, so what is written is the `importance`:
    of a logit difference, the score with its sign turned. EAP-IG keeps scores in float32 and cannot read ours that are
    not finite. So an infinite score is written as twice the greatest finite size (at least 1), which keeps the ranking,
    and a missing one as 0.

    Args:
      circuit: what to write.
      path: the file; it is replaced in one step.
      d_model: width of the model, which the format asks for.
      metric: what the circuit's scores are changes of, by default what its `about` says: ``logit_difference``, or
        ``kl`` for scores that are greater where an edge matters more, such as ACDC's.

    Raises:
      DataError: the width is not positive, the metric is unknown, or a value of `about` is no JSON.
      FileError: the file cannot be written; nothing is left behind.
    """
    if d_model < 1:
        raise DataError(f"d_model={d_model} of a MIB circuit must be positive; give the width of the model")
    metric = _metric(circuit.about, metric)
    graph = circuit.graph
    values = importance(metric, circuit.scores) / np.bincount(graph.of_split)
    most = max(1.0, 2.0 * float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
    scores = np.nan_to_num(values, nan=0.0, posinf=most, neginf=-most)
    nodes = dict(zip(map(_mib_name, graph.source_names), circuit.nodes.tolist(), strict=True)) | {_mib_name(END): True}
    return _write(path, {
        "cfg": {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel,
                "d_model": d_model},
        "nodes": {name: {"in_graph": within} for name, within in nodes.items()},
        "edges": {name: {"score": score, "in_graph": within} for name, score, within in zip(
            mib_edge_names(graph.split), scores[graph.of_split].tolist(), circuit.kept[graph.of_split].tolist(),
            strict=True)},
        "about": _plain_about({**circuit.about, "metric": metric}),
    })


def load_mib(path: str | os.PathLike[str], *, graph: Graph | None = None, metric: Metric | None = None) -> Circuit:
    """Reads a circuit of the MIB benchmark or of EAP-IG (see `save_mib` for the version followed).

    The scores of such a file are importances, greater where an edge matters more. They come as scores do here, as the
    change of the metric when the edge is patched: of a logit difference with the sign turned, so that they compare with
    those of `eap` and go into `faithfulness` as they are. Written again they are what they were.

    Kept are the edges that say ``in_graph``. Files of scores alone, from which the benchmark's evaluation takes the top
    edges itself, may keep none. Edges that the file leaves out are cut and have score 0, as there. Flags and scores of
    nodes are not used, since the edges say it all: without kept edges a node is out.

    Args:
      path: the JSON file (not ``.pt``).
      graph: graph of the model that it is to be used on; None takes any. One whose heads share keys and values takes
        the file's edges into them together, with the sum of their scores; without a graph they stay apart
        (`Graph.split`), which a problem of ``split=True`` takes.
      metric: what the scores are to be changes of; by default what a file of ours says, else ``logit_difference``.

    Raises:
      DataError: the file is missing, damaged or no such file, it keeps single neurons of a node, or an edge for some
        only of the heads that share what it leads into, has an edge that its graph lacks, or is of another model.
    """
    path = Path(path)
    values = _read(path, strict=False)
    lacking = [key for key in _MIB_KEYS if not isinstance(values.get(key), dict)]
    if lacking:
        raise DataError(f"{path} is no circuit of the MIB benchmark: it has no {lacking[0]!r}; "
                        f"such a file has {', '.join(_MIB_KEYS)}")
    cfg = values["cfg"]
    if not isinstance(width := cfg.get("d_model"), int | None):
        raise _damaged(path, f"d_model is {_kind(width)}, not a number")
    stored = _graph(path, cfg | {"kv_heads": cfg.get("n_heads"), "parallel": cfg.get("parallel_attn_mlp")})
    _check_model(path, stored, graph and graph.split)
    _check_whole_nodes(path, values)
    kept, scores = np.zeros(stored.n_edges, bool), np.zeros(stored.n_edges)
    places = {name: i for i, name in enumerate(mib_edge_names(stored))}
    for name, edge in values["edges"].items():
        i = _place(path, places, stored, name)
        if not isinstance(edge, dict) or not isinstance(edge.get("in_graph"), bool):
            raise _damaged(path, f"edge {name!r} has no score and in_graph")
        kept[i], scores[i] = edge["in_graph"], _score(path, name, edge.get("score"))
    of_ours = values.get("about")
    about = of_ours if isinstance(of_ours, dict) and unusable(of_ours) is None else {}
    if metric is None and about.get("metric") not in METRICS:
        metric = "logit_difference"
    metric = _metric(about, metric)
    about = {"method": "MIB file"} | about | {"file": path.name, "metric": metric}
    about |= {"d_model": width} if isinstance(width, int) else {}
    if graph is not None:
        kept, scores = _together(path, graph, kept, scores)
    return Circuit(graph=graph or stored, kept=kept, scores=importance(metric, scores), about=about)


def _together(path: Path, graph: Graph, kept: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept edges and scores of a graph, from those of the same graph with keys and values apart."""
    times, count = (np.bincount(graph.of_split, x) for x in (kept, None))
    if (partly := np.flatnonzero((times > 0) & (times < count))).size:
        raise DataError(f"{path} keeps {graph.edge_names[partly[0]]!r} for {int(times[partly[0]])} of the "
                        f"{count[partly[0]]} heads that share it; load it without a graph, for a problem of split=True")
    return times > 0, np.bincount(graph.of_split, scores)


def mib_edge_names(graph: Graph) -> tuple[str, ...]:
    """Names of the edges in the MIB benchmark, in our order.

    ``Resid Start``, ``A3.7``, ``MLP 3`` and ``Resid End`` are ``input``, ``a3.h7``, ``m3`` and ``logits`` there, and an
    edge into queries is ``input->a3.h7<q>``.

    >>> names = mib_edge_names(Graph(1, 1))
    >>> names[0], names[3], names[-1]
    ('input->logits', 'input->m0', 'input->a0.h0<v>')
    """
    sources = [_mib_name(name) for name in graph.source_names]
    targets = [_mib_name(d.name.removesuffix(f".{d.port}")) + (f"<{d.port.lower()}>" if d.port else "")
               for d in graph.destinations]
    return tuple(f"{sources[s]}->{target}" for d, target in zip(graph.destinations, targets, strict=True)
                 for s in range(d.fan_in))


def _mib_name(node: str) -> str:
    if node in (START, END):
        return "input" if node == START else "logits"
    if node.startswith("MLP "):
        return f"m{node.removeprefix('MLP ')}"
    block, head = node.removeprefix("A").split(".")
    return f"a{block}.h{head}"


def _check_whole_nodes(path: Path, values: Mapping[str, Any]) -> None:
    """Refuses circuits of neurons: an edge of ours carries the whole output of its source."""
    per_node = {name: node.get("neurons") for name, node in values["nodes"].items() if isinstance(node, dict)}
    older = values.get("neurons")  # where earlier versions had them
    for name, neurons in (*per_node.items(), *(older.items() if isinstance(older, dict) else ())):
        if isinstance(neurons, list) and neurons and not all(neurons) and any(neurons):
            raise DataError(f"{path} keeps only {sum(map(bool, neurons))} of {len(neurons)} neurons of {name}; "
                            f"only circuits of whole nodes can be read")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}; make it again")


def _check_model(path: Path, stored: Graph, graph: Graph | None) -> None:
    if graph is not None and stored != graph:
        raise DataError(f"{path} is a circuit file of another model: its graph has {_shape(stored)}, this model's has "
                        f"{_shape(graph)}; give a circuit of this model")


def _graph(path: Path, shape: Any) -> Graph:
    """The graph of a file's ``n_layers``, ``n_heads`` and, where they are there, ``kv_heads`` and ``parallel``."""
    shape = shape if isinstance(shape, dict) else {}
    heads = shape.get("n_heads")
    sizes = [shape.get("n_layers"), heads, shape.get("kv_heads", heads)]
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1000 for size in sizes):
        raise _damaged(path, "n_layers and n_heads are not numbers from 1 to 1000")
    layers, heads, kv_heads = sizes
    parallel = shape.get("parallel") or False
    if heads % kv_heads or not isinstance(parallel, bool):
        raise _damaged(path, f"kv_heads is {kv_heads} for {heads} heads, or parallel is no flag")
    before = [1 + i * (heads + 1) for i in range(layers + 1)]
    edges = before[-1] + sum((heads + 2 * kv_heads + 1) * b + heads * (not parallel) for b in before[:-1])
    if edges > MOST_EDGES:
        raise DataError(f"{path} is of {layers} layers of {heads} heads, whose graph has {edges:,} edges; at most "
                        f"{MOST_EDGES:,} can be read")
    return Graph(layers, heads, kv_heads, parallel)


def _shape(graph: Graph) -> str:
    shared = "" if graph.group == 1 else f" that share keys and values by {graph.group}"
    return f"{graph.n_layers} {'parallel ' if graph.parallel else ''}layers of {graph.n_heads} heads{shared}"


def _place(path: Path, places: Mapping[str, int], graph: Graph, name: str) -> int:
    if name not in places:
        raise DataError(f"{path} has an edge {name!r}, which a graph of {_shape(graph)} has not; "
                        f"edges are called, for example, {next(iter(places))!r}")
    return places[name]


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _score(path: Path, name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif value is None or (isinstance(value, str) and value in _NOT_FINITE):
        return _NOT_FINITE[value]
    raise DataError(f"{path} has the score {value!r} at edge {name!r}; scores are numbers, 'inf', '-inf' or null")


def _metric(about: Mapping[str, Any], given: Metric | None) -> Metric:
    """The metric whose change a circuit's scores are."""
    name = about.get("metric") if given is None else given
    if given is None and name is None and about.get("method") == "acdc":  # files of earlier versions
        name = "kl"
    for known in METRICS:
        if name == known:
            return known
    raise DataError(f"what this circuit's scores say of an edge that matters is not known, its metric is {name!r}; "
                    "give metric='logit_difference' for how that changes when an edge is patched, or metric='kl' for "
                    "scores that are greater where an edge matters more")


def _plain_about(about: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): _plain(value, f"about[{name!r}]") for name, value in about.items()}


def _plain(value: Any, where: str) -> Any:
    """A value of `about` as JSON has it; numbers that are not finite become text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, Iterable):
        return [_plain(v, f"an entry of {where}") for v in value]
    raise DataError(f"{where} of a circuit is a {type(value).__name__}, which JSON cannot hold; give numbers or text")


def is_mib(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a circuit of the MIB benchmark by its keys."""
    try:
        values = _read(Path(path), strict=False)
    except DataError:
        return False
    return "cfg" in values and "format" not in values


def _read(path: Path, strict: bool) -> dict[str, Any]:
    """A JSON file's object, without keys that stand there twice; `strict` also refuses ``NaN`` and ``Infinity``."""
    try:
        content = read_bytes(path, most=LARGEST_JSON)
        if content.startswith(_ZIP):
            raise DataError(f"{path} is a zip archive, as PyTorch writes; files of EAP-IG's Graph.to_json can be read, "
                            "not those of Graph.to_pt: turn it into one there, Graph.from_pt(file).to_json(other)")
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeats,
                            parse_constant=_no_constant if strict else None)
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}); give the path of a circuit file") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is no whole JSON file ({' '.join(str(e).split())}); "
                        f"it may be cut off: copy or make it again") from e
    if not isinstance(values, dict):
        raise DataError(f"{path} is no circuit file: its value is {_kind(values)}, not an object; choose another")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values, names = dict(pairs), [name for name, _ in pairs]
    if len(values) < len(pairs):
        raise ValueError(f"{next(n for n in values if names.count(n) > 1)!r} stands there twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _write(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Path:
    return write(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
