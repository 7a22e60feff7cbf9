"""Suite `importance` against loops over words, on a model whose probability is a known function of the words."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.labelled_texts import batches, check_plain, draw, splits_of
from helpers.weights import drawn_params

from jaxablate.classifier.measures import by_text, word_importance
from jaxablate.config import ClassificationConfig, ClassifierConfig, Config, MeshConfig
from jaxablate.data.tokenizer import WordTokenizer
from jaxablate.models.classifier import SafrClassifier
from jaxablate.runs.run import Run
from jaxablate.sharding import batch_sharding, make_mesh, replicated
from jaxablate.suites import importance


class BagOfWords:
    """P(class 1) = sigmoid(sum of the words' weights); VMASK keeps a word with a probability of its own."""

    def __init__(self, vmask=True):
        self.vmask = vmask

    def apply(self, variables, tokens, mask, scale_BL=None):
        params = variables["params"]
        weight = params["weight"][tokens] * mask * (1 if scale_BL is None else scale_BL)
        logits = jnp.stack([jnp.zeros(len(tokens)), weight.sum(-1)], axis=-1)
        return types.SimpleNamespace(logits=logits, keep=params["keep"][tokens] if self.vmask else None)


BAG = BagOfWords()  # one model for all tests: what is compiled for it is compiled once
PARAMS = {"weight": np.array([99.0, 2.0, -1.0, 0.5, -0.25], np.float32),
          "keep": np.array([0.9, 0.1, 0.8, 0.3, 0.2], np.float32)}
TEXT = [3, 1, 2, 4]
"""Weights 0.5, 2, -1, -0.25: class 1; by keep-probability 2, 3, 4, 1, by gradient 1, 2, 3, 4."""


def probability(words, params=PARAMS):
    return 1 / (1 + np.exp(-sum(float(params["weight"][w]) for w in words)))


def values(result):
    return {(x.name, x.ranking): x.mean.value for x in result.measures}


@pytest.mark.parametrize("length", [4, 8])
def test_a_text_of_four_words_by_hand(length):
    found = values(importance.evaluate(BAG, PARAMS, batches([TEXT], [0], rows=2, length=length)))
    full = probability(TEXT)
    drops = {"vmask": [full - probability(left) for left in ([3, 1, 4], [1, 4], [1])],
             "gradient": [full - probability(left) for left in ([3, 2, 4], [3, 4], [4])]}
    for ranking, drop in drops.items():
        expected = [*drop, *[drop[-1]] * 7]  # the last word stays
        assert [found[f"drop@{k}", ranking] for k in range(1, 11)] == pytest.approx(expected, abs=1e-6)
        assert found["AOPC", ranking] == pytest.approx(np.mean(expected), abs=1e-6)
        # 1, 5, 10 and 20 % of four words are one word, 50 % are two
        assert found["comprehensiveness", ranking] == pytest.approx((4 * drop[0] + drop[1]) / 5, abs=1e-6)
    kept = [probability(left) for left in ([2], [3, 2])]
    assert found["sufficiency", "vmask"] == pytest.approx(full - (4 * kept[0] + kept[1]) / 5, abs=1e-6)
    # class 1 for the whole text; its words by keep-probability alone: -1, -0.5, -0.75 and all
    assert [found[f"post-hoc accuracy@{k}", "vmask"] for k in (1, 2, 3, 5, 10)] == [0, 0, 0, 1, 1]
    assert [found[f"post-hoc gold accuracy@{k}", "vmask"] for k in (1, 2, 3, 5, 10)] == [1, 1, 1, 0, 0]
    assert [found[f"post-hoc accuracy@{k}", "gradient"] for k in (1, 2, 3, 5, 10)] == [1, 1, 1, 1, 1]


def test_many_texts_by_loops_over_their_words():
    rng = np.random.default_rng(0)
    params = {"weight": rng.normal(size=20).astype(np.float32), "keep": (rng.permutation(20) / 20).astype(np.float32)}
    texts, labels = draw(16, longest=25)
    found = values(importance.evaluate(BAG, params, batches(texts, labels, rows=7)))
    for ranking, of in (("vmask", params["keep"]), ("gradient", np.abs(params["weight"]))):
        expected = {name: np.mean([measure(text, label, [float(of[w]) for w in text], params)[name]
                                   for text, label in zip(texts, labels, strict=True)])
                    for name in measure([1], 0, [1.0], params)}
        assert {name: found[name, ranking] for name in expected} == pytest.approx(expected, abs=1e-5)


def measure(text, label, score, params):
    """All measures of one text, one word after another."""
    order = sorted(range(len(text)), key=lambda i: -score[i])
    full = probability(text, params)
    predicted = int(full > 0.5)

    def p(count, keep):
        chosen = set(order[:count] if keep else order[min(count, len(text) - 1):])
        one = probability([w for i, w in enumerate(text) if i in chosen], params)
        return one if predicted else 1 - one

    full = full if predicted else 1 - full
    shares = [max(1, int(np.ceil(r * len(text) / 100 - 1e-9))) for r in (1, 5, 10, 20, 50)]
    same = {k: p(k, True) > 0.5 for k in (1, 2, 3, 5, 10)}
    return {"AOPC": np.mean([full - p(k, False) for k in range(1, 11)]),
            "comprehensiveness": np.mean([full - p(k, False) for k in shares]),
            "sufficiency": np.mean([full - p(k, True) for k in shares]),
            **{f"post-hoc accuracy@{k}": same[k] for k in same},
            **{f"post-hoc gold accuracy@{k}": (predicted if same[k] else 1 - predicted) == label for k in same}}


def test_words_are_taken_out_and_the_rest_closes_up():
    tokens = np.array([[5, 6, 7, 8], [1, 2, 3, 0]])
    kept = np.array([[True, False, True, False], [False, False, True, False]])
    found, mask = importance.shortened(tokens, kept, 3, pad_id=9)
    assert found.tolist() == [[5, 7, 9], [3, 9, 9]] and mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_rankings_are_told_apart():
    """Words 1 decide, the others are noise: VMASK knows, so it beats chance; its differences are paired."""
    rng = np.random.default_rng(0)
    params = {"weight": np.array([0, 5.0, *rng.normal(scale=0.1, size=18)], np.float32),
              "keep": np.array([0, 1.0, *rng.uniform(0, 0.5, size=18)], np.float32)}
    texts = [[*rng.integers(2, 20, size=9).tolist(), 1] for _ in range(60)]
    result = importance.evaluate(BAG, params, batches(texts, [1] * 60, rows=20))
    found = {(x.name, x.ranking): x.mean for x in (*result.measures, *result.differences)}
    assert found["drop@1", "vmask"].value > 0.4 > found["drop@1", "random"].value
    difference = found["AOPC", "vmask - random"]
    assert difference.interval[0] > 0
    assert difference.value == pytest.approx(found["AOPC", "vmask"].value - found["AOPC", "random"].value)
    low, high = found["AOPC", "vmask - gradient"].interval
    assert low <= 0 <= high
    check_plain(result)


def test_the_random_ranking_depends_on_seed_text_and_position_alone():
    one = np.asarray(importance.random_importance(np.array([3, 7]), length=8, seed=0))
    two = np.asarray(importance.random_importance(np.array([7, 9, 3]), length=16, seed=0))
    np.testing.assert_array_equal(one, two[[2, 0], :8])
    assert not np.array_equal(one, importance.random_importance(np.array([3, 7]), length=8, seed=1))
    assert len(np.unique(two)) == two.size


def test_batches_padding_and_filler_rows_do_not_matter():
    texts, labels = draw(23, vocabulary=5)
    order = np.random.default_rng(1).permutation(23).tolist()
    one = importance.evaluate(BAG, PARAMS, batches(texts, labels, rows=23, length=12))
    other = importance.evaluate(BAG, PARAMS, batches(texts, labels, rows=5, length=32, order=order))
    assert one == other and one.texts == one.of == 23 and one.words == sum(map(len, texts))


def test_the_choice_of_texts_keeps_to_both_limits_and_the_order():
    texts, labels = draw(50, longest=20)
    rows = by_text(batches(texts, labels), importance._as_rows)
    few = importance.draw(rows, max_texts=10, max_words=10**6, seed=0)
    assert len(few["index"]) == 10 and sorted(few["index"]) == few["index"].tolist()
    assert importance.draw(rows, max_texts=10, max_words=10**6, seed=1)["index"].tolist() != few["index"].tolist()
    mean = np.mean([len(t) for t in texts])
    assert len(importance.draw(rows, max_texts=50, max_words=100, seed=0)["index"]) == int(100 / mean)
    laid_out = list(importance.batches_of(rows))
    assert {b["tokens"].shape for b in laid_out} == {(32, 16), (32, 20)}  # 20 came in: 24 may be too long for the model
    again = by_text(laid_out, lambda b: {"label": b["labels"], "tokens": np.where(b["mask"] > 0, b["tokens"], np.nan)})
    assert again["label"].tolist() == labels
    assert [[int(w) for w in row if not np.isnan(w)] for row in again["tokens"]] == texts


def test_paper_padding_keeps_each_text_at_the_length_it_came_in():
    seen = []

    class Lengths(BagOfWords):
        def apply(self, variables, tokens, mask, scale_BL=None):
            seen.append(tokens.shape[-1])
            return super().apply(variables, tokens, mask, scale_BL)

    texts, labels = draw(5, vocabulary=5)
    fixed = importance.evaluate(Lengths(), PARAMS, batches(texts, labels, length=32), fixed_length=True, pad_id=4)
    assert set(seen) == {32}
    assert fixed == importance.evaluate(BAG, PARAMS, batches(texts, labels))


def test_gradient_is_that_of_the_predicted_class():
    (batch,) = batches([TEXT, [2, 2]], [0, 0], rows=3, length=5)
    found = word_importance(BAG, PARAMS, batch)
    assert found["predicted"].tolist()[:2] == [1, 0]
    p = probability(TEXT), 1 - probability([2, 2])
    np.testing.assert_allclose(found["probability"][:2], p, rtol=1e-6)
    np.testing.assert_allclose(found["gradient"][0], np.array([0.5, 2, 1, 0.25, 0]) * (1 - p[0]), rtol=1e-5)
    np.testing.assert_allclose(found["gradient"][1], np.array([1, 1, 0, 0, 0]) * (1 - p[1]), rtol=1e-5)
    np.testing.assert_allclose(found["gradient"][2], 0)


def test_without_vmask_two_rankings_are_left():
    result = importance.evaluate(BagOfWords(vmask=False), PARAMS, batches(*draw(6, vocabulary=5)))
    assert {x.ranking for x in result.measures} == {"gradient", "random"}
    assert {x.ranking for x in result.differences} == {"gradient - random"}
    check_plain(result)


def test_the_seed_decides_the_draws():
    split = batches(*draw(30, vocabulary=5))
    a, b, c = (importance.evaluate(BAG, PARAMS, split, seed=s) for s in (0, 0, 1))
    assert a == b and a.measures != c.measures
    assert [x.mean.value for x in a.measures if x.ranking == "vmask"] == [
        x.mean.value for x in c.measures if x.ranking == "vmask"]


def test_texts_may_be_spread_over_devices():
    mesh = make_mesh(MeshConfig())
    split = batches(*draw(12, vocabulary=5), rows=8)
    spread = (jax.device_put(batch, batch_sharding(mesh)) for batch in split)
    found = importance.evaluate(BAG, jax.device_put(PARAMS, replicated(mesh)), spread)
    assert found == importance.evaluate(BAG, PARAMS, split)


@pytest.mark.parametrize("padding", ["masked", "paper"])
def test_the_suite_runs_on_a_classifier(padding):
    config = ClassifierConfig(vocab_size=20, max_length=16, d_model=8, n_heads=2, vmask_width=4, padding=padding)
    model = SafrClassifier(config)
    params = drawn_params(model, np.zeros((1, 4), np.int32), np.ones((1, 4), np.float32))
    run = Run(config=ClassificationConfig(model=config), model=model, params=params, tokenizer=WordTokenizer([]),
              splits=splits_of(test=batches(*draw(9), length=16)))
    result, options = importance.SUITE.run(run)
    assert result.texts == options["texts"] == 9
    names = [f"{name} {ranking}" for name in ("post-hoc accuracy@3", "AOPC", "comprehensiveness", "sufficiency")
             for ranking in ("vmask", "gradient", "random")]
    assert [f.name for f in result.headline()] == [
        *names, "AOPC vmask - random", "AOPC gradient - random", "AOPC vmask - gradient"]
    check_plain(result)
    assert importance.SUITE.reason_against(Config()) and not importance.SUITE.reason_against(run.config)
