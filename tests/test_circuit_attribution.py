"""Attribution: metrics, EAP against derivatives taken by hand, the single-edge oracle, nodes and neurons, searches."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.external import fixture_file

from jaxablate.circuits import attribution, effects, metrics, patching
from jaxablate.circuits.attribution_units import neuron_eap, node_eap
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.nodes import Inputs
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.search import edge_order, first_edges, without_dangling
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.interop import transformer_from_reference
from jaxablate.models.decoder import SelfAblatingTransformer

STREAMS = ("clean", "ablated")


@functools.cache
def model():
    """Two blocks, the second of windowed attention, with gates."""
    config = ModelConfig(vocab_size=13, context_length=8, d_model=8, n_layers=2, n_heads=2, d_mlp=12, k_attention=4,
                         k_neurons=6, attention_layers=("global", "local"), window_size=3)
    params = jax.jit(SelfAblatingTransformer(config).init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    leaves, tree = jax.tree.flatten(params)  # biases and norms that do something
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return config, jax.tree.unflatten(tree, leaves)


@functools.cache
def pairs():
    rng = np.random.default_rng(0)
    clean, corrupt = ([rng.integers(0, 13, n).tolist() for n in (5, 3, 4)] for _ in range(2))
    return PromptPairs.from_ids(clean, corrupt, [[1], [2, 3], [4]], [[5, 6], [7], [8]], name="toy")


@functools.cache
def problem(stream="clean", metric="logit_difference", kind="resample"):
    config, params = model()
    inputs, corrupt = patching.pair_inputs(config, params, pairs(), stream)
    replacement = patching.make_replacement(kind, patching.run(config, params, corrupt), inputs.valid,
                                            stream == "ablated")
    target = metrics.make_target(metric, params, pairs(), patching.run(config, params, inputs).final)
    return config, params, inputs, replacement, target


def mean_metric(config, params, inputs, replacement, target, patched, edits=None):
    return target.values(patching.patched_final(config, params, inputs, patched, replacement, edits)).mean()


def by_hand(config, params, inputs, replacement, target, sources):
    """Changes of sources times derivatives with respect to the inputs of destinations, edge by edge."""
    graph, (n, t), d = Graph.of(config), inputs.tokens.shape, config.d_model
    edits = [jnp.zeros((3, config.n_heads, n, t, d) if i % 2 == 0 and i < 2 * config.n_layers else (n, t, d))
             for i in range(2 * config.n_layers + 1)]
    nothing = jnp.zeros(graph.n_edges)
    slopes = jax.grad(lambda e: mean_metric(config, params, inputs, replacement, target, nothing, e))(edits)
    scores, change = [], np.asarray(replacement - sources)
    for dest in graph.destinations:
        slope = np.asarray(slopes[dest.layer])
        slope = slope if dest.head is None else slope["QKV".index(dest.port), dest.head]
        scores += [(change[s] * slope).sum() for s in range(dest.fan_in)]
    return np.array(scores)


def test_metrics_are_those_of_logits():
    config, params, inputs, _, difference = problem()
    clean = patching.run(config, params, inputs)
    other = clean.final + jax.random.normal(jax.random.key(3), (2, *clean.final.shape))
    logits = np.asarray(other @ params["embed"]["embedding"].T, np.float64)
    wanted = [[x[0, 1] - x[0, [5, 6]].mean(), x[1, [2, 3]].mean() - x[1, 7], x[2, 4] - x[2, 8]] for x in logits]
    np.testing.assert_allclose(difference.values(other), wanted, rtol=1e-5)
    kl = metrics.make_target("kl", params, pairs(), clean.final)
    p, q = jax.nn.log_softmax(clean.logits(params)), jax.nn.log_softmax(logits)
    np.testing.assert_allclose(kl.values(other), (np.exp(p) * (p - q)).sum(-1), rtol=1e-4)
    some = np.array([2, 0])
    np.testing.assert_allclose(kl.take(some).values(other[0, some]), kl.values(other[0])[some], rtol=1e-6)
    assert metrics.importance(difference, np.array([-2.0])) == metrics.importance(kl, np.array([2.0])) == 2
    with pytest.raises(ConfigError, match="metric='accuracy' is unknown; choose among logit_difference, kl"):
        metrics.make_target("accuracy", params, pairs(), clean.final)


@pytest.mark.parametrize("stream", STREAMS)
def test_eap_is_the_derivative_with_respect_to_inputs_of_destinations(stream):
    config, params, inputs, replacement, target = problem(stream)
    sources = patching.run(config, params, inputs).sources
    wanted = by_hand(config, params, inputs, replacement, target, sources)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(attribution.eap(*problem(stream)), wanted, atol=2e-6)
    np.testing.assert_allclose(attribution.eap(*problem(stream), batch_size=2), wanted, atol=2e-6)


@pytest.mark.parametrize(("stream", "kind"), [("ablated", "resample"), ("clean", "zero"), ("ablated", "mean"),
                                              ("clean", "mean_per_position")])
def test_eap_is_the_mask_gradient_where_nothing_is_patched(stream, kind):
    scores = attribution.eap(*problem(stream, kind=kind))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(attribution.mask_gradient(*problem(stream, kind=kind), batch_size=2), scores, atol=2e-6)


@pytest.mark.parametrize("stream", STREAMS)
def test_eap_ig_of_one_step_takes_the_derivative_at_the_corrupt_embedding(stream):
    config, params, inputs, replacement, target = problem(stream)
    moved = inputs.replace(tokens=jnp.asarray(pairs().corrupt))
    sources = patching.run(config, params, inputs).sources
    wanted = by_hand(config, params, moved, replacement, target, sources)
    np.testing.assert_allclose(attribution.eap_ig(*problem(stream), steps=1, batch_size=2), wanted, atol=5e-6)


def test_integrated_gradients_meet_the_change_that_they_integrate():
    """Over the embedding, the start's own edges and what they lead to; over the mask, all edges at once."""
    config, params, inputs, replacement, target = problem(metric="kl")
    everything = jnp.ones(Graph.of(config).n_edges)
    change = mean_metric(config, params, inputs, replacement, target, everything)
    points = (np.arange(200) + 0.5) / 200
    scores = attribution.mask_gradient(*problem(metric="kl"), masks=points)
    np.testing.assert_allclose(scores.sum(), change, rtol=2e-3)
    along = node_eap(*problem(metric="kl"), steps=400)[0]  # the start moves everything
    np.testing.assert_allclose(along, change, rtol=2e-2)


