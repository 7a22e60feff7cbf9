"""Capacity and alignment, explanations of one text, ``jaxablate explain``."""

import dataclasses
import functools
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import error_of, run_command
from helpers.labelled_texts import batches
from helpers.runs import copy_run
from helpers.weights import drawn_params

from jaxablate.classifier.explanation import MOST_NEURONS, Explanation, allocate, explain
from jaxablate.config import ClassifierConfig
from jaxablate.data.tokenizer import WordTokenizer
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.classifier import SafrClassifier
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.reports import html
from jaxablate.suites import explanations
from jaxablate.suites.explanations import allocation, edge_floor, interactions, shown_words, side_by_side, token_grid

WORDS = ("a", "good", "film", "a", "bad", "film")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny():
    """A gated model of two layers, which takes 11 tokens."""
    model = SafrClassifier(ClassifierConfig(vocab_size=20, max_length=11, d_model=8, n_layers=2, n_heads=2,
                                            vmask_width=4, ablation="local", k_attention=3, k_neurons=5))
    return model, drawn_params(model, np.ones((1, 6), np.int32), np.ones((1, 6), np.float32))


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, tokens, mask, scale):
    return model.apply({"params": params}, tokens, mask, scale_BL=scale)


@jax.jit
def measures(x):
    return capacity(x), alignment(x)


# --- capacity and alignment


def test_capacity_is_the_formula():
    x, mask = random(2, 3, 7, 5), np.ones((2, 3, 7), np.float32)
    mask[..., 5:], x[0, 1, 2] = 0, 0
    overlap = np.einsum("...if,...jf->...ij", x, x) ** 2 * mask[..., None] * mask[..., None, :]
    own = np.einsum("...ii->...i", overlap)
    total = overlap.sum(-1)
    expected = np.divide(own, total, out=np.zeros_like(own), where=total > 0)
    masked, cut = jax.jit(lambda x, mask: (capacity(x, mask), capacity(x[..., :5, :])))(x, mask)
    np.testing.assert_allclose(masked, expected, atol=1e-6)
    np.testing.assert_allclose(cut, expected[..., :5], atol=1e-6)
    assert expected[0, 1, 2] == 0 and np.all(np.asarray(masked).sum(-1) <= 5)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_no_scale_over_or_underflows(scale):
    x = random(6, 4)
    for scaled, plain in zip(measures(x * np.float32(scale)), measures(x), strict=True):
        np.testing.assert_allclose(scaled, plain, atol=1e-6)


def test_alignment_is_the_absolute_cosine():
    x = random(4, 6, 3)
    x[1, 2] = 0
    norm = np.linalg.norm(x, axis=-1)
    expected = np.abs(np.einsum("bif,bjf->bij", x, x)) / np.maximum(norm[:, :, None] * norm[:, None], 1e-30)
    np.testing.assert_allclose(alignment(x), expected, atol=1e-6)


def test_gradients_are_finite_at_zero_rows_and_right_elsewhere():
    x, mask = random(5, 4), np.array([1, 1, 1, 1, 0], np.float32)
    x[1] = 0

    @jax.jit
    @jax.value_and_grad
    def both(x):
        return jnp.sum(capacity(x, mask) * jnp.arange(5.0)) + jnp.sum(alignment(x)[0])

    gradient = np.asarray(both(x)[1])
    assert np.isfinite(gradient).all() and not gradient[1].any()
    step = np.zeros_like(x)
    step[2, 1] = 1e-2
    change = float(both(x + step)[0]) - float(both(x - step)[0])
    assert change / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-2)
    assert np.isfinite(both(np.zeros_like(x))[1]).all()


def test_what_is_half_precision_is_measured_in_float32():
    assert capacity(random(3, 2).astype(jnp.bfloat16)).dtype == jnp.float32


# --- one text


