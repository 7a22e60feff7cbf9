"""The data of the explorer's view of units, against the model run anew."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import few_draws

from jaxablate import features
from jaxablate.neurons.units import decoder_output
from jaxablate.reports.packed import unpack
from jaxablate.runs.run import open_run
from jaxablate.suites import SUITES, units
from jaxablate.suites.texts import Vocabulary

SITE = "clean.layer_0.mlp_out"


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        few_draws(patch)
        patch.setattr(units, "SHUFFLES", 2)
        patch.setattr(units, "LATENT_DIRECTIONS", 8)
        yield


@pytest.fixture(scope="module")
def run(language_run):
    opened = dataclasses.replace(open_run(language_run), facts=None)  # which the page of units has nothing of
    sae = features.sae.init(jax.random.key(3), features.AutoencoderConfig(d_in=16, d_sae=24))
    features.save(language_run / "autoencoders" / "mine", sae, SITE, model=opened.model.config, params=opened.params)
    return opened


@pytest.fixture(scope="module")
def found(run):
    return units.collect(run)


@pytest.fixture(scope="module")
def out(run, found):
    ids = {run.tokenizer.decode([i]): i for i in range(run.tokenizer.vocab_size)}
    tokens = np.array([ids[word] for word in found.vocabulary])[unpack(found.text)]
    return tokens, decoder_output(run.model, run.params, jnp.asarray(tokens))


def group(found, name):
    return next(g for g in found.groups if g.name == name)


def test_every_unit_has_a_number_and_a_page(run, found):
    assert [g.name for g in found.groups] == [
        "neuron-0", "neuron-1", "channel-0", "channel-1", "neuron-gate-0", "neuron-gate-1", "channel-gate-0",
        "channel-gate-1", "mine"]
    assert [g.first for g in found.groups] == np.cumsum([0, *(g.n for g in found.groups)])[:-1].tolist()
    assert [g.n for g in found.groups] == [64, 64, 16, 16, 64, 64, 16, 16, 24]
    assert found.params_digest == run.digest and found.vocabulary[found.end] == "<|endoftext|>"
    for g in found.groups:
        for field in dataclasses.fields(g):
            value = getattr(g, field.name)
            if hasattr(value, "shape"):
                assert value.shape[0] == g.n and np.isfinite(unpack(value)).all(), (g.name, field.name)


def test_gates_fire_where_they_are_open_and_are_ranked_by_their_scores(found, out):
    tokens, output = out
    mask = np.ones(tokens.shape, bool)
    mask.flat[found.tokens :] = False
    for name, gates in (("neuron-gate-1", output.layers[1].neuron_gates),
                        ("channel-gate-0", output.layers[0].attention_gates)):
        page, opened = group(found, name), np.asarray(gates)[mask]
        np.testing.assert_allclose(unpack(page.rate), opened.mean(0), rtol=3e-4, atol=1e-7)
        assert unpack(page.histogram).sum() == opened.sum()
        places = unpack(page.places)[:, 0]
        for unit in np.flatnonzero(places >= 0):
            assert np.asarray(gates).reshape(-1, page.n)[places[unit], unit] == 1


def test_contexts_hold_what_the_unit_does_there(found, out):
    _, output = out
    neurons = np.asarray(output.layers[1].clean.mlp_post).reshape(-1, 64)
    page = group(found, "neuron-1")
    places, around, strongest = (unpack(x) for x in (page.places, page.around, page.strongest))
    np.testing.assert_allclose(strongest, neurons[: found.tokens].max(0).clip(0), rtol=3e-4)
    shown = places[:, 0] >= 0
    np.testing.assert_allclose(around[shown, 0, found.before], 1, atol=0.01)
    unit, number = np.nonzero(places >= 0)
    expected = np.clip(neurons[places[unit, number], unit] / strongest[unit], 0, None)
    np.testing.assert_allclose(around[unit, number, found.before], expected, atol=0.6 / units.STEPS)
    assert group(found, "channel-1").signed and unpack(group(found, "channel-1").around).min() < 0


def test_promoted_tokens_are_those_whose_logits_rise_most(run, found):
    p = run.params
    table = np.asarray(p["embed"]["embedding"])[: run.tokenizer.vocab_size] * np.asarray(p["ln_f"]["scale"])
    written = {"neuron-1": p["layer_1"]["mlp"]["down"]["kernel"],
               "channel-0": np.asarray(p["layer_0"]["attention"]["out"]["kernel"]).reshape(16, 16),
               "mine": features.load(run.workdir / "autoencoders" / "mine").sae.W_dec}
    for name, directions in written.items():
        directions = np.asarray(directions) - np.asarray(directions).mean(-1, keepdims=True)  # as the final norm does
        effect = directions @ table.T
        effect -= effect.mean(-1, keepdims=True)
        page = group(found, name)
        for sign, shown in ((1, page.promotes), (-1, page.suppresses)):
            order = np.argsort(-sign * effect, axis=1)[:, :8]
            best = np.take_along_axis(effect, order, 1)
            np.testing.assert_allclose(unpack(shown.effects), best, rtol=2e-3, atol=1e-5)
            words = np.array(found.vocabulary)[unpack(shown.tokens)[:, 0]]
            assert words.tolist() == [run.tokenizer.decode([i]) for i in order[:, 0]]
    assert group(found, "neuron-gate-0").promotes is None


def test_tokens_that_fire_a_unit_are_counted(found, out):
    tokens, output = out
    page = group(found, "neuron-gate-1")
    opened = np.asarray(output.layers[1].neuron_gates).reshape(-1, 64)[: found.tokens]
    text = unpack(found.text).reshape(-1)[: found.tokens]
    first, share, rate = (unpack(x)[:, 0] for x in (page.firing_tokens, page.firing_shares, page.firing_rates))
    for unit in np.flatnonzero(opened.sum(0)):
        counts = np.bincount(text, opened[:, unit], minlength=len(found.vocabulary))
        assert counts[first[unit]] == counts.max()
        assert share[unit] == pytest.approx(counts.max() / opened[:, unit].sum(), abs=6e-4)
        assert rate[unit] == pytest.approx(counts.max() / (text == first[unit]).sum(), abs=6e-4)
    assert tokens.shape == unpack(found.text).shape


def test_latents_have_both_nulls(found):
    page = group(found, "mine")
    assert page.site == SITE and page.layer == 0
    information = next(m for m in page.measures if m.name == "information")
    assert information.shuffled is None and np.isfinite(unpack(information.directions)).any()
    tokens = next(m for m in page.measures if m.name == "effective_tokens")
    assert (unpack(tokens.shuffled)[unpack(page.rate) > 0.01] > 1).all()


def test_the_suite_attaches_the_same_data_each_time(run, found):
    result, _ = SUITES["units"].run(run)
    assert result.attachments["units"] == found
    assert result.headline() == () and len(result.panels()[0].rows) == 9


def test_measures_of_a_short_split_are_made_once_for_both_suites(run, found, monkeypatch):
    other = dataclasses.replace(run)
    assert not other.made
    other.made["neurons"] = run.made["neurons"]
    monkeypatch.setattr("jaxablate.suites.neurons.measure", None)
    result, _ = SUITES["neurons"].run(other)
    rates = np.concatenate([unpack(g.rate) for g in found.groups if g.sort == "neuron gate"])
    gates = next(x for x in result.overall() if x.kind == "neurons gates")
    assert rates.mean() == pytest.approx(gates.rate, rel=1e-3)


def test_a_models_layers_are_left_out_where_it_has_too_many_units(run, monkeypatch):
    monkeypatch.setattr(units, "MOST_UNITS", 170)
    groups, left_out = units._groups(run.model.config, {})
    assert {g.layer for g in groups} == {1} and left_out.startswith("1 of 2 layers")


def test_graphs_of_neurons_are_shown_if_they_are_of_this_checkpoint(run, tmp_path):
    pattern = {"tokens": [[5, 6, 7, 8, 9], None, [3]], "strength": 0.75, "examples": 4}
    index = {"format": "jaxablate neuron graphs", "version": 2, "layers": [{}, {}], "units": 64,
             "about": {"step": 6, "params_digest": run.digest, "settings": {"units": "neurons"},
                       "provenance": {"revision": None, "date": "today"}},
             "neurons": [{"neuron": "1.3", "f1": 0.5, "precision": 0.6, "recall": None, "patterns": [pattern]}]}
    folder = tmp_path / "neurons" / "graphs"
    folder.mkdir(parents=True)
    own = dataclasses.replace(run, workdir=tmp_path)
    groups, _ = units._groups(run.model.config, {})
    for digest, count in ((run.digest, 1), ("another", 0)):
        index["about"]["params_digest"] = digest
        (folder / "index.json").write_text(json.dumps(index))
        words = Vocabulary()
        graphs = units._graphs(own, groups[1], words)
        assert len(graphs) == count
        if graphs:
            shown = graphs[0].patterns[0]
            assert graphs[0].unit == 3 and shown.more == (1, 0, 0)
            first = [words.strings(run.tokenizer)[i] for i in shown.tokens[0]]
            assert first == [run.tokenizer.decode([i]) for i in (5, 6, 7, 8)] and shown.tokens[1] is None
