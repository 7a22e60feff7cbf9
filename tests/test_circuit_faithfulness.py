"""Faithfulness: curves by hand and on a model, completeness, minimality, ROC, bootstrap draws."""

import numpy as np
import pytest
from helpers.toy_circuits import patched_metrics, problem

from jaxablate import circuits
from jaxablate.circuits import effects, random_scores
from jaxablate.circuits.faithfulness import (
    PERCENTS,
    Completeness,
    Curve,
    Faithfulness,
    completeness,
    faithfulness,
    metric_values,
    minimality,
    prompt_draws,
    roc,
)
from jaxablate.circuits.patching import source_run
from jaxablate.errors import ConfigError, DataError


def n_edges():
    return problem().graph.n_edges


def metrics_of(*kept, task=None):
    """[m, n] by the plain patched run."""
    return patched_metrics(task or problem(), ~np.array(kept))


def curve(values, percents=(0.0, 50.0, 100.0)):
    """Two prompts, of which the model answers the second one twice as well; nothing patched 4, everything 1."""
    values = np.array(values, float)[:, None] * np.array([2 / 3, 4 / 3])
    return Curve(percents=percents, edges=(0, 1, 2), values=values, model=np.array([8 / 3, 16 / 3]),
                 empty=np.array([2 / 3, 4 / 3]))


def test_curves_made_by_hand():
    perfect = curve([4, 4, 4])
    np.testing.assert_allclose(perfect.faithfulness(), 1)
    assert perfect.area() == pytest.approx(1) and perfect.distance() == pytest.approx(0)
    line = curve([1, 2.5, 4])
    np.testing.assert_allclose(line.faithfulness(), [0, 0.5, 1])
    assert line.area() == pytest.approx(0.5) and line.distance() == pytest.approx(0.5)
    above = curve([1, 7, 4])  # f = 0, 2, 1: a circuit better than the model is far from it all the same
    assert above.area() == pytest.approx(1.25) and above.distance() == pytest.approx(0.75)
    uneven = curve([1, 2.5, 4], (0.0, 10.0, 100.0))
    assert uneven.area() == pytest.approx(0.1 * 0.25 + 0.9 * 0.75)
    both = Faithfulness(signed=above, absolute=line)
    assert both.cpr() == pytest.approx(1.25) and both.cmd() == pytest.approx(0.5)


def test_drawn_prompts_are_averaged_before_the_ratio():
    values = Curve(percents=(1.0,), edges=(1,), values=np.array([[1.0, 4.0]]), model=np.array([2.0, 4.0]),
                   empty=np.array([0.0, 0.0]))
    np.testing.assert_allclose(values.faithfulness(), 5 / 6)
    np.testing.assert_allclose(values.faithfulness(np.array([0, 0, 1])), 6 / 8)
    nothing = Curve(percents=(1.0,), edges=(1,), values=np.ones((1, 1)), model=np.ones(1), empty=np.ones(1))
    assert np.isnan(nothing.faithfulness()).all()


def test_draws_are_reproducible():
    first, again, other = ([d.tolist() for d in prompt_draws(9, draws=3, seed=s)] for s in (0, 0, 1))
    assert first == again != other and all(len(d) == 9 and set(d) <= set(range(9)) for d in first)


@pytest.mark.parametrize(("stream", "metric", "kind", "search"), [
    ("clean", "logit_difference", "resample", "top"), ("ablated", "logit_difference", "mean_per_position", "greedy"),
    ("clean", "kl", "zero", "greedy"), ("ablated", "kl", "mean", "top")])
def test_faithfulness_is_exactly_one_with_all_edges_and_zero_without(stream, metric, kind, search):
    task = problem(stream, metric, kind)
    found = faithfulness(task, random_scores(task.graph, 0), search=search, percents=(0.0, 5.0, 50.0, 100.0))
    for c in (found.signed, found.absolute):
        assert c.faithfulness()[0] == 0 and c.faithfulness()[-1] == 1
        assert c.edges[0] == 0 and c.edges[-1] == n_edges()
        np.testing.assert_allclose(c.model, metrics_of(np.ones(n_edges(), bool), task=task)[0], atol=1e-5)
    rows = np.array([2, 2, 0])
    assert found.signed.faithfulness(rows)[-1] == 1 and np.isfinite([found.cpr(rows), found.cmd(rows)]).all()


def test_values_are_those_of_patched_runs():
    kept = np.random.default_rng(0).random((3, n_edges())) < [[0.2], [0.8], [0.5]]
    got = metric_values(problem(), kept[[0, 1, 0, 2]])
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_allclose(got[[0, 1, 3]], metrics_of(*kept), atol=1e-5)
    assert got.shape == (4, 3) and metric_values(problem(), kept[:0]).shape == (0, 3)


def test_sizes_are_the_stated_shares_and_ranking_turns_with_the_metric():
    """An edge that lowers the logit difference when patched comes first."""
    scores = effects(problem())
    found = faithfulness(problem(), scores, search="greedy")
    assert found.signed.percents == PERCENTS
    limits = [int(q * n_edges() / 100) for q in PERCENTS]
    assert all(e <= limit for e, limit in zip(found.signed.edges, limits, strict=True))
    worst = faithfulness(problem(), -scores, search="greedy")
    assert found.signed.values[7].mean() > worst.signed.values[7].mean()  # 20 %: up to nine edges
    assert found.absolute.edges == worst.absolute.edges and found.cmd() == worst.cmd()


