"""Circuits by learnt masks: the known circuit is found, the same seed gives the same masks, nulls do not look good."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_circuits

from jaxablate import circuits
from jaxablate.circuits import METHODS, PromptPairs, PruneSettings, known_model, prune, prune_with_nulls
from jaxablate.circuits.faithfulness import metric_values
from jaxablate.circuits.pruning import nonsense, sample, shuffled
from jaxablate.errors import ConfigError, DataError

SETTINGS = PruneSettings(steps=75, batch_size=8, learning_rate=0.3)


@functools.cache
def known():
    """A model of 46 edges, 8 of them in its circuit."""
    model = known_model(n_layers=2, n_heads=2)
    return model, circuits.problem(model.config, model.params, model.pairs(32))


@functools.cache
def pruned(seed=0, objective="kl"):
    return prune(known()[1], edges=8, seed=seed, settings=dataclasses.replace(SETTINGS, objective=objective))


def test_the_circuit_that_the_model_was_built_with_is_learnt():
    model, task = known()
    for seed in (0, 1):
        found = pruned(seed)
        np.testing.assert_array_equal(found.kept, model.mask())
        assert found.probability[model.mask()].min() > 0.9 > 0.5 > found.probability[~model.mask()].max()
        assert found.expected[0] > 40 and found.expected[-1] < 10 and found.loss[-1] < 0.01
    assert metric_values(task.with_metric("kl"), pruned().kept[None]).mean() < 1e-4


def test_masks_trained_for_the_task_find_it_too():
    found = pruned(objective="task")
    assert (found.kept & known()[0].mask()).sum() >= 7


def test_the_same_seed_gives_the_same_masks_and_another_one_others():
    again = prune(known()[1], edges=8, seed=0, settings=SETTINGS)
    np.testing.assert_array_equal(again.log_alpha, pruned().log_alpha)
    np.testing.assert_array_equal(again.loss, pruned().loss)
    assert not np.array_equal(pruned(1).log_alpha, pruned().log_alpha)


@pytest.mark.parametrize("log_alpha", [-1.5, 0.0, 2.0])
def test_masks_are_hard_concrete(log_alpha):
    z = np.asarray(jax.jit(sample)(jnp.full(40_000, log_alpha), jax.random.key(0)))
    assert z.min() == 0 and z.max() == 1
    shift = 2 / 3 * np.log(1 / 11)  # beta log(-gamma / zeta)
    assert (z > 0).mean() == pytest.approx(1 / (1 + np.exp(-(log_alpha - shift))), abs=0.01)
    assert (z == 1).mean() == pytest.approx(1 / (1 + np.exp(-(log_alpha + shift))), abs=0.01)  # by symmetry
    quarter = (0.25 - -0.1) / 1.2
    below = 1 / (1 + np.exp(log_alpha - 2 / 3 * np.log(quarter / (1 - quarter))))
    assert (z <= 0.25).mean() == pytest.approx(below, abs=0.01)
    slope = jax.jit(jax.grad(lambda a: sample(jnp.full(1000, a), jax.random.key(1)).mean()))(log_alpha)
    step = (sample(jnp.full(1000, log_alpha + 0.01), jax.random.key(1)).mean()
            - sample(jnp.full(1000, log_alpha - 0.01), jax.random.key(1)).mean()) / 0.02
    assert float(slope) == pytest.approx(float(step), abs=3e-3)


@pytest.mark.parametrize(("stream", "kind"), [("clean", "resample"), ("ablated", "mean")])
def test_open_masks_are_the_model_and_closed_ones_everything_patched(stream, kind):
    task = toy_circuits.problem(stream, "kl", kind)
    nothing, everything = (prune(task, edges=5, settings=PruneSettings(steps=1, first=first)).loss[0]
                           for first in (30.0, -30.0))
    assert nothing == pytest.approx(0, abs=1e-5)
    assert everything == pytest.approx(metric_values(task, np.zeros((1, 46), bool)).mean(), rel=1e-4)


def test_nulls_do_not_look_as_good_as_a_circuit():
    _, task = known()
    rows = prune_with_nulls(task, edges=8, seeds=2, settings=SETTINGS)
    assert [row.group for row in rows] == ["model", "random weights", "nonsense task"]
    true, random, senseless = rows
    assert all(row.prompts == 16 and row.edges == 8 and len(row.by_seed) == 2 for row in rows)
    assert true.explained.value > 0.99 and true.accuracy.value == true.model_accuracy.value == 1 and true.overlap == 1
    assert random.all_patched < 1e-5 and random.explained.value is None  # these weights do not pass on the words at all
    assert random.by_seed == (None, None) and random.overlap < 0.5  # two seeds do not even agree
    assert senseless.explained.value < 0.9 < senseless.on_training_prompts  # learnt by heart
    for null in (random, senseless):
        assert null.accuracy.low <= 0.5 <= null.accuracy.high  # a guess


def test_random_weights_keep_the_sizes_of_every_array():
    params = known()[0].params
    other = shuffled(params, 3)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.sort(np.ravel(a)), np.sort(np.ravel(b)))
    assert not np.array_equal(params["embed"]["embedding"], other["embed"]["embedding"])


def test_a_nonsense_task_has_the_form_of_the_task_and_a_rule_of_its_own():
    pairs = known()[0].pairs(200)
    task = nonsense(pairs, 0)
    np.testing.assert_array_equal(task.valid, pairs.valid)
    same = (pairs.clean == pairs.corrupt) & pairs.valid
    np.testing.assert_array_equal(task.clean[same], task.corrupt[same])
    assert (task.clean != pairs.clean).mean() > 0.5
    assert len(set(task.answers[:, 0].tolist())) == 2 and (task.answers != task.wrong_answers).all()
    first = task.clean[np.arange(200), ((pairs.clean != pairs.corrupt) & pairs.valid).argmax(1)]
    by_token = {token: set(task.answers[first == token, 0].tolist()) for token in first.tolist()}
    assert all(len(x) == 1 for x in by_token.values()) and len(set().union(*by_token.values())) == 2
    np.testing.assert_array_equal(nonsense(pairs, 0).clean, task.clean)


def test_the_method_scores_edges_by_their_probability_to_be_kept():
    for metric in ("logit_difference", "kl"):
        task = toy_circuits.problem("clean", metric)
        scores = METHODS["edge-pruning"].scores(task, seed=3, edges=5, steps=2)
        found = prune(task, edges=5, seed=3, settings=PruneSettings(steps=2))
        np.testing.assert_array_equal(circuits.importance(task.target, scores), found.probability)


def test_what_cannot_be_trained_is_refused():
    task = toy_circuits.problem()
    for options, message in (({"edges": 0}, "edges=0 must be in 1 .. 45"), ({"edges": 46}, "edges=46 must be in")):
        with pytest.raises(ConfigError, match=message):
            prune(task, **options)
    for options, message in (({"steps": 0}, "steps=0 must be at least 1"),
                             ({"rise": 0.0}, r"rise=0 must be in \(0, 1\]"),
                             ({"learning_rate": 0.0}, "learning_rate=0 must be positive"),
                             ({"first": float("nan")}, "first=nan must be a finite number")):
        with pytest.raises(ConfigError, match=message):
            PruneSettings(**options)
    for options, message in (({"seeds": 0}, "seeds=0 must be at least 1"),
                             ({"training": 1.0}, "training=1 must be between")):
        with pytest.raises(ConfigError, match=message):
            prune_with_nulls(task, edges=5, **options)
    one = PromptPairs.from_ids([[1, 2]], [[3, 2]], [[1]], [[2]], name="one")
    alone = circuits.problem(*toy_circuits.model(), one)
    with pytest.raises(DataError, match="1 prompt cannot be shared out"):
        prune_with_nulls(alone, edges=5)
    with pytest.raises(ConfigError, match="prune takes a Problem, not int"):
        prune(3, edges=5)
