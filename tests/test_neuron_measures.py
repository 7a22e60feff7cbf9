"""Neuron measures against values worked out by hand or another way."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.config import MeshConfig, ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons import MEASURES, Facts, facts, firing_counts, measure, measure_arrays, measures, summarise, units
from jaxablate.sharding import batch_sharding, make_mesh, replicated

SHAPE = {"vocab_size": 50, "context_length": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 32,
         "k_attention": 3, "k_neurons": 4, "scale_attention": True, "position_std": 0.05}
TOKENS = 50 * 16 - 5
TIES = 0.03
"""Values that are tied at a threshold do not fire."""


@functools.cache
def make(**changes):
    config = ModelConfig(**{**SHAPE, **changes})
    model = SelfAblatingTransformer(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)


def split(rows=50, batch=7, seed=0):
    """Windows of tokens, common ones more often; the last has masked ones, and so has the filling of the last batch.

    No two windows begin with the same token: activations there would be equal but for rounding, and on one side of a
    threshold or the other.
    """
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.4, (rows + -rows % batch, 16)) - 1, 49).astype(np.int32)
    tokens[:50, 0] = np.random.default_rng(seed + 1).permutation(50)[: len(tokens)]
    mask = np.ones(tokens.shape, np.float32)
    mask[rows:], mask[rows - 1, 11:] = 0, 0
    starts = range(0, len(tokens), batch)
    return lambda: ({"inputs": tokens[i : i + batch], "mask": mask[i : i + batch]} for i in starts)


def facts_of(batches):
    """Two facts: whether the token is even, and one that nothing knows."""
    tokens = np.concatenate([b["inputs"][b["mask"] > 0] for b in batches()])
    rng = np.random.default_rng(3)
    return Facts(tokens=tokens, story=np.arange(len(tokens)) // 31,
                 labels={"even": tokens % 2, "noise": rng.integers(0, 3, len(tokens))},
                 names={"even": ("no", "yes"), "noise": ("a", "b", "c")})


@pytest.fixture(scope="module")
def gated():
    return make()


@pytest.fixture(scope="module")
def found(gated):
    batches = split()
    return measure(*gated, batches, facts=facts_of(batches), directions=16, shuffles=30)


@pytest.fixture(scope="module")
def truth(gated):
    """Values of all units [n, units] on tokens that count, by kind and layer, and the tokens."""
    model, params = gated
    drawn = units.draw_directions(model.config, params, 16, 0)
    parts, tokens = [], []
    for batch in split(batch=32)():  # as the sample is cut, whose program gives them
        seen = batch["mask"].ravel() > 0
        values, _ = firing_counts._sampled(firing_counts.DecoderUnits(model), (params, drawn), batch["inputs"])
        parts.append(jax.tree.map(lambda x, seen=seen: np.asarray(x, np.float64)[seen], values))
        tokens.append(batch["inputs"].ravel()[seen])
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), np.concatenate(tokens)


def test_every_kind_and_layer_is_there(found):
    assert [(g.kind, g.layer) for g in found.groups] == [
        (f"{part} {source}", layer) for part in ("neurons", "attention") for source in ("clean", "ablated", "gates")
        for layer in (0, 1)]
    assert found.tokens == found.sampled == TOKENS and found.counts.sum() == TOKENS
    assert found.match_k == {"neurons": (4, 4), "attention": (3, 3)}


def test_shape_measures_are_those_of_the_values(found, truth):
    for group in found.groups:
        a = truth[0][group.kind][group.layer]
        n = len(a)
        size, centred = np.abs(a), a - a.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            l1, l2 = size.sum(0), np.sqrt((a**2).sum(0))
            expected = {
                "lifetime_sparsity": 1 - (l1 / n) ** 2 / (l2**2 / n),
                "hoyer": (math.sqrt(n) - l1 / l2) / (math.sqrt(n) - 1),
                "gini": np.abs(size[:, None] - size[None]).sum((0, 1)) / (2 * n * l1),
                "kurtosis": (centred**4).mean(0) / (centred**2).mean(0) ** 2 - 3,
            }
        for name, value in expected.items():
            assert group.measure(name) == pytest.approx(value, rel=2e-4, abs=2e-5, nan_ok=True), (group.kind, name)


def test_token_measures_are_those_of_the_firings(found, truth):
    values, tokens = truth
    for group in found.groups:
        a = values[group.kind][group.layer]
        if group.kind.endswith("gates"):
            fires = a > 0.5
        else:  # the sample is the whole split: the top share of each unit
            size = np.abs(a) if group.kind.startswith("attention") else a
            k = round((3 / 16 if group.kind.startswith("attention") else 4 / 32) * len(a))
            ascending = np.sort(size, axis=0)
            fires = size > np.maximum((ascending[-k] + ascending[-k - 1]) / 2, 0)
        assert group.fired.tolist() == fires.sum(0).tolist(), group.kind
        for unit in range(0, fires.shape[1], 5):
            if not fires[:, unit].any():
                assert np.isnan(group.tokens.information[unit])
                continue
            joint = np.stack([np.bincount(tokens[fires[:, unit] == on], minlength=50) for on in (True, False)]) / len(a)
            both = joint.sum(1, keepdims=True) * joint.sum(0)
            information = (joint[joint > 0] * np.log2(joint[joint > 0] / both[joint > 0])).sum()
            p = joint[0] / joint[0].sum()
            effective = math.exp(-(p[p > 0] * np.log(p[p > 0])).sum())
            assert group.tokens.information[unit] == pytest.approx(information, abs=1e-9)
            assert group.tokens.effective_tokens[unit] == pytest.approx(effective)
            counts = np.bincount(tokens, minlength=50)
            mu = np.where(counts >= measures.LEAST_OF_CLASS, joint[0] * len(a) / np.maximum(counts, 1), -1)
            rest = fires[tokens != mu.argmax(), unit].mean()
            assert group.tokens.selectivity[unit] == pytest.approx((mu.max() - rest) / (mu.max() + rest))
            assert group.best_token[unit] == mu.argmax()


def test_a_threshold_parts_no_values_that_are_equal_but_for_rounding():
    rng = np.random.default_rng(0)
    tied = np.concatenate([np.arange(6.0), 10 + 1e-6 * rng.standard_normal(4)])
    exact = np.concatenate([np.arange(6.0), np.full(4, 10.0)])
    zeros = np.concatenate([np.zeros(8), [3.0, -1.0]])
    found = firing_counts.top_threshold(np.stack([tied, exact, zeros]), np.full(3, 0.2))
    assert found.tolist() == pytest.approx([7.5, 7.5, 0.0])


def test_nothing_depends_on_how_the_split_is_batched(gated, found):
    facts_ = facts_of(split())
    other = measure(*gated, split(batch=3), facts=facts_, directions=16, shuffles=30)
    for a, b in zip(found.groups, other.groups, strict=True):
        assert a.fired.tolist() == b.fired.tolist()
        for name in MEASURES:
            assert a.measure(name) == pytest.approx(b.measure(name), rel=1e-4, abs=1e-6, nan_ok=True)
        # a value next to a threshold may fall on either side, with the rounding of another batch size
        assert a.direction_rates == pytest.approx(b.direction_rates, abs=2.5 / TOKENS)
    for a, b in zip(found.facts, other.facts, strict=True):
        assert a.accuracy == pytest.approx(b.accuracy)


def test_what_shuffled_tokens_tell_is_subtracted(found):
    """Firing that knows nothing of the token: the corrected information is about 0, and 5 % are above the 95 %."""
    rng = np.random.default_rng(0)
    n_units, m = 2000, 60
    drawn = rng.multivariate_hypergeometric(found.counts, m, size=n_units, method="marginals").T
    candidates = found.counts >= measures.LEAST_OF_CLASS
    told, _ = measures.token_selectivity(drawn, found.counts, candidates)
    by_chance = measures.shuffle_tokens(found.counts, candidates, np.array([5, m, 300]), draws=2000, seed=1)
    expected, upper = by_chance.at(np.full(n_units, m))
    assert told.information.mean() > 0.02
    assert (told.information - expected.information).mean() == pytest.approx(0, abs=1e-3)
    assert told.effective_tokens.mean() == pytest.approx(expected.effective_tokens[0], rel=0.02)
    assert told.selectivity.mean() == pytest.approx(expected.selectivity[0], abs=0.01)
    assert 0.02 < (told.information > upper).mean() < 0.08


def test_random_directions_fire_as_often_as_their_units(found):
    for group in found.groups:
        if not group.kind.endswith("ablated"):  # whose winners are competed for, as those of the trained units are
            wanted = np.quantile(group.rates[group.live], (np.arange(8) + 0.5) / 8)
            assert group.direction_rates == pytest.approx(wanted, abs=TIES), group.kind
        assert group.direction_rates.max() <= group.rates.max() + 1 / TOKENS


def test_matched_interpolates_in_the_logarithm():
    rates = np.geomspace(0.001, 0.1, 200)
    at = measures.matched(np.array([0.01, 0.0, 1e-6]), rates, 5 + np.log(rates))
    assert at[0] == pytest.approx(5 + math.log(0.01), abs=0.01)
    assert np.isnan(at[1]) and at[2] == pytest.approx(5 + np.log(rates[: measures.NEIGHBOURS]).mean())
    assert np.isnan(measures.matched(np.array([0.1]), np.array([0.1, 0.2]), np.full(2, np.nan))).all()
    assert measures.matched(np.array([0.1]), np.full(3, 0.1), np.array([1.0, 2.0, 6.0])) == pytest.approx(3.0)


def test_hand_values_of_binary_units():
    binary = measures.binary_shape(np.array([0, 1, 4]), 4)
    assert binary.lifetime_sparsity.tolist()[1:] == [0.75, 0.0] and np.isnan(binary.lifetime_sparsity[0])
    assert binary.gini.tolist()[1:] == [0.75, 0.0] and np.isnan(binary.kurtosis[[0, 2]]).all()
    p = 0.1
    kurtosis = (1 - 6 * p * (1 - p)) / (p * (1 - p))
    assert measures.binary_shape(np.array([100]), 1000).kurtosis[0] == pytest.approx(kurtosis)


def test_kurtosis_survives_a_large_mean():
    rng = np.random.default_rng(0)
    a = rng.normal(1000, 0.01, (1, 100_000))
    sums = measures.power_sums(a, np.array([1000.0]))
    assert measures.shape(sums, np.array([1000.0]), a.size, np.zeros(1)).kurtosis[0] == pytest.approx(0, abs=0.05)


def test_rare_tokens_share_a_class():
    counts = np.concatenate([np.full(firing_counts.CLASSES + 100, 2), np.zeros(50, int)])
    counts[7] = 50
    tokens = np.repeat(np.arange(len(counts)), counts)
    tokens = np.concatenate([tokens, np.zeros(-len(tokens) % 16, int)]).reshape(-1, 16)
    found = firing_counts.classify_tokens([{"inputs": tokens, "mask": np.ones(tokens.shape)}], len(counts))
    assert len(found.counts) == firing_counts.CLASSES and found.token_of[-1] == -1 and found.counts.sum() == tokens.size
    assert found.token_of[found.class_of[7]] == 7 and found.counts[found.class_of[7]] == 50
    assert found.counts[-1] == tokens.size - found.counts[:-1].sum()


def test_facts_are_told_by_the_unit_that_knows(found):
    by = {(x.label, x.kind): x for x in found.facts}
    assert len(by) == 2 * 6
    for (label, _), x in by.items():
        assert x.accuracy.shape == x.majority.shape == x.directions_accuracy.shape == (facts.FOLDS,)
        layer, unit = x.best
        assert x.information[layer][unit] == max(np.nanmax(a) for a in x.information)
        if label == "noise":
            assert x.entropy == pytest.approx(math.log2(3), abs=0.01)
            assert abs(np.nanmean(np.concatenate(x.information))) < 2e-3


def test_a_unit_that_is_the_fact_tells_all_of_it():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 2000)
    given = Facts(tokens=tokens, story=np.arange(2000) // 50, labels={"odd": tokens % 2}, names={"odd": ("no", "yes")})
    rows = facts.fact_rows(given, tokens)
    fires = np.stack([rng.random(2000) < 0.5, tokens % 2 == 1], axis=1).astype(int)
    table = np.zeros((len(rows.counts), 2), int)
    for j in range(rows.rows.shape[1]):
        np.add.at(table, rows.rows[:, j], fires)
    x = facts.fact_measures(rows, "units", [table[:, :1], table[:, 1:]], [table[:, :1]])[0]
    assert x.best == (1, 0) and x.best_means == ("yes", "no")
    assert x.information[1][0] == pytest.approx(1, abs=0.01) and x.information[0][0] == pytest.approx(0, abs=0.01)
    assert x.accuracy.tolist() == [1.0] * facts.FOLDS and x.directions_accuracy.mean() == pytest.approx(0.5, abs=0.05)


def test_a_model_without_gates_has_clean_units_at_the_rate_asked_for():
    model, params = make(ablation="none", n_layers=1)
    found = measure(model, params, split(batch=8), match_k=2, directions=4, shuffles=4)
    assert found.kinds == ("neurons clean", "attention clean")
    neurons = found.of("neurons clean")[0].rates  # those that are positive on fewer tokens fire on these alone
    assert np.median(neurons) == pytest.approx(2 / 32, abs=1 / TOKENS) and neurons.max() < 2 / 32 + TIES
    assert found.of("attention clean")[0].rates == pytest.approx(np.full(16, 2 / 16), abs=TIES)


def test_batches_may_be_spread_over_devices():
    model, params = make(ablation="none", n_layers=1)
    mesh = make_mesh(MeshConfig())
    spread = [jax.device_put(batch, batch_sharding(mesh)) for batch in split(rows=50, batch=8)()]
    here, there = (measure(model, p, b, directions=4, shuffles=2) for p, b in (
        (params, split(rows=50, batch=8)), (jax.device_put(params, replicated(mesh)), lambda: spread)))
    for a, b in zip(here.groups, there.groups, strict=True):
        assert b.fired == pytest.approx(a.fired, abs=2)
        assert b.shape.kurtosis == pytest.approx(a.shape.kurtosis, rel=1e-3)


@pytest.mark.parametrize("changes", [{"ablation": "both", "gate": "soft"}, {"ablation": "global"}])
def test_other_gates_are_measured(changes):
    model, params = make(n_layers=1, **changes)
    found = measure(model, params, split(), directions=4, shuffles=4)
    gates = found.of("neurons gates")[0]
    assert gates.live.any() and np.isfinite(gates.shape.gini[gates.live]).all()
    if changes.get("gate") == "soft":
        assert not np.allclose(gates.shape.gini[gates.live], 1 - gates.rates[gates.live])


def test_errors_say_what_and_how_much(gated):
    model, params = gated
    with pytest.raises(DataError, match="has 32 tokens; at least 80 are needed"):
        measure(model, params, lambda: [{"inputs": np.zeros((2, 16), int), "mask": np.ones((2, 16))}])
    with pytest.raises(ConfigError, match=r"match_k=16 must be in 1\.\.15, below the 16 attention units"):
        measure(model, params, split(), match_k=16)
    with pytest.raises(DataError, match="the split has no tokens"):
        measure(model, params, lambda: [{"inputs": np.zeros((1, 4), int), "mask": np.zeros((1, 4))}])
    known = facts_of(split())
    with pytest.raises(DataError, match="facts are of 10 tokens, the split has 795"):
        measure(model, params, split(), facts=dataclasses.replace(known, tokens=known.tokens[:10]))
    other = known.tokens.copy()
    other[17] = 49 - other[17]
    with pytest.raises(DataError, match="its token 17 is .* in the facts"):
        measure(model, params, split(), facts=dataclasses.replace(known, tokens=other))
    with pytest.raises(DataError, match="at least 10 are needed"):
        measure(model, params, split(), facts=dataclasses.replace(known, story=known.story * 0))


def test_activations_that_are_no_numbers_are_refused(gated):
    model, params = gated
    kernel = np.array(params["layer_1"]["mlp"]["up"]["kernel"])
    kernel[0, 3] = np.nan
    mlp = {**params["layer_1"]["mlp"], "up": {**params["layer_1"]["mlp"]["up"], "kernel": kernel}}
    broken = {**params, "layer_1": {**params["layer_1"], "mlp": mlp}}
    with pytest.raises(DataError, match="neurons clean of layer 1 are NaN or infinite in 1 of 32 units"):
        measure(model, broken, split(), directions=16)


def array_units(n=6000, seed=0):
    """Tokens, and units that fire on token 3, on token 1 or 2, on their own, and never."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 8, n)
    noise = rng.random((n, 4)) * 0.1
    noise[:, 3] = 0
    fires = np.stack([tokens == 3, (tokens == 1) | (tokens == 2), rng.random(n) < 0.2, np.zeros(n)], axis=1)
    return tokens, (noise + fires).astype(np.float32)