def test_completeness_compares_the_circuit_and_the_model_without_the_same_edges():
    kept = np.random.default_rng(1).random(n_edges()) < 0.5
    found = completeness(problem(), kept, samples=4, seed=3)
    assert found.circuit.shape == found.without.shape == (5, 3)
    np.testing.assert_array_equal(found.circuit[0], found.empty)
    np.testing.assert_allclose(found.without[0], metrics_of(~kept)[0], atol=1e-5)
    f = (found.without[0].mean() - found.empty.mean()) / (found.model.mean() - found.empty.mean())
    assert found.complement() == pytest.approx(f) and found.incompleteness()[0] == pytest.approx(abs(f))
    again = completeness(problem(), kept, samples=4, seed=3)
    np.testing.assert_array_equal(found.without, again.without)
    assert (np.ptp(found.without[1:], axis=0) > 0).all()  # the subsets differ


def test_the_whole_model_is_complete_and_no_edge_at_all_is_not():
    whole, none = (completeness(problem(), np.full(n_edges(), x), samples=2) for x in (True, False))
    np.testing.assert_array_equal(whole.incompleteness(), 0)
    assert whole.complement() == 0
    assert none.complement() == 1 and (none.incompleteness() == 1).all()
    hand = Completeness(circuit=np.array([[0.0], [2.0]]), without=np.array([[1.0], [3.0]]), model=np.array([4.0]),
                        empty=np.array([0.0]))
    assert hand.complement() == 0.25 and hand.incompleteness().tolist() == [0.25, 0.25]


def test_minimality_takes_each_edge_out_of_the_circuit():
    kept = np.random.default_rng(2).random(n_edges()) < 0.4
    found = minimality(problem(), kept)
    np.testing.assert_array_equal(found.edges, np.flatnonzero(kept))
    without = kept.copy()
    without[found.edges[3]] = False
    change = np.subtract(*metrics_of(without, kept).mean(1))
    assert found.changes()[3] == pytest.approx(change, abs=1e-5)
    drawn, again = (minimality(problem(), kept, count=4, seed=5) for _ in range(2))
    np.testing.assert_array_equal(drawn.edges, again.edges)
    assert drawn.edges.size == 4 and drawn.changes(np.array([1, 1])).shape == (4,)
    of_model = minimality(problem(), np.ones(n_edges(), bool))
    np.testing.assert_allclose(of_model.changes(), effects(problem()), atol=1e-5)


def test_roc_of_perfect_reversed_equal_and_infinite_scores():
    truth = np.array([True, True, False, False, False])
    assert roc(np.array([5.0, np.inf, 3, 2, 2]), truth).auc == 1
    assert roc(-np.array([5.0, 4, 3, 2, 2]), truth).auc == 0
    flat = roc(np.zeros(5), truth)
    assert flat.auc == 0.5 and flat.true_positive.tolist() == flat.false_positive.tolist() == [0, 1]
    curve = roc(np.array([4.0, 1, 4, 2, 0]), truth)
    assert curve.true_positive.tolist() == [0, 0.5, 0.5, 1, 1]
    np.testing.assert_allclose(curve.false_positive, [0, 1 / 3, 2 / 3, 2 / 3, 1])


def test_auc_counts_pairs_and_ties_half():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    inside, outside = scores[truth][:, None], scores[~truth]
    assert roc(scores, truth).auc == pytest.approx(((inside > outside) + 0.5 * (inside == outside)).mean())


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: faithfulness(problem(), np.zeros(n_edges()), percents=(5.0, 1.0)), ConfigError, "must ascend within 0"),
    (lambda: faithfulness(problem(), np.zeros(n_edges()), percents=(1.0, 101.0)), ConfigError, "must ascend within 0"),
    (lambda: faithfulness(problem(), np.zeros(3)), DataError, "one number for each of the graph's"),
    (lambda: metric_values(problem(), np.ones(n_edges(), bool)), DataError, r"give bool \[circuits, "),
    (lambda: completeness(problem(), np.ones(n_edges())), DataError, "give one bool for each of"),
    (lambda: minimality(problem(), np.zeros(n_edges(), bool)), DataError, "keeps no edge"),
    (lambda: minimality(problem(), np.ones(n_edges(), bool), count=0), ConfigError, "count=0 must be at least 1"),
    (lambda: roc(np.zeros(3), np.ones(3, bool)), DataError, "has 3 of 3 edges"),
    (lambda: roc(np.full(3, np.nan), np.array([True, False, True])), DataError, "none of them NaN"),
])
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_corrupt_run_that_is_the_clean_one_leaves_nothing_to_explain():
    task = circuits.Problem(config=problem().config, params=problem().params, pairs=problem().pairs)
    task.__dict__["replacement"] = source_run(task.decoder, task.params, task.inputs).sources
    with pytest.raises(DataError, match="nothing to explain"):
        faithfulness(task, np.zeros(n_edges()))
