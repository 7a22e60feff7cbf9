"""Patterns of tokens that fire a unit, merged without changing what they match, and the trie that shows them."""

import dataclasses
from collections.abc import Iterable, Sequence

Tokens = frozenset[int] | None
"""Which tokens may stand at one place; None: any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """Tokens at and before a place where a unit fires.

    Attributes:
      tokens: read back from the pivot, which comes first. The last one is not None: what may be anything is not named.
      importance: of each of them, as `pruning.importance` has it, the largest over the examples; None where any may be.
      strength: largest activation of its examples, as a share of the unit's maximum.
      examples: how many have it.
    """

    tokens: tuple[Tokens, ...]
    importance: tuple[float | None, ...]
    strength: float
    examples: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the trie.

    Attributes:
      parent: number of the node after it in the text, None for a pivot.
      offset: 0 for a pivot, 1 for the token before it.
      tokens: what may stand here, None for any.
      importance: the largest of the patterns that pass here; None for any.
      strength: of the pattern that is complete here; None where none is.
      examples: of that pattern; 0 where none is complete here.
    """

    parent: int | None
    offset: int
    tokens: Tokens
    importance: float | None
    strength: float | None = None
    examples: int = 0


def merge(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """Fewer patterns that match exactly the same places.

    Two patterns that differ at one place become one in which either may stand there; one that matches nothing another
    does not match is dropped. The strongest come first.
    """
    found = sorted(patterns, key=lambda p: (-p.strength, _key(p)))
    merged = True
    while merged:
        merged = False
        for i in range(len(found)):
            for j in range(len(found) - 1, i, -1):
                joined = _joined(found[i], found[j])
                if joined is not None:
                    found[i], merged = joined, True
                    del found[j]
    return tuple(found)


def trie(patterns: Sequence[Pattern]) -> tuple[Node, ...]:
    """Patterns as a tree read back from the pivots; patterns that begin alike share their nodes."""
    nodes: list[Node] = []
    places: dict[tuple[int | None, Tokens], int] = {}
    for pattern in patterns:
        parent = None
        for offset, (tokens, weight) in enumerate(zip(pattern.tokens, pattern.importance, strict=True)):
            at = places.setdefault((parent, tokens), len(nodes))
            if at == len(nodes):
                nodes.append(Node(parent=parent, offset=offset, tokens=tokens, importance=weight))
            nodes[at] = dataclasses.replace(nodes[at], importance=_larger(nodes[at].importance, weight))
            parent = at
        nodes[at] = dataclasses.replace(nodes[at], strength=pattern.strength, examples=pattern.examples)
    return tuple(nodes)


def _joined(a: Pattern, b: Pattern) -> Pattern | None:
    """One pattern that matches what either does; None where there is none."""
    if _covers(a, b):
        return _with(a, b, a)
    if _covers(b, a):
        return _with(a, b, b)
    if len(a.tokens) != len(b.tokens):
        return None
    different = [i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y]
    if len(different) != 1 or a.tokens[different[0]] is None or b.tokens[different[0]] is None:
        return None
    at = different[0]
    either = (*a.tokens[:at], a.tokens[at] | b.tokens[at], *a.tokens[at + 1 :])
    return _with(a, b, dataclasses.replace(a, tokens=either))


def _covers(a: Pattern, b: Pattern) -> bool:
    """Whether a matches wherever b does."""
    if len(a.tokens) > len(b.tokens):
        return False
    return all(x is None or (y is not None and x >= y) for x, y in zip(a.tokens, b.tokens, strict=False))


def _with(a: Pattern, b: Pattern, shape: Pattern) -> Pattern:
    """The tokens of `shape` with what is known of both."""
    weights = [_larger(_at(a, i), _at(b, i)) if tokens is not None else None for i, tokens in enumerate(shape.tokens)]
    return Pattern(tokens=shape.tokens, importance=tuple(weights), strength=max(a.strength, b.strength),
                   examples=a.examples + b.examples)


def _at(pattern: Pattern, offset: int) -> float | None:
    return pattern.importance[offset] if offset < len(pattern.importance) else None


def _larger(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)


def _key(pattern: Pattern) -> tuple:
    return tuple(() if tokens is None else tuple(sorted(tokens)) for tokens in pattern.tokens)
