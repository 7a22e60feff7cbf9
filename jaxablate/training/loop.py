"""Training from a configuration to a finished working directory."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

from jaxablate.config import Config, to_dict
from jaxablate.data.pipeline import TrainBatches, train_batches, validation_batches
from jaxablate.data.prepare import PreparedData, prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.token_file import TokenFile
from jaxablate.errors import ConfigError, TrainingError
from jaxablate.provenance import device_names
from jaxablate.sharding import BATCH_AXES, batch_sharding, make_mesh
from jaxablate.training.checkpoint import Checkpoints
from jaxablate.training.flops import peak_flops, train_flops_per_token
from jaxablate.training.metrics import MetricsLog
from jaxablate.training.preemption import Interruption
from jaxablate.training.program import Program, accumulation_steps, make_program
from jaxablate.training.progress import ProgressLine
from jaxablate.training.recorder import Recorder
from jaxablate.training.state import TrainState, place_on
from jaxablate.training.workdir import check_workdir, hold_workdir, record_run, require_x64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
      step: updates made, all calls together.
      reason: "finished", or "interrupted" by a signal after saving.
      metrics: of the last step this call made; empty where none was left to make.
      valid: of the last evaluation of this call; empty where there was none.
    """

    step: int
    reason: Literal["finished", "interrupted"]
    metrics: dict[str, float]
    valid: dict[str, float]


def train(config: Config, workdir: str | Path, *, devices: Sequence[jax.Device] | None = None) -> TrainResult:
    """Trains a self-ablating transformer, or continues where a working directory left off.

    A run that is killed at any moment and called again with the same arguments makes the same metrics and parameters,
    bit for bit, as one that was left alone.

    Args:
      config: everything about the run.
      workdir: made where missing; `jaxablate.training.workdir` says what is in it.
      devices: defaults to all.

    Raises:
      ConfigError: settings that do not fit each other or the devices.
      DataError: a data file is missing or damaged.
      CheckpointError: the working directory is another run's, cannot be written, or has no good checkpoint left.
      TrainingError: a loss or gradient was not finite.
    """
    # What can be refused is refused before anything is written.
    workdir = Path(workdir)
    require_x64(config)
    program = make_program(config, make_mesh(config.mesh, devices))
    check_workdir(workdir, config)
    data = _prepare(config)

    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir))
        checkpoints = Checkpoints(workdir, config.train.keep_last)
        stack.callback(checkpoints.close)
        batches = _train_batches(config, program, data.train)
        stack.callback(batches.close)

        restored = checkpoints.restore(place_on(program.abstract, program.shardings))
        if restored is None:
            state = program.init()
        else:
            state, progress = restored
            batches.set_state(progress["data"])
        first = int(state.step)

        record_run(workdir, config, program.mesh, _facts(program, data), first)
        if jax.process_index() == 0:
            data.tokenizer.save(workdir / "tokenizer")
        line = stack.enter_context(_progress_line(config, program))
        line.say(_banner(config, program, workdir, first))
        log = None
        if jax.process_index() == 0:
            log = stack.enter_context(contextlib.closing(MetricsLog(workdir, config, first)))
        recorder = Recorder(config.train, log, line)
        try:
            result = _run(config, program, state, batches, data.valid, checkpoints, recorder)
        except TrainingError as error:
            checkpoints.wait()
            raise TrainingError(f"{error}; {checkpoints.last_good()}; a lower learning rate may help") from error
        if result.reason == "finished":
            line.say(f"finished: {result.step} steps in {workdir}")
        else:
            line.say(f"interrupted: saved step {result.step} of {config.train.steps}; the same command continues")
        return result


