"""An epoch of the SAFR classifier on SST-2: seconds with texts of like length together, and with all padded to 128.

    python -m benchmarks.classifier_epoch --bucket-multiple 8
    python -m benchmarks.classifier_epoch --bucket-multiple 0

One process measures one way of padding: every shape is compiled first, then each batch of the epoch is timed. The texts
are read as in training, from data/trees or --data.path.
"""

import dataclasses
import json
import statistics
import time

import jax
import numpy as np
import tyro

from benchmarks.training_step import peak_bytes
from jaxablate.config import ClassificationConfig, ClassificationObjective, EpochTrainConfig, SentimentDataConfig
from jaxablate.sharding import batch_sharding, make_mesh
from jaxablate.training.classification import classification_task
from jaxablate.training.loop import make_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's shape and batch size."""

    bucket_multiple: int = 8
    """Lengths of batches; 0 pads every text to 128."""
    objective: ClassificationObjective = ClassificationObjective()
    data: SentimentDataConfig = SentimentDataConfig()


def measure(options: Options) -> dict[str, float]:
    """One row of the table, as plain numbers: times in s, memory in bytes."""
    train = EpochTrainConfig(bucket_multiple=options.bucket_multiple)
    config = ClassificationConfig(objective=options.objective, data=options.data, train=train)
    mesh = make_mesh(config.mesh)
    task = classification_task(config)
    program = make_program(task.config, mesh, task.pace.steps)
    source = task.train_batches()
    batches = [jax.device_put(next(source), batch_sharding(mesh)) for _ in range(task.pace.eval_every)]
    source.close()
    shapes = {batch["tokens"].shape: batch for batch in batches}
    state = program.init(0)
    start = time.perf_counter()
    for batch in shapes.values():
        state, _ = jax.block_until_ready(program.step(state, batch))
    compiled = time.perf_counter() - start
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program.step(state, batch))
        seconds.append(time.perf_counter() - start)
    lengths = np.array([batch["tokens"].shape[1] for batch in batches])
    return {
        "epoch_s": sum(seconds),
        "steps": len(batches),
        "steps_per_s": 1 / statistics.median(seconds),
        "mean_length": float(lengths.mean()),
        "shapes": len(shapes),
        "compile_s": compiled,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
