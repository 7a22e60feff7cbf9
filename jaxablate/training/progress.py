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
_LINE_FRACTION, _LINE_SECONDS, _SILENT_SECONDS = 0.01, 30.0, 600.0


class Seldom:
    """Which steps get a line where lines stay, as in the log of a job: the first and the last, and in between after
    each hundredth of the run, but not twice in half a minute, nor never for ten.

    Args:
      steps: updates of the run; None where they are not known.
    """

    def __init__(self, steps: int | None):
        self._steps = steps
        self._last: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Whether this step gets a line; if so it counts as written."""
        now = time.monotonic()
        if self._last is not None:
            since, seconds = step - self._last[0], now - self._last[1]
            often = seconds < _LINE_SECONDS or (self._steps is not None and since < _LINE_FRACTION * self._steps)
            if since <= 0 or (often and seconds < _SILENT_SECONDS and step != self._steps):
                return False
        self._last = step, now
        return True


class ProgressLine:
    """Shows step, losses, speed, fraction of peak and time left.

    On a terminal the picture is two lines, which go when the run ends. Elsewhere a line is printed now and then
    (`Seldom`).

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
        self._seldom = Seldom(steps)
        self._live = Live(picture(steps, 0, "compiling"), console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "ProgressLine":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(text, soft_wrap=not self._console.is_terminal)

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
            pace.append(f"{duration((self._steps - step) / rate)} {self._left}")
        shown = [name for name in _TRAIN if name in values]
        losses = [f"loss {values['loss']:.4f}"]
        if shown != ["loss_clean"]:  # else the loss is the clean one
            losses += [f"{_TRAIN[name]} {values[name]:.4f}" for name in shown]
        where = f"step {step}/{self._steps}"
        if self._console.is_terminal:
            losses = filter(None, [*losses, self._valid])
            self._live.update(picture(self._steps, step, "  ".join([where, *pace]), "  ".join(losses)))
        elif self._seldom.due(step):
            self.say("  ".join([where, *losses, *pace]))
        return speed


def picture(steps: int, step: int, beside: str, below: str = "") -> Group:
    """A bar with a text beside it and one below, both folded at the terminal's width."""
    # The console's soft_wrap would cut them.
    beside_text, below_text = (Text(text, no_wrap=False, overflow="fold") for text in (beside, below))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=steps, completed=step, width=20), beside_text)
    return Group(bar, below_text) if below else Group(bar)


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(3723), duration(123.4)
    ('1:02:03', '2:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