def _run(
    config: Config,
    program: Program,
    state: TrainState,
    batches: TrainBatches,
    valid_file: TokenFile,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> TrainResult:
    """The steps that are left."""
    settings = config.train
    metrics: dict[str, float] = {}
    valid: dict[str, float] = {}
    running: tuple[int, Mapping[str, jax.Array]] | None = None
    with Interruption() as interruption:
        for step in range(int(state.step) + 1, settings.steps + 1):
            state, values = program.step(state, _to_devices(next(batches), program))  # returns at once
            if running is not None:
                metrics = recorder.train(*running)  # the step before, while the devices are at this one
            else:
                recorder.restart_clock()  # compilation does not count
            running = step, values
            checkpoints.check()

            last, stop = step == settings.steps, interruption.requested(step)
            evaluating = last or step % settings.eval_every == 0
            saving = last or stop or step % settings.checkpoint_every == 0
            if not (evaluating or saving):
                continue
            metrics, running = recorder.train(step, values), None
            if evaluating:
                valid = evaluate(config, program, state.params, valid_file)
                recorder.valid(step, valid)
            if saving:
                if not bool(program.finite(state)):
                    raise TrainingError(f"step {step} made parameters or optimizer state that are not finite")
                progress = {"data": batches.get_state(), "config": to_dict(config)}
                checkpoints.save(state, progress, valid["loss_clean"] if evaluating else None)
            if stop:
                break
    checkpoints.wait()
    step = int(state.step)
    reason = "finished" if step == settings.steps else "interrupted"
    return TrainResult(step=step, reason=reason, metrics=metrics, valid=valid)


def evaluate(config: Config, program: Program, params: Any, valid_file: TokenFile) -> dict[str, float]:
    """Means over the first ``train.eval_batches`` batches of the validation split, each token counted alike.

    The batches are read in the parts that training takes them in; which tokens are seen does not depend on the parts.
    ``live_attention`` and ``live_neurons`` are means over these parts of the fraction that is live within one.

    Args:
      config: of the run.
      program: of the run.
      params: parameters as the program places them.
      valid_file: tokens.
    """
    parts = accumulation_steps(config, program.mesh)
    batches = validation_batches(
        valid_file,
        batch_size=config.train.batch_size // parts,
        sequence_length=config.train.sequence_length,
        max_batches=config.train.eval_batches * parts,
        **_process(),
    )
    return _weighted_means([program.evaluate(params, _to_devices(batch, program)) for batch in batches])


def _weighted_means(parts: Iterable[Mapping[str, jax.Array]]) -> dict[str, float]:
    parts = jax.device_get(list(parts))
    weights = np.array([float(part["tokens"]) for part in parts])
    names = [name for name in parts[0] if name != "tokens"]
    return {name: float(np.average([float(p[name]) for p in parts], weights=weights)) for name in names}


def _prepare(config: Config) -> PreparedData:
    with progress_report() as report:
        data = prepare(config.data, report=report)
    data.train.require_vocab(config.model.vocab_size)
    return data


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def _train_batches(config: Config, program: Program, tokens: TokenFile) -> TrainBatches:
    _check_processes(program)
    settings = config.train
    return train_batches(
        tokens,
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
        **_process(),
    )


def _check_processes(program: Program) -> None:
    """Each process reads its own rows, so no part of the batch may lie on devices of two processes."""
    if jax.process_count() == 1:
        return
    owners = np.vectorize(lambda d: d.process_index)(program.mesh.devices).reshape(-1, program.mesh.shape["tensor"])
    rows = owners[:, 0]
    if (owners != rows[:, None]).any() or (np.diff(rows) < 0).any():
        raise ConfigError(
            f"mesh.tensor={program.mesh.shape['tensor']} must divide the {jax.local_device_count()} devices of a "
            f"process, so that each process has whole parts of the batch ({' and '.join(BATCH_AXES)})"
        )


def _to_devices(batch: Mapping[str, np.ndarray], program: Program) -> dict[str, jax.Array]:
    """This process's rows -> global arrays."""
    sharding = batch_sharding(program.mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _facts(program: Program, data: PreparedData) -> dict[str, Any]:
    return {
        "parameters": program.n_parameters,
        "data_hash": {"train": data.train.data_hash, "valid": data.valid.data_hash},
        "train_tokens": data.train.n_tokens,
        "valid_tokens": data.valid.n_tokens,
        "tokenizer": {"name": data.tokenizer.name, "fingerprint": data.tokenizer.fingerprint()},
    }


def _progress_line(config: Config, program: Program) -> ProgressLine:
    tokens = config.train.batch_size * config.train.sequence_length
    flops = tokens * train_flops_per_token(config.model, config.train.sequence_length)
    console = Console(highlight=False, soft_wrap=True, quiet=jax.process_index() != 0)
    return ProgressLine(config.train.steps, tokens, flops, peak_flops(list(program.mesh.devices.flat)), console)


def _banner(config: Config, program: Program, workdir: Path, step: int) -> str:
    model, mesh = config.model, " ".join(f"{name}={size}" for name, size in program.mesh.shape.items())
    gates = f"k={model.k_attention}/{model.k_neurons}" if model.gated else "no gates"
    begin = f"continues from step {step}" if step else "starts"
    return (
        f"{workdir}: {program.n_parameters:,} parameters, ablation {model.ablation}, {gates}; "
        f"{device_names(list(program.mesh.devices.flat))}, mesh {mesh}; {begin} of {config.train.steps}"
    )
