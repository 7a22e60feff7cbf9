"""A progress bar for preparation and downloads."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxablate.data.atomic import Report


@contextlib.contextmanager
def progress_report(console: Console | None = None) -> Iterator[Report]:
    """A `Report` that draws one bar for each thing reported, gone when the block ends.

    Args:
      console: where to draw; standard error by default. Nothing is drawn where that is no terminal.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done)

        yield report
