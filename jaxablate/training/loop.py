"""Training from a configuration to a finished working directory."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate import files
from jaxablate.config import Config, RunConfig, to_dict
from jaxablate.config.checks import require
from jaxablate.data.pipeline import TrainBatches
from jaxablate.errors import CheckpointError, TrainingError
from jaxablate.provenance import device_names
from jaxablate.runs.checkpoint import Checkpoints, stored_progress
from jaxablate.runs.interruption import Interruption
from jaxablate.runs.workdir import check_workdir, hold_workdir, record_run, require_x64
from jaxablate.sharding import BATCH_AXES, batch_sharding, check_batch, host_memory, make_mesh, require_room
from jaxablate.terminal import PlainConsole
from jaxablate.training import large_pages
from jaxablate.training.classification import classification_learner, classification_task
from jaxablate.training.language import accumulation_steps, language_learner, language_task
from jaxablate.training.metrics import MetricsLog, Recorder
from jaxablate.training.optimizer import learning_rate_schedule, make_optimizer, nonzero_schedule
from jaxablate.training.processes import unwinding
from jaxablate.training.profiling import SKIPPED, Profile
from jaxablate.training.program import Program, TrainState, compile_program
from jaxablate.training.progress import ProgressLine
from jaxablate.training.task import EarlyStopping, Task
from jaxablate.training.throughput import peak_flops
from jaxablate.types import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    """Updates made, all calls together."""
    reason: Literal["finished", "interrupted"]
    """"finished" (early stopping included), or "interrupted" by a signal after saving."""
    signalled: bool
    """Whether a signal asked to stop, be it during the last step of a run that finished."""
    metrics: dict[str, float]
    """Metrics of the last step this call made; empty where none was left to make."""
    valid: dict[str, float]
    """Metrics of the last evaluation of this call; empty where there was none."""


def train(config: RunConfig, workdir: str | Path, *, devices: Sequence[Any] | None = None, profile: int = 0
          ) -> TrainResult:
    """Trains a self-ablating transformer or a text classifier, or continues where a working directory left off.

    A run that is killed at any moment and called again with the same arguments makes the same metrics and parameters,
    bit for bit, as one that was left alone.

    Args:
      config: all settings of the run; its kind decides what is trained.
      workdir: made where missing; `jaxablate.runs.workdir` says what is in it.
      devices: JAX devices to train on, all by default.
      profile: number of steps of this call whose profile is written into the working directory's ``profile``.

    Raises:
      ConfigError: settings that do not fit each other or the devices, a name that no working directory can have, or
        more steps to profile than are left.
      DataError: a data file is missing or damaged.
      CheckpointError: the working directory is another run's or has no good checkpoint left.
      FileError: it cannot be written, or another process is training in it.
      TrainingError: a loss or gradient was not finite.
    """
    # What can be refused is refused before anything is written.
    files.check_path(workdir, "workdir")
    workdir = Path(workdir)
    require_x64(config)
    mesh = make_mesh(config.mesh, devices)
    check_shares(config, mesh)
    _check_processes(mesh)
    check_workdir(workdir, config)
    if isinstance(config, Config):  # how many parameters a classifier has, its data decides
        check_memory(make_program(config, mesh, config.train.steps), config)
    task = open_task(config, mesh)
    program = make_program(task.config, mesh, task.pace.steps)
    check_memory(program, config)
    _check_profile(profile, 0, task.pace.steps)

    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir))
        checkpoints = Checkpoints(workdir, config.train.keep_last)
        stack.enter_context(files.closing(checkpoints.close))
        batches = task.train_batches()
        stack.enter_context(files.closing(batches.close))

        stopping = EarlyStopping(task.pace.patience)
        progress: dict[str, Any] = {}
        restored = checkpoints.restore(program.stored)
        if restored is None:
            state = program.init(config.train.seed)
        else:
            state, progress = program.packed(restored[0]), restored[1]
            batches.set_state(progress["data"])
            stopping.set_state(progress.get("early_stopping", {}))
        first = int(state.step)
        _check_profile(profile, first, task.pace.steps)

        facts = {"parameters": program.n_parameters, **task.facts}
        record_run(workdir, config, mesh, facts, first, before=progress.get("facts", {}))
        if jax.process_index() == 0:
            task.tokenizer.save(workdir / "tokenizer")
        line = stack.enter_context(ProgressLine(
            task.pace.steps, task.units_per_step, task.flops_per_step, peak_flops(list(mesh.devices.flat)),
            PlainConsole(highlight=False, quiet=jax.process_index() != 0), task.unit,
            at_most=task.pace.patience > 0))
        line.say(_banner(task, program, workdir, first))
        if mesh.devices.flat[0].platform == "cpu" and (hint := large_pages.hint(os.environ)):
            line.say(hint)
        log = None
        if jax.process_index() == 0:
            log = MetricsLog(workdir, config, first, progress.get("log"))
            stack.enter_context(files.closing(log.close))
        recorded = Profile(workdir, profile if jax.process_index() == 0 else 0, first + 1)
        stack.enter_context(files.closing(recorded.close))
        stack.enter_context(unwinding())
        try:
            recorder = Recorder(task.pace, log, line)
            result = _run(task, program, state, batches, stopping, checkpoints, recorder, recorded, facts)
        except TrainingError as error:
            with contextlib.suppress(CheckpointError):
                checkpoints.wait()
            raise TrainingError(f"{error}; {checkpoints.last_good()}; a lower learning rate may help") from error
        line.say(_ending(result, task, stopping, workdir))
        return result


def steps_of(config: RunConfig, facts: Mapping[str, Any]) -> int | None:
    """Updates of a run at most; of a classifier known from the facts that are recorded with its run, else None."""
    if isinstance(config, Config):
        return config.train.steps
    texts = facts.get("texts", {}).get("train")
    return None if texts is None else config.train.epochs * -(-texts // config.train.batch_size)


def is_finished(workdir: str | Path, config: RunConfig) -> bool:
    """Whether the newest checkpoint of a working directory is the last that the run makes.

    Looks at the record that the checkpoint holds, neither at the data nor at the arrays.
    """
    stored = stored_progress(workdir)
    if stored is None:
        return False
    step, progress = stored
    stopping = EarlyStopping(0 if isinstance(config, Config) else config.train.patience)
    stopping.set_state(progress.get("early_stopping", {}))
    return stopping.over or step == steps_of(config, progress.get("facts", {}))


def open_task(config: RunConfig, mesh: Mesh) -> Task:
    """A run with its data at hand.

    Raises:
      DataError: a data file is missing or damaged.
      ConfigError: the data does not fit the model.
    """
    return language_task(config, mesh) if isinstance(config, Config) else classification_task(config)


def make_program(config: RunConfig, mesh: Mesh, steps: int) -> Program:
    """Functions that train the model of a configuration, a classifier's vocabulary size resolved, on a mesh.

    Runs that differ only in their seed, their data or how often they are logged, evaluated and saved share one program,
    and so what is compiled.

    Raises:
      ConfigError: the batch does not split over the mesh, or a parameter has no partition rule.
    """
    check_shares(config, mesh)
    train = config.train
    unused = {field.name: field.default for field in dataclasses.fields(train)
              if "incidental" in field.metadata and field.name != "accumulation_steps"}
    train = dataclasses.replace(train, seed=0, **unused)
    return _program(dataclasses.replace(config, data=type(config.data)(), train=train), mesh, steps)


@functools.lru_cache(maxsize=2)
def _program(config: RunConfig, mesh: Mesh, steps: int) -> Program:
    is_language = isinstance(config, Config)
    learner = language_learner(config, mesh) if is_language else classification_learner(config, mesh)
    optimizer, schedule = make_optimizer(config.optimizer, steps), learning_rate_schedule(config.optimizer, steps)
    return compile_program(learner, optimizer, schedule, mesh, nonzero_schedule(config.optimizer, steps))


def check_shares(config: RunConfig, mesh: Mesh) -> None:
    """Raises ConfigError where a batch's rows, or those of its parts, do not split over the mesh."""
    if isinstance(config, Config):
        rows = config.train.batch_size // accumulation_steps(config, mesh)
        check_batch(mesh, rows, "train.batch_size over train.accumulation_steps")
    else:
        check_batch(mesh, config.train.batch_size)


