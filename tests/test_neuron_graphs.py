"""Neuron to Graph: units whose pattern is known by construction, each step by its definition, matching, pictures."""

import dataclasses
import functools
import itertools
import json
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.commands.neuron_graphs import unit_scores
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.examples import NOTHING, ShortRuns, UnitReader, top_examples
from jaxablate.neurons.graphs import (
    Cases,
    GraphSettings,
    Neighbours,
    Noise,
    Pattern,
    build_graphs,
    importance,
    important,
    merge,
    prune,
    substitutes,
    trie,
)
from jaxablate.neurons.matching import Text, count_hits, firings, rates, story_draws, summarise_graphs
from jaxablate.reports.neuron_graph import graph_svg, neuron_page, visible
from jaxablate.reports.neuron_records import ExampleRecord, NeuronRecord, NodeRecord, Scores, from_dict, to_json
from jaxablate.stats import Estimate

VOCAB, EOT = 12, 0
A, B, C, D, E = 1, 2, 3, 4, 5


def known_units(params, tokens_BT):
    """Unit 0 fires on A after B, 1 on A or C, 2 never, 3 on D two after E, 4 on A after B or E, weakly on any A."""
    def before(k):
        return jnp.pad(tokens_BT, ((0, 0), (k, 0)), constant_values=-1)[:, : tokens_BT.shape[1]]

    a, after_b = tokens_BT == A, before(1) == B
    units = [a & after_b, a | (tokens_BT == C), jnp.zeros_like(a), (tokens_BT == D) & (before(2) == E)]
    graded = jnp.where(a, jnp.where(after_b | (before(1) == E), 1.0, 0.2), 0.0)
    return (jnp.stack([*(x.astype(jnp.float32) for x in units), graded], axis=-1) * params,)


def windows(seed, batches=6, rows=4, length=16):
    """Random tokens in which the patterns of all units occur often."""
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        tokens = rng.choice(VOCAB, (rows, length), p=[0.05, *[0.12] * 5, *[0.05] * 5, 0.10]).astype(np.int32)
        yield {"inputs": tokens, "mask": np.ones((rows, length), np.float32)}


SCALE = np.float32(3.0)


@functools.cache
def known():
    """(top examples, graphs, counts on other text) of the known units."""
    top = top_examples(known_units, SCALE, windows(0), vocab_size=VOCAB, eot_id=EOT, examples=12, context=6)
    embedding = np.eye(VOCAB) + 0.5 * np.roll(np.eye(VOCAB), 1, axis=0)
    graphs = build_graphs(ShortRuns(known_units, SCALE, batch_tokens=256), top.activations[0], top.contexts[0],
                          top.counts, Neighbours(embedding, top.counts, n=3),
                          GraphSettings(build=10, replacements=16))
    bits, text = firings(known_units, SCALE, windows(1), np.where(top.strongest > 0, top.strongest / 2, np.inf), EOT)
    return top, graphs, count_hits([g.patterns for g in graphs], bits[0], text, top.strongest[0] > 0)


def tokens_of(graph):
    return [tuple(None if t is None else set(t) for t in p.tokens) for p in graph.patterns]


def test_known_units_get_exactly_their_graphs():
    _, graphs, _ = known()
    assert tokens_of(graphs[0]) == [({A}, {B})]
    assert tokens_of(graphs[1]) == [({A, C},)]
    assert tokens_of(graphs[2]) == []
    assert tokens_of(graphs[3]) == [({D}, None, {E})]
    assert tokens_of(graphs[4]) == [({A}, {B, E})]
    assert graphs[0].patterns[0].importance == (1.0, 1.0) and graphs[0].patterns[0].strength == 1.0
    assert graphs[3].patterns[0].importance == (1.0, None, 1.0)
    assert graphs[3].patterns[0].examples == len(graphs[3].examples)
    assert graphs[4].patterns[0].importance[1] > 0.7
    assert {e.length for e in graphs[0].examples} == {2} and {e.named for e in graphs[3].examples} == {(0, 2)}


