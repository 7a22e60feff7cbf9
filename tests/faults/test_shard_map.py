"""Losses, models and loops inside `jax.shard_map`, which checks over what every array varies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxablate.circuits.metrics import Divergence
from jaxablate.classifier.measures import highest
from jaxablate.config import ModelConfig, ObjectiveConfig
from jaxablate.features.config import SaeTrainConfig
from jaxablate.features.sae import AutoencoderConfig, batch_threshold
from jaxablate.features.step import init_state, train_step
from jaxablate.gating import soft_top_k
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.generation import generate
from jaxablate.objectives import language_model_loss
from jaxablate.ops.attention import two_stream_attention
from jaxablate.ops.cross_entropy import linear_cross_entropy
from jaxablate.ops.normalization import layer_norm


def _spread(function, *specs, out):
    return jax.shard_map(function, mesh=Mesh(np.array(jax.devices()[:2]), ("d",)), in_specs=specs, out_specs=out)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_gradients_of_a_loss_are_those_of_the_whole_batch():
    """The loop over chunks began with plain zeros, which vary over no axis, and so could carry nothing that does."""
    hidden, table, targets = _normal(0, 4, 3, 8), _normal(1, 5, 8), jnp.arange(12).reshape(4, 3) % 5
    scale, weights = _normal(2, 8), jnp.arange(1.0, 13).reshape(4, 3)

    def total(hidden, scale, table, weights, targets):
        normed = layer_norm(hidden, scale, scale)
        return linear_cross_entropy((normed,), table, targets, weights)[0] * weights.sum()

    gradient = jax.grad(total, argnums=(0, 1, 2, 3))
    spread = _spread(gradient, P("d"), P(), P(), P("d"), P("d"), out=(P("d"), P(), P(), P("d")))
    for got, want in zip(jax.jit(spread)(hidden, scale, table, weights, targets),
                         jax.jit(gradient)(hidden, scale, table, weights, targets), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@functools.cache
def _decoder():
    model = SelfAblatingTransformer(ModelConfig(vocab_size=11, context_length=8, d_model=8, n_layers=1, n_heads=2,
                                                ablation="local", k_attention=2, k_neurons=3))
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 4), jnp.int32))["params"]


def _language_model():
    model, params = _decoder()

    def loss(params, tokens):
        return language_model_loss(model, params, tokens, tokens, ObjectiveConfig(reconstruction=0.1))[0]

    return jax.grad(loss), (P(), P("d")), P(), (params, jax.ShapeDtypeStruct((4, 5), jnp.int32))


def _generation():
    model, params = _decoder()
    return (lambda params, prompt: generate(model, params, prompt, steps=2, temperature=0)), (P(), P("d")), P("d"), \
        (params, jax.ShapeDtypeStruct((4, 1), jnp.int32))


def _divergence():
    return (lambda table, final: Divergence.of(table, final).values(final)), (P(), P("d")), P("d"), \
        (_normal(0, 5, 8), _normal(1, 4, 8))


def _autoencoder():
    train = SaeTrainConfig(steps=3, warmup=0.0, decay=0.0)
    config = AutoencoderConfig(d_in=4, d_sae=8)
    state = init_state(jax.random.key(0), config, train)

    def step(state, x):
        return jax.lax.pmean(train_step(state, x, jnp.int32(0), jnp.float32(1), train)[1].loss, "d")

    return step, (P(), P("d")), P(), (state, _normal(1, 6, 4))


CASES = {
    "language model": _language_model, "generation from one token": _generation, "divergence": _divergence,
    "autoencoder": _autoencoder,
    "batch threshold": lambda: (lambda x: batch_threshold(x, 3)[None], (P("d"),), P("d"), (_normal(0, 4, 8),)),
    "highest": lambda: (lambda x: highest(x, x > 0, jnp.full(2, 1)), (P("d"),), P("d"), (jnp.abs(_normal(0, 4, 8)),)),
    "temperature": lambda: (jax.grad(lambda t, x: jnp.sum(soft_top_k(x, 2, temperature=t) ** 2)), (P(), P("d")), P(),
                            (jnp.float32(0.5), _normal(0, 4, 8))),
    "own keys that all share": lambda: (
        jax.grad(lambda own, q: jnp.sum(two_stream_attention(q, q, q, own, own))), (P(), P("d")), P(),
        (_normal(0, 1, 3, 2, 4), _normal(1, 2, 3, 2, 4))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_types_of_all_that_is_carried_agree(case):
    function, specs, out, arguments = case()
    jax.eval_shape(_spread(function, *specs, out=out), *arguments)
