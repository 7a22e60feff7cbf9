"""One line that tells how training goes: a live one on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Throughput:
    """Steps per second of training alone: evaluation, saving and compilation stop the clock."""

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


class ProgressLine:
    """Shows step, losses, tokens per second, fraction of peak and time left.

    Args:
      steps: of the whole run.
      tokens_per_step: over all devices.
      flops_per_step: arithmetic of one step, for the fraction of peak.
      peak: operations per second of all devices, or None where unknown.
      console: where to draw.
    """

    def __init__(
        self,
        steps: int,
        tokens_per_step: int,
        flops_per_step: float,
        peak: float | None,
        console: Console,
    ):
        self._console = console
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_step
        self._peak = peak
        self._valid: float | None = None
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
        """Takes note of a validation loss."""
        self._valid = values["loss_clean"]

    def update(self, step: int, values: Mapping[str, float], rate: float | None) -> dict[str, float]:
        """Shows a step's metrics.

        Args:
          step: updates made.
          values: its metrics.
          rate: steps per second, or None where unknown.

        Returns:
          ``tokens_per_second`` and, where the peak is known, ``peak_fraction``; empty without a rate.
        """
        speed = {}
        if rate is not None:
            speed["tokens_per_second"] = rate * self._tokens_per_step
            if self._peak is not None:
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
        names = {"loss_clean": "clean", "loss_ablated": "ablated"}
        if "loss_ablated" in values:  # else the loss is the clean one
            parts += [f"{short} {values[name]:.4f}" for name, short in names.items()]
        if self._valid is not None:
            parts.append(f"valid clean {self._valid:.4f}")
        if "tokens_per_second" in speed:
            parts.append(f"{speed['tokens_per_second']:,.0f} tokens/s")
        if "peak_fraction" in speed:
            parts.append(f"{speed['peak_fraction']:.1%} of peak")
        if rate is not None:
            parts.append(f"{_duration((self._steps - step) / rate)} left")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
