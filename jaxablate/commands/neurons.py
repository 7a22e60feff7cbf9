"""``eval.py neurons``: restores a language model and makes, scores and writes a graph of each of its neurons."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate.commands import neurons_files as neuron_files
from jaxablate.commands.neurons_scores import Layer, summary, unit_scores
from jaxablate.commands.neurons_settings import NeuronSettings
from jaxablate.config import Config
from jaxablate.data.pipeline import validation_batches
from jaxablate.data.preparation import PreparedData, prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.token_file import TokenFile
from jaxablate.data.tokenizer import Tokenizer, load_tokenizer
from jaxablate.errors import ConfigError, DataError
from jaxablate.files import sole_builder
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.examples import NOTHING, Batch, TopExamples, UnitReader, top_examples
from jaxablate.neurons.graphs import trie
from jaxablate.neurons.matching import Text, count_hits, firings
from jaxablate.neurons.neuron_to_graph import FIRES, GraphSettings, UnitGraph, build_graphs
from jaxablate.neurons.pruning import Neighbours, Noise
from jaxablate.neurons.short_runs import ShortRuns
from jaxablate.provenance import provenance
from jaxablate.reports.neuron_records import ExampleRecord, NeuronRecord, NodeRecord, Summary
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.run import _check_data as check_data
from jaxablate.runs.run import params_digest, require_language_model, require_stream

MIN_SCORE_TOKENS = 1_000
"""Of held-out text; in less hardly a neuron fires."""
_METHOD = 1
"""Raised when graphs of the same settings become others; those of an interrupted job are then made anew."""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A run, checked, before anything is computed."""

    config: Config
    params: Any
    step: int
    tokenizer: Tokenizer
    data: PreparedData
    identity: str
    """Hex digest of all that the graphs depend on."""
    about: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """How many the model has."""
        return self.config.model.n_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphsReport:
    """What `make_graphs` made."""

    whole: Summary
    layers: tuple[Summary, ...]
    folder: Path
    seconds: float


def make_graphs(settings: NeuronSettings, say: Say = lambda line: None) -> GraphsReport:
    """Graphs of all neurons, layer by layer, each layer's folder written when it is done, the index last.

    A job that was interrupted goes on with the first layer that is missing. Graphs of another checkpoint or of other
    settings in the same folder are replaced.

    Args:
      settings: which run, units and text.
      say: receives lines of progress.

    Raises:
      ConfigError: a value is out of range, or the run is none of a language model, or has no such stream.
      DataError: the text is too short or not the run's, or the folder cannot be written.
      CheckpointError: the run cannot be read.
    """
    settings.check()
    opened, folder, start = open_run(settings), settings.folder(), time.perf_counter()
    with sole_builder(folder / neuron_files.INDEX):
        done = {i: neuron_files.read_layer(folder, i, opened.identity) for i in range(opened.layers)}
        missing = [i for i, layer in done.items() if layer is None]
        if missing:
            neuron_files.clear(folder)
            if len(missing) < opened.layers:
                say(f"going on with an interrupted job: {opened.layers - len(missing)} of {opened.layers} layers are "
                    "done")
            done |= dict(_layers(settings, opened, missing, folder, say))
        else:
            say("all layers were made before; only the index is written anew")
        layers = [done[i] for i in range(opened.layers)]
        whole, each = summary(layers, settings.seed), [summary([x], settings.seed) for x in layers]
        neuron_files.write_index(folder, opened.about, whole, each, len(layers[0].active))
    return GraphsReport(whole=whole, layers=tuple(each), folder=folder, seconds=time.perf_counter() - start)


def open_run(settings: NeuronSettings) -> Opened:
    """Checks everything that can be checked before text is read.

    Raises:
      ConfigError, DataError, CheckpointError: as `make_graphs` says.
    """
    config = require_language_model(settings.workdir, "graphs are made of the neurons of")
    require_stream(settings.workdir, config, settings.stream)
    if settings.context > config.model.context_length:
        raise ConfigError(f"context={settings.context} must be at most the model's "
                          f"context_length={config.model.context_length}")
    with progress_report() as report:
        data = prepare(config.data, report=report)
    tokenizer = load_tokenizer(settings.workdir / "tokenizer")
    _check_text(settings, config, tokenizer, data)
    params, step = restore_params(settings.workdir, step=settings.step_for(config))
    about = _about(settings, config, params, int(step), tokenizer, data)
    identity = hashlib.sha256(json.dumps(about | {"method": _METHOD}, sort_keys=True).encode()).hexdigest()
    conditions = dataclasses.asdict(provenance(jax.devices()))
    return Opened(config=config, params=params, step=int(step), tokenizer=tokenizer, data=data, identity=identity,
                  about=about | {"provenance": conditions})


def _check_text(settings: NeuronSettings, config: Config, tokenizer: Tokenizer, data: PreparedData) -> None:
    """Refuses text that is not the run's, or too short."""
    hashes = {"train": data.train.data_hash, "valid": data.valid.data_hash}
    check_data(settings.workdir, tokenizer, data.tokenizer, hashes, config.data.cache_dir)
    needed = settings.examples * config.train.sequence_length
    found = min(settings.tokens, data.train.n_tokens)
    if found < needed:
        raise DataError(f"{found:,} tokens of training text are too few: {settings.examples} examples of windows of "
                        f"{config.train.sequence_length} tokens need at least {needed:,}; raise --tokens, or lower "
                        "--examples")
    held_out = min(settings.score_tokens, data.valid.n_tokens)
    if held_out < MIN_SCORE_TOKENS:
        raise DataError(f"{held_out:,} tokens of validation text are too few to score graphs on; at least "
                        f"{MIN_SCORE_TOKENS:,} are needed")