def test_arrays_of_any_model_are_measured():
    tokens, values = array_units()
    result = measure_arrays(values, tokens, threshold=0.5, directions=16, shuffles=10)
    group, h = result.groups[0], lambda p: -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert result.kinds == ("units",) and result.tokens == len(tokens) and group.best_token[0] == 3
    assert group.information[:2] == pytest.approx([h(1 / 8), h(1 / 4)], abs=0.02)
    assert group.information[2] == pytest.approx(0, abs=0.003) and np.isnan(group.information[3])
    assert group.tokens.effective_tokens[:3] == pytest.approx([1, 2, 8], rel=0.01)
    assert group.fired.tolist() == (values > 0.5).sum(0).tolist()
    size = np.sort(values[:, 0].astype(float))
    gini = 2 * (np.arange(1, len(size) + 1) * size).sum() / (len(size) * size.sum()) - (len(size) + 1) / len(size)
    assert group.shape.gini[0] == pytest.approx(gini)
    at_rate = measure_arrays([values, -values], tokens, rate=0.05, signed=True,
                             directions=16, shuffles=10)
    assert [g.layer for g in at_rate.groups] == [0, 1]
    for group in at_rate.groups:
        assert group.rates[:3] == pytest.approx(0.05, abs=0.001)
        assert group.direction_rates == pytest.approx(0.05, abs=0.002)
    of_gates = measure_arrays(values > 0.5, tokens, directions=16, shuffles=10).groups[0]
    assert of_gates.fired.tolist() == (values > 0.5).sum(0).tolist()
    assert of_gates.shape.gini[0] == pytest.approx(1 - of_gates.rates[0])
    overall = summarise(result)[0].of("information")
    assert overall.mean.value == pytest.approx(np.nanmean(result.groups[0].information))