def test_known_units_are_predicted_on_other_text():
    _, _, counts = known()
    whole = rates(counts)
    fires = counts.fires.sum(1) > 0
    assert fires.tolist() == [True, True, False, True, True]
    # A pattern does not reach over the end of a story or the start of a window, and nor do these units but by chance.
    np.testing.assert_allclose(whole["f1"][[0, 1, 4]], 1.0)
    assert whole["precision"][3] == 1.0 and whole["recall"][3] > 0.7
    assert whole["f1_pivot"][0] < 0.6 and whole["f1_pivot"][1] == 1.0 and np.isnan(whole["f1"][2])
    assert np.nanmean(whole["f1_shuffled"]) < 0.5
    found = summarise_graphs([counts, counts], seed=0, least=1)
    assert (found.units, found.inactive, found.rare, found.scored, found.without_graph) == (10, 2, 0, 8, 0)
    assert found.f1.value == pytest.approx(np.nanmean(whole["f1"]))
    assert found.gain.value == pytest.approx(found.f1.value - found.f1_pivot.value)
    assert found.gain.low < found.gain.value < found.gain.high
    scores = unit_scores(counts, 384, seed=0)
    assert (scores[0].f1.value, scores[0].f1.interval, scores[2].f1.value) == (1.0, (1.0, 1.0), None)


def test_top_examples_are_the_strongest_windows():
    batches = list(windows(3))
    top = top_examples(known_units, SCALE, batches, vocab_size=VOCAB, eot_id=EOT, examples=5, context=4)
    text = np.concatenate([b["inputs"] for b in batches])
    values = np.asarray(jax.jit(known_units)(SCALE, text)[0])
    best = values.max(1)
    for unit in range(5):
        order = np.argsort(-best[:, unit], kind="stable")[:5]
        np.testing.assert_array_equal(top.windows[0, unit], order)
        np.testing.assert_array_equal(top.activations[0, unit], best[order, unit])
        for window, context in zip(order, top.contexts[0, unit], strict=True):
            pivot = values[window, :, unit].argmax()
            expected = text[window, max(0, pivot - 3) : pivot + 1]
            ends = np.flatnonzero(expected[:-1] == EOT)
            expected = expected[ends[-1] + 1 :] if len(ends) else expected
            assert context.tolist() == [NOTHING] * (4 - len(expected)) + expected.tolist()
    assert top.counts.tolist() == np.bincount(text.ravel(), minlength=VOCAB).tolist() and top.tokens == text.size


def test_masked_places_are_no_examples():
    batches = list(windows(4, batches=2))
    for batch in batches:
        batch["mask"][:, 3:] = 0
    top = top_examples(known_units, SCALE, batches, vocab_size=VOCAB, eot_id=EOT, examples=3, context=16)
    assert ((top.contexts != NOTHING).sum(-1) <= 3).all() and top.tokens == 2 * 4 * 3


def test_too_few_windows_and_damaged_activations_are_refused():
    with pytest.raises(DataError, match="8 windows of text are too few for 9 examples a unit.*at least 9"):
        top_examples(known_units, SCALE, windows(0, batches=2), vocab_size=VOCAB, eot_id=EOT, examples=9)
    with pytest.raises(DataError, match="unit 0.0 and 4 others have activations that are NaN or infinite"):
        top_examples(known_units, np.float32(np.nan), windows(0, batches=2), vocab_size=VOCAB, eot_id=EOT, examples=2)
    with pytest.raises(DataError, match="unit 3 of the layer has an activation that is NaN"):
        ShortRuns(known_units, np.float32(np.inf), batch_tokens=64)(np.array([[D, E]]), np.array([3]))
    with pytest.raises(DataError, match="1 different tokens; at least 2 are needed"):
        Noise(np.array([0, 7, 0]))
    with pytest.raises(DataError, match="no text to score graphs on"):
        firings(known_units, SCALE, [], np.ones((1, 5)), EOT)
    with pytest.raises(ConfigError, match="above=1 must be between 0 and 1"):
        GraphSettings(above=1)
    with pytest.raises(ConfigError, match="build=0 must be at least 1"):
        GraphSettings(build=0)


