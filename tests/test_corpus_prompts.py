"""The corpus's tokenizer and its indirect-object prompts."""

import re

import pytest

from jaxablate.data import corpus
from jaxablate.data.corpus import words
from jaxablate.data.corpus.grammar import VOCABULARY, split_words
from jaxablate.data.tokenizer import Tokenizer, load_tokenizer
from jaxablate.errors import DataError

TOKENIZER = corpus.CorpusTokenizer()
NAME = "(" + "|".join(words.NAMES) + ")"


# Tokenizer -----------------------------------------------------------------------------------------------------------


def test_satisfies_the_protocol():
    assert isinstance(TOKENIZER, Tokenizer)
    assert TOKENIZER.vocab_size == len(VOCABULARY) and TOKENIZER.decode([TOKENIZER.eot_id]) == "<|endoftext|>"


def test_round_trip_is_exact():
    texts = [story.text for story in corpus.stories(0, 0, 300)]
    assert [TOKENIZER.decode(ids) for ids in TOKENIZER.encode_batch(texts)] == texts
    assert TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == ""


def test_names_are_one_token_with_their_space():
    for name in words.NAMES:
        assert len(TOKENIZER.encode(f" {name}")) == 1


@pytest.mark.parametrize(
    ("text", "named", "near"),
    [
        ("Then, Robb gave", "' Robb' at character 5", "' Rob'"),
        ("Rob gave", "'Rob' at character 0", "' Rob'"),
        ("Then, Rob gave 3", "' ' at character 14", ""),
        ("Then,\tRob", "'\\t' at character 5", ""),
        ("Then, Rob\nand", "'\\n' at character 9", ""),
        ("<|endoftext|>", "'<|endoftext|>' at character 0", ""),
        ("Then, Rob went to the hospital", "' hospital' at character 21", ""),
    ],
)
def test_unknown_words_are_named_with_their_nearest(text, named, near):
    with pytest.raises(DataError) as error:
        TOKENIZER.encode(text)
    assert named in str(error.value) and near in str(error.value)


@pytest.mark.parametrize("bad", [-1, len(VOCABULARY)])
def test_ids_beyond_the_vocabulary_are_named(bad):
    with pytest.raises(DataError, match=f"token id {bad}"):
        TOKENIZER.decode([1, bad])


def test_saved_tokenizer_loads(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.fingerprint() == TOKENIZER.fingerprint() and loaded.name == "corpus"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (' said, "Here, Rob!"', [" said", ",", ' "', "Here", ",", " Rob", '!"']),
        ("Rob's mom.\n\nThen", ["Rob", "'s", " mom", ".", "\n\n", "Then"]),
        ('"I got it,"<|endoftext|>', ['"', "I", " got", " it", ',"', "<|endoftext|>"]),
    ],
)
def test_words_split_like_gpt2(text, tokens):
    assert split_words(text) == tokens


# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    return corpus.ioi_prompts(0, 140)


def _pair(prompt):
    index = {f" {name}": i for i, name in enumerate(words.NAMES)}
    return index[prompt.answer], index[prompt.wrong_answer]


def test_prompt_has_the_indirect_object_pattern(prompts):
    for p in prompts:
        a, b, s = re.findall(NAME, p.clean)
        assert {f" {a}", f" {b}"} == {p.answer, p.wrong_answer} and f" {s}" == p.wrong_answer
        assert p.order == ("ABBA" if f" {a}" == p.answer else "BABA")
        assert p.clean.endswith(" to")


def test_corrupt_prompt_differs_in_its_three_names_alone(prompts):
    for p in prompts:
        clean, corrupt = TOKENIZER.encode(p.clean), TOKENIZER.encode(p.corrupt)
        assert len(clean) == len(corrupt)
        assert re.sub(NAME, "*", p.clean) == re.sub(NAME, "*", p.corrupt)
        names = re.findall(NAME, p.corrupt)
        assert len(set(names)) == 3 and not {f" {n}" for n in names} & {p.answer, p.wrong_answer}


def test_prompts_of_a_template_have_one_length(prompts):
    lengths = {}
    for p in prompts:
        lengths.setdefault(p.template, set()).add(len(TOKENIZER.encode(p.clean)))
    assert set(lengths) == set(corpus.IOI_LINES) and all(len(n) == 1 for n in lengths.values())


def test_templates_and_orders_are_balanced(prompts):
    for template in corpus.IOI_LINES:
        assert [sum(p.template == template and p.order == o for p in prompts) for o in ("ABBA", "BABA")] == [10, 10]


def test_prompts_are_sentences_of_the_corpus(prompts):
    names = re.compile(f" {NAME}")
    nouns = re.compile(rf"\ban? ({'|'.join(n.word for n in words.NOUNS)})\b")
    places = re.compile(rf"((at|in|by) )?the ({'|'.join(p.word for p in words.PLACES)})\b")

    def skeleton(text):
        return places.sub("PLACE", nouns.sub("THING", names.sub(" NAME", text)))

    written = "\n".join(skeleton(story.text) for story in corpus.stories(0, 0, 4000))
    for p in prompts:
        assert skeleton(p.clean) + " NAME" in written, p.clean


@pytest.mark.parametrize(("pairs", "expected"), [("held_out", {True}), ("seen", {False}), ("any", {True, False})])
def test_pairs_are_of_the_kind_asked_for(pairs, expected):
    assert {words.held_out(*_pair(p)) for p in corpus.ioi_prompts(1, 200, pairs=pairs)} == expected


def test_prompts_are_a_function_of_seed_and_options(prompts):
    assert corpus.ioi_prompts(0, 30) == prompts[:30] and corpus.ioi_prompts(1, 30) != prompts[:30]
    only = corpus.ioi_prompts(0, 4, names=("after",), orders=("BABA",))
    assert {(p.template, p.order) for p in only} == {("after", "BABA")}
    assert corpus.ioi_prompts(0, 0) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "rare"}, "held_out, seen, any"),
        ({"names": ("party",)}, "no template 'party'"),
        ({"names": ()}, "no template given"),
        ({"orders": ("AABB",)}, "ABBA, BABA"),
        ({"count": -1}, "count=-1"),
    ],
)
def test_bad_options_are_data_errors(options, message):
    with pytest.raises(DataError, match=message):
        corpus.ioi_prompts(**{"seed": 0, "count": 1, **options})
