"""The suite `neurons`: means over units, nulls beside them, what the report shows."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig
from jaxablate.data import corpus
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons import MEASURES, measure, specialisation, summarise
from jaxablate.neurons.facts import FactMeasures
from jaxablate.reports.html import draw
from jaxablate.reports.panels import Beside, Grid, panel_from_dict
from jaxablate.runs.run import Run, Split, _known_facts
from jaxablate.suites import SUITES
from jaxablate.suites import neurons as suite

DATA = DataConfig(source="embedded", tokenizer="corpus", embedded_valid_stories=30)
MODEL = ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=2, n_heads=2, d_mlp=32, k_attention=3,
                    k_neurons=4)


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Few directions, shuffles and resamples, the same for all tests, so that their programs are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "DIRECTIONS", 16)
        patch.setattr(suite, "SHUFFLES", 4)
        patch.setattr(specialisation, "DIRECTION_RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def params():
    return drawn_params(SelfAblatingTransformer(MODEL), np.zeros((1, 4), np.int32))


def batches():
    """The corpus's validation stories, as the pipeline cuts them."""
    tokens, _ = corpus.token_stream(DATA.embedded_seed, corpus.VALID_START, DATA.embedded_valid_stories)
    rows = -(-(len(tokens) - 1) // 32)
    rows += -rows % 8
    flat = np.zeros((2, rows * 32), np.int32)
    flat[0, : len(tokens) - 1], flat[1, : len(tokens) - 1] = tokens[:-1], 1
    inputs, mask = flat.reshape(2, rows, 32)
    return ({"inputs": inputs[i : i + 8], "mask": mask[i : i + 8]} for i in range(0, rows, 8))


@pytest.fixture(scope="module")
def result(few_draws, params):
    config = Config(model=MODEL, data=DATA, train=TrainConfig(sequence_length=32))
    run = Run(config=config, model=SelfAblatingTransformer(MODEL), params=params, seed=1,
              splits={"valid": Split(batches=batches)}, tokenizer=corpus.CorpusTokenizer(), **_known_facts(DATA))
    found, options = suite.SUITE.run(run)
    assert options["match_k"] == {"neurons": (4, 4), "attention": (3, 3)}
    return found


def test_units_fire_at_the_rate_that_is_asked_for(few_draws, params, result):
    """Twice the winners, twice the firing of activations; gates keep their own."""
    config = Config(model=MODEL, data=DATA, train=TrainConfig(sequence_length=32))
    run = Run(config=config, model=SelfAblatingTransformer(MODEL), params=params, match_k=8,
              splits={"valid": Split(batches=batches)}, tokenizer=corpus.CorpusTokenizer())
    found, options = suite.SUITE.run(run)
    assert set(options["match_k"].values()) == {(8, 8)}
    rates = ({x.kind: x.rate for x in of.overall()} for of in (found, result))
    more, own = rates
    assert more["neurons clean"] == pytest.approx(2 * own["neurons clean"], rel=0.1)
    assert more["neurons gates"] == own["neurons gates"]


def test_facts_are_of_the_tokens_they_stand_beside():
    facts = _known_facts(DATA)["facts"]()
    tokens, offsets = corpus.token_stream(DATA.embedded_seed, corpus.VALID_START, DATA.embedded_valid_stories)
    assert facts.tokens.tolist() == tokens.tolist()
    assert np.flatnonzero(np.diff(facts.story, prepend=-1)).tolist() == offsets.tolist()
    third = corpus.story(DATA.embedded_seed, corpus.VALID_START + 2)
    for name, values in facts.labels.items():
        assert len(values) == len(tokens) and values.max() < len(facts.names[name])
        found = values[offsets[2] : offsets[2] + len(third.tokens)]
        assert found.tolist() == third.facts.per_token[name].tolist()
    ends = facts.tokens == corpus.CorpusTokenizer.eot_id
    assert {facts.names["kind"][i] for i in facts.labels["kind"][ends]} == {"end"}


def test_a_summary_is_the_mean_over_live_units(params):
    found = measure(SelfAblatingTransformer(MODEL), params, batches, facts=_known_facts(DATA)["facts"](),
                    directions=16, shuffles=4)
    made = {(x.kind, x.layer): x for x in summarise(found, seed=0)}
    for kind, name in itertools.product(found.kinds, MEASURES):
        values = [group.measure(name) for group in found.of(kind)]
        every = np.concatenate(values)
        overall = made[kind, None].of(name)
        assert overall.mean.value == pytest.approx(every[np.isfinite(every)].mean())
        assert overall.mean.low <= overall.mean.value <= overall.mean.high
        for layer, of_layer in enumerate(values):
            assert made[kind, layer].of(name).mean.value == pytest.approx(of_layer[np.isfinite(of_layer)].mean())
        random = [group.matched(name)[np.isfinite(group.measure(name))] for group in found.of(kind)]
        random = np.concatenate(random)
        if np.isfinite(random).all():
            assert overall.directions.value == pytest.approx(random.mean())
    for kind in found.kinds:
        assert made[kind, None].live == sum(made[kind, layer].live for layer in (0, 1))
        assert made[kind, None].of("gini").shuffled is None
        shuffled = np.concatenate([g.shuffled.effective_tokens for g in found.of(kind)])
        assert made[kind, None].of("effective_tokens").shuffled == pytest.approx(np.nanmean(shuffled))


def test_suite_is_registered_and_fits_every_language_model():
    assert SUITES["neurons"] is suite.SUITE
    baseline = dataclasses.replace(Config(), model=dataclasses.replace(MODEL, ablation="none", context_length=256))
    assert suite.SUITE.reason_against(baseline) is None


def test_figures_have_intervals_and_the_null_beside_them(result):
    figures = {f.name: f for f in result.headline()}
    assert len(figures) == len(result.headline()) == 3 * 6
    for kind in ("neurons clean", "attention gates"):
        for name in (f"token information {kind}", f"token information {kind} above random"):
            bits = figures[name].estimate
            assert figures[name].unit == "bits" and bits.low <= bits.value <= bits.high


def test_panels_survive_json_and_can_be_drawn(result):
    panels = result.panels()
    titles = [panel.title for panel in panels]
    assert len(titles) == len(set(titles)) == 9
    for panel in panels:
        stored = json.loads(json.dumps(dataclasses.asdict(panel), allow_nan=False))
        assert panel_from_dict(stored) == panel
        assert isinstance(panel, Grid) or draw(panel)
    beside = next(p for p in panels if isinstance(p, Beside))
    assert all(heat.rows == tuple(corpus.LABELS) and len(heat.columns) == 6 for heat in beside.panels)
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_histograms_hold_every_unit(result):
    for histogram in result.histograms:
        units = 2 * (32 if histogram.title.startswith("neurons") else 16)
        assert sum(histogram.counts) + histogram.apart == units


def test_units_are_named_with_their_tokens(result):
    assert all(x.token for x in result.telling)
    for _, found in itertools.groupby(result.telling, key=lambda x: x.kind):
        told = [x.information for x in found]
        assert told == sorted(told, reverse=True)


def test_capacity_of_weights_is_that_of_the_formula(params):
    found = {(x.layer, x.weights): x for x in suite.weight_capacities(params, 2, seed=0)}
    w = np.asarray(params["layer_1"]["mlp"]["up"]["kernel"], np.float64).T
    gram = w @ w.T
    assert found[1, "in"].capacity.value == pytest.approx((np.diag(gram) ** 2 / (gram**2).sum(1)).mean(), rel=1e-4)
    assert found[1, "in"].capacity.value == pytest.approx(found[1, "in"].random, rel=0.1)  # these weights are random
    out = found[1, "out"].capacity
    assert out.low < out.value < out.high < 16 / 32 + 0.05


def test_expected_best_is_the_mean_over_subsets():
    values = np.array([0.3, -1.0, 2.0, 0.9, 0.4])
    for size in (1, 2, 4, 5):
        every = [max(subset) for subset in itertools.combinations(values, size)]
        assert suite.expected_best(values, size) == pytest.approx(np.mean(every))
    assert suite.expected_best(values, 9) == 2.0


def test_directions_of_which_none_fires_tell_nothing():
    """The greatest of no number was a RuntimeWarning, and NaN."""
    silent = np.full(3, np.nan)
    facts = FactMeasures(label="topic", kind="neurons clean", entropy=1.0, information=(np.array([np.nan, 0.5]),),
                         directions=(silent,), best=(0, 1), best_means=("a", "b"), accuracy=np.full(10, 0.5),
                         directions_accuracy=np.full(10, 0.5), majority=np.full(10, 0.5))
    summary, = suite.fact_summaries([facts], seed=0)
    assert summary.directions is None and summary.information == 0.5
    nothing = dataclasses.replace(facts, information=(np.full(2, np.nan),))
    assert suite.fact_summaries([nothing], seed=0)[0].information is None
