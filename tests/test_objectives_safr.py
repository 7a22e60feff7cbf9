"""SAFR's terms on the self-ablating decoder: of which activations they are, and what they leave alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

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
    tokens = np.random.default_rng(1).integers(0, 13, (2, 7))
    return model, drawn_params(model, tokens), tokens[:, :-1], tokens[:, 1:]


def _loss(ablation, **coefficients):
    """Parameters -> (loss, metrics)."""
    model, _, inputs, targets = _made(ablation)
    objective = ObjectiveConfig(**coefficients)
    return lambda params: language_model_loss(model, params, inputs, targets, objective)


def _compared(ablation, terms, transform=lambda f: f, **coefficients):
    """What a transformation makes of a function that returns the difference which coefficients make to the loss and,
    beside it: (loss, metrics), the same without them, and terms of the model's output."""
    model, params, inputs, _ = _made(ablation)
    loss, plain = _loss(ablation, **coefficients), _loss(ablation)

    def difference(p):
        results = loss(p), plain(p), terms(model.apply({"params": p}, inputs))
        return results[0][0] - results[1][0], results

    return jax.jit(transform(difference))(params)


def _terms(output, layers, streams):
    """(importance, interaction) applied by hand to what the model has computed."""
    importance, interaction = [], []
    for i in layers:
        layer, window = output.layers[i], 3 if i == 1 else None
        if "clean" in streams:
            importance.append(polysemanticity(layer.clean.mlp_post))
            interaction.append(interference(attention_weights(layer.clean.query, layer.clean.key, window=window)))
        if "ablated" in streams:
            importance.append(polysemanticity(layer.ablated.mlp_post * layer.neuron_gates))
            weights = attention_weights(layer.ablated.query, layer.clean.key, layer.ablated.key, window=window)
            interaction.append(interference(weights))
    return jnp.stack(importance).mean(), jnp.stack(interaction).mean()


@pytest.mark.parametrize(
    ("ablation", "settings", "layers", "streams"),
    [
        ("none", {}, (0, 1), ("clean",)),
        ("local", {}, (0, 1), ("clean", "ablated")),
        ("local", {"regularized_layers": (1,), "regularized_stream": "ablated"}, (1,), ("ablated",)),
    ],
)
def test_the_terms_are_the_regularisers_of_the_streams(ablation, settings, layers, streams):
    gradient, ((loss, metrics), (without, others), expected) = _compared(
        ablation, lambda output: _terms(output, layers, streams), functools.partial(jax.grad, has_aux=True),
        importance=0.3, interaction=0.7, **settings)
    np.testing.assert_allclose((metrics["importance"], metrics["interaction"]), expected, rtol=1e-5)
    np.testing.assert_allclose(loss, without + 0.3 * expected[0] + 0.7 * expected[1], rtol=1e-5)
    assert metrics.keys() - others.keys() == {"importance", "interaction"}
    for name in others.keys() - {"loss"}:
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-6)
    changed = jax.tree.map(lambda x: float(np.abs(x).max()), gradient)
    assert np.isfinite(jax.tree.leaves(changed)).all()
    assert changed["layer_1"]["mlp"]["up"]["kernel"] > 1e-6
    assert changed["layer_1"]["attention"]["query"]["kernel"] > 1e-6


@pytest.mark.parametrize("ablation", ["none", "local"])
def test_coefficients_of_zero_leave_loss_gradient_and_metrics_as_they_were(ablation):
    """The program of loss, metrics and gradient is the same, to the letter; other settings of terms change it."""

    def program(**coefficients):
        loss = jax.value_and_grad(_loss(ablation, **coefficients), has_aux=True)
        jaxpr, shapes = jax.make_jaxpr(loss, return_shape=True)(_made(ablation)[1])
        return re.sub("0x[0-9a-f]+", "", str(jaxpr)), shapes[0][1].keys()

    settings = {"regularized_layers": (0,), "regularized_stream": "clean"}
    plain, metrics = program()
    assert (plain, metrics) == program(importance=0.0, interaction=0.0, **settings)
    assert plain != program(importance=0.1, **settings)[0] and not metrics & {"importance", "interaction"}


def test_one_term_alone():
    for given, other in (("importance", "interaction"), ("interaction", "importance")):
        _, metrics = jax.eval_shape(_loss("none", **{given: 1.0}), _made("none")[1])
        assert given in metrics and other not in metrics


def test_a_term_of_ones_own_is_one_call_away(monkeypatch):
    """Registered, it is in the loss and the metrics of a language model and of a classifier."""
    monkeypatch.setattr(REGULARIZERS, "_parts", dict(REGULARIZERS._parts))
    register(Regularizer(name="size", reads="vectors", term=lambda x, mask=None: jnp.mean(jnp.abs(x))))
    _, ((loss, metrics), (without, _), neurons) = _compared(
        "local", lambda output: [layer.clean.mlp_post for layer in output.layers], regularizers=(("size", 0.5),),
        regularized_stream="clean")
    expected = np.mean([np.abs(x).mean() for x in neurons])
    np.testing.assert_allclose((metrics["size"], loss - without), (expected, expected / 2), rtol=1e-4)

    model = SafrClassifier(ClassifierConfig(vocab_size=9, max_length=8, d_model=8, n_heads=2, vmask_width=4))
    batch = {"tokens": np.ones((2, 4), np.int32), "mask": np.ones((2, 4), np.float32),
             "labels": np.zeros(2, np.int32), "weight": np.ones(2, np.float32)}
    params = drawn_params(model, batch["tokens"], batch["mask"])
    objective = ClassificationObjective(importance=0, interaction=0, regularizers={"size": 0.5})
    loss, metrics = jax.jit(lambda p: classification_loss(model, p, batch, objective))(params)
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + 0.5 * metrics["size"], rtol=1e-6)


def test_a_term_that_reads_what_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match="vmask"):
        jax.eval_shape(_loss("none", regularizers=(("information", 0.5),)), _made("none")[1])


@pytest.mark.parametrize("window", [None, 1, 4])
def test_weights_times_values_are_the_attention_of_both_streams(window):
    with jax.enable_x64(True):
        q, k, v, k_self, v_self = (np.random.default_rng(s).standard_normal((2, 9, 3, 4)) for s in range(5))
        options = {"window": window, "scale": 0.7}

        @jax.jit
        def both(q, k, v, k_self, v_self):
            weights = attention_weights(q, k, **options), attention_weights(q, k, k_self, **options)
            return (*weights, causal_attention(q, k, v, **options),
                    two_stream_attention(q, k, v, k_self, v_self, **options))

        clean, ablated, attended, expected = map(np.asarray, both(q, k, v, k_self, v_self))
        np.testing.assert_allclose(np.einsum("bnts,bsnh->btnh", clean, v), attended, rtol=0, atol=1e-12)
        own = np.einsum("bntt->btn", ablated)[..., None]
        mixed = np.einsum("bnts,bsnh->btnh", ablated, v) + own * (v_self - v)
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-12)
        for found in (clean, ablated):
            np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
            seen = np.tril(np.ones((9, 9))) * np.triu(np.ones((9, 9)), -(window or 9) + 1)
            np.testing.assert_array_equal(found * (1 - seen), 0)


def test_weights_are_at_least_float32():
    q = np.ones((1, 3, 1, 4), jnp.bfloat16)
    weights = jax.jit(attention_weights)(q, q)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights[0, 0, 2], 1 / 3, rtol=1e-6)
