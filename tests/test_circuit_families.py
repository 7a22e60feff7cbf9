"""Circuits of every family of decoders, against the model itself and against the patched run in float64; their graphs
and files."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate import circuits
from jaxablate.circuits import (
    Circuit,
    Graph,
    PromptPairs,
    acdc,
    eap,
    eap_ig,
    edge_order,
    effects,
    faithfulness,
    live,
    load_circuit,
    load_mib,
    mask_gradient,
    metric_values,
    neuron_eap,
    node_eap,
    save_circuit,
    save_mib,
)
from jaxablate.circuits.acdc import shuffled_order
from jaxablate.circuits.blocks import logits as logits_of
from jaxablate.circuits.competence import margins
from jaxablate.circuits.patching import patched_final
from jaxablate.circuits.problem import in_type
from jaxablate.config import ModelConfig, family
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer

SIZES = {"vocab_size": 13, "context_length": 6, "d_model": 8, "n_layers": 2, "d_mlp": 10, "ablation": "none"}
CONFIGS: dict[str, ModelConfig] = {
    "gpt2": family("gpt2", n_heads=2, **SIZES),
    "gpt_neox": family("gpt_neox", n_heads=2, **SIZES | {"d_model": 16}),
    "llama": family("llama", n_heads=4, kv_heads=2, head_dim=4, **SIZES),
    "gemma2": family("gemma2", n_heads=2, kv_heads=1, head_dim=6, window_size=3, attention_scale_width=5,
                     **SIZES),
    "gated llama": family("qwen2", n_heads=2, kv_heads=1, k_attention=4, k_neurons=5, mlp_top_k=7,
                          **SIZES | {"ablation": "local"}),
}
SPLIT = "llama, keys and values apart"
FAMILIES = (*CONFIGS, SPLIT)
SEARCHED = ("gpt2", "gpt_neox", "llama", "gemma2")
TAUS = (0.03, 0.01, 0.002)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Narrow calls and one sum at a time, so that there is less to compile."""
    monkeypatch.setattr(sys.modules[acdc.__module__], "WIDEST", 2)
    monkeypatch.setattr(live, "_MOST_TERMS", 1)


@functools.cache
def params(name):
    drawn = drawn_params(SelfAblatingTransformer(CONFIGS[name]), np.zeros((1, 4), np.int32), scale=0.6)
    one = CONFIGS[name].norm == "rms_offset"  # of these norms the factor is 1 + scale
    return jax.tree_util.tree_map_with_path(lambda path, x: x - one * (path[-1].key == "scale"), drawn)


@functools.cache
def pairs():
    rng = np.random.default_rng(0)
    clean, corrupt = ([rng.integers(0, 13, n).tolist() for n in (5, 3, 4)] for _ in range(2))
    return PromptPairs.from_ids(clean, corrupt, [[1], [2, 3], [4]], [[5, 6], [7], [8]], name="toy")


@functools.cache
def task(name):
    """A family's model on prompts of three lengths; of the one with gates its ablated stream."""
    model = "llama" if name == SPLIT else name
    return circuits.problem(CONFIGS[model], params(model), pairs(), split=name == SPLIT,
                            stream="ablated" if CONFIGS[model].gated else "clean")


@functools.cache
def exact(name):
    """(mask [E]) -> logits [n, V], by the patched run in float64."""
    problem, decoder = task(name), task(name).decoder.in_type("float64")

    def wide(x):
        x = np.asarray(x)
        return jnp.asarray(x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x)

    with jax.enable_x64(True):
        weights = in_type(problem.params, np.float64)
        inputs, corrupt = (jax.tree.map(wide, x) for x in (problem.inputs, problem.corrupt))
        replacement = problem.replaced(decoder, weights, corrupt)

    def run(mask):
        with jax.enable_x64(True):
            final = patched_final(decoder, weights, inputs, np.asarray(mask, np.float64), replacement)
            return np.asarray(logits_of(decoder, weights, final))

    return run


def margin(name, mask):
    """Mean difference of logits in float64."""
    return margins(exact(name)(mask), pairs()).mean()