def test_functions_that_give_an_array_are_read_and_others_refused():
    """A user's own reader gives one array, a tuple of arrays, or something that holds no units."""
    def one(params, tokens):
        return known_units(params, tokens)[0]

    expected = top_examples(known_units, SCALE, windows(0), vocab_size=VOCAB, eot_id=EOT, examples=3)
    top = top_examples(one, SCALE, windows(0), vocab_size=VOCAB, eot_id=EOT, examples=3)
    np.testing.assert_array_equal(top.activations, expected.activations)
    bits, text = firings(one, SCALE, windows(1, rows=1, length=15), top.strongest / 2, EOT)
    assert bits.shape == (1, 5, len(text.tokens) // 8) and (text.tokens != NOTHING).sum() == 6 * 15
    for read in (lambda p, tokens: tokens, lambda p, tokens: (one(p, tokens)[0],), lambda p, tokens: {"a": tokens}):
        with pytest.raises(ConfigError, match=r"must give activations \[batch, time, units\]"):
            top_examples(read, SCALE, windows(0), vocab_size=VOCAB, eot_id=EOT, examples=3)
    with pytest.raises(ConfigError, match="short runs read one layer"):
        ShortRuns(lambda p, tokens: known_units(p, tokens) * 2, SCALE)(np.array([[D, E]]), np.array([3]))


def test_pruning_takes_the_shortest_suffix_that_is_enough():
    table = {(7,): 0.0, (6, 7): 0.4, (5, 6, 7): 0.6, (4, 5, 6, 7): 0.9}

    def ask(sequences, units):
        return np.array([table[tuple(s[s != NOTHING])] for s in sequences])

    contexts = np.array([[4, 5, 6, 7], [4, 5, 6, 7], [NOTHING, NOTHING, 6, 7]])
    cases = prune(ask, Cases(np.zeros(3, int), contexts, np.array([1.0, 1.7, 1.0])))
    assert cases.lengths.tolist() == [3, 4, 0]
    np.testing.assert_allclose(cases.suffix_activations, [0.6, 0.9, 0.0], rtol=1e-6)
    assert cases.sequences()[:2].tolist() == [[5, 6, 7, NOTHING], [4, 5, 6, 7]]


def test_longer_suffixes_are_tried_only_where_shorter_ones_fail():
    asked = []

    def ask(sequences, units):
        lengths = (sequences != NOTHING).sum(1)
        asked.extend(zip(units.tolist(), lengths.tolist(), strict=True))
        return np.where(units == 0, lengths >= 2, lengths >= 11).astype(np.float32)

    cases = prune(ask, Cases(np.array([0, 1]), np.ones((2, 20), int), np.ones(2)))
    assert cases.lengths.tolist() == [2, 11]
    assert [n for u, n in asked if u == 0] == list(range(1, 9))
    assert [n for u, n in asked if u == 1] == [*range(1, 9), 12, 16, 20, 9, 10, 11]


def test_importance_is_the_share_that_is_lost():
    """The unit adds 3 for a 5 at offset 2, 1 for the token 7 at the pivot."""
    def ask(sequences, units):
        last = (sequences != NOTHING).sum(1) - 1
        return 3.0 * (sequences[np.arange(len(last)), np.maximum(last - 2, 0)] == 5) + (sequences == 7).any(1)

    cases = Cases(np.array([0]), np.array([[5, 6, 7]]), np.array([4.0]), np.array([3]), np.array([4.0]))
    weights = importance(ask, cases, Noise(np.array([0, 0, 1, 1])))
    np.testing.assert_allclose(weights, [[0.25, 0, 0.75]], atol=1e-7)
    assert important(weights, 0.5).tolist() == [[True, False, True]]
    found = substitutes(ask, cases, important(weights, 0.5), lambda tokens: np.full((len(tokens), 2), [3, 8]),
                        np.array([2.0]))
    assert found == [{0: [3, 8], 2: []}]


def test_noise_follows_frequency_and_never_repeats_the_token():
    noise = Noise(np.array([0, 10, 30, 60]), seed=1)
    drawn = noise.other_than(np.full(4000, 2))
    assert set(drawn.tolist()) == {1, 3} and np.mean(drawn == 3) == pytest.approx(6 / 7, abs=0.03)
    again = Noise(np.array([0, 10, 30, 60]), seed=1).other_than(np.full(4000, 2))
    np.testing.assert_array_equal(drawn, again)


def test_neighbours_are_the_nearest_used_tokens():
    embedding = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.8, 0.3], [-1, 0]])
    nearest = Neighbours(embedding, np.array([1, 1, 1, 0, 1]), n=2)
    np.testing.assert_array_equal(nearest(np.array([0, 4, 0])), [[1, 2], [2, 1], [1, 2]])
    assert Neighbours(embedding, np.ones(5), n=99)(np.array([2])).shape == (1, 4)