@pytest.mark.parametrize(("layer", "stream"), [(-1, "clean"), (0, "ablated")])
def test_an_explanation_holds_what_the_model_computes(tiny, layer, stream):
    model, params = tiny
    tokens = np.array([[2, 3, 4, 2, 5, 4]], np.int32)
    mask = np.ones((1, 6), np.float32)
    out = apply(model, params, tokens, mask, mask)
    found = explain(model, params, tokens[0], WORDS, layer=layer, stream=stream)
    block = getattr(out.layers[layer], stream)
    neurons = np.asarray(block.mlp_post)[0]
    logits = np.asarray(out.logits)
    if stream == "ablated":
        neurons = neurons * np.asarray(out.layers[layer].neuron_gates)[0]
        logits = np.asarray(out.logits_ablated)
    assert (found.layer, found.words) == (layer % 2, WORDS)
    np.testing.assert_allclose(found.probabilities, softmax(logits[0]), atol=1e-5)
    assert found.predicted == int(np.argmax(logits[0])) and found.verdict.startswith(f"class {found.predicted} (0.")
    np.testing.assert_allclose(found.keep, np.asarray(out.keep)[0], atol=1e-5)
    np.testing.assert_allclose(found.activations, neurons[:, list(found.neurons)], atol=1e-5)
    own_capacity, own_alignment = measures(neurons)
    np.testing.assert_allclose(found.capacity, own_capacity, atol=1e-4)
    np.testing.assert_allclose(found.alignment, own_alignment, atol=1e-4)
    weights = np.asarray(block.attention)[0].mean(axis=0)
    np.testing.assert_allclose(found.attention, (weights + weights.T) / 2, atol=1e-5)
    assert sum(found.owned) == found.active_neurons == len(found.neurons) == np.count_nonzero(neurons.any(axis=0))


def test_gradient_x_input_is_the_slope_of_the_log_probability(tiny):
    model, params = tiny
    tokens, mask = np.array([[2, 3, 4, 2, 5, 4]], np.int32), np.ones((1, 6), np.float32)
    found = explain(model, params, tokens[0], WORDS)

    def log_p(scale):
        logits = np.asarray(apply(model, params, tokens, mask, scale).logits, np.float64)[0]
        return logits[found.predicted] - np.log(np.exp(logits).sum())

    for token in (0, 4):
        step = np.zeros_like(mask)
        step[0, token] = 1e-2
        slope = (log_p(mask + step) - log_p(mask - step)) / 2e-2
        assert found.gradient_x_input[token] == pytest.approx(slope, abs=2e-3)


def test_padding_changes_nothing_but_in_the_papers_mode_it_is_the_models(tiny):
    model, params = tiny
    short = explain(model, params, [2, 3], WORDS[:2])
    cut = explain(model, params, [2] * 30, ["a"] * 30)
    assert len(short.words) == 2 and len(cut.words) == len(cut.alignment) == 11
    paper = SafrClassifier(dataclasses.replace(model.config, padding="paper"))
    tokens, mask = np.zeros((1, 11), np.int32), np.zeros((1, 11), np.float32)
    tokens[0, :2], mask[0, :2] = [2, 3], 1
    out = apply(paper, params, tokens, mask, np.ones_like(mask))
    found = explain(paper, params, [2, 3], WORDS[:2])
    np.testing.assert_allclose(found.probabilities, softmax(np.asarray(out.logits)[0]), atol=1e-5)


def test_neurons_stand_along_a_diagonal():
    found = allocate(np.abs(random(6, 400)))
    assert len(found["neurons"]) == MOST_NEURONS and found["active_neurons"] == 400 == sum(found["owned"])
    x = np.array(found["activations"])
    owners = x.argmax(axis=0)
    assert (np.diff(owners) >= 0).all()
    peaks = x.max(axis=0)
    assert all(a >= b for a, b, s, t in zip(peaks, peaks[1:], owners, owners[1:], strict=False) if s == t)
    assert allocate(np.zeros((3, 4)))["activations"] == ((), (), ())


