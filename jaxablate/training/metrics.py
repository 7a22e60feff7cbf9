"""Where a run's numbers go: JSON lines, TensorBoard, Weights & Biases."""

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxablate.config import RunConfig, to_dict
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.runs.workdir import METRICS, unwritable

Split = Literal["train", "valid"]


class MetricsLog:
    """Writes one line per measurement to ``metrics.jsonl``, and the same to TensorBoard and W&B where asked for.

    Args:
      workdir: of the run.
      config: which of the writers are on.
      step: of the state that training starts from. Lines of later steps, which a killed run has left, are dropped:
        they will come again.

    Raises:
      CheckpointError: the file cannot be written.
      ConfigError: W&B is asked for but not installed.
    """

    def __init__(self, workdir: Path, config: RunConfig, step: int):
        self._path = workdir / METRICS
        try:
            self._wandb = _wandb(workdir, config) if config.train.wandb_project is not None else None
            _drop_after(self._path, step)
            self._tensorboard = _tensorboard(workdir, step) if config.train.tensorboard else None
            self._file = self._path.open("a")
        except OSError as error:
            raise CheckpointError(unwritable(self._path, error)) from error

    def write(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Adds one measurement.

        Args:
          step: updates made when it was taken (training loss: including the one it led to).
          split: of the data.
          values: finite numbers by name.

        Raises:
          CheckpointError: the disk is full or the file is gone.
        """
        try:
            self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for name, value in values.items():
                    self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        except OSError as error:
            raise CheckpointError(unwritable(self._path, error)) from error
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends all writers."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | Path, split: Split | None = None) -> list[dict[str, Any]]:
    """Measurements of a run in the order taken.

    Args:
      workdir: of the run.
      split: only those of one split; None gives all.
    """
    lines = _complete_lines(Path(workdir) / METRICS)
    return [line for line in lines if split is None or line["split"] == split]


def nonfinite(values: Mapping[str, float]) -> str:
    """Names and values of what is not finite, for a message; empty where all is well."""
    return ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that parse; a killed run may have left half of the last one."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _drop_after(path: Path, step: int) -> None:
    """Rewrites the file without the lines of later steps."""
    if not path.exists():
        return
    kept = [line for line in _complete_lines(path) if line["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)


def _tensorboard(workdir: Path, step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


def _wandb(workdir: Path, config: RunConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("train.wandb_project needs wandb; pip install 'jaxablate[wandb]', or leave it out") from error
    identity = workdir / "wandb_id"  # by which a continued run finds its own page again
    if not identity.exists():
        identity.write_text(secrets.token_hex(8))
    return wandb.init(
        project=config.train.wandb_project,
        id=identity.read_text(),
        resume="allow",
        dir=str(workdir),
        name=workdir.name,
        config=to_dict(config),
    )