def pattern(*tokens, strength=1.0, weight=1.0):
    sets = tuple(None if t is None else frozenset([t] if isinstance(t, int) else t) for t in tokens)
    return Pattern(tokens=sets, importance=tuple(None if t is None else weight for t in tokens), strength=strength)


@pytest.mark.parametrize(("given", "merged"), [
    ([pattern(1, 2), pattern(1, 3)], [(1, {2, 3})]),
    ([pattern(1, 2), pattern(4, 2)], [({1, 4}, 2)]),
    ([pattern(1, 2), pattern(4, 3)], [(1, 2), (4, 3)]),
    ([pattern(1), pattern(1, 2), pattern({1, 5}, None, 2)], [(1,), ({1, 5}, None, 2)]),
    ([pattern(1, None, 2), pattern(1, 3, 2)], [(1, None, 2)]),
    ([pattern(1, 2), pattern(1, 3), pattern(4, 2), pattern(4, 3)], [({1, 4}, {2, 3})]),
    ([pattern(1, None, 2), pattern(1, 3, 3)], [(1, None, 2), (1, 3, 3)]),
    ([], []),
])
def test_merging(given, merged):
    expected = [p.tokens for p in (pattern(*m) for m in merged)]
    for order in itertools.permutations(given):
        found = merge(order)
        assert sorted(map(str, (p.tokens for p in found))) == sorted(map(str, expected))
        assert sum(p.examples for p in found) == len(given)


def test_merging_matches_the_same_places():
    rng = np.random.default_rng(0)
    text = Text.of(rng.integers(0, 5, (40, 16)), np.ones((40, 16)), EOT)
    for _ in range(20):
        patterns = [pattern(*_trimmed([None if rng.random() < 0.4 and i else int(rng.integers(5)) for i in range(4)]),
                            strength=float(rng.random())) for _ in range(8)]
        np.testing.assert_array_equal(text.matches(merge(patterns)), text.matches(patterns))


def _trimmed(tokens):
    while tokens[-1] is None:
        tokens.pop()
    return tokens


def test_a_trie_shares_what_patterns_have_in_common():
    nodes = trie([pattern(1, 2, strength=0.9, weight=0.5), pattern(1, 3, None, 4, strength=0.7, weight=0.8)])
    assert [(n.parent, n.offset, n.tokens and set(n.tokens)) for n in nodes] == [
        (None, 0, {1}), (0, 1, {2}), (0, 1, {3}), (2, 2, None), (3, 3, {4})]
    assert [n.strength for n in nodes] == [None, 0.9, None, None, 0.7] and nodes[0].importance == 0.8


def test_matching_stays_within_story_and_window():
    tokens = np.array([[1, 2, EOT, 2], [1, 2, 2, 9]])
    text = Text.of(tokens, np.array([[1, 1, 1, 1], [1, 1, 1, 0]]), EOT)
    assert text.matches([pattern(2)]).tolist() == [1, 3, 5, 6] and text.n_stories == 2
    assert text.matches([pattern(2, 1)]).tolist() == [1, 5]
    assert text.matches([pattern(2, 2)]).tolist() == [6]
    assert text.matches([pattern(2, EOT)]).tolist() == [] and text.matches([pattern(1, 2)]).tolist() == []
    assert text.matches([pattern(2, None, 1)]).tolist() == [6] and text.matches([pattern(9)]).tolist() == []
    assert text.matches([pattern(EOT, 2)]).tolist() == [2] and text.matches([pattern(77)]).tolist() == []
    assert text.per_story(np.array([1, 2, 3, 6])).tolist() == [2, 2]


