"""The suite `circuits` on a model whose circuit is known."""

import dataclasses
import json

import numpy as np
import pytest

from jaxablate.circuits import METHODS, Method, known_model, problem
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.formats import save_circuit
from jaxablate.circuits.graph import Graph
from jaxablate.commands.score import ScoreSettings
from jaxablate.config import Config
from jaxablate.errors import ConfigError
from jaxablate.reports import circuits as data
from jaxablate.reports import schemas
from jaxablate.reports.html import draw
from jaxablate.reports.packed import unpack
from jaxablate.reports.panels import CircuitGraph, Grid, panel_from_dict
from jaxablate.runs.run import Run, open_run
from jaxablate.stats import Estimate
from jaxablate.suites import circuits as suite
from jaxablate.suites.circuits import measure_stream, nothing_to_explain

TAUS = (0.1, 0.03)


@pytest.fixture(scope="module")
def known():
    return known_model(seed=0)


@pytest.fixture(scope="module")
def measured(found):
    return found[0]


@pytest.fixture(scope="module")
def found(known):
    """What was measured and the explorer's edges, with a method of a user's own among those that are ranked."""
    METHODS.register(Method("known", "my method", lambda problem, **_: -known.mask().astype(float)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "PRUNE_STEPS", 60)
        patch.setattr(suite, "PRUNE_SEEDS", 1)
        yield _measure(known)
    del METHODS._parts["known"]


def _measure(known):
    everything = known.pairs(36)
    batches = [everything.take(range(12 * i, 12 * i + 12)) for i in range(3)]
    return measure_stream(known.config, known.params, batches, everything, "clean", taus=TAUS, orders=2,
                          random_models=2, seed=0)


def test_circuits_are_the_known_one_in_every_variation(known, measured):
    truth = set(known.edges())
    for _, edges in measured.circuits:
        assert {name for name, _ in edges} == truth
        assert all(score > 0 for _, score in edges)  # each helps the answer
    by = {(c.varied, c.tau): c for c in measured.counts}
    assert set(by) == {(varied, tau) for varied in ("prompts", "order", "random weights") for tau in TAUS}
    for tau in TAUS:
        assert by["prompts", tau].counts == (len(truth),) * 3
        assert by["order", tau].counts == (len(truth),) * 2
        assert by["prompts", tau].edges.interval == (len(truth), len(truth))
    few = by["random weights", 0.1].edges
    assert few.value < len(truth) and few.low >= 0


def test_quality_of_the_known_circuit(known, measured):
    assert measured.competence.accuracy.value == 1
    for quality in measured.quality:
        assert quality.edges == len(known.edges())
        assert quality.faithfulness.value == pytest.approx(1, abs=0.05)
        assert quality.complement < 0.1
        assert quality.idle == 0


def test_rankings_know_more_than_chance(measured):
    by = {r.method: r for r in measured.rankings}
    assert set(by) == {"EAP", "EAP-IG", "mask gradient", "single edges", "edge pruning", "random", "my method"}
    for method, ranking in by.items():
        low, high = ranking.cmd.interval
        assert low <= ranking.cmd.value <= high
        assert ranking.faithfulness[-1] == 1  # all edges
        if method != "random":
            assert ranking.cmd.value < by["random"].cmd.value
    assert by["single edges"].cmd.value < 0.1


def test_a_method_that_is_trained_stands_beside_its_nulls(measured):
    rows = {row.group: row for method, row in measured.nulls if method == "edge pruning"}
    assert list(rows) == ["model", "random weights", "nonsense task"]
    assert all(len(row.by_seed) == 1 and row.prompts == 6 for row in rows.values())
    assert rows["model"].explained.value > 0.9 and rows["model"].all_patched > 1 > rows["random weights"].all_patched
    result = suite.CircuitsResult(task="known", prompts=12, n_layers=3, streams=(measured,))
    panel = next(p for p in result.panels() if p.title == "Circuits by training, beside nulls")
    assert [row[2] for row in panel.rows] == list(rows)


def test_result_is_shown_and_survives_json(known, measured):
    result = suite.CircuitsResult(task="known", prompts=12, n_layers=known.config.n_layers, streams=(measured,))
    names = [figure.name for figure in result.headline()]
    assert len(names) == len(set(names))
    assert "edges tau 0.03 clean" in names and "edges tau 0.03 clean, random weights" in names
    panels = result.panels()
    graph = next(p for p in panels if isinstance(p, CircuitGraph))
    assert len(graph.edges) == len(known.edges())
    for panel in panels:
        stored = json.loads(json.dumps(dataclasses.asdict(panel), allow_nan=False))
        assert panel_from_dict(stored) == panel
        assert isinstance(panel, Grid) or draw(panel)


def test_explorer_has_the_edges_of_circuits_and_of_the_largest_scores(known, found, monkeypatch):
    measured, shown = found
    names = [f"{shown.sources[i]}->{shown.destinations[j]}"
             for i, j in zip(unpack(shown.source).tolist(), unpack(shown.destination).tolist(), strict=True)]
    assert len(names) == len(set(names)) == shown.edges == measured.edges  # all of so small a graph
    truth = np.array([name in set(known.edges()) for name in names])
    for circuit in shown.circuits:
        assert (unpack(circuit.kept) == truth).all() and circuit.edges == truth.sum()
    drops = dict(measured.circuits[0][1])
    for name, drop in zip(names, unpack(shown.scores["EAP-IG"]).tolist(), strict=True):
        assert drop == pytest.approx(drops.get(name, drop), rel=1e-5)
    assert {curve.method for curve in shown.curves} == set(shown.scores)
    monkeypatch.setattr(suite, "SHOWN_EDGES", 3)
    monkeypatch.setattr(suite, "SHOWN_OF_OTHERS", 0)
    scores, graph = np.zeros(measured.edges), Graph.of(known.config)
    scores[[5, 6, 7, 8]] = [-4.0, 1.0, 2.0, 3.0]
    mine = np.arange(measured.edges) == 9
    few = suite.shown_edges(measured, graph, {"EAP-IG": scores}, {"mine": (mine, Estimate(0.5))})
    assert unpack(few.scores["EAP-IG"]).tolist() == [-4.0, 2.0, 3.0, 0.0]
    assert unpack(few.circuits[0].kept).tolist() == [0, 0, 0, 1]
    assert (few.circuits[0].name, few.circuits[0].edges, few.circuits[0].faithfulness.value) == ("mine", 1, 0.5)


def test_what_is_attached_follows_its_schema(found):
    validate = pytest.importorskip("jsonschema", reason="the extra test brings it").validate
    shown = data.TaskEdges(params_digest="0", step=1, task="known", prompts=12, n_layers=3, n_heads=2,
                           shown_method="EAP-IG", streams=(found[1],))
    validate(json.loads(json.dumps(dataclasses.asdict(shown), allow_nan=False)), schemas.schema("circuits"))


def test_circuits_of_the_command_are_shown_too(known, tmp_path):
    graph = Graph.of(known.config)
    run = Run(config=Config(), model=None, params=known.params, workdir=tmp_path)
    mask = np.arange(graph.n_edges) < 3
    for name, about in (("mine", {}), ("other", {"params_digest": "another model's"}), ("odd", {"stream": "third"})):
        about = {"stream": "clean", "params_digest": run.digest} | about
        (tmp_path / "circuits" / name).mkdir(parents=True)
        save_circuit(Circuit(graph=graph, kept=mask, scores=np.zeros(graph.n_edges), about=about),
                     tmp_path / "circuits" / name / "circuit.json")
    (tmp_path / "circuits" / "mine" / "circuit.mib.json").write_text("{}")
    found = suite.stored_circuits(run, graph)
    assert list(found["clean"]) == ["mine"] and not found["ablated"]
    assert (found["clean"]["mine"] == mask).all()


@pytest.mark.parametrize("streams", [("clean",), ("clean", "ablated")])
def test_streams_that_are_not_asked_for_are_not_searched(language_run, monkeypatch, streams):
    monkeypatch.setattr(suite, "measure_stream", lambda config, params, batches, everything, stream, **_: (stream, 0))
    result, _ = suite.SUITE.run(open_run(language_run, circuit_streams=streams))
    assert result.streams == streams
    with pytest.raises(ConfigError, match="circuit_streams must have clean"):
        ScoreSettings(workdir=language_run, circuit_streams=("ablated",))


def test_divergence_of_everything_patched_is_that_of_the_corrupt_prompts(known, measured):
    pairs = known.pairs(36).take(range(12))
    corrupt = dataclasses.replace(pairs, clean=pairs.corrupt, answers=pairs.wrong_answers, wrong_answers=pairs.answers)
    logits = [np.asarray(problem(known.config, known.params, x).logits) for x in (pairs, corrupt)]
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in logits)
    assert measured.all_patched == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)


