"""Tasks of circuits: prompt pairs, their texts, files of prompts."""

import dataclasses
import json
import re

import hypothesis
import numpy as np
import pytest
from helpers.external import real_data
from helpers.word_tokenizers import Bytes, Words
from hypothesis import strategies as st

from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import (
    PromptText,
    from_corpus,
    load_prompts,
    load_task,
    save_prompts,
    single_token,
    tokenise,
)
from jaxablate.data import corpus
from jaxablate.data import tokenizer as tok
from jaxablate.errors import DataError, FileError


@pytest.fixture(scope="module")
def gpt2():
    try:
        return tok.gpt2_tokenizer()
    except DataError:
        pytest.skip("GPT-2's vocabulary is neither in TIKTOKEN_CACHE_DIR nor to be had from the network")


def text(**changes) -> PromptText:
    """Rob and Sue, with changes."""
    given = {"clean": "Rob and Sue met. Sue waved to", "corrupt": "Tom and Ann met. Ben waved to",
             "answers": (" Rob",), "wrong_answers": (" Sue",)}
    return PromptText(**{**given, **changes})


def pairs(**changes) -> PromptPairs:
    """Two prompts of three and two tokens."""
    given = {"clean": [[5, 6, 7], [8, 9]], "corrupt": [[5, 4, 7], [3, 9]], "answers": [[1], [2, 3]],
             "wrong_answers": [[2, 4], [1]]}
    return PromptPairs.from_ids(*{**given, **changes}.values(), name="toy")


# Prompt pairs --------------------------------------------------------------------------------------------------------


def test_prompts_are_padded_at_the_left():
    p = pairs()
    assert p.clean.tolist() == [[5, 6, 7], [0, 8, 9]] and p.corrupt.tolist() == [[5, 4, 7], [0, 3, 9]]
    assert p.valid.tolist() == [[True] * 3, [False, True, True]]
    assert p.answers.tolist() == [[1, -1], [2, 3]] and p.wrong_answers.tolist() == [[2, 4], [1, -1]]
    assert {x.dtype for x in (p.clean, p.corrupt, p.answers, p.wrong_answers)} == {np.dtype(np.int32)}
    assert p.groups == ("", "") and p.lengths.tolist() == [3, 2] and len(p) == 2


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
                           min_size=1, max_size=4))
def test_ids_come_back_from_the_arrays(rows):
    clean, corrupt = ([[token[k] for token in row] for row in rows] for k in (0, 1))
    n = len(rows)
    p = PromptPairs.from_ids(clean, corrupt, [[1]] * n, [[2]] * n, name="any")
    assert [row[of].tolist() for row, of in zip(p.clean, p.valid, strict=True)] == clean
    assert [row[of].tolist() for row, of in zip(p.corrupt, p.valid, strict=True)] == corrupt
    assert p.valid[:, -1].all() and p.clean.shape[1] == max(map(len, clean))


def test_taking_prompts_keeps_order_and_width():
    p = pairs()
    taken = p.take([1, 0, 1])
    assert taken.clean.tolist() == p.clean[[1, 0, 1]].tolist() and taken.clean.shape[1] == 3
    assert p.take(np.array([False, True])).answers.tolist() == [[2, 3]] and taken.name == "toy"
    assert p.take(np.arange(2)).digest() == p.digest()
    with pytest.raises(DataError, match="there are no prompts"):
        p.take([])


