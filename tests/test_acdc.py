"""Fast ACDC against the algorithm as it is written down: gates, windows, padding, several thresholds, kills."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.circuits import patching
from jaxablate.circuits.acdc import acdc, shuffled_order
from jaxablate.circuits.acdc_branch import Branch, decide
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer

module = sys.modules[acdc.__module__]  # the package's name `acdc` is the function

CONFIG = ModelConfig(vocab_size=23, context_length=9, d_model=12, n_layers=3, n_heads=2, ablation="local",
                     k_attention=5, k_neurons=9, attention_layers=("global", "local", "global"), window_size=4,
                     scale_attention=True)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Narrow calls, so that there is less to compile."""
    monkeypatch.setattr(module, "WIDEST", 8)


@pytest.fixture(scope="module")
def params():
    drawn = SelfAblatingTransformer(CONFIG).init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: 2.5 * x, drawn)  # effects of all sizes


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(5)
    lengths = rng.integers(4, 8, 10)
    clean = [rng.integers(1, 23, n).tolist() for n in lengths]
    corrupt = [[*c[:-1], c[-1]] for c in clean]
    for c in corrupt:
        c[1], c[2] = rng.integers(1, 23, 2).tolist()
    return PromptPairs.from_ids(clean, corrupt, [[1]] * 10, [[2]] * 10, name="drawn")


def sequential(config, params, pairs, tau, order, stream, ablation):
    """ACDC as docs/papers.md has it: one whole run of the patched model for each edge."""
    same = patching.circuit_config(config)
    clean, corrupt = patching.pair_inputs(same, params, pairs, stream)
    other = patching.make_replacement(ablation, patching.run(same, params, corrupt), corrupt.valid, stream == "ablated")
    log_probs = jax.nn.log_softmax(patching.run(same, params, clean).logits(params), axis=-1)

    def divergence(patched):
        logits = patching.patched_logits(same, params, clean, patched.astype(np.float32), other)
        return float((jnp.exp(log_probs) * (log_probs - jax.nn.log_softmax(logits, axis=-1))).sum(-1).mean())

    patched, now, kls, removed = np.zeros(len(order), bool), 0.0, [], []
    for edge in order:
        patched[edge] = True
        kl = divergence(patched)
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
    found = acdc(CONFIG, params, pairs, taus=(0.05, 0.005), stream=stream, ablation=ablation, order=order)
    for tau, run in found.runs.items():
        kls, removed = sequential(CONFIG, params, pairs, tau, order, stream, ablation)
        np.testing.assert_array_equal(run.removed, removed)
        np.testing.assert_allclose(run.kl, kls, atol=2e-5)
        assert 0 < run.n_kept < graph.n_edges  # otherwise this tests nothing
        np.testing.assert_allclose(run.final_kl, run.checked_kl, atol=1e-5)


def test_thresholds_together_are_as_alone_and_cost_less(params, pairs):
    taus = (0.2, 0.05, 0.01)
    alone = [acdc(CONFIG, params, pairs, taus=(tau,)) for tau in taus]
    together = acdc(CONFIG, params, pairs, taus=taus)
    for tau, one in zip(taus, alone, strict=True):
        np.testing.assert_array_equal(together.runs[tau].kept, one.runs[tau].kept)
    assert together.evaluated < sum(one.evaluated for one in alone)
    scores = together.scores
    assert set(np.unique(scores)) <= {*taus, np.inf}
    assert np.all(together.runs[0.01].kept[scores == np.inf])


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_memory_and_batches_change_nothing(params, pairs, ablation):
    one = acdc(CONFIG, params, pairs, taus=(0.02,), ablation=ablation).runs[0.02]
    other = acdc(CONFIG, params, pairs, taus=(0.02,), ablation=ablation, batch_size=3, memory_limit=1.0).runs[0.02]
    np.testing.assert_allclose(other.final_kl, other.checked_kl, atol=1e-5)
    np.testing.assert_array_equal(one.kept, other.kept)
    np.testing.assert_allclose(one.kl, other.kl, atol=1e-5)


class Interrupted(Exception):
    """Stands for a kill."""


def test_an_interrupted_search_goes_on(params, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)  # save after every step
    whole, file = acdc(CONFIG, params, pairs, taus=(0.05, 0.01)), tmp_path / "search.npz"
    stops = []

    def stop_at(part):
        def progress(decided, total, evaluated):
            stops.append(decided)
            if decided > part * total:
                raise Interrupted

        return progress

    for part in (0.1, 0.5, 0.8):
        with pytest.raises(Interrupted):
            acdc(CONFIG, params, pairs, taus=(0.05, 0.01), resume=file, progress=stop_at(part))
    first = len(stops)
    resumed = acdc(CONFIG, params, pairs, taus=(0.05, 0.01), resume=file, progress=lambda d, t, e: stops.append(d))
    assert stops[first] > 0.5 * 2 * whole.graph.n_edges  # it did not begin anew
    for tau, run in whole.runs.items():
        np.testing.assert_array_equal(resumed.runs[tau].kept, run.kept)
        np.testing.assert_allclose(resumed.runs[tau].kl, run.kl, atol=1e-5)
    assert resumed.decided == whole.decided
    assert not file.exists()


def test_a_search_of_something_else_is_refused(params, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)
    file = tmp_path / "search.npz"

    def stop(decided, total, evaluated):
        if decided > 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        acdc(CONFIG, params, pairs, taus=(0.05,), resume=file, progress=stop)
    with pytest.raises(CheckpointError, match="another model, task or setting"):
        acdc(CONFIG, params, pairs, taus=(0.06,), resume=file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        acdc(CONFIG, params, pairs, taus=(0.05,), resume=file)


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
    ({"taus": (0.1, -1.0)}, "tau=-1.0 must be"),
    ({"taus": (float("nan"),)}, "tau=nan must be"),
    ({"taus": ()}, "no tau is given"),
    ({"taus": (0.1,), "order": np.arange(4)}, "each of the"),
    ({"taus": (0.1,), "ablation": "patch"}, "choose among resample"),
    ({"taus": (0.1,), "batch_size": 0}, "batch_size=0"),
])
def test_bad_settings(options, message, params, pairs):
    with pytest.raises(ConfigError, match=message):
        acdc(CONFIG, params, pairs, **options)


def test_order_must_go_from_the_end(params, pairs):
    with pytest.raises(ConfigError, match="from the last layer"):
        acdc(CONFIG, params, pairs, taus=(0.1,), order=np.arange(Graph.of(CONFIG).n_edges)[::-1])


def test_prompts_must_fit_the_model(params, pairs):
    with pytest.raises(DataError, match="more than the model.s context of 3"):
        acdc(dataclasses.replace(CONFIG, context_length=3), params, pairs, taus=(0.1,))


def test_ablated_stream_needs_gates(params, pairs):
    config = dataclasses.replace(CONFIG, ablation="none")
    with pytest.raises(ConfigError, match="ablation='none'"):
        acdc(config, params, pairs, taus=(0.1,), stream="ablated")
