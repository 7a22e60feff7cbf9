"""`Problem`: made from a config or a run, prepared once, refused early; and the registry of methods that take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toy_circuits import model, pairs

from jaxablate import circuits
from jaxablate.circuits import METHODS, Method, PromptText, acdc, eap, mask_gradient, problem
from jaxablate.circuits.patching import patched_final
from jaxablate.config import MeshConfig, ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.runs.run import open_run
from jaxablate.sharding import make_mesh


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_the_blocks_compute_what_the_model_computes(stream):
    config, params = model()
    logits = np.asarray(problem(config, params, pairs(), stream=stream).logits)
    left = [np.roll(row, n) for row, n in zip(pairs().clean, pairs().lengths, strict=True)]  # padding at the right
    out = jax.jit(SelfAblatingTransformer(config).apply)({"params": params}, np.array(left))
    own = np.asarray(getattr(out, f"logits_{stream}"))[np.arange(len(left)), pairs().lengths - 1]
    np.testing.assert_allclose(logits, own, atol=1e-5)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean", "mean_per_position"])
def test_nothing_depends_on_the_batch_size(ablation):
    one, many = (problem(*model(), pairs(), ablation=ablation, batch_size=size) for size in (64, 2))
    np.testing.assert_allclose(one.replacement, many.replacement, atol=1e-6)
    np.testing.assert_allclose(one.final, many.final, atol=1e-6)
    if ablation == "resample":  # of the others the replacement is the same for all prompts
        np.testing.assert_allclose(eap(one), eap(many), atol=2e-6)


def test_the_devices_of_a_mesh_share_the_prompts():
    one = problem(*model(), pairs(), metric="kl")
    shared = problem(*model(), pairs(), metric="kl", mesh=make_mesh(MeshConfig(data=3)))
    tokens = shared.taken(shared.inputs, np.arange(3)).tokens
    assert tokens.sharding.shard_shape(tokens.shape)[0] == 1
    np.testing.assert_allclose(mask_gradient(shared, masks=(0.5,)), mask_gradient(one, masks=(0.5,)), atol=2e-6)
    found, expected = acdc(shared, taus=(0.01,)), acdc(one, taus=(0.01,))
    np.testing.assert_array_equal(found.runs[0.01].kept, expected.runs[0.01].kept)


def test_another_metric_shares_the_runs():
    task = problem(*model(), pairs())
    final = task.final
    kl = task.with_metric("kl")
    assert kl.final is final and kl.metric == "kl" and task.metric == "logit_difference"
    np.testing.assert_allclose(kl.target.values(kl.final), 0, atol=1e-6)


def test_a_first_look_within_a_compiled_function_leaves_values_behind():
    task = problem(*model(), pairs())

    @jax.jit
    def score(patched):
        final = patched_final(task.decoder, task.params, task.inputs, patched, task.replacement)
        return task.target.values(final).mean()

    assert np.isfinite(score(jnp.zeros(task.graph.n_edges)))
    assert isinstance(np.asarray(task.replacement), np.ndarray) and np.isfinite(eap(task)).all()


def test_a_run_brings_model_tokenizer_and_task(language_run):
    run = open_run(language_run)
    assert repr(run).startswith(f"Run({str(language_run)!r}, step ") and len(repr(run)) < 400  # no arrays
    task = problem(run, task="ioi", prompts=6, seed=1)
    assert (len(task.pairs), task.pairs.name) == (6, "IOI")
    again = problem(run, task.pairs, stream="ablated")
    assert again.stream == "ablated" and again.pairs is task.pairs
    words = problem(run, [PromptText(clean="One day, Tom", corrupt="One day, Sue", answers=(" and",),
                                     wrong_answers=(" to",))])
    assert len(words.pairs) == 1 and eap(words).shape == (task.graph.n_edges,)
    with pytest.raises(ConfigError, match="task='sums' is unknown"):
        problem(run, task="sums")


def test_prints_are_short():
    task = problem(*model(), pairs())
    found = acdc(task)
    everything = [task, pairs(), found, circuits.faithfulness(task, eap(task)), circuits.neuron_eap(task),
                  circuits.completeness(task, np.ones(46, bool)), found.circuit(0.03)]
    assert all(len(repr(x)) < 600 and "array(" not in repr(x) for x in everything)
    assert repr(task) == ("Problem('toy': 3 prompts of 3 to 5 tokens, clean stream, resample ablation, "
                          "logit_difference, 46 edges)")


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: eap(*model(), pairs()), ConfigError, "eap takes a Problem, not ModelConfig; make one by circuits.problem"),
    (lambda: acdc(None), ConfigError, "not NoneType"),
    (lambda: problem(model()[0], (model()[1], 3), pairs()), ConfigError, "not tuple and PromptPairs"),
    (lambda: problem(*model()), ConfigError, "not dict and int"),
    (lambda: problem("runs/x"), ConfigError, "an opened run, not str"),
    (lambda: problem(*model(), pairs(), metric="accuracy"), ConfigError, "metric='accuracy'"),
    (lambda: problem(*model(), pairs()).with_metric("accuracy"), ConfigError, "choose among logit_difference, kl"),
    (lambda: problem(*model(), pairs(), ablation="patch"), ConfigError, "choose among resample"),
    (lambda: problem(*model(), pairs(), stream="both"), ConfigError, "choose among clean, ablated"),
    (lambda: problem(*model(), pairs(), batch_size=0), ConfigError, "batch_size=0"),
    (lambda: problem(ModelConfig(vocab_size=13, ablation="none"), {}, pairs(), stream="ablated"), ConfigError, "gates"),
    (lambda: problem(ModelConfig(vocab_size=3), {}, pairs()), DataError, "beyond the model's 3 tokens"),
    (lambda: problem(ModelConfig(context_length=4), {}, pairs()), DataError, "model's context of 4"),
])
def test_what_is_no_problem_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_methods_by_name():
    task = problem(*model(), pairs())
    assert METHODS.names()[:7] == ("acdc", "eap", "eap-ig", "mask-gradient", "oracle", "edge-pruning", "random")
    np.testing.assert_array_equal(METHODS["eap"].scores(task), eap(task))
    np.testing.assert_array_equal(METHODS["random"].scores(task, seed=3), circuits.random_scores(task.graph, 3))
    with pytest.raises(DataError, match=r"method 'few' gave scores of shape \[3\]"):
        Method("few", "few", lambda problem, **_: np.zeros(3)).scores(task)
