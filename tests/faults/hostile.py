"""Names and texts that somebody reads as something else: Rich, Markdown, CSV, LaTeX, HTML, a shell, a terminal.

A place that takes the name of a file, a run or a figure, or a text of the data, takes all of these and shows each as it
is, or refuses it in one line.
"""

NAMES = (
    "[red]x", "a[b", "[k=2]", "[bold]b[link=x]l", ":smile:", "{task}", "{0}", "%s%n", "{{7*7}}", "${HOME}", "`id`",
    "=1+1", "+1+1", "-1+1", "@SUM(1)", "a|b", "*a*", "_a_", "~a~", "![a](b)", "[a](b)", "#a", "\\*a", "\\input{x}",
    "^a", "$a$", "a%b", "a&b;", "&amp;", "<script>alert(1)<", "<b onclick=x>", "'a'", '"a"', "a b", " a", "a ", "...",
    "-a", "--a", "a\tb", "a\nb", "a\n\nb", "a\rb", "a;=1+1", "a,b", "é", "中文", "😀", "\u202egnp", "\x1b[31mred",
    "a\x07b", "\ufeffa", "con", "*",
)
"""Names of a folder: valid on Linux, without ``/`` and the backslashes that a working directory may not have; see
`folder_names`."""

TEXTS = (*NAMES, "[/b]", "[/INST]", "the [/b]", "[/]", "a[/k/y]", "</script><script>alert(1)</script>", "</title>",
         "a\\nb", "\\", "../../a", "/a", "a/../b", "\x00", "\ud800", "\u2028", "a" * 5000, "")
"""Texts of data: besides names what no file is called."""

JSON = (b"null", b"5", b'"abc"', b"[1, 2]", b"{}", b"[]", b"true", b"", b"{", b"[" * 100_000, b'{"a":' * 100_000,
        b"\xff\xfe", b'"\xed\xa0\x80"', b"\xef\xbb\xbfnull", b"NaN", b"1e999", b"1" * 5000, b"{}\n{}")
"""Contents of a file in the place of a JSON object that somebody expects."""


def seen(text: str) -> str:
    """What of a text must be seen on a terminal: all but white space, controls, and frames of tables."""
    return "".join(c for c in text if not c.isspace() and c.isprintable() and c not in "│┃�")


def folder_names() -> tuple[str, ...]:
    """`NAMES` that a working directory may have, which excludes those with a backslash."""
    return tuple(name for name in NAMES if "\\" not in name)
