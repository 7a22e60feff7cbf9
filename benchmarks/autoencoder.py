"""Sparse autoencoders of the paper's shape, 128 -> 2048, 4,096 tokens a step: alone, and with the model in the loop.

    python -m benchmarks.autoencoder
    python -m benchmarks.autoencoder --architecture topk --k 32

Timed in one process, in turn, medians, so that whatever else the machine does falls on all alike:

    step        one optimiser step on activations that are there already
    forward     4,096 tokens through the decoder up to the site, block 6's MLP output
    training    one step of `features.train`: the model fills its part of the buffer, which is mixed and trained on
    together    the same for several seeds at once

Weights of the decoder are as they are drawn. The matrix-multiply rate is that of products of 2048 x 2048 matrices.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.training_step import matmul_rate, peak_bytes
from jaxablate import features
from jaxablate.config import ModelConfig
from jaxablate.models.decoder import SelfAblatingTransformer

SHAPE = ModelConfig(vocab_size=50257, context_length=256, d_model=128, n_layers=8, n_heads=16, k_attention=8,
                    k_neurons=8)
PRODUCTS = 5
"""Matrix products of a step, tokens x D x S each: encode, decode, gradients of both matrices and of the latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's."""

    architecture: str = "standard"
    """standard, topk, batchtopk, or the name of another registered architecture."""
    k: float = 32
    seeds: int = 8
    """Trained together in the last measurement; 0 leaves it out."""
    batch_tokens: int = 4096
    buffer_batches: int = 16
    """Steps' worth of the buffer; jaxablate sae takes 64."""
    windows: int = 16
    """Sequences of 256 tokens of a token batch."""
    rounds: int = 5
    """Half buffers trained on, after one that is not timed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements share."""

    options: Options
    config: features.AutoencoderConfig
    settings: features.SaeTrainConfig
    params: Any
    reader: features.Reader

    def tokens(self, start: int) -> Iterator[np.ndarray]:
        """Random text."""
        rng = np.random.default_rng(start)
        while True:
            yield rng.integers(0, SHAPE.vocab_size, (self.options.windows, SHAPE.context_length), np.int32)


def measure(options: Options) -> dict[str, Any]:
    """One row of the table, as plain numbers: times in s, rates in 1/s."""
    bench = prepare(options)
    parts = {"step_s": steps(bench), "forward_s": forward(bench)}
    before, found = matmul_rate(), training(bench, 1, parts)
    together = training(bench, options.seeds, {}) if options.seeds else {}
    rate = statistics.mean([before, matmul_rate()])
    work = 2 * PRODUCTS * options.batch_tokens * bench.config.d_in * bench.config.d_sae
    found |= {
        "steps_per_s": 1 / found["step_s"],
        "fraction": work / found["step_s"] / rate,
        "matmul_flops_per_s": rate,
        "overhead": found["training_s"] / (found["step_s"] + found["forward_s"]),
        "forward_share": found["forward_s"] / found["training_s"],
        "peak_bytes": peak_bytes(),
    }
    if together:
        found |= {"seeds": options.seeds, "together_s": together["training_s"],
                  "of_separate": together["training_s"] / options.seeds / found["training_s"]}
    return found


def prepare(options: Options) -> Bench:
    """The decoder and the settings of its autoencoders."""
    model = SelfAblatingTransformer(SHAPE)
    config = features.AutoencoderConfig(d_in=SHAPE.d_model, d_sae=16 * SHAPE.d_model, k=options.k,
                                        architecture=options.architecture)
    settings = features.SaeTrainConfig(batch_tokens=options.batch_tokens, buffer_batches=options.buffer_batches)
    settings = dataclasses.replace(settings, steps=(options.rounds + 1) * settings.round_steps)
    return Bench(options=options, config=config, settings=settings,
                 params=jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"],
                 reader=features.reader(model, [features.paper_site(SHAPE)]))


def training(bench: Bench, seeds: int, parts: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Seconds of one step of `features.train`, and of the parts, which are timed between its rounds."""
    found: dict[str, list[float]] = {name: [] for name in ("training_s", *parts)}
    began = time.perf_counter()

    def progress(*_: object) -> None:
        nonlocal began
        found["training_s"].append((time.perf_counter() - began) / bench.settings.round_steps)
        for name, part in parts.items():
            found[name].append(part())
        began = time.perf_counter()

    runs = [features.SaeRun(bench.reader.names[0], seed=seed) for seed in range(seeds)]
    features.train(bench.reader, bench.params, bench.tokens, runs, bench.config, bench.settings, progress=progress)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}  # the first ones compile


def steps(bench: Bench) -> Callable[[], float]:
    """Times as many steps as a round has, each on the same activations; gives seconds a step."""
    x = jax.random.normal(jax.random.key(1), (bench.options.batch_tokens, bench.config.d_in))

    def body(state, number):
        return features.train_step(state, x, number, jnp.float32(5.0), bench.settings)

    many = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(bench.settings.round_steps)))
    state = features.init_state(jax.random.key(0), bench.config, bench.settings)
    return lambda: _seconds(lambda: many(state)) / bench.settings.round_steps


def forward(bench: Bench) -> Callable[[], float]:
    """Times the reading of a round's activations; gives seconds a step's worth."""
    tokens = next(bench.tokens(0))
    batches = bench.options.batch_tokens // tokens.size or 1
    read = jax.jit(bench.reader)
    return lambda: sum(_seconds(lambda: read(bench.params, tokens)) for _ in range(batches))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
