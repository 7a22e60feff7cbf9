"""Activations by name of anybody's model: autoencoders and measures of neurons take them; docs/own_models.md runs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate import features, neurons
from jaxablate.errors import ConfigError, DataError

V, D = 7, 4


def by_name(params, tokens):
    x = params[tokens]
    return {"heads": x.reshape(*x.shape[:2], 2, D // 2), "mlp": jnp.tanh(x), "narrow": x[..., :2], "ids": tokens}


@pytest.fixture(scope="module")
def table():
    return jax.random.normal(jax.random.key(0), (V, D))


def batches(start):
    return (np.random.default_rng(i).integers(0, V, (2, 8)) for i in range(start, 400))


RUNS = [features.SaeRun(site, l1=0.5) for site in ("mlp", "heads", "mlp")]
SETTINGS = features.SaeTrainConfig(steps=20, batch_tokens=8, buffer_batches=4, learning_rate=1e-2)
CONFIG = features.AutoencoderConfig(d_in=D, d_sae=8)


@pytest.mark.filterwarnings("ignore:the autoencoder at")  # so few steps explain little
def test_autoencoders_of_named_activations_are_those_of_stacked_ones(table):
    def stacked(params, tokens):
        x = params[tokens]
        return jnp.stack([jnp.tanh(x), x], axis=2)

    ours = features.train(by_name, table, batches, RUNS, CONFIG, SETTINGS)
    theirs = features.train(stacked, table, batches, RUNS, CONFIG, SETTINGS)
    for a, b in zip(ours.autoencoders, theirs.autoencoders, strict=True):
        np.testing.assert_allclose(a.W_enc, b.W_enc, atol=1e-6)
    both = features.StackedSites(by_name, ("mlp", "heads"))
    found = features.moments(both, table, [next(batches(0))])
    assert found.mean.shape == (2, D)


@pytest.mark.parametrize(("sites", "message"), [
    (("mpl",), "site 'mpl' is none of the 4 that the function gives; nearest: mlp"),
    (("ids",), "activations of ids have shape (2, 8) for tokens (2, 8)"),
    (("mlp", "narrow"), "mlp has width 4, narrow 2; sites read together need one width"),
])
def test_named_activations_that_do_not_fit_are_refused(table, sites, message):
    with pytest.raises(ConfigError) as error:
        features.train(by_name, table, batches, [features.SaeRun(s) for s in sites], CONFIG, SETTINGS)
    assert message in str(error.value)


def text():
    rng = np.random.default_rng(0)
    for _ in range(4):
        mask = rng.random((8, 10)) < 0.9
        yield {"inputs": rng.integers(0, V, (8, 10)).astype(np.int32), "mask": mask.astype(np.float32)}


def test_neurons_of_named_activations_are_those_of_arrays(table):
    measured = neurons.measure_sites(by_name, table, text, sites=["mlp", "heads"], signed={"heads"}, rate=0.1,
                                     directions=4)
    ids = np.concatenate([b["inputs"][b["mask"] > 0] for b in text()])
    assert measured.kinds == ("mlp", "heads") and measured.tokens == len(ids)
    x = np.asarray(table)[ids]
    for name, values, signed in (("mlp", np.tanh(x), False), ("heads", x, True)):
        one, = measured.of(name)
        other, = neurons.measure_arrays(values, ids, rate=0.1, signed=signed, directions=4, name=name).groups
        for field in ("fired", "best_token", "information"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-6)
        np.testing.assert_allclose(one.measure("kurtosis"), other.measure("kurtosis"), rtol=1e-4)


def test_examples_take_activations_by_name(table):
    def two(params, tokens):
        x = by_name(params, tokens)
        return {"z": x["mlp"], "a": -x["mlp"]}  # in this order

    found = neurons.top_examples(two, table, text(), vocab_size=V, eot_id=-1, examples=2, context=3)
    assert found.activations.shape == (2, D, 2)
    best = np.tanh(np.asarray(table)).max(0)
    np.testing.assert_allclose(found.strongest[0], best, atol=1e-6)


def test_sites_without_units_for_each_token_are_refused(table):
    for options, message in (({"sites": ["ids"]}, "activations of ids have shape"),
                             ({"sites": ["mpl"]}, "site 'mpl' is none of the 4"),
                             ({"signed": {"head"}}, "site 'head' is none of the 4"), ({}, "activations of ids")):
        with pytest.raises(ConfigError, match=message):
            neurons.measure_sites(by_name, table, text, **options)
    with pytest.raises(DataError, match="activations of mlp are NaN or infinite in"):
        neurons.measure_sites(by_name, table * jnp.nan, text, sites=["mlp"])
    with pytest.raises(DataError, match="the split has no tokens"):
        neurons.measure_sites(by_name, table, lambda: iter(()))


PAGE = Path(__file__).parent.parent / "docs" / "own_models.md"


@pytest.mark.system
@pytest.mark.parametrize("title", ["A Linen module", "An Equinox model", "The SAFR classifier of this package"])
def test_a_model_of_somebody_elses_is_scored_in_under_forty_lines(title, capsys):
    if "Equinox" in title:
        pytest.importorskip("equinox", reason="the extra `test` has it; it is no part of this environment")
    code = re.search(rf"^## {title}\n.*?^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    nodes = {row[0]: float(row[1]) for row in rows if len(row) == 2 or row[-1] == "exactly"}
    assert len(nodes) >= 5 and "embed" in nodes and all(np.isfinite(list(nodes.values())))
    exact = {row[0]: float(row[3]) for row in rows if row[-1] == "exactly"}
    if exact:  # a trained model: what is patched lowers the answer, and the estimate says so
        assert exact["embed"] < -5 and nodes["embed"] == pytest.approx(exact["embed"], rel=0.3)
