"""A model built by hand has the circuit it was built with, and every method finds exactly that."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.circuits import (
    acdc,
    eap,
    eap_ig,
    edge_order,
    effects,
    first_edges,
    importance,
    known_model,
    mask_gradient,
    problem,
    random_scores,
    shuffled_order,
)
from jaxablate.circuits.patching import patched_final, source_run
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer

TAUS = (0.1, 0.03, 0.01)
# (seed, blocks, heads, stream); the ablated stream of a gated model has a smaller circuit.
CASES = [(0, 3, 4, "clean"), (2, 3, 4, "clean"), (3, 2, 3, "ablated")]
METHODS = {"eap": eap, "eap_ig": eap_ig, "mask_gradient": mask_gradient,
           "mask_gradient_path": functools.partial(mask_gradient, masks=(0.125, 0.375, 0.625, 0.875)),
           "effects": effects}


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@jax.jit
def divergences(batch, log_p, masks):
    """[m] KL(clean || patched) by the definition, with edges patched by each of the masks [m, E]."""

    def one(mask):
        final = patched_final(batch.decoder, batch.params, batch.inputs, mask, batch.replacement)
        logits = final @ batch.decoder.unembedding(batch.params).T
        return (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits))).sum(-1).mean()

    return jax.lax.map(one, masks)


class Known:
    """A known model with its runs on a task."""

    def __init__(self, seed, n_layers, n_heads, stream):
        self.model = known_model(seed, n_layers, n_heads, gated=stream == "ablated")
        self.graph, self.stream, self.truth = self.model.graph, stream, self.model.mask(stream)
        self.pairs = self.model.pairs(12, seed=seed)
        self.task = problem(self.model.config, self.model.params, self.pairs, stream=stream)
        self.clean, self.corrupt = (source_run(self.task.decoder, self.task.params, x)
                                    for x in (self.task.inputs, self.task.corrupt))

    def log_probabilities(self, final):
        """[n, V] at the end of a run."""
        return log_softmax(np.asarray(final) @ np.asarray(self.task.decoder.unembedding(self.task.params)).T)

    @functools.cached_property
    def kl(self):
        """[m, E] or [E] patched edges -> KL(clean || patched), [m] or a number."""
        batch, log_p = next(self.task.batches())[0], self.log_probabilities(self.clean.final)

        def kl(patched):
            patched = np.asarray(patched, np.float32)
            found = np.asarray(divergences(batch, log_p, np.atleast_2d(patched)))
            return found if patched.ndim == 2 else float(found[0])

        return kl

    def importance(self, method, metric="logit_difference"):
        task = self.task.with_metric(metric)
        return importance(task.target, METHODS[method](task))

    def assert_found(self, kept):
        names = np.array(self.graph.edge_names)
        assert set(names[kept]) == set(self.model.edges(self.stream))


@functools.cache
def known(*case):
    return Known(*case)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request):
    return known(*request.param)


def test_parameters_are_those_of_the_model():
    for gated in (False, True):
        model = known_model(gated=gated)
        made = drawn_params(SelfAblatingTransformer(model.config), np.zeros((1, 8), np.int32))
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype.name), dict(x)) for x in (model.params, made)]
        assert shapes[0] == shapes[1]


def test_the_seed_chooses_the_places():
    models = [known_model(seed) for seed in range(12)]
    assert len({model.edges() for model in models}) > 6
    assert len({model.vocabulary for model in models}) == 12
    assert {len(model.edges()) for model in models} == {8}
    again = known_model(3)
    jax.tree.map(np.testing.assert_array_equal, again.params, models[3].params)
    assert again.roles == models[3].roles


def test_prompts_say_what_the_docstring_says():
    model = known_model()
    pairs = model.pairs(40)
    assert set(pairs.lengths.tolist()) == {6, 8} and set(pairs.groups) == {"2 names", "3 names"}
    for row in range(40):
        n = pairs.lengths[row]
        clean, corrupt = (model.decode(x[row][-n:]).split() for x in (pairs.clean, pairs.corrupt))
        replies = {"un": "one", "deux": "two", "trois": "three", "quatre": "four", "cinq": "five", "sept": "seven"}
        for words, answers in ((clean, pairs.answers), (corrupt, pairs.wrong_answers)):
            assert words[0] == "<start>"
            said = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
            assert replies[said[words[-1]]] == model.decode(answers[row])
        assert all(a != b for a, b in zip(clean[1:], corrupt[1:], strict=True))


def test_the_model_solves_its_task_without_padding_and_with():
    model = known_model()
    ids = model.encode("<start> Ann un Bob deux Cid trois Bob")
    out = jax.jit(SelfAblatingTransformer(model.config).apply)({"params": model.params}, np.array([ids], np.int32))
    probabilities = np.exp(log_softmax(np.asarray(out.logits_clean)[0, -1]))
    assert model.decode([int(probabilities.argmax())]) == "two" and probabilities.max() > 0.999


def test_the_task_is_solved(case):
    for run, answers in ((case.clean, case.pairs.answers), (case.corrupt, case.pairs.wrong_answers)):
        assert np.take_along_axis(case.log_probabilities(run.final), answers, axis=1).min() > np.log(0.98)


def test_positions_matter_to_the_model_though_not_under_resampling():
    k = known(*CASES[0])
    block, head = map(int, k.model.roles["previous"][1:].split("."))
    params = jax.tree.map(np.array, k.task.params)
    params[f"layer_{block}"]["attention"]["query"]["kernel"][:, head] = 0
    final = source_run(k.task.decoder, params, k.task.inputs).final
    assert np.exp(np.take_along_axis(k.log_probabilities(final), k.pairs.answers, axis=1)).mean() < 0.7
    for port in "QK":
        assert not k.truth[k.graph.edge(f"Resid Start->{k.model.roles['previous']}.{port}")]


def test_the_circuit_by_definition(case):
    oracle = case.importance("effects", "kl")
    assert oracle[case.truth].min() > 0.5
    assert np.abs(oracle[~case.truth]).max() < (1e-6 if case.stream == "clean" else 1e-4)
    assert case.kl(~case.truth) < 2e-4  # the circuit alone is the model
    assert case.kl(np.ones(len(case.truth))) > 5
    some = np.flatnonzero(case.truth | (np.arange(len(case.truth)) % 5 == 0))
    np.testing.assert_allclose(oracle[some], case.kl(np.eye(len(case.truth))[some]), rtol=1e-4, atol=1e-5)


def test_distractors_are_alive(case):
    """They carry values that differ between clean and corrupt, and the shadow attends as the induction head does."""
    change = np.subtract(*map(np.asarray, (case.clean.sources, case.corrupt.sources))) * case.pairs.valid[..., None]
    size = dict(zip(case.graph.source_names, np.linalg.norm(change, axis=-1).max((1, 2)), strict=True))
    distractors = set(size) - set(case.model.roles.values())
    # The gates of the ablated stream close the other heads of the last block, at the last position; they act before it.
    assert min(size[name] for name in distractors) > 0.02
    block = case.model.roles["induction"].partition(".")[0]
    shadow = next(name for name in case.model.shadows if name.startswith(block + "."))
    answers = np.asarray(case.clean.sources[case.graph.source(shadow)])[:, -1]
    assert case.stream == "ablated" or np.linalg.norm(answers, axis=-1).min() > 0.5


def test_acdc_finds_the_circuit(case):
    found = acdc(case.task, taus=TAUS)
    for tau in TAUS:
        case.assert_found(found.runs[tau].kept)
        assert found.runs[tau].final_kl < 2e-4


def test_acdc_finds_it_in_any_order():
    k = known(*CASES[0])
    for seed in range(2):
        found = acdc(k.task, taus=[0.03], order=shuffled_order(k.graph, seed))
        k.assert_found(found.runs[0.03].kept)


def test_sequential_acdc_by_definition():
    k, tau = known(*CASES[2]), 0.03
    patched, before = np.zeros(len(k.truth)), 0.0
    for edge in range(len(patched)):
        patched[edge] = 1
        after = k.kl(patched)
        if after - before < tau:
            before = after
        else:
            patched[edge] = 0
    k.assert_found(patched == 0)


@pytest.mark.parametrize("method", METHODS)
def test_scores_put_the_circuit_first(case, method):
    scores = case.importance(method)
    inside, outside = scores[case.truth], np.abs(scores[~case.truth])
    assert inside.min() > 50 * outside.max()  # so the area under the ROC is 1
    for search in ("top", "greedy"):
        order = edge_order(case.graph, scores, search=search)
        case.assert_found(first_edges(case.graph, order, int(case.truth.sum()), prune=False))


@pytest.mark.parametrize(("method", "case"), [("eap_ig", 0), ("mask_gradient_path", 2), ("effects", 0)])
def test_scores_of_the_divergence_put_the_circuit_first(method, case):
    k = known(*CASES[case])
    scores = k.importance(method, "kl")
    assert scores[k.truth].min() > 50 * np.abs(scores[~k.truth]).max()


def test_random_scores_do_not_find_it():
    k = known(*CASES[0])
    order = edge_order(k.graph, random_scores(k.graph, 0))
    assert k.truth[order[:8]].sum() < 3


@pytest.mark.parametrize("shape", [{"n_layers": 1}, {"n_heads": 1}, {"n_heads": 5}, {"n_heads": 16}])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ConfigError, match="n_layers=1 must be|does not fit; choose one of"):
        known_model(**shape)


def test_unknown_words_are_refused():
    model = known_model()
    with pytest.raises(DataError, match="has no word 'Zoe'"):
        model.encode("<start> Zoe un")


BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.system
def test_the_tutorial_prints_what_it_says(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "docs" / "known_circuit.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, printed in BLOCK.findall(text):
        exec(compile(code, "docs/known_circuit.md", "exec"), names)
        shown = capsys.readouterr().out
        assert NUMBER.sub("", shown).split() == NUMBER.sub("", printed).split()
        found, said = ([float(x) for x in NUMBER.findall(part)] for part in (shown, printed))
        np.testing.assert_allclose(found, said, rtol=0.01, atol=0.011)  # the last digit may fall either way
    assert (tmp_path / "known_circuit.png").exists()
