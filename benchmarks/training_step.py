"""Training step of one shape: tokens a second, share of the machine's matrix-multiply rate, compile time, memory.

    python -m benchmarks.training_step --batch-size 32 --model.ablation global

One process measures one shape, so that its peak memory is that shape's. The matrix-multiply rate is the median of
float32 products of 2048 x 2048 matrices, timed before and after the steps in the same process.
"""

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxablate.config import Config, MeshConfig, ModelConfig, TrainConfig
from jaxablate.sharding import batch_sharding, make_mesh
from jaxablate.training.language import accumulation_steps
from jaxablate.training.loop import make_program
from jaxablate.training.program import Program
from jaxablate.training.throughput import train_flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's shape."""

    batch_size: int = 4
    sequence_length: int = 256
    accumulation_steps: int = 0
    """Parts of the batch; 0 lets the library choose."""
    steps: int = 5
    """Steps timed, after one that is not."""
    model: ModelConfig = ModelConfig()


def matmul_rate(size: int = 2048, repeats: int = 7) -> float:
    """Median operations a second of a float32 product of square matrices on the default device."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(x, x))
    return 2 * size**3 / statistics.median(_seconds(lambda: product(x, x)) for _ in range(repeats))


def measure(options: Options) -> dict[str, float]:
    """One row of the table, as plain numbers: rates in 1/s, times in s, memory in bytes."""
    program, batch, parts = _prepare(options)
    rate_before = matmul_rate()
    state = program.init(0)
    start = time.perf_counter()
    step = program.step.lower(state, batch).compile()
    compiled = time.perf_counter() - start
    state, _ = jax.block_until_ready(step(state, batch))
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    rate = statistics.mean((rate_before, matmul_rate()))
    tokens = options.batch_size * options.sequence_length / statistics.median(seconds)
    work = train_flops_per_token(options.model, options.sequence_length) * tokens
    return {
        "batch_size": options.batch_size,
        "accumulation_steps": parts,
        "compile_s": compiled,
        "tokens_per_s": tokens,
        "flops_per_s": work,
        "matmul_flops_per_s": rate,
        "fraction": work / rate,
        "peak_bytes": peak_bytes(),
    }


def _prepare(options: Options) -> tuple[Program, dict[str, jax.Array], int]:
    train = TrainConfig(
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        accumulation_steps=options.accumulation_steps,
    )
    config = Config(model=options.model, train=train)
    mesh = make_mesh(MeshConfig())
    shape = (options.batch_size, options.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, options.model.vocab_size, shape, np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    program = make_program(config, mesh, config.train.steps)
    return program, jax.device_put(batch, batch_sharding(mesh)), accumulation_steps(config, mesh)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Most memory held: of the device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
