"""What `eval.py sae` shows: a line while it trains, a table of what is stored."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from jaxablate.reports.results import SuiteRecord
from jaxablate.suites.autoencoders_panels import CONTROLS, Estimate

SECONDS_BETWEEN_LINES = 10.0
"""Where the console is no terminal."""


class Line(Protocol):
    """Shows how far a training is."""

    def __call__(self, step: int, figures: Mapping[str, np.ndarray], rate: float | None) -> None:
        """Takes one round: the steps made, figures [autoencoders] by name, and steps a second where they are known."""


@contextlib.contextmanager
def training_line(console: Console, steps: int) -> Iterator[Line]:
    """A live line with step, figures, speed and the time left; plain lines where the console is no terminal.

    Args:
      console: where to draw.
      steps: of the whole training.
    """
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, last = progress.add_task("compiling", total=steps), -SECONDS_BETWEEN_LINES

        def show(step: int, figures: Mapping[str, np.ndarray], rate: float | None) -> None:
            nonlocal last
            text = line(step, steps, figures, rate)
            progress.update(task, completed=step, description=text)
            now = time.monotonic()
            if not console.is_terminal and (now - last >= SECONDS_BETWEEN_LINES or step == steps):
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                last = now

        yield show


def line(step: int, steps: int, figures: Mapping[str, np.ndarray], rate: float | None) -> str:
    """One line; of several autoencoders the least and the greatest figure.

    >>> figures = {"loss": np.array([30.0, 8.0]), "l0": np.array([3.2, 31.0]),
    ...            "explained_variance": np.array([0.5, 0.75]), "dead": np.array([4, 0])}
    >>> line(64, 4000, figures, 8.0)
    'step 64/4000  loss 8..30  L0 3.2..31  explained variance 0.5..0.75  dead 0..4  8.0 steps/s  8:12 left'
    """
    names = {"loss": "loss", "l0": "L0", "explained_variance": "explained variance", "dead": "dead"}
    parts = [f"step {step}/{steps}", *(f"{label} {_range(figures[name])}" for name, label in names.items())]
    if rate is not None:
        parts += [f"{rate:.1f} steps/s", f"{_duration((steps - step) / rate)} left"]
    return "  ".join(parts)


def _range(values: np.ndarray) -> str:
    low, high = (f"{value:.3g}" for value in (np.min(values), np.max(values)))
    return low if low == high else f"{low}..{high}"


def _duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def stored_table(record: SuiteRecord, title: str) -> Table:
    """The stored autoencoders with their main figures, for the terminal.

    Args:
      record: of the suite ``sae``, just measured or read from ``results.json``.
      title: over it.
    """
    names = {"L0": "l0", "CE score": "ce_score_zero", "explained variance": "explained_variance"}
    table = Table(title=title, title_justify="left", caption="± half of the 95 % interval", caption_justify="left")
    for name in ("site", "kind", "trained on", "seed"):
        table.add_column(name)
    for name in (*names, "dead"):
        table.add_column(name, justify="right")
    for row in record.details["autoencoders"]:
        figures = [Estimate(**row["measures"][name]).text() for name in names.values()]
        seed = "-" if row["seed"] is None else str(row["seed"])
        table.add_row(row["site"], row["kind"], CONTROLS[row["control"]], seed, *figures,
                      f"{row['dead']:,} of {row['latents']:,}")
    return table
