"""``eval.py circuit``: restores a language model, finds or loads one circuit of it, writes files and pictures."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.formats import load_circuit, load_mib, save_circuit, save_mib
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.commands import circuit_view
from jaxablate.commands.circuit_measures import Measured, measure
from jaxablate.commands.circuit_search import SCORE_LABELS, Bench, Progress, edge_count, find, prepare
from jaxablate.commands.circuit_settings import CircuitSettings
from jaxablate.config import Config
from jaxablate.data import corpus
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import CheckpointError, DataError
from jaxablate.files import write_group
from jaxablate.provenance import Provenance, provenance
from jaxablate.reports.circuit_graph import circuit_panel
from jaxablate.reports.figures import figure_bytes
from jaxablate.reports.html import circuit_page
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.run import params_digest, require_language_model, require_stream
from jaxablate.suites.circuits_prompts import task_pairs

SEARCH_FILE = "search.npz"
"""In the folder of the files while ACDC runs; an interrupted search goes on from it."""
_NO_PROGRESS = contextlib.nullcontext(lambda done, total, evaluated: None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A run and a task of it, checked, before anything is computed."""

    config: Config
    pairs: PromptPairs
    params: Any
    params_digest: str
    step: int
    stored: Circuit | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitReport:
    """What `circuit` found, measured and wrote."""

    circuit: Circuit
    measured: Measured
    title: str
    files: tuple[Path, ...]


def circuit(settings: CircuitSettings, say: Callable[[str], None] = lambda line: None,
            show_progress: Callable[[str], AbstractContextManager[Progress]] = lambda what: _NO_PROGRESS
            ) -> CircuitReport:
    """Finds or loads a circuit, measures it, writes ``circuit.json``, ``.mib.json``, ``.svg``, ``.png`` and ``.html``.

    Args:
      settings: which run, task and method; where to.
      say: receives lines of progress.
      show_progress: what is done -> context of a function that is told how far it is.

    Raises:
      ConfigError: a value is out of range, or the run is none of a language model, or has no such stream.
      DataError: the prompts or the stored circuit do not do.
      CheckpointError: a run cannot be read, an interrupted search is of another model or task, or the files cannot be
        written; then none is.
    """
    settings.check()
    opened, folder = open_task(settings), settings.folder()
    with _made(folder):
        bench = prepare(opened.config.model, opened.params, opened.pairs, settings)
        about = _about(settings, opened)
        with show_progress("oracle" if settings.chosen_method == "oracle" else "ACDC") as progress:
            kept, scores, found = _circuit(settings, opened, bench, folder, progress, say)
        measured = measure(bench, kept, seed=settings.seed)
        conditions = provenance(jax.devices())
        about |= found | {"measured": _measured(settings, opened, measured), "revision": conditions.revision}
        circuit = Circuit(graph=bench.graph, kept=kept, scores=scores, about=about)
        files = contents(circuit, measured, opened, settings, conditions)
        return CircuitReport(circuit=circuit, measured=measured, title=_title(settings, opened, circuit.about),
                             files=write_group(folder, files))


def open_task(settings: CircuitSettings) -> Opened:
    """Checks everything that can be checked before a circuit is looked for.

    Raises:
      ConfigError, DataError, CheckpointError: as `circuit` says.
    """
    config = require_language_model(settings.workdir, "circuits are found in")
    require_stream(settings.workdir, config, settings.stream)
    edge_count(settings, Graph.of(config.model))
    prompts = corpus.ioi_prompts if config.data.source == "embedded" else None
    pairs = task_pairs(config.model, load_tokenizer(settings.workdir / "tokenizer"), count=settings.prompts,
                       seed=settings.seed, corpus_prompts=prompts, file=settings.prompt_file)
    pairs.check_fits(context_length=config.model.context_length, vocab_size=config.model.vocab_size)
    params, step = restore_params(settings.workdir, step=settings.step_for(config))
    digest = params_digest(params)
    stored = None if settings.load is None else load_any(settings.load, config, digest)
    return Opened(config=config, pairs=pairs, params=params, params_digest=digest, step=int(step), stored=stored)


def load_any(path: Path, config: Config, params_digest: str) -> Circuit:
    """A stored circuit, ours or MIB's, of this model.

    Raises:
      DataError: it is damaged, or of another model.
    """
    graph = Graph.of(config.model)
    if not _is_mib(path):
        return load_circuit(path, graph=graph, params_digest=params_digest)
    stored = load_mib(path, graph=graph)
    width = stored.about.get("d_model", config.model.d_model)
    if width != config.model.d_model:
        raise DataError(f"{path} is a circuit file of another model: its width is {width}, this model's is "
                        f"{config.model.d_model}; give a circuit of this model")
    return stored


