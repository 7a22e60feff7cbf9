"""Trees of the Stanford Sentiment Treebank: ``(3 (2 It) (4 works))``."""

import re

_PIECES = re.compile(r"[()]|[^ ()]+")
_LABELS = frozenset("01234")


class MalformedTree(ValueError):
    """What is wrong with a tree."""


def parse_tree(line: str) -> tuple[int, str]:
    """Root label and sentence of one tree.

    A node is ``(label word)`` or ``(label node node ...)``, its label 0..4. Words stay as they stand, -LRB- too.

    Args:
      line: one tree and nothing else.

    Returns:
      Label 0..4 and the words joined by single spaces.

    Raises:
      MalformedTree: the line is something else.

    >>> parse_tree("(3 (2 It) (4 works))")
    (3, 'It works')
    """
    root, words, open_nodes = None, [], []
    pieces = iter(_PIECES.findall(line))
    for piece in pieces:
        if piece == "(":
            label = _label(next(pieces, ""))
            if root is None:
                root = label
            else:
                _note(open_nodes, "nodes")
            open_nodes.append("")
        elif piece == ")":
            _close(open_nodes)
        else:
            _note(open_nodes, "word")
            words.append(piece)
    if open_nodes:
        raise MalformedTree(f"brackets not closed: {len(open_nodes)}")
    if root is None:
        raise MalformedTree("the line is empty")
    return root, " ".join(words)


def _label(piece: str) -> int:
    if piece not in _LABELS:
        raise MalformedTree(f"a node's label is {piece!r}, not 0..4")
    return int(piece)


def _note(open_nodes: list[str], what: str) -> None:
    """The innermost open node gets a word, or one more node; nothing may follow a word."""
    if not open_nodes:
        raise MalformedTree("text outside the tree")
    if open_nodes[-1] == "word" or (what == "word" and open_nodes[-1]):
        raise MalformedTree("a leaf is not one word")
    open_nodes[-1] = what


def _close(open_nodes: list[str]) -> None:
    if not open_nodes:
        raise MalformedTree("a bracket closes that was not opened")
    if not open_nodes.pop():
        raise MalformedTree("a leaf is empty")
