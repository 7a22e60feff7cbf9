"""The tokens of one text with bars and numbers, for a terminal."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from jaxablate.reports.axes import short

CELLS = 8
"""Characters of a whole bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def token_table(title: str, words: Sequence[str], shares: Mapping[str, Sequence[float]],
                facts: Mapping[str, Sequence[object]]) -> Table:
    """A row for each token.

    Args:
      title: over the table.
      words: the tokens.
      shares: columns of numbers in [0, 1], drawn as bars; the first one also shades the words.
      facts: further columns, written as they are.
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("token", no_wrap=True)
    for name in (*shares, *facts):
        table.add_column(name, no_wrap=True, justify="left" if name in shares else "right")
    first = next(iter(shares.values()), [1.0] * len(words))
    for i, word in enumerate(words):
        bars = (Text.assemble((bar(values[i]), "blue"), f" {values[i]:.2f}") for values in shares.values())
        table.add_row(Text(short(word), style=_weight(first[i])), *bars, *(str(v[i]) for v in facts.values()))
    return table


def bar(share: float, cells: int = CELLS) -> str:
    """A bar of block characters, to an eighth of a character.

    >>> bar(0.5, 4), bar(0.3125, 4), bar(1.0, 4)
    ('██  ', '█▎  ', '████')
    """
    eighths = round(8 * cells * min(max(share, 0.0), 1.0)) if math.isfinite(share) else 0
    whole, part = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[part] if part else "")).ljust(cells)


def _weight(share: float) -> str:
    """Style of a word: bold, plain or dim as it weighs much or little."""
    return "bold" if share >= 2 / 3 else "" if share >= 1 / 3 else "dim"