def _about(settings: NeuronSettings, config: Config, params: Any, step: int, tokenizer: Tokenizer, data: PreparedData
           ) -> dict[str, Any]:
    """All that the graphs depend on, as plain values."""
    chosen = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)
              if f.name not in ("workdir", "search", "show", "checkpoint", "out", "batch_size")}
    return {"step": step, "params_digest": params_digest(params), "n_layers": config.model.n_layers,
            "sequence_length": config.train.sequence_length, "tokenizer": tokenizer.fingerprint(),
            "train_hash": data.train.data_hash, "valid_hash": data.valid.data_hash, "settings": chosen}


def _layers(settings: NeuronSettings, opened: Opened, missing: list[int], folder: Path, say: Say
            ) -> Iterator[tuple[int, Layer]]:
    """Makes and writes the layers that are missing."""
    model = SelfAblatingTransformer(opened.config.model)
    read = UnitReader(model, tuple(range(opened.layers)), settings.units, settings.stream)
    eot_id, start = opened.tokenizer.eot_id, time.perf_counter()
    top = top_examples(read, opened.params, _windows(settings, opened, opened.data.train, settings.tokens),
                       vocab_size=opened.config.model.vocab_size, eot_id=eot_id, examples=settings.examples,
                       context=settings.context)
    limits = np.where(top.strongest > 0, top.strongest * FIRES, np.inf)
    held_out = _windows(settings, opened, opened.data.valid, settings.score_tokens)
    bits, text = firings(read, opened.params, held_out, limits, eot_id)
    say(f"{top.tokens:,} tokens of training text read for examples, {(text.tokens != NOTHING).sum():,} of validation "
        f"text to score on, {time.perf_counter() - start:.0f} s")
    nearest = Neighbours(opened.params["embed"]["embedding"], top.counts, settings.candidates)
    for i in missing:
        start = time.perf_counter()
        ask = ShortRuns(dataclasses.replace(read, layers=(i,)), opened.params)
        graphs = build_graphs(ask, top.activations[i], top.contexts[i], Noise(top.counts, (settings.seed, i)), nearest,
                              GraphSettings(build=settings.build, above=settings.importance,
                                            candidates=settings.candidates))
        counts = count_hits([g.patterns for g in graphs], bits[i], text, (settings.seed, i))
        layer = Layer(counts, top.strongest[i] > 0, np.array([bool(g.patterns) for g in graphs]))
        records = _records(settings, opened, i, graphs, top, layer, text)
        neuron_files.write_layer(folder, i, records, layer, opened.identity)
        say(f"layer {i}: {ask.questions:,} questions, {ask.tokens_run:,} tokens, {time.perf_counter() - start:.0f} s")
        yield i, layer


def _windows(settings: NeuronSettings, opened: Opened, file: TokenFile, tokens: int) -> Iterator[Batch]:
    """Adjoining windows from the start of a split, at most so many tokens of it (rounded up to whole windows)."""
    length = opened.config.train.sequence_length
    rows = settings.batch_size + -settings.batch_size % (8 // np.gcd(8, length))
    left = tokens
    for batch in validation_batches(file, batch_size=rows, sequence_length=length):
        seen = np.arange(batch["mask"].size).reshape(batch["mask"].shape) < left
        yield {"inputs": batch["inputs"], "mask": batch["mask"] * seen}
        left -= batch["mask"].size
        if left <= 0:
            return


def _records(settings: NeuronSettings, opened: Opened, number: int, graphs: list[UnitGraph], top: TopExamples,
             layer: Layer, text: Text) -> list[NeuronRecord]:
    """What is written of each neuron of a layer."""
    scores = unit_scores(layer.counts, int((text.tokens != NOTHING).sum()), settings.seed)
    field = "mlp_post" if settings.units == "neurons" else "head_out"
    words = Words(opened.tokenizer)
    out = []
    for graph, score in zip(graphs, scores, strict=True):
        strongest = float(top.strongest[number, graph.unit])
        out.append(NeuronRecord(
            neuron=f"{number}.{graph.unit}", site=f"{settings.stream}.layer_{number}.{field}", strongest=strongest,
            threshold=strongest * FIRES, examples=_examples(graph, number, top, words),
            nodes=tuple(_node(node, words) for node in trie(graph.patterns)), scores=score))
    return out


def _examples(graph: UnitGraph, number: int, top: TopExamples, words: "Words") -> tuple[ExampleRecord, ...]:
    out = []
    for i, activation in enumerate(top.activations[number, graph.unit].tolist()):
        context = top.contexts[number, graph.unit, i]
        ids = tuple(context[context != NOTHING].tolist())
        used = graph.examples[i] if i < len(graph.examples) else None
        more = {} if used is None else {"suffix": used.length, "importance": used.importance[::-1], "named": used.named}
        out.append(ExampleRecord(tokens=words(ids), ids=ids, activation=activation, **more))
    return tuple(out)


def _node(node: Any, words: "Words") -> NodeRecord:
    ids = None if node.tokens is None else tuple(sorted(node.tokens))
    return NodeRecord(parent=node.parent, offset=node.offset, tokens=None if ids is None else words(ids), ids=ids,
                      importance=node.importance, strength=node.strength, examples=node.examples)


class Words:
    """Text of single tokens, each decoded once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._known = tokenizer, {}

    def __call__(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """The text of each."""
        for i in ids:
            if i not in self._known:
                self._known[i] = self._tokenizer.decode([i])
        return tuple(self._known[i] for i in ids)
