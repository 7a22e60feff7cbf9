"""``jaxablate quickstart``: a small gated model and its baseline, trained, scored and compared in a few minutes."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from jaxablate.commands import base
from jaxablate.commands.sweep import CellTask, assignments, do, do_all, failure
from jaxablate.commands.train import load_config
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.reports import results
from jaxablate.reports.compare import ScoredRun, compare, select
from jaxablate.reports.differences import terminal_view
from jaxablate.reports.explorer import write_explorer
from jaxablate.reports.tables import first_passages
from jaxablate.runs.workdir import check_workdir
from jaxablate.sweep import Sweep

SUITES = ("perplexity", "ioi", "gates", "weights", "samples", "units", "texts")
"""What is measured: the suites that take seconds, and what the explorer shows of texts and units."""
FIGURES = ("perplexity clean", "perplexity ablated", "ioi/", "gates/live", "mean |w|")
"""What the comparison shows of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(base.Settings):
    """Train a small gated model and its baseline on the embedded stories, score both and compare them.

    A run that was stopped goes on. Where a whole one is there already, another name is taken, or asked for."""

    workdir: Path = Path("runs/quickstart")
    """Where the gated model goes; its baseline goes beside it, into a folder with -baseline after the name."""
    jobs: int = 2
    """Models at once: 2, or 1 where memory is short."""
    set: tuple[str, ...] = ()
    """Change settings of both: --set train.steps=1000."""
    only: Literal["gated", "baseline"] | None = None
    """One of the two alone, in this process."""

    def __post_init__(self):
        super().__post_init__()
        if self.jobs not in (1, 2):
            raise ConfigError(f"jobs={self.jobs} must be 1 or 2, the number of models")
        if self.workdir.name in ("", ".."):
            raise ConfigError(f"--workdir {str(self.workdir)!r} must end in a name of its own, beside which the "
                              "baseline goes; give for example runs/quickstart")

    @property
    def compiles(self) -> bool:
        return self.only is not None

    def run(self, console: Console) -> None:
        """Trains and scores both, prints the comparison, samples of both and where the explorer is."""
        if self.only is not None:
            (task,) = (task for task in self.tasks(self.workdir) if task.cell.name == self.only)
            do(task, partial(base.say, console))
            return
        workdir = self._free(console)
        tasks = self.tasks(workdir)
        line = ["quickstart", "--workdir", str(workdir), *(["--set", *self.set] if self.set else [])]
        with base.terminable("stopped; the same command goes on"):
            failed = do_all(tasks, self.jobs, lambda task: [*line, "--only", task.cell.name], console)
        if failed:
            raise failure(failed, len(tasks))
        _conclude([task.workdir for task in tasks], workdir.with_name(f"{workdir.name}.html"), console)

    def tasks(self, workdir: Path) -> tuple[CellTask, ...]:
        """Both models."""
        sweep = Sweep(config="quickstart", settings=assignments(self.set),
                      grid={"model": {"gated": {}, "baseline": {"model.ablation": "none"}}})
        folders = {"gated": workdir, "baseline": workdir.with_name(f"{workdir.name}-baseline")}
        base_config = load_config("quickstart")
        cells = (dataclasses.replace(cell, name=cell.labels["model"]) for cell in sweep.cells(base_config))
        return tuple(CellTask(cell, folders[cell.name], SUITES) for cell in cells)

    def _free(self, console: Console) -> Path:
        """The folder to work in: the one that was named, or where it is somebody's already, another.

        Raises:
          ConfigError: it is taken, and whoever was asked wants no other.
          FileError: it cannot be written.
        """
        reason = self._taken(self.workdir)
        if reason is None:
            return self.workdir
        names = (self.workdir.with_name(f"{self.workdir.name}-{i}") for i in range(2, 1000))
        other = next((path for path in names if self._taken(path) is None), None)
        if other is None:
            raise ConfigError(f"{reason}, and so are all up to {self.workdir}-999; name another folder: jaxablate "
                              "quickstart --workdir DIR")
        if sys.stdin.isatty() and console.is_terminal:
            console.print(f"{reason}. Nothing in it is changed. Go on in {other}? [Y/n] ", end="", highlight=False)
            if not _agreed():
                raise ConfigError(f"{reason}; name another folder: jaxablate quickstart --workdir DIR")
        else:
            base.say(console, f"{reason} and stays as it is; this one goes to {other}")
        return other

    def _taken(self, workdir: Path) -> str | None:
        """Why the folder and its baseline's are not to be used; None where they are free, or not done yet.

        Raises:
          FileError: one cannot be written.
        """
        tasks = self.tasks(workdir)
        for task in tasks:
            try:
                check_workdir(task.workdir, task.cell.config)
            except CheckpointError:
                return f"{task.workdir} holds another run"
        return f"{workdir} is there already" if all(task.state()[0] for task in tasks) else None


parse = partial(base.parse, QuickstartSettings)


def _agreed() -> bool:
    try:
        return input().strip().lower() in ("", "y", "yes")
    except EOFError:
        return False


def _conclude(workdirs: Sequence[Path], path: Path, console: Console) -> None:
    runs = [ScoredRun(name=str(workdir), results=results.read(workdir)) for workdir in workdirs]
    comparison = compare(select(runs, figures=FIGURES))
    console.print(terminal_view(comparison, console.width, len(comparison.rows) - 1))  # from the baseline
    for run in runs:
        console.print(f"\n{run.name}", style="bold", highlight=False, soft_wrap=True)
        for passage in first_passages(run.results):
            console.print(passage)
    write_explorer(workdirs, path)
    console.print(f"\nOpen {path} in a browser to look at both.", highlight=False, soft_wrap=True)
    base.say(console, f"jaxablate score {workdirs[0]} --missing measures the rest: circuits, neurons, leakage.")
