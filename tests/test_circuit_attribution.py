"""Attribution: metrics, EAP against derivatives taken by hand, the single-edge oracle, nodes and neurons, searches."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toy_circuits import model, pairs, patched_metrics, problem, whole

from jaxablate import circuits
from jaxablate.circuits import (
    Graph,
    PromptPairs,
    eap,
    eap_ig,
    edge_order,
    effects,
    first_edges,
    importance,
    mask_gradient,
    neuron_eap,
    node_eap,
    random_scores,
    without_dangling,
)
from jaxablate.circuits.blocks import Inputs
from jaxablate.circuits.patching import patched_final, source_run
from jaxablate.errors import ConfigError, DataError
from jaxablate.interop import transformer_from_reference

STREAMS = ("clean", "ablated")


@jax.jit
def slopes_and_sources(batch, inputs):
    """Derivatives with respect to the inputs of destinations in a run on ``inputs``, and the batch's own sources."""
    graph, width, (n, t) = batch.decoder.graph, batch.replacement.shape[-1], batch.inputs.tokens.shape
    edits = [jnp.zeros((3 * graph.n_heads, n, t, width) if i % 2 == 0 and i < 2 * graph.n_layers else (n, t, width))
             for i in range(2 * graph.n_layers + 1)]

    def score(edits):
        final = patched_final(batch.decoder, batch.params, inputs, jnp.zeros(graph.n_edges), batch.replacement, edits)
        return batch.target.values(final).mean()

    return jax.grad(score)(edits), source_run(batch.decoder, batch.params, batch.inputs).sources


def by_hand(task, inputs=None):
    """Changes of sources times derivatives with respect to the inputs of destinations, edge by edge."""
    graph = task.graph
    slopes, sources = slopes_and_sources(whole(task), inputs or task.inputs)
    scores, change = [], np.asarray(task.replacement) - np.asarray(sources)
    for dest in graph.destinations:
        slope = np.asarray(slopes[dest.layer])
        slope = slope if dest.head is None else slope["QKV".index(dest.port) * graph.n_heads + dest.head]
        scores += [(change[s] * slope).sum() for s in range(dest.fan_in)]
    return np.array(scores)


