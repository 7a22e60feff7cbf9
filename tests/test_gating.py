"""k-winner-take-all: hand values, exactly k, ties, derivatives, extremes, types."""

import dataclasses
import functools

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


def _normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


def _tied(shape, seed=0):
    """Values on a coarse grid: many equal ones, zeros of one sign."""
    return np.round(2 * _normal(seed, *shape)) / 2 + np.float32(0)


_METHODS = {name: jax.jit(method, static_argnums=1) for name, method in {
    "chosen": thresholds,
    "bisection": order_statistics._by_bisection,
    "repeated": lambda x, k: order_statistics._by_repeated_max(x, k),
}.items()}


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("k", [1, 3, 20, 36])
def test_thresholds_are_those_of_a_stable_sort(method, k):
    all_but_one = np.arange(37, dtype=np.float32)
    all_but_one[5] = 0  # with k = 36 the two smallest tie
    for x in (np.vstack([_tied((16, 37)), all_but_one, np.zeros((2, 37), np.float32)]), _normal(1, 19, 37)):
        order = np.argsort(-x, axis=-1, kind="stable")
        values = np.take_along_axis(x, order, -1)
        t = _METHODS[method](x, k)
        np.testing.assert_array_equal(t.kth[:, 0], values[:, k - 1])
        np.testing.assert_array_equal(t.next[:, 0], values[:, k])
        np.testing.assert_array_equal(t.kth_index[:, 0], order[:, k - 1])
        np.testing.assert_array_equal(t.next_index[:, 0], order[:, k])


@pytest.mark.parametrize("k", [1, 2, 7, 19])
def test_exactly_k_winners_and_none_beaten_by_a_loser(k):
    x = _tied((50, 20))
    mask = np.asarray(hard_top_k(x, k))
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(mask.sum(-1), k)
    worst_winner = np.where(mask == 1, x, np.inf).min(-1)
    assert (worst_winner >= np.where(mask == 0, x, -np.inf).max(-1)).all()


def test_hand_value_of_the_sigmoid_gate():
    # x = (2, 0, -1), k = 1: g = 1, T = 0.5 * 2 = 1, s = sigmoid(1, -1, -2).
    s = 1 / (1 + np.exp(-np.array([1.0, -1.0, -2.0])))
    got = soft_top_k(jnp.array([2.0, 0.0, -1.0]), 1, temperature=0.5)
    np.testing.assert_allclose(got, s / s.sum(), rtol=1e-6)


def test_hand_value_of_the_softmax_gate():
    e = np.exp([2.0, 0.0, -1.0])
    got = soft_top_k(jnp.array([2.0, 0.0, -1.0]), 1, temperature=0.5, surrogate="softmax")
    np.testing.assert_allclose(got, e / e.sum(), rtol=1e-6)


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
def test_derivative_is_that_of_the_formula(surrogate):
    """Against automatic differentiation of the formula written with a sort, and against finite differences."""
    with jax.enable_x64(True):
        x, weights = _normal(2, 4, 9, dtype=np.float64), _normal(3, 4, 9, dtype=np.float64)

        def formula(x, temperature):
            ranked = jnp.sort(x, -1)[:, ::-1]
            kth, following = ranked[:, 2:3], ranked[:, 3:4]
            z = (x - (kth + following) / 2) / (temperature * (kth - following) + 1e-12)
            w = jax.nn.sigmoid(z) if surrogate == "sigmoid" else jax.nn.softmax(z)
            return jnp.sum(weights * 3 * w / w.sum(-1, keepdims=True))

        def ours(gate):
            return lambda x, t: jnp.sum(weights * gate(x, 3, temperature=t, surrogate=surrogate))

        soft = jax.jit(ours(soft_top_k))
        gradients = jax.jit(lambda *a: [jax.grad(f)(*a) for f in (formula, soft, ours(k_wta))])
        for temperature in (1.0, 0.1):
            expected, got, straight = gradients(x, temperature)
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(straight, got)
            check_grads(functools.partial(soft, t=temperature), (x,), order=1, modes=["rev"], eps=1e-6, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=2, static_argnames="surrogate")
def _soft_and_vjp(x, cotangent, k, **options):
    value, pullback = jax.vjp(lambda x: soft_top_k(x, k, **options), x)
    return value, pullback(cotangent)[0]


def test_a_permutation_of_units_permutes_gates_and_gradients():
    x, cotangent, order = _normal(4, 3, 12), _normal(6, 3, 12), np.random.default_rng(5).permutation(12)
    value, gradient = _soft_and_vjp(x, cotangent, 4)
    permuted, gradient_permuted = _soft_and_vjp(x[:, order], cotangent[:, order], 4)
    np.testing.assert_allclose(permuted, np.asarray(value)[:, order], rtol=1e-6)
    np.testing.assert_allclose(gradient_permuted, np.asarray(gradient)[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e8, 1e30])
