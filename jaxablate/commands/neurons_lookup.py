"""Searches and shows graphs that ``eval.py neurons`` has made: files are read, no model is run, JAX is not loaded."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxablate.commands.neurons_search import Found, contexts, search
from jaxablate.commands.neurons_settings import NeuronSettings
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError, DataError
from jaxablate.files import write
from jaxablate.reports.neuron_graph import neuron_page, visible
from jaxablate.reports.neuron_records import NeuronRecord, read_record

INDEX = "index.json"
FORMAT, VERSION = "jaxablate neuron graphs", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What `find` found.

    Attributes:
      tokens: of the text, spaces made visible.
      firing: neurons whose graph matches at its last token.
      before: (neuron, patterns) for which the last token matters before the one at which they fire.
      word: id -> its text, spaces made visible.
    """

    tokens: tuple[str, ...]
    firing: list[Found]
    before: list[tuple[str, int]]
    word: Callable[[int], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Neurons that were asked for, and the page of them."""

    records: tuple[NeuronRecord, ...]
    page: Path


def find(settings: NeuronSettings) -> SearchReport:
    """Neurons that fire at the end of `settings.search`, by their graphs.

    Raises:
      ConfigError: a value is out of range.
      DataError: there are no graphs yet, or the text has a word that the model's tokenizer does not know.
    """
    settings.check()
    index = read_index(settings.folder(), settings.command())
    tokenizer = load_tokenizer(settings.workdir / "tokenizer")
    ids = tokenizer.encode(settings.search)
    if not ids:
        raise DataError(f"--search {settings.search!r} has no token; give some text")
    return SearchReport(tokens=tuple(visible(tokenizer.decode([i])) for i in ids), firing=search(index, ids),
                        before=contexts(index, ids[-1]), word=lambda i: visible(tokenizer.decode([i])))


def show(settings: NeuronSettings) -> Shown:
    """The neurons of `settings.show`, and a page of them in the folder of the graphs.

    Raises:
      ConfigError: there is no such neuron.
      DataError: there are no graphs yet, a file is damaged, or the page cannot be written.
    """
    settings.check()
    folder = settings.folder()
    index = read_index(folder, settings.command())
    names = list(dict.fromkeys(normal(name, index) for name in settings.show))
    records = tuple(read_record(neuron_file(folder, name)) for name in names)
    about, plural = index["about"], "s" if len(names) > 1 else ""
    kind = "Channel" if about["settings"]["units"] == "channels" else "Neuron"
    first = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    title = f"{kind}{plural} {first} of {settings.workdir.resolve().name}"
    line = (f"Step {about['step']:,}, parameters {about['params_digest']}, revision "
            f"{about['provenance']['revision'] or 'unknown'}, {about['provenance']['date']}.")
    page = folder / f"neurons-{'-'.join(names[:4])}{f'-and-{len(names) - 4}-more' if len(names) > 4 else ''}.html"
    write(page, neuron_page(records, title, line).encode(), otherwise="choose another --out")
    return Shown(records=records, page=page)


def normal(name: str, index: dict[str, Any]) -> str:
    """A neuron's name without needless zeros.

    Raises:
      ConfigError: the model has no such layer or neuron.
    """
    layer, unit = (int(x) for x in name.split("."))
    layers, units = len(index["layers"]), index["units"]
    if layer >= layers or unit >= units:
        raise ConfigError(f"neuron {name} does not exist; there are layers 0..{layers - 1} of neurons 0..{units - 1}")
    return f"{layer}.{unit}"


def layer_folder(folder: Path, layer: int) -> Path:
    """Where a layer's files lie."""
    return folder / f"layer_{layer}"


def neuron_file(folder: Path, name: str) -> Path:
    """Where a neuron's graph lies: 3.17 in layer_3/neuron_17.json."""
    layer, unit = name.split(".")
    return layer_folder(folder, int(layer)) / f"neuron_{int(unit)}.json"


def read_index(folder: Path, command: str) -> dict[str, Any]:
    """The index of a finished job.

    Args:
      folder: of the graphs.
      command: makes them.

    Raises:
      DataError: there is none, or it is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        begun = " (a job was begun and not finished)" if any(folder.glob("layer_*")) else ""
        raise DataError(f"no graphs of neurons in {folder}{begun}; run: {command}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if (values["format"], values["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {values['format']!r} {values['version']}")
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); delete it and run: {command}"
                        ) from error
