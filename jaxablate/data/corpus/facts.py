"""The hidden facts of a story: what a reader knows at each token, and what is true of the whole.

Labels at a token use that token and what stands before it, nothing later (`next_io` alone looks one token ahead), so a
unit or a probe at that position can in principle know them.
"""

import dataclasses

import numpy as np

from jaxablate.data.corpus import words
from jaxablate.data.corpus.grammar import PARAGRAPH, PRONOUNS, ROLES, TOKEN_IDS, VOCABULARY
from jaxablate.data.corpus.narrator import MOODS, NOBODY, Handover, Page

PEOPLE = ("nobody", *words.NAMES, "several")
THINGS = ("nothing", *(noun.word for noun in words.NOUNS))
WHERE = ("nowhere", *(place.word for place in words.PLACES))
KINDS = ("function", "name", "pronoun", "thing", "adjective", "place", "feeling", "verb", "kin", "punctuation", "end")

_VERBS = """
asked ate began bought brought cry dance decided draw fell felt found gave get give going got had hand handed held help
hugged hurt liked lived looked lost loved make met missed nodded play played playing put ran read run said sat saw see
showed sing smile smiled Thank thanked thinking told took walked wanted was went were wore
"""

LABELS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "person": PEOPLE,
    "role": ROLES,
    "subject": PEOPLE,
    "mood": MOODS,
    "object": THINGS,
    "holder": PEOPLE,
    "place": WHERE,
    "next_io": PEOPLE,
}
"""What each number of a per-token array means: ``LABELS["holder"][3]`` is a name. Arrays not here hold counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Character:
    """A child of the story."""

    name: str
    gender: str
    kin: str | None
    """The adult with whom the child lives, where the story tells it."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoryFacts:
    """What is true in one story.

    Attributes:
      plot: one of `jaxablate.data.corpus.plots.PLOT_NAMES`.
      characters: children in order of appearance; the first is the protagonist.
      handovers: what changed hands, in order.
      places: places that somebody was at, in order.
      moods: mood of each child as mentioned last: ``good``, ``bad`` or ``cross``.
      holder: name of who has the last handed thing at the end; None where it is eaten.
      nats: information of all the grammar's choices, -log P(story), for the entropy of the corpus.
      per_token: arrays of length n_tokens, int16 (int32 for positions):

        * ``kind``: what sort of word the token is.
        * ``person``: whom a name or third-person pronoun refers to.
        * ``role``: part in the clause of a token that refers to a child, a thing or a place.
        * ``antecedent``: for a pronoun, position of the last name of the same child before it; otherwise -1.
        * ``subject``: child who is the subject of the clause so far, from its own token to the end of the sentence.
        * ``mood``: that subject's mood as mentioned last.
        * ``object``: thing mentioned last.
        * ``holder``: who has that thing; a clause changes it at the mark that ends it.
        * ``place``: where the scene is.
        * ``next_io``: whose name comes next as indirect object ("Sue gave a bone to" -> Rob); nobody elsewhere.
        * ``sentence``, ``paragraph``: counted from 0.
    """

    plot: str
    characters: tuple[Character, ...]
    handovers: tuple[Handover, ...]
    places: tuple[str, ...]
    moods: dict[str, str]
    holder: str | None
    nats: float
    per_token: dict[str, np.ndarray]


def collect(page: Page, plot: str) -> StoryFacts:
    """Facts of a finished page."""
    per_token, names = _per_token(page), words.NAMES
    people = dict.fromkeys(person - 1 for _, person, _ in page.marks if person)
    held = per_token["holder"][-1]
    told = [WHERE[value] for _, field, value in page.log if field == "place"]
    return StoryFacts(
        plot=plot,
        characters=tuple(Character(names[person], "girl" if person >= len(words.BOYS) else "boy",
                                   words.KIN[page.kin[person]] if person in page.kin else None) for person in people),
        handovers=tuple(page.handovers),
        places=tuple(place for i, place in enumerate(told) if i == 0 or place != told[i - 1]),
        moods={names[person]: MOODS[mood] for person, mood in page.moods.items()},
        holder=None if held == NOBODY else PEOPLE[held],
        nats=page.nats,
        per_token=per_token,
    )


def _per_token(page: Page) -> dict[str, np.ndarray]:
    tokens = np.asarray(page.tokens)
    kind = _KIND_OF[tokens]
    out = {"kind": kind, **_references(page, kind)}
    out |= {field: np.zeros(len(tokens), np.int16) for field in ("subject", "mood", "object", "holder", "place")}
    for position, field, value in page.log:
        out[field][position:] = value
    io_name = (out["role"] == ROLES.index("indirect object")) & (kind == KINDS.index("name"))
    out["next_io"] = np.append(np.where(io_name, out["person"], 0)[1:], 0).astype(np.int16)
    out["sentence"] = np.searchsorted(page.breaks, np.arange(len(tokens)), side="right").astype(np.int16)
    out["paragraph"] = np.cumsum(tokens == TOKEN_IDS[PARAGRAPH]).astype(np.int16)
    return out


def _references(page: Page, kind: np.ndarray) -> dict[str, np.ndarray]:
    person, role = np.zeros((2, len(kind)), np.int16)
    antecedent = np.full(len(kind), -1, np.int32)
    named: dict[int, int] = {}
    for position, who, part in page.marks:
        person[position], role[position] = who, part
        if who and kind[position] == KINDS.index("name"):
            named[who] = position
        elif who and kind[position] == KINDS.index("pronoun"):
            antecedent[position] = named.get(who, -1)
    return {"person": person, "role": role, "antecedent": antecedent}


def _kind(token: str) -> str:
    word = token.strip(' "')
    groups = {
        "name": words.NAMES,
        "pronoun": [w for form in ("he", "him", "his", "He", "His") for w in PRONOUNS[form]],
        "thing": THINGS[1:],
        "place": WHERE[1:],
        "adjective": (*words.ADJECTIVES, *words.TRAITS),
        "feeling": [w for group in words.FEELINGS.values() for w in group],
        "verb": _VERBS.split(),
        "kin": words.KIN,
    }
    if token == VOCABULARY[0]:
        return "end"
    if not word.isalpha() and token != "'s":
        return "punctuation"
    return next((kind for kind, group in groups.items() if word in group), "function")


_KIND_OF = np.array([KINDS.index(_kind(token)) for token in VOCABULARY], np.int16)
