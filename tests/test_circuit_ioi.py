"""Indirect-object prompts for any tokenizer."""

import collections
import re

import pytest
from helpers.word_tokenizers import Bytes, Unknowns, Words

from jaxablate.circuits.ioi import NAMES, OBJECTS, TEMPLATES, ioi, single_token_names
from jaxablate.circuits.tasks import tokenise
from jaxablate.data import corpus
from jaxablate.data import tokenizer as tok
from jaxablate.errors import DataError


@pytest.fixture(scope="module")
def gpt2():
    try:
        return tok.gpt2_tokenizer()
    except DataError:
        pytest.skip("GPT-2's vocabulary is neither in TIKTOKEN_CACHE_DIR nor to be had from the network")


def names_in(prompt: str) -> list[str]:
    return [word for word in re.findall(r"\w+", prompt) if word in NAMES]


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_the_answer_is_the_name_left_over(order):
    for prompt in ioi(Words(), 5, 3 * len(TEMPLATES), [order]):
        first, second, giver = names_in(prompt.clean)
        assert giver == (second if order == "ABBA" else first) and first != second
        left = first if order == "ABBA" else second
        assert prompt.answers == (f" {left}",) and prompt.wrong_answers == (f" {giver}",)
        others = names_in(prompt.corrupt)
        assert len({first, second, *others}) == 5, "three other names"
        swap = dict(zip(others, "ABS", strict=True)), dict(zip((first, second), "AB", strict=True))
        bare = [re.sub(r"\w+", lambda m, s=s: "#" if m[0] in s else m[0], t)
                for s, t in zip(swap, (prompt.corrupt, prompt.clean), strict=True)]
        assert bare[0] == bare[1], "but for the names the texts are the same"


def test_prompts_depend_on_seed_and_number_alone():
    words = Words()
    many = ioi(words, 7, 100)
    assert ioi(words, 7, 30) == many[:30] and ioi(words, 7, 100) == many
    other = ioi(words, 8, 100)
    assert sum(a == b for a, b in zip(many, other, strict=True)) <= 2 and len(set(many)) > 95


def test_templates_and_orders_are_balanced():
    groups = collections.Counter(p.group for p in ioi(Words(), 0, 2 * 2 * len(TEMPLATES)))
    assert groups == {f"{t}, {o}": 2 for t in TEMPLATES for o in ("ABBA", "BABA")} and len(TEMPLATES) >= 10
    answers = collections.Counter(p.answers[0] for p in ioi(Words(), 0, 2000))
    assert len(answers) == len(NAMES) and max(answers.values()) < 3 * 2000 / len(NAMES)


def test_only_names_of_one_token_are_used():
    words = Words(long=NAMES[6:])
    assert single_token_names(words) == NAMES[:6]
    used = {name for p in ioi(words, 0, 60) for name in names_in(p.clean + " " + p.corrupt)}
    assert used == set(NAMES[:6])
    p = tokenise(ioi(words, 0, 60), words, name="ioi")
    assert len(p) == 60 and not (p.clean == p.corrupt)[p.valid].all()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Bytes(), f"0 of {len(NAMES)} names are one token of this tokenizer, and a prompt pair takes 5; give names"),
        (Words(long=NAMES[4:]), f"4 of {len(NAMES)} names are one token of this tokenizer (Tim, Tom, Ben, Max), and"),
    ],
)
def test_too_few_names_say_how_many_there_are(tokenizer, message):
    with pytest.raises(DataError, match=re.escape(message)):
        ioi(tokenizer, 0, 4)


def test_names_that_share_a_token_are_no_names():
    assert single_token_names(Unknowns()) == Unknowns.known


def test_a_tokenizer_without_the_words_says_so():
    with pytest.raises(DataError, match=r"prompt 2 \(lunch, ABBA\): ' lunch' at character 5 is not .*; give templates"):
        ioi(corpus.CorpusTokenizer(), 0, 4)


class Merging(Words):
    """Takes Sam and the word after it for one token, but Sam alone too."""

    def encode(self, text: str) -> list[int]:
        return super().encode(re.sub(r" Sam (\w+)", r" Sam\1", text))


def test_pairs_of_two_lengths_are_named():
    with pytest.raises(DataError, match=r"prompt \d+: '.*' is \d+ tokens and '.*' is \d+; word the template of"):
        ioi(Merging(), 0, 40, names=("Tim", "Tom", "Ben", "Max", "Sam"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"count": 0}, "count=0 prompts must be at least 1"),
        ({"orders": ("ABAB",)}, "orders: 'ABAB' is none; give a list of ABBA and BABA"),
        ({"orders": "ABBA"}, "orders: 'ABBA' is none"),
        ({"orders": ()}, "orders: () is none"),
        ({"templates": {}}, "templates={} must hold at least one"),
        ({"names": "Tom"}, "names='Tom' must hold at least one"),
        ({"places": ()}, "places=() must hold at least one"),
        ({"templates": {"t": "Then, {A} and {B} left, so she ran to"}}, "template 't' lacks {S}; it takes {A}"),
        ({"templates": {"t": "{A} and {B}. {S} at the {plaec} to"}}, "template 't' has the unknown field {plaec}"),
        ({"templates": {"t": "{A} and {B}. {S} ran to {"}}, "template 't' is no format"),
        ({"templates": {"t": "{A} and {B}. {S} ran to "}}, "template 't' ends in white space"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        ioi(Words(), **{"seed": 0, "count": 4, **changes})
    assert "\n" not in str(error.value)


def test_own_templates_and_words():
    made = ioi(Words(), 0, 2, templates={"mine": "So {A} and {B} ran. {S} had a {object} at the {place} for"},
               objects=["spoon"], places=["moon"])
    assert all(p.clean.endswith("had a spoon at the moon for") for p in made)
    assert [p.group for p in made] == ["mine, ABBA", "mine, BABA"]


def test_own_sentences_are_well_formed():
    for name, template in TEMPLATES.items():
        assert template.split()[-1] in ("to", "for") and template[0].isupper() and "  " not in template, name
        assert all(f" {{{field}}}" in template for field in "ABS"), f"{name}: names have a space before them"
    assert len(set(NAMES)) == len(NAMES) and not any(word[0] in "aeiou" for word in OBJECTS)


def test_a_trained_vocabulary_makes_the_task():
    stories = [f"{name} and {other} went to the park. One day, {name} saw {other}." for name in NAMES[:9]
               for other in NAMES[:9]]
    bpe = tok.train_bpe(stories, 400)
    assert set(NAMES[:9]) <= set(single_token_names(bpe))
    p = tokenise(ioi(bpe, 0, 56), bpe, name="ioi")
    assert len(p) == 56 and not p.valid.all(), "prompts of several lengths, padded at the left"


def test_gpt2_makes_the_task(gpt2):
    assert single_token_names(gpt2) == NAMES
    prompts = ioi(gpt2, 0, 280)
    p = tokenise(prompts, gpt2, name="ioi", context_length=24)
    assert p.lengths.min() >= 12 and p.lengths.max() <= 24
    assert gpt2.decode(p.clean[3][p.valid[3]]) == prompts[3].clean
    whole = gpt2.encode(prompts[3].clean + prompts[3].answers[0])
    assert whole == [*p.clean[3][p.valid[3]], p.answers[3, 0]], "prompt and answer are the tokens of the whole text"