@pytest.mark.parametrize(("stream", "metric"), [*itertools.product(STREAMS, metrics.METRICS)])
def test_oracle_patches_one_edge_at_a_time(stream, metric):
    given = problem(stream, metric)
    n_edges, seen = Graph.of(given[0]).n_edges, []
    score = jax.jit(lambda e: mean_metric(*given, jnp.zeros(n_edges).at[e].set(1)) - mean_metric(*given, jnp.zeros(
        n_edges)))
    wanted = np.array([score(e) for e in range(n_edges)])
    got = effects.single_edge_effects(*given, batch_size=2, progress=lambda *x: seen.append(x))
    np.testing.assert_allclose(got, wanted, atol=3e-6)
    assert seen[-1] == (n_edges, n_edges) and seen == sorted(seen)


@pytest.mark.parametrize("kind", ["zero", "mean_per_position"])
def test_oracle_takes_some_edges_in_any_order_few_at_a_time(kind, monkeypatch):
    chosen = np.random.default_rng(0).permutation(Graph.of(model()[0]).n_edges)[:20]
    whole = effects.single_edge_effects(*problem(kind=kind))
    monkeypatch.setattr(effects, "_edges_at_once", lambda *_: 3)
    np.testing.assert_allclose(effects.single_edge_effects(*problem(kind=kind), edges=chosen), whole[chosen], atol=2e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["acdc_small", "acdc_padded"])
