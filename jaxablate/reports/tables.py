"""Tables: a `Grid` for the terminal, as Markdown, CSV and LaTeX. The page has templates of its own."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jaxablate import stats
from jaxablate.reports.panels import Cell, Grid, Passages
from jaxablate.reports.results import Results, SuiteRecord
from jaxablate.reports.svg import short
from jaxablate.stats import Estimate
from jaxablate.terminal import PlainConsole, printable

ARROWS = {"up": "↑", "down": "↓", "none": ""}
EXPLANATION = "In brackets: 95 % interval. ↑: larger is better, ↓: smaller is better."
_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "|": r"$|$", "±": r"$\pm$", "–": "--", "≥": r"$\ge$",
          "<": r"\textless{}", ">": r"\textgreater{}", '"': r"\char34{}",
          "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
"""What LaTeX would read as its own, and signs it lacks, written its way."""
NAME_WIDTHS, NARROWEST = (40, 30, 22), 18
"""Characters of names in a terminal beside numbers; the widest that fits is taken."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def cell_text(cell: Cell) -> str:
    """A cell as text: numbers with four significant digits, estimates with their interval, a dash for nothing."""
    return cell if isinstance(cell, str) else str(stats.estimate(cell))


def text_columns(grid: Grid) -> list[bool]:
    """Whether each column holds words, which stand at the left; numbers stand at the right."""
    return [all(isinstance(row[j], str) for row in grid.rows) for j in range(len(grid.columns))]


def heading(name: str, unit: str, better: str) -> str:
    """A figure's name for people; that it is a fraction is plain from its number.

    >>> heading("loss", "nats", "down"), heading("accuracy", "fraction", "up")
    ('loss (nats) ↓', 'accuracy ↑')
    """
    return " ".join(part for part in (name, "" if unit in ("", "fraction") else f"({unit})", ARROWS[better]) if part)


def terminal(grid: Grid, *, grouped: bool = False, most: int | None = None, widest: int = 16, stacked: bool = False
             ) -> Table:
    """A grid for a terminal, its title over and its caption under it.

    Args:
      grid: the table.
      grouped: whether the first column names groups of rows, which then stand under their name in place of it.
      most: characters of a line in a column of words.
      widest: characters of a line of a column's name.
      stacked: whether intervals stand below their numbers.
    """
    looks: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False} if grouped else {}
    table = Table(title=Text(grid.title) if grid.title else None, title_justify="left", header_style="bold",
                  caption=Text(grid.caption) if grid.caption else None, caption_justify="left", **looks)
    first = 1 if grouped else 0
    for name, words in [*zip(grid.columns, text_columns(grid), strict=True)][first:]:
        head = Text("\n".join(textwrap.wrap(name, widest)))
        table.add_column(head, justify="left" if words else "right", overflow="fold",
                         max_width=most if words else None)
    group: Cell = None
    for row in grid.rows:
        if grouped and row[0] != group:
            group = row[0]
            table.add_section()
            table.add_row(Text(cell_text(group), style="bold"))
        texts = (cell_text(cell).replace(" [", "\n[") if stacked and isinstance(cell, Estimate) else cell_text(cell)
                 for cell in row[first:])
        table.add_row(*map(Text, texts))
    return table


def fitted(grid: Grid, width: int, **looks: Any) -> Table | None:
    """A grouped table with the widest names that fit into so many columns; None where none does. ``looks`` are further
    arguments of `terminal`."""
    choice = (terminal(grid, grouped=True, most=most, **looks) for most in NAME_WIDTHS)
    return next((x for x in choice if table_width(x) <= width), None)


def narrowest(grid: Grid, width: int) -> Table:
    """A grouped table that fits into so many columns, or as narrow as it can be with each number on one line."""
    return (fitted(grid, width) or fitted(grid, width, widest=10)
            or terminal(grid, grouped=True, most=NARROWEST, widest=10))


def table_width(table: Table) -> int:
    """Columns that a table takes where nothing is folded."""
    return PlainConsole(width=10_000).measure(table).maximum


