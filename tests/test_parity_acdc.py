"""Every decision of AutoCircuit's ACDC, edge by edge, from the fixtures and the golden figures."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxablate.circuits import patching
from jaxablate.circuits.acdc import acdc
from jaxablate.circuits.exact_divergence import ExactDivergence
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.interop import transformer_from_reference

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Narrow calls, so that there is less to compile."""
    monkeypatch.setattr(sys.modules[acdc.__module__], "WIDEST", 8)


@pytest.fixture(scope="module")
def loaded(acdc_file):
    data = np.load(acdc_file)
    weights = {name.removeprefix("param/"): data[name] for name in data.files if name.startswith("param/")}
    settings = json.loads(str(data["config_json"]))
    kind = {} if any("ablation_head" in name for name in weights) else {"ablation": "none"}  # golden: heads left out
    config, params = transformer_from_reference(weights, reference_config=settings, **kind)
    pairs = PromptPairs(clean=data["clean_ids"].astype(np.int32), corrupt=data["corrupt_ids"].astype(np.int32),
                        valid=data["attention_mask"].astype(bool), answers=data["answer_ids"].astype(np.int32)[:, None],
                        wrong_answers=data["wrong_answer_ids"].astype(np.int32)[:, None],
                        groups=("",) * len(data["clean_ids"]), name="fixture")
    return data, config, params, pairs


def orders(data):
    """(name of the order, edges in it, thresholds)."""
    keys = [name.split("/") for name in data.files if name.startswith("run/") and name.endswith("/order")]
    taus: dict[str, list[str]] = {}
    for _, order, tau, _ in keys:
        taus.setdefault(order, []).append(tau.removeprefix("tau_"))
    return taus.items()


def test_graph_is_the_reference_s(loaded):
    data, config, _, _ = loaded
    graph = Graph.of(config)
    assert list(graph.edge_names) == data["edge_names"].tolist()
    assert list(graph.source_names) == data["src_names"].tolist()
    np.testing.assert_array_equal(graph.edge_source, data["edge_src_idx"])


def test_runs_and_source_norms(loaded):
    data, config, params, pairs = loaded
    same = patching.circuit_config(config)
    clean, corrupt = patching.pair_inputs(same, params, pairs)
    for inputs, which in ((clean, "clean"), (corrupt, "corrupt")):
        run = patching.run(same, params, inputs)
        log_probs = jax.nn.log_softmax(run.logits(params), axis=-1)
        np.testing.assert_allclose(log_probs, data[f"{which}_logprobs_last"], atol=2e-5)
        centred = np.asarray(run.sources - run.sources.mean(-1, keepdims=True)).reshape(len(run.sources), -1)
        np.testing.assert_allclose(np.linalg.norm(centred, axis=1), data[f"src_out_norm_{which}"], rtol=1e-5)


def test_single_edges_and_all_edges(loaded):
    data, config, params, pairs = loaded
    same = patching.circuit_config(config)
    exact = ExactDivergence(config, params, [patching.pair_inputs(same, params, pairs)], "resample")
    edges = len(data["edge_names"])
    np.testing.assert_allclose([exact(one) for one in np.eye(edges, dtype=bool)], data["single_edge_kl"], atol=1e-5)
    np.testing.assert_allclose(exact(np.ones(edges, bool)), data["all_patched_kl"], atol=1e-5)
    np.testing.assert_allclose(exact(np.ones(edges, bool)), data["corrupt_kl"], atol=1e-5)


def test_every_decision(loaded):
    data, config, params, pairs = loaded
    for name, taus in orders(data):
        order = data[f"run/{name}/tau_{taus[0]}/order"]
        found = acdc(config, params, pairs, taus=[float(t) for t in taus], order=order)
        for tau in taus:
            run, prefix = found.runs[float(tau)], f"run/{name}/tau_{tau}/"
            np.testing.assert_array_equal(run.removed, data[prefix + "removed"], err_msg=prefix)
            np.testing.assert_array_equal(run.kept, data[prefix + "kept"])
            np.testing.assert_allclose(run.kl, data[prefix + "kl"], atol=1e-5, err_msg=prefix)
            np.testing.assert_allclose(run.min_margin, data[prefix + "min_margin"], atol=1e-5)
            np.testing.assert_allclose(run.final_kl, run.checked_kl, atol=1e-5)
            assert run.n_kept == data[prefix + "n_kept"]


def test_scores_of_several_thresholds(loaded):
    data, config, params, pairs = loaded
    for name, taus in orders(data):
        order = data[f"run/{name}/tau_{taus[0]}/order"]
        found = acdc(config, params, pairs, taus=(0.1, 0.01, 0.001), order=order)
        np.testing.assert_allclose(found.scores, data[f"scores/{name}"], rtol=1e-6)
