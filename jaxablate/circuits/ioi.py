"""Indirect-object identification in the words of children's stories (the paper's task).

``One day, Tom and Lily went to the park. Lily gave a ball to`` -> `` Tom``. The corrupt prompt has three other names,
so nothing in it tells the answer. Which names there are depends on the tokenizer: each must be one token, so that the
answer is one token and the pair has one length.
"""

import itertools
import string
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxablate.circuits.tasks import PromptText, Tokenizer, single_token
from jaxablate.errors import DataError

Order = Literal["ABBA", "BABA"]
ORDERS: tuple[Order, ...] = ("ABBA", "BABA")

TEMPLATES: dict[str, str] = {
    "day out": "One day, {A} and {B} went to the {place}. {S} gave a {object} to",
    "lunch": "After lunch, {A} and {B} played at the {place}. {S} showed a {object} to",
    "sunny": "It was a sunny day. {A} and {B} ran to the {place}, and {S} handed a {object} to",
    "meeting": "In the morning, {A} and {B} met at the {place}. {S} had a new {object} and gave it to",
    "find": "Last week, {A} and {B} saw a {object} at the {place}. {S} picked it up and passed it to",
    "shop": "When {A} and {B} were at the store, {S} bought a {object} for",
    "catch": "At the {place}, {A} and {B} played catch for a long time. {S} threw the ball to",
    "quarrel": "At first, {A} and {B} were mad about the {object}. Then, at the {place}, {S} said sorry to",
    "two friends": "There once were two friends named {A} and {B}. {S} wanted to give a {object} to",
    "rain": "It began to rain when {A} and {B} were at the {place}. {S} gave a warm coat to",
    "bedtime": "Before bed, {A} and {B} sat down on the rug. {S} read a story about a {object} to",
    "birthday": "The party was over, and {A} and {B} went home from the {place}. {S} still had a {object} for",
    "tidy": "Together, {A} and {B} cleaned up all the toys. After that, {S} brought a {object} to",
    "secret": "Near the {place}, {A} and {B} hid from the others. Very quietly, {S} told a secret to",
}
"""Sentences up to the indirect object. ``{A}`` and ``{B}`` are the first and the second name, ``{S}`` the giver."""

NAMES: tuple[str, ...] = (
    "Tim", "Tom", "Ben", "Max", "Sam", "Bob", "Jack", "Joe", "Billy", "Tommy", "Leo", "Mark", "Jerry", "Jimmy", "Jake",
    "Jim", "Andy", "Bobby", "Pete", "Fred", "Benny", "Dave", "Toby", "Peter", "Alex", "John", "Henry", "George", "Ted",
    "James", "Mike", "Harry", "David", "Tony", "Oliver", "Frank", "Luke", "Rob", "Dan", "Paul", "Matt", "Nick", "Chris",
    "Lily", "Sue", "Mia", "Lucy", "Anna", "Amy", "Sara", "Jane", "Sally", "Sarah", "Daisy", "Molly", "Jill", "Bella",
    "Emma", "Mary", "Luna", "Jen", "Jenny", "Lisa", "Rose", "Ann", "Grace", "Polly", "Betty", "Penny", "Emily", "Kim",
    "Kate", "Sophie", "Ellie", "Cindy", "Annie", "Maria", "Ruby", "Alice", "Zoe", "Beth", "Rachel", "Claire",
)
PLACES: tuple[str, ...] = ("park", "beach", "zoo", "farm", "lake", "school", "store", "garden", "library", "river",
                           "house", "market", "playground", "castle")
OBJECTS: tuple[str, ...] = ("ball", "book", "toy", "cookie", "flower", "hat", "kite", "drum", "doll", "balloon", "cup",
                            "bone", "cake", "leaf", "rock", "picture", "shell", "teddy bear")

FEWEST_NAMES = 5
"""Two in the clean prompt and three others in the corrupt one."""

_NAME_FIELDS = {"A", "B", "S"}
_FIELDS = _NAME_FIELDS | {"place", "object"}