def divergence(clean, other):
    """[n] KL of logits in float64."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (clean, other))
    return (np.exp(p) * (p - q)).sum(-1)


def one(name, edge, size=1.0):
    """[E] with a number at one edge."""
    mask = np.zeros(task(name).graph.n_edges)
    mask[edge] = size
    return mask


@functools.cache
def by_model(name):
    """Logits of clean and corrupt prompts by the model's own run, padded at the right."""
    model = "llama" if name == SPLIT else name
    apply = jax.jit(SelfAblatingTransformer(CONFIGS[model]).apply)
    out = []
    for prompts in (pairs().clean, pairs().corrupt):
        left = np.array([np.roll(row, n) for row, n in zip(prompts, pairs().lengths, strict=True)])
        own = getattr(apply({"params": params(model)}, left), f"logits_{task(name).stream}")
        out.append(np.asarray(own)[np.arange(len(left)), pairs().lengths - 1])
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_patched_is_the_model_and_everything_patched_is_its_corrupt_run(name):
    clean, corrupt = by_model(name)
    n = task(name).graph.n_edges
    np.testing.assert_allclose(task(name).logits, clean, atol=1e-5)
    np.testing.assert_allclose(exact(name)(np.zeros(n)), clean, atol=1e-5)
    np.testing.assert_allclose(exact(name)(np.ones(n)), corrupt, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_eap_is_the_derivative_of_the_patched_run_by_finite_differences(name):
    step, scores = 1e-5, eap(task(name))
    slopes = [margin(name, one(name, e, step)) - margin(name, one(name, e, -step)) for e in range(scores.size)]
    np.testing.assert_allclose(scores, np.array(slopes) / (2 * step), rtol=1e-5, atol=1e-5)
    assert (np.abs(scores) > 1e-3).mean() > 0.5


@pytest.mark.parametrize("name", ["gpt_neox", "gemma2"])
def test_effects_are_patched_runs_edge_by_edge(name):
    found, clean = effects(task(name)), margin(name, one(name, 0, 0.0))
    np.testing.assert_allclose(found, [margin(name, one(name, e)) - clean for e in range(found.size)], atol=2e-5)


def test_the_mask_gradient_is_a_derivative_where_edges_are_partly_patched():
    name = "gemma2"
    mask, step = np.linspace(0, 1, task(name).graph.n_edges), 1e-5
    slopes = mask_gradient(task(name), masks=(mask,))
    for edge in range(0, mask.size, 7):
        change = margin(name, mask + one(name, edge, step)) - margin(name, mask - one(name, edge, step))
        assert slopes[edge] == pytest.approx(change / (2 * step), abs=2e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "gemma2"])
def test_a_node_is_the_sum_of_its_edges_and_of_its_units(name):
    graph, nodes, units = task(name).graph, node_eap(task(name)), neuron_eap(task(name))
    np.testing.assert_allclose(nodes, np.bincount(graph.edge_source, eap(task(name)), graph.n_sources), atol=1e-5)
    along, edges = node_eap(task(name), steps=2), eap_ig(task(name), steps=2)
    np.testing.assert_allclose(along, np.bincount(graph.edge_source, edges, graph.n_sources), atol=1e-5)
    heads = [[nodes[graph.head(i, h)] for h in range(graph.n_heads)] for i in range(graph.n_layers)]
    np.testing.assert_allclose(units.channels.sum(-1), heads, atol=1e-5)
    if not task(name).decoder.post_norms:  # a norm after the MLP is no sum over neurons
        np.testing.assert_allclose(units.neurons.sum(-1), [nodes[graph.mlp(i)] for i in range(2)], atol=1e-5)


def test_scores_of_shared_keys_are_sums_of_those_of_each_head():
    apart = np.bincount(task("llama").graph.of_split, eap(task(SPLIT)))
    np.testing.assert_allclose(eap(task("llama")), apart, rtol=1e-5, atol=1e-5)


def test_faithfulness_and_metrics_of_a_circuit_are_those_of_the_patched_run():
    name, rng = "gemma2", np.random.default_rng(0)
    scores = eap_ig(task(name), steps=2)
    curve = faithfulness(task(name), scores, percents=(0.0, 50.0, 100.0)).signed.faithfulness()
    np.testing.assert_allclose(curve[[0, 2]], (0, 1), atol=1e-12)
    kept = rng.random((3, scores.size)) < 0.6
    patched, clean = [exact(name)(~k) for k in kept], exact(name)(np.zeros(scores.size))
    np.testing.assert_allclose(metric_values(task(name), kept), [margins(x, pairs()) for x in patched], atol=1e-5)
    kl = metric_values(task(name).with_metric("kl"), kept)
    np.testing.assert_allclose(kl, [divergence(clean, x) for x in patched], atol=1e-5)


def sequential(name, tau, order):
    """[E] bool, kept edges, by ACDC as it is written down, in float64."""
    patched, now = np.zeros(len(order)), 0.0
    clean = exact(name)(patched)
    for edge in order:
        patched[edge] = 1
        kl = divergence(clean, exact(name)(patched)).mean()
        if kl - now < tau:
            now = kl
        else:
            patched[edge] = 0
    return patched == 0


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("name", SEARCHED)
def test_acdc_makes_the_decisions_of_the_sequential_definition(name, seed):
    graph = task(name).graph
    order = np.arange(graph.n_edges) if seed is None else shuffled_order(graph, seed)
    for tau, run in acdc(task(name), TAUS, order=order).runs.items():
        np.testing.assert_array_equal(run.kept, sequential(name, tau, order))
        assert 0 < run.n_kept < graph.n_edges
        assert run.final_kl == pytest.approx(run.checked_kl, abs=1e-5)