def _check_profile(steps: int, done: int, of: int) -> None:
    left = of - done
    require(steps <= max(0, left - SKIPPED), f"--profile {steps} begins after {SKIPPED} steps, and {left} are left of "
            f"{of}; profile {max(0, left - SKIPPED)} at most")


def check_memory(program: Program, config: RunConfig) -> None:
    """Raises ConfigError where a device cannot hold the state and its gradient, or the host not a batch."""
    state = program.abstract
    arrays = jax.tree.leaves((state.params, state.params, state.opt_state))
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
    require_room(needed, f"{program.n_parameters:,} parameters, their gradient and the optimizer's state",
                 "choose a smaller model (d_model, d_mlp, n_layers, vocab_size, context_length), or share it out by "
                 "mesh.fsdp", program.mesh.local_devices)
    rows, length = config.train.batch_size, (
        config.train.sequence_length if isinstance(config, Config) else config.model.max_length)
    batch, host = 12 * rows * length, host_memory()  # three arrays of four bytes: tokens, targets or labels, mask
    require(batch <= host, f"train.batch_size={rows} with {length} tokens a row needs {batch / 1e9:,.1f} GB, this "
            f"machine has {host / 1e9:,.1f} GB; choose a smaller one")


def _run(task: Task, program: Program, state: TrainState, batches: TrainBatches, stopping: EarlyStopping,
         checkpoints: Checkpoints, recorder: Recorder, profile: Profile, facts: Mapping[str, Any]) -> TrainResult:
    """The steps that are left; ``facts`` are what `record_run` recorded."""
    pace = task.pace
    metrics: dict[str, float] = {}
    valid: dict[str, float] = {}
    running: tuple[int, Mapping[str, jax.Array]] | None = None
    with Interruption() as interruption:
        for step in range(int(state.step) + 1, pace.steps + 1):
            if stopping.over:
                break
            with profile.step(step):
                state, values = program.step(state, _to_devices(next(batches), program))  # returns at once
            if running is not None:
                metrics = recorder.train(*running)  # the step before, while the devices are at this one
                profile.done(running[0])
            else:
                recorder.restart_clock()  # compilation does not count
            running = step, values
            checkpoints.check()

            last, stop = step == pace.steps, interruption.requested(step)
            evaluating = last or step % pace.eval_every == 0
            saving = last or stop or step % pace.checkpoint_every == 0
            if not (evaluating or saving):
                continue
            metrics, running = recorder.train(step, values), None
            profile.done(step)
            loss = None
            if evaluating:
                valid = evaluate(task, program, state.params)
                recorder.valid(step, valid)
                loss = task.valid_loss(valid)
                stopping.update(loss)
            if saving:
                if not bool(program.finite(state)):
                    raise TrainingError(f"step {step} made parameters or optimizer state that are not finite")
                progress = {"data": batches.get_state(), "config": to_dict(task.config), "facts": facts,
                            "early_stopping": stopping.get_state(), "log": recorder.get_state()}
                checkpoints.save(program.unpacked(state), progress, loss)
            if stop:
                break
    checkpoints.wait()
    step = int(state.step)
    reason = "finished" if step == pace.steps or stopping.over else "interrupted"
    return TrainResult(step=step, reason=reason, signalled=interruption.name is not None, metrics=metrics, valid=valid)


