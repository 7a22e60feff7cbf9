"""What `eval.py circuit` shows: a progress bar, a table, the lines of the page."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxablate.commands.circuit_measures import CHANCE, Answers, Interval, Measured
from jaxablate.commands.circuit_search import Progress as Report
from jaxablate.stats import number


@contextlib.contextmanager
def search_progress(console: Console, what: str) -> Iterator[Report]:
    """A bar with edges left and edges evaluated, gone when the block ends.

    Args:
      console: where to draw. Nothing is drawn where it is no terminal.
      what: is done.
    """
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[left]:,} edges left, "
               "{task.fields[evaluated]:,} evaluated"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = None

        def report(done: int, total: int, evaluated: int) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task(what, total=total, left=total, evaluated=0)
            progress.update(task, completed=done, left=total - done, evaluated=evaluated)

        yield report


def figures_table(m: Measured, title: str) -> Table:
    """Model, circuit and everything patched beside one another."""
    table = Table(title=title, caption="95 % intervals over prompts in brackets", title_justify="left",
                  caption_justify="left")
    table.add_column("")
    for name in ("model", "circuit", "all patched"):
        table.add_column(name, justify="right")
    three = (m.model, m.circuit, m.empty)
    table.add_row("edges", f"{m.edges:,}", f"{m.kept:,} ({m.kept / m.edges:.1%})", "0")
    table.add_row("edges on a path from start to end", f"{m.edges:,}", f"{m.connected:,}", "0")
    table.add_row("heads", str(m.all_heads), str(m.heads), "0")
    table.add_row("MLPs", str(m.all_mlps), str(m.mlps), "0")
    table.add_row("KL(model ‖ ·), nats", "0", *(with_interval(a.kl, a.kl_interval) for a in three[1:]))
    table.add_row("accuracy", *(with_interval(a.accuracy, a.accuracy_interval) for a in three))
    table.add_row("logit difference", *(with_interval(a.logit_difference, a.logit_difference_interval) for a in three))
    table.add_row("faithfulness of logit difference", "1", with_interval(m.faithfulness, m.faithfulness_interval), "0")
    return table


def warnings(m: Measured) -> list[str]:
    """What makes the circuit mean little, a line each."""
    out = []
    if m.incompetent:
        said = with_interval(m.model.accuracy, m.model.accuracy_interval)
        out.append(f"the model cannot do the task: its accuracy is {said}, chance is {CHANCE}; a circuit of it "
                   "means little")
    if not m.connected:
        out.append("no path of kept edges leads from the embedding to the end: such a circuit does nothing; with every "
                   f"edge patched KL is {number(m.empty.kl)} nats")
    return out


def page_lines(m: Measured, task: str, method: str) -> list[tuple[str, str]]:
    """Pairs (what, text) for the top of the page."""
    lines = [
        ("task:", task),
        ("method:", method),
        ("size:", f"{m.kept:,} of {m.edges:,} edges ({m.kept / m.edges:.1%}), {m.connected:,} of them on a path from "
                  f"start to end; {m.heads} of {m.all_heads} heads, {m.mlps} of {m.all_mlps} MLPs"),
        ("divergence:", f"KL(model ‖ circuit) {with_interval(m.circuit.kl, m.circuit.kl_interval)} nats, with every "
                        f"edge patched {with_interval(m.empty.kl, m.empty.kl_interval)}"),
        ("faithfulness:", f"{with_interval(m.faithfulness, m.faithfulness_interval)} of the logit difference"),
        ("competence:", f"the model: {_said(m.model)}; the circuit alone: {_said(m.circuit)}; with every edge "
                        f"patched: {_said(m.empty)}. 95 % intervals over {m.prompts:,} prompts."),
    ]
    return lines + [("warning:", warning) for warning in warnings(m)]


def with_interval(value: float | None, interval: Interval) -> str:
    """``value [low, high]``, with the decimals that the interval's width warrants.

    >>> with_interval(0.5, (0.25, 0.75)), with_interval(2.0, None), with_interval(None, None)
    ('0.50 [0.25, 0.75]', '2.000', '-')
    """
    if interval is None or interval[0] == interval[1]:
        return number(value)
    return f"{number(value, *interval)} [{number(interval[0], *interval)}, {number(interval[1], *interval)}]"


def _said(a: Answers) -> str:
    accuracy = with_interval(a.accuracy, a.accuracy_interval)
    return f"accuracy {accuracy}, logit difference {with_interval(a.logit_difference, a.logit_difference_interval)}"
