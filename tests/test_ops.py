"""Attention, cross-entropy, products with weights and normalisation against their plain formulas, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.platforms import take_accelerator_code
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType

from jaxablate.errors import ConfigError
from jaxablate.ops import attention
from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
from jaxablate.ops.linear import dot_rows
from jaxablate.ops.normalization import layer_norm


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def _with_vjp(*functions):
    """One program: (result, vjp of a cotangent) of each function of the same arguments."""
    def values(cotangent, *arguments):
        pairs = [jax.vjp(f, *arguments) for f in functions]
        return [(out, vjp(cotangent)) for out, vjp in pairs]

    return jax.jit(values)


def _plain_attention(q, k, v, k_self, v_self, window, scale):
    """One query and one key at a time, as the definition reads."""
    length = q.shape[1]
    i, j = jnp.arange(length)[:, None], jnp.arange(length)[None]
    own = jnp.einsum("btnh,btnh->bnt", q, k_self)[..., None]
    scores = scale * jnp.where(i == j, own, jnp.einsum("btnh,bsnh->bnts", q, k))
    visible = (j <= i) & (i - j < (window or length))
    probs = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    values = jnp.where((i == j)[:, :, None, None], v_self[:, :, None], v[:, None])
    return jnp.einsum("bnts,btsnh->btnh", probs, values)


@pytest.mark.parametrize(("window", "platform"), [
    (None, "cpu"), (1, "cpu"), (4, "cpu"), (6, "cpu"), (None, "accelerator"), (6, "accelerator"),
])
def test_attention_of_both_streams_and_its_derivative(window, platform, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 5)
    if platform == "accelerator":
        take_accelerator_code(monkeypatch)
    with jax.enable_x64(True):
        cotangent, *arguments = (_normal(s, 2, 17, 3, 4) for s in range(6))
        both = _with_vjp(lambda *a: attention.two_stream_attention(*a, window=window, scale=0.7),
                         lambda *a: _plain_attention(*a, window, 0.7))
        clean = _with_vjp(lambda q, k, v: attention.causal_attention(q, k, v, window=window),
                          lambda q, k, v: _plain_attention(q, k, v, k, v, window, 1.0))
        for (out, vjp), (plain, plain_vjp) in (both(cotangent, *arguments), clean(cotangent, *arguments[:3])):
            np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
            chex.assert_trees_all_close(vjp, plain_vjp, rtol=0, atol=1e-11)


def test_the_scale_of_attention_may_be_traced_and_has_a_gradient():
    """A learned scale was an UnexpectedTracerError."""
    with jax.enable_x64(True):
        q, k, v, k_self, v_self, cotangent = (_normal(s, 2, 5, 3, 4) for s in range(6))

        def weighted(function, scale):
            return jnp.sum(cotangent * function(scale))

        for ours, plain in (
            (lambda s: attention.two_stream_attention(q, k, v, k_self, v_self, window=3, scale=s),
             lambda s: _plain_attention(q, k, v, k_self, v_self, 3, s)),
            (lambda s: attention.causal_attention(q, k, v, scale=s),
             lambda s: _plain_attention(q, k, v, k, v, None, s)),
        ):
            got, expected = jax.jit(lambda s, fs=(ours, plain): [
                jax.value_and_grad(lambda s, f=f: weighted(f, s))(s) for f in fs])(0.7)
            np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_attention_survives_huge_scores():
    q, k, v = (np.float32(1e3 * _normal(s, 1, 9, 1, 4)) for s in range(3))
    chex.assert_tree_all_finite(_with_vjp(attention.causal_attention)(v, q, k, v))


def _plain_loss(hidden, embedding, targets, mask):
    log_probs = jax.nn.log_softmax(hidden @ embedding.T)
    losses = -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    return (losses * mask).sum() / mask.sum()


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_cross_entropy_and_its_derivative(chunk):
    """Two streams with different cotangents; lengths that the chunk does not divide; masked and repeated targets."""
    with jax.enable_x64(True):
        hidden, embedding = (_normal(0, 2, 7, 5), _normal(1, 2, 7, 5)), _normal(2, 11, 5)
        targets = np.array([[0, 10, 3, 3, 3, 1, 0], [5, 5, 5, 5, 2, 9, 8]])
        mask = np.array([[1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1, 0]])

        def combined(loss_of):
            def f(hidden, embedding):
                a, b = loss_of(hidden, embedding)
                return 0.3 * a + 2 * b

            return jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, embedding)

        plain = combined(lambda h, e: [_plain_loss(x, e, targets, mask) for x in h])
        ours = combined(lambda h, e: linear_cross_entropy(h, e, targets, mask, chunk=chunk))
        chex.assert_trees_all_close(ours, plain, rtol=0, atol=1e-12)


def test_cross_entropy_per_token():
    with jax.enable_x64(True):
        hidden, embedding, targets = _normal(0, 2, 7, 5), _normal(1, 11, 5), np.arange(14).reshape(2, 7) % 11
        logits = hidden @ embedding.T
        expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        found = jax.jit(lambda *a: per_token_cross_entropy(*a, chunk=6))(hidden, embedding, targets)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_rows_of_the_embedding_after_the_vocabulary_are_padding():
    """Whatever they hold, losses and gradients are those of the vocabulary alone."""
    with jax.enable_x64(True):
        hidden, embedding, targets = _normal(0, 2, 7, 5), _normal(1, 14, 5), np.arange(14).reshape(2, 7) % 11
        embedding[11:] *= 1e3

        def losses(hidden, embedding):
            loss, = linear_cross_entropy((hidden,), embedding, targets, vocabulary=11, chunk=6)
            return loss, per_token_cross_entropy(hidden, embedding, targets, vocabulary=11, chunk=6)

        both = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))
        (padded, (d_hidden, d_embedding)), plain = both(hidden, embedding), both(hidden, embedding[:11])
        np.testing.assert_array_equal(d_embedding[11:], 0)
        chex.assert_trees_all_close((padded, (d_hidden, d_embedding[:11])), plain, rtol=0, atol=1e-12)
        outside = jax.jit(lambda *a: linear_cross_entropy(a[:1], *a[1:], vocabulary=11))
        assert np.isnan(outside(hidden, embedding, np.full_like(targets, 12))[0])
    with pytest.raises(ConfigError, match=r"vocabulary=15 must be in 1\.\.14"):
        per_token_cross_entropy(hidden, embedding, targets, vocabulary=15)


def test_cross_entropy_of_bfloat16_is_float32_and_of_nothing_is_zero():
    hidden, embedding = np.ones((1, 3, 4), jnp.bfloat16), np.ones((5, 4), jnp.bfloat16)
    targets = np.zeros((1, 3), np.int32)
    loss_of = jax.jit(lambda mask: linear_cross_entropy((hidden,), embedding, targets, mask)[0])
    loss = loss_of(np.ones((1, 3), np.float32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
    assert loss_of(np.zeros((1, 3), np.float32)) == 0


def test_no_array_of_the_size_of_all_logits():
    """The largest intermediate of loss and gradient is one chunk's logits."""
    batch, length, width, vocab = 2, 64, 4, 97
    hidden, embedding = jnp.ones((batch, length, width)), jnp.ones((vocab, width))
    targets = jnp.zeros((batch, length), jnp.int32)
    loss = jax.grad(lambda h, e: linear_cross_entropy((h,), e, targets, chunk=16)[0], argnums=(0, 1))
    sizes = [v.aval.size for v in _variables(jax.make_jaxpr(loss)(hidden, embedding).jaxpr)]
    assert max(sizes) == 16 * vocab


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for sub in jaxprs_in_params(equation.params):
            yield from _variables(getattr(sub, "jaxpr", sub))


