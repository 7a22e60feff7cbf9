"""Files of neurons' graphs: a folder a layer, there whole or not at all, and ``index.json``, written last.

    layer_L/neuron_U.json   one graph; see `jaxablate.reports.neuron_records`
    layer_L/neuron_U.svg    its picture
    layer_L/counts.npz      counts by story, and what they were made from (`identity`)
    index.json              scores and patterns of all neurons, for searching, and the summary
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate.commands.neurons_lookup import FORMAT, INDEX, VERSION, layer_folder, neuron_file
from jaxablate.commands.neurons_scores import Layer
from jaxablate.files import write, write_error
from jaxablate.neurons.matching import Counts
from jaxablate.reports.neuron_graph import graph_svg
from jaxablate.reports.neuron_records import NeuronRecord, Summary, read_record, to_json

OTHERWISE = "choose another --out"


def write_layer(folder: Path, number: int, records: Sequence[NeuronRecord], layer: Layer, identity: str) -> None:
    """Writes a layer's folder, in the place of one that is there.

    Raises:
      DataError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = layer_folder(folder, number)
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".layer_{number}.", dir=folder))
        staging.chmod(0o777 & ~_umask())
        for record in records:
            name = f"neuron_{record.neuron.split('.')[1]}"
            _write(staging / f"{name}.json", to_json(record).encode())
            _write(staging / f"{name}.svg", graph_svg(record).encode())
        with open(staging / "counts.npz", "wb") as file:
            np.savez_compressed(file, identity=np.array(identity), active=layer.active, graph=layer.graph,
                                **dataclasses.asdict(layer.counts))
        os.sync()  # once for a thousand files; each by itself would take several milliseconds
        if target.exists():
            os.replace(target, staging.with_name(f"{staging.name}.old"))
        os.replace(staging, target)
    except OSError as error:
        raise write_error(target, error, OTHERWISE) from error
    finally:
        for left in (staging, staging and staging.with_name(f"{staging.name}.old")):
            if left:
                shutil.rmtree(left, ignore_errors=True)


def read_layer(folder: Path, number: int, identity: str) -> Layer | None:
    """A layer's counts, if its folder is there and of this very job."""
    try:
        with np.load(layer_folder(folder, number) / "counts.npz") as stored:
            if str(stored["identity"]) != identity:
                return None
            counts = Counts(**{f.name: stored[f.name] for f in dataclasses.fields(Counts)})
            return Layer(counts, stored["active"], stored["graph"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def clear(folder: Path) -> None:
    """Takes away the index, which is of other graphs or will be written anew, and what a killed job left half done."""
    with contextlib.suppress(FileNotFoundError):
        (folder / INDEX).unlink()
    for left in folder.glob(".layer_*"):
        shutil.rmtree(left, ignore_errors=True)


def write_index(folder: Path, about: Mapping[str, Any], whole: Summary, layers: Sequence[Summary], units: int) -> None:
    """Writes ``index.json`` from the neurons' files.

    Raises:
      DataError: a neuron's file is damaged, or the index cannot be written.
    """
    found = [_entry(read_record(neuron_file(folder, f"{layer}.{unit}")))
             for layer in range(len(layers)) for unit in range(units)]
    values = {"format": FORMAT, "version": VERSION, "about": dict(about), "summary": dataclasses.asdict(whole),
              "layers": [dataclasses.asdict(s) for s in layers], "units": units, "neurons": found}
    write(folder / INDEX, (json.dumps(values, allow_nan=False) + "\n").encode(), otherwise=OTHERWISE)


def _entry(record: NeuronRecord) -> dict[str, Any]:
    patterns = []
    for path in record.paths():
        places: list[Any] = [None] * (path[0].offset + 1)
        for node in path:
            places[path[0].offset - node.offset] = node.ids
        patterns.append({"tokens": places, "strength": path[0].strength, "examples": path[0].examples})
    scores = record.scores
    return {"neuron": record.neuron, "strongest": record.strongest, "f1": scores.f1, "precision": scores.precision,
            "recall": scores.recall, "fires": scores.fires, "patterns": patterns}


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
