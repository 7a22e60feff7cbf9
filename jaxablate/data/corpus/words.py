"""The story corpus's open-class words: who, what, where and how they feel, with the facts that constrain them.

What may go together is decided here: a leaf is yellow but never shiny, a shell lies on the beach, a pear is eaten
and a hat is worn. The sentences themselves are in `jaxablate.data.corpus.templates`.
"""

import dataclasses
import functools
from typing import Literal

BOYS = ("Rob", "Tim", "Ben", "Tom", "Max", "Jack", "Leo", "Fred",
        "Mark", "Paul", "Peter", "Joe", "Mike", "David", "Harry", "Toby")
GIRLS = ("Sue", "Lily", "Mia", "Amy", "Anna", "Kate", "Lucy", "Emma",
         "Jane", "Molly", "Sarah", "Beth", "Zoe", "Ruby", "Alice", "Daisy")
NAMES = BOYS + GIRLS
"""Every character's name; a person is referred to by the index into this table. Each name is one GPT-2 token too."""

Use = Literal["play", "eat", "wear", "keep"]


@dataclasses.dataclass(frozen=True, slots=True)
class Noun:
    """A thing that can be owned: the adjectives it may take and what its owner does with it."""

    word: str
    adjectives: tuple[str, ...]
    use: Use


_COLOURS = ("red", "blue", "green", "yellow")
_SWEET = ("big", "sweet", "tasty")

NOUNS = (
    Noun("ball", (*_COLOURS, "big", "new"), "play"),
    Noun("doll", ("pretty", "little", "new"), "play"),
    Noun("truck", (*_COLOURS, "big", "new"), "play"),
    Noun("drum", (*_COLOURS, "big", "new"), "play"),
    Noun("boat", (*_COLOURS, "little", "new"), "play"),
    Noun("robot", ("blue", "green", "shiny", "new"), "play"),
    Noun("apple", (*_SWEET, "red", "green"), "eat"),
    Noun("cookie", _SWEET, "eat"),
    Noun("pear", (*_SWEET, "green", "yellow"), "eat"),
    Noun("pie", _SWEET, "eat"),
    Noun("peach", _SWEET, "eat"),
    Noun("banana", (*_SWEET, "yellow"), "eat"),
    Noun("hat", (*_COLOURS, "pretty", "new"), "wear"),
    Noun("scarf", (*_COLOURS, "pretty", "long"), "wear"),
    Noun("ring", ("pretty", "shiny", "little"), "wear"),
    Noun("crown", ("pretty", "shiny", "big"), "wear"),
    Noun("necklace", ("pretty", "shiny", "long"), "wear"),
    Noun("shell", ("pretty", "shiny", "little", "white"), "keep"),
    Noun("rock", ("shiny", "big", "little", "white"), "keep"),
    Noun("leaf", ("red", "yellow", "green", "big"), "keep"),
    Noun("flower", ("red", "yellow", "white", "pretty"), "keep"),
    Noun("feather", ("white", "blue", "pretty", "long"), "keep"),
    Noun("stick", ("long", "big"), "keep"),
    Noun("coin", ("shiny", "old", "little"), "keep"),
    Noun("bone", ("big", "white", "old"), "keep"),
)
ADJECTIVES = tuple(sorted({a for noun in NOUNS for a in noun.adjectives}))


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Somewhere two children can go: its preposition, what lies about there, and where a lost thing turns up."""

    word: str
    preposition: str
    finds: tuple[str, ...]
    spots: tuple[str, ...]


PLACES = (
    Place("park", "at", ("stick", "leaf", "coin", "bone"), ("under a bench", "behind a tree", "in the grass")),
    Place("beach", "at", ("shell", "rock", "coin", "feather"), ("in the sand", "behind a rock")),
    Place("lake", "at", ("shell", "rock", "stick", "feather"), ("in the grass", "behind a rock")),
    Place("zoo", "at", ("feather", "leaf", "coin"), ("under a bench", "behind a tree")),
    Place("farm", "at", ("apple", "pear", "feather", "bone"), ("under a tree", "in the grass")),
    Place("fair", "at", ("coin", "ring", "hat"), ("under a bench", "under a table")),
    Place("playground", "at", ("coin", "ball", "scarf"), ("under a bench", "in the sand")),
    Place("market", "at", ("coin", "hat", "peach"), ("under a table", "under a bench")),
    Place("library", "at", ("coin", "scarf", "ring"), ("under a table", "behind a door")),
    Place("garden", "in", ("flower", "leaf", "peach", "bone"), ("under a tree", "in the grass")),
    Place("forest", "in", ("leaf", "stick", "feather", "rock"), ("under a tree", "behind a rock")),
    Place("river", "by", ("shell", "rock", "stick", "feather"), ("in the grass", "behind a rock")),
)

TRAITS = ("kind", "brave", "shy", "clever", "funny", "quiet", "gentle")

KIN = ("mom", "dad", "grandma")
"""With whom a child lives: the same one throughout a story."""

FEELINGS = {
    "good": ("happy", "glad", "excited"),  # of a child who gets something, or gets it back
    "bad": ("sad", "upset"),  # of one who lost something or was hurt
    "cross": ("angry", "mad"),  # of one whose thing was taken
}


@functools.cache
def held_out(first: int, second: int) -> bool:
    """Whether two names never meet in a story.

    One pair in eight is kept for prompts only, so that answering them takes the circuit and not memory. The rule is
    ``(i + j) % 8 == 0`` on the indices into `NAMES`, in either order: every name loses
    three or four partners, half of them boys.
    """
    return first != second and (first + second) % 8 == 0


@functools.cache
def partners(*people: int) -> tuple[int, ...]:
    """Names that may share a story with everybody of `people` (indices into `NAMES`)."""
    return tuple(n for n in range(len(NAMES)) if n not in people and not any(held_out(n, p) for p in people))
