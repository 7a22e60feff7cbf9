"""What bfloat16 costs in loss: one small model trained in float32, in bfloat16, and with one part at a time lowered.

    python -m benchmarks.precision --write                  # what the record lacks; the longest part is bfloat16 on CPU
    python -m benchmarks.precision --write --seeds 3 4      # further seeds
    python -m benchmarks.precision --show                   # the record

A row is trained with every seed, each in a process of its own, and compared with float32 of the same seed, data order
and initial weights. Losses are those of the trained weights on validation windows, computed in float32. What rounds,
rounds: XLA is told not to keep more bits than the types say (``xla_allow_excess_precision``); a product of bfloat16
arrays is summed in float32, as on TPUs and tensor cores, and then has the type that the row says. The record is
precision.json; the table of docs/accelerators.md is made from it. A run that was stopped goes on where it was.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich import box
from rich.table import Table

from benchmarks.__main__ import measured
from benchmarks.compiled import DOCS, with_table
from configs.quickstart import get_config
from jaxablate import stats
from jaxablate.errors import ConfigError
from jaxablate.exits import guarded
from jaxablate.files import write, write_json
from jaxablate.models import decoder, layers
from jaxablate.ops import attention, cross_entropy, normalization
from jaxablate.provenance import provenance
from jaxablate.sharding import batch_sharding, make_mesh
from jaxablate.terminal import PlainConsole
from jaxablate.training.language import language_task
from jaxablate.training.loop import evaluate, make_program
from jaxablate.training.program import TrainState

RECORD = Path(__file__).with_suffix(".json")
MODELS: Mapping[str, Literal["none", "local"]] = {"baseline": "none", "gated": "local"}
"""Models by the name that the record has for them, and their ablation."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How one row trains."""

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    lowered: tuple[Any, ...] = ()
    """Modules whose arithmetic in at least float32 becomes bfloat16."""
    products: bool = False
    """Results of the linear maps of attention and MLP stay float32, and so does what follows up to the next product."""
    rounded: tuple[Literal["params", "opt_state"], ...] = ()
    """Parts of the state that are rounded to bfloat16 after each step."""
    scale: float = 1.0
    """What initial weights are multiplied by."""
    models: tuple[str, ...] = ("baseline", "gated")
    """Models that it is another program for."""


