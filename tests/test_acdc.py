"""Fast ACDC against the algorithm as it is written down: gates, windows, padding, several thresholds, kills."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.circuits import Graph, PromptPairs, acdc, live, problem, shuffled_order
from jaxablate.circuits.acdc import Branch, decide
from jaxablate.circuits.patching import patched_final
from jaxablate.config import ModelConfig
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer

module = sys.modules[acdc.__module__]  # the package's name `acdc` is the function

CONFIG = ModelConfig(vocab_size=23, context_length=9, d_model=12, n_layers=3, n_heads=2, ablation="local",
                     k_attention=5, k_neurons=9, attention_layers=("global", "local", "global"), window_size=4,
                     scale_attention=True)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Narrow calls and one sum at a time, so that there is less to compile; the known circuit is found without."""
    monkeypatch.setattr(module, "WIDEST", 8)
    monkeypatch.setattr(live, "_MOST_TERMS", 1)


@pytest.fixture(scope="module")
def params():
    return drawn_params(SelfAblatingTransformer(CONFIG), np.zeros((1, 4), np.int32), scale=0.5)  # effects of all sizes


@pytest.fixture(scope="module")
def task(params, pairs):
    return problem(CONFIG, params, pairs)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(5)
    lengths = rng.integers(4, 8, 10)
    clean = [rng.integers(1, 23, n).tolist() for n in lengths]
    corrupt = [[*c[:-1], c[-1]] for c in clean]
    for c in corrupt:
        c[1], c[2] = rng.integers(1, 23, 2).tolist()
    return PromptPairs.from_ids(clean, corrupt, [[1]] * 10, [[2]] * 10, name="drawn")


@jax.jit
def divergence(batch, final, patched):
    """KL(clean || patched) by one whole run of the patched model; ``final`` is how the clean run ends."""
    other = patched_final(batch.decoder, batch.params, batch.inputs, patched, batch.replacement)
    clean, changed = (jax.nn.log_softmax(x @ batch.decoder.unembedding(batch.params).T) for x in (final, other))
    return (jnp.exp(clean) * (clean - changed)).sum(-1).mean()


def sequential(task, tau, order):
    """ACDC as it is written down."""
    (batch, _), = task.batches()
    patched, now, kls, removed = np.zeros(len(order), bool), 0.0, [], []
    for edge in order:
        patched[edge] = True
        kl = float(divergence(batch, task.final, patched.astype(np.float32)))
        kls.append(kl)
        removed.append(kl - now < tau)
        if removed[-1]:
            now = kl
        else:
            patched[edge] = False
    return np.array(kls), np.array(removed)


CASES = {
    "clean": ("clean", "resample", None),
    "ablated": ("ablated", "resample", None),
    "shuffled": ("clean", "resample", 1),
    "shuffled, ablated, zero": ("ablated", "zero", 2),
    "mean": ("clean", "mean", None),
    "mean by position, ablated": ("ablated", "mean_per_position", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_decisions_are_those_of_the_sequential_algorithm(case, params, pairs):
    stream, ablation, seed = CASES[case]
    graph = Graph.of(CONFIG)
    order = np.arange(graph.n_edges) if seed is None else shuffled_order(graph, seed)
    task = problem(CONFIG, params, pairs, stream=stream, ablation=ablation)
    found = acdc(task, taus=(0.05, 0.005), order=order)
    for tau, run in found.runs.items():
        kls, removed = sequential(task, tau, order)
        np.testing.assert_array_equal(run.removed, removed)
        np.testing.assert_allclose(run.kl, kls, atol=2e-5)
        assert 0 < run.n_kept < graph.n_edges  # otherwise this tests nothing
        np.testing.assert_allclose(run.final_kl, run.checked_kl, atol=1e-5)


def test_thresholds_together_are_as_alone_and_cost_less(task):
    taus = (0.2, 0.05, 0.01)
    alone = [acdc(task, taus=(tau,)) for tau in taus]
    together = acdc(task, taus=taus)
    for tau, one in zip(taus, alone, strict=True):
        np.testing.assert_array_equal(together.runs[tau].kept, one.runs[tau].kept)
    assert together.evaluated < sum(one.evaluated for one in alone)
    scores = together.scores
    assert set(np.unique(scores)) <= {*taus, np.inf}
    assert np.all(together.runs[0.01].kept[scores == np.inf])


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_memory_and_batches_change_nothing(params, pairs, ablation):
    one = acdc(problem(CONFIG, params, pairs, ablation=ablation), taus=(0.02,)).runs[0.02]
    batched = problem(CONFIG, params, pairs, ablation=ablation, batch_size=3)
    other = acdc(batched, taus=(0.02,), memory_limit=1.0).runs[0.02]
    np.testing.assert_allclose(other.final_kl, other.checked_kl, atol=1e-5)
    np.testing.assert_array_equal(one.kept, other.kept)
    np.testing.assert_allclose(one.kl, other.kl, atol=1e-5)


class Interrupted(Exception):
    """Stands for a kill."""


def test_an_interrupted_search_goes_on(task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)  # save after every step
    whole, file = acdc(task, taus=(0.05, 0.01)), tmp_path / "search.npz"
    stops = []

    def stop_at(part):
        def progress(decided, total, evaluated):
            stops.append(decided)
            if decided > part * total:
                raise Interrupted

        return progress

    for part in (0.1, 0.5, 0.8):
        with pytest.raises(Interrupted):
            acdc(task, taus=(0.05, 0.01), resume=file, progress=stop_at(part))
    first = len(stops)
    resumed = acdc(task, taus=(0.05, 0.01), resume=file, progress=lambda d, t, e: stops.append(d))
    assert stops[first] > 0.5 * 2 * whole.graph.n_edges  # it did not begin anew
    for tau, run in whole.runs.items():
        np.testing.assert_array_equal(resumed.runs[tau].kept, run.kept)
        np.testing.assert_allclose(resumed.runs[tau].kl, run.kl, atol=1e-5)
    assert resumed.decided == whole.decided
    assert not file.exists()


def test_a_search_of_something_else_is_refused(task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)
    file = tmp_path / "search.npz"

    def stop(decided, total, evaluated):
        if decided > 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        acdc(task, taus=(0.05,), resume=file, progress=stop)
    with pytest.raises(CheckpointError, match="another model, task or setting"):
        acdc(task, taus=(0.06,), resume=file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        acdc(task, taus=(0.05,), resume=file)


def test_a_decision_within_noise_is_made_again():
    branch = Branch.new(Graph(n_layers=1, n_heads=1), (0.1,), 0)
    asked = []

    def again(removed, edge):
        asked.append((removed.copy(), edge))
        return 0.0999

    assert decide(branch, np.array([0, 1]), [0.05, 0.150001], again) == (2, ())
    (removed, edge), = asked
    assert edge == 1 and removed[0] and not removed[1]
    assert decide(branch, np.array([0, 1]), [0.05, 0.16], again) == (1, (0.1,))


@pytest.mark.parametrize(("options", "message"), [
    ({"taus": (0.0,)}, "tau=0.0 must be a number above 0"),
    ({"taus": (0.1, -1.0)}, "tau=-1.0"),
    ({"taus": (float("nan"),)}, "tau=nan"),
    ({"taus": ()}, "no tau"),
    ({"taus": (0.1,), "order": np.arange(4)}, "each of the"),
    ({"taus": (0.1,), "order": np.arange(Graph.of(CONFIG).n_edges)[::-1]}, "from the last layer"),
])
def test_bad_settings(options, message, task):
    with pytest.raises(ConfigError, match=message):
        acdc(task, **options)
