"""Means over what counts, wherever they are taken: masks that broadcast, weights of any sum, gradients with respect to
them, targets that do not exist, and nothing at all."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxablate.errors import ConfigError
from jaxablate.objectives import _class_metrics
from jaxablate.ops.attention import attention_weights, causal_attention, two_stream_attention
from jaxablate.ops.capacity import capacity
from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
from jaxablate.regularizers import information, interference, mean_over_texts, polysemanticity, reconstruction

RNG = np.random.default_rng(0)
HIDDEN, TABLE, TARGETS = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(7, 4)), RNG.integers(0, 7, (3, 5))
ATTENTION = np.exp(RNG.normal(size=(3, 2, 5, 5)))
ATTENTION /= ATTENTION.sum(-1, keepdims=True)

LOGITS = HIDDEN[0].astype(np.float32)
class_metrics = jax.jit(_class_metrics)

MEANS = {
    "cross-entropy": jax.jit(lambda w: linear_cross_entropy((HIDDEN,), TABLE, TARGETS, w, chunk=6)[0]),
    "importance": lambda w: polysemanticity(HIDDEN, w),
    "interaction": lambda w: interference(ATTENTION, w),
    "information": lambda w: information(HIDDEN[..., :2], w),
    "texts": lambda w: mean_over_texts(HIDDEN[..., 0], w),
}
means = pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)


@means
def test_a_mask_is_broadcast_before_it_is_counted(mean):
    """A mask [1, T] or [T] was counted as it was given and used as often as there are texts: the mean was B times too
    large."""
    with jax.enable_x64(True):
        row, column = np.array([1.0, 1, 1, 0, 0]), np.array([[1.0], [0], [1]])
        for mask in (row, row[None], column, 1.0):
            np.testing.assert_array_equal(mean(mask), mean(np.broadcast_to(mask, (3, 5))))
        with pytest.raises(ConfigError, match=r"\(4,\).*\(3, 5\)"):
            mean(np.ones(4))


def test_capacity_broadcasts_its_mask():
    x, row = HIDDEN.astype(np.float32), np.array([1.0, 1, 1, 0, 0])
    np.testing.assert_array_equal(capacity(x, row), capacity(x, np.tile(row, (3, 1))))


@means
def test_only_ratios_of_weights_matter(mean):
    """A sum of weights below 1 was taken for 1, so that the mean fell with them."""
    with jax.enable_x64(True):
        weights = RNG.uniform(0.5, 1.5, (3, 5))
        np.testing.assert_allclose(mean(0.01 * weights), mean(weights), rtol=1e-12)
        np.testing.assert_allclose(mean(np.full((3, 5), 1e-3)), mean(np.ones((3, 5))), rtol=1e-12)


def test_accuracy_and_loss_of_classes_are_weighted_means():
    weights = np.arange(5, dtype=np.float32)
    whole, part = (class_metrics(LOGITS, np.array([0, 1, 2, 3, 0]), w) for w in (weights, np.float32(0.01) * weights))
    for name in whole:
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-6)


@means
def test_weights_have_the_right_gradient(mean):
    """The gradient with respect to the weights was that of the denominator alone, or of the keys alone."""
    with jax.enable_x64(True):
        weights = RNG.uniform(0.5, 1.5, (3, 5))
        check_grads(mean, (weights,), order=1, modes=["rev"], eps=1e-6, rtol=1e-5)
        gradient = np.asarray(jax.grad(mean)(weights))
        assert np.abs(gradient).max() > 1e-5
        np.testing.assert_allclose(np.sum(weights * gradient), 0, atol=1e-12)  # only ratios matter


def test_a_target_that_does_not_exist_is_nan_where_it_counts():
    """It was clipped or wrapped, and the loss finite."""
    hidden, table = HIDDEN.astype(np.float32), TABLE.astype(np.float32)

    @jax.jit
    def loss(targets, mask):
        value, gradients = jax.value_and_grad(
            lambda h, e: linear_cross_entropy((h,), e, targets, mask)[0], argnums=(0, 1))(hidden, table)
        return value, *gradients

    by_token_of = jax.jit(lambda targets: per_token_cross_entropy(hidden, table, targets))

    for wrong in (7, -1, -100):
        targets, mask = TARGETS.copy(), np.ones((3, 5))
        targets[1, 2] = wrong
        assert all(np.isnan(x).any() for x in loss(targets, mask))
        by_token = np.isnan(by_token_of(targets))
        assert by_token[1, 2] and by_token.sum() == 1
        mask[1, 2] = 0
        for got, expected in zip(loss(targets, mask), loss(TARGETS, mask), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_label_that_is_no_class_is_nan_where_it_counts():
    gradient = jax.jit(jax.value_and_grad(lambda *a: _class_metrics(*a)["cross_entropy"]))

    def loss(labels, weight):
        return gradient(LOGITS, np.array(labels), np.array(weight, np.float32))

    for wrong in (4, -1):
        assert all(np.isnan(x).any() for x in loss([0, wrong, 2, 3, 0], [1.0, 1, 1, 1, 1]))
        for got, expected in zip(loss([0, wrong, 2, 3, 0], [1.0, 0, 1, 1, 1]),
                                 loss([0, 1, 2, 3, 0], [1.0, 0, 1, 1, 1]), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_is_zero(shape):
    """Losses and attention of no text, or of texts without tokens, were divisions by zero."""
    hidden, targets = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32)
    table = TABLE.astype(np.float32)

    def attended(q):
        return causal_attention(q, q, q) + two_stream_attention(q, q, q, q, q)

    @jax.jit
    def everything(hidden, q, attention):
        losses = jax.value_and_grad(lambda h, e: linear_cross_entropy((h,), e, targets)[0], argnums=(0, 1))(
            hidden, table)
        terms = [term(x, np.ones(shape)) for term, x in (
            (polysemanticity, hidden), (information, hidden[..., :2]), (mean_over_texts, hidden[..., 0]),
            (interference, attention))]
        out, vjp = jax.vjp(attended, q)
        return (losses, per_token_cross_entropy(hidden, table, targets), [*terms, reconstruction(hidden, hidden)],
                (out, *vjp(out), attention_weights(q, q)))

    q, attention = np.zeros((*shape, 2, 4), np.float32), np.zeros((shape[0], 2, shape[1], shape[1]), np.float32)
    (value, gradients), by_token, terms, (out, gradient, weights) = everything(hidden, q, attention)
    assert value == 0 and gradients[0].shape == hidden.shape and not np.any(gradients[1])
    assert by_token.shape == shape and not np.any(terms)
    assert out.shape == gradient.shape == q.shape and weights.shape == attention.shape


def test_what_does_not_count_may_be_nan():
    mask = np.array([1.0, 1, 1, 0, 0])
    logits = HIDDEN[..., :2].astype(np.float32)
    gradient_of = jax.jit(jax.value_and_grad(information))
    value, gradient = gradient_of(np.where(mask[:, None] > 0, logits, np.nan), mask)
    np.testing.assert_array_equal(value, gradient_of(logits, mask)[0])
    assert np.isfinite(gradient).all()
