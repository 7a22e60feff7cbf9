"""A run's numbers: taken off the devices, refused where not finite, shown, and kept as JSON lines and elsewhere."""

import contextlib
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from jaxablate import files
from jaxablate.config import RunConfig, to_dict
from jaxablate.errors import ConfigError, FileError, TrainingError
from jaxablate.runs.workdir import METRICS, OTHERWISE
from jaxablate.training.progress import ProgressLine
from jaxablate.training.task import Pace
from jaxablate.training.throughput import Throughput

Split = Literal["train", "valid"]


class Recorder:
    """Brings metrics to the host, refuses what is not finite, and shows and writes what is due.

    Steps that end with an evaluation are logged besides those of the pace, the last one of an early stop too. All
    processes but the first have no log.
    """

    def __init__(self, pace: Pace, log: "MetricsLog | None", line: ProgressLine):
        self._pace, self._log, self._line = pace, log, line
        self._clock = Throughput()

    def restart_clock(self) -> None:
        """Begins a new interval for the steps per second: what came before was not training alone."""
        self._clock.restart()

    def get_state(self) -> dict[str, int]:
        """What a continued run knows its log by (`files.JsonLines`); empty for all processes but the first."""
        return {} if self._log is None else self._log.lines.get_state()

    def train(self, step: int, values: Mapping[str, jax.Array]) -> dict[str, float]:
        """Waits for the metrics of a training step, counted from 1, and returns them as numbers.

        Raises:
          TrainingError: one of them is not finite.
        """
        numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        if wrong := nonfinite(numbers):
            raise TrainingError(f"step {step} gave {wrong}")
        self._clock.count()
        pace = self._pace
        if step in (1, pace.steps) or step % pace.log_every == 0 or step % pace.eval_every == 0:
            speed = self._line.update(step, numbers, self._clock.rate())
            if self._log is not None:
                self._log.write(step, "train", numbers | speed)
            self._clock.restart()
        return numbers

    def valid(self, step: int, values: Mapping[str, float]) -> None:
        """Takes an evaluation.

        Raises:
          TrainingError: it is not finite.
        """
        if wrong := nonfinite(values):
            raise TrainingError(f"validation at step {step} gave {wrong}")
        if self._log is not None:
            self._log.write(step, "valid", values)
        self._line.validated(step, values)


class MetricsLog:
    """Writes one line per measurement to ``metrics.jsonl``, and the same to TensorBoard and W&B where asked for.

    Lines of steps later than ``step``, that of the state that training starts from, were left by a killed run and are
    dropped: they will come again. Where ``state`` is known, what `Recorder.get_state` said at that step, a warning says
    what has been lost since (`files.JsonLines`).

    Raises:
      FileError: a file cannot be written.
      ConfigError: W&B is asked for but not installed, or does not start.
    """

    def __init__(self, workdir: Path, config: RunConfig, step: int, state: Mapping[str, int] | None = None):
        self._wandb = _wandb(workdir, config) if config.train.wandb_project is not None else None
        self.lines = files.JsonLines(workdir / METRICS, upto=step, state=state, otherwise=OTHERWISE)
        with contextlib.ExitStack() as failed:
            failed.callback(self.lines.close)
            self._events = _EventFile(workdir / "tensorboard", step + 1) if config.train.tensorboard else None
            failed.pop_all()

    def write(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Adds a measurement after ``step`` updates (a training loss counts the one it led to): finite numbers by name.

        Raises:
          FileError: the disk is full or the file is gone.
        """
        self.lines.add({"step": step, "split": split, **values})
        named = {f"{split}/{name}": value for name, value in values.items()}
        if self._events is not None:
            self._events.add(step, named)
        if self._wandb is not None:
            self._wandb.log(named, step=step)

    def close(self) -> None:
        """Ends all writers.

        Raises:
          FileError: a file system refuses what was written.
        """
        with contextlib.ExitStack() as stack:
            if self._wandb is not None:
                stack.callback(self._wandb.finish)
            if self._events is not None:
                stack.callback(self._events.close)
            self.lines.close()


class _EventFile:
    """A file of scalars for TensorBoard, which forgets what older files say of the steps from ``first`` on.

    Records are written by the thread that trains: tensorboardX's own writer has a thread and a queue, and when a full
    disk ends that thread, whoever fills the queue waits for ever.
    """

    _FLUSH_SECONDS = 120.0

    def __init__(self, folder: Path, first: int):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        # Type checkers do not see the classes that protobuf makes when these are imported.
        self._event_pb2: Any = event_pb2
        self._summary_pb2: Any = summary_pb2

        # Absolute, since tensorboardX takes what begins with s3: for a place in the network.
        self._path = folder.absolute() / (f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}."
                                          f"{os.getpid()}.{first}")
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self._path))
            self._next_flush = time.monotonic()
            try:
                self._write(file_version="brain.Event:2")
                start = self._event_pb2.SessionLog.START
                self._write(step=first, session_log=self._event_pb2.SessionLog(status=start))
            except OSError:
                with contextlib.suppress(OSError):
                    self._records.close()
                raise

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars by tag.

        Raises:
          FileError: the disk is full or the file is gone.
        """
        from tensorboardX.summary import scalar

        scalars = [scalar(tag, value).value[0] for tag, value in values.items()]
        with self._told():
            self._write(step=step, summary=self._summary_pb2.Summary(value=scalars))

    def close(self) -> None:
        """Writes what is left.

        Raises:
          FileError: the disk is full or the file is gone.
        """
        with self._told(), files.closing(self._records.close):
            self._records.flush()

    def _write(self, **what: Any) -> None:
        event = self._event_pb2.Event(wall_time=time.time(), **what)
        self._records.write(event.SerializeToString())
        if time.monotonic() >= self._next_flush:
            self._records.flush()
            self._next_flush = time.monotonic() + self._FLUSH_SECONDS

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.write_error(self._path, error, f"{OTHERWISE}, or train without TensorBoard") from error


def read_metrics(workdir: str | Path, split: Split | None = None) -> list[dict[str, Any]]:
    """Measurements of a run in the order taken, all or those of one split; damaged lines are passed over.

    Raises:
      FileError: the log cannot be read.
    """
    return [line for line in files.read_jsonl(Path(workdir) / METRICS) if split is None or line.get("split") == split]


def nonfinite(values: Mapping[str, float]) -> str:
    """Names and values of what is not finite, for a message; empty where all is well."""
    return ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))


def _wandb(workdir: Path, config: RunConfig) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise ConfigError("train.wandb_project needs wandb; pip install 'jaxablate[wandb]', or leave it out") from error
    identity = workdir / "wandb_id"  # by which a continued run finds its own page again
    if not identity.exists():
        files.write(identity, secrets.token_hex(8), otherwise=OTHERWISE)
    page = identity.read_text(errors="replace")
    if not re.fullmatch("[0-9a-f]{16}", page):
        raise FileError(f"{identity} holds no id of a Weights & Biases page; restore it, or delete it to begin another")
    try:
        return wandb.init(
            project=config.train.wandb_project,
            id=page,
            resume="allow",
            dir=str(workdir),
            name=workdir.name,
            config=to_dict(config),
        )
    except Exception as error:  # what it raises is its own, and changes
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"Weights & Biases did not start ({reason}); mend that, or leave train.wandb_project out"
                          ) from error