def contents(circuit: Circuit, measured: Measured, opened: Opened, settings: CircuitSettings, conditions: Provenance
             ) -> dict[str, bytes]:
    """Every file of a circuit by name."""
    task = f"{opened.pairs.name}, {len(opened.pairs):,} prompts, {settings.stream} stream, {settings.ablation} ablation"
    label = circuit.about.get("score")
    panel = circuit_panel(
        circuit.scored_edges(), n_layers=circuit.graph.n_layers, title=_title(settings, opened, circuit.about),
        caption=f"{measured.kept:,} of {measured.edges:,} edges.",
        score_label=label if isinstance(label, str) else "score")
    said = circuit_view.page_lines(measured, task, _method(circuit.about))
    line = (f"{settings.workdir.resolve().name} at step {opened.step:,}, parameters {opened.params_digest}, "
            f"revision {conditions.revision or 'unknown'}, {conditions.device}, "
            f"jax {conditions.versions.get('jax', 'unknown')}, {conditions.date}.")
    with tempfile.TemporaryDirectory() as folder:
        ours = save_circuit(circuit, Path(folder) / "circuit.json")
        mib = save_mib(circuit, Path(folder) / "circuit.mib.json", d_model=opened.config.model.d_model)
        files = {path.name: path.read_bytes() for path in (ours, mib)}
    pictures = {f"circuit.{suffix}": content for suffix, content in figure_bytes(panel, ("svg", "png")).items()}
    return files | pictures | {"circuit.html": circuit_page(panel, said, line).encode()}


def _circuit(settings: CircuitSettings, opened: Opened, bench: Bench, folder: Path, progress: Progress,
             say: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray, Mapping[str, Any]]:
    """Kept edges [E], scores [E], and what there is to say of how they were found."""
    if opened.stored is not None:
        for line in _found_otherwise(settings, opened):
            say(line)
        return opened.stored.kept, opened.stored.scores, {}
    resume = folder / SEARCH_FILE
    if settings.chosen_method == "acdc" and resume.exists():
        say(f"going on with the interrupted search in {resume}")
    try:
        found = find(bench, settings, resume, progress)
    except OSError as e:
        raise CheckpointError(_unwritable(folder, e)) from e
    if settings.chosen_method == "acdc":
        say(f"{found.facts['edges_evaluated']:,} of {bench.graph.n_edges:,} edges evaluated; the closest decision lies "
            f"{found.facts['min_margin']:.2g} nats from tau")
    return found.kept, found.scores, found.facts


def _about(settings: CircuitSettings, opened: Opened) -> dict[str, Any]:
    """How the circuit came about; of a stored one what its file says."""
    model = opened.config.model
    shape = {"n_layers": model.n_layers, "n_heads": model.n_heads, "d_model": model.d_model,
             "vocab_size": model.vocab_size, "ablation": model.ablation}
    if opened.stored is not None:
        return dict(opened.stored.about) | {"params_digest": opened.params_digest, "model": shape}
    return {"method": settings.chosen_method, "score": SCORE_LABELS[settings.chosen_method],
            "params_digest": opened.params_digest, "model": shape} | _conditions(settings, opened)


def _conditions(settings: CircuitSettings, opened: Opened) -> dict[str, Any]:
    return {"stream": settings.stream, "ablation": settings.ablation, "task": opened.pairs.name,
            "prompts": len(opened.pairs), "prompts_digest": opened.pairs.digest(), "seed": settings.seed,
            "step": opened.step}


def _measured(settings: CircuitSettings, opened: Opened, measured: Measured) -> dict[str, Any]:
    return _conditions(settings, opened) | dataclasses.asdict(measured)


def _found_otherwise(settings: CircuitSettings, opened: Opened) -> Iterator[str]:
    """A line where a stored circuit was found under other conditions than it is measured under."""
    about, now = opened.stored.about, _conditions(settings, opened)
    other = [f"{name.replace('_', ' ')} {about[name]}" for name in ("stream", "ablation", "task", "prompts_digest")
             if name in about and about[name] != now[name]]
    if other:
        yield (f"{settings.load} was found with {', '.join(other)}; it is measured with " +
               ", ".join(str(now[name]) for name in ("stream", "ablation", "task", "prompts_digest")
                         if name in about and about[name] != now[name]))


def _title(settings: CircuitSettings, opened: Opened, about: Mapping[str, Any]) -> str:
    return (f"Circuit of {opened.pairs.name} in {settings.workdir.resolve().name}, {settings.stream} stream, "
            f"{_method(about)}")


def _method(about: Mapping[str, Any]) -> str:
    """Method and its parameters in words."""
    name = str(about.get("method", "unknown method"))
    if name == "acdc" and isinstance(about.get("tau"), int | float):
        order = f", edges in random order {about['order_seed']}" if about.get("order_seed") is not None else ""
        return f"ACDC at tau {about['tau']:g}{order}"
    if "search" in about and "edges_asked" in about:
        return f"{name}, {about['search']} {about['edges_asked']} edges"
    return name


def _is_mib(path: Path) -> bool:
    """Whether a file looks like MIB's format; what cannot be read at all is refused by the other reader."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "cfg" in values and "format" not in values


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and sees that it can be written to, before hours are spent; gone again if nothing comes of it."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise CheckpointError(_unwritable(folder, e)) from e
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()  # stays where it holds anything


def _unwritable(folder: Path, error: OSError) -> str:
    return f"{folder} cannot be written ({error.strerror or error}); free space or choose another --out"
