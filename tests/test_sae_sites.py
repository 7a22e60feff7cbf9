"""Sites of a decoder: their names, reading them, replacing what is there, and autoencoders measured at them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.features import (
    AutoencoderConfig,
    SparseAutoencoder,
    evaluate,
    find_site,
    forward,
    metrics,
    paper_site,
    reader,
)
from jaxablate.features.config import SaeTrainConfig
from jaxablate.features.metrics import COLUMNS
from jaxablate.features.sites import FIELDS, sites
from jaxablate.features.step import init_state, train_step
from jaxablate.features.training import reconstruction
from jaxablate.models.decoder import SelfAblatingTransformer

CONFIG = ModelConfig(vocab_size=13, context_length=8, d_model=8, n_layers=2, n_heads=2, d_mlp=12, ablation="local",
                     k_attention=3, k_neurons=4)
MODEL = SelfAblatingTransformer(CONFIG)
TOKENS = np.random.default_rng(1).integers(0, 13, (3, 6), np.int32)


@functools.cache
def params():
    return drawn_params(MODEL, TOKENS, scale=0.2)


@functools.cache
def output():
    return jax.device_get(jax.jit(lambda p: MODEL.apply({"params": p}, TOKENS))(params()))


ALL = tuple(site.name for site in sites(CONFIG))
read = jax.jit(lambda p, tokens: forward(MODEL, p, tokens, ALL))


@functools.cache
def everything():
    return jax.device_get(read(params(), TOKENS))


def test_names_and_widths():
    assert len(ALL) == 2 * 2 * len(FIELDS) == len(set(ALL))
    assert find_site(CONFIG, "clean.layer_1.mlp_post").width == 12
    assert find_site(CONFIG, "ablated.layer_0.head_out").width == 8
    baseline = dataclasses.replace(CONFIG, ablation="none")
    assert {site.stream for site in sites(baseline)} == {"clean"}
    assert paper_site(ModelConfig()) == "clean.layer_6.mlp_out"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("clean.layer_1.mlp_otu", "clean.layer_1.mlp_out"), ("layer_0.resid_mid", "clean.layer_0.resid_mid"),
     ("clean.layer_7.mlp_out", "clean.layer_1.mlp_out")],
)
def test_an_unknown_site_names_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"site '{name}' does not exist; nearest: .*{nearest}") as caught:
        find_site(CONFIG, name)
    assert "\n" not in str(caught.value)


def test_reading_gives_what_the_model_returns():
    found, finals = everything()
    for stream in ("clean", "ablated"):
        for i, layer in enumerate(output().layers):
            expected, at = getattr(layer, stream), f"{stream}.layer_{i}"
            for field in ("resid_pre", "resid_mid", "mlp_pre", "mlp_post", "resid_post"):
                np.testing.assert_allclose(found[f"{at}.{field}"], getattr(expected, field), rtol=1e-5, atol=1e-6)
            heads = expected.head_out.reshape(3, 6, 8)
            np.testing.assert_allclose(found[f"{at}.head_out"], heads, rtol=1e-5, atol=1e-6)
            added = expected.resid_post - expected.resid_mid
            np.testing.assert_allclose(found[f"{at}.mlp_out"], added, atol=2e-6)
            np.testing.assert_allclose(found[f"{at}.attn_out"], expected.resid_mid - expected.resid_pre, atol=2e-6)
    np.testing.assert_allclose(finals["clean"], output().final_clean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(finals["ablated"], output().final_ablated, rtol=1e-5, atol=1e-6)


def test_mlp_output_is_that_of_the_mlp_alone():
    found, down = everything()[0], params()["layer_1"]["mlp"]["down"]
    expected = found["clean.layer_1.mlp_post"] @ down["kernel"] + down["bias"]
    np.testing.assert_allclose(found["clean.layer_1.mlp_out"], expected, rtol=1e-5, atol=1e-6)


def test_putting_back_what_was_read_changes_nothing():
    found, finals = everything()
    again = jax.jit(lambda p, values: forward(MODEL, p, TOKENS, (), values)[1])(params(), found)
    for stream, value in finals.items():
        np.testing.assert_allclose(again[stream], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_an_edit_acts_at_its_site_and_after(stream):
    site = f"{stream}.layer_1.resid_mid"
    shift = np.arange(8, dtype=np.float32) / 4  # a constant would be lost in the layer norm
    found, finals = everything()
    edited, after = jax.jit(
        lambda p, x: forward(MODEL, p, TOKENS, ALL, {site: x})
    )(params(), found[site] + shift)
    changed = {name for name in ALL if not np.allclose(edited[name], found[name], atol=1e-5)}
    expected = {f"{stream}.layer_1.{field}" for field in ("mlp_pre", "mlp_post", "mlp_out", "resid_post")}
    assert changed == expected  # a site itself reads what the model made, before the edit
    for name, value in finals.items():
        assert np.allclose(after[name], value, atol=1e-5) == (name != stream)


def test_the_derivative_at_a_site_is_that_of_its_activation():
    """resid_mid + mlp_out is resid_post: the last loss has one derivative with respect to both."""
    found = everything()[0]

    def loss(value, site):
        return jnp.sum(forward(MODEL, params(), TOKENS, (), {site: value})[1]["clean"][..., 0])

    names = "clean.layer_1.mlp_out", "clean.layer_1.resid_post"
    gradients = jax.jit(lambda found: [jax.grad(loss)(found[name], name) for name in names])(found)
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_several_sites_in_one_pass():
    names = ("ablated.layer_0.mlp_out", "clean.layer_1.resid_post")
    take = reader(MODEL, names)
    assert take == reader(MODEL, names) and hash(take) == hash(reader(MODEL, names))
    found = np.asarray(jax.jit(take)(params(), TOKENS))
    assert found.shape == (3, 6, 2, 8)
    np.testing.assert_allclose(found[:, :, 1], everything()[0][names[1]], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="clean.layer_0.mlp_out has width 8, clean.layer_0.mlp_pre 12"):
        reader(MODEL, ("clean.layer_0.mlp_out", "clean.layer_0.mlp_pre"))


def test_a_model_that_rematerialises_is_read_all_the_same():
    model = SelfAblatingTransformer(dataclasses.replace(CONFIG, remat="blocks"))
    found = np.asarray(jax.jit(reader(model, ("clean.layer_0.mlp_out",)))(params(), TOKENS))
    np.testing.assert_allclose(found[:, :, 0], everything()[0]["clean.layer_0.mlp_out"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="edit needs remat='none'"):
        forward(model, params(), TOKENS, ("clean.layer_0.mlp_out",))


# --- measures ---

SAE = AutoencoderConfig(d_in=8, d_sae=16)


def perfect() -> SparseAutoencoder:
    """Latents ReLU(x) and ReLU(-x), so that the reconstruction is x."""
    both = np.concatenate([np.eye(8, dtype=np.float32), -np.eye(8, dtype=np.float32)])
    return SparseAutoencoder(both.T, np.zeros(16, np.float32), both, np.zeros(8, np.float32),
                             np.zeros(16, np.float32), SAE)


def batches():
    """Two batches; the second has padding at the end."""
    for seed in (0, 1):
        tokens = np.random.default_rng(seed).integers(0, 13, (3, 7))
        mask = np.ones((3, 6), np.float32)
        mask[2, 4:] = 1 - seed
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}


@functools.partial(jax.jit, static_argnames="site")
def _log_probabilities(params, tokens, site, value):
    finals = forward(MODEL, params, tokens, (), {} if site is None else {site: value})[1]
    return {stream: jax.nn.log_softmax(x @ params["embed"]["embedding"].T) for stream, x in finals.items()}


def losses(stream, site=None, value=None):
    """[tokens] log-probabilities [V] and cross-entropy, by the definition, of unmasked tokens."""
    logs, picked = [], []
    for batch in batches():
        logp = np.asarray(_log_probabilities(params(), batch["inputs"], site, value)[stream], np.float64)
        keep = batch["mask"] > 0
        logs.append(logp[keep])
        picked.append(-np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0][keep])
    return np.concatenate(logs), np.concatenate(picked)


def activations(site):
    return np.concatenate([np.asarray(read(params(), b["inputs"])[0][site])[b["mask"] > 0]
                           for b in batches()]).astype(np.float64)


@functools.cache
def measured():
    broken = perfect().replace(b_enc=np.where(np.arange(16) == 3, -100, 0).astype(np.float32),
                               b_dec=np.full(8, 0.1, np.float32))
    pairs = [("clean.layer_0.mlp_out", perfect()), ("ablated.layer_1.resid_mid", broken),
             ("clean.layer_0.mlp_out", broken)]
    return evaluate(MODEL, params(), batches, pairs, min_tokens=10)


def value(found, name):
    return found.estimates[name].value


def test_a_perfect_autoencoder_loses_nothing():
    found = measured()[0]
    assert found.tokens == 34 and found.site == "clean.layer_0.mlp_out"
    assert value(found, "l0") == 8 and found.dead == int((found.density == 0).sum())
    for name in ("ce_score_zero", "ce_score_mean", "explained_variance", "explained_variance_saelens", "cosine"):
        x = value(found, name)
        assert x is None or x == pytest.approx(1, abs=1e-4), name
    assert value(found, "kl") == pytest.approx(0, abs=1e-6) and value(found, "mse") == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(value(found, "l1"), np.abs(activations(found.site)).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_losses_are_those_of_the_edited_model(index):
    found = measured()[index]
    stream, x = found.site.split(".")[0], activations(found.site)
    logs, ce = losses(stream)
    assert value(found, "ce") == pytest.approx(ce.mean(), rel=1e-5)
    for kind, replacement in {"zero": np.zeros(8, np.float32), "mean": x.mean(0).astype(np.float32)}.items():
        edited, edited_ce = losses(stream, found.site, replacement)
        kl = (np.exp(logs) * (logs - edited)).sum(-1).mean()
        assert value(found, f"ce_{kind}") == pytest.approx(edited_ce.mean(), rel=1e-5)
        assert value(found, f"kl_{kind}") == pytest.approx(kl, rel=1e-4, abs=1e-7)
        score = value(found, f"ce_score_{kind}")
        if edited_ce.mean() > ce.mean():
            rise = edited_ce.mean() - ce.mean()
            assert score == pytest.approx((edited_ce.mean() - value(found, "ce_sae")) / rise, rel=1e-2)
        else:  # ablation does not raise the loss, so there is no share of a rise
            assert score is None


def test_reconstruction_figures_by_definition():
    found, x = measured()[1], activations("ablated.layer_1.resid_mid")
    latents = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)
    latents[:, 3] = 0
    out = latents[:, :8] - latents[:, 8:] + 0.1
    squares = ((x - out) ** 2).sum(1)
    assert value(found, "mse") == pytest.approx(squares.mean(), rel=1e-4)
    variance = ((x - x.mean(0)) ** 2).sum()
    assert value(found, "explained_variance") == pytest.approx(1 - squares.sum() / variance, rel=1e-4)
    by_batch = []
    for part, error in ((x[:18], squares[:18]), (x[18:], squares[18:])):
        by_batch += list(1 - error / ((part - part.mean(0)) ** 2).sum(1))
    assert value(found, "explained_variance_saelens") == pytest.approx(np.mean(by_batch), rel=1e-4)
    cosine = (x * out).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(out, axis=1)
    assert value(found, "cosine") == pytest.approx(cosine.mean(), rel=1e-4)
    assert value(found, "l0") == pytest.approx((latents > 0).sum(1).mean())
    np.testing.assert_allclose(found.density, (latents > 0).mean(0))
    assert found.dead == int(((latents > 0).sum(0) == 0).sum()) >= 1
    assert sum(found.density_histogram) == 16 - found.dead
    np.testing.assert_allclose(found.mean_active, latents.sum(0) / np.maximum((latents > 0).sum(0), 1), rtol=1e-5)


def test_sums_of_units_make_the_means():
    found = measured()[2]
    assert found.unit_sums.shape == (6, len(COLUMNS))  # a row of a batch is a unit
    assert found.unit_sums[:, 0].tolist() == [6, 6, 6, 6, 6, 4]
    total = dict(zip(COLUMNS, found.unit_sums.sum(0), strict=True))
    assert total["ce_sae"] / total["tokens"] == pytest.approx(value(found, "ce_sae"))


def test_stories_are_the_units_where_there_are_enough(monkeypatch):
    def by_story():
        for batch in batches():
            yield batch | {"story": np.tile([0, 0, 0, 7, 7, 7], (3, 1))}

    def units():
        pair = ("clean.layer_0.mlp_out", perfect())
        measures, = evaluate(MODEL, params(), by_story, [pair], min_tokens=1)
        return measures.unit, measures.unit_sums[:, 0].tolist()

    assert units() == ("windows", [6, 6, 6, 6, 6, 4])
    monkeypatch.setattr(metrics, "MIN_STORIES", 2)
    assert units() == ("stories", [18, 16])


def test_logits_in_chunks_are_the_same(monkeypatch):
    whole = measured()[0]
    monkeypatch.setattr(metrics, "_CPU_CHUNK", 5)
    metrics._measured.clear_cache()  # it was compiled for larger ones
    parts = evaluate(MODEL, params(), batches, [("clean.layer_0.mlp_out", perfect())], min_tokens=1)[0]
    metrics._measured.clear_cache()
    np.testing.assert_allclose(parts.unit_sums, whole.unit_sums, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_measured_is_said():
    subject = ("clean.layer_0.mlp_out", perfect())
    with pytest.raises(DataError, match="34 tokens were read; dead latents and densities need at least 10,000"):
        evaluate(MODEL, params(), batches, [subject])
    with pytest.raises(ConfigError, match="width 8, clean.layer_0.mlp_pre of this model has 12"):
        evaluate(MODEL, params(), batches, [("clean.layer_0.mlp_pre", perfect())])
    damaged = jax.tree.map(lambda x: x * math.nan, params())
    with pytest.raises(DataError, match="activations at clean.layer_0.mlp_out are NaN or infinite"):
        evaluate(MODEL, damaged, batches, [subject], min_tokens=1)


def test_a_score_needs_a_loss_that_ablation_raises():
    def score(**means):
        columns = dict.fromkeys(COLUMNS, 1.0) | {"ce": 2.0, "ce_mean": 4.0} | means
        found = metrics.estimates(np.array([[columns[name] for name in COLUMNS]]))
        return found["ce_score_zero"].value, found["ce_score_mean"].value

    assert score(ce_sae=2.0, ce_zero=4.0) == (1, 1) and score(ce_sae=4.0, ce_zero=4.0) == (0, 0)
    assert score(ce_sae=2.0, ce_zero=2.0)[0] is score(ce_sae=3.0, ce_zero=1.0)[0] is None


def _constant(size, tokens):
    """Activations that are one number, wherever they are read."""
    return jnp.full((*tokens.shape, 1, 8), size)


@jax.jit
def _stepped(x):
    train = SaeTrainConfig(steps=3)
    return train_step(init_state(jax.random.key(0), SAE, train), x, jnp.int32(0), jnp.float32(1), train)[1]


@pytest.mark.parametrize("size", [0.0, 1.0, 0.1])
def test_a_site_that_does_not_vary_has_no_explained_variance(size):
    """It was a division by zero; of a constant that rounds, such as 0.1, a share of the rounding."""
    x = np.full((6, 8), size, np.float32)
    found, = evaluate(_constant, np.float32(size), batches, [("any", perfect())], min_tokens=10)
    assert found.estimates["explained_variance"].value is found.estimates["explained_variance_saelens"].value is None
    assert value(found, "mse") == pytest.approx(0, abs=1e-12)
    assert np.isnan(reconstruction(perfect(), x).explained_variance)
    figures = _stepped(x)
    assert np.isnan(figures.explained_variance) and np.isnan(figures.explained_variance_saelens)
    assert np.isfinite(figures.loss)