def evaluate(task: Task, program: Program, params: Params) -> dict[str, float]:
    """Means over the validation batches of a periodic evaluation, each target (or text) counted alike.

    ``live_attention`` and ``live_neurons`` are means over the batches of the fraction that is live within one.
    """
    parts = jax.device_get([program.evaluate(params, _to_devices(batch, program)) for batch in task.valid_batches()])
    weights = np.array([float(part["count"]) for part in parts])
    names = [name for name in parts[0] if name != "count"]
    return {name: float(np.average([float(p[name]) for p in parts], weights=weights)) for name in names}


def _check_processes(mesh: Mesh) -> None:
    """Each process reads its own rows, so no part of the batch may lie on devices of two processes."""
    if jax.process_count() == 1:
        return
    owners = np.vectorize(lambda d: d.process_index)(mesh.devices).reshape(-1, mesh.shape["tensor"])
    rows = owners[:, 0]
    require((owners == rows[:, None]).all() and (np.diff(rows) >= 0).all(),
            f"mesh.tensor={mesh.shape['tensor']} must divide the {jax.local_device_count()} devices of a "
            f"process, so that each process has whole parts of the batch ({' and '.join(BATCH_AXES)})")


def _to_devices(batch: Batch, program: Program) -> dict[str, jax.Array]:
    """This process's rows -> global arrays."""
    sharding = batch_sharding(program.mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _banner(task: Task, program: Program, workdir: Path, step: int) -> str:
    mesh = " ".join(f"{name}={size}" for name, size in program.mesh.shape.items())
    begin = f"continues from step {step} of" if step else "begins"
    return (
        f"{workdir}: {program.n_parameters:,} parameters, {task.about}; "
        f"{device_names(list(program.mesh.devices.flat))}, mesh {mesh}; {begin} {task.pace.steps} steps"
    )


def _ending(result: TrainResult, task: Task, stopping: EarlyStopping, workdir: Path) -> str:
    if result.reason == "interrupted":
        return f"interrupted: saved step {result.step} of {task.pace.steps}; the same command continues"
    if stopping.over and result.step < task.pace.steps:
        return f"finished early: {result.step} steps in {workdir}, none better in the last {stopping.since} evaluations"
    return f"finished: {result.step} steps in {workdir}"
