"""``jaxablate compare``: one table over scored runs."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.commands import base
from jaxablate.errors import CheckpointError
from jaxablate.reports import results
from jaxablate.reports.compare import ScoredRun, compare, file_path, terminal_view, write
from jaxablate.reports.explorer import write_explorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(base.Settings):
    """One table over scored runs; seeds of one configuration become a mean and a 95 % interval."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Working directories that `score` has measured."""
    out: str | None = None
    """Folder, or common prefix, of the files .md, .csv, .tex and .html, an explorer of all the runs."""
    figures: bool = False
    """Also draw every figure as bars with intervals, PNG and SVG, into a folder ...-figures beside them."""
    allow_missing: bool = False
    """Leave out runs that are not scored yet instead of stopping."""

    def __post_init__(self):
        super().__post_init__()
        if self.out is not None:
            files.check_path(self.out, "out")

    @property
    def compiles(self) -> bool:
        return False

    def run(self, console: Console) -> None:
        """Joins the runs, prints the table and writes it."""
        runs = read_runs(self.runs, self.allow_missing, console)
        comparison = compare(runs)
        console.print(terminal_view(comparison, console.width))
        if self.out:
            paths = write(comparison, self.out, figures=self.figures)
            page = write_explorer([run.name for run in runs], file_path(self.out, ".html"))
            base.say_paths(console, (*paths, page))


parse = partial(base.parse, CompareSettings)


def read_runs(paths: tuple[Path, ...], allow_missing: bool, console: Console) -> list[ScoredRun]:
    """Results of each path that is a working directory; other files that a ``runs/*`` matches are passed over.

    Raises:
      CheckpointError: a path does not exist, a run is not scored, a file is corrupt, or nothing is left to compare.
    """
    runs, missing = [], []
    for path in dict.fromkeys(Path(p) for p in paths):
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give working directories of training runs")
        scored = (path / results.FILE_NAME).exists()
        if not scored and not (path / "config.json").exists():
            base.say(console, f"{path} is no working directory and is passed over")
        elif not scored:
            missing.append(path)
        else:
            runs.append(ScoredRun(name=str(path), results=results.read(path)))
    for path in missing if allow_missing else ():
        console.print(f"{path} is not scored and left out", style="yellow", highlight=False)
    if missing and not allow_missing:
        commands = "; ".join(f"jaxablate score --workdir {path}" for path in missing)
        raise CheckpointError(f"no {results.FILE_NAME} in {', '.join(map(str, missing))}; run: {commands}")
    if not runs:
        raise CheckpointError("no scored run to compare; score one first: jaxablate score --workdir DIR")
    return runs
