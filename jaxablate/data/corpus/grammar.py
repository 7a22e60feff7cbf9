"""From a line of `jaxablate.data.corpus.templates` to token ids and slots; the vocabulary falls out of it.

A line is English with slots in braces and choices in parentheses:

==================  ===================================================================================================
``{A}``             a person's name
``{A~}``            the name, or ``he`` / ``she`` (``He`` / ``She``) where that can only mean this person
``{A.he}``          that word for the person's gender: ``he him his boy He His``
``{A.kin}``         ``mom``, ``dad`` or ``grandma``: with whom this child lives, the same all through a story
``{A:io}``          with the person's part in the clause, a key of `ROLE_CODES`; otherwise subject, or owner for ``his``
``{o}``             a thing: ``a red ball`` at first, then ``the ball`` or ``the red ball``
``{o.full}``        ``red ball``; ``{o.noun}`` ``ball``
``{p.at}``          ``at the park``; ``{p.goal}`` ``park``, where they arrive; ``{p.name}`` ``park``, where they do not
``{trait}`` ...     a word of that kind: ``trait good bad cross``; ``{cross.again}`` the feeling named last
``{spot}``          where in this place a lost thing turns up: ``under a tree``
``(very|so|)``      one of these, each as likely
==================  ===================================================================================================

Tokens are GPT-2-like: a word carries the space before it, so ``" Rob"`` is one token, and so is ``'!"'``.
"""

import dataclasses
import re

from jaxablate.data.corpus import templates, words
from jaxablate.data.ids import END_OF_TEXT

TOKEN_PATTERN = re.compile(r"<\|endoftext\|>|\n\n|'s| ?[A-Za-z]+| ?\"|[.,!?]\"?")
"""What one token looks like. Where no match starts, the text has something that the corpus never writes."""

PARAGRAPH = "\n\n"

ROLES = ("none", "subject", "direct object", "indirect object", "source", "companion", "owner", "addressee",
         "other person", "thing", "place")
ROLE_CODES = {"subj": 1, "obj": 2, "io": 3, "from": 4, "with": 5, "poss": 6, "voc": 7, "other": 8}
THING_ROLE, PLACE_ROLE = ROLES.index("thing"), ROLES.index("place")

PRONOUNS = {"he": ("he", "she"), "him": ("him", "her"), "his": ("his", "her"), "boy": ("boy", "girl"),
            "He": ("He", "She"), "His": ("His", "Her")}

_ITEM = re.compile(r"\{(?P<slot>[^}]+)\}|\((?P<choice>[^)]*)\)|(?P<text>[^{(]+)")
_SENTENCE_END = frozenset((".", "!", "?", '."', '!"', '?"'))

_NEVER_INSIDE = -2
"""Stands for a first word that is no token: one with a space that only opens paragraphs, or the other way round."""

SENTENCE_BREAK = -1
"""Stands among a template's token ids after the last token of each sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A place to fill: its key (``A``, ``o``, ``p``, ``good`` ...), the form asked for, role and position."""

    key: str
    form: str
    role: int
    sentence_start: bool


Choice = tuple[tuple[int, ...], ...]
"""Token ids of each of the texts of which one is written, each as likely."""


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """One compiled line."""

    text: str
    """The line as written."""
    items: tuple[int | Slot | Choice, ...]
    """Token ids, slots and choices in order."""
    opening: int
    """The first token without its space, for the start of a paragraph; negative where the line never opens one."""


def split_words(text: str) -> list[str]:
    """Tokens of a text, without looking at the vocabulary.

    >>> split_words('Then, Sue said, "Here!"')
    ['Then', ',', ' Sue', ' said', ',', ' "', 'Here', '!"']
    """
    return TOKEN_PATTERN.findall(text)


