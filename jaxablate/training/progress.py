"""One line that tells how training goes: a live one on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Throughput:
    """Steps per second of training alone: evaluation, saving and the first compilation stop the clock. Where batches
    come in several lengths, the first one of each is compiled within an interval, which is then slow."""

    def __init__(self):
        self._began: float | None = None
        self._steps = 0

    def restart(self) -> None:
        """Begins a new interval; nothing before it counts."""
        self._began = time.perf_counter()
        self._steps = 0

    def count(self) -> None:
        """One more step is done."""
        self._steps += 1

    def rate(self) -> float | None:
        """Steps per second since `restart`, or None before the first step."""
        if self._began is None or self._steps == 0:
            return None
        return self._steps / (time.perf_counter() - self._began)


# Metrics that are shown, and their short names.
_TRAIN = {"loss_clean": "clean", "loss_ablated": "ablated", "cross_entropy": "ce", "accuracy": "accuracy",
          "importance": "importance", "interaction": "interaction"}
_VALID = {"loss_clean": "clean", "accuracy": "accuracy"}


class ProgressLine:
    """Shows step, losses, speed, fraction of peak and time left.

    Args:
      steps: of the whole run.
      units_per_step: over all devices.
      flops_per_step: arithmetic of one step, for the fraction of peak; None where it varies.
      peak: operations per second of all devices, or None where unknown.
      console: where to draw.
      unit: what speed is counted in.
      at_most: whether the run may end before its last step.
    """

    def __init__(
        self,
        steps: int,
        units_per_step: int,
        flops_per_step: float | None,
        peak: float | None,
        console: Console,
        unit: str = "tokens",
        at_most: bool = False,
    ):
        self._console = console
        self._steps = steps
        self._units_per_step = units_per_step
        self._unit = unit
        self._left = "left at most" if at_most else "left"
        self._flops_per_step = flops_per_step
        self._peak = peak
        self._valid = ""
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        self._live = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._live.add_task("compiling", total=steps)

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False)

    def validated(self, values: Mapping[str, float]) -> None:
        """Takes note of an evaluation, which the lines that follow end with."""
        shown = [(name, short) for name, short in _VALID.items() if name in values]
        self._valid = "  ".join(f"valid {short} {values[name]:.4f}" for name, short in shown)

    def update(self, step: int, values: Mapping[str, float], rate: float | None) -> dict[str, float]:
        """Shows a step's metrics.

        Args:
          step: updates made.
          values: its metrics.
          rate: steps per second, or None where unknown.

        Returns:
          ``tokens_per_second`` (or another unit) and, where the peak is known, ``peak_fraction``; empty without a rate.
        """
        speed = {}
        if rate is not None:
            speed[f"{self._unit}_per_second"] = rate * self._units_per_step
            if self._peak is not None and self._flops_per_step is not None:
                speed["peak_fraction"] = rate * self._flops_per_step / self._peak
        text = self._text(step, values, speed, rate)
        self._live.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            self.say(text)
        return speed

    def _text(
        self, step: int, values: Mapping[str, float], speed: Mapping[str, float], rate: float | None
    ) -> str:
        parts = [f"step {step}/{self._steps}", f"loss {values['loss']:.4f}"]
        shown = [name for name in _TRAIN if name in values]
        if shown != ["loss_clean"]:  # else the loss is the clean one
            parts += [f"{_TRAIN[name]} {values[name]:.4f}" for name in shown]
        if self._valid:
            parts.append(self._valid)
        if rate is not None:
            parts.append(f"{speed[f'{self._unit}_per_second']:,.0f} {self._unit}/s")
        if "peak_fraction" in speed:
            parts.append(f"{speed['peak_fraction']:.1%} of peak")
        if rate is not None:
            parts.append(f"{_duration((self._steps - step) / rate)} {self._left}")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
