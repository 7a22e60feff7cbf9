"""k-winner-take-all: hand values, exactly k, ties, derivatives, extremes, types."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import language_config
from jax.test_util import check_grads

from jaxablate import gating
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.gating import hard_top_k, k_wta, soft_top_k
from jaxablate.ops import order_statistics
from jaxablate.ops.order_statistics import thresholds
from jaxablate.runs.run import open_run
from jaxablate.suites.gates import SUITE as GATE_SUITE
from jaxablate.training.loop import train


def _tied(shape, seed=0):
    """Values on a coarse grid: many equal ones, zeros of one sign."""
    return jnp.round(2 * jax.random.normal(jax.random.key(seed), shape)) / 2 + 0.0


_METHODS = {
    "chosen": thresholds,
    "bisection": order_statistics._by_bisection,
    "repeated": lambda x, k: order_statistics._by_repeated_max(x, k, unroll=1),
}


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("k", [1, 3, 20, 36])
def test_thresholds_are_those_of_a_stable_sort(method, k):
    all_but_one = jnp.arange(37.0).at[5].set(0.0)  # with k = 36 the two smallest tie
    for x in (_tied((16, 37)), all_but_one[None], jax.random.normal(jax.random.key(1), (16, 37)), jnp.zeros((2, 37))):
        order = np.argsort(-np.asarray(x), axis=-1, kind="stable")
        values = np.take_along_axis(np.asarray(x), order, -1)
        t = jax.jit(_METHODS[method], static_argnums=1)(x, k)
        np.testing.assert_array_equal(t.kth[:, 0], values[:, k - 1])
        np.testing.assert_array_equal(t.next[:, 0], values[:, k])
        np.testing.assert_array_equal(t.kth_index[:, 0], order[:, k - 1])
        np.testing.assert_array_equal(t.next_index[:, 0], order[:, k])


@pytest.mark.parametrize("k", [1, 2, 7, 19])
def test_exactly_k_winners_and_none_beaten_by_a_loser(k):
    x = _tied((50, 20))
    mask = hard_top_k(x, k)
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask.sum(-1), k)
    worst_winner = jnp.where(mask == 1, x, jnp.inf).min(-1)
    assert (worst_winner >= jnp.where(mask == 0, x, -jnp.inf).max(-1)).all()


def test_hand_value_of_the_sigmoid_gate():
    # x = (2, 0, -1), k = 1: g = 1, T = 0.5 * 2 = 1, s = sigmoid(1, -1, -2).
    s = 1 / (1 + np.exp(-np.array([1.0, -1.0, -2.0])))
    got = soft_top_k(jnp.array([2.0, 0.0, -1.0]), 1, temperature=0.5)
    np.testing.assert_allclose(got, s / s.sum(), rtol=1e-6)


def test_hand_value_of_the_softmax_gate():
    e = np.exp([2.0, 0.0, -1.0])
    got = soft_top_k(jnp.array([2.0, 0.0, -1.0]), 1, temperature=0.5, surrogate="softmax")
    np.testing.assert_allclose(got, e / e.sum(), rtol=1e-6)


@pytest.mark.parametrize(("surrogate", "temperature"), [*itertools.product(["sigmoid", "softmax"], [1.0, 0.1])])
def test_derivative_is_that_of_the_formula(surrogate, temperature):
    """Against automatic differentiation of the formula written with a sort, and against finite differences."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(2), (4, 9), jnp.float64)
        weights = jax.random.normal(jax.random.key(3), (4, 9), jnp.float64)

        def formula(x):
            ranked = jnp.sort(x, -1)[:, ::-1]
            kth, following = ranked[:, 2:3], ranked[:, 3:4]
            z = (x - (kth + following) / 2) / (temperature * (kth - following) + 1e-12)
            w = jax.nn.sigmoid(z) if surrogate == "sigmoid" else jax.nn.softmax(z)
            return jnp.sum(weights * 3 * w / w.sum(-1, keepdims=True))

        def ours(gate):
            return lambda x: jnp.sum(weights * gate(x, 3, temperature=temperature, surrogate=surrogate))

        expected = jax.grad(formula)(x)
        np.testing.assert_allclose(jax.grad(ours(soft_top_k))(x), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(jax.grad(ours(k_wta))(x), jax.grad(ours(soft_top_k))(x))
        check_grads(ours(soft_top_k), (x,), order=1, modes=["rev"], eps=1e-6, rtol=1e-4)


def test_a_permutation_of_units_permutes_gates_and_gradients():
    x = jax.random.normal(jax.random.key(4), (3, 12))
    order = jax.random.permutation(jax.random.key(5), 12)
    value, pullback = jax.vjp(lambda x: soft_top_k(x, 4), x)
    permuted, pullback_permuted = jax.vjp(lambda x: soft_top_k(x, 4), x[:, order])
    np.testing.assert_allclose(permuted, value[:, order], rtol=1e-6)
    cotangent = jax.random.normal(jax.random.key(6), x.shape)
    expected = pullback(cotangent)[0][:, order]
    np.testing.assert_allclose(pullback_permuted(cotangent[:, order])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e8, 1e30])
