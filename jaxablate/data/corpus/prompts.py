"""Indirect-object prompts in the corpus's own sentences, laid out as the file behind the paper's circuits is.

``Then, Rob and Sue had a lot of fun at the park. Sue gave a bone to`` -> `` Rob``; the corrupt prompt has three other
names, so nothing in it tells the answer.
"""

import dataclasses
import itertools
from typing import Literal

from jaxablate.data.corpus import words
from jaxablate.data.corpus.grammar import VOCABULARY, Slot, Template, compile_template
from jaxablate.data.corpus.narrator import NO_ONE, Page, Thing, dice
from jaxablate.data.corpus.templates import LINES
from jaxablate.errors import DataError

Order = Literal["ABBA", "BABA"]
Pairs = Literal["held_out", "seen", "any"]

IOI_LINES: dict[str, str] = {
    "fun": f"{LINES['OUTING'][0]} {LINES['GIVE'][0]}",
    "went": f"{LINES['OUTING'][1]} {LINES['GIVE'][0]}",
    "playing": f"{LINES['OUTING'][2]} {LINES['OFFER'][0]}",
    "after": LINES["OUTING_AND_GIFT"][0],
    "found": LINES["OUTING_AND_FIND"][1],
    "thinking": LINES["PLAN_AND_OFFER"][0],
    "fight": LINES["SORRY"][0],
}
"""Prompt templates by name: lines of the corpus itself, cut before the indirect object."""

_PROMPT_KEY = 1
_WIDTH = 16


@dataclasses.dataclass(frozen=True, slots=True)
class IOIPrompt:
    """One prompt pair, equal in tokens; all prompts of a template have the same length."""

    clean: str
    """Text up to the indirect object."""
    corrupt: str
    """The same text with three other names."""
    answer: str
    """The indirect object with its space, one token."""
    wrong_answer: str
    """The subject, likewise."""
    template: str
    """Key of `IOI_LINES`."""
    order: Order
    """``ABBA`` where the answer is named first (Rob and Sue ... Sue gave ... to Rob), otherwise ``BABA``."""


def ioi_prompts(
    seed: int, count: int, *, pairs: Pairs = "held_out", names: tuple[str, ...] = tuple(IOI_LINES),
    orders: tuple[Order, ...] = ("ABBA", "BABA"),
) -> list[IOIPrompt]:
    """Prompts whose answer is the name that the sentence's subject leaves over.

    Args:
      seed: seed of the draw; prompt i depends on (seed, i) and the options alone.
      count: prompts; templates and orders take turns, so any multiple of both counts is balanced.
      pairs: ``held_out`` takes only pairs of names that meet in no story (see `words.held_out`), so that the answer
        cannot come from having seen the pair; ``seen`` only pairs that do; ``any`` both.
      names: keys of `IOI_LINES` to use.
      orders: name orders to use.

    Raises:
      DataError: no such template, order or kind of pair, or nothing to choose from.
    """
    _check(count, pairs, names, orders)
    turns = itertools.islice(itertools.cycle(itertools.product(names, orders)), count)
    rows = dice(seed | _PROMPT_KEY << 64, 0, count, _WIDTH).tolist()
    return [_prompt(Page(row), name, order, pairs) for row, (name, order) in zip(rows, turns, strict=True)]


def _check(count: int, pairs: str, names: tuple[str, ...], orders: tuple[str, ...]) -> None:
    if count < 0:
        raise DataError(f"count={count} prompts must not be negative")
    for what, given, choices in (("template", names, IOI_LINES), ("order", orders, ("ABBA", "BABA")),
                               ("kind of pair", (pairs,), ("held_out", "seen", "any"))):
        bad = [g for g in given if g not in choices]
        if bad or not given:
            raise DataError(f"no {what} {bad[0]!r}; choose among {', '.join(choices)}" if bad else f"no {what} given")


def _cut(text: str) -> Template:
    """The line up to its indirect object."""
    line = compile_template(text)
    end = next(i for i, item in enumerate(line.items) if isinstance(item, Slot) and item.key == "R")
    return dataclasses.replace(line, items=line.items[:end])


_CUT: dict[str, Template] = {name: _cut(text) for name, text in IOI_LINES.items()}


def _prompt(page: Page, name: str, order: Order, pairs: Pairs) -> IOIPrompt:
    subject = page.draw(len(words.NAMES))
    mates = [n for n in range(len(words.NAMES)) if n != subject
             and (pairs == "any" or words.held_out(n, subject) == (pairs == "held_out"))]
    answer = page.pick(mates)
    others = [n for n in range(len(words.NAMES)) if n not in (subject, answer)]
    corrupt = [others.pop(page.draw(len(others))) for _ in range(3)]
    place = page.pick(words.PLACES)
    nouns = place.finds if name == "found" else tuple(noun.word for noun in words.NOUNS)
    word = page.pick(nouns)
    first, second = (answer, subject) if order == "ABBA" else (subject, answer)
    clean_cast = {"A": first, "B": second, "S": subject}
    corrupt_cast = dict(zip("ABS", corrupt, strict=True))
    return IOIPrompt(
        _text(name, clean_cast, place, word), _text(name, corrupt_cast, place, word),
        f" {words.NAMES[answer]}", f" {words.NAMES[subject]}", name, order,
    )


def _text(name: str, cast: dict[str, int], place: words.Place, noun: str) -> str:
    page = Page([])
    page.place = place
    index = next(i for i, n in enumerate(words.NOUNS) if n.word == noun)
    page.write(_CUT[name], {**cast, "o": Thing(index, holder=NO_ONE)})
    return "".join(VOCABULARY[i] for i in page.tokens)
