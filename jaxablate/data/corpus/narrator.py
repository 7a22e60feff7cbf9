"""Writes one story: fills templates, keeps the state of its small world, and notes what each token tells.

Every random choice goes through `Page.draw`, which also adds up its information in nats.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxablate.data.corpus import words
from jaxablate.data.corpus.grammar import (
    PARAGRAPH,
    PLACE_ROLE,
    PRONOUNS,
    ROLE_CODES,
    SENTENCE_BREAK,
    TEMPLATES,
    THING_ROLE,
    TOKEN_IDS,
    WORD_IDS,
    Slot,
    Template,
    word_ids,
)

T = TypeVar("T")

NOBODY, SEVERAL = 0, len(words.NAMES) + 1
NO_ONE = -1
"""Holder of a thing that nobody has."""
MOODS = ("unknown", "good", "bad", "cross")

_LOG = [0.0] + [math.log(n) for n in range(1, 65)]
_NAME_IDS = [WORD_IDS[name] for name in words.NAMES]
_PARAGRAPH = TOKEN_IDS[PARAGRAPH]
_FORM_IDS = {form: tuple(WORD_IDS[word] for word in pair) for form, pair in PRONOUNS.items()}
_SPOT_IDS = {place.word: tuple(word_ids(f" {spot}") for spot in place.spots) for place in words.PLACES}
_PLACE_INDEX = {place.word: i for i, place in enumerate(words.PLACES)}


@dataclasses.dataclass(slots=True, eq=False)
class Thing:
    """Something that a child may have."""

    noun: int
    """Index into `words.NOUNS`."""
    adjective: str = ""
    holder: int = NO_ONE
    mentioned: bool = False
    """Whether the text has named it."""

    @property
    def word(self) -> str:
        """The noun itself."""
        return words.NOUNS[self.noun].word


@dataclasses.dataclass(frozen=True, slots=True)
class Handover:
    """A thing changed hands."""

    giver: str
    """Name of the child who had it."""
    receiver: str
    """Name of the child who has it then."""
    thing: str
    """Noun."""
    kind: str
    """``"give"``, ``"take"`` (the receiver took it) or ``"return"``."""
    position: int
    """Index of the token that ends the clause which tells it."""


class Page:
    """One story while it is written.

    People are 1-based indices into `words.NAMES` in everything noted about tokens (0 nobody, `SEVERAL` more than one),
    and 0-based wherever a plot names them.

    Attributes:
      tokens: token ids so far.
      marks: (position, person, role) of each token that refers to somebody, or (position, 0, role) of a thing or place.
      log: (position, field, value): from this token on, the field has this value.
      breaks: position after each sentence's last token.
      nats: information of the choices made so far.
    """

    __slots__ = ("_dice", "_next", "breaks", "feeling", "focus", "handovers", "kin", "last_subject", "log", "marks",
                 "moods", "nats", "place", "stage", "subject", "tokens")

    def __init__(self, dice: list[float]):
        self._dice, self._next = dice, 0
        self.tokens: list[int] = []
        self.marks: list[tuple[int, int, int]] = []
        self.log: list[tuple[int, str, int]] = []
        self.breaks: list[int] = []
        self.handovers: list[Handover] = []
        self.moods: dict[int, int] = {}
        self.stage: tuple[int, ...] = ()
        self.place: words.Place = words.PLACES[0]
        self.subject = self.last_subject = NOBODY
        self.kin: dict[int, int] = {}
        self.feeling = -1
        self.focus: Thing | None = None
        self.nats = 0.0

    # Choices ---------------------------------------------------------------------------------------------------------

    def draw(self, n: int) -> int:
        """A number below n, each as likely."""
        self.nats += _LOG[n]
        i = self._next
        self._next = i + 1
        return int(self._dice[i] * n)

    def pick(self, options: Sequence[T]) -> T:
        """One of a sequence, each as likely."""
        return options[self.draw(len(options))]

    def chance(self, cumulative: tuple[float, ...]) -> int:
        """An index by weight: `cumulative` has the rising sums of the probabilities, the last of them 1."""
        u = self._dice[self._next]
        self._next += 1
        i = next(i for i, c in enumerate(cumulative) if u < c)
        self.nats -= math.log(cumulative[i] - (cumulative[i - 1] if i else 0.0))
        return i

    # The world -------------------------------------------------------------------------------------------------------

    def thing(self, nouns: Sequence[int], holder: int, *, always_described: bool = False) -> Thing:
        """A new thing, one of `nouns`, with an adjective or, half the time, without."""
        noun = self.pick(nouns)
        described = always_described or self.draw(2)
        adjective = self.pick(words.NOUNS[noun].adjectives) if described else ""
        return Thing(noun, adjective, holder)

    def hand(self, thing: Thing, receiver: int, kind: str = "give") -> None:
        """From the token just written, `receiver` has the thing, from whoever had it."""
        giver, position = words.NAMES[thing.holder], len(self.tokens) - 1
        self.handovers.append(Handover(giver, words.NAMES[receiver], thing.word, kind, position))
        self.got(thing, receiver)

    def got(self, thing: Thing, holder: int) -> None:
        """From the token just written, `holder` has the thing; `NO_ONE` where it is lost or eaten."""
        thing.holder = holder
        if thing is self.focus:
            self.log.append((len(self.tokens) - 1, "holder", holder + 1))

    # Writing ---------------------------------------------------------------------------------------------------------

    def paragraph(self) -> None:
        """Starts the next paragraph."""
        self.tokens.append(_PARAGRAPH)

    def tell(self, group: str, **cast: Any) -> None:
        """Writes one line of a group of `templates`; ``A=3`` is a name for slot ``A``, ``o=thing`` a thing."""
        lines = TEMPLATES[group]
        self.write(lines[self.draw(len(lines)) if len(lines) > 1 else 0], cast)

    def write(self, template: Template, cast: Mapping[str, Any]) -> None:
        """Writes one line."""
        tokens, items = self.tokens, template.items
        if not tokens or tokens[-1] == _PARAGRAPH:
            tokens.append(template.opening)
            items = items[1:]
        for item in items:
            if isinstance(item, int) and item != SENTENCE_BREAK:
                tokens.append(item)
            elif isinstance(item, Slot):
                self._fill(item, cast)
            elif isinstance(item, tuple):
                tokens.extend(self.pick(item))
            else:
                self.last_subject, self.subject = self.subject, NOBODY
                self.breaks.append(len(tokens))
                self.log.append((len(tokens), "subject", NOBODY))

    def _fill(self, slot: Slot, cast: Mapping[str, Any]) -> None:
        key = slot.key
        if slot.form == "kin":
            person = cast[key]
            if person not in self.kin:
                self.kin[person] = self.draw(len(words.KIN))
            self.tokens.append(WORD_IDS[words.KIN[self.kin[person]]])
        elif key in cast:
            if key.isupper():
                self._person(slot, cast[key])
            else:
                self._thing(slot.form, cast[key])
        elif key == "p":
            self._place(slot.form)
        elif key == "trait":
            self.tokens.append(WORD_IDS[self.pick(words.TRAITS)])
        elif key == "spot":
            self.tokens.extend(self.pick(_SPOT_IDS[self.place.word]))
        else:
            self._feeling(key, slot.form == "again")

    def _person(self, slot: Slot, person: int) -> None:
        form, female = slot.form, person >= len(words.BOYS)
        if form == "~":
            form = ("He" if slot.sentence_start else "he") if self._clear(person) and self.draw(2) else ""
        position = len(self.tokens)
        if slot.role == ROLE_CODES["subj"]:
            # A name after ``Rob and`` makes the subject several people.
            joined = self.subject and self.tokens[-1] == WORD_IDS["and"] and self.marks[-1][0] == position - 2
            self.subject = SEVERAL if joined else person + 1
            self.log.append((position, "subject", self.subject))
            self.log.append((position, "mood", 0 if joined else self.moods.get(person, 0)))
        self.marks.append((position, person + 1, slot.role))
        self.tokens.append(_FORM_IDS[form][female] if form else _NAME_IDS[person])

    def _clear(self, person: int) -> bool:
        """Whether a pronoun can only mean this person: the last sentence's subject, or alone of this gender here."""
        if self.last_subject == person + 1:
            return True
        female = person >= len(words.BOYS)
        return all(other == person or (other >= len(words.BOYS)) != female for other in self.stage)

    def _thing(self, form: str, thing: Thing) -> None:
        tokens = self.tokens
        described = thing.adjective and (not thing.mentioned or form == "full" or (form == "" and self.draw(2)))
        if form == "":
            article = "an" if (thing.adjective or thing.word)[0] in "aeiou" else "a"
            tokens.append(WORD_IDS["the" if thing.mentioned else article])
        if described and form != "noun":
            tokens.append(WORD_IDS[thing.adjective])
        position = len(tokens)
        tokens.append(WORD_IDS[thing.word])
        thing.mentioned = True
        self.focus = thing
        self.marks.append((position, NOBODY, THING_ROLE))
        self.log.append((position, "object", thing.noun + 1))
        self.log.append((position, "holder", thing.holder + 1))

    def _place(self, form: str) -> None:
        if form == "at":
            self.tokens.extend((WORD_IDS[self.place.preposition], WORD_IDS["the"]))
        position = len(self.tokens)
        self.tokens.append(WORD_IDS[self.place.word])
        self.marks.append((position, NOBODY, PLACE_ROLE))
        if form != "name":
            self.log.append((position, "place", _PLACE_INDEX[self.place.word] + 1))

    def _feeling(self, kind: str, again: bool) -> None:
        """A feeling of the subject; `again` writes the last one once more."""
        position = len(self.tokens)
        if not again:
            self.feeling = WORD_IDS[self.pick(words.FEELINGS[kind])]
            mood = MOODS.index(kind)
            if 0 < self.subject < SEVERAL:
                self.moods[self.subject - 1] = mood
            self.log.append((position, "mood", mood))
        self.tokens.append(self.feeling)


def dice(seed: int, start: int, count: int, width: int) -> np.ndarray:
    """Random numbers of stories start .. start + count - 1: row i depends on (seed, start + i) alone.

    `width`, the numbers a story, is a multiple of 4, the numbers of one Philox counter; `start` is below 2**62.

    Returns:
      float64 [count, width], uniform in [0, 1).
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=start * (width // 4))).random((count, width))
