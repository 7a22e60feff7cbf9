"""Regularisers against their formulas one index at a time, padding, shapes, and terms of a user's own."""

import functools
import re

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxablate.config import ClassificationObjective, ObjectiveConfig, from_dict, to_dict
from jaxablate.errors import ConfigError
from jaxablate.objectives import check_regularizers
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.regularizers import REGULARIZERS, information, interference, polysemanticity, reconstruction

EPS = 1e-5
ONES = functools.partial(np.ones, dtype=np.float32)
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


overlap_and_gradient = jax.jit(jax.value_and_grad(polysemanticity))
reconstruction_and_gradient = jax.jit(jax.value_and_grad(reconstruction))


def texts(mask):
    """(index of a text, indices of its tokens) of those that have any."""
    return [(b, np.flatnonzero(row)) for b, row in enumerate(mask) if row.any()]


def polysemanticity_by_hand(x, mask):
    """docs/papers.md, Importance term: one product at a time."""
    means = []
    for b, tokens in texts(mask):
        values = []
        for i in tokens:
            unit = x[b, i] / (EPS + np.linalg.norm(x[b, i]))
            values.append(np.sqrt(sum((unit @ x[b, j]) ** 2 for j in tokens if j != i)) / np.sqrt(x.shape[-1]))
        means.append(np.mean(values))
    return np.mean(means)


def interference_by_hand(attention, mask):
    """docs/papers.md, Interaction term: C = A / (row sum of A) included."""
    means = []
    for b, tokens in texts(mask):
        values = []
        for a in attention[b]:
            for i in tokens:
                for k in tokens:
                    alike = 0.0 if i == k else sum(a[i, j] * a[k, j] for j in tokens)
                    values.append(a[i, k] / a[i, tokens].sum() * (1 - alike))
        means.append(np.mean(values))
    return np.mean(means)


def vectors(seed=0, length=5):
    return np.random.default_rng(seed).normal(size=(4, length, 3))


def weights(mask, seed=0, heads=2):
    """Attention whose rows sum to 1 over a text's tokens; the rows of padding are as the model makes them."""
    shown = np.where(mask.any(1, keepdims=True), mask, 1)[:, None, None, :]
    scores = np.exp(np.random.default_rng(seed).normal(size=(len(mask), heads, mask.shape[1], mask.shape[1]))) * shown
    return scores / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize("mask", [MASK, np.ones_like(MASK)], ids=["masked", "whole"])
def test_both_are_their_formulas(mask):
    with jax.enable_x64(True):
        x, attention = vectors(), weights(mask)
        expected = polysemanticity_by_hand(x, mask), interference_by_hand(attention, mask)
        np.testing.assert_allclose(polysemanticity(x, mask), expected[0], rtol=1e-12)
        np.testing.assert_allclose(interference(attention, mask), expected[1], rtol=1e-12)
        if mask.all():  # the released code's mean over everything
            np.testing.assert_allclose(polysemanticity(x), expected[0], rtol=1e-12)
            np.testing.assert_allclose(interference(attention), expected[1], rtol=1e-12)


def plain_polysemanticity(x, mask):
    tokens = mask.astype(x.dtype)
    unit = x / (EPS + jnp.linalg.norm(x, axis=-1, keepdims=True))
    overlap = jnp.einsum("bid,bjd->bij", unit, x) * (1 - jnp.eye(x.shape[1])) * tokens[:, None]
    each = jnp.sqrt((overlap**2).sum(-1)) / np.sqrt(x.shape[-1])
    return _mean_of_texts(jnp.where(mask > 0, each, 0).sum(-1), tokens.sum(-1))


def plain_interference(attention, mask):
    tokens = mask.astype(attention.dtype)
    alike = jnp.einsum("bnij,bnkj->bnik", attention, attention) * (1 - jnp.eye(attention.shape[-1]))
    each = (attention * (1 - alike)).mean(1) * tokens[:, None] * tokens[:, :, None]
    return _mean_of_texts(each.sum((-1, -2)), tokens.sum(-1) ** 2)


