"""The SAFR classifier: by hand, padding, VMASK, gates, what the losses take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params
from scipy import special

from jaxablate.config import ClassificationObjective, ClassifierConfig
from jaxablate.models.classifier import BlockGates, SafrClassifier, straight_through_sample
from jaxablate.objectives import classification_loss
from jaxablate.regularizers import information, interference, mean_over_texts, polysemanticity

_SHAPE = {"vocab_size": 13, "max_length": 12, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 12, "vmask_width": 6}
_GATED = {"n_layers": 2, "ablation": "local", "k_attention": (1, 7), "k_neurons": (11, 2)}
_LENGTHS = (5, 3, 1)


@functools.cache
def _made(**changes):
    model = SafrClassifier(ClassifierConfig(**{**_SHAPE, "dropout": 0.5, **changes}))
    return model, drawn_params(model, _batch()["tokens"], _batch()["mask"])


def _batch(length=6, fillers=0, padding=7):
    """Texts of 5, 3 and 1 tokens; padding holds any token, which must not matter."""
    rng = np.random.default_rng(0)
    rows = len(_LENGTHS) + fillers
    tokens, mask = np.full((rows, length), padding, np.int32), np.zeros((rows, length), np.float32)
    for row, n in enumerate(_LENGTHS):
        tokens[row, :n], mask[row, :n] = rng.integers(1, 13, n), 1
    labels, weight = np.array([1, 0, 1] + [0] * fillers, np.int32), np.float32([1, 1, 1] + [0] * fillers)
    return {"tokens": tokens, "mask": mask, "labels": labels, "weight": weight}


@functools.cache
def _output(**changes):
    model, params = _made(**changes)
    batch = _batch()
    return jax.device_get(jax.jit(lambda p: model.apply({"params": p}, batch["tokens"], batch["mask"]))(params))


def test_every_field_has_its_shape():
    out = _output(**_GATED)
    assert out.logits.shape == out.logits_ablated.shape == (3, 2)
    assert out.embedded.shape == out.masked.shape == (3, 6, 8)
    assert out.vmask_logits.shape == (3, 6, 2)
    assert out.keep.shape == out.vmask.shape == (3, 6)
    assert len(out.layers) == 2
    for layer in out.layers:
        for stream in (layer.clean, layer.ablated):
            assert stream.attention.shape == (3, 2, 6, 6)
            assert stream.head_out.shape == (3, 6, 2, 4)
            assert stream.resid_mid.shape == stream.resid_post.shape == (3, 6, 8)
            assert stream.mlp_pre.shape == stream.mlp_post.shape == (3, 6, 12)
        assert (layer.attention_gates.shape, layer.neuron_gates.shape) == ((3, 6, 8), (3, 6, 12))


def test_what_a_model_does_not_have_is_none():
    out, (_, params) = _output(vmask=False), _made(vmask=False)
    assert out.vmask_logits is out.keep is out.vmask is out.logits_ablated is None
    assert out.layers[0].ablated is out.layers[0].attention_gates is out.layers[0].neuron_gates is None
    assert out.masked is not None and "vmask" not in params and "attention_scores" not in params["layer_0"]
    np.testing.assert_array_equal(out.masked, out.embedded)


def test_attention_is_of_real_tokens_alone():
    real = _batch()["mask"] > 0
    for layer in _output(**_GATED).layers:
        for weights in (layer.clean.attention, layer.ablated.attention):
            np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-6)
            np.testing.assert_array_equal(np.where(real[:, None, None, :], 0, weights), 0)
            assert (np.asarray(weights) > 0)[np.broadcast_to(real[:, None, None, :], weights.shape)].all()


def test_a_micro_model_by_hand():
    """Two tokens and a padded one; x = (3, 0), (1, 2) enters the block, both attend by 1/4 and 3/4."""
    settings = {"d_model": 2, "n_heads": 1, "d_mlp": 2, "vmask_width": 1, "layer_norm_eps": 1e-12}
    model = SafrClassifier(ClassifierConfig(vocab_size=3, max_length=4, n_layers=1, **settings))
    masked = np.array([[3.0, -1.0], [1 - np.sin(1), 2 - np.cos(1)], [50.0, 60.0]])
    heads, zero = (2, 1, 2), np.zeros(2)
    block = {
        "attention": {
            "query": {"kernel": np.zeros(heads), "bias": np.array([[np.log(3) / np.sqrt(2), 0.0]])},
            "key": {"kernel": np.array([[0.0, 0.0], [1.0, 0.0]]).reshape(heads), "bias": np.zeros((1, 2))},
            "value": {"kernel": np.eye(2).reshape(heads), "bias": np.zeros((1, 2))},
            "out": {"kernel": np.array([[[1.0, 0.0], [0.0, 0.0]]]), "bias": np.array([0.0, 0.5])},
        },
        "ln_1": {"scale": np.ones(2), "bias": zero},
        "mlp": {"up": {"kernel": np.eye(2), "bias": np.array([0.0, 0.25])},
                "down": {"kernel": np.array([[0.0, 1.0], [0.0, 4.0]]), "bias": zero}},
        "ln_2": {"scale": np.array([2.0, 1.0]), "bias": np.array([0.0, 1.0])},
    }
    params = {
        "embed": {"embedding": masked / (np.sqrt(2) * 0.75)},
        "vmask": {"hidden": {"kernel": np.zeros((2, 1)), "bias": np.zeros(1)},
                  "out": {"kernel": np.zeros((1, 2)), "bias": np.array([0.0, np.log(3)])}},
        "layer_0": block,
        "classes": {"kernel": np.array([[1.0, 0.0], [1.0, -1.0]]), "bias": np.array([0.0, 3.0])},
    }
    params = jax.tree.map(np.float32, params)
    out = jax.jit(model.apply)({"params": params}, np.int32([[0, 1, 2]]), np.float32([[1, 1, 0]]))
    out = jax.device_get(out)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(out.keep, 0.75)
    close(out.masked[0], masked)
    close(out.layers[0].clean.attention[0, 0], [[0.25, 0.75, 0]] * 3)
    close(out.layers[0].clean.head_out[0, :2, 0], [[1.5, 1.5]] * 2)
    close(out.layers[0].clean.resid_mid[0, :2], [[1, -1], [0, 0]])  # of (4.5, 0.5) and (2.5, 2.5)
    close(out.layers[0].clean.mlp_pre[0, :2], [[1, -0.75], [0, 0.25]])
    close(out.layers[0].clean.mlp_post[0, :2], [[1, 0], [0, 0.25]])
    close(out.layers[0].clean.resid_post[0, :2], [[2, 0], [-2, 2]])
    close(out.logits, [[1, 2]])  # of the mean (0, 1)


PLAIN = ({}, ClassificationObjective(information=0.5))
GATED = (
    {"param_dtype": "float64", "compute_dtype": "float64", "ablation": "local", "k_attention": 3, "k_neurons": 4},
    ClassificationObjective(information=0.5, stream="both", importance_site="neurons"),
)


CASES = {"plain": PLAIN, "gated": GATED}


@functools.cache
def _evaluation(case, **changes):
    """Function of a batch: (loss, metrics), logits and probabilities in evaluation mode, and one with the gradient."""
    settings, objective = CASES[case]
    model, params = _made(**settings, **changes)

    def loss(params, batch):
        return classification_loss(model, params, batch, objective)

    def output(params, batch):
        out = model.apply({"params": params}, batch["tokens"], batch["mask"])
        return out.logits, out.keep

    @jax.jit
    def forward(params, batch):
        return loss(params, batch), *output(params, batch)

    @jax.jit
    def differentiated(params, batch):
        value, gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return value, *output(params, batch), gradient

    return tuple(lambda batch, f=f: jax.device_get(f(params, batch)) for f in (forward, differentiated))


def _same_values(one, other):
    ((loss, metrics), logits, keep), ((longer, same), logits_longer, keep_longer) = one, other
    assert float(loss) == pytest.approx(float(longer), abs=1e-5)
    assert {"importance", "interaction", "information", "kept", "accuracy"} <= metrics.keys() == same.keys()
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(same[name]), abs=1e-5), name
    assert np.abs(logits - logits_longer[:3]).max() < 1e-5
    assert np.abs(keep - keep_longer[:3, :6])[_batch()["mask"] > 0].max() < 1e-5


def _same_gradients(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(other))


def test_nothing_depends_on_padding():
    """Logits, probabilities, every term, and the gradient of the whole loss; filler rows count nowhere either."""
    _, evaluate = _evaluation("plain")
    (*short, gradient), (*long, other) = evaluate(_batch()), evaluate(_batch(11, fillers=2))
    _same_values(short, long)
    _same_gradients(gradient, other)


def test_nothing_depends_on_padding_with_gates():
    """In float64. What tokens the padding holds would reach the gradient of their own embeddings."""
    with jax.enable_x64(True):
        forward, evaluate = _evaluation("gated")
        *values, gradient = evaluate(_batch(11, fillers=2))
        *others, other = evaluate(_batch(11, fillers=2, padding=12))
        for found in (values, others):
            _same_values(forward(_batch()), found)
        _same_gradients(gradient, other)


def test_in_the_papers_mode_everything_depends_on_padding():
    _, evaluate = _evaluation("plain", padding="paper")
    ((loss, metrics), *_, gradient), ((longer, others), *_, other) = evaluate(_batch()), evaluate(_batch(11))
    assert abs(loss - longer) > 1e-3
    assert np.abs(gradient["classes"]["kernel"] - other["classes"]["kernel"]).max() > 1e-3
    for name in ("cross_entropy", "importance", "interaction", "information"):
        assert abs(metrics[name] - others[name]) > 1e-4, name
    assert metrics["kept"] == pytest.approx(float(others["kept"]), abs=1e-6)  # of the texts' own tokens in both


def test_a_vmask_sample_is_hard_and_has_the_soft_ones_gradient():
    logits, noise, cotangent = np.random.default_rng(0).gumbel(size=(3, 4, 5, 2)).astype(np.float32)

    @jax.jit
    def both(logits, noise, cotangent):
        hard, vjp = jax.vjp(lambda x: straight_through_sample(x, noise), logits)
        soft, soft_vjp = jax.vjp(lambda x: jax.nn.softmax(x + noise)[..., 1], logits)
        return hard, soft, vjp(cotangent)[0], soft_vjp(cotangent)[0]

    hard, soft, gradient, soft_gradient = both(logits, noise, cotangent[..., 0])
    np.testing.assert_array_equal(hard, np.argmax(logits + noise, axis=-1))
    np.testing.assert_allclose(gradient, soft_gradient, rtol=1e-6)
    assert set(np.unique(hard)) == {0, 1} and not np.allclose(soft, hard)


@functools.cache
def _train_function():
    model, params = _made()
    batch = _batch()

    @jax.jit
    def apply(dropout, vmask):
        rngs = {"dropout": jax.random.key(dropout), "vmask": jax.random.key(vmask)}
        out = model.apply({"params": params}, batch["tokens"], batch["mask"], train=True, rngs=rngs)
        return out.vmask, out.logits

    return lambda *seeds: jax.device_get(apply(*seeds))


def test_training_draws_from_its_keys_and_evaluation_draws_nothing():
    apply = _train_function()
    (mask, logits), again, other_mask, other_dropout = apply(0, 0), apply(0, 0), apply(0, 1), apply(1, 0)
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(logits, again[1])
    assert (mask != other_mask[0]).any()
    np.testing.assert_array_equal(mask, other_dropout[0])
    assert (logits != other_dropout[1]).any()
    out = _output()
    np.testing.assert_allclose(out.vmask, special.softmax(out.vmask_logits, axis=-1)[..., 1], rtol=1e-6)
    np.testing.assert_allclose(out.masked, out.embedded * out.vmask[..., None], rtol=1e-6)


def test_noise_that_is_given_makes_the_sample_hard_outside_training():
    model, params = _made()
    batch = _batch()
    noise = np.random.default_rng(0).gumbel(size=(3, 6, 2)).astype(np.float32)
    apply = jax.jit(lambda noise: model.apply({"params": params}, batch["tokens"], batch["mask"], noise_BL2=noise))
    out = jax.device_get(apply(noise))
    np.testing.assert_array_equal(out.vmask, np.argmax(out.vmask_logits + noise, axis=-1))
    np.testing.assert_array_equal(out.masked[out.vmask == 0], 0)


def test_gates_have_k_ones_and_change_the_ablated_stream_alone():
    out = _output(**_GATED)
    for layer, (k_attention, k_neurons) in zip(out.layers, ((1, 11), (7, 2)), strict=True):
        np.testing.assert_array_equal(layer.attention_gates.sum(-1), k_attention)
        np.testing.assert_array_equal(layer.neuron_gates.sum(-1), k_neurons)
        assert set(np.unique(layer.neuron_gates)) == {0, 1}
    assert np.abs(out.logits - out.logits_ablated).min() > 1e-4
    _model, params = _made(**_GATED)
    ungated = SafrClassifier(ClassifierConfig(**_SHAPE | {"n_layers": 2}))
    clean = {name: tree for name, tree in params.items() if not name.startswith("layer")}
    clean |= {f"layer_{i}": {k: v for k, v in params[f"layer_{i}"].items() if "scores" not in k} for i in range(2)}
    logits = jax.jit(ungated.apply)({"params": clean}, _batch()["tokens"], _batch()["mask"]).logits
    np.testing.assert_allclose(logits, out.logits, rtol=1e-5, atol=1e-6)


def _ablated_block(x, gates):
    """The first block's gated stream over the clean stream's keys and values."""
    model, params = _made(**_GATED)
    mask = _batch()["mask"]

    def run(module, x, gates):
        clean, k, v = module.blocks[0].clean(x, mask)
        return clean, module.blocks[0].ablated(x, k, v, gates, mask)

    return model.apply({"params": params}, x, gates, method=run)


_X = np.random.default_rng(0).standard_normal((3, 6, 8), dtype=np.float32)


def _gates(value):
    return BlockGates(np.full((3, 6, 8), value, np.float32), np.full((3, 6, 12), value, np.float32))


def test_open_gates_make_both_streams_equal_and_closed_ones_leave_biases():
    block = jax.jit(_ablated_block)
    clean, ablated = block(_X, _gates(1.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), clean, ablated)
    _, closed = block(_X, _gates(0.0))
    attention = _made(**_GATED)[1]["layer_0"]["attention"]
    attended = _X + attention["out"]["bias"]
    centred = attended - attended.mean(-1, keepdims=True)
    scale, bias = (_made(**_GATED)[1]["layer_0"]["ln_1"][name] for name in ("scale", "bias"))
    expected = centred / attended.std(-1, keepdims=True) * scale + bias
    np.testing.assert_allclose(closed.resid_mid, expected, rtol=1e-3, atol=1e-4)


def test_gates_of_a_token_change_its_own_ablated_output_only():
    """Other tokens are seen through the clean stream, so what is gated at one never reaches another."""

    def ends(attention):
        clean, ablated = _ablated_block(_X, BlockGates(attention, _gates(1.0).neurons))
        return jnp.stack([clean.resid_post, ablated.resid_post])[:, 0] @ jnp.arange(8.0)  # the norm fixes the sum

    influence = np.abs(jax.jit(jax.jacrev(ends))(_gates(1.0).attention))[:, :, 0].sum(-1)  # [stream, to, from]
    np.testing.assert_array_equal(influence[0], 0)
    np.testing.assert_array_equal(influence[1] * (1 - np.eye(6)), 0)
    assert (np.diagonal(influence[1]) > 0).all()


_OBJECTIVES = [
    ClassificationObjective(layers=layers, stream=stream, importance_site=site, importance=0.3, interaction=0.7,
                            clean=0.2, ablated=0.9)
    for layers, stream, site in (((1,), "clean", "neurons"), ((0, 1), "clean", "embedding"),
                                 ((1,), "ablated", "neurons"), ((0, 1), "both", "neurons"))
]


@functools.cache
def _losses():
    """(loss, metrics) of each of these objectives, in one program."""
    (model, params), batch = _made(**_GATED), _batch()
    compiled = jax.jit(lambda p: [classification_loss(model, p, batch, objective) for objective in _OBJECTIVES])
    return jax.device_get(compiled(params))


@jax.jit
def _terms(sites, attentions, mask):
    return [polysemanticity(x, mask) for x in sites], [interference(x, mask) for x in attentions]


@pytest.mark.parametrize("case", range(4))
def test_the_terms_are_of_the_layers_and_streams_that_were_asked_for(case):
    objective, out, (loss, metrics) = _OBJECTIVES[case], _output(**_GATED), _losses()[case]
    streams = ["clean", "ablated"] if objective.stream == "both" else [objective.stream]
    blocks = [getattr(out.layers[i], name) for i in objective.layers for name in streams]
    gates = [out.layers[i].neuron_gates if name == "ablated" else 1 for i in objective.layers for name in streams]
    neurons = [block.mlp_post * gate for block, gate in zip(blocks, gates, strict=True)]
    sites = [out.masked] if objective.importance_site == "embedding" else neurons
    terms = _terms(sites, [block.attention for block in blocks], _batch()["mask"])
    importance, interaction = (np.mean(values) for values in terms)
    np.testing.assert_allclose((metrics["importance"], metrics["interaction"]), (importance, interaction), rtol=1e-5)
    expected = 0.2 * metrics["cross_entropy"] + 0.9 * metrics["cross_entropy_ablated"]
    np.testing.assert_allclose(loss, expected + 0.3 * importance + 0.7 * interaction, rtol=1e-5)


def test_cross_entropy_and_accuracy_are_of_the_real_rows():
    (_, metrics), logits, keep, _ = _evaluation("plain")[1](_batch(11, fillers=2))
    batch, log_p = _batch(), special.log_softmax(logits[:3], axis=-1)
    np.testing.assert_allclose(metrics["cross_entropy"], -log_p[np.arange(3), batch["labels"]].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (log_p.argmax(-1) == batch["labels"]).mean(), rtol=1e-6)
    own = [keep[row, :n].mean() for row, n in enumerate(_LENGTHS)]
    np.testing.assert_allclose(metrics["kept"], np.mean(own), rtol=1e-5)


def test_gradient_by_the_scale_is_gradient_times_input():
    model, params = _made()
    tokens, mask = np.arange(1, 6)[None], np.ones((1, 5), np.float32)  # each token once: a row of its own

    def logit(scale, table):
        tree = params | {"embed": {"embedding": table}}
        return model.apply({"params": tree}, tokens, mask, scale_BL=scale).logits[0, 1]

    table = params["embed"]["embedding"]
    by_scale, by_table = jax.device_get(jax.jit(jax.grad(logit, argnums=(0, 1)))(mask, table))
    np.testing.assert_allclose(by_scale[0], (by_table * table).sum(-1)[1:6], rtol=1e-4, atol=1e-6)
    assert np.abs(by_scale).min() > 1e-5


def test_bfloat16_compute_keeps_norms_attention_and_logits_in_float32():
    out = _output(compute_dtype="bfloat16", **_GATED)
    block = out.layers[0].ablated
    assert out.logits.dtype == block.attention.dtype == block.resid_post.dtype == out.keep.dtype == jnp.float32
    assert block.mlp_post.dtype == jnp.bfloat16 and np.isfinite(out.logits_ablated).all()
    np.testing.assert_allclose(out.logits, _output(**_GATED).logits, atol=0.15)


def test_what_does_not_fit_says_the_limit():
    model, params = _made()
    with pytest.raises(ValueError, match="13 tokens exceed the model's max_length=12; shorten the input"):
        jax.eval_shape(model.apply, {"params": params}, np.zeros((1, 13), np.int32), np.ones((1, 13), np.float32))
    unresolved = SafrClassifier(ClassifierConfig())
    with pytest.raises(ValueError, match="vocab_size=0 stands for the data's; give the vocabulary's size"):
        jax.eval_shape(unresolved.init, jax.random.key(0), np.zeros((1, 2), np.int32), np.ones((1, 2), np.float32))


def test_information_is_least_for_doubt_and_zero_for_certainty():
    mask = np.float32([[1, 1, 0], [0, 0, 0]])
    both = jax.jit(jax.value_and_grad(lambda x: information(x, mask)))
    doubt = np.zeros((2, 3, 2), np.float32)
    sure = doubt + np.float32([0, 200])
    np.testing.assert_allclose(both(doubt)[0], -np.log(2), rtol=1e-6)
    value, gradient = both(sure)
    assert value == 0 and not np.isnan(gradient).any()
    mixed = doubt.copy()
    mixed[0, 0] = sure[0, 0]
    np.testing.assert_allclose(both(mixed)[0], -np.log(2) / 2, rtol=1e-6)
    some, _ = both(np.random.default_rng(0).standard_normal((2, 3, 2), dtype=np.float32))
    assert -np.log(2) < some < 0


def test_mean_over_texts_counts_texts_alike_and_those_with_tokens_only():
    mean = jax.jit(mean_over_texts)
    values = np.float32([[1, 3, 99], [6, 99, 99], [99, 99, 99]])
    mask = np.float32([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert mean(values, mask) == 4
    assert mean(values, np.zeros((3, 3), np.float32)) == 0