def test_digest_is_of_every_array():
    p = pairs()
    changed = [pairs(clean=[[5, 6, 8], [8, 9]]), pairs(corrupt=[[5, 4, 8], [3, 9]]), pairs(answers=[[1], [2, 5]]),
               pairs(wrong_answers=[[2, 4], [0]]), p.take([1, 0]), p.take([0])]
    digests = [x.digest() for x in (p, *changed)]
    assert len(set(digests)) == len(digests) and all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
    assert dataclasses.replace(p, name="other", groups=("a", "b")).digest() == p.digest() == pairs().digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": [[5, 6], [8, 9]]}, "toy: prompt 0: clean has 2 tokens and corrupt 3, but"),
        ({"clean": [[5, 6, 7], []]}, "toy: prompt 1: clean has no tokens"),
        ({"corrupt": [[5, 6, 7], []]}, "toy: prompt 1: corrupt has no tokens"),
        ({"answers": [[1], []]}, "toy: prompt 1: answers is empty"),
        ({"wrong_answers": [[], [1]]}, "toy: prompt 0: wrong_answers is empty"),
        ({"wrong_answers": [[2], [1, 3]]}, "toy: prompt 1: token 3 is among the answers and the wrong answers"),
        ({"answers": [[-1], [2]]}, "toy: prompt 0: -1 is no token id"),
        ({"clean": [[5, 6, 2**31], [8, 9]]}, "toy: prompt 0: 2147483648 is no token id"),
        ({"clean": [[5, 6, 7]]}, "toy: 1 clean prompts, 2 corrupt ones, 2 lists of answers"),
        (dict.fromkeys(("clean", "corrupt", "answers", "wrong_answers"), ()), "toy: there are no prompts"),
    ],
)
def test_bad_ids_are_named(changes, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        pairs(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clean", np.zeros((2, 3)), "clean is float64[2, 3], not an array [prompts, 1 or more] of int32"),
        ("valid", [[True] * 3] * 2, "valid is list, not an array"),
        ("clean", np.zeros((2, 4), np.int32), "clean [2, 4], corrupt [2, 3]"),
        ("groups", ("a",), "clean [2, 3], corrupt [2, 3], valid [2, 3], answers [2, 2], wrong_answers [2, 2] and 1"),
        ("valid", np.array([[True, True, False], [False, True, True]]), "prompt 0 is not padded at the left alone"),
        ("valid", np.array([[True] * 3, [True, False, True]]), "prompt 1 is not padded at the left alone"),
        ("answers", np.array([[1], [-1]], np.int32), "prompt 1 has no answers, or -1 before one"),
        ("wrong_answers", np.array([[2, -1, 3], [1, -1, -1]], np.int32), "prompt 0 has no wrong_answers, or -1"),
        ("corrupt", np.full((2, 3), -1, np.int32), "a prompt has a token id below 0; pad with 0"),
    ],
)
def test_bad_arrays_are_named(field, value, message):
    with pytest.raises(DataError, match=re.escape(f"toy: {message}")):
        dataclasses.replace(pairs(), **{field: value})


def test_a_model_must_take_the_prompts():
    pairs().check_fits(context_length=3, vocab_size=10)
    with pytest.raises(DataError, match="toy: prompt 0: 3 tokens are more than the model's context of 2; shorten"):
        pairs().check_fits(context_length=2, vocab_size=10)
    with pytest.raises(DataError, match="toy: token 9 is beyond the model's 9 tokens"):
        pairs().check_fits(context_length=3, vocab_size=9)


# Texts ---------------------------------------------------------------------------------------------------------------


def test_texts_become_their_tokens():
    words = Words()
    p = tokenise([text(group="wave"), text(clean="Sue waved to", corrupt="Ann waved to")], words, name="wave")
    decode = {i: word for word, i in words.ids.items()}
    assert "".join(decode[i] for i in p.clean[0]) == "Rob and Sue met. Sue waved to"
    assert [decode[i] for i in p.clean[1][p.valid[1]]] == ["Sue", " waved", " to"] and p.lengths.tolist() == [8, 3]
    assert decode[p.answers[0, 0]] == " Rob" and decode[p.wrong_answers[0, 0]] == " Sue"
    assert p.groups == ("wave", "") and p.name == "wave"


def test_a_token_before_every_prompt():
    words = Words(eot_id=99)
    plain, begun = (tokenise([text()], words, name="t", bos_id=bos) for bos in (None, 99))
    written = tokenise([text(clean="<|endoftext|>" + text().clean, corrupt="<|endoftext|>" + text().corrupt)], words,
                       name="t")
    assert begun.clean[0].tolist() == [99, *plain.clean[0].tolist()] and written.digest() == begun.digest()
    taken_for_text = tokenise([text(clean="<|endoftext|>a", corrupt="<|endoftext|>b")], Words(), name="t")
    assert taken_for_text.lengths.tolist() == [6], "a tokenizer without such a token reads the signs"