def _mean_of_texts(totals, counts):
    return (totals / jnp.maximum(counts, 1)).sum() / (counts > 0).sum()


@functools.cache
def with_gradients(*terms):
    """One program of (value, gradient) of each term times 2.5."""
    return jax.jit(lambda x, mask: [jax.value_and_grad(lambda x, f=f: 2.5 * f(x, mask))(x) for f in terms])


@pytest.mark.parametrize("kind", ["importance", "interaction"])
@pytest.mark.parametrize("mask", [MASK[[0, 1, 3]].astype(float), np.ones((3, 5))], ids=["masked", "whole"])
def test_derivatives_are_those_of_the_plain_formulas(kind, mask):
    """The attention of padding is left out: its rows count nowhere, its columns are zero by contract."""
    with jax.enable_x64(True):
        terms = {"importance": (polysemanticity, plain_polysemanticity),
                 "interaction": (interference, plain_interference)}[kind]
        x = vectors()[[0, 1, 3]] if kind == "importance" else weights(mask)
        got, expected = with_gradients(*terms)(x, mask)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
        inside = mask[:, :, None] if kind == "importance" else mask[:, None, :, None] * mask[:, None, None, :]
        np.testing.assert_allclose(got[1] * inside, expected[1] * inside, rtol=1e-9, atol=1e-12)
        rows = mask[:, :, None] if kind == "importance" else mask[:, None, :, None]
        np.testing.assert_array_equal(got[1] * (1 - rows), 0)


def test_zero_rows_are_finite_and_have_the_subgradient_zero():
    with jax.enable_x64(True):
        x = vectors()
        x[0, 2] = x[3] = 0
        value, gradient = jax.device_get(jax.value_and_grad(polysemanticity)(x, MASK))
        np.testing.assert_allclose(value, polysemanticity_by_hand(x, MASK), rtol=1e-12)
        np.testing.assert_array_equal(gradient[3], 0)
        for step in (1e-7, -1e-7):  # at the zero row the term itself has a kink; the others are smooth in it
            moved = x.copy()
            moved[0, 0, 1] += step
            change = polysemanticity(moved, MASK) - value
            np.testing.assert_allclose(change, step * gradient[0, 0, 1], rtol=1e-4)
        assert np.isfinite(gradient).all() and np.abs(gradient[0, :2]).min() > 0
        # The zero row's own P is 0 and so are the products with it: nothing pulls at it.
        np.testing.assert_array_equal(gradient[0, 2], 0)


def test_a_text_of_one_token_overlaps_with_nothing():
    value, gradient = overlap_and_gradient(ONES((2, 1, 4)))
    assert value == 0 and not np.any(gradient)
    assert interference(ONES((1, 2, 1, 1))) == 1


def test_nothing_at_all_is_zero():
    mask = np.zeros((2, 5))
    for term, x in ((polysemanticity, vectors()[:2]), (interference, weights(MASK[:2]))):
        value, gradient = jax.jit(jax.value_and_grad(term))(x.astype(np.float32), mask)
        assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_at_least_float32(dtype):
    x, attention = vectors().astype(dtype), weights(MASK).astype(dtype)
    for term, argument in ((polysemanticity, x), (interference, attention)):
        value, gradient = jax.jit(jax.value_and_grad(term))(argument, MASK)
        assert (value.dtype, gradient.dtype) == (jnp.float32, dtype)
        assert np.isfinite(np.float32(gradient)).all()


def test_rows_that_are_not_counted_may_hold_anything():
    x = vectors().astype(np.float32)
    x[MASK == 0] = np.nan
    value, gradient = overlap_and_gradient(x, MASK)
    np.testing.assert_allclose(value, polysemanticity_by_hand(vectors(), MASK), rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [5, 13])