def test_metrics_are_those_of_logits():
    task, some, rng = problem(), np.array([2, 0]), np.random.default_rng(3)
    final, table = (np.asarray(x, np.float64) for x in (task.final, task.params["embed"]["embedding"]))
    other = (final + rng.standard_normal((2, *final.shape))).astype(np.float32)
    logits = other @ table.T
    kl = task.with_metric("kl").target
    difference, divergence, part = jax.jit(lambda target, kl, kl_of_some: (
        target.values(other), kl.values(other), kl_of_some.values(other[0, some])))(task.target, kl, kl.take(some))
    wanted = [[x[0, 1] - x[0, [5, 6]].mean(), x[1, [2, 3]].mean() - x[1, 7], x[2, 4] - x[2, 8]] for x in logits]
    np.testing.assert_allclose(difference, wanted, rtol=1e-5)
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (final @ table.T, logits))
    np.testing.assert_allclose(divergence, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(part, np.asarray(divergence)[0, some], rtol=1e-6)
    assert importance(task.target, np.array([-2.0])) == importance(kl, np.array([2.0])) == 2


@pytest.mark.parametrize("stream", STREAMS)
def test_eap_is_the_derivative_with_respect_to_inputs_of_destinations(stream):
    wanted = by_hand(problem(stream))
    assert np.abs(wanted).max() > 0.1
    for size in (2, None) if stream == "clean" else (2,):
        np.testing.assert_allclose(eap(problem(stream), batch_size=size), wanted, atol=2e-6)


@pytest.mark.parametrize(("stream", "kind"), [("ablated", "resample"), ("clean", "zero"), ("ablated", "mean")])
def test_eap_is_the_mask_gradient_where_nothing_is_patched(stream, kind):
    scores = eap(problem(stream, kind=kind), batch_size=2)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(mask_gradient(problem(stream, kind=kind), batch_size=2), scores, atol=2e-6)


@pytest.mark.parametrize("stream", STREAMS)
def test_eap_ig_of_one_step_takes_the_derivative_at_the_corrupt_embedding(stream):
    task = problem(stream)
    wanted = by_hand(task, task.inputs.replace(tokens=pairs().corrupt))
    np.testing.assert_allclose(eap_ig(task, steps=1, batch_size=2), wanted, atol=5e-6)


def test_integrated_gradients_meet_the_change_that_they_integrate():
    """Over the embedding, the start's own edges and what they lead to; over the mask, all edges at once."""
    task = problem(metric="kl")
    (change,) = patched_metrics(task, np.ones((1, task.graph.n_edges))).mean(1)
    scores = mask_gradient(task, masks=(np.arange(200) + 0.5) / 200)
    np.testing.assert_allclose(scores.sum(), change, rtol=2e-3)
    task = problem()
    change = np.subtract(*patched_metrics(task, np.eye(2)[:, [0] * task.graph.n_edges]).mean(1))
    along = node_eap(task, steps=400, batch_size=2)[0]  # the start moves everything
    np.testing.assert_allclose(along, change, rtol=2e-2)


ORACLE = [("clean", "kl", "zero"), ("ablated", "logit_difference", "mean_per_position")]
"""Resampled values are in `test_oracle_matches_the_fixtures`."""


@pytest.mark.parametrize("asked", ORACLE)
def test_oracle_patches_one_edge_at_a_time(asked):
    task, seen, n = problem(*asked), [], problem(*asked).graph.n_edges
    one_by_one = patched_metrics(task, np.eye(n + 1)[:, :n]).mean(1)  # the last one patches nothing
    got = effects(task, batch_size=2, progress=lambda *x: seen.append(x))
    np.testing.assert_allclose(got, one_by_one[:-1] - one_by_one[-1], atol=3e-6)
    assert seen[-1] == (task.graph.n_edges,) * 2 and seen == sorted(seen)


def test_oracle_takes_some_edges_in_any_order_few_at_a_time(monkeypatch):
    task = problem(*ORACLE[0])
    chosen = np.random.default_rng(0).permutation(task.graph.n_edges)[:20]
    everything = effects(task, batch_size=2)
    monkeypatch.setattr(sys.modules["jaxablate.circuits.effects"], "_edges_at_once", lambda *_: 3)
    np.testing.assert_allclose(effects(task, edges=chosen, batch_size=2), everything[chosen], atol=2e-6)


@pytest.mark.parity
def test_oracle_matches_the_fixtures(acdc_file):
    data = np.load(acdc_file)
    weights = {k.removeprefix("param/"): data[k] for k in data.files if k.startswith("param/")}
    kind = {} if any("ablation_head" in name for name in weights) else {"ablation": "none"}  # golden: heads left out
    config, params = transformer_from_reference(weights, reference_config=json.loads(str(data["config_json"])), **kind)
    ids = {name: data[f"{name.removesuffix('s')}_ids"].astype(np.int32)
           for name in ("clean", "corrupt", "answers", "wrong_answers")}
    ids = {name: x if x.ndim == 2 else x[:, None] for name, x in ids.items()}
    prompts = PromptPairs(**ids, valid=data["attention_mask"].astype(bool), groups=("",) * len(ids["clean"]), name="x")
    got = effects(circuits.problem(config, params, prompts, metric="kl"))
    np.testing.assert_allclose(got, data["single_edge_kl"], atol=1e-5)


@pytest.mark.parametrize(("stream", "steps"), [*itertools.product(STREAMS, (None, 2))])
def test_a_node_is_the_sum_of_its_outgoing_edges(stream, steps):
    task = problem(stream)
    edges = eap(task, batch_size=2) if steps is None else eap_ig(task, steps=steps, batch_size=2)
    outgoing = np.bincount(task.graph.edge_source, edges, task.graph.n_sources)
    np.testing.assert_allclose(node_eap(task, steps=steps, batch_size=2), outgoing, atol=5e-6)


@pytest.mark.parametrize(("stream", "kind", "steps"), [
    ("clean", "resample", None), ("ablated", "zero", None), ("ablated", "mean", 2), ("clean", "mean_per_position", 2)])
def test_a_node_is_the_sum_of_its_units(stream, kind, steps):
    task = problem(stream, kind=kind)
    units = neuron_eap(task, steps=steps, batch_size=2)
    nodes, graph = node_eap(task, steps=steps, batch_size=2), task.graph
    heads = [[nodes[graph.head(i, h)] for h in range(2)] for i in range(2)]
    np.testing.assert_allclose(units.channels.sum(-1), heads, atol=5e-6)
    assert units.neurons.shape == (2, 12) and units.channels.shape == (2, 2, 4)
    if kind != "zero":  # which takes the output bias from the MLP, and no neuron has it
        np.testing.assert_allclose(units.neurons.sum(-1), [nodes[graph.mlp(i)] for i in range(2)], atol=5e-6)


def test_units_are_derivatives_with_respect_to_their_gates():
    """With one token, taking a unit away to first order is its gate times minus the derivative with respect to it."""
    config, params = model()
    rng = np.random.default_rng(2)
    gates = [rng.random((2, 2, *shape), np.float32) for shape in ((2, 4), (12,))]
    inputs = Inputs(*map(jnp.asarray, (np.array([[3], [4]], np.int32), np.ones((2, 1), bool), *gates)))
    two = PromptPairs.from_ids([[3], [4]], [[3], [4]], [[1], [2, 3]], [[5, 6], [7]], name="one token")
    task = circuits.problem(config, params, two, stream="ablated", ablation="zero")
    task.__dict__.update(inputs=inputs, corrupt=inputs)  # gates of our own in place of the model's

    def score(gates, batch):
        changed = inputs.replace(attention_gates=gates[0], neuron_gates=gates[1])
        return batch.target.values(source_run(batch.decoder, batch.params, changed).final).mean()

    slopes = jax.jit(jax.grad(score))(gates, whole(task))
    wanted = [-(g * d).sum(0) for g, d in zip(gates, slopes, strict=True)]
    units = neuron_eap(task)
    np.testing.assert_allclose(units.channels, wanted[0], atol=1e-6)
    np.testing.assert_allclose(units.neurons, wanted[1], atol=1e-6)


def test_divergence_is_refused_where_it_is_flat():
    task = problem(metric="kl")
    for method in (eap, mask_gradient, node_eap):
        with pytest.raises(ConfigError, match="metric='kl' gives zeros everywhere .*; take metric='logit_difference'"):
            method(task)
    assert np.abs(eap_ig(task, steps=2)).max() > 1e-3
    assert np.abs(mask_gradient(task, masks=(0.5,))).max() > 1e-3


@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_are_finite_with_padding_and_zeros(stream):
    """The run starts from embeddings of zero, whose norms have no variance."""
    task = problem(stream, "kl" if stream == "ablated" else "logit_difference", "zero")
    assert np.isfinite(eap_ig(task, batch_size=2)).all()
    assert np.isfinite(mask_gradient(task, masks=(1.0,), batch_size=2)).all()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: eap(problem(), batch_size=0), "batch_size=0"),
    (lambda: eap_ig(problem(), steps=0), "steps=0"),
    (lambda: mask_gradient(problem(), masks=()), "masks is empty"),
    (lambda: mask_gradient(problem(), masks=(1.5,)), "values 1.5 .. 1.5"),
    (lambda: mask_gradient(problem(), masks=(np.zeros(3),)), "one for each of"),
    (lambda: effects(problem(), edges=[-1]), "edge -1"),
    (lambda: effects(problem(), memory_mb=0), "memory_mb=0"),
])
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_random_scores_are_reproducible_and_differ_by_seed():
    graph = Graph(2, 2)
    first, again, other = (random_scores(graph, seed) for seed in (0, 0, 1))
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
    order = edge_order(graph, random_scores(graph, 0), search="greedy")
    for count in (1, 5, 20):
        kept = first_edges(graph, order, count, prune=False)
        leading = set(graph.edge_source[kept])
        assert all(leading.issuperset(graph.destinations[d].nodes) for d in graph.edge_destination[kept])


def test_what_dangles_does_not_change_the_output():
    task = problem()
    kept = np.random.default_rng(0).random((5, task.graph.n_edges)) < 0.15
    pruned = np.array([without_dangling(task.graph, x) for x in kept])
    assert (pruned.sum(1) < kept.sum(1)).all() and not (pruned & ~kept).any()
    before, after = (patched_metrics(task, ~masks) for masks in (kept, pruned))
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
