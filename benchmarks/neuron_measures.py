"""Neuron measures of all 5,120 units at the paper's shape beside the model's forward pass alone: tokens a second.

    python -m benchmarks.neuron_measures
    python -m benchmarks.neuron_measures --tokens 1_000_000 --ablation none

The forward pass alone is what the measures read of it, without logits, in the same pieces. It and the measures take
turns. The measures' time has everything but compilation: reading the tokens, the sample, the pass, both nulls. The
sample and the nulls take the same few seconds for any number of tokens.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.training_step import peak_bytes
from jaxablate.config import ModelConfig
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons import measure
from jaxablate.neurons.firing_counts import pieces
from jaxablate.neurons.units import decoder_output, unit_values
from jaxablate.types import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's shape."""

    ablation: Literal["none", "local", "global", "both"] = "local"
    """none: the clean stream's units; else those of both streams and the gates."""
    tokens: int = 128 * 1024
    batch_size: int = 24
    repeats: int = 3


def compare(options: Options) -> dict[str, float]:
    """One row of the table: wall and processor seconds of each, and their ratios."""
    config = ModelConfig(ablation=options.ablation)
    model = SelfAblatingTransformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    split = list(windows(options.tokens, options.batch_size, config.context_length))
    tokens = sum(batch["inputs"].size for batch in split)

    def alone(split: Sequence[Batch]) -> None:
        for piece in pieces(split):
            jax.block_until_ready(read(model, params, piece["inputs"]))

    def measured(split: Sequence[Batch]) -> None:
        measure(model, params, lambda: split)

    for run in (alone, measured):
        run(split[:2])  # compiles
    times = {alone: [], measured: []}
    for _ in range(options.repeats):
        for run, found in times.items():
            found.append(timed(lambda run=run: run(split)))
    wall, processor = ({run: statistics.median(t[i] for t in found) for run, found in times.items()} for i in (0, 1))
    return {
        "tokens": tokens,
        "forward_tokens_per_s": tokens / wall[alone],
        "measured_tokens_per_s": tokens / wall[measured],
        "ratio": wall[measured] / wall[alone],
        "processor_ratio": processor[measured] / processor[alone],
        "peak_bytes": peak_bytes(),
    }


@functools.partial(jax.jit, static_argnames="model")
def read(model: SelfAblatingTransformer, params: Params, inputs: jax.Array) -> dict[str, list[jax.Array]]:
    """Values of all units, one token of each: the pass is made, and nothing but a row of it leaves the program."""
    values = unit_values(decoder_output(model, params, inputs))
    return jax.tree.map(lambda x: x[-1], values)


def windows(tokens: int, batch_size: int, length: int):
    """Batches of drawn tokens, some far more frequent than others."""
    rng = np.random.default_rng(0)
    for _ in range(-(-tokens // (batch_size * length))):
        drawn = np.minimum(rng.zipf(1.2, (batch_size, length)) - 1, 50256).astype(np.int32)
        yield {"inputs": drawn, "mask": np.ones_like(drawn)}


def timed(run) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
    print(json.dumps(compare(tyro.cli(Options))))
