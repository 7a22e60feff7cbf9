"""Suite `classification` against tables worked out by hand and another way."""

import types

import numpy as np
import pytest
from helpers.labelled_texts import batches, check_plain, draw, splits_of
from helpers.weights import drawn_params

from jaxablate.config import ClassificationConfig, ClassifierConfig, Config
from jaxablate.models.classifier import SafrClassifier
from jaxablate.runs.run import Run
from jaxablate.stats import proportion
from jaxablate.suites import classification


class ByFirstWord:
    """Logits are a row of a table, chosen by a text's first token; the ablated stream has the reversed row."""

    def __init__(self, gated=False):
        self.gated = gated

    def apply(self, variables, tokens, mask, scale_BL=None):
        logits = variables["params"][tokens[:, 0]]
        return types.SimpleNamespace(logits=logits, logits_ablated=logits[:, ::-1] if self.gated else None)


def logits_of(probabilities):
    return np.log(np.asarray(probabilities, np.float32))


THREE = logits_of([[1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.3, 0.1, 0.6]])


def test_a_table_by_hand():
    """Four texts of three classes; predictions 0, 0, 1, 2 and labels 0, 1, 1, 0."""
    result = classification.evaluate(ByFirstWord(), THREE, batches([[1], [1, 2], [2], [3]], [0, 1, 1, 0], rows=3))
    assert result.confusion == ((1, 0, 1), (1, 1, 0), (0, 0, 0))
    assert result.accuracy == proportion(2, 4)
    assert [(c.texts, c.precision, c.recall) for c in result.classes] == [(2, 0.5, 0.5), (2, 1.0, 0.5), (0, 0.0, 0.0)]
    assert [c.f1 for c in result.classes] == pytest.approx([1 / 2, 2 / 3, 0])
    assert result.macro_f1.value == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert result.cross_entropy.value == pytest.approx(-np.log([0.7, 0.2, 0.5, 0.3]).mean(), rel=1e-6)
    brier = [0.3**2 + 0.2**2 + 0.1**2, 0.7**2 + 0.8**2 + 0.1**2, 0.25**2 + 0.5**2 + 0.25**2, 0.7**2 + 0.1**2 + 0.6**2]
    assert result.brier.value == pytest.approx(np.mean(brier), rel=1e-6)
    # bins: 0.7 twice, half of them right; 0.5 right; 0.6 (in (8/15, 9/15]) wrong
    assert result.ece.value == pytest.approx((2 * 0.2 + 0.5 + 0.6) / 4, rel=1e-6)
    assert {(b.texts, b.accuracy) for b in result.bins if b.texts} == {(2, 0.5), (1, 1.0), (1, 0.0)}
    assert sum(b.texts for b in result.bins) == 4
    assert result.accuracy_ablated is None and result.accuracy_dev is None


def test_macro_f1_leaves_out_a_class_nobody_has():
    result = classification.evaluate(ByFirstWord(), THREE, batches([[1], [2]], [0, 1]))
    assert result.macro_f1.value == 1.0 and result.classes[2].f1 == 0.0


def test_neither_the_batches_nor_filler_rows_matter():
    texts, labels = draw(23, vocabulary=4, classes=3)
    one = classification.evaluate(ByFirstWord(), THREE, batches(texts, labels, rows=23))
    order = np.random.default_rng(1).permutation(23).tolist()
    other = classification.evaluate(ByFirstWord(), THREE, batches(texts, labels, rows=5, length=16, order=order))
    assert one == other and one.texts == 23


def test_a_calibrated_model_has_almost_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=50)
    words = rng.integers(0, 50, size=4000)
    labels = (rng.uniform(size=4000) < p[words]).astype(int)
    split = batches([[w] for w in words], labels, rows=1000)
    found = classification.evaluate(ByFirstWord(), logits_of(np.stack([1 - p, p], -1)), split)
    assert found.ece.value < 0.03 and found.ece.interval[0] < 0.03
    sure = classification.evaluate(ByFirstWord(), 4 * logits_of(np.stack([1 - p, p], -1)), split)
    assert sure.ece.interval[0] > 0.1 and sure.brier.value > found.brier.value
    width = found.brier.interval[1] - found.brier.interval[0]
    brier = 2 * np.square(p[words] - labels)
    assert width == pytest.approx(2 * 1.96 * brier.std() / np.sqrt(4000), rel=0.1)


def test_gated_models_have_a_second_accuracy():
    texts, labels = [[1], [2], [3]], [2, 1, 2]
    result = classification.evaluate(ByFirstWord(gated=True), THREE, batches(texts, labels))
    assert (result.accuracy.value, result.accuracy_ablated.value) == (2 / 3, 2 / 3)
    assert [f.name for f in result.headline()][:2] == ["accuracy", "accuracy ablated"]


def test_the_seed_decides_the_draws():
    split = batches(*draw(40, vocabulary=4), rows=40)
    a, b, c = (classification.evaluate(ByFirstWord(), THREE, split, seed=s) for s in (0, 0, 1))
    assert a == b and a.brier.interval != c.brier.interval and a.brier.value == c.brier.value


def test_one_text_has_no_bootstrap():
    result = classification.evaluate(ByFirstWord(), THREE, batches([[1]], [0]))
    assert result.ece.interval is result.macro_f1.interval is result.brier.interval is None
    check_plain(result)


def test_the_suite_runs_on_a_classifier():
    config = ClassifierConfig(vocab_size=20, max_length=16, d_model=8, n_heads=2, vmask_width=4)
    model = SafrClassifier(config)
    params = drawn_params(model, np.zeros((1, 4), np.int32), np.ones((1, 4), np.float32))
    splits = splits_of(test=batches(*draw(9), length=12), dev=batches(*draw(7, seed=1), length=12))
    run = Run(config=ClassificationConfig(model=config), model=model, params=params, splits=splits)
    result, options = classification.SUITE.run(run)
    assert result.texts == 9 and options["split"] == "test"
    assert [c.name for c in result.classes] == ["negative", "positive"]
    assert [f.name for f in result.headline()] == ["accuracy", "accuracy dev", "macro F1", "cross-entropy", "ECE",
                                                   "Brier score"]
    check_plain(result)


def test_language_models_are_left_out():
    assert classification.SUITE.reason_against(Config()) == "it measures text classifiers"
    assert classification.SUITE.reason_against(ClassificationConfig()) is None