def _parse(text: str) -> list[str | tuple[str, ...] | Slot]:
    """Constants (one token each), choices (tuples of texts) and slots of a line, in order."""
    items: list[str | tuple[str, ...] | Slot] = []
    for match in _ITEM.finditer(text):
        start = not items or items[-1] in _SENTENCE_END
        if match["slot"]:
            items.append(_slot(match["slot"], start))
        elif match["choice"] is not None:
            items.append(tuple(f" {option}" if option else "" for option in match["choice"].split("|")))
        else:
            items.extend(split_words(match["text"] if items else f" {match['text']}"))
    return items


def _slot(spec: str, sentence_start: bool) -> Slot:
    body, _, role = spec.partition(":")
    key, _, form = body.partition(".")
    if key.endswith("~"):
        key, form = key[:-1], "~"
    default = "poss" if form in ("his", "His") else "subj"
    return Slot(key, form, ROLE_CODES[role or default], sentence_start)


def _lexicon() -> list[str]:
    """Every word that a slot may write, with its space."""
    spots = [word for place in words.PLACES for spot in place.spots for word in spot.split()]
    nouns = [noun.word for noun in words.NOUNS]
    places = [word for place in words.PLACES for word in (place.word, place.preposition)]
    forms = [word for pair in PRONOUNS.values() for word in pair]
    feelings = [word for group in words.FEELINGS.values() for word in group]
    loose = [*words.NAMES, *words.KIN, *nouns, *words.ADJECTIVES, *places, *words.TRAITS, *feelings, *forms, *spots]
    return [f" {word}" for word in (*loose, "a", "an", "the")]


def _constants(group: str, line: str) -> list[str]:
    """Every token that a line writes by itself; its first word without space where the group opens paragraphs."""
    tokens = []
    for item in _parse(line):
        if isinstance(item, str):
            tokens.append(item)
        elif isinstance(item, tuple):
            tokens.extend(token for option in item for token in split_words(option))
    if group in templates.OPENING:
        return [tokens[0].lstrip(" "), *tokens[1:]]
    return [tokens[0].lstrip(" "), *tokens] if group in templates.SOMETIMES_OPENING else tokens


VOCABULARY: tuple[str, ...] = (END_OF_TEXT, PARAGRAPH, *sorted(
    {token for group, lines in templates.LINES.items() for line in lines for token in _constants(group, line)}
    | set(_lexicon())
))
"""Every token of the corpus; its position is its id. 0 is ``<|endoftext|>``."""

TOKEN_IDS: dict[str, int] = {word: i for i, word in enumerate(VOCABULARY)}

WORD_IDS: dict[str, int] = {token[1:]: i for token, i in TOKEN_IDS.items() if token.startswith(" ")}
"""Tokens that carry a space, by their word without it."""


def word_ids(text: str) -> tuple[int, ...]:
    """Token ids of a text whose words are all in the vocabulary."""
    return tuple(TOKEN_IDS[word] for word in split_words(text))


def _ends_sentence(items: list[str | tuple[str, ...] | Slot], i: int) -> bool:
    """Whether item i closes a sentence; ``!"`` before a small letter (``!" said Sue``) does not."""
    if items[i] not in _SENTENCE_END:
        return False
    following = items[i + 1] if i + 1 < len(items) else ""
    return not (isinstance(following, str) and following.lstrip()[:1].islower())


def compile_template(text: str) -> Template:
    """Token ids, slots and choices of one line."""
    parsed = _parse(text)
    items: list[int | Slot | Choice] = []
    for i, item in enumerate(parsed):
        if isinstance(item, Slot):
            items.append(item)
        elif isinstance(item, tuple):
            items.append(tuple(word_ids(option) for option in item))
        else:
            items.append(TOKEN_IDS[item] if i or item in TOKEN_IDS else _NEVER_INSIDE)
            if _ends_sentence(parsed, i):
                items.append(SENTENCE_BREAK)
    opening = TOKEN_IDS.get(parsed[0].lstrip(" "), _NEVER_INSIDE) if isinstance(parsed[0], str) else _NEVER_INSIDE
    return Template(text, tuple(items), opening)


TEMPLATES = {name: tuple(map(compile_template, lines)) for name, lines in templates.LINES.items()}
"""Compiled lines by the name of their group."""
