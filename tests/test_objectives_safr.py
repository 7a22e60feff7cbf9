"""SAFR's terms on the self-ablating decoder: of which activations they are, and what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.config import ClassificationObjective, ClassifierConfig, ModelConfig, ObjectiveConfig
from jaxablate.errors import ConfigError
from jaxablate.models.classifier import SafrClassifier
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.objectives import classification_loss, language_model_loss
from jaxablate.ops.attention import attention_weights, causal_attention, two_stream_attention
from jaxablate.regularizers import REGULARIZERS, Regularizer, interference, polysemanticity, register

_SHAPE = {"vocab_size": 13, "context_length": 8, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 12,
          "attention_layers": ("global", "local"), "window_size": 3, "k_attention": 3, "k_neurons": 4}


@functools.cache
def _made(ablation):
    model = SelfAblatingTransformer(ModelConfig(**_SHAPE, ablation=ablation))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 13)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    return model, params, tokens[:, :-1], tokens[:, 1:]


@functools.cache
def _output(ablation):
    model, params, inputs, _ = _made(ablation)
    return jax.jit(lambda p: model.apply({"params": p}, inputs))(params)


@functools.cache
def _loss(ablation, **coefficients):
    """((loss, metrics), gradient)."""
    model, params, inputs, targets = _made(ablation)
    objective = ObjectiveConfig(**coefficients)
    loss = jax.value_and_grad(lambda p: language_model_loss(model, p, inputs, targets, objective), has_aux=True)
    return jax.jit(loss)(params)


def _terms(ablation, layers, streams):
    """(importance, interaction) applied by hand to what the model has computed."""
    importance, interaction = [], []
    for i in layers:
        layer, window = _output(ablation).layers[i], 3 if i == 1 else None
        if "clean" in streams:
            importance.append(polysemanticity(layer.clean.mlp_post))
            interaction.append(interference(attention_weights(layer.clean.query, layer.clean.key, window=window)))
        if "ablated" in streams:
            importance.append(polysemanticity(layer.ablated.mlp_post * layer.neuron_gates))
            weights = attention_weights(layer.ablated.query, layer.clean.key, layer.ablated.key, window=window)
            interaction.append(interference(weights))
    return np.mean(importance), np.mean(interaction)


@pytest.mark.parametrize(
    ("ablation", "settings", "layers", "streams"),
    [
        ("none", {}, (0, 1), ("clean",)),
        ("local", {}, (0, 1), ("clean", "ablated")),
        ("local", {"regularized_layers": (1,), "regularized_stream": "ablated"}, (1,), ("ablated",)),
    ],
)
def test_the_terms_are_the_regularisers_of_the_streams(ablation, settings, layers, streams):
    (loss, metrics), gradient = _loss(ablation, importance=0.3, interaction=0.7, **settings)
    expected = _terms(ablation, layers, streams)
    np.testing.assert_allclose((metrics["importance"], metrics["interaction"]), expected, rtol=1e-5)
    (without, others), before = _loss(ablation)
    np.testing.assert_allclose(loss, without + 0.3 * expected[0] + 0.7 * expected[1], rtol=1e-5)
    assert metrics.keys() - others.keys() == {"importance", "interaction"}
    for name in others.keys() - {"loss"}:
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-6)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), gradient, before)
    assert np.isfinite(jax.tree.leaves(changed)).all()
    assert changed["layer_1"]["mlp"]["up"]["kernel"] > 1e-6
    assert changed["layer_1"]["attention"]["query"]["kernel"] > 1e-6


@pytest.mark.parametrize("ablation", ["none", "local"])
def test_coefficients_of_zero_leave_loss_gradient_and_metrics_as_they_were(ablation):
    settings = {"regularized_layers": (0,), "regularized_stream": "clean"}
    (loss, metrics), gradient = _loss(ablation)
    (same, others), again = _loss(ablation, importance=0.0, interaction=0.0, **settings)
    assert loss == same and metrics == others and "importance" not in metrics and "interaction" not in metrics
    jax.tree.map(np.testing.assert_array_equal, gradient, again)


def test_one_term_alone():
    model, params, inputs, targets = _made("none")
    for given, other in (("importance", "interaction"), ("interaction", "importance")):
        loss = functools.partial(language_model_loss, model, objective=ObjectiveConfig(**{given: 1.0}))
        _, metrics = jax.eval_shape(loss, params, inputs, targets)
        assert given in metrics and other not in metrics


def test_a_term_of_ones_own_is_one_call_away(monkeypatch):
    """Registered, it is in the loss and the metrics of a language model and of a classifier."""
    monkeypatch.setattr(REGULARIZERS, "_parts", dict(REGULARIZERS._parts))
    register(Regularizer(name="size", reads="vectors", term=lambda x, mask=None: jnp.mean(jnp.abs(x))))
    (loss, metrics), _ = _loss("local", regularizers=(("size", 0.5),), regularized_stream="clean")
    (without, _), _ = _loss("local")
    expected = np.mean([np.abs(layer.clean.mlp_post).mean() for layer in _output("local").layers])
    np.testing.assert_allclose((metrics["size"], loss - without), (expected, expected / 2), rtol=1e-4)

    model = SafrClassifier(ClassifierConfig(vocab_size=9, max_length=8, d_model=8, n_heads=2, vmask_width=4))
    batch = {"tokens": jnp.ones((2, 4), jnp.int32), "mask": jnp.ones((2, 4)), "labels": jnp.zeros(2, jnp.int32),
             "weight": jnp.ones(2)}
    params = jax.jit(model.init)(jax.random.key(0), batch["tokens"], batch["mask"])["params"]
    objective = ClassificationObjective(importance=0, interaction=0, regularizers={"size": 0.5})
    loss, metrics = jax.jit(lambda p: classification_loss(model, p, batch, objective))(params)
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + 0.5 * metrics["size"], rtol=1e-6)


def test_a_term_that_reads_what_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match="vmask"):
        _loss("none", regularizers=(("information", 0.5),))


@pytest.mark.parametrize("window", [None, 1, 4])
def test_weights_times_values_are_the_attention_of_both_streams(window):
    with jax.enable_x64(True):
        q, k, v, k_self, v_self = (jax.random.normal(jax.random.key(s), (2, 9, 3, 4), jnp.float64) for s in range(5))
        options = {"window": window, "scale": 0.7}
        weights = jax.jit(lambda *a: attention_weights(*a, **options))
        clean, ablated = weights(q, k), weights(q, k, k_self)
        np.testing.assert_allclose(jnp.einsum("bnts,bsnh->btnh", clean, v), causal_attention(q, k, v, **options),
                                   rtol=0, atol=1e-12)
        own = jnp.einsum("bntt->btn", ablated)[..., None]
        mixed = jnp.einsum("bnts,bsnh->btnh", ablated, v) + own * (v_self - v)
        expected = two_stream_attention(q, k, v, k_self, v_self, **options)
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-12)
        for found in (clean, ablated):
            np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
            seen = np.tril(np.ones((9, 9))) * np.triu(np.ones((9, 9)), -(window or 9) + 1)
            np.testing.assert_array_equal(found * (1 - seen), 0)


def test_weights_are_at_least_float32():
    q, k = jnp.ones((1, 3, 1, 4), jnp.bfloat16), jnp.ones((1, 3, 1, 4), jnp.bfloat16)
    weights = attention_weights(q, k)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights[0, 0, 2], 1 / 3, rtol=1e-6)
