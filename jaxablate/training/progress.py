"""How training goes, on the screen: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# Metrics that are shown, and their short names.
_TRAIN = {"loss_clean": "clean", "loss_ablated": "ablated", "cross_entropy": "ce", "accuracy": "accuracy",
          "importance": "importance", "interaction": "interaction"}
_VALID = {"loss_clean": "clean", "accuracy": "accuracy"}
_PLAIN_EVERY_S = 60
_PLAIN_FRACTION = 0.01


class ProgressLine:
    """Shows step, losses, speed, fraction of peak and time left.

    On a terminal the picture is two lines, which go when the run ends. Elsewhere a line is printed at the first and the
    last step, and in between after each hundredth of the run, or each minute where that is shorter.

    Args:
      steps: updates of the run.
      units_per_step: tokens or texts of a step, over all devices.
      flops_per_step: floating-point operations of one step, for the fraction of peak; None where they vary.
      peak: operations per second of all devices, or None where it is not known.
      console: where to draw.
      unit: what speed is counted in.
      at_most: whether the run may end before its last step.
    """

    def __init__(self, steps: int, units_per_step: int, flops_per_step: float | None, peak: float | None,
                 console: Console, unit: str = "tokens", at_most: bool = False):
        self._console, self._steps = console, steps
        self._unit, self._units_per_step = unit, units_per_step
        self._flops_per_step, self._peak = flops_per_step, peak
        self._left = "left at most" if at_most else "left"
        self._valid = ""
        self._printed = (0, time.monotonic())
        self._live = Live(self._picture(0, "compiling", ""), console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "ProgressLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(text)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Shows an evaluation: on a terminal until the next one, with its step; elsewhere on a line of its own."""
        parts = [f"{short} {values[name]:.4f}" for name, short in _VALID.items() if name in values]
        if self._console.is_terminal:
            self._valid = f"valid {'  '.join(parts)} (step {step:,})"
        else:
            self.say(f"step {step}/{self._steps}  valid {'  '.join(parts)}")

    def update(self, step: int, values: Mapping[str, float], rate: float | None) -> dict[str, float]:
        """Shows a step's metrics, and the speed where the rate in steps per second is known.

        Returns:
          ``tokens_per_second`` (or another unit) and, where the peak is known, ``peak_fraction``; empty without a rate.
        """
        speed, pace = {}, []
        if rate is not None:
            speed[f"{self._unit}_per_second"] = rate * self._units_per_step
            pace.append(f"{rate * self._units_per_step:,.0f} {self._unit}/s")
            if self._peak is not None and self._flops_per_step is not None:
                speed["peak_fraction"] = rate * self._flops_per_step / self._peak
                pace.append(f"{speed['peak_fraction']:.1%} of peak")
            pace.append(f"{_duration((self._steps - step) / rate)} {self._left}")
        shown = [name for name in _TRAIN if name in values]
        losses = [f"loss {values['loss']:.4f}"]
        if shown != ["loss_clean"]:  # else the loss is the clean one
            losses += [f"{_TRAIN[name]} {values[name]:.4f}" for name in shown]
        where = f"step {step}/{self._steps}"
        if self._console.is_terminal:
            losses = filter(None, [*losses, self._valid])
            self._live.update(self._picture(step, "  ".join([where, *pace]), "  ".join(losses)))
        elif self._due(step):
            self.say("  ".join([where, *losses, *pace]))
        return speed

    def _due(self, step: int) -> bool:
        """Whether a plain line is printed at this step."""
        last, then = self._printed
        now = time.monotonic()
        due = (step in (1, self._steps) or step - last >= _PLAIN_FRACTION * self._steps
               or now - then >= _PLAIN_EVERY_S)
        if due:
            self._printed = step, now
        return due

    def _picture(self, step: int, pace: str, losses: str) -> Group:
        # Lines are folded at the terminal's width; the console's soft_wrap would cut them.
        head, below = (Text(text, no_wrap=False, overflow="fold") for text in (pace, losses))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=self._steps, completed=step, width=20), head)
        return Group(bar, below)


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