def test_an_answer_given_twice_counts_once():
    assert tokenise([text(answers=(" Rob", " Rob"))], Words(), name="t").answers.shape == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": (" Rob Roy",)}, "f.json: prompt 1: answer ' Rob Roy' is 2 tokens for this tokenizer"),
        ({"answers": ("",)}, "f.json: prompt 1: answer '' is 0 tokens"),
        ({"wrong_answers": (" Sue", " Ann Lee")}, "f.json: prompt 1: wrong answer ' Ann Lee' is 2 tokens"),
        ({"corrupt": "Tom and Ann met."}, "f.json: prompt 1: clean has 8 tokens and corrupt 5, but positions"),
        ({"clean": "", "corrupt": ""}, "f.json: prompt 1: clean has no tokens; write a text"),
        ({"clean": "a " * 9, "corrupt": "b " * 9}, "f.json: prompt 1: 9 tokens are more than the model's context of 8"),
        ({"wrong_answers": (" Rob",)}, "is among the answers and the wrong answers"),
    ],
)
def test_texts_that_do_not_fit_are_named(changes, message):
    prompts = [text(), text(**changes)]
    with pytest.raises(DataError, match=re.escape(message)) as error:
        tokenise(prompts, Words(), name="t", context_length=8, source="f.json")
    assert "\n" not in str(error.value)


def test_the_token_before_counts_for_the_context():
    tokenise([text()], Words(), name="t", context_length=8)
    with pytest.raises(DataError, match="9 tokens are more than the model's context of 8"):
        tokenise([text()], Words(), name="t", context_length=8, bos_id=0)


def test_words_that_the_tokenizer_lacks_are_named():
    words = corpus.CorpusTokenizer()
    with pytest.raises(DataError, match="t: prompt 0: ' hospital' at character 21 is not among"):
        tokenise([text(clean="Then, Rob went to the hospital")], words, name="t")
    fine = text(clean="Then, Rob", corrupt="Then, Sue")
    with pytest.raises(DataError, match="t: prompt 0: answer ' Zog': ' Zog' at character 0"):
        tokenise([dataclasses.replace(fine, answers=(" Zog",))], words, name="t")
    assert single_token(words, " Zog") is None and [single_token(words, " Rob")] == words.encode(" Rob")


def test_no_texts_and_no_answers_are_refused():
    with pytest.raises(DataError, match="t: there are no prompts"):
        tokenise([], Words(), name="t")
    with pytest.raises(DataError, match="answers=' Rob' must be a list of at least one text"):
        text(answers=" Rob")
    with pytest.raises(DataError, match=re.escape("wrong_answers=() must be a list")):
        text(wrong_answers=())


def test_the_corpus_has_a_task_of_its_own():
    made = corpus.ioi_prompts(3, 14)
    p = tokenise(from_corpus(made), corpus.CorpusTokenizer(), name="corpus", context_length=20)
    assert len(p) == 14 and p.groups[0] == f"{made[0].template}, {made[0].order}"
    assert corpus.CorpusTokenizer().decode(p.clean[5][p.valid[5]]) == made[5].clean
    assert corpus.CorpusTokenizer().decode(p.wrong_answers[5]) == made[5].wrong_answer


# Files ---------------------------------------------------------------------------------------------------------------

GOOD = {"clean": "Rob and Sue met. Sue waved to", "corrupt": "Tom and Ann met. Ben waved to", "answers": [" Rob"],
        "wrong_answers": [" Sue"]}


@pytest.mark.parametrize("content", [{"word_idxs": {"end": 7}, "prompts": [GOOD, GOOD]}, [GOOD, GOOD],
                                     [{**GOOD, "note": 3}, {**GOOD, "group": ""}]])
def test_both_layouts_are_read(tmp_path, content):
    path = tmp_path / "greetings.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_prompts(path) == (text(), text())
    p = load_task(str(path), Words(), context_length=8)
    assert (p.name, len(p), p.groups) == ("greetings", 2, ("", ""))


def test_written_prompts_are_read_back(tmp_path):
    prompts = (text(group="wave, ABBA"), text(clean="Zoë and 李 met 🙂", answers=(" Rob", " Zoë")))
    path = tmp_path / "new" / "task.json"
    save_prompts(path, prompts)
    save_prompts(path, prompts)
    assert load_prompts(path) == prompts
    assert [f.name for f in path.parent.iterdir()] == ["task.json"]
    assert json.loads(path.read_text())["prompts"][0] == {**GOOD, "group": "wave, ABBA"}


