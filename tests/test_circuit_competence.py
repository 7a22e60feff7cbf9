"""Competence: can the model do the task that its circuit is of?"""

import dataclasses
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxablate.circuits.competence import competence, is_top, margins
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.errors import DataError


def task(answers, wrong, groups=None) -> PromptPairs:
    n = len(answers)
    return PromptPairs.from_ids([[9]] * n, [[8]] * n, answers, wrong, name="toy", groups=groups)


def test_competence_by_hand():
    logits = np.array([
        [4.0, 1.0, 3.0, 0.0],   # margin 3, top
        [2.0, 1.0, 5.0, 0.0],   # margin 1, another token is top
        [1.0, 1.0, 0.0, 0.0],   # margin 0: a tie is neither right nor top
        [0.0, 2.0, 0.0, 0.0],   # margin -2
    ])
    c = competence(logits, task([[0]] * 4, [[1]] * 4, ["a", "b", "a", "b"]))
    assert (c.n, c.accuracy.value, c.top1.value, c.logit_difference.value) == (4, 0.5, 0.25, 0.5)
    assert c.by_group == (("a", 2, 0.5, 1.5), ("b", 2, 0.5, -0.5))
    assert np.allclose(c.accuracy.interval, (0.15004, 0.84996), atol=1e-5)  # Wilson, 2 of 4
    assert np.allclose(c.top1.interval, (0.04559, 0.69936), atol=1e-5)  # Wilson, 1 of 4
    low, high = c.logit_difference.interval
    assert -2 <= low < 0.5 < high <= 3
    assert competence(logits, task([[0]] * 4, [[1]] * 4)) == dataclasses.replace(c, by_group=(("", 4, 0.5, 0.5),))


def test_several_answers_are_averaged():
    logits = np.array([[5.0, 1.0, 2.0, 0.0], [0.0, 0.0, 4.0, 3.0]])
    p = task([[0], [2, 3]], [[1, 2], [1]])
    assert margins(logits, p).tolist() == [3.5, 3.5] and is_top(logits, p).tolist() == [True, True]
    # The last column is not hit by the -1 that fills up rows.
    assert is_top(np.array([[1.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0]]), p).tolist() == [False, True]


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_log_probabilities_do_as_well(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 5))
    p = task([[int(i)] for i in rng.integers(0, 2, 6)], [[int(i)] for i in rng.integers(2, 5, 6)])
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    a, b = competence(logits, p), competence(logprobs, p)
    assert (a.accuracy, a.top1) == (b.accuracy, b.top1)
    assert np.isclose(a.logit_difference.value, b.logit_difference.value)
    flipped = dataclasses.replace(p, answers=p.wrong_answers, wrong_answers=p.answers)
    assert np.allclose(margins(logits, flipped), -margins(logits, p))
    order = rng.permutation(6)
    assert competence(logits[order], p.take(order)).accuracy == a.accuracy


def test_one_prompt_has_no_interval_of_the_mean():
    c = competence(np.array([[1.0, 0.0]], np.float32), task([[0]], [[1]]))
    assert c.logit_difference.interval is None and c.accuracy.high == 1.0


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((3, 4)), "toy: logits of shape [3, 4] for 2 prompts; give [prompts, tokens]"),
        (np.zeros((2, 1, 4)), "toy: logits of shape [2, 1, 4] for 2 prompts"),
        (np.zeros((2, 1)), "toy: answer 1 is beyond the model's 1 tokens"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), "toy: logits of prompt 1 are not finite"),
    ],
)
def test_logits_that_do_not_fit_are_named(logits, message):
    with pytest.raises(DataError, match=re.escape(message)):
        competence(logits, task([[0]] * 2, [[1]] * 2))
