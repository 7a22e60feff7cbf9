"""The self-ablating transformer: causality, what is gated and what is not, variants, types."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params
from scipy import special

from jaxablate.config import ModelConfig, ObjectiveConfig
from jaxablate.models.decoder import Gates, SelfAblatingTransformer
from jaxablate.objectives import language_model_loss

_SHAPE = {"vocab_size": 13, "context_length": 8, "d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 12}


@functools.cache
def _made(ablation="local", **changes):
    config = ModelConfig(**{**_SHAPE, "ablation": ablation, "k_attention": 3, "k_neurons": 4, **changes})
    model = SelfAblatingTransformer(config)
    tokens = np.random.default_rng(1).integers(0, 13, (2, 6), dtype=np.int32)
    return model, drawn_params(model, tokens), tokens


@functools.cache
def _output(ablation="local", **changes):
    model, params, tokens = _made(ablation, **changes)
    return jax.jit(lambda p: model.apply({"params": p}, tokens))(params)


def _ones(model, tokens, value=1.0):
    c, (batch, length) = model.config, tokens.shape
    shape = (batch, length, c.n_layers)
    return Gates(np.full((*shape, c.d_model), value, np.float32), np.full((*shape, c.mlp_width), value, np.float32))


@pytest.mark.parametrize("ablation", ["local", "global", "both"])
def test_every_field_has_its_shape_and_gates_have_k_ones(ablation):
    out = _output(ablation)
    assert out.logits_clean.shape == out.logits_ablated.shape == (2, 6, 13)
    for layer in out.layers:
        for stream in (layer.clean, layer.ablated):
            assert stream.resid_pre.shape == stream.resid_mid.shape == stream.resid_post.shape == (2, 6, 8)
            assert stream.head_out.shape == (2, 6, 2, 4)
            assert stream.mlp_pre.shape == stream.mlp_post.shape == (2, 6, 12)
        assert layer.attention_scores.shape == (2, 6, 8)
        assert layer.neuron_scores.shape == (2, 6, 12)
    np.testing.assert_array_equal(np.sum(out.attention_gates, -1), 3)
    np.testing.assert_array_equal(np.sum(out.neuron_gates, -1), 4)
    assert out.attention_gates.shape == (2, 6, 2, 8)
    assert out.gates.neuron.shape == (2, 6, 2, 12)


def test_none_has_no_second_stream_no_gates_and_no_gate_parameters():
    out, (_, params, _) = _output("none"), _made("none")
    assert out.final_ablated is out.logits_ablated is out.gates is None
    assert not [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "scores" in str(path)]


def test_the_clean_stream_alone_is_the_clean_stream():
    model, params, tokens = _made("both")
    alone = jax.jit(lambda p: model.apply({"params": p}, tokens, method=model.clean))(params)
    np.testing.assert_allclose(alone.logits, _output("both").logits_clean, rtol=1e-5, atol=1e-6)


def test_causality_by_gradient():
    """No logit of either stream depends on the embedding of a later position, be it through gates of either kind."""
    model, params, tokens = _made("both", gate="soft", attention_layers=("global", "local"), window_size=2)

    def logits(offset):
        table = jnp.asarray(params["pos_embed"]["embedding"]).at[: tokens.shape[1]].add(offset)
        out = model.apply({"params": params | {"pos_embed": {"embedding": table}}}, tokens)
        return jnp.stack([out.logits_clean, out.logits_ablated])[:, 0].sum(-1)

    jacobian = jax.jit(jax.jacrev(logits))(np.zeros((6, 8), np.float32))
    influence = np.abs(jacobian).sum(-1)  # [stream, to, from]
    np.testing.assert_array_equal(np.triu(influence.sum(0), k=1), 0)
    assert (np.diagonal(influence, axis1=1, axis2=2) > 0).all()


def test_gates_of_a_token_change_its_own_ablated_output_only():
    model, params, tokens = _made()
    gates = _ones(model, tokens)

    def finals(attention):
        out = model.apply({"params": params}, tokens, gates=Gates(attention, gates.neuron))
        return jnp.stack([out.final_clean, out.final_ablated])[:, 0] @ jnp.arange(8.0)  # the norm fixes the plain sum

    influence = np.abs(jax.jit(jax.jacrev(finals))(gates.attention))[:, :, 0].sum((-1, -2))  # [stream, to, from]
    np.testing.assert_array_equal(influence[0], 0)
    np.testing.assert_array_equal(influence[1] * (1 - np.eye(6)), 0)
    assert (np.diagonal(influence[1]) > 0).all()


def test_open_gates_make_both_streams_equal_and_closed_ones_leave_biases():
    model, params, tokens = _made("none")
    apply = jax.jit(lambda gates: model.apply({"params": params}, tokens, gates=gates))
    out = apply(_ones(model, tokens))
    np.testing.assert_allclose(out.final_ablated, out.final_clean, rtol=1e-5, atol=1e-5)
    closed = apply(_ones(model, tokens, 0.0))
    layer = params["layer_0"]
    bias = layer["attention"]["out"]["bias"] + layer["mlp"]["down"]["bias"]
    ablated = closed.layers[0].ablated
    change = np.asarray(ablated.resid_post) - np.asarray(ablated.resid_pre)
    np.testing.assert_allclose(change, np.broadcast_to(bias, (2, 6, 8)), atol=1e-6)


def test_global_runs_one_clean_pass():
    """It makes as many attention products as local ablation has: one pass of each stream, not two clean ones."""

    def attentions(ablation):
        model, params, tokens = _made(ablation)
        jaxpr = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, tokens).final_ablated)(params))
        return jaxpr.count("exp ")

    assert attentions("global") == attentions("local") > 0


def test_k_of_each_layer():
    out = _output(k_attention=(1, 7), k_neurons=(11, 2))
    np.testing.assert_array_equal(np.sum(out.attention_gates, -1)[0, 0], [1, 7])
    np.testing.assert_array_equal(np.sum(out.neuron_gates, -1)[0, 0], [11, 2])


def test_bfloat16_compute_keeps_gates_and_residual_in_float32():
    out = _output(compute_dtype="bfloat16")
    layer = out.layers[0]
    assert layer.ablated.mlp_post.dtype == jnp.bfloat16
    assert layer.neuron_scores.dtype == layer.neuron_gates.dtype == layer.clean.resid_post.dtype == jnp.float32
    np.testing.assert_array_equal(np.sum(out.neuron_gates, -1), 4)
    np.testing.assert_allclose(out.logits_clean, _output().logits_clean, atol=0.15)


def test_rematerialised_blocks_give_the_same_gradient():
    def gradient(remat):
        model, params, tokens = _made(remat=remat, gate="soft", n_layers=1)
        objective = ObjectiveConfig(reconstruction=0.5)
        return jax.jit(jax.grad(lambda p: language_model_loss(model, p, tokens, tokens, objective)[0]))(params)

    chex.assert_trees_all_close(gradient("none"), gradient("blocks"), rtol=1e-3, atol=1e-5)


def test_loss_is_the_sum_of_its_terms():
    model, params, tokens = _made()
    objective = ObjectiveConfig(clean=0.2, ablated=0.7, reconstruction=3.0)
    total, metrics = jax.jit(lambda p: language_model_loss(model, p, tokens, tokens, objective))(params)
    expected = 0.2 * metrics["loss_clean"] + 0.7 * metrics["loss_ablated"] + 3 * metrics["reconstruction"]
    np.testing.assert_allclose(total, float(expected), rtol=1e-6)
    probabilities = special.softmax(_output().logits_ablated, axis=-1)
    expected = -np.log(np.take_along_axis(probabilities, tokens[..., None], -1)).mean()
    np.testing.assert_allclose(metrics["loss_ablated"], expected, rtol=1e-5)
    live = (np.asarray(_output().neuron_gates) > 0.5).any((0, 1)).mean()
    np.testing.assert_allclose(metrics["live_neurons"], live, rtol=1e-6)


def test_too_long_a_sequence_says_the_limit():
    model, params, _ = _made()
    with pytest.raises(ValueError, match="context_length=8"):
        jax.eval_shape(model.apply, {"params": params}, np.zeros((1, 9), np.int32))