def example(**changes):
    """Three tokens worked out by hand."""
    values = dict(  # noqa: C408
        words=WORDS[:3], layer=0, stream="clean", classes=("negative", "positive"), predicted=1,
        probabilities=(0.25, 0.75), keep=(0.1, 0.9, 0.5), gradient_x_input=(0.0, 0.2, -0.1),
        capacity=(0.5, 0.5, 1.0), owned=(2, 0, 1), active=(2, 2, 1),
        alignment=((1.0, 0.8, 0.0), (0.8, 1.0, 0.04), (0.0, 0.04, 1.0)),
        attention=((0.5, 0.2, 0.3), (0.2, 0.5, 0.1), (0.3, 0.1, 0.6)), neurons=(4, 7, 1),
        activations=((2.0, 1.0, 0.0), (2.0, 1.0, 0.0), (0.0, 0.0, 3.0)), active_neurons=5)
    return Explanation(**values | changes)


def test_panels_say_what_was_found():
    heatmap, network, table = allocation(example()), interactions(example()), token_grid(example())
    assert heatmap.rows == WORDS[:3] and heatmap.columns == ("neuron 4", "neuron 7", "neuron 1")
    assert heatmap.bars == (0.5, 0.5, 1.0) and heatmap.x_label == "3 of 5 active neurons"
    assert [(e.first, e.second, e.weight) for e in network.edges] == [(0, 1, 0.8)]  # 0.04 is too little to see
    assert [n.size for n in network.nodes] == [0.1, 0.9, 0.5] and "1 of 3 pairs" in network.caption
    assert table.rows[0] == ("a", 0.1, 0.0, 0.5, 2, "good (0.80)", "film (0.30)")
    assert example().verdict == "positive (0.750)"
    assert interactions(example(keep=())).size_label == "capacity"
    assert token_grid(example(keep=())).rows[0][1] is None


def test_many_pairs_leave_the_strongest():
    n = 12
    weights = np.triu(random(n, n) ** 2, 1)
    rows = tuple(map(tuple, (weights + weights.T).tolist()))
    found = example(words=("x",) * n, keep=(0.5,) * n, alignment=rows)
    strongest = np.sort(weights[np.triu_indices(n, 1)])[::-1][: 2 * n]
    assert sorted((e.weight for e in interactions(found).edges), reverse=True) == strongest.tolist()
    assert edge_floor(found) == strongest[-1]


def test_side_by_side_has_one_threshold():
    after = example(alignment=((1.0, 0.3, 0.2), (0.3, 1.0, 0.0), (0.2, 0.0, 1.0)))
    heatmaps, networks = side_by_side(example(), after)
    assert heatmaps.labels == networks.labels == ("before", "after")
    assert [len(p.edges) for p in networks.panels] == [1, 2] and "1 and 2 pairs of 3" in networks.caption
    assert str(html.draw(heatmaps)).count("<svg") == 1 and "<path" in html.draw(networks)


def test_a_text_of_one_token_and_a_layer_without_activity_can_be_drawn(tiny):
    one = explain(*tiny, [3], ["x"])
    assert one.partner(0, "alignment") is None and interactions(one).edges == ()
    dead = example(activations=((), (), ()), neurons=(), capacity=(0.0,) * 3, alignment=((0.0,) * 3,) * 3)
    for panel in (allocation(one), interactions(one), allocation(dead), interactions(dead), *side_by_side(dead, dead)):
        assert "<svg" in html.draw(panel)


@pytest.mark.parametrize(("options", "complaint"), [
    ({"layer": 2}, "layer=2 must be in 0..1"), ({"stream": "other"}, "stream='other' must be clean or ablated")])