def test_counts_by_hand():
    tokens = np.array([[1, 2, 1, 3, EOT, 1, 2, 2]])
    text = Text.of(tokens, np.ones((1, 8)), EOT)
    fired = np.array([[0, 1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    counts = count_hits([[pattern(2, 1)], [pattern(1)]], np.packbits(fired, axis=1), text, np.ones(2, bool))
    assert counts.fires.tolist() == [[1, 2], [1, 0]] and counts.predicted.tolist() == [[1, 1], [2, 1]]
    assert counts.hits.tolist() == [[1, 1], [1, 0]] and counts.pivot_hits.tolist() == [[1, 2], [1, 0]]
    assert counts.shuffled_predicted.tolist() == [[2, 1], [1, 1]] and counts.shuffled_hits.tolist() == [[0, 0], [0, 0]]
    found = rates(counts)
    np.testing.assert_allclose(found["f1"], [0.8, 0.5])
    np.testing.assert_allclose(found["precision"], [1, 1 / 3])
    np.testing.assert_allclose(rates(counts, np.array([[1.0], [0.0]]))["f1"][:, 0], [1.0, 2 / 3])
    assert story_draws(3, seed=0, resamples=7).sum(0).tolist() == [3] * 7


def test_a_unit_that_fires_and_has_no_graph_counts_as_zero():
    text = Text.of(np.array([[1, 2, 1, 2, 1, 2, 1, 2]]), np.ones((1, 8)), EOT)
    bits = np.packbits(np.array([[1] * 8, [0, 1] * 4], bool), axis=1)
    counts = count_hits([[], [pattern(2)]], bits, text, np.ones(2, bool))
    found = summarise_graphs([counts], seed=0, least=4)
    assert found.without_graph == 1 and found.f1.value == 0.5 and found.precision.value == 1.0
    assert rates(counts)["f1"].tolist() == [0.0, 1.0]
    fewer = summarise_graphs([counts], seed=0, least=5)
    assert (fewer.rare, fewer.scored, fewer.f1.value) == (1, 1, 0.0)


CONFIG = ModelConfig(vocab_size=VOCAB, context_length=32, d_model=16, n_layers=2, n_heads=2, d_mlp=24,
                     ablation="local", k_attention=3, k_neurons=5)
MODEL = SelfAblatingTransformer(CONFIG)


@functools.cache
def params():
    return drawn_params(MODEL, np.zeros((1, 4), np.int32))


def test_readers_give_neurons_and_channels_of_either_stream():
    tokens = np.random.default_rng(1).integers(0, VOCAB, (3, 8)).astype(np.int32)
    kinds = [("neurons", "clean"), ("channels", "clean"), ("neurons", "ablated"), ("channels", "ablated")]
    readers = [UnitReader(MODEL, (1,), *kind) for kind in kinds]
    out, found = jax.jit(lambda p: (MODEL.apply({"params": p}, tokens), [read(p, tokens)[0] for read in readers]))(
        params())
    layer, gated = out.layers[1], found[3]
    np.testing.assert_allclose(found[0], layer.clean.mlp_post, atol=1e-5)
    np.testing.assert_allclose(found[1], layer.clean.head_out.reshape(3, 8, 16), atol=1e-5)
    np.testing.assert_allclose(found[2], layer.ablated.mlp_post * layer.neuron_gates, atol=1e-5)
    np.testing.assert_allclose(gated, layer.ablated.head_out.reshape(3, 8, 16) * layer.attention_gates, atol=1e-5)
    assert (gated != 0).sum(-1).max() <= 3
    both = jax.eval_shape(UnitReader(MODEL, (0, 1)), params(), tokens)
    assert [x.shape for x in both] == [(3, 8, 24)] * 2


def test_short_runs_answer_what_the_model_says_and_run_each_sequence_once():
    rng = np.random.default_rng(0)
    sequences = np.full((30, 12), NOTHING)
    for row in sequences:
        size = rng.integers(1, 13)
        row[:size] = rng.integers(0, VOCAB, size)
    units = rng.integers(0, 24, 30)
    sequences = np.concatenate([sequences, sequences[:10]])
    units = np.concatenate([units, units[:10]])
    read = UnitReader(MODEL, (1,))
    ask = ShortRuns(read, params(), batch_tokens=64)
    found = ask(sequences, units)
    (whole,) = jax.jit(read)(params(), np.maximum(sequences[:30], 0))
    last = (sequences[:30] != NOTHING).sum(1) - 1
    np.testing.assert_allclose(found[:30], np.asarray(whole)[np.arange(30), last, units[:30]], atol=1e-5)
    np.testing.assert_array_equal(found[30:], found[:10])
    assert ask.questions == 40 and ask.tokens_run % 64 == 0


def record(patterns, **changes):
    word = [" a", " b", "\n", " dog", "x" * 30, "<b>"].__getitem__
    nodes = tuple(NodeRecord(
        parent=n.parent, offset=n.offset, tokens=None if n.tokens is None else tuple(word(t) for t in sorted(n.tokens)),
        ids=None if n.tokens is None else tuple(sorted(n.tokens)), importance=n.importance, strength=n.strength,
        examples=n.examples) for n in trie(patterns))
    scores = Scores(tokens=1000, fires=10, predicted=8, hits=6, precision=0.75, recall=0.6,
                    f1=Estimate(0.666667, 0.5, 0.8), f1_shuffled=0.01, f1_pivot=0.4)
    example = ExampleRecord(tokens=(" a", "\n", " dog"), ids=(0, 2, 3), activation=3.0, suffix=2,
                            importance=(0.8, 1.0), named=(0, 1))
    return dataclasses.replace(NeuronRecord(
        neuron="1.7", site="clean.layer_1.mlp_post", strongest=3.0, threshold=1.5, nodes=nodes, scores=scores,
        examples=(example, dataclasses.replace(example, suffix=None, importance=(), named=()))), **changes)


def test_records_survive_their_file():
    given = record([pattern(3, 2, strength=0.9), pattern(3, None, 1)])
    values = json.loads(to_json(given))
    assert values["format"] == "jaxablate neuron graph" and values["edges"] == [[0, 1], [0, 2], [2, 3]]
    assert from_dict(values) == given
    assert [[n.tokens for n in path] for path in given.paths()] == [[(" b",), None, (" dog",)], [("\n",), (" dog",)]]
    older = values | {"version": 1, "scores": values["scores"] | {"f1": 0.666667, "f1_interval": [0.5, 0.8]}}
    assert from_dict(older) == given
    none = older["scores"] | {"f1": None, "f1_interval": None}
    assert from_dict(older | {"scores": none}).scores.f1 == Estimate(None)


def test_pictures_are_valid_and_say_what_they_leave_out():
    ElementTree.fromstring(graph_svg(record([pattern(3, None, {1, 5}), pattern({0, 4}, 2)])))
    picture = graph_svg(record([pattern(3, None, {1, 5}), pattern({0, 4}, 2)]))
    assert "·dog" in picture and "1 any" in picture and "↵" in picture and "&lt;b&gt;" in picture
    many = [pattern(i % 6, i % 5, None, (i * 7) % 6, strength=1 - i / 100) for i in range(30)]
    picture = graph_svg(record(many))
    ElementTree.fromstring(picture)
    assert "Drawn: 12 of 30 patterns" in picture
    deep = graph_svg(record([pattern(*range(6), *range(6))]))
    ElementTree.fromstring(deep)
    assert "Drawn: 1 of 1 patterns, 8 of 12 nodes" in deep
    assert "never active" in graph_svg(record([], strongest=0.0))
    assert "in no example do its last 3 tokens alone keep half" in graph_svg(record([]))


def test_a_page_shows_neurons_with_scores_and_examples():
    page = neuron_page([record([pattern(3, 2)]), record([])], "Neurons 1.7", "Step 3.")
    assert page.count("<svg") == 2 and "Precision 0.75, recall 0.60, F1 0.67 [0.50, 0.80]" in page
    assert "the last 2 tokens are enough" in page and "importance 0.80" in page and "Step 3." in page


def test_spaces_are_made_visible():
    assert [visible(t) for t in (" dog", "\n\n", "", "a\tb", "\x07")] == ["·dog", "↵↵", "∅", "a⇥b", "�"]
