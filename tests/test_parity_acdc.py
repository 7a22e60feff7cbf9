"""Every decision of AutoCircuit's ACDC, edge by edge, from the fixtures and the golden figures."""

import json
import sys

import jax
import numpy as np
import pytest
from helpers.tolerance import assert_close

from jaxablate.circuits import Graph, PromptPairs, acdc, problem
from jaxablate.circuits.acdc import ExactDivergence
from jaxablate.circuits.patching import source_run
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
    return data, problem(config, params, pairs)


def orders(data):
    """(name of the order, edges in it, thresholds)."""
    keys = [name.split("/") for name in data.files if name.startswith("run/") and name.endswith("/order")]
    taus: dict[str, list[str]] = {}
    for _, order, tau, _ in keys:
        taus.setdefault(order, []).append(tau.removeprefix("tau_"))
    return taus.items()


def test_graph_is_the_reference_s(loaded):
    data, task = loaded
    graph = Graph.of(task.config)
    assert list(graph.edge_names) == data["edge_names"].tolist()
    assert list(graph.source_names) == data["src_names"].tolist()
    np.testing.assert_array_equal(graph.edge_source, data["edge_src_idx"])


def test_runs_and_source_norms(loaded):
    data, task = loaded
    for inputs, which in ((task.inputs, "clean"), (task.corrupt, "corrupt")):
        run = source_run(task.decoder, task.params, inputs)
        log_probs = jax.nn.log_softmax(run.final @ task.decoder.unembedding(task.params).T, axis=-1)
        assert_close(log_probs, data[f"{which}_logprobs_last"], atol=2e-5, ulps=64)  # -8 was seen 2.1e-5 off
        centred = np.asarray(run.sources - run.sources.mean(-1, keepdims=True)).reshape(len(run.sources), -1)
        assert_close(np.linalg.norm(centred, axis=1), data[f"src_out_norm_{which}"], rtol=1e-5)


def test_single_edges_and_all_edges(loaded):
    data, task = loaded
    exact = ExactDivergence(task)
    edges = len(data["edge_names"])
    assert_close([exact(one) for one in np.eye(edges, dtype=bool)], data["single_edge_kl"], atol=1e-5)
    assert_close(exact(np.ones(edges, bool)), data["all_patched_kl"], atol=1e-5)
    assert_close(exact(np.ones(edges, bool)), data["corrupt_kl"], atol=1e-5)


def test_every_decision(loaded):
    data, task = loaded
    for name, taus in orders(data):
        order = data[f"run/{name}/tau_{taus[0]}/order"]
        found = acdc(task, taus=[float(t) for t in taus], order=order)
        for tau in taus:
            run, prefix = found.runs[float(tau)], f"run/{name}/tau_{tau}/"
            np.testing.assert_array_equal(run.removed, data[prefix + "removed"], err_msg=prefix)
            np.testing.assert_array_equal(run.kept, data[prefix + "kept"])
            assert_close(run.kl, data[prefix + "kl"], atol=1e-5, err_msg=prefix)
            assert_close(run.min_margin, data[prefix + "min_margin"], atol=1e-5)
            assert_close(run.final_kl, run.checked_kl, atol=1e-5)
            assert run.n_kept == data[prefix + "n_kept"]


def test_scores_of_several_thresholds(loaded):
    data, task = loaded
    for name, taus in orders(data):
        order = data[f"run/{name}/tau_{taus[0]}/order"]
        found = acdc(task, taus=(0.1, 0.01, 0.001), order=order)
        np.testing.assert_allclose(found.scores, data[f"scores/{name}"], rtol=1e-6)
