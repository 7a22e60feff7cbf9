"""The suite `sae`: units, intervals, groups of seeds, what is shown."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxablate import features, stats
from jaxablate.features.metrics import COLUMNS, FORMULAS, estimates
from jaxablate.reports import tables
from jaxablate.reports.html import draw
from jaxablate.reports.panels import Curves, Grid, HistogramGrid, panel_from_dict
from jaxablate.stats import Estimate
from jaxablate.suites import autoencoders as suite
from jaxablate.suites.autoencoders import StoredAutoencoder


def sums(**changes):
    """Three units of 1, 2 and 1 tokens."""
    columns = {
        "tokens": [1, 2, 1], "ce": [1, 2, 1], "ce_sae": [1.5, 3, 1.5], "ce_zero": [3, 6, 3], "ce_mean": [2, 4, 2],
        "kl_sae": [0.1, 0.2, 0.1], "kl_zero": [1, 2, 1], "kl_mean": [1, 2, 1], "l0": [2, 8, 4], "l1": [1, 2, 1],
        "squared_error": [1, 1, 0], "variance": [2, 4, 2], "explained_variance_saelens": [0.5, 1, 0.5],
        "cosine": [1, 2, 1],
    }
    return np.stack([np.array((columns | changes)[name], float) for name in COLUMNS], axis=-1)


def test_estimates_by_hand():
    found = estimates(sums())
    assert found["l0"].value == pytest.approx(14 / 4)
    assert 2 <= found["l0"].low < 14 / 4 < found["l0"].high <= 4
    assert found["ce_score_zero"] == Estimate(0.75, 0.75, 0.75, n=3, how="bootstrap")  # the same in each unit
    assert found["ce_score_mean"].value == 0.5
    assert found["explained_variance"].value == 1 - 2 / 8
    assert found["kl"].value == pytest.approx(0.1)
    assert found["mse"].value == 0.5


def test_no_value_where_there_is_none():
    nothing = np.full(3, np.nan)
    found = estimates(sums(**{name: nothing for name in COLUMNS if name.startswith(("ce", "kl"))}))
    assert found["ce_score_zero"].value is found["kl"].value is found["ce"].value is None
    assert found["l0"].low is not None
    assert estimates(sums()[:1])["l0"] == Estimate(2.0, n=1)  # a single unit has no interval


def row(name, l0, *, kind="L1 5", seed=0, control="none", site="clean.layer_0.mlp_out", score=0.75, steps=4000):
    values = dict.fromkeys(FORMULAS, 0.5) | {"l0": l0, "ce_score_zero": None if control != "none" else score}
    return StoredAutoencoder(
        name=name, site=site, kind=kind, control=control, seed=seed, steps=steps, learning_rate=1e-3, latents=16,
        group=f"{site} {kind} {control} {steps}", tokens=100, dead=3, density_histogram=(0,) * 11 + (13,),
        measures={key: Estimate(None) if value is None else Estimate(value, value - 0.25, value + 0.25)
                  for key, value in values.items()},
    )


ROWS = (
    row("other-a1", 9.0, site="clean.layer_1.mlp_out"), row("paper-b2", 4.0), row("paper-c3", 6.0, seed=1),
    row("less-d4", 12.0, kind="L1 1"), row("noise-e5", 40.0, control="gaussian"),
)


def result(rows=ROWS, passed_over=()):
    return suite.SaeResult(paper_site="clean.layer_0.mlp_out", autoencoders=tuple(rows), seeds=suite.seed_groups(rows),
                           passed_over=tuple(passed_over), unit="stories", units=40)


def test_seeds_become_a_mean():
    (group,) = suite.seed_groups(ROWS)
    assert group.members == ("paper-b2", "paper-c3")
    assert group.means["l0"] == stats.student([4.0, 6.0], within=stats.COUNT) and group.means["l0"].low == 0
    assert group.means["dead"].value == 3
    none = suite.seed_groups((row("a", 1.0, control="gaussian"), row("b", 2.0, control="gaussian", seed=1)))
    assert none[0].means["ce_score_zero"] == Estimate(None)


def test_headline_has_each_kind_once_and_the_papers_site_first():
    figures = {figure.name: figure for figure in result().headline()}
    assert list(figures)[:3] == ["L0 at L1 5", "CE score at L1 5", "explained var. at L1 5"]
    assert "L0 at L1 1" in figures and "L0 at L1 5, clean.layer_1.mlp_out" in figures and len(figures) == 9
    assert figures["L0 at L1 5"].estimate.value == 5.0 and figures["CE score at L1 5"].better == "up"
    assert figures["L0 at L1 1"].estimate.low == pytest.approx(11.75)


def test_headline_names_what_tells_autoencoders_apart():
    names = [f.name for f in result((row("x-1", 4.0), row("y-2", 5.0, steps=100))).headline()]
    assert "L0 at L1 5, 16 latents, 4,000 steps, rate 0.001000" in names and len(set(names)) == 6
    same = [dataclasses.replace(row(f"x-{letter * 8}", 4.0), group=letter) for letter in "ab"]
    assert "L0 at L1 5, bbbbbbbb" in [f.name for f in result(same).headline()]
    alike = [dataclasses.replace(row(f"{letter}-samesame", 4.0), group=letter) for letter in "ab"]
    assert "L0 at L1 5, b-samesame" in [f.name for f in result(alike).headline()]
    theirs = [dataclasses.replace(row(name, 4.0), group=name) for name in ("jumprelu_train_inf", "batchtopk_inf")]
    assert "L0 at L1 5, jumprelu_train_inf" in [f.name for f in result(theirs).headline()]


def test_panels_survive_json_and_can_be_drawn():
    panels = result(passed_over=[("folder", "why")]).panels()
    for panel in panels:
        assert panel_from_dict(json.loads(json.dumps(dataclasses.asdict(panel), allow_nan=False))) == panel
        assert isinstance(panel, Grid) or draw(panel)
    by_title = {panel.title: panel for panel in panels}
    assert by_title["Passed over"].rows == (("folder", "why"),)
    losses = by_title["Sparsity, and what the model loses"]
    assert losses.rows[-1][2] == "Gaussian vectors" and losses.rows[-1][5] == Estimate(None)
    assert losses.rows[1][4] == Estimate(4.0, 3.75, 4.25) and losses.rows[1][-1] == "3 of 16"
    curves = by_title["Explained variance and sparsity"]
    assert isinstance(curves, Curves)
    assert {s.label: s.x for s in curves.series} == {
        "layer_1.mlp_out, the model": (9.0,), "layer_0.mlp_out, the model": (4.0, 6.0, 12.0),
        "layer_0.mlp_out, Gaussian vectors": (40.0,)}
    assert all("Gaussian" not in s.label for s in by_title["CE score and sparsity"].series)
    (histograms,) = (panel for panel in panels if isinstance(panel, HistogramGrid))
    assert len(histograms.histograms) == 5 and histograms.histograms[0].apart == 3


def test_nothing_measured_shows_what_was_passed_over():
    empty = result((), [("folder", "it belongs to another model")])
    assert empty.headline() == () and [panel.title for panel in empty.panels()] == ["Passed over"]


def test_the_terminal_shows_the_same(capsys):
    Console(width=160).print(tables.terminal(result().panels()[0]))
    text = capsys.readouterr().out
    assert "4.00 [3.75, 4.25]" in text and "Gaussian vectors" in text and "3 of 16" in text


def test_gaussian_vectors_have_the_moments_they_are_made_of():
    mix = np.random.default_rng(0).normal(size=(5, 5))

    def activations(params, tokens):
        x = params[tokens]
        return jnp.stack([x @ jnp.asarray(mix, jnp.float32) + 3, 10 * x], axis=2)

    table = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    text = [np.random.default_rng(i).integers(0, 50, (8, 16)) for i in range(40)]
    found = features.moments(activations, table, text)
    x = np.concatenate([np.asarray(activations(table, t)).reshape(-1, 2, 5) for t in text])
    for site in (0, 1):
        covariance = np.cov(x[:, site].T, bias=True)
        np.testing.assert_allclose(found.mean[site], x[:, site].mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.root[site] @ found.root[site], covariance, rtol=1e-3, atol=1e-3)
    draws = features.GaussianActivations(("a", "b"), seed=3)
    again = features.GaussianActivations(("b",), seed=3)
    first, second = (next(features.GaussianActivations.batches((64, 512))(start)) for start in (0, 1))
    sample = np.asarray(draws(found, first))
    assert sample.shape == (64, 512, 2, 5) and np.any(sample != np.asarray(draws(found, second)))
    flat = sample.reshape(-1, 2, 5)
    np.testing.assert_allclose(flat.mean(0), found.mean, atol=0.15)
    np.testing.assert_allclose(np.cov(flat[:, 0].T), found.root[0] @ found.root[0], rtol=0.1, atol=0.3)
    alone = features.Moments(found.mean[1:], found.root[1:])
    np.testing.assert_array_equal(np.asarray(again(alone, first))[:, :, 0], sample[:, :, 1])