def test_oracle_matches_the_fixtures(name):
    data = np.load(fixture_file(f"{name}.npz"))
    weights = {k.removeprefix("param/"): data[k] for k in data.files if k.startswith("param/")}
    config, params = transformer_from_reference(weights, reference_config=json.loads(str(data["config_json"])))
    config, valid = patching.circuit_config(config), data["attention_mask"].astype(bool)
    clean, corrupt = (patching.make_inputs(config, params, data[k], valid) for k in ("clean_ids", "corrupt_ids"))
    run = patching.run(config, params, clean)
    target = metrics.Divergence(metrics.readout(params, run.final))
    got = effects.single_edge_effects(config, params, clean, patching.run(config, params, corrupt).sources, target)
    np.testing.assert_allclose(got, data["single_edge_kl"], atol=1e-5)


@pytest.mark.parametrize(("stream", "steps"), [*itertools.product(STREAMS, (None, 2))])
def test_a_node_is_the_sum_of_its_outgoing_edges(stream, steps):
    given, graph = problem(stream), Graph.of(model()[0])
    edges = attribution.eap(*given) if steps is None else attribution.eap_ig(*given, steps=steps)
    outgoing = np.bincount(graph.edge_source, edges, graph.n_sources)
    np.testing.assert_allclose(node_eap(*given, steps=steps, batch_size=2), outgoing, atol=5e-6)


@pytest.mark.parametrize(("stream", "kind", "steps"), [
    ("clean", "resample", None), ("ablated", "zero", None), ("ablated", "mean", None),
    ("clean", "mean_per_position", 2), ("ablated", "resample", 2)])
def test_a_node_is_the_sum_of_its_units(stream, kind, steps):
    config, params, inputs, replacement, target = problem(stream, kind=kind)
    corrupt = patching.pair_inputs(config, params, pairs(), stream)[1]
    units = neuron_eap(config, params, inputs, corrupt, target, ablation=kind, steps=steps, batch_size=2)
    nodes, graph = node_eap(config, params, inputs, replacement, target, steps=steps), Graph.of(config)
    heads = [[nodes[graph.head(i, h)] for h in range(2)] for i in range(2)]
    np.testing.assert_allclose(units.channels.sum(-1), heads, atol=5e-6)
    assert units.neurons.shape == (2, 12) and units.channels.shape == (2, 2, 4)
    if kind != "zero":  # which takes the output bias from the MLP, and no neuron has it
        np.testing.assert_allclose(units.neurons.sum(-1), [nodes[graph.mlp(i)] for i in range(2)], atol=5e-6)


def test_units_are_derivatives_with_respect_to_their_gates():
    """Of one token, taking a unit away to first order is the gate times minus the derivative with respect to it."""
    config, params = model()
    gates = [jax.random.uniform(k, (2, 2, *shape)) for k, shape in
             zip(jax.random.split(jax.random.key(2)), ((2, 4), (12,)), strict=True)]
    inputs = Inputs(jnp.array([[3], [4]]), jnp.ones((2, 1), bool), *gates)
    target = problem()[-1].take(np.arange(2))

    def score(attention, neuron):
        changed = inputs.replace(attention_gates=attention, neuron_gates=neuron)
        return target.values(patching.run(config, params, changed).final).mean()

    wanted = [-(g * d).sum(0) for g, d in zip(gates, jax.grad(score, argnums=(0, 1))(*gates), strict=True)]
    units = neuron_eap(config, params, inputs, inputs, target, ablation="zero")
    np.testing.assert_allclose(units.channels, wanted[0], atol=1e-6)
    np.testing.assert_allclose(units.neurons, wanted[1], atol=1e-6)


def test_divergence_is_refused_where_it_is_flat():
    given = problem(metric="kl")
    for method in (attribution.eap, attribution.mask_gradient, node_eap):
        with pytest.raises(ConfigError, match="metric='kl' gives zeros everywhere .*; take metric='logit_difference'"):
            method(*given)
    assert np.abs(attribution.eap_ig(*given)).max() > 1e-3
    assert np.abs(attribution.mask_gradient(*given, masks=(0.5,))).max() > 1e-3