def test_needs_room_for_its_prompts():
    config = Config()
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, context_length=16),
                                train=dataclasses.replace(config.train, sequence_length=16))
    assert "up to 32 tokens" in suite.SUITE.reason_against(short)
    assert suite.SUITE.reason_against(config) is None


def test_where_there_is_nothing_to_explain_no_share_is_given(known, monkeypatch):
    monkeypatch.setattr(suite, "PRUNE_STEPS", 2)
    monkeypatch.setattr(suite, "PRUNE_SEEDS", 1)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40)
    assert nothing_to_explain(noise - noise.mean(), np.zeros(40), seed=0)
    assert not nothing_to_explain(noise + 5, np.zeros(40), seed=0)
    blind = {**known.params, "embed": {"embedding": np.zeros_like(known.params["embed"]["embedding"])}}
    everything = known.pairs(12)
    measured, _ = measure_stream(known.config, blind, [everything, everything], everything, "clean", taus=(0.1,),
                              orders=0, random_models=0, seed=0)
    assert measured.rankings[0].cpr.value is None and measured.quality[0].faithfulness.value is None
    result = suite.CircuitsResult(task="known", prompts=12, n_layers=3, streams=(measured,))
    values = [f.estimate for f in result.headline()]
    json.dumps([dataclasses.asdict(x) for x in (*values, *result.panels())], allow_nan=False)