def test_nothing_is_left_where_writing_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "task.json", tmp_path / "folder"):
        with pytest.raises(FileError):
            save_prompts(path, [text()])
    with pytest.raises(DataError, match="none.json is not written: there are no prompts"):
        save_prompts(tmp_path / "none.json", [])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE is empty; write an object with \"prompts\""),
        (" \n", "FILE is empty"),
        ("[{]", "FILE is not JSON (Expecting property name"),
        ("[" * 100_000, "FILE is not JSON (maximum recursion"),
        ("3", "FILE: the prompts are a number, not a list"),
        ('{"promts": [], "x": 1}', "FILE has no \"prompts\" (its keys: 'promts', 'x'); write"),
        ("{}", 'FILE has no "prompts" (its keys: nothing)'),
        ('{"prompts": {}}', "FILE: the prompts are an object, not a list"),
        ("[]", "FILE: the list of prompts is empty; write at least one prompt"),
        ('{"prompts": []}', "FILE: the list of prompts is empty"),
        (["a"], "FILE: prompt 0 is a text, not an object"),
        ([GOOD, {"clean": "a", "corrupt": "b", "answers": ["c"]}], "FILE: prompt 1 has no 'wrong_answers'; it needs"),
        ([GOOD, {**GOOD, "clean": ["a"]}], "FILE: prompt 1: 'clean' is a list; write a text"),
        ([{**GOOD, "corrupt": None}], "FILE: prompt 0: 'corrupt' is null"),
        ([{**GOOD, "answers": " Rob"}], "FILE: prompt 0: 'answers' is a text; write a list of texts, for"),
        ([{**GOOD, "answers": []}], "FILE: prompt 0: 'answers' is empty; write a list of texts"),
        ([{**GOOD, "answers": [" Rob", True]}], "FILE: prompt 0: 'answers' has true or false in it; write a list"),
        ([{**GOOD, "wrong_answers": [None]}], "FILE: prompt 0: 'wrong_answers' has null in it"),
        ([{**GOOD, "group": 3}], "FILE: prompt 0: 'group' is a number; write a text"),
        ([GOOD, {**GOOD, "corrupt": "Tom met"}], "FILE: prompt 1: clean has 8 tokens and corrupt 2, but positions"),
        ([GOOD, GOOD, {**GOOD, "answers": [" Rob Roy"]}], "FILE: prompt 2: answer ' Rob Roy' is 2 tokens for this"),
        ([{**GOOD, "clean": "a " * 9, "corrupt": "b " * 9}], "FILE: prompt 0: 9 tokens are more than the model's"),
        ([{**GOOD, "clean": "", "corrupt": ""}], "FILE: prompt 0: clean has no tokens; write a text"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "task.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=re.escape(message).replace("FILE", re.escape(str(path)))) as error:
        load_task(path, Words(), context_length=8)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin").write_bytes(b'["\xe9"]')
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory"),
                         (tmp_path / "latin", "'utf-8' codec can't decode")):
        with pytest.raises(DataError, match=f"prompt file {re.escape(str(path))} cannot be read .{reason}"):
            load_prompts(path)


@pytest.mark.parametrize("name", ["autocircuit_ioi_customized_prompts", "autocircuit_ioi_prompts"])
def test_the_papers_prompts_are_read(gpt2, name):
    p = load_task(real_data("ioi", f"{name}.json"), gpt2, context_length=256)
    assert p.clean.shape == (1000, 20) and p.lengths.min() == 14
    assert p.answers.shape == p.wrong_answers.shape == (1000, 1)
    assert (p.clean != p.corrupt).sum(-1).max() <= 3, "names differ, nothing else"


def test_prompts_of_another_tokenizer_are_refused():
    path = real_data("ioi", "autocircuit_ioi_customized_prompts.json")
    with pytest.raises(DataError, match="customized_prompts.json: prompt 0: answer ' Rob' is 4 tokens"):
        load_task(path, Bytes())