def test_what_the_model_does_not_have_is_refused(tiny, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        explain(*tiny, [3], ["x"], **options)
    with pytest.raises(DataError, match="empty"):
        explain(*tiny, [], [])


def test_unknown_words_are_shown_as_they_stand():
    vocabulary = WordTokenizer(["good", "film"])
    assert shown_words(vocabulary, "a good film", [1, 2, 3]) == ["‹a›", "good", "film"]
    pieces = types.SimpleNamespace(unk_id=None, decode=lambda ids: "piece")
    assert shown_words(pieces, "anything", [5, 6]) == ["piece", "piece"]


# --- the suite


def test_the_suite_takes_the_first_fitting_texts_of_the_split(tiny):
    model, params = tiny
    lengths = (3, 8, 30, 6, 9, 7)
    texts = [" ".join(["w1"] * n) for n in lengths]
    rows = batches([[2 + i] * n for i, n in enumerate(lengths)], [0, 1, 0, 0, 1, 1], rows=2, order=[5, 4, 3, 2, 1, 0])
    found = explanations.evaluate(model, params, rows, WordTokenizer(["w1"]), texts, layer=0)
    assert [len(x.words) for x in found.explanations] == [8, 6, 9] and found.labels == (
        "positive", "negative", "positive")
    assert found.headline() == () and [p.kind for p in found.panels()] == ["heatmap", "network"] * 3
    assert "w1 w1" in found.panels()[0].caption and found.panels()[2].title == "Text 2: neuron allocation"
    plain = dataclasses.asdict(found)
    assert json.loads(json.dumps(plain, allow_nan=False))


# --- the command


@pytest.fixture
def workdir(classifier_run, tmp_path):
    return copy_run(classifier_run, tmp_path / "run")


FILES = ["allocation.png", "allocation.svg", "explanation.html", "explanation.json", "interactions.png",
         "interactions.svg"]


def test_explain_writes_pictures_page_and_numbers(workdir, capsys):
    text = "a good movie <b> film"
    run_command("explain", "--workdir", workdir, "--text", text)
    said = capsys.readouterr().out
    (folder,) = (workdir / "explanation").iterdir()
    assert folder.name.startswith("a-good-movie-b-film-") and sorted(p.name for p in folder.iterdir()) == FILES
    assert all(name in said for name in FILES) and "good" in said and "capacity" in said
    stored = json.loads((folder / "explanation.json").read_text())
    assert stored["text"] == text and stored["before"] is None and stored["provenance"]["device"]
    found = stored["explanation"]
    assert found["words"] == ["a", "good", "‹movie›", "‹<b>›", "film"] and math.isclose(sum(found["probabilities"]), 1)
    page = (folder / "explanation.html").read_text()
    assert page.count("<svg") == 2 and "‹&lt;b&gt;›" in page and "<b>" not in page and "</html>" in page


def test_explain_shows_another_run_beside_it(workdir, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    run_command("explain", "--workdir", workdir, "--before", workdir, "--checkpoint", "newest", "--text", "a good film",
                "--out", out)
    assert sorted(p.name for p in out.iterdir()) == FILES and not (workdir / "explanation").exists()
    stored = json.loads((out / "explanation.json").read_text())
    assert stored["before"] == stored["explanation"]
    assert "capacity before" in capsys.readouterr().out and "after, step" in (out / "explanation.html").read_text()


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["--text", "  "], "text is empty"), (["--text", "xyzzy plugh"], "none of the 2 words"),
    (["--text", "good", "--layer", "1"], "layer=1 must be in 0..0"),
    (["--text", "good", "--stream", "ablated"], "stream='ablated' must be clean"),
    (["--text", "good", "--checkpoint", "nearest"], "newest, best or a step"),
    (["--text", "good", "--before", "OTHER"], "has another vocabulary"),
    (["--text", "good", "--before", "/nowhere"], "is not the --workdir of a training run"),
])
def test_what_cannot_be_explained_is_one_line_and_leaves_nothing(workdir, tmp_path, capsys, arguments, complaint):
    if "OTHER" in arguments:
        shutil.copytree(workdir, tmp_path / "OTHER")
        WordTokenizer(["good", "film"]).save(tmp_path / "OTHER" / "tokenizer")
        arguments = [*arguments[:-1], str(tmp_path / "OTHER")]
    assert complaint in error_of(capsys, "explain", "--workdir", workdir, *arguments)
    assert not (workdir / "explanation").exists()


def test_a_language_models_run_is_no_classifier(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert "language model's run" in error_of(capsys, "explain", "--workdir", tmp_path, "--text", "a")
