"""Makes, scores and writes a graph of each neuron of a run, for ``jaxablate neurons``.

    layer_L/neuron_U.json   one graph; see `jaxablate.reports.neuron_records`
    layer_L/neuron_U.svg    its picture
    layer_L/counts.npz      counts by story, and what they were made from (`identity`)
    index.json              scores and patterns of all neurons, for searching, and the summary

A layer's folder appears when all of it is written, the index when all layers are there, so a job that was interrupted
goes on with the first layer that is missing.
"""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxablate import files, stats
from jaxablate.config import Config
from jaxablate.errors import ConfigError, DataError, FileError
from jaxablate.neurons.examples import NOTHING, ShortRuns, TopExamples, UnitReader, top_examples
from jaxablate.neurons.graphs import FIRES, GraphSettings, Neighbours, UnitGraph, build_graphs, trie
from jaxablate.neurons.matching import (
    MIN_FIRES,
    Counts,
    GraphSummary,
    count_hits,
    firings,
    rates,
    story_draws,
    summarise_graphs,
)
from jaxablate.provenance import provenance
from jaxablate.reports.neuron_graph import graph_svg
from jaxablate.reports.neuron_records import (
    INDEX,
    ExampleRecord,
    GraphOptions,
    NeuronRecord,
    NodeRecord,
    Scores,
    neuron_file,
    to_json,
    write_index,
)
from jaxablate.reports.panels import Grid
from jaxablate.runs.run import Run, Split
from jaxablate.types import Batch

MIN_SCORE_TOKENS = 1_000
"""Least tokens of held-out text; in less hardly a neuron fires."""
_METHOD = 1
"""Raised when graphs of the same settings become others; those of an interrupted job are then made anew."""
Say = Callable[[str], None]


def make_graphs(run: Run, folder: Path, options: GraphOptions, seed: int = 0, say: Say = lambda line: None
                ) -> list[GraphSummary]:
    """Graphs of all neurons, layer by layer, each layer's folder written when it is done, the index last.

    A job that was interrupted goes on with the first layer that is missing. Graphs of another checkpoint or of other
    settings in the same folder are replaced.

    Returns:
      The summary of all units, and then that of each layer.

    Raises:
      ConfigError: the context is too long for the model.
      DataError: the text is too short or not the run's.
      FileError: the folder cannot be written.
    """
    _check(options, run)
    config = cast(Config, run.config)
    about = {"step": run.step, "params_digest": run.digest, "n_layers": config.model.n_layers,
             "sequence_length": config.train.sequence_length, "tokenizer": run.tokenizer.fingerprint(),
             "train_hash": run.splits["train"].data_hash, "valid_hash": run.splits["valid"].data_hash,
             "settings": dataclasses.asdict(options) | {"seed": seed}}
    identity = hashlib.sha256(json.dumps(about | {"method": _METHOD}, sort_keys=True).encode()).hexdigest()
    with files.sole_builder(folder / INDEX, waiting=lambda: say(f"waiting for another process to finish {folder}"),
                            otherwise="choose another --out"):
        names = [folder / f"layer_{i}" for i in range(config.model.n_layers)]
        done = {i: counts for i, name in enumerate(names) if (counts := read_counts(name, identity)) is not None}
        missing = [i for i in range(len(names)) if i not in done]
        if missing:
            (folder / INDEX).unlink(missing_ok=True)
            for name in names:
                files.remove_partials(name)
            if done:
                say(f"going on with an interrupted job: {len(done)} of {len(names)} layers are done")
            for i, records, counts in _layers(options, seed, run, missing, say):
                write_layer(names[i], records, counts, identity)
                done[i] = counts
        else:
            say("all layers were made before; only the index is written anew")
        layers = [done[i] for i in range(len(names))]
        summaries = [summarise_graphs(some, seed) for some in (layers, *([x] for x in layers))]
        conditions = {"provenance": dataclasses.asdict(provenance(jax.devices()))}
        write_index(folder, about | conditions, summaries, len(layers[0].active))
    return summaries


