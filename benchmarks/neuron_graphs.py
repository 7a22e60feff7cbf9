"""Neuron to Graph at the paper's shape (L=8, D=128, N=16, F=512, V=50,257): seconds for neurons of every layer.

    python -m benchmarks.neuron_graphs --units 512
    python -m benchmarks.neuron_graphs --units 4096
    python -m benchmarks.neuron_graphs --workdir runs/local-k8

Without ``--workdir`` the weights are as they are drawn, and their neurons need other contexts than trained ones do; the
text is TinyStories in GPT-2's tokens where ``data/`` has it, else random tokens by Zipf's law. Fewer units than all are
the first ones of every layer; what all 4,096 would take is then extrapolated: what depends on the units goes by their
number, the passes over text and compiling do not.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.circuit_search import SHAPE
from benchmarks.training_step import peak_bytes
from jaxablate.config import ModelConfig
from jaxablate.data.token_file import open_token_file
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.examples import LENGTHS, ShortRuns, UnitReader, top_examples
from jaxablate.neurons.graphs import FIRES, Neighbours, build_graphs
from jaxablate.neurons.matching import count_hits, firings
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.workdir import read_config
from jaxablate.types import Batch, Params

EOT = 50256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    units: int = 512
    """Neurons in all, the same number of each layer."""
    tokens: int = 400_000
    """Tokens of the text that examples come from."""
    score_tokens: int = 100_000
    batch_tokens: int = 8192
    """Tokens of a batch of short runs."""
    workdir: Path | None = None
    """Working directory of a trained model to measure, with its own shape; random weights by default."""
    data: Path = Path("data")
    """Where token files of TinyStories may lie."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: seconds of all cores together, for a machine that others use too; half of it on 2 cores is a lower bound of
    what a quiet machine takes."""


def measure(options: Options) -> dict[str, object]:
    """Seconds of each part."""
    model, params = _model(options)
    config, text = model.config, _text(options, model.config.vocab_size)
    read = UnitReader(model, tuple(range(config.n_layers)))
    units = min(config.mlp_width, options.units // config.n_layers)
    parts, clock = {}, {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    with _timed(parts, "examples", clock):
        top = top_examples(read, params, _windows(text, 0, options.tokens), vocab_size=config.vocab_size, eot_id=EOT)
    with _timed(parts, "firings", clock):
        limits = np.where(top.strongest > 0, FIRES * top.strongest, np.inf)
        bits, held_out = firings(read, params, _windows(text, options.tokens, options.score_tokens), limits, EOT)
    nearest, seen = Neighbours(params["embed"]["embedding"], top.counts), []
    for layer in range(config.n_layers):
        ask = ShortRuns(UnitReader(model, (layer,)), params, options.batch_tokens)
        with _timed(parts, "compiling", clock):
            for length in LENGTHS:
                ask(np.zeros((1, length), np.int32), np.zeros(1, np.int32))
        with _timed(parts, "graphs", clock):
            graphs = build_graphs(ask, top.activations[layer, :units], top.contexts[layer, :units],
                                  top.counts, nearest, seed=layer)
        with _timed(parts, "matching", clock):
            count_hits([g.patterns for g in graphs], bits[layer, :units], held_out,
                       top.strongest[layer, :units] > 0)
        seen.append((ask.questions, ask.tokens_run, sum(bool(g.patterns) for g in graphs)))
    questions, tokens, made = np.sum(seen, axis=0).tolist()
    whole = config.n_layers * config.mlp_width
    per_unit = (parts["graphs"] + parts["matching"]) * whole / (units * config.n_layers)
    return {"units": units * config.n_layers, "graphs_made": made, "seconds": parts, "questions": questions,
            "tokens_run": tokens, "all_units": whole,
            "all_seconds": parts["examples"] + parts["firings"] + parts["compiling"] + per_unit,
            "extrapolated": units < config.mlp_width, "clock": options.clock, "peak_bytes": peak_bytes()}


def _model(options: Options) -> tuple[SelfAblatingTransformer, Params]:
    if options.workdir is not None:
        model = SelfAblatingTransformer(cast(ModelConfig, read_config(options.workdir).model))
        return model, restore_params(options.workdir)[0]
    model = SelfAblatingTransformer(SHAPE)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def _text(options: Options, vocab_size: int) -> np.ndarray:
    needed = options.tokens + options.score_tokens
    for path in sorted(options.data.glob("TinyStories-train*.gpt2.tokens")):
        file = open_token_file(path, verify=False)
        if file.n_tokens >= needed and file.vocab_size <= vocab_size:
            return np.asarray(file.tokens[:needed], np.int32)
    weights = 1 / np.arange(1, vocab_size + 1)
    return np.random.default_rng(0).choice(vocab_size, needed, p=weights / weights.sum()).astype(np.int32)


def _windows(text: np.ndarray, start: int, tokens: int, rows: int = 16, length: int = 256) -> Iterator[Batch]:
    for first in range(start, start + tokens - rows * length + 1, rows * length):
        inputs = text[first : first + rows * length].reshape(rows, length)
        yield {"inputs": inputs, "mask": np.ones(inputs.shape, np.float32)}


class _timed:
    """Adds the seconds of a block to an entry of a dict."""

    def __init__(self, parts: dict[str, float], name: str, clock: Callable[[], float]):
        self._parts, self._name, self._clock = parts, name, clock

    def __enter__(self):
        self._start = self._clock()

    def __exit__(self, *_):
        self._parts[self._name] = self._parts.get(self._name, 0.0) + self._clock() - self._start


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