@pytest.mark.parametrize(("x", "kernel", "equation"), [
    ((5,), (5, 3), "d,df->f"), ((2, 3, 5), (5, 4), "btd,df->btf"), ((0, 3, 5), (5, 4), "btd,df->btf"),
    ((2, 3, 5), (5, 3, 2, 4), "btd,dcnh->btcnh"), ((2, 3, 4, 5), (4, 5, 6), "btnh,nhd->btd")])
@pytest.mark.parametrize("tensor", [1, 2])
def test_products_with_weights_and_their_derivatives(x, kernel, equation, tensor):
    """Whether the mesh leaves them matrices or not."""
    x, kernel = _normal(0, *x), _normal(1, *kernel)
    summed = 2 if equation.startswith("btnh") else 1
    axes = (tuple(range(x.ndim - summed, x.ndim)), tuple(range(summed)))
    functions = (lambda x, kernel: dot_rows(x, kernel, (axes, ((), ()))), functools.partial(jnp.einsum, equation))
    mesh = AbstractMesh((1, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.enable_x64(True), jax.sharding.use_abstract_mesh(mesh):
        found, expected = _with_vjp(*functions)(np.cos(np.einsum(equation, x, kernel)), x, kernel)
        reshapes = str(jax.make_jaxpr(functions[0])(x, kernel)).count("reshape")
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)
    assert (reshapes == 0) == (tensor > 1)


def test_layer_norm_and_its_derivative():
    with jax.enable_x64(True):
        x, scale, bias, cotangent = _normal(0, 3, 4, 6), _normal(1, 6), _normal(2, 6), _normal(3, 3, 4, 6)

        def plain(x, scale, bias):
            centred = x - x.mean(-1, keepdims=True)
            return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * scale + bias

        (got, vjp), (expected, plain_vjp) = _with_vjp(lambda *a: layer_norm(*a, 1e-3), plain)(
            cotangent, x, scale, bias)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
        chex.assert_trees_all_close(vjp, plain_vjp, rtol=0, atol=1e-11)


def test_layer_norm_of_bfloat16_rows_is_float32_and_its_gradient_bfloat16():
    rows = np.array([[1, 2, 4]], jnp.bfloat16)
    ((out, (gradient,)),) = _with_vjp(lambda x: layer_norm(x, jnp.ones(3), jnp.zeros(3)))(np.float32(rows), rows)
    assert (out.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("call", [
    lambda x: attention.causal_attention(x, x, x[0]), lambda x: attention.causal_attention(x[:, :2], x, x),
    lambda x: attention.two_stream_attention(x, x[:1], x, x, x[:, :, :1]),
    lambda x: attention.attention_weights(x[0], x[0]),
    lambda x: layer_norm(x, jnp.ones(3), jnp.zeros(3)),
    lambda x: linear_cross_entropy((x[0],), jnp.ones((5, 3)), jnp.zeros((3, 4), int)),
    lambda x: per_token_cross_entropy(x[0], jnp.ones((5, 2)), jnp.zeros((3,), int)),
])
def test_shapes_that_do_not_fit_are_told(unchecked_types, call):
    with pytest.raises(ConfigError, match="shapes are .*give"):
        call(jnp.ones((2, 3, 4, 2)))


@pytest.mark.parametrize(("call", "complaint"), [
    (lambda x: attention.causal_attention(x, x, x, window=0), "window=0 must be positive"),
    (lambda x: jax.jit(lambda w: attention.causal_attention(x, x, x, window=w))(2), "window is traced"),
    (lambda x: attention.causal_attention(x, x, x, scale=jnp.ones(4)), r"scale has the shape \(4,\)"),
    (lambda x: jax.jit(lambda e: layer_norm(x, jnp.ones(2), jnp.ones(2), e))(1e-5), "eps is traced"),
])
def test_numbers_that_cannot_be_are_told(unchecked_types, call, complaint):
    with pytest.raises(ConfigError, match=complaint):
        call(jnp.ones((2, 3, 4, 2)))