def _check(options: GraphOptions, run: Run) -> None:
    """Refuses contexts and texts that do not fit the run."""
    config = cast(Config, run.config)
    model, length = config.model, config.train.sequence_length
    if options.context > model.context_length:
        raise ConfigError(f"context={options.context} must be at most the model's "
                          f"context_length={model.context_length}")
    needed, given = options.examples * length, min(options.tokens, run.splits["train"].tokens.n_tokens)
    if given < needed:
        raise DataError(f"{given:,} tokens of training text are too few: {options.examples} examples of windows of "
                        f"{length} tokens need at least {needed:,}; raise --tokens, or lower --examples")
    held_out = min(options.score_tokens, run.splits["valid"].tokens.n_tokens)
    if held_out < MIN_SCORE_TOKENS:
        raise DataError(f"{held_out:,} tokens of validation text are too few to score graphs on; at least "
                        f"{MIN_SCORE_TOKENS:,} are needed")


def _layers(options: GraphOptions, seed: int, run: Run, missing: Sequence[int], say: Say
            ) -> Iterator[tuple[int, list[NeuronRecord], Counts]]:
    """Number, records and counts of each layer that is missing."""
    model, eot_id, start = run.config.model, run.tokenizer.eot_id, time.perf_counter()
    # The questions are many small batches, so one device answers them.
    params = jax.device_put(run.params, jax.devices()[0])
    read = UnitReader(run.model, tuple(range(model.n_layers)), options.units, options.stream)
    top = top_examples(read, params, _windows(run.splits["train"], options.tokens), vocab_size=model.vocab_size,
                       eot_id=eot_id, examples=options.examples, context=options.context)
    limits = np.where(top.strongest > 0, top.strongest * FIRES, np.inf)
    bits, text = firings(read, params, _windows(run.splits["valid"], options.score_tokens), limits, eot_id)
    held_out = int((text.tokens != NOTHING).sum())
    say(f"{top.tokens:,} tokens of training text read for examples, {held_out:,} of validation text to score on, "
        f"{time.perf_counter() - start:.0f} s")
    nearest = Neighbours(params["embed"]["embedding"], top.counts, options.candidates)
    settings = GraphSettings(build=options.build, above=options.importance, candidates=options.candidates)
    for i in missing:
        start = time.perf_counter()
        ask = ShortRuns(dataclasses.replace(read, layers=(i,)), params)
        graphs = build_graphs(ask, top.activations[i], top.contexts[i], top.counts, nearest, settings,
                              seed=(seed, i))
        counts = count_hits([g.patterns for g in graphs], bits[i], text, top.strongest[i] > 0, (seed, i))
        say(f"layer {i}: {ask.questions:,} questions, {ask.tokens_run:,} tokens, {time.perf_counter() - start:.0f} s")
        yield i, _records(options, run, i, graphs, top, unit_scores(counts, held_out, seed)), counts


def _windows(split: Split, tokens: int) -> Iterator[Batch]:
    """Adjoining windows from the start of a split, at most so many tokens of it (rounded up to whole batches)."""
    for batch in split.batches():
        inputs, mask = (np.asarray(batch[name]) for name in ("inputs", "mask"))
        yield {"inputs": inputs, "mask": mask * (np.arange(mask.size).reshape(mask.shape) < tokens)}
        tokens -= mask.size
        if tokens <= 0:
            return


def unit_scores(counts: Counts, tokens: int, seed: int) -> list[Scores]:
    """Scores of each unit of a layer, on a text of so many tokens."""
    stories = counts.fires.shape[1]
    rate, drawn = rates(counts), rates(counts, story_draws(stories, seed))["f1"]

    def plain(name: str, unit: int) -> float | None:
        return float(rate[name][unit]) if math.isfinite(rate[name][unit]) else None

    return [Scores(tokens=tokens, fires=int(counts.fires[u].sum()), predicted=int(counts.predicted[u].sum()),
                   hits=int(counts.hits[u].sum()), f1=stats.from_draws(plain("f1", u), drawn[u], n=stories),
                   **{name: plain(name, u) for name in ("precision", "recall", "f1_shuffled", "f1_pivot")})
            for u in range(len(counts.fires))]


