"""Docstrings as the package writes them: `Example:` is griffe's section `Examples:`, a doctest elsewhere is code."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
"""A paragraph that begins with a prompt, outside sections, which are indented."""


class Examples(griffe.Extension):
    """Changes each docstring before it is taken apart."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
