"""``jaxablate compare``: one table over scored runs."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.commands import base
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.reports import results
from jaxablate.reports.compare import Comparison, ScoredRun, compare, file_path, select, write
from jaxablate.reports.differences import FEW, table, terminal_view
from jaxablate.reports.explorer import write_explorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(base.Settings):
    """One table over scored runs; seeds of one configuration become a mean and a 95 % interval."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Working directories that `score` has measured."""
    suites: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SUITE")] = ()
    """Only figures of these suites."""
    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIGURE")] = ()
    """Only figures whose name (suite/figure) has one of these words in it, or matches a pattern: edges 'ioi/acc*'."""
    against: Path | None = None
    """One of the runs, whose configuration the others are compared with: differences with intervals, and paired tests
    over seeds. The first one by default, of two or three configurations; of more, none."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """A file (table.tex, .md, .csv, or .html, an explorer of the runs), or folder or common prefix of all four."""
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
        comparison = compare(select(runs, self.suites, self.rows))
        reference = self._reference(comparison)
        console.print(terminal_view(comparison, console.width, reference))
        if self.out:
            more = table(comparison, reference or 0) if reference is not None or len(comparison.rows) <= FEW else None
            paths = write(comparison, self.out, more=more, figures=self.figures)
            page = file_path(self.out, ".html")
            if page is not None:
                paths.append(write_explorer([run.name for run in runs], page))
            base.say_paths(console, paths)

    def _reference(self, comparison: Comparison) -> int | None:
        """Place of the row that ``--against`` names."""
        if self.against is None:
            return None
        for i, row in enumerate(comparison.rows):
            if any(Path(name) == self.against for name in row.runs):
                return i
        raise ConfigError(f"--against {self.against} is none of the runs that are compared; name one of them")


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
