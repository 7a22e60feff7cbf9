"""What is shown on a terminal: one kind of console for everything, on which text is text.

Rich takes ``[red]`` in a string for a style and ``:smile:`` for a picture, and a terminal takes control characters for
orders. Names of files, and texts of data and of users, may hold all of these. So nothing else makes a console or a
column of text.
"""

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Task, TextColumn
from rich.segment import Segment
from rich.text import Text

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters but tab and line end, marks that turn the direction of writing, halves of surrogate pairs."""


def printable(text: str) -> str:
    """Text with a sign in the place of each character that orders a terminal about or has no place in a file of text.

    >>> printable("a\\x1b[31mb"), printable("a\\tb\\nc")
    ('a�[31mb', 'a\\tb\\nc')
    """
    return _UNPRINTABLE.sub("�", text)


class PlainConsole(Console):
    """A Rich console that shows strings, also titles and cells of tables, as they are; options are Rich's own."""

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's segments, their text as by `printable`, but no wider than Rich has measured it."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else _UNPRINTABLE.sub(lambda c: "�" * cell_len(c[0]), segment.text)
            yield segment._replace(text=text)


class _PlainColumn(TextColumn):
    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.expand_tabs()
        return text


def text_column(words: str = "{task.description}") -> TextColumn:
    """A column of text of a Rich progress bar; ``words`` is a format string, into which Rich fills ``task``."""
    return _PlainColumn(words, markup=False)
