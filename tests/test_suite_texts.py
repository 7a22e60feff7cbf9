"""Suite `texts`, and what `explanations` attaches: texts for the explorer say what the model says."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxablate import features
from jaxablate.classifier.explanation import attention_patterns, explain
from jaxablate.features.sae import init
from jaxablate.reports import schemas
from jaxablate.reports import texts as data
from jaxablate.reports.packed import unpack
from jaxablate.runs.run import open_run
from jaxablate.suites import explanations
from jaxablate.suites import texts as suite
from jaxablate.suites.perplexity import token_losses

LENGTH = 24
SITE = "clean.layer_1.mlp_out"


@pytest.fixture(scope="module")
def run(language_run):
    return open_run(language_run)


@pytest.fixture(scope="module")
def passages(run):
    return [*suite.stories(run.splits["valid"].tokens, count=2, length=LENGTH), *suite.prompts(run, 1)]


@pytest.fixture(scope="module")
def autoencoder():
    sae = init(jax.random.key(0), features.AutoencoderConfig(d_in=16, d_sae=40))
    return features.SavedAutoencoder(sae, SITE, None, {})


@pytest.fixture(scope="module")
def found(run, passages, autoencoder):
    return suite.evaluate(run.model, run.params, passages, run.tokenizer, means=suite._means(run),
                          autoencoders=[("mine", autoencoder)], params_digest=run.digest, step=run.step)


def _ids(found, packed):
    """Token ids of places in the vocabulary."""
    return unpack(found.vocabulary.ids)[unpack(packed)]


PADDED = 32


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens):
    return model.apply({"params": params}, tokens)


def _padded(ids):
    """One text as a batch, filled up with another token than in the suite."""
    return np.pad(np.array(ids, np.int32), (0, PADDED - len(ids)), constant_values=7)[None]


def _output(run, passage):
    """All activations of a text."""
    n = len(passage.tokens)
    return jax.tree.map(lambda x: np.asarray(x)[:, :n], _apply(run.model, run.params, _padded(passage.tokens)))


def test_stories_are_drawn_from_the_split_and_cut(run):
    file = run.splits["valid"].tokens
    drawn = suite.stories(file, count=3, length=LENGTH, seed=1)
    assert [p.story for p in drawn] == sorted({p.story for p in drawn}) and len(drawn) == 3
    for passage in drawn:
        start, end = file.story_offsets[passage.story : passage.story + 2]
        assert list(passage.tokens) == file.tokens[start : start + LENGTH].tolist()
        assert passage.following == (file.tokens[start + LENGTH] if end - start > LENGTH else None)
    assert drawn == suite.stories(file, count=3, length=LENGTH, seed=1)
    whole = suite.stories(file, count=10**6, length=10**6)
    assert len(whole) == file.n_stories and all(p.following is None for p in whole)


def test_tokens_are_the_text_and_strings_their_own(run, passages, found):
    assert [x.title for x in found.texts] == [p.title for p in passages]
    for text, passage in zip(found.texts, passages, strict=True):
        assert _ids(found, text.tokens).tolist() == list(passage.tokens)
        strings = [found.vocabulary.strings[i] for i in unpack(text.tokens)]
        assert "".join(strings) == run.tokenizer.decode(passage.tokens)
    clean, corrupt = found.texts[-2:]
    assert clean.kind == corrupt.kind == "prompt" and clean.story is None
    assert unpack(found.vocabulary.ids)[clean.following] == passages[-2].following


def test_losses_and_predictions_are_those_of_both_streams(run, passages, found):
    for i in (0, 2):  # a story and a prompt
        text, passage = found.texts[i], passages[i]
        n = len(passage.tokens)
        batch = {"inputs": _padded(passage.tokens), "targets": _padded(passage.tokens[1:])}
        expected = token_losses(run.model, run.params, batch)
        out = _output(run, passage)
        for stream, logits in (("clean", out.logits_clean[0]), ("ablated", out.logits_ablated[0])):
            loss = unpack(text.loss[stream])
            assert np.isnan(loss[0]) and loss.shape == (n,)
            np.testing.assert_allclose(loss[1:], np.asarray(expected[stream])[0, : n - 1], rtol=1e-4, atol=1e-5)
            p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
            candidates, told = _ids(found, text.predictions.tokens), unpack(text.predictions.probabilities[stream])
            assert candidates.shape == told.shape == (n, suite.CANDIDATES)
            np.testing.assert_allclose(told, np.take_along_axis(p, candidates, axis=1), atol=1e-4)
        assert (candidates[:-1, 0] == passage.tokens[1:]).all()  # what does follow comes first
        assert all(len(set(row)) == suite.CANDIDATES for row in candidates.tolist())


def test_the_likeliest_of_either_stream_are_among_the_candidates(run, passages, found):
    text, out = found.texts[0], _output(run, passages[0])
    candidates = _ids(found, text.predictions.tokens)
    for logits in (out.logits_clean[0], out.logits_ablated[0]):
        assert all(best in row for best, row in zip(logits.argmax(-1), candidates, strict=True))


def test_winners_are_the_open_gates_and_what_passes_them(run, passages, found):
    text, out, config = found.texts[1], _output(run, passages[1]), run.model.config
    for kind, k in (("neurons", config.k_neurons), ("channels", config.k_attention)):
        winners = text.winners[kind]
        units, values = unpack(winners.units), unpack(winners.values)
        assert units.shape == (config.n_layers, LENGTH, k) and (unpack(winners.open) == k).all()
        assert (unpack(winners.gates) == 1).all()
        for layer, x in enumerate(out.layers):
            gates = (x.neuron_gates if kind == "neurons" else x.attention_gates)[0]
            passed = x.neurons("ablated")[0] if kind == "neurons" else x.ablated.head_out[0].reshape(LENGTH, -1) * gates
            assert (np.sort(units[layer], axis=-1) == np.nonzero(gates)[1].reshape(LENGTH, k)).all()
            expected = np.take_along_axis(passed, units[layer].astype(int), axis=1)
            np.testing.assert_allclose(values[layer], expected, atol=0.51 * winners.values.scale)
            assert (np.diff(np.abs(expected)) <= 1e-6).all()  # by falling size


def test_activations_and_attention_are_those_of_the_model(run, passages, found):
    text, out = found.texts[0], _output(run, passages[0])
    neurons, channels = (text.activations[kind] for kind in ("neurons", "channels"))
    for layer, x in enumerate(out.layers):
        for told, true in ((neurons, x.clean.mlp_post[0]), (channels, x.clean.head_out[0].reshape(LENGTH, -1))):
            largest = unpack(told.largest)[layer]
            np.testing.assert_allclose(largest, np.abs(true).max(0), rtol=1e-5)
            step = largest / suite.SHARE_STEPS
            assert (np.abs(unpack(told.values)[layer] * largest - true) <= 0.501 * step + 1e-7).all()
        for stream in ("clean", "ablated"):
            patterns = unpack(text.attention[stream])[layer]
            ends = np.cumsum(np.arange(1, LENGTH + 1))
            rows = [patterns[:, end - i : end] for i, end in enumerate(ends, start=1)]
            assert all(abs(row.sum(-1) - 1).max() < 0.501 / suite.WEIGHT_STEPS * row.shape[-1] for row in rows)
        # A head's output is its pattern's mean of values.
        pattern = np.zeros((2, LENGTH, LENGTH))
        pattern[:, *np.tril_indices(LENGTH)] = unpack(text.attention["clean"])[layer]
        heads = np.einsum("nts,snh->tnh", pattern, x.clean.value[0])
        step = np.abs(x.clean.value).max() / suite.WEIGHT_STEPS
        np.testing.assert_allclose(heads, x.clean.head_out[0], atol=0.501 * step * LENGTH)
        assert np.abs(heads - x.clean.head_out[0]).mean() < 0.5 * step


def test_leakage_is_what_random_gates_cost_more(run, passages, found):
    told = unpack(found.texts[0].leakage)
    assert np.isnan(told[0]) and np.isfinite(told[1:]).all() and np.abs(told[1:]).max() > 1e-4
    again = suite.evaluate(run.model, run.params, passages[:1], run.tokenizer, means=suite._means(run), seed=1)
    assert not np.array_equal(unpack(again.texts[0].leakage), told, equal_nan=True)  # other random gates
    assert np.corrcoef(unpack(again.texts[0].leakage)[1:], told[1:])[0, 1] > 0.5
    short = dataclasses.replace(run, splits={"valid": dataclasses.replace(
        run.splits["valid"], batches=lambda: iter([next(run.splits["valid"].batches())]))})
    assert suite._means(short) is None


def test_latents_are_the_strongest_of_the_autoencoder(run, passages, found, autoencoder):
    text = found.texts[0]
    x, _ = features.forward(run.model, run.params, np.array([passages[0].tokens]), (SITE,))
    expected = np.asarray(autoencoder.sae.encode(x[SITE][0]))
    (latents,) = text.latents
    units, values, active = unpack(latents.units), unpack(latents.values), unpack(latents.active)
    assert found.autoencoders == (data.Autoencoder(name="mine", site=SITE, latents=40),)
    assert (active == (expected > 0).sum(-1)).all() and 0 < active.max() <= units.shape[1]
    for t, row in enumerate(expected):
        shown = units[t] != data.NONE
        assert shown.sum() == active[t]
        np.testing.assert_allclose(values[t][shown], row[units[t][shown]], atol=latents.values.scale)
        assert (values[t][~shown] == 0).all()


def test_large_arrays_are_of_prompts_first_and_as_many_as_there_is_room(run, passages, found, monkeypatch):
    assert all(x.activations and x.attention for x in found.texts)
    of_prompts = sum(_large_bytes(x) for x in found.texts[-2:])
    monkeypatch.setattr(suite, "LARGE_BYTES", of_prompts)
    few = suite.evaluate(run.model, run.params, passages, run.tokenizer)
    assert [x.activations is not None for x in few.texts] == [False, False, True, True]
    assert [x.attention is not None for x in few.texts] == [False, False, True, True]
    assert few.texts[0].leakage is None and few.texts[0].loss == found.texts[0].loss


def _large_bytes(text):
    return (sum(unpack(x.values).size for x in text.activations.values())
            + sum(unpack(x).size for x in text.attention.values()) // 2)


def test_what_is_attached_follows_its_schema(found, classifier_run, monkeypatch):
    validate = pytest.importorskip("jsonschema", reason="the extra test brings it").validate
    monkeypatch.setattr(explanations, "SHORTEST", 3)
    run = open_run(classifier_run)
    read = explanations.read(run.model, run.params, run.splits["test"].batches(), run.tokenizer,
                             run.splits["test"].texts)
    for texts in (found, read):
        stored = json.loads(json.dumps(dataclasses.asdict(texts), allow_nan=False))
        validate(stored, schemas.schema("texts"))
        with pytest.raises(Exception, match="is not valid under any of the given schemas"):
            validate(stored | {"step": "one"}, schemas.schema("texts"))


def test_a_baseline_has_one_stream_and_no_gates(baseline_run):
    run = open_run(baseline_run)
    result, options = suite.SUITE.run(run)
    found = result.attachments["texts"]
    assert found.streams == ("clean",) and (found.params_digest, found.step) == (run.digest, run.step)
    assert options["stories"] == suite.STORIES and len(found.texts) == suite.STORIES + 2 * suite.PROMPTS
    for text in found.texts:
        assert text.winners is None and text.leakage is None and list(text.attention) == ["clean"]
    assert result.headline() == () and len(result.panels()[0].rows) == len(found.texts)
    stored = json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert json.dumps(dataclasses.asdict(suite.SUITE.run(run)[0].attachments["texts"])) == stored  # deterministic


def test_texts_of_a_classifier_are_its_explanations(classifier_run, monkeypatch):
    monkeypatch.setattr(explanations, "SHORTEST", 3)
    run = open_run(classifier_run)
    result, _ = explanations.SUITE.run(run)
    found = result.attachments["texts"]
    split = run.splits["test"]
    assert found.classes == ("negative", "positive") and len(found.texts) > 1
    for text in found.texts:
        words = [found.vocabulary.strings[i] for i in unpack(text.tokens)]
        ids = unpack(found.vocabulary.ids)[unpack(text.tokens)]
        assert " ".join(words) == split.texts[text.text]
        x = explain(run.model, run.params, ids.tolist(), words, pad_id=run.tokenizer.pad_id)
        assert text.probabilities == {"clean": x.probabilities}
        np.testing.assert_allclose(unpack(text.keep), x.keep, rtol=1e-6)
        np.testing.assert_allclose(unpack(text.gradient["clean"]), x.gradient_x_input, rtol=1e-6)
        (reading,) = text.readings
        assert unpack(reading.neurons).tolist() == list(x.neurons) and reading.active_neurons == x.active_neurons
        np.testing.assert_allclose(unpack(reading.activations), x.activations,
                                   atol=0.51 * reading.activations.scale)
        patterns = unpack(reading.attention)
        symmetric = (patterns + patterns.swapaxes(1, 2)).mean(0) / 2
        np.testing.assert_allclose(symmetric, x.attention, atol=0.01)
        heads = attention_patterns(run.model, run.params, ids.tolist(), pad_id=run.tokenizer.pad_id)["clean"]
        np.testing.assert_allclose(heads.sum(-1), 1, rtol=1e-5)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_split_without_fitting_texts_attaches_nothing(classifier_run):
    result, options = explanations.SUITE.run(open_run(classifier_run))
    assert result.attachments == {} and options["read"] == 0