def test_finite_at_extremes(surrogate, scale):
    x = np.float32(scale) * _tied((20, 10), seed=7)
    value, gradient = _soft_and_vjp(x, np.ones_like(x), 3, temperature=0.1, surrogate=surrogate)
    np.testing.assert_allclose(np.sum(value, -1), 3, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_types():
    with jax.enable_x64(True):
        for given, inside in (("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")):
            x = jax.ShapeDtypeStruct((8,), given)
            for gate in (k_wta, soft_top_k, hard_top_k):
                assert jax.eval_shape(lambda x, gate=gate: gate(x, 3), x).dtype == inside
            assert jax.eval_shape(jax.grad(lambda x: k_wta(x, 3)[0]), x).dtype == given
        assert k_wta(np.arange(8).astype(jnp.bfloat16), 3).sum() == 3


def test_hard_mask_alone_has_no_gradient():
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: hard_top_k(x, 2)[0]))(x), 0)


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
        call(np.zeros(5, np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_row_with_a_nan_gives_nan_and_others_do_not_notice(k):
    """Comparisons with NaN are false, so that U - 1 of U gates were open, and the NaN was gone. (-NaN sorts lowest.)"""
    x, others = _normal(1, 19, 37), np.arange(19) // 2 != 1
    bad = x.copy()
    bad[2, 5], bad[3, 7] = np.nan, -np.nan
    for gate in (hard_top_k, k_wta, soft_top_k):
        found = np.asarray(gate(bad, k))
        np.testing.assert_array_equal(found[others], np.asarray(gate(x, k))[others])
        assert np.isnan(found[2:4]).all()
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(k_wta(x, k)[:, :5])))(bad))
    assert np.isnan(gradient[2:4]).any(-1).all() and np.isfinite(gradient[others]).all()
    for method in _METHODS.values():
        found = method(bad, k)
        assert np.isnan(found.kth[2:4]).all() and np.isnan(found.next[2:4]).all()


_INF = np.float32(np.inf)


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
    x = np.array(scores, np.float32)
    value, gradient = _soft_and_vjp(x, np.arange(4, dtype=np.float32), k, surrogate=surrogate)
    np.testing.assert_allclose(value, soft, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)
    assert np.sum(k_wta(x, k)) == k


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
def test_a_unit_that_cannot_win_leaves_the_others_their_weights(surrogate):
    """One -inf beside enough finite scores is not there, and one inf wins beside them."""
    x, options = np.array([3.0, 1.0, 0.5, -2.0], np.float32), {"temperature": 0.5, "surrogate": surrogate}
    cotangent = np.arange(5, dtype=np.float32)
    value, gradient = _soft_and_vjp(np.append(x, -_INF), cotangent, 2, **options)
    np.testing.assert_allclose(value, np.append(soft_top_k(x, 2, **options), 0), rtol=1e-6)
    assert np.isfinite(gradient).all()
    value, gradient = _soft_and_vjp(np.append(x, _INF), cotangent, 2, **options)
    assert np.isfinite(value).all() and value[-1] == np.max(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("surrogate", ["sigmoid", "softmax"])
def test_the_width_may_be_traced_and_has_a_gradient(surrogate):
    """An annealed or learned temperature was a TracerBoolConversionError."""
    x, weights = np.array([[3.0, 1.0, 0.5, -2.0], [1.0, 5.0, 2.0, 4.5]]), np.arange(8.0).reshape(2, 4)

    def gates(temperature, eps):
        return [gate(x, 2, temperature=temperature, eps=eps, surrogate=surrogate) for gate in (soft_top_k, k_wta)]

    def weighted(i):
        return lambda *width: jnp.sum(weights * gates(*width)[i])

    with jax.enable_x64(True):
        width = np.float64(0.7), np.float64(0.1)
        np.testing.assert_allclose(jax.jit(gates)(*width), gates(0.7, 0.1), rtol=1e-12)
        check_grads(jax.jit(weighted(0)), width, order=1, modes=["rev"], eps=1e-6, rtol=1e-4)
        soft, hard = jax.jit(lambda *width: [jax.grad(weighted(i), argnums=(0, 1))(*width) for i in (0, 1)])(*width)
        np.testing.assert_array_equal(hard, soft)


def test_second_derivatives_are_forward_over_reverse():
    x, v = np.array([3.0, 1.0, 0.5, -2.0], np.float32), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    gradient = jax.grad(lambda x: soft_top_k(x, 2) @ v)
    assert np.isfinite(jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)).all()


def test_a_gate_from_outside_trains_and_is_scored(monkeypatch, tmp_path):
    """Gates of 0 and 2, with the gradient of the soft gate: registered by a call, named in a config."""
    monkeypatch.setattr(gating.GATES, "_parts", dict(gating.GATES._parts))
    gating.GATES.register(gating.Gate("double", lambda x, k, **settings: 2 * k_wta(x, k, **settings), binary=False))
    config = language_config(tmp_path / "data", steps=2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, gate="double", n_layers=1))
    train(config, tmp_path / "run")
    run = open_run(tmp_path / "run")
    gates = jax.jit(lambda p, x: run.model.apply({"params": p}, x).neuron_gates)(run.params, np.zeros((1, 4), int))
    np.testing.assert_array_equal(np.sum(gates, -1), 2 * config.model.k_neurons)
    assert all(layer.mean_gate > 0 for layer in GATE_SUITE.run(run)[0].layers)
