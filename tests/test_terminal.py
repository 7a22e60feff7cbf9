"""A terminal shows text as it is: no name of a file and no text of the data is read as an order to it."""

import ast
import io
import pathlib
import sys

import pytest
from faults.hostile import NAMES, TEXTS, seen
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from jaxablate.errors import DataError
from jaxablate.exits import guarded
from jaxablate.terminal import PlainConsole, text_column

ROOT = pathlib.Path(__file__).parent.parent
READS_MARKUP = {"Console", "TextColumn", "from_markup", "render_markup", "print_json", "rprint", "SpinnerColumn"}


def test_nothing_else_in_the_package_makes_a_console_or_reads_markup():
    """Whoever prints by a console of `terminal` cannot print a name as markup."""
    for path in (*ROOT.glob("jaxablate/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                keywords = {k.arg for k in node.keywords}
                assert called not in READS_MARKUP and not keywords & {"markup", "emoji"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_every_text_is_shown_as_it_is(text):
    """Rich markup in a printed string, a title, a caption, a heading or a cell raised MarkupError or lost its words."""
    table = Table(title=text, caption=text)
    table.add_column(text, overflow="fold")
    table.add_row(text)
    table.add_row(Text(text))
    out = io.StringIO()
    console = PlainConsole(file=out, width=20_000)
    console.print(text, soft_wrap=True)
    console.print(table)
    shown = out.getvalue()
    assert seen(shown).count(seen(text)) >= 6 or not seen(text)
    assert "\x1b" not in shown and "\u202e" not in shown
    shown.encode()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_bar_shows_its_name_as_it_is(name):
    """A file that is read or downloaded gives its name to a bar of progress."""
    out = io.StringIO()
    with Progress(text_column(), console=PlainConsole(file=out, width=200, force_terminal=True)) as bar:
        bar.add_task(name)
    assert seen(name) in seen(out.getvalue())


def test_the_line_of_an_error_gives_no_orders_to_the_terminal(capsys):
    def fail():
        raise DataError("no file \x1b[31m'a\ud800'\u202e in [/b]")

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: no file �[31m'a�'� in [/b]\n"


def test_a_terminal_that_lacks_a_letter_is_no_error(monkeypatch):
    """PYTHONIOENCODING=ascii made every table a UnicodeEncodeError."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert guarded(lambda: PlainConsole().print("loss ↓ é")) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"loss \\u2193 \\xe9\n"
