"""Suite `superposition`: parts of SRS by hand, their nulls by drawn shuffles, and what must not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.labelled_texts import batches, check_plain, draw, splits_of

from jaxablate import stats
from jaxablate.classifier.measures import by_text, highest, top_minus_rest, word_importance
from jaxablate.config import ClassificationConfig, ClassificationObjective, ClassifierConfig, Config, MeshConfig
from jaxablate.models.classifier import SafrClassifier
from jaxablate.regularizers import interference, polysemanticity
from jaxablate.runs.run import Run
from jaxablate.sharding import batch_sharding, make_mesh, replicated
from jaxablate.suites import superposition

X = [[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]]
RANKING = [0.2, 0.1, 0.9]
# Mean over the heads: 0.35 for the pair (0, 1), 0.275 for (0, 2), 0.175 for (1, 2).
ATTENTION = [[[0.3, 0.4, 0.3], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]], [[0.5, 0.2, 0.3], [0.3, 0.5, 0.2], [0.3, 0.2, 0.5]]]


site_measures = jax.jit(superposition.site_measures)
difference_of_means = jax.jit(top_minus_rest, static_argnums=3)


def padded(array, length, axes):
    array = np.asarray(array, np.float32)
    return np.pad(array, [(0, length - array.shape[a] if a in axes else 0) for a in range(array.ndim)])[None]


@pytest.mark.parametrize("length", [3, 8])
def test_three_tokens_by_hand(length):
    """Capacities 1/2, 1/2, 1 and alignments 1, 0, 0; on top are the last token and the first pair."""
    found = site_measures(padded(X, length, (0,)), padded(ATTENTION, length, (1, 2)), padded(RANKING, length, (0,)),
                          np.arange(length)[None] < 3)
    np.testing.assert_allclose(found["capacity"][0], [0.5, 0.5, 1.0] + [np.nan] * (length - 3), atol=1e-6)
    assert found["importance"].item() == pytest.approx(0.5)
    assert found["interaction"].item() == pytest.approx(1.0)
    # all shuffles by hand: differences (1/2, -1/4, -1/4) and (1, -1/2, -1/2)
    assert found["importance_variance"].item() == pytest.approx((0.5**2 + 2 * 0.25**2) / 3)
    assert found["interaction_variance"].item() == pytest.approx((1 + 2 * 0.5**2) / 3)
    assert found["zero"].item() == 0


@pytest.mark.parametrize(("tokens", "tenths", "top"), [(2, 3, 1), (3, 3, 1), (4, 3, 2), (10, 3, 3), (11, 3, 4),
                                                       (20, 3, 6), (10, 1, 1), (11, 1, 2), (30, 1, 3)])
def test_shares_are_rounded_up_and_exact(tokens, tenths, top):
    values, there = np.arange(1, 31, dtype=np.float32)[None], np.arange(30)[None] < tokens
    expected = values[0, tokens - top : tokens].mean() - values[0, : tokens - top].mean()
    found, _ = difference_of_means(values, values, there, tenths)
    assert found.item() == pytest.approx(float(expected), rel=1e-6)


def test_highest_is_a_stable_descending_sort():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, size=(50, 40)).astype(np.float32) / 7
    allowed = rng.uniform(size=values.shape) < 0.7
    count = rng.integers(0, allowed.sum(-1) + 1)
    found = np.asarray(jax.jit(highest)(values, allowed, count))
    order = np.argsort(np.where(allowed, -values, np.inf), axis=-1, kind="stable")
    expected = np.zeros_like(allowed)
    for row, places, n in zip(expected, order, count, strict=True):
        row[places[:n]] = True
    np.testing.assert_array_equal(found, expected)


def test_short_texts_have_no_parts():
    values = np.array([[3, 1, 0], [3, 1, 0], [0, 0, 0]], np.float32)
    allowed = np.array([[True, False, False], [True, True, False], [False, False, False]])
    difference, variance = difference_of_means(values, values, allowed, 3)
    np.testing.assert_array_equal(np.isnan(difference), [True, False, True])
    np.testing.assert_array_equal(np.isnan(variance), [True, False, True])


def test_null_moments_are_those_of_drawn_shuffles():
    rng = np.random.default_rng(1)
    values, allowed = rng.exponential(size=(1, 12)).astype(np.float32), np.arange(12)[None] < 9
    draws = 20_000
    shuffled = rng.uniform(size=(draws, 12)).astype(np.float32)
    many = [np.broadcast_to(a, (draws, 12)) for a in (values, allowed)]
    found, variances = (np.asarray(x, np.float64) for x in difference_of_means(many[0], shuffled, many[1], 3))
    variance = variances[0]  # it depends on the values alone
    np.testing.assert_allclose(variances, variance, rtol=1e-5)
    assert abs(found.mean()) < 4 * np.sqrt(variance / draws)
    assert found.var() == pytest.approx(variance, rel=0.05)


@pytest.fixture(scope="module")
def gated():
    return make(ablation="local", k_attention=3, k_neurons=5, n_layers=2)


def make(**changes):
    config = ClassifierConfig(**{"vocab_size": 20, "max_length": 16, "d_model": 8, "n_heads": 2, "vmask_width": 4,
                                 **changes})
    model = SafrClassifier(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4)))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    return model.apply({"params": params}, batch["tokens"], batch["mask"])


def numbers(result):
    return [(s.srs.value, s.mean_capacity.value, s.important_capacity.value, s.other_capacity.value, s.over.value,
             s.represented.value, s.zero_rows, s.polysemanticity, s.interference, s.importance_null.z,
             s.interaction_null.z, *s.srs.interval, *s.quantiles) for s in result.sites]


def test_padding_batches_and_filler_rows_do_not_matter(gated):
    texts, labels = draw(13, longest=8)
    short = superposition.evaluate(*gated, batches(texts, labels, rows=13, length=8))
    order = np.random.default_rng(1).permutation(13).tolist()
    long = superposition.evaluate(*gated, batches(texts, labels, length=12, order=order))
    np.testing.assert_allclose(numbers(short), numbers(long), rtol=1e-4, atol=1e-5)
    assert (short.texts, short.tokens) == (long.texts, long.tokens) == (13, sum(map(len, texts)))
    assert [s.counts for s in short.sites] == [s.counts for s in long.sites]


def test_capacity_of_important_tokens_is_that_of_those_that_rank_highest(gated):
    texts, labels = draw(6)
    split = batches(texts, labels, length=12)
    result = superposition.evaluate(*gated, split, layer=1)
    means, others = [], []
    for batch in split:
        out = forward(*gated, batch)
        measures = superposition.site_measures(out.layers[1].clean.mlp_post, out.layers[1].clean.attention, out.keep,
                                               jnp.asarray(batch["mask"]) > 0)
        for capacity, keep, mask in zip(measures["capacity"], out.keep, batch["mask"], strict=True):
            if (n := int(mask.sum())) > 1:
                top = np.argsort(-np.asarray(keep)[:n], kind="stable")[:-(-3 * n // 10)]
                means.append(np.asarray(capacity)[top].mean())
                others.append(np.delete(np.asarray(capacity)[:n], top).mean())
    assert result.sites[0].important_capacity.value == pytest.approx(np.mean(means), rel=1e-5)
    assert result.sites[0].other_capacity.value == pytest.approx(np.mean(others), rel=1e-5)
    assert result.sites[0].important_capacity.n == result.sites[0].other_capacity.n == len(means)


def test_every_site_is_measured_and_the_chosen_layer_first(gated):
    split = batches(*draw(6), length=12)
    result = superposition.evaluate(*gated, split, layer=1)
    assert [s.name for s in result.sites] == [
        "neurons, layer 1", "neurons, layer 0", "neurons, layer 0, ablated", "neurons, layer 1, ablated",
        "masked embeddings"]
    assert superposition.evaluate(*gated, split, layer=0).sites[0].name == "neurons, layer 0"
    site = result.sites[0]
    assert site.srs.value == pytest.approx(site.importance.value + site.interaction.value)
    assert sum(site.counts) + round(site.zero_rows * result.tokens) == result.tokens
    assert site.fraction_over[20] == site.over.value and site.fraction_over[-1] == 0
    ablated = result.sites[2]
    assert ablated.mean_capacity.value > 0 and ablated.srs.value != result.sites[1].srs.value
    check_plain(result)


def test_parts_are_means_over_single_texts(gated):
    """Each text by itself, by loops over its tokens and pairs."""
    model, params = gated
    texts, labels = draw(7, longest=9, seed=3)
    split, parts = batches(texts, labels, length=12), []
    halves = [jax.device_get(forward(model, params, batch)) for batch in split]
    for i, text in enumerate(texts):
        out, i = halves[i // 4], i % 4
        x = np.asarray(out.layers[1].clean.mlp_post[i, : len(text)], np.float64)
        attention = np.asarray(out.layers[1].clean.attention[i, :, : len(text), : len(text)], np.float64).mean(0)
        gram = x @ x.T
        total = (gram**2).sum(-1)
        capacity = np.where(total > 0, np.diag(gram) ** 2 / np.where(total > 0, total, 1), 0)
        norm = np.sqrt(np.diag(gram))
        pairs = [(attention[j, k] + attention[k, j], abs(gram[j, k]) / (norm[j] * norm[k] or 1))
                 for j in range(len(text)) for k in range(j + 1, len(text))]
        parts.append((top_and_rest(zip(np.asarray(out.keep[i]), capacity, strict=False), 0.3),
                      top_and_rest(pairs, 0.1)))
    site = superposition.evaluate(model, params, split, layer=1).sites[0]
    for part, values in zip((site.importance, site.interaction), zip(*parts, strict=True), strict=True):
        there = [v for v in values if v is not None]
        assert part.n == len(there) and part.value == pytest.approx(np.mean(there), abs=1e-5)


def top_and_rest(ranked, share):
    values = [value for _, value in sorted(ranked, key=lambda pair: -pair[0])]
    top = int(np.ceil(share * len(values) - 1e-9))
    return np.mean(values[:top]) - np.mean(values[top:]) if len(values) > 1 else None


def test_the_regularisers_are_those_of_training(gated):
    model, params = gated
    (batch,) = batches(*draw(6), length=12)[:1]
    out = forward(model, params, batch)
    found = {s.name: s for s in superposition.evaluate(model, params, [batch]).sites}
    masked = found["masked embeddings"]
    assert masked.polysemanticity == pytest.approx(float(polysemanticity(out.masked, batch["mask"])), rel=1e-5)
    attention = out.layers[1].ablated.attention
    expected = float(interference(attention, batch["mask"]))
    assert found["neurons, layer 1, ablated"].interference == pytest.approx(expected, rel=1e-5)


def test_random_importance_has_standard_normal_z():
    rng = np.random.default_rng(2)
    x, attention = rng.exponential(size=(300, 10, 6)), rng.uniform(size=(300, 2, 10, 10))
    mask = np.arange(10) < rng.integers(3, 11, size=300)[:, None]
    z = []
    for _ in range(20):
        ranking = rng.uniform(size=(300, 10)).astype(np.float32)
        found = site_measures(x.astype(np.float32), attention.astype(np.float32), ranking, mask)
        found = {name: np.asarray(value, np.float64) for name, value in found.items()}
        z.append(null_z(found, "importance"))
    assert abs(np.mean(z)) < 0.8 and 0.6 < np.std(z) < 1.5
    assert abs(null_z(found, "interaction")) < 4


def null_z(measures, name):
    part = stats.estimate(float(np.nanmean(measures[name])))
    return superposition._null(part, measures[f"{name}_variance"]).z


def test_without_vmask_the_gradient_ranks_the_tokens():
    model, params = make(vmask=False)
    (batch,) = batches(*draw(4), length=12)
    result = superposition.evaluate(model, params, [batch])
    assert result.importance == "gradient"
    out = forward(model, params, batch)
    expected = site_measures(out.layers[0].clean.mlp_post, out.layers[0].clean.attention,
                             word_importance(model, params, batch)["gradient"], batch["mask"] > 0)
    assert result.sites[0].importance.value == pytest.approx(float(np.nanmean(expected["importance"])), abs=1e-5)
    check_plain(result)


def test_zero_vectors_are_counted_apart():
    x = np.zeros((1, 4, 3), np.float32)
    x[0, 0, 0] = 2
    attention = np.full((1, 1, 4, 4), 0.25, np.float32)
    found = site_measures(x, attention, np.ones((1, 4), np.float32), np.array([[True, True, True, False]]))
    assert found["zero"].item() == 2
    np.testing.assert_array_equal(found["capacity"][0], [1, 0, 0, np.nan])


def test_texts_too_short_for_any_part_give_no_score(gated):
    result = superposition.evaluate(*gated, batches([[3], [4]], [0, 1], length=12))
    assert result.headline()[0].estimate.value is None and result.sites[0].mean_capacity.value == pytest.approx(1)
    check_plain(result)


def test_the_seed_decides_the_draws(gated):
    split = batches(*draw(20), length=12)
    a, b, c = (superposition.evaluate(*gated, split, seed=s) for s in (0, 0, 1))
    assert a == b
    one, other = a.sites[0].srs, c.sites[0].srs
    assert one.interval != other.interval and one.value == other.value


def test_the_suite_runs_on_a_subject(gated):
    model, params = gated
    config = ClassificationConfig(model=model.config, objective=ClassificationObjective(layers=(0, 1)))
    run = Run(config=config, model=model, params=params, splits=splits_of(test=batches(*draw(8), length=12)))
    result, options = superposition.SUITE.run(run)
    assert result.sites[0].layer == options["layer"] == 1 and options["importance"] == "vmask"
    assert [f.name for f in result.headline()] == ["SRS", "SRS importance part", "SRS interaction part",
                                                   "tokens with capacity > 0.5", "mean capacity",
                                                   "mean capacity of important tokens", "mean capacity of other tokens"]
    assert superposition.SUITE.reason_against(Config()) and not superposition.SUITE.reason_against(config)


def test_texts_may_be_spread_over_devices(gated):
    model, params = gated
    mesh = make_mesh(MeshConfig())
    split = batches(*draw(12), rows=8, length=12)
    spread = (jax.device_put(batch, batch_sharding(mesh)) for batch in split)
    found = superposition.evaluate(model, jax.device_put(params, replicated(mesh)), spread)
    alone = superposition.evaluate(model, params, batches(*draw(12), length=12))
    np.testing.assert_allclose(numbers(found), numbers(alone), rtol=1e-4, atol=1e-5)


def test_rows_come_back_in_the_order_of_the_split():
    texts, labels = draw(11)
    order = np.random.default_rng(0).permutation(11).tolist()
    found = by_text(batches(texts, labels, rows=3, order=order),
                    lambda b: {"label": b["labels"], "words": np.where(b["mask"] > 0, b["tokens"], np.nan)})
    assert found["label"].tolist() == labels
    assert [[int(w) for w in row if not np.isnan(w)] for row in found["words"]] == texts
