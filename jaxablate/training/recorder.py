"""What the host does with the metrics of a step that is done."""

from collections.abc import Mapping

import jax

from jaxablate.errors import TrainingError
from jaxablate.training.metrics import MetricsLog, nonfinite
from jaxablate.training.progress import ProgressLine, Throughput
from jaxablate.training.task import Pace


class Recorder:
    """Brings metrics to the host, refuses what is not finite, and shows and writes what is due.

    Args:
      pace: how often to log; steps that end with an evaluation are logged besides, the last one of an early stop too.
      log: files; None in all processes but the first.
      line: screen.
    """

    def __init__(self, pace: Pace, log: MetricsLog | None, line: ProgressLine):
        self._pace = pace
        self._log = log
        self._line = line
        self._clock = Throughput()

    def restart_clock(self) -> None:
        """Begins a new interval for the tokens per second: whatever came before was not training alone."""
        self._clock.restart()

    def train(self, step: int, values: Mapping[str, jax.Array]) -> dict[str, float]:
        """Waits for a training step.

        Args:
          step: its number, from 1.
          values: its metrics, still on the devices.

        Returns:
          The metrics as numbers.

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
        self._line.validated(values)