@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_are_finite_with_padding_and_zeros(stream):
    """Of a run from embeddings of zero, whose norms have no variance."""
    assert np.isfinite(attribution.eap_ig(*problem(stream, "kl", "zero"))).all()
    assert np.isfinite(attribution.mask_gradient(*problem(stream, "kl", "zero"), masks=(1.0,))).all()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: attribution.eap(*problem(), batch_size=0), "batch_size=0 must be at least 1"),
    (lambda: attribution.eap_ig(*problem(), steps=0), "steps=0 must be at least 1"),
    (lambda: attribution.mask_gradient(*problem(), masks=()), "masks is empty"),
    (lambda: attribution.mask_gradient(*problem(), masks=(1.5,)), "values 1.5 .. 1.5; they must lie in 0 .. 1"),
    (lambda: attribution.mask_gradient(*problem(), masks=(np.zeros(3),)), "one for each of"),
    (lambda: effects.single_edge_effects(*problem(), edges=[-1]), "edge -1 is not in the graph"),
    (lambda: effects.single_edge_effects(*problem(), memory_mb=0), "memory_mb=0 must be at least 1"),
])
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_random_scores_are_reproducible_and_differ_by_seed():
    graph = Graph(2, 2)
    first, again, other = (attribution.random_scores(graph, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (graph.n_edges,) and (first != other).all()


def scored(graph, **edges):
    """Scores by edge name; all others are 0."""
    scores = np.zeros(graph.n_edges)
    for name, score in edges.items():
        scores[graph.edge(name)] = score
    return scores


SCORES = {"Resid Start->A0.0.V": -5.0, "A0.0->MLP 0": 4.0, "Resid Start->Resid End": 3.0, "MLP 0->Resid End": 1.0}


def names(graph, kept):
    return {graph.edge_names[i] for i in np.flatnonzero(kept)}


def test_top_takes_the_most_important_and_prunes_what_dangles():
    graph = Graph(1, 1)
    importance = scored(graph, **SCORES)
    signed, absolute = edge_order(graph, importance), edge_order(graph, importance, absolute=True)
    assert [graph.edge_names[i] for i in absolute[:4]] == list(SCORES)
    assert signed[-1] == graph.edge("Resid Start->A0.0.V")
    assert names(graph, first_edges(graph, absolute, 3)) == {"Resid Start->Resid End"}
    assert names(graph, first_edges(graph, absolute, 3, prune=False)) == set(list(SCORES)[:3])
    assert names(graph, first_edges(graph, absolute, 4)) == set(SCORES)
    assert first_edges(graph, signed, graph.n_edges).all() and not first_edges(graph, signed, 0).any()


def test_greedy_walks_from_the_end_over_nodes_already_met():
    graph = Graph(1, 1)
    order = edge_order(graph, scored(graph, **SCORES), search="greedy", absolute=True)
    assert [graph.edge_names[i] for i in order[:4]] == [
        "Resid Start->Resid End", "MLP 0->Resid End", "A0.0->MLP 0", "Resid Start->A0.0.V"]
    assert sorted(order) == list(range(graph.n_edges))


def test_greedy_circuits_always_reach_the_end():
    graph = Graph(3, 2)
    order = edge_order(graph, attribution.random_scores(graph, 0), search="greedy")
    for count in (1, 5, 20):
        kept = first_edges(graph, order, count, prune=False)
        leading = set(graph.edge_source[kept]) | {None}
        assert all(graph.destinations[d].source in leading for d in graph.edge_destination[kept])


def test_what_dangles_does_not_change_the_output():
    given, graph = problem(), Graph.of(model()[0])
    for seed in range(5):
        kept = np.random.default_rng(seed).random(graph.n_edges) < 0.15
        pruned = without_dangling(graph, kept)
        assert pruned.sum() < kept.sum() and not (pruned & ~kept).any()
        before, after = (mean_metric(*given, jnp.asarray(~x, jnp.float32)) for x in (kept, pruned))
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_orders_that_cannot_be_made_are_refused():
    graph = Graph(1, 1)
    with pytest.raises(DataError, match=r"one number for each of the graph's 8 edges"):
        edge_order(graph, np.zeros(3))
    with pytest.raises(DataError, match="1 values that are no number"):
        edge_order(graph, scored(graph, **{"Resid Start->Resid End": np.nan}))
    with pytest.raises(ConfigError, match="search='best' is unknown; choose among top, greedy"):
        edge_order(graph, np.zeros(8), search="best")
    with pytest.raises(ConfigError, match=r"a circuit of 9 edges .* choose 0 .. 8"):
        first_edges(graph, np.arange(8), 9)