def test_padding_and_company_change_nothing(length):
    """Each text alone, cut to its tokens, against all of them padded further."""
    x, attention = vectors().astype(np.float32), weights(MASK).astype(np.float32)
    grown = length - MASK.shape[1]
    mask = np.pad(MASK, ((0, 0), (0, grown)))
    longer = np.pad(x, ((0, 0), (0, grown), (0, 0)), constant_values=7.0)
    wider = np.pad(attention, ((0, 0), (0, 0), (0, grown), (0, grown)))
    alone = [(polysemanticity(x[b : b + 1, : len(t)]), interference(attention[b : b + 1, :, : len(t), : len(t)]))
             for b, t in texts(MASK)]
    expected = np.mean(alone, axis=0)
    np.testing.assert_allclose(polysemanticity(longer, mask), expected[0], rtol=1e-6)
    np.testing.assert_allclose(interference(wider, mask), expected[1], rtol=1e-6)
    order = [3, 2, 0, 1]
    np.testing.assert_allclose(polysemanticity(longer[order], mask[order]), expected[0], rtol=1e-6)
    np.testing.assert_allclose(interference(wider[order], mask[order]), expected[1], rtol=1e-6)


ENTRIES = st.floats(-8, 8, width=32)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=ENTRIES), st.permutations(range(4)))
def test_order_and_sign_of_the_tokens_do_not_matter(x, order):
    value = float(polysemanticity(x[None]))
    assert 0 <= value <= 1.7321 * np.linalg.norm(x, axis=-1).max() / np.sqrt(3) + 1e-6  # sqrt(L - 1) products at most
    signs = np.array([1, -1, 1, -1], np.float32)[:, None]
    assert float(polysemanticity((x * signs)[None, list(order)])) == pytest.approx(value, rel=1e-5, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, (2, 4, 4), elements=st.floats(-5, 5, width=32)), st.permutations(range(4)))
def test_interference_is_within_bounds_whatever_the_order(scores, order):
    attention = np.exp(scores - scores.max(-1, keepdims=True))[None]
    attention /= attention.sum(-1, keepdims=True)
    value = float(interference(attention))
    assert -1e-6 <= value <= 1 / 4 + 1e-6  # rows sum to 1, so the mean of A over L pairs is 1 / L
    permuted = attention[:, :, list(order)][:, :, :, list(order)]
    assert float(interference(permuted)) == pytest.approx(value, rel=1e-5, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, 4, elements=ENTRIES))
def test_orthogonal_tokens_do_not_overlap(lengths):
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    value, gradient = overlap_and_gradient(np.float32(np.diag(lengths) @ rotation)[None])
    assert float(value) < 1e-5
    assert np.isfinite(gradient).all()


def test_equal_tokens_overlap_most_and_selfish_heads_not_at_all():
    x = np.broadcast_to(np.array([2, 0, 0], np.float32), (1, 4, 3))
    np.testing.assert_allclose(polysemanticity(x), 2 * np.sqrt(3) / np.sqrt(3), rtol=1e-5)
    itself = np.eye(4, dtype=np.float32)[None, None]
    np.testing.assert_allclose(interference(itself), 4 / 16)  # A_ii is all there is, and I_ii is 0
    column = np.zeros((1, 1, 4, 4), np.float32)
    column[..., 0] = 1  # all attend to token 0 alone: I_ik = 1 for i != k
    np.testing.assert_allclose(interference(column), 1 / 16)


