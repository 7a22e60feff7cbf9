"""Every decision of AutoCircuit's ACDC, edge by edge, from the fixtures and the golden figures."""

import dataclasses
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


@pytest.fixture(scope="module")
def searches(loaded):
    """(name of the order, thresholds as the file writes them, the search that our code makes in it)."""
    data, task = loaded
    keys = [name.split("/") for name in data.files if name.startswith("run/") and name.endswith("/order")]
    taus: dict[str, list[str]] = {}
    for _, order, tau, _ in keys:
        taus.setdefault(order, []).append(tau.removeprefix("tau_"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[acdc.__module__], "WIDEST", 8)  # narrow calls: there is less to compile
        return [(name, given, acdc(task, taus=list(map(float, given)), order=data[f"run/{name}/tau_{given[0]}/order"]))
                for name, given in taus.items()]


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
        log_probs = jax.nn.log_softmax(np.asarray(run.final) @ np.asarray(task.decoder.unembedding(task.params)).T)
        assert_close(log_probs, data[f"{which}_logprobs_last"], atol=2e-5, ulps=64)  # -8 was seen 2.1e-5 off
        sources = np.asarray(run.sources)
        centred = (sources - sources.mean(-1, keepdims=True)).reshape(len(sources), -1)
        assert_close(np.linalg.norm(centred, axis=1), data[f"src_out_norm_{which}"], rtol=1e-5)


def test_single_edges_and_all_edges(loaded):
    data, task = loaded
    exact = ExactDivergence(task)
    edges = len(data["edge_names"])
    assert_close([exact(one) for one in np.eye(edges, dtype=bool)], data["single_edge_kl"], atol=1e-5)
    assert_close(exact(np.ones(edges, bool)), data["all_patched_kl"], atol=1e-5)
    assert_close(exact(np.ones(edges, bool)), data["corrupt_kl"], atol=1e-5)


def test_every_decision(loaded, searches):
    data, _ = loaded
    assert searches
    for name, taus, found in searches:
        for tau in taus:
            run, prefix = found.runs[float(tau)], f"run/{name}/tau_{tau}/"
            np.testing.assert_array_equal(run.removed, data[prefix + "removed"], err_msg=prefix)
            np.testing.assert_array_equal(run.kept, data[prefix + "kept"])
            assert_close(run.kl, data[prefix + "kl"], atol=1e-5, err_msg=prefix)
            assert_close(run.min_margin, data[prefix + "min_margin"], atol=1e-5)
            assert_close(run.final_kl, run.checked_kl, atol=1e-5)
            assert run.n_kept == data[prefix + "n_kept"]


def test_scores_of_several_thresholds(loaded, searches):
    """The file's scores are of three of its thresholds."""
    data, _ = loaded
    for name, _, found in searches:
        three = dataclasses.replace(found, runs={tau: found.runs[tau] for tau in (0.1, 0.01, 0.001)})
        np.testing.assert_allclose(three.scores, data[f"scores/{name}"], rtol=1e-6)
