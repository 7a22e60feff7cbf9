"""A run's numbers: taken off the devices, refused where not finite, shown, and kept as JSON lines and elsewhere."""

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from jaxablate import files
from jaxablate.config import RunConfig, to_dict
from jaxablate.errors import ConfigError, TrainingError
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
    dropped: they will come again.

    Raises:
      FileError: the file cannot be written.
      ConfigError: W&B is asked for but not installed.
    """

    def __init__(self, workdir: Path, config: RunConfig, step: int):
        self._wandb = _wandb(workdir, config) if config.train.wandb_project is not None else None
        self._lines = files.JsonLines(workdir / METRICS, keep=lambda line: line["step"] <= step, otherwise=OTHERWISE)
        self._tensorboard = None
        if config.train.tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Adds a measurement after ``step`` updates (a training loss counts the one it led to): finite numbers by name.

        Raises:
          FileError: the disk is full or the file is gone.
        """
        self._lines.add({"step": step, "split": split, **values})
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends all writers."""
        self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | Path, split: Split | None = None) -> list[dict[str, Any]]:
    """Measurements of a run in the order taken, all or those of one split."""
    return [line for line in files.read_jsonl(Path(workdir) / METRICS) if split is None or line["split"] == split]


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
    return wandb.init(
        project=config.train.wandb_project,
        id=identity.read_text(),
        resume="allow",
        dir=str(workdir),
        name=workdir.name,
        config=to_dict(config),
    )