def test_reconstruction_of_zero_rows_is_finite():
    clean, ablated = np.zeros((2, 3), np.float32), np.array([[0, 3, 4], [0, 0, 0]], np.float32)
    value, gradient = jax.jit(jax.value_and_grad(reconstruction, argnums=(0, 1)))(clean, ablated)
    np.testing.assert_allclose(value, 1 / 6)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize(("dtype", "size"), [
    (jnp.float16, 1e-4), (jnp.float16, 1.0), (jnp.float16, 300.0), (jnp.bfloat16, 1.0), (jnp.bfloat16, 1e20),
    (jnp.float32, 1e-4), (jnp.float32, 1e20),
])
def test_reconstruction_of_small_and_large_rows_in_any_type(dtype, size):
    """In float16 the squares of 256 overflow and eps^2 is 0, in float32 those of 2e19 overflow: opposite vectors then
    looked equal, and zero rows were NaN."""
    row = np.array([[1.0, 2.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)
    clean = (np.float32(size) * row).astype(dtype)
    value, gradient = reconstruction_and_gradient(clean, -clean)
    np.testing.assert_allclose(value, 4 / 8, rtol=1e-6)  # |2 u|^2 = 4 of one row of two, a mean over 8 entries
    assert value.dtype == jnp.float32 and gradient.dtype == dtype and np.isfinite(np.float32(gradient)).all()
    np.testing.assert_allclose(reconstruction_and_gradient(clean, (np.float32(size) * ONES((2, 4))).astype(dtype))[0],
                               reconstruction_and_gradient(row, ONES((2, 4)))[0], rtol=1e-2)


def test_overlap_of_large_vectors_is_finite():
    x = vectors().astype(np.float32)
    value, gradient = overlap_and_gradient(np.float32(1e20) * x, MASK)
    np.testing.assert_allclose(value, 1e20 * float(polysemanticity(x, MASK, eps=1e-12)), rtol=1e-5)
    assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize(("term", "arrays", "shape"), [
    (interference, (ONES((3, 4, 4)),), "(3, 4, 4)"),  # heads forgotten: broadcasting would give a wrong number
    (interference, (ONES((3, 1, 4, 5)),), "(3, 1, 4, 5)"),
    (interference, (ONES((3, 1, 4, 4)), ONES((3, 5))), "(3, 5)"),
    (polysemanticity, (ONES((4, 2)),), "(4, 2)"),
    (polysemanticity, (ONES((3, 4, 2)), ONES((3,))), "(3,)"),
    (information, (ONES((3, 4, 3)),), "(3, 4, 3)"),
    (reconstruction, (ONES((2, 3)), ONES(3)), "(3,)"),
    (capacity, (ONES(3),), "(3,)"),
    (capacity, (ONES((2, 3)), ONES(3)), "(3,)"),
    (alignment, (ONES(3),), "(3,)"),
])
def test_arrays_of_another_shape_are_refused(term, arrays, shape, unchecked_types):
    with pytest.raises(ConfigError, match=re.escape(shape)):
        term(*arrays)


def test_masks_may_be_of_any_type():
    x, attention = vectors().astype(np.float32), weights(MASK).astype(np.float32)
    for mask in (MASK.astype(bool), MASK.astype(np.float32), jnp.asarray(MASK)):
        assert polysemanticity(x, mask) == polysemanticity(x, MASK)
        assert interference(attention, mask) == interference(attention, MASK)


@pytest.mark.parametrize("objective", [ObjectiveConfig, ClassificationObjective])
def test_coefficients_of_further_terms_are_part_of_the_config(objective):
    made = objective(regularizers={"sparsity": 1})
    assert made == objective(regularizers=(("sparsity", 1.0),)) and made.coefficients["sparsity"] == 1.0
    assert hash(made) != hash(objective()) and from_dict(objective, to_dict(made)) == made
    for wrong in ((("sparsity", -1.0),), (("importance", 1.0),), (("sparsity", 1.0), ("sparsity", 2.0))):
        with pytest.raises(ConfigError):
            objective(regularizers=wrong)
    with pytest.raises(ConfigError, match="2 entries"):
        from_dict(objective, {"regularizers": [["sparsity"]]})


def test_a_coefficient_needs_a_registered_term_that_the_model_has():
    assert REGULARIZERS.names()[:3] == ("importance", "interaction", "information")
    with pytest.raises(ConfigError, match="'interaction'"):
        check_regularizers(ObjectiveConfig(regularizers={"interacton": 0.1}), vmask=False)
    check_regularizers(ObjectiveConfig(regularizers={"information": 0.1}), vmask=True)
    with pytest.raises(ConfigError, match="VMASK"):
        check_regularizers(ObjectiveConfig(regularizers={"information": 0.1}), vmask=False)