def markdown(grid: Grid, notes: Sequence[str] = ()) -> str:
    """A grid as a Markdown table: its title, the table, its caption, and notes as a list. Words are shown as they are,
    on one line each."""
    rule = ["---" if words else "---:" for words in text_columns(grid)]
    cells = [[markdown_words(cell) if isinstance(cell, str) else cell_text(cell) for cell in row]
             for row in (grid.columns, *grid.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
    title = [f"{_markdown_line(grid.title)}.", ""] if grid.title else []
    caption = ["", _markdown_line(grid.caption)] if grid.caption else []
    listed = [f"- {_markdown_line(note)}" for note in notes]
    return "\n".join([*title, *lines, *caption, *([""] if notes else []), *listed, ""])


def markdown_words(text: str) -> str:
    """Words on one line, with a backslash before what Markdown would read as its own.

    >>> print(markdown_words("a_b: [x](y) | <b>\\n*"))
    a_b: \\[x\\](y) \\| \\<b\\> \\*
    """
    return re.sub(r"[\\`*\[\]|<>~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)", r"\\\g<0>", _one_line(text))


def _markdown_line(text: str) -> str:
    """Words that begin a line, where Markdown also knows headings, rules and lists."""
    return re.sub(r"^(?=[#+=-])|(?<=^)(\d+)(?=[.)](\s|$))", r"\1\\", markdown_words(text))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def csv_words(text: str) -> str:
    """Words for a cell of CSV: with an apostrophe before what a spreadsheet would run as a formula.

    >>> csv_words("=1+1"), csv_words("-0.5"), csv_words("a=1")
    ("'=1+1", '-0.5', 'a=1')
    """
    text = printable(text)
    starts = text.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") or text[:1] in ("\t", "\n")
    return f"'{text}" if starts and text != "-" and not _NUMBER.fullmatch(text) else text


def csv_text(grid: Grid) -> str:
    """A grid as CSV in full precision; an estimate's value, ends of its interval and n in columns of their own."""
    split = [any(isinstance(row[j], Estimate) for row in grid.rows) for j in range(len(grid.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_words(f"{name}{part}") for name, parts in zip(grid.columns, split, strict=True)
                     for part in (("", " low", " high", " n") if parts else ("",))])
    for row in grid.rows:
        values: list[Cell] = []
        for cell, parts in zip(row, split, strict=True):
            e = Estimate(None) if isinstance(cell, str) else stats.estimate(cell)  # empty for what it lacks
            values += (e.value, e.low, e.high, e.n) if parts else (csv_words(cell) if isinstance(cell, str) else cell,)
        writer.writerow(values)
    return out.getvalue()


def latex(grid: Grid) -> str:
    """A grid as a LaTeX ``tabular`` (package booktabs), its title and caption as comments."""
    lines = [_latex_row(cells) for cells in (grid.columns, *(map(cell_text, row) for row in grid.rows))]
    spec = "".join("l" if words else "r" for words in text_columns(grid))
    comments = [f"% {_one_line(text)}" for text in (grid.title, grid.caption) if text]
    return "\n".join([*comments, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
                      r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    row = " & ".join("".join(_LATEX.get(c, c) for c in _one_line(cell)) for cell in cells)
    # After a row's end LaTeX takes a bracket or a star for an option.
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"


def headline(record: SuiteRecord) -> Grid:
    """The figures of one suite."""
    rows = tuple((heading(f.name, f.unit, f.better), f.estimate) for f in record.figures)
    return Grid(title=record.suite, caption="", columns=("figure", "value"), rows=rows)


def score_table(results: Results, title: str = "") -> Table:
    """Headline figures of one checkpoint for the terminal."""
    rows = tuple((name, *row) for name, record in results.suites.items() for row in headline(record).rows)
    grid = Grid(title=title, caption=EXPLANATION if rows else "", columns=("suite", "figure", "value"), rows=rows)
    return terminal(grid, grouped=True)


def first_passages(results: Results) -> list[Text]:
    """The first text of each panel of texts that every voice goes on with: the given in bold, then its own words."""
    panels = [p for record in results.suites.values() for p in record.panels if isinstance(p, Passages) and p.passages]
    lines = []
    for panel in panels:
        full = (p for p in panel.passages if all(text.strip() for _, text in p.said))
        shown = next(full, panel.passages[0])
        lines += [Text.assemble((f"{voice}: ", "dim"), (shown.given, "bold"), " ", prose(text) or "(ends at once)")
                  for voice, text in shown.said]
    return lines


def prose(text: str) -> str:
    """Text without blank lines at its ends and without more than one in a row.

    >>> prose(" a\\n\\n \\nb ")
    'a\\n\\nb'
    """
    return re.sub(r"\n\s*\n", "\n\n", text.strip())


def token_table(title: str, words: Sequence[str], shares: Mapping[str, Sequence[float]],
                facts: Mapping[str, Sequence[object]], width: int = 120) -> Table:
    """The tokens of one text, a row for each, for a terminal.

    ``shares`` are columns of numbers in [0, 1], drawn as bars where ``width`` has room, of which the first one also
    shades the words; ``facts`` are further columns, written as they are.
    """
    cells = 8 if width >= 110 else 5 if len(shares) < 3 else 0
    table = Table(title=Text(title), title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("token", no_wrap=True)
    for name in (*shares, *facts):
        head = Text(name if width >= 110 else "\n".join(textwrap.wrap(name, 8)))
        table.add_column(head, no_wrap=True, justify="left" if name in shares else "right")
    first = next(iter(shares.values()), [1.0] * len(words))
    for i, word in enumerate(words):
        numbers = (values[i] for values in shares.values())
        bars = (Text.assemble((f"{bar(x, cells)} " if cells else "", "blue"), f"{x:.2f}") for x in numbers)
        weight = "bold" if first[i] >= 2 / 3 else "" if first[i] >= 1 / 3 else "dim"
        table.add_row(Text(short(word), style=weight), *bars, *(Text(str(v[i])) for v in facts.values()))
    return table


def bar(share: float, cells: int = 8) -> str:
    """A bar of block characters, to an eighth of a character.

    >>> bar(0.5, 4), bar(0.3125, 4), bar(1.0, 4)
    ('██  ', '█▎  ', '████')
    """
    eighths = round(8 * cells * min(max(share, 0.0), 1.0)) if math.isfinite(share) else 0
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(cells)