def _records(options: GraphOptions, run: Run, layer: int, graphs: Sequence[UnitGraph], top: TopExamples,
             scores: Sequence[Scores]) -> list[NeuronRecord]:
    """What is written of each neuron of a layer."""
    field = "mlp_post" if options.units == "neurons" else "head_out"
    word = functools.cache(lambda i: run.tokenizer.decode([i]))

    def example(graph: UnitGraph, i: int) -> ExampleRecord:
        context = top.contexts[layer, graph.unit, i]
        ids = tuple(context[context != NOTHING].tolist())
        activation, used = float(top.activations[layer, graph.unit, i]), graph.examples[i : i + 1]
        more: Mapping[str, Any] = {} if not used else {
            "suffix": used[0].length, "importance": used[0].importance[::-1], "named": used[0].named}
        return ExampleRecord(tokens=tuple(map(word, ids)), ids=ids, activation=activation, **more)

    records = []
    for graph, of_unit in zip(graphs, scores, strict=True):
        strongest, nodes = float(top.strongest[layer, graph.unit]), []
        for node in trie(graph.patterns):
            ids = None if node.tokens is None else tuple(sorted(node.tokens))
            tokens = None if ids is None else tuple(map(word, ids))
            nodes.append(NodeRecord(**vars(node) | {"tokens": tokens, "ids": ids}))
        records.append(NeuronRecord(
            neuron=f"{layer}.{graph.unit}", site=f"{options.stream}.layer_{layer}.{field}", strongest=strongest,
            threshold=strongest * FIRES, nodes=tuple(nodes), scores=of_unit,
            examples=tuple(example(graph, i) for i in range(top.activations.shape[-1]))))
    return records


def write_layer(folder: Path, records: Sequence[NeuronRecord], counts: Counts, identity: str) -> None:
    """Writes a layer's folder, in the place of one that is there.

    Raises:
      FileError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    with files.atomic_folder(folder, otherwise="choose another --out") as staging:
        for record in records:
            name = neuron_file(folder.parent, record.neuron).stem
            (staging / f"{name}.json").write_text(to_json(record), encoding="utf-8")
            (staging / f"{name}.svg").write_text(graph_svg(record), encoding="utf-8")
        np.savez_compressed(staging / "counts.npz", identity=np.array(identity), **vars(counts))


def read_counts(folder: Path, identity: str) -> Counts | None:
    """A layer's counts, if its folder is there and of this very job."""
    try:
        stored = files.read_npz(folder / "counts.npz")
        counts = Counts(**{f.name: stored[f.name] for f in dataclasses.fields(Counts)})
        return counts if str(stored["identity"]) == identity else None
    except (OSError, KeyError, FileError):  # absent or damaged: the layer is made anew
        return None


def summary_grid(summaries: Sequence[GraphSummary], title: str) -> Grid:
    """Means over the neurons of each layer, and of all; summaries are in the order of `make_graphs`."""
    caption = (f"means over neurons that fire at {MIN_FIRES} places of held-out text or more; F1 and gain with 95 % "
               f"intervals over its stories, the others' are in {INDEX}; shuffled: another neuron's graph; pivots: the "
               "patterns' last tokens alone; gain: F1 less that of the pivots")
    rows = tuple((name, s.units, s.inactive, s.rare, s.without_graph, s.precision.value, s.recall.value, s.f1,
                  s.f1_shuffled.value, s.f1_pivot.value, s.gain)
                 for name, s in [*enumerate(summaries[1:]), ("all", summaries[0])])
    return Grid(title=title, caption=caption, rows=rows,
                columns=("layer", "neurons", "inactive", "rare", "no graph", "precision", "recall", "F1", "shuffled",
                         "pivots", "gain"))