def ioi(tokenizer: Tokenizer, seed: int, count: int, orders: Sequence[Order] = ORDERS,
        templates: Mapping[str, str] | None = None, *, names: Sequence[str] = NAMES, places: Sequence[str] = PLACES,
        objects: Sequence[str] = OBJECTS) -> tuple[PromptText, ...]:
    """Prompts whose answer is the name that the giver leaves over.

    Templates and orders take turns, so any multiple of both counts is balanced; prompt i depends on (seed, i) and the
    options alone, so the first prompts of a larger count are those of a smaller one. Names are drawn evenly among
    those that are one token of the tokenizer.

    Args:
      tokenizer: the model's.
      seed: seed of the draw, at least 0.
      count: number of prompts, at least 1.
      orders: ``ABBA`` names the answer first (Tom and Lily ... Lily gave ... to Tom), ``BABA`` the giver.
      templates: name -> sentence up to the answer, with ``{A}``, ``{B}``, ``{S}`` and, if wanted, ``{place}`` and
        ``{object}``; `TEMPLATES` by default.
      names: first names to choose from.
      places: for ``{place}``, after "the".
      objects: for ``{object}``, after "a".

    Returns:
      ``count`` prompts with groups ``template, order``. A pair has one length; different prompts may have different
      ones.

    Raises:
      DataError: fewer than 5 of the names are one token, a setting is out of range, a template lacks a name, or clean
        and corrupt prompt differ in tokens.
    """
    templates = TEMPLATES if templates is None else templates
    if seed < 0 or count < 1:
        raise DataError(f"seed={seed} must not be negative, and count={count} prompts must be at least 1")
    bad = [orders] if isinstance(orders, str) or not orders else [order for order in orders if order not in ORDERS]
    if bad:
        raise DataError(f"orders: {bad[0]!r} is none; give a list of {' and '.join(ORDERS)}, or one of them")
    for what, given in (("templates", templates), ("names", names), ("places", places), ("objects", objects)):
        if isinstance(given, str) or not given:
            raise DataError(f"{what}={given!r} must hold at least one; leave it out for those of this package")
    for name, template in templates.items():
        _check_template(name, template)
    names = single_token_names(tokenizer, names)
    turns = itertools.islice(itertools.cycle(itertools.product(templates, orders)), count)
    prompts = []
    for i, (template, order) in enumerate(turns):
        rng = np.random.default_rng((seed, i))
        answer, giver, *others = (names[j] for j in rng.permutation(len(names))[:FEWEST_NAMES])
        filling = {"place": places[int(rng.integers(len(places)))], "object": objects[int(rng.integers(len(objects)))]}
        first, second = (answer, giver) if order == "ABBA" else (giver, answer)
        prompt = PromptText(
            clean=templates[template].format(A=first, B=second, S=giver, **filling),
            corrupt=templates[template].format(**dict(zip("ABS", others, strict=True)), **filling),
            answers=(f" {answer}",), wrong_answers=(f" {giver}",), group=f"{template}, {order}")
        _check_lengths(i, prompt, tokenizer)
        prompts.append(prompt)
    return tuple(prompts)


def single_token_names(tokenizer: Tokenizer, names: Sequence[str] = NAMES) -> tuple[str, ...]:
    """The names that are, with the space before them, one token that no other name has.

    A tokenizer that has a token for all unknown words gives that one to many names; they are left out.

    Raises:
      DataError: fewer than 5 are left.
    """
    ids = {name: single_token(tokenizer, f" {name}") for name in names}
    taken = list(ids.values())
    single = tuple(name for name, token in ids.items() if token is not None and taken.count(token) == 1)
    if len(single) < FEWEST_NAMES:
        found = f" ({', '.join(single)})" if single else ""
        raise DataError(f"{len(single)} of {len(ids)} names are one token of this tokenizer{found}, and a prompt pair "
                        f"takes {FEWEST_NAMES}; give names that it has as one token, or a tokenizer of more tokens")
    return single


def _check_lengths(i: int, prompt: PromptText, tokenizer: Tokenizer) -> None:
    try:
        clean, corrupt = (len(tokenizer.encode(text)) for text in (prompt.clean, prompt.corrupt))
    except DataError as error:
        raise DataError(f"prompt {i} ({prompt.group}): {error}; give templates, places and objects in words that the "
                        "tokenizer has") from error
    if clean != corrupt:
        raise DataError(f"prompt {i}: {prompt.clean!r} is {clean} tokens and {prompt.corrupt!r} is {corrupt}; "
                        f"word the template of {prompt.group!r} so that every name is a word with a space before it")


def _check_template(name: str, template: str) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise DataError(f"template {name!r} is no format ({error}); write fields as {{A}}") from error
    unknown, missing = sorted(fields - _FIELDS), sorted(_NAME_FIELDS - fields)
    if unknown or missing:
        what = f"has the unknown field {{{unknown[0]}}}" if unknown else f"lacks {{{missing[0]}}}"
        raise DataError(f"template {name!r} {what}; it takes {{A}}, {{B}} and {{S}}, and may take {{place}} and "
                        "{object}")
    if template != template.rstrip():
        raise DataError(f"template {name!r} ends in white space, which belongs to the answer; end it with a word")