def test_arrays_give_what_the_pass_over_a_decoder_gives(found, truth):
    """Clean channels of both layers: the same firings, sums and facts, from arrays instead of a model."""
    values, tokens = truth
    channels = [x.astype(np.float32) for x in values["attention clean"]]
    result = measure_arrays(channels, tokens, rate=3 / 16, signed=True, facts=facts_of(split()), shuffles=30)
    for a, b in zip(result.groups, found.of("attention clean"), strict=True):
        assert a.fired == pytest.approx(b.fired, abs=1)
        assert a.shape.kurtosis == pytest.approx(b.shape.kurtosis, rel=1e-3)
        assert a.tokens.information == pytest.approx(b.tokens.information, abs=5e-3)
    by = {x.label: x for x in found.facts if x.kind == "attention clean"}
    for x in result.facts:
        assert np.concatenate(x.information) == pytest.approx(np.concatenate(by[x.label].information), abs=5e-3)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"activations": np.zeros((5, 2))}, DataError, r"layer 0 have shape \(5, 2\), the tokens \(6000,\)"),
    ({"activations": []}, DataError, "no layer"),
    ({"tokens": np.full(6000, -1)}, DataError, "are no ids"),
    ({"rate": 1.5}, ConfigError, "rate=1.5 must be between"),
    ({"rate": 0.001}, DataError, "at least 10,000"),
    ({"activations": np.full((6000, 2), np.nan, np.float32)}, DataError, "NaN or infinite in 12,000 places"),
])
def test_arrays_that_do_not_fit_are_refused(change, error, message):
    tokens, values = array_units()
    with pytest.raises(error, match=message):
        measure_arrays(**{"activations": values, "tokens": tokens} | change)


def test_a_model_whose_scores_read_nothing_known_is_refused(gated):
    model, params = gated
    config = dataclasses.replace(model.config)
    object.__setattr__(config, "ablation", "other")
    with pytest.raises(ConfigError, match="ablation='other'"):
        units.draw_directions(config, params, 4, 0)