_PARTS: dict[str, Row] = {
    "layer norms": Row(lowered=(normalization,)),
    "softmax of attention": Row(lowered=(attention,)),
    "scores of gates": Row(lowered=(layers,), models=("gated",)),
    "logits and cross-entropy": Row(lowered=(cross_entropy,)),
    "residual stream": Row(lowered=(decoder,)),
    "moments of Adam": Row(rounded=("opt_state",)),
    "weights": Row(rounded=("params",)),
}
ROWS: dict[str, Row] = {
    "float32": Row("float32"),
    "float32, initial weights times 1.000001": Row("float32", scale=1.000001),
    "bfloat16 (`--model.compute-dtype bfloat16`)": Row(),
    "and results of linear maps in float32": Row(products=True),
    **{f"and {name} in bfloat16": row for name, row in _PARTS.items()},
    "and all of these in bfloat16": Row(lowered=(normalization, attention, layers, cross_entropy, decoder),
                                        rounded=("params", "opt_state")),
}
"""Rows of the table by name; those that begin with "and" are the plain bfloat16 one but for what they name."""
_REFERENCE = next(iter(ROWS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to train."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and data order."""
    steps: int = 400
    """Updates of each run; the learning rate falls over as many."""
    rows: tuple[str, ...] = ()
    """Rows by name; all by default."""
    write: bool = False
    """Keep what was measured in precision.json and docs/accelerators.md."""
    show: bool = False
    """Train nothing and print the record; with ``write``, into the docs, too."""
    one: tuple[str, str] | None = None
    """Train this (row, model) in this process, and print the losses of every seed as JSON."""


def main(options: Options) -> None:
    """Does what is asked for.

    Raises:
      ConfigError: a row or model is unknown, or the record is of another number of steps.
    """
    unknown = [name for name in (*options.rows, *(options.one[:1] if options.one else ())) if name not in ROWS]
    if unknown or (options.one and options.one[1] not in MODELS):
        raise ConfigError(f"row or model {unknown or options.one} is unknown; there are {'; '.join(ROWS)}, and "
                          f"{', '.join(MODELS)}")
    if options.one:
        name, model = options.one
        print(json.dumps(train(ROWS[name], MODELS[model], options.seeds, options.steps)))
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if record and record["steps"] != options.steps:
        raise ConfigError(f"{RECORD.name} is of {record['steps']} steps, not {options.steps}; give --steps "
                          f"{record['steps']}, or move it away")
    if not record:
        record = {"steps": options.steps, "losses": {}, "provenance": dataclasses.asdict(provenance(jax.devices()))}
    if not options.show:
        _train_missing(options, record)
    PlainConsole(width=180).print(_table(record))
    if options.write:
        write(DOCS, documented(DOCS.read_text(), record))


def _train_missing(options: Options, record: dict[str, Any]) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false".strip()
    for model in MODELS:
        for name in [name for name in options.rows or ROWS if model in ROWS[name].models]:
            runs = record["losses"].setdefault(name, {}).setdefault(model, {})
            seeds = [str(seed) for seed in options.seeds if str(seed) not in runs]
            if seeds:
                runs |= measured("precision", f"{name}, {model}, seeds {' '.join(seeds)}", [
                    "--steps", str(options.steps), "--seeds", *seeds, "--one", name, model])
            if seeds and options.write:
                write_json(RECORD, record)


Losses = dict[str, dict[str, float]]
"""Seed -> name of a loss -> its value."""


def train(row: Row, ablation: Literal["none", "local"], seeds: Sequence[int], steps: int) -> Losses:
    """Validation losses of each stream, nats a token, after so many steps at the shape and pace of the quickstart."""
    base = get_config()
    model = dataclasses.replace(base.model, ablation=ablation, compute_dtype=row.compute)
    config = dataclasses.replace(base, model=model)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = make_program(config, mesh, steps)
    # Measured alike for all rows.
    wide = dataclasses.replace(model, compute_dtype="float32")
    judge = make_program(dataclasses.replace(config, model=wide), mesh, steps)
    rounded = jax.jit(lambda state: _rounded(state, row.rounded))
    losses = {}
    for seed in seeds:
        settings = dataclasses.replace(base.train, steps=steps, seed=seed, eval_batches=50)
        task = language_task(dataclasses.replace(config, train=settings), mesh)
        batches, state = task.train_batches(), program.init(seed)
        state = state.replace(params=jax.tree.map(lambda x: x * row.scale, state.params))
        with _lowered(row):
            for _ in range(steps):
                state, _metrics = program.step(state, jax.device_put(dict(next(batches)), batch_sharding(mesh)))
                state = rounded(state) if row.rounded else state
        batches.close()
        found = evaluate(task, judge, state.params)
        losses[str(seed)] = {name: found[name] for name in ("loss_clean", "loss_ablated") if name in found}
    return losses


def _rounded(state: TrainState, parts: Sequence[str]) -> TrainState:
    def one(x: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x

    return state.replace(**{part: jax.tree.map(one, getattr(state, part)) for part in parts})


@contextlib.contextmanager
def _lowered(row: Row) -> Iterator[None]:
    """Inside, what a row lowers is traced in bfloat16, and what it raises in float32."""
    with contextlib.ExitStack() as stack:
        for module in row.lowered:
            stack.enter_context(_replaced(module, "at_least_float32", lambda dtype: jnp.dtype("bfloat16")))
        if row.products:
            for name in ("Dense", "DenseGeneral"):
                plain = getattr(nn, name)
                stack.enter_context(_replaced(nn, name, _with_float32_result(plain)))
        yield


def _with_float32_result(module: Callable[..., Any]) -> Callable[..., Any]:
    def product(*arrays: Any, **options: Any) -> jax.Array:
        return jax.lax.dot_general(*arrays, **options | {"preferred_element_type": jnp.float32})

    return lambda *arguments, **fields: module(*arguments, **fields, dot_general=product)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def documented(text: str, record: Mapping[str, Any]) -> str:
    """The page on accelerators with the table of precision made anew."""
    return with_table(text, "precision", _table(record, box.MARKDOWN))


_COLUMNS = (("baseline", "loss_clean", "baseline"), ("gated", "loss_clean", "gated, clean stream"),
            ("gated", "loss_ablated", "gated, ablated stream"))


def _table(record: Mapping[str, Any], look: box.Box = box.SIMPLE_HEAD) -> Table:
    """Losses of float32, and of all other rows the difference to it with the interval over seeds."""
    table = Table(box=look)
    table.add_column("computed in")
    for _, _, heading in _COLUMNS:
        table.add_column(heading, justify="right")
    losses = record["losses"]
    for name in ROWS:
        if name in losses:
            table.add_row(name, *(_cell(losses, name, model, loss) for model, loss, _ in _COLUMNS))
    return table


def _cell(losses: Mapping[str, Any], name: str, model: str, loss: str) -> str:
    reference = losses[_REFERENCE].get(model, {})
    runs = losses[name].get(model, {})
    seeds = [seed for seed in runs if seed in reference]
    if not seeds:
        return ""
    if name == _REFERENCE:
        return str(stats.student([runs[seed][loss] for seed in seeds]))
    found = stats.student([runs[seed][loss] - reference[seed][loss] for seed in seeds])
    numbers = (found.value, *(found.interval or ()))
    mean, *ends = (f"{float(x or 0):+.4f}" for x in numbers)
    return f"{mean} [{ends[0]}, {ends[1]}]" if ends else mean


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))), ends=True))