def test_finite_at_extremes(surrogate, scale):
    x = scale * _tied((20, 10), seed=7)
    value, pullback = jax.vjp(lambda x: soft_top_k(x, 3, temperature=0.1, surrogate=surrogate), x)
    np.testing.assert_allclose(value.sum(-1), 3, rtol=1e-5)
    assert jnp.isfinite(pullback(jnp.ones_like(x))[0]).all()


def test_types():
    with jax.enable_x64(True):
        for given, inside in (("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")):
            x = jnp.arange(8).astype(given)
            for gate in (k_wta, soft_top_k, hard_top_k):
                assert gate(x, 3).dtype == inside
            assert jax.grad(lambda x: k_wta(x, 3)[0])(x).dtype == given


def test_hard_mask_alone_has_no_gradient():
    np.testing.assert_array_equal(jax.grad(lambda x: hard_top_k(x, 2)[0])(jnp.arange(5.0)), 0)


@pytest.mark.parametrize(("call", "complaint"), [
    (lambda x: k_wta(x, 0), r"k=0 .* choose 1\.\.4"),
    (lambda x: hard_top_k(x, 5), r"k=5 .* choose 1\.\.4"),
    (lambda x: k_wta(x, 3.0), "whole number"),
    (lambda x: jax.jit(soft_top_k)(x, 2), "static argument"),
    (lambda x: k_wta(x[0], 1), r"\[\.\.\., units\]"),
    (lambda x: k_wta(x, 2, temperature=0.0), "positive"),
    (lambda x: k_wta(x, 2, temperature=jnp.ones(5)), r"temperature has the shape \(5,\)"),
    (lambda x: k_wta(x, 2, surrogate="relu"), "softmax"),
    (jax.jacfwd(lambda x: k_wta(x, 2)), "reverse-mode"),
    (lambda x: ModelConfig(k_neurons=512), r"choose 1\.\.511"),
    (lambda x: ModelConfig(gate="hrd"), "did you mean 'hard'"),
])
def test_what_cannot_be_is_refused_in_one_line(unchecked_types, call, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        call(jnp.zeros(5))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_row_with_a_nan_gives_nan_and_others_do_not_notice(k):
    """Comparisons with NaN are false, so that U - 1 of U gates were open, and the NaN was gone. (-NaN sorts lowest.)"""
    x = jax.random.normal(jax.random.key(1), (4, 37))
    bad = x.at[1, 5].set(jnp.nan).at[2, 7].set(-jnp.nan)
    for gate in (hard_top_k, k_wta, soft_top_k):
        np.testing.assert_array_equal(gate(bad, k)[np.array([0, 3])], gate(x, k)[np.array([0, 3])])
        assert jnp.isnan(gate(bad, k)[1:3]).all()
    gradient = jax.grad(lambda x: jnp.sum(k_wta(x, k)[:, :5]))(bad)
    assert jnp.isnan(gradient[1:3]).any(-1).all() and jnp.isfinite(gradient[np.array([0, 3])]).all()
    for method in _METHODS.values():
        assert jnp.isnan(method(bad, k).kth[1:3]).all() and jnp.isnan(method(bad, k).next[1:3]).all()


_INF = np.inf


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("scores", "k", "soft"), [
    ([3, 1, -_INF, -_INF], 2, [1, 1, 0, 0]),
    ([-1e38, 3, -_INF, 2], 3, [1, 1, 0, 1]),
    ([3, -_INF, -_INF, -_INF], 2, [2, 0, 0, 0]),
    ([0, _INF, 5, _INF], 2, [0, 1, 0, 1]),
    ([0, _INF, 5, -_INF], 1, [0, 1, 0, 0]),
    ([_INF, _INF, _INF, 1], 2, [2 / 3, 2 / 3, 2 / 3, 0]),
])
def test_infinite_scores_make_the_gate_a_step(surrogate, scores, k, soft):
    """The width was inf, or inf - inf, and with it all gates and gradients NaN."""
    x = jnp.array(scores, jnp.float32)
    value, pullback = jax.vjp(lambda x: soft_top_k(x, k, surrogate=surrogate), x)
    np.testing.assert_allclose(value, soft, rtol=1e-6)
    np.testing.assert_array_equal(pullback(jnp.arange(4.0))[0], 0)
    assert k_wta(x, k).sum() == k


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
def test_a_unit_that_cannot_win_leaves_the_others_their_weights(surrogate):
    """One -inf beside enough finite scores is not there, and one inf wins beside them."""
    x, options = jnp.array([3.0, 1.0, 0.5, -2.0]), {"temperature": 0.5, "surrogate": surrogate}
    value, pullback = jax.vjp(lambda x: soft_top_k(x, 2, **options), jnp.append(x, -jnp.inf))
    np.testing.assert_allclose(value, jnp.append(soft_top_k(x, 2, **options), 0), rtol=1e-6)
    assert jnp.isfinite(pullback(jnp.arange(5.0))[0]).all()
    value, pullback = jax.vjp(lambda x: soft_top_k(x, 2, **options), jnp.append(x, jnp.inf))
    assert jnp.isfinite(value).all() and value[-1] == value.max() and jnp.isfinite(pullback(jnp.arange(5.0))[0]).all()


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
def test_the_width_may_be_traced_and_has_a_gradient(surrogate):
    """An annealed or learned temperature was a TracerBoolConversionError."""
    x, weights = np.array([[3.0, 1.0, 0.5, -2.0], [1.0, 5.0, 2.0, 4.5]]), np.arange(8.0).reshape(2, 4)

    def gated(gate, temperature, eps):
        return jnp.sum(weights * gate(x, 2, temperature=temperature, eps=eps, surrogate=surrogate))

    with jax.enable_x64(True):
        width = jnp.float64(0.7), jnp.float64(0.1)
        for gate in (soft_top_k, k_wta):
            traced = jax.jit(gated, static_argnums=0)(gate, *width)
            np.testing.assert_allclose(traced, gated(gate, 0.7, 0.1), rtol=1e-12)
        check_grads(lambda t, e: gated(soft_top_k, t, e), width, order=1, modes=["rev"], eps=1e-6, rtol=1e-4)
        np.testing.assert_array_equal(jax.grad(gated, argnums=(1, 2))(k_wta, *width),
                                      jax.grad(gated, argnums=(1, 2))(soft_top_k, *width))


def test_second_derivatives_are_forward_over_reverse():
    x, v = jnp.array([3.0, 1.0, 0.5, -2.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
    gradient = jax.grad(lambda x: soft_top_k(x, 2) @ v)
    assert jnp.isfinite(jax.jvp(gradient, (x,), (v,))[1]).all()


def test_a_gate_from_outside_trains_and_is_scored(monkeypatch, tmp_path):
    """Gates of 0 and 2, with the gradient of the soft gate: registered by a call, named in a config."""
    monkeypatch.setattr(gating.GATES, "_parts", dict(gating.GATES._parts))
    gating.GATES.register(gating.Gate("double", lambda x, k, **settings: 2 * k_wta(x, k, **settings), binary=False))
    config = language_config(tmp_path / "data", steps=2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, gate="double"))
    train(config, tmp_path / "run")
    run = open_run(tmp_path / "run")
    out = run.model.apply({"params": run.params}, jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_array_equal(out.neuron_gates.sum(-1), 2 * config.model.k_neurons)
    assert all(layer.mean_gate > 0 for layer in GATE_SUITE.run(run)[0].layers)
