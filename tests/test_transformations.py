"""Public functions inside other people's transformations: each gives what the plain call gives, gradients too.

`faults.test_shard_map` and `faults.test_strict_modes` have further functions, of which they compare types.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxablate import gating, regularizers
from jaxablate.config import ClassificationObjective, ClassifierConfig, ModelConfig, ObjectiveConfig
from jaxablate.errors import ConfigError
from jaxablate.features.sae import AutoencoderConfig, SparseAutoencoder, init
from jaxablate.models.classifier import SafrClassifier
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.objectives import classification_loss, language_model_loss
from jaxablate.ops import attention
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
from jaxablate.ops.normalization import layer_norm

N = 2
"""Calls that are made side by side: by `jax.vmap`, in a loop, on so many devices."""
TOKENS = np.arange(8, dtype=np.int32).reshape(2, 4) % 7


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), (N, *shape))


def weighed(x):
    """A sum that tells where each number is."""
    return jnp.sum(x * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))


def language_model(params):
    model, _ = _decoder()
    objective = ObjectiveConfig(reconstruction=0.1, importance=0.1, interaction=0.1)
    return language_model_loss(model, params, TOKENS, TOKENS, objective)[0]


@functools.cache
def _decoder():
    model = SelfAblatingTransformer(ModelConfig(vocab_size=7, context_length=8, d_model=8, n_layers=1, n_heads=2,
                                                ablation="both", k_attention=2, k_neurons=3))
    return model, _drawn(lambda key: model.init(key, TOKENS)["params"])


def classifier(params):
    model, _ = _classifier()
    batch = {"tokens": TOKENS, "mask": np.ones(TOKENS.shape, np.float32), "labels": np.array([0, 1], np.int32),
             "weight": np.ones(2, np.float32)}
    return classification_loss(model, params, batch, ClassificationObjective(importance=0.1, interaction=0.1))[0]


@functools.cache
def _classifier():
    model = SafrClassifier(ClassifierConfig(vocab_size=7, max_length=8, d_model=8, n_heads=2, vmask_width=4))
    mask = np.ones(TOKENS.shape, np.float32)
    return model, _drawn(lambda key: model.init(key, TOKENS, mask)["params"])


def autoencoders():
    return _drawn(lambda key: init(key, AutoencoderConfig(d_in=4, d_sae=8, k=2, architecture="topk")))


def _drawn(make):
    return jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(0), N))


CASES = {
    "hard gates": (lambda x: weighed(gating.k_wta(x, 2)), lambda: normal(0, 3, 6)),
    "many winners": (lambda x: weighed(gating.k_wta(x, 20)), lambda: normal(0, 3, 24)),
    "soft gates": (lambda x: weighed(gating.soft_top_k(x, 2, surrogate="softmax")), lambda: normal(0, 3, 6)),
    "temperature": (lambda a: weighed(gating.k_wta(a[0], 2, temperature=a[1])),
                    lambda: (normal(0, 3, 6), 1 + jnp.square(normal(1)))),
    "attention": (lambda a: weighed(attention.causal_attention(*a)), lambda: tuple(normal(i, 1, 4, 2, 3)
                                                                                  for i in range(3))),
    "two streams": (lambda a: weighed(attention.two_stream_attention(*a, window=2)),
                    lambda: tuple(normal(i, 1, 4, 2, 3) for i in range(5))),
    "scale": (lambda a: weighed(attention.causal_attention(a[0], a[0], a[0], scale=a[1])),
              lambda: (normal(0, 1, 4, 2, 3), normal(1))),
    "weights of attention": (lambda a: weighed(attention.attention_weights(a, a)), lambda: normal(0, 1, 4, 2, 3)),
    "layer norm": (lambda a: weighed(layer_norm(*a)), lambda: (normal(0, 3, 4), normal(1, 4), normal(2, 4))),
    "cross-entropy": (lambda a: jnp.stack(linear_cross_entropy((a[0], a[1]), a[2], TOKENS)).sum(),
                      lambda: (normal(0, 2, 4, 3), normal(1, 2, 4, 3), normal(2, 7, 3))),
    "cross-entropy by token": (lambda a: weighed(per_token_cross_entropy(a[0], a[1], TOKENS)),
                               lambda: (normal(0, 2, 4, 3), normal(2, 7, 3))),
    "polysemanticity": (regularizers.polysemanticity, lambda: normal(0, 2, 4, 3)),
    "interference": (regularizers.interference, lambda: jax.nn.softmax(normal(0, 2, 2, 4, 4))),
    "information": (regularizers.information, lambda: normal(0, 2, 4, 2)),
    "reconstruction": (lambda a: regularizers.reconstruction(*a), lambda: (normal(0, 3, 4), normal(1, 3, 4))),
    "capacity": (lambda x: weighed(capacity(x)) + weighed(alignment(x)), lambda: normal(0, 2, 4, 3)),
    "autoencoder": (lambda a: jnp.sum(jnp.square(SparseAutoencoder.__call__(*a))),
                    lambda: (autoencoders(), normal(0, 6, 4))),
    "language model": (language_model, lambda: _decoder()[1]),
    "classifier": (classifier, lambda: _classifier()[1]),
}
"""Name -> (function of arrays with a scalar result, its arguments, N of them side by side)."""
REVERSE_ONLY = {"hard gates": "gates", "many winners": "gates", "soft gates": "gates", "temperature": "gates",
                "attention": "attentions", "two streams": "attentions", "scale": "attentions",
                "layer norm": "layer norms", "cross-entropy": "cross-entropies", "language model": "layer norms",
                "classifier": "layer norms"}
"""Cases without forward mode, and what the error names."""


@pytest.mark.parametrize("name", CASES)
def test_every_transformation_gives_the_values_and_gradients_of_the_plain_call(name):
    function, arguments = CASES[name]
    plain = jax.jit(jax.value_and_grad(function))
    mesh = Mesh(np.array(jax.devices()[:N]), ("d",))

    def on_devices(x):
        return jax.tree.map(lambda y: y[None], plain(jax.tree.map(lambda y: y[0], x)))

    def all_ways(x):
        return {
            "vmap": jax.vmap(plain)(x),
            "scan and remat": jax.lax.map(jax.value_and_grad(jax.checkpoint(function)), x),
            "shard_map": jax.shard_map(on_devices, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x),
        }

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        one_by_one = [plain(jax.tree.map(lambda y, i=i: y[i], arguments())) for i in range(N)]
        ways = jax.jit(all_ways)(arguments())
    expected = jax.tree.map(lambda *y: np.stack(y), *one_by_one)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
    for way, got in ways.items():
        jax.tree.map(lambda a, b, way=way: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=way), got,
                     expected)


@pytest.mark.parametrize("name", sorted(CASES.keys() - REVERSE_ONLY.keys()))
def test_forward_mode_agrees_with_reverse_mode(name):
    function, arguments = CASES[name]
    x, direction = (jax.tree.map(lambda y, i=i: y[i], arguments()) for i in range(2))

    def all_ways(x, direction):
        gradient = jax.tree.leaves(jax.grad(function)(x))
        _, forward = jax.linearize(function, x)
        along = sum(jnp.vdot(a, b) for a, b in zip(gradient, jax.tree.leaves(direction), strict=True))
        return jax.jvp(function, (x,), (direction,))[1], forward(direction), along

    along_jvp, along_linear, along = map(float, jax.jit(all_ways)(x, direction))
    assert (along_jvp, along_linear) == (pytest.approx(along, abs=1e-5), pytest.approx(along, abs=1e-5))
    assert abs(along) > 1e-3


@pytest.mark.parametrize("name", REVERSE_ONLY)
def test_what_has_no_forward_mode_says_so_and_has_it_over_reverse_mode(name):
    function, arguments = CASES[name]
    x = jax.tree.map(lambda y: y[0], arguments())
    with pytest.raises(ConfigError, match=f"{REVERSE_ONLY[name]} have no forward-mode derivative") as error:
        jax.jvp(function, (x,), (x,))
    assert "\n" not in str(error.value)
    shapes = jax.eval_shape(lambda x: jax.jvp(jax.grad(function), (x,), (x,))[1], x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, x)
