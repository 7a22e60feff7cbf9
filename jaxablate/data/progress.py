"""What is shown while data is downloaded and prepared, and that one process at a time does so."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxablate import files
from jaxablate.terminal import PlainConsole, text_column

Report = Callable[[str, int, int], None]
"""Progress: ``report(what, done, total)``, in bytes or stories; total 0 where it is unknown."""

OTHERWISE = "set another cache_dir"
"""What a user may do who cannot write the folder of the data, for messages."""


def silent(what: str, done: int, total: int) -> None:
    """The `Report` that shows nothing."""


@contextlib.contextmanager
def progress_report(console: Console | None = None) -> Iterator[Report]:
    """A `Report` that draws one bar for each thing reported, gone when the block ends.

    It draws on standard error unless told otherwise, and nothing where that is no terminal.
    """
    console = console or PlainConsole(stderr=True)
    columns = (text_column(), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done)

        yield report


def sole_builder(path: Path, report: Report) -> contextlib.AbstractContextManager[None]:
    """`jaxablate.files.sole_builder` of a file of the cache folder, which reports that it waits.

    Where a network file system has no locks, two hosts may build at once; each file is written atomically all the same.
    """
    return files.sole_builder(path, otherwise=OTHERWISE,
                              waiting=lambda: report(f"waiting for another process to finish {path.name}", 0, 0))