def test_numbers_of_edges():
    """Those of keys and values apart are EAP-IG's, of GPT-2 small, Qwen2.5-0.5B and Llama 3.1 8B."""
    assert Graph(12, 12).n_edges == Graph(12, 12).split.n_edges == 32_491
    assert (Graph(24, 14, kv_heads=2).n_edges, Graph(24, 14, kv_heads=2).split.n_edges) == (79_813, 179_749)
    assert Graph(32, 32, kv_heads=8).split.n_edges == 1_592_881
    assert Graph(12, 12, parallel=True).n_edges == 32_491 - 12 * 12  # no MLP reads the heads of its own block


def test_edges_of_shared_keys_and_of_parallel_blocks():
    shared, parallel = Graph(2, 4, kv_heads=2), Graph(2, 2, parallel=True)
    assert [d.name for d in shared.destinations if d.block == 1 and d.head is not None] == [
        "A1.0.Q", "A1.1.Q", "A1.0-1.K", "A1.0-1.V", "A1.2.Q", "A1.3.Q", "A1.2-3.K", "A1.2-3.V"]
    assert parallel.edge("A0.1->MLP 1") and parallel.edge("MLP 0->A1.0.Q")
    with pytest.raises(DataError, match="MLP 1 does not come after A1.0"):
        parallel.edge("A1.0->MLP 1")
    with pytest.raises(ConfigError, match="kv_heads=3 must divide n_heads=4"):
        Graph(2, 4, kv_heads=3)
    edges = np.arange(shared.n_edges)
    for block in range(2):
        ports = shared.by_port(block, jnp.asarray(edges))
        first = shared.destination(f"A{block}.0.Q").offset
        assert ports.shape == (8, shared.head(block, 0)) and ports[5, 0] == shared.edge(f"Resid Start->A{block}.2-3.K")
        np.testing.assert_array_equal(shared.by_edge(ports), first + np.arange(ports.size))


def test_a_circuit_reaches_the_end_through_any_head_that_shares_a_key():
    graph = Graph(2, 4, kv_heads=2)
    kept = Circuit.of_edges(graph, ["Resid Start->A0.2.Q", "A0.2->A1.2-3.K", "A1.3->Resid End", "A0.2->A1.0-1.K"])
    assert set(kept.connected().edge_names()) == {"Resid Start->A0.2.Q", "A0.2->A1.2-3.K", "A1.3->Resid End"}
    assert kept.nodes[[graph.source(name) for name in ("A0.2", "A1.3")]].all() and not kept.nodes[graph.source("A1.2")]
    order = edge_order(graph, np.random.default_rng(0).normal(size=graph.n_edges), search="greedy")
    np.testing.assert_array_equal(np.sort(order), np.arange(graph.n_edges))


def test_circuits_of_shared_keys_and_parallel_blocks_in_files(tmp_path):
    rng = np.random.default_rng(0)
    for graph in (Graph(2, 4, kv_heads=2), Graph(2, 2, parallel=True)):
        kept, scores = rng.random(graph.n_edges) < 0.3, rng.normal(size=graph.n_edges)
        circuit = Circuit(graph=graph, kept=kept, scores=scores, about={"metric": "logit_difference"})
        own = load_circuit(save_circuit(circuit, tmp_path / "c.json"), graph=graph)
        np.testing.assert_array_equal(own.scores, scores)
        path = save_mib(circuit, tmp_path / "m.json", d_model=8)
        back, apart = load_mib(path, graph=graph), load_mib(path)
        np.testing.assert_array_equal(back.kept, kept)
        np.testing.assert_allclose(back.scores, scores, rtol=1e-12)
        assert apart.graph == graph.split
        np.testing.assert_array_equal(apart.kept, kept[graph.of_split])
        assert json.loads(path.read_text())["cfg"]["parallel_attn_mlp"] == graph.parallel


def test_a_mib_file_that_keeps_a_key_for_some_of_its_heads_is_read_apart_alone(tmp_path):
    graph = Graph(2, 4, kv_heads=2)
    path = save_mib(Circuit.of_edges(graph, {"MLP 0->A1.2-3.K": 3.0}), tmp_path / "m.json", d_model=8, metric="kl")
    values = json.loads(path.read_text())
    assert values["edges"]["m0->a1.h3<k>"] == {"score": 1.5, "in_graph": True}
    values["edges"]["m0->a1.h3<k>"]["in_graph"] = False
    path.write_text(json.dumps(values))
    assert load_mib(path).edge_names() == ("MLP 0->A1.2.K",)
    with pytest.raises(DataError, match=r"'MLP 0->A1.2-3.K' for 1 of the 2 heads that share it; .* split=True"):
        load_mib(path, graph=graph)
