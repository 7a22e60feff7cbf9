"""Decoders of other families: their pieces against plain formulas, and what every decoder here can do."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.platforms import take_accelerator_code
from helpers.weights import drawn_params

from jaxablate.config import MeshConfig, ObjectiveConfig, family
from jaxablate.errors import ConfigError
from jaxablate.features.sites import sites
from jaxablate.interop import transformer_to_reference
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.generation import generate
from jaxablate.models.stacking import layer_groups, stack_layers, unstack_layers
from jaxablate.neurons.units import decoder_output, direction_values, draw_directions, kinds
from jaxablate.objectives import language_model_loss
from jaxablate.ops import attention
from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
from jaxablate.ops.normalization import rms_norm
from jaxablate.ops.rotary import rotate
from jaxablate.sharding import make_mesh, param_shardings
from jaxablate.suites.perplexity import token_losses
from jaxablate.training.throughput import train_flops_per_token

SHAPES = {  # what only some families have, each at least once
    "gpt2": {"n_heads": 2},
    "gpt_neox": {"n_heads": 2, "rotary_fraction": 0.5, "rotary_theta": 50.0},
    "llama": {"n_heads": 4, "kv_heads": 2, "head_dim": 6, "qkv_bias": True, "rotary_theta": 50.0},
    "gemma2": {"n_heads": 4, "kv_heads": 2, "attention_cap": 2.0, "logit_cap": 3.0, "window_size": 3,
               "attention_scale_width": 5},
}
TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)


@functools.cache
def model(name, ablation="local", dtype="float32"):
    config = family(name, vocab_size=23, context_length=12, d_model=16, n_layers=2, d_mlp=20, ablation=ablation,
                    k_attention=5, k_neurons=6, param_dtype=dtype, compute_dtype=dtype, **SHAPES[name])
    made = SelfAblatingTransformer(config)
    return made, drawn_params(made, TOKENS, scale=0.4)


def plain_attention(q, k, v, k_self, v_self, window, scale, cap):
    """One query and one key at a time, as the definition reads."""
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(q.shape[1])[None]
    own = jnp.einsum("btnh,btnh->bnt", q, k_self)[..., None]
    scores = cap * jnp.tanh(scale * jnp.where(i == j, own, jnp.einsum("btnh,bsnh->bnts", q, k)) / cap)
    probs = jax.nn.softmax(jnp.where((j <= i) & (i - j < window), scores, -jnp.inf), axis=-1)
    values = jnp.where((i == j)[:, :, None, None], v_self[:, :, None], v[:, None])
    return jnp.einsum("bnts,btsnh->btnh", probs, values)


@pytest.mark.parametrize("platform", ["cpu", "accelerator"])
def test_attention_with_a_cap_and_its_derivative(platform, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 4)
    if platform == "accelerator":
        take_accelerator_code(monkeypatch)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        cotangent, *arguments = (rng.standard_normal((2, 9, 2, 3)) for _ in range(6))

        def vjps(*arguments):
            both = [lambda *a: attention.two_stream_attention(*a, window=5, scale=1.3, cap=0.8),
                    lambda *a: plain_attention(*a, 5, 1.3, 0.8)]
            pairs = [jax.vjp(f, *arguments) for f in both]
            return [(out, vjp(cotangent)) for out, vjp in pairs]

        got, expected = jax.jit(vjps)(*arguments)
    chex.assert_trees_all_close(got, expected, rtol=0, atol=1e-12)


def test_cross_entropy_with_a_cap_and_its_derivative():
    """The losses of two streams, with a row of padding."""
    rng = np.random.default_rng(0)
    hidden, matrix = rng.standard_normal((2, 2, 5, 4)), rng.standard_normal((8, 4))
    targets = rng.integers(0, 7, (2, 5))

    def ours(hidden, matrix):
        clean, ablated = linear_cross_entropy(tuple(hidden), matrix, targets, vocabulary=7, chunk=4, cap=1.5)
        return clean + 2 * ablated

    def plain(hidden, matrix):
        log_p = jax.nn.log_softmax(1.5 * jnp.tanh(hidden @ matrix[:7].T / 1.5), axis=-1)
        losses = -jnp.take_along_axis(log_p, jnp.broadcast_to(targets, (2, 2, 5))[..., None], axis=-1).mean((1, 2, 3))
        return losses[0] + 2 * losses[1]

    with jax.enable_x64(True):
        got, expected = jax.jit(lambda *a: [jax.value_and_grad(f, (0, 1))(*a) for f in (ours, plain)])(hidden, matrix)
        tokens = [np.asarray(per_token_cross_entropy(x, matrix, targets, vocabulary=7, cap=1.5)) for x in hidden]
    chex.assert_trees_all_close(got, expected, rtol=0, atol=1e-12)
    assert tokens[0].mean() + 2 * tokens[1].mean() == pytest.approx(float(expected[0]), abs=1e-12)


def test_rms_norm_by_hand():
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), x / 12.5**0.5 * jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(rms_norm(x, jnp.array([0.0, 1.0]), 0.0, offset=True),
                               x / 12.5**0.5 * jnp.array([[1.0, 2.0]]))
    assert rms_norm(x.astype(jnp.bfloat16), jnp.ones(2)).dtype == jnp.float32


def test_rotary_scores_depend_on_distance_alone_and_keep_the_other_channels():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 6)).astype(np.float32)
    scores = [float(jnp.sum(rotate(q, np.array([i]), width=4, theta=10.0) * rotate(k, np.array([j]), width=4,
                                                                                   theta=10.0)))
              for i, j in ((0, 3), (5, 8), (3, 0))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and abs(scores[0] - scores[2]) > 1e-3
    np.testing.assert_array_equal(rotate(q, np.array([7]), width=4)[0, 4:], q[0, 4:])
    np.testing.assert_allclose(rotate(jnp.array([[1.0, 0.0]]), jnp.array([1]), width=2)[0], [np.cos(1), np.sin(1)])
    with pytest.raises(ConfigError, match="width=3 must be even"):
        rotate(q, np.array([0]), width=3)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gemma2"])
def test_the_derivative_of_the_loss_is_that_of_finite_differences(name):
    """Every family trains as a self-ablating model; gates are soft here, and all is float64."""
    with jax.enable_x64(True):
        made, params = model(name, "both", "float64")
        made = SelfAblatingTransformer(made.config.__class__(**{**vars(made.config), "gate": "soft"}))
        objective = ObjectiveConfig(clean=0.3, ablated=0.5, reconstruction=0.2, interaction=0.1, importance=0.1)

        @jax.jit
        def loss(params):
            return language_model_loss(made, params, TOKENS, TOKENS[:, ::-1], objective)[0]

        grads = jax.device_get(jax.jit(jax.grad(loss))(params))
        rng = np.random.default_rng(1)
        step = jax.tree.map(lambda x: 1e-7 * rng.standard_normal(x.shape), params)
        ends = [float(loss(jax.tree.map(lambda x, d, s=s: x + s * d, params, step))) for s in (1, -1)]
    expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, step)))
    assert (ends[0] - ends[1]) / 2 == pytest.approx(expected, rel=1e-5)
    assert all(np.any(g) for g in jax.tree.leaves(grads) if g.size > 40)


@pytest.mark.parametrize("name", ["gpt_neox", "gemma2"])
def test_greedy_continuation_of_the_ablated_stream_is_the_argmax_of_the_full_pass(name):
    made, params = model(name)
    out = generate(made, params, TOKENS[:, :4], steps=5, stream="ablated", temperature=0)
    full = jax.jit(lambda p, x: made.apply({"params": p}, x))(params, out)
    logits = np.asarray(full.logits_ablated)
    np.testing.assert_array_equal(np.asarray(out)[:, 4:], logits[:, 3:-1].argmax(-1))
    losses = token_losses(made, params, {"inputs": out, "targets": np.roll(out, -1, axis=1)})["ablated"]
    np.testing.assert_allclose(losses, -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)),
                                                           np.roll(out, -1, axis=1)[..., None], -1)[..., 0], atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_scanned_layers_compute_what_layers_by_themselves_do(name):
    made, params = model(name)
    groups = layer_groups([made.config.layer_window(i) for i in range(2)])
    stacked = stack_layers(params, groups)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked, groups), params)
    scanned = SelfAblatingTransformer(made.config, groups=groups)

    def gradient(net):
        return jax.jit(jax.value_and_grad(
            lambda p: language_model_loss(net, p, TOKENS, TOKENS[:, ::-1], ObjectiveConfig())[0]))

    (loss, grads), (other, others) = gradient(made)(params), gradient(scanned)(stacked)
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    chex.assert_trees_all_close(unstack_layers(others, groups), grads, rtol=1e-3, atol=1e-5)


def test_heads_that_the_tensor_axis_does_not_divide_are_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    layer = param_shardings(mesh, model("llama")[1])["layer_0"]["attention"]
    assert [tuple(layer[name]["kernel"].spec) for name in ("query", "key")] == [("fsdp", "tensor", None),
                                                                               ("fsdp", None, None)]
    assert tuple(param_shardings(mesh, {"unembed": {"kernel": jnp.zeros((24, 16))}})["unembed"]["kernel"].spec) == (
        "tensor", "fsdp")


def test_channels_of_the_heads_are_the_width_of_their_sites_and_units():
    config = model("llama")[0].config
    width = {site.field: site.width for site in sites(config)}
    assert (width["head_out"], width["attn_out"], width["mlp_post"]) == (24, 16, 20)
    assert {kind.name: kind.width for kind in kinds(config)}["attention gates"] == 24
    values = direction_values(config, model("llama")[1], decoder_output(*model("llama"), TOKENS),
                              draw_directions(config, model("llama")[1], 3, 0))
    assert {name: x[0].shape for name, x in values.items()} == dict.fromkeys(values, (18, 3))
    assert kinds(config)[0].directions == "values"  # no single number comes before a gated MLP's activation function


def test_arithmetic_of_a_token_counts_every_product():
    made, params = model("llama", "none")
    blocks = sum(x.size for i in range(2) for x in jax.tree.leaves(params[f"layer_{i}"]) if x.ndim > 1)
    biases = 2 * (4 + 2 + 2) * 6
    scores = 2 * 2 * 24 * (9 + 1) / 2
    assert train_flops_per_token(made.config, 9) == 6 * (blocks - biases + scores + 16 * 23)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_papers_code_cannot_hold_other_families(name):
    with pytest.raises(ConfigError, match="the papers' code has no .*; jaxablate export writes"):
        transformer_to_reference(model(name)[0].config, model(name)[1])
