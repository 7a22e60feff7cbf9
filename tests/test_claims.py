"""The tables of the papers' claims (benchmarks/claims.py): which pairs count, and what is said of them."""

import doctest
import json
import math

import numpy as np
import pytest

from benchmarks import claims
from jaxablate.commands.match import clean_loss
from jaxablate.runs.run import open_run

BASE = {"loss": 0.6, "answers": 0.9, "edges": 20.0, "L0": 10.0, "bits above random": 0.02, "mean |w|": 0.2}


def rows(scores="local", ks=claims.PAPER_KS, seeds=5, noise=0.02, **changes):
    """Pairs of gated runs and baselines, the gated ones' figures times what ``changes`` says."""
    rng, out = np.random.default_rng(0), []
    for k in ks:
        for seed in range(seeds):
            run = {name: value * changes.get(name, 1) * (1 + noise * rng.standard_normal())
                   for name, value in BASE.items()}
            run |= {name: changes.get(name, BASE[name]) for name in ("loss", "answers")}
            out.append({"variant": f"{scores}-k{k}", "seed": seed, "run": run, "equal": BASE, "last": BASE})
    return out


def line(name, found):
    return next(row for row in claims.comparison(found).rows if row[0] == name)


def test_examples_hold():
    assert doctest.testmod(claims).failed == 0


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "holds"), (1.0, "does not hold"), (1.5, "does not hold")])
def test_smaller_circuits_hold_where_they_are_smaller(factor, verdict):
    row = line("E1", rows(edges=factor))
    assert row[-1] == verdict and row[6:8] == (5, 0)
    assert float(row[5]) == pytest.approx(20 * (factor - 1), abs=0.6)


def test_local_scores_against_global_ones_and_sparse_weights():
    found = [*rows(edges=0.5), *rows("global", edges=0.9), *rows("sparse", edges=0.7)]
    found += [row | {"variant": row["variant"].replace("sparse-k", "sparse-0.")} for row in rows("sparse", edges=0.7)]
    local = line("E6", found)
    assert local[-1] == "holds" and float(local[5]) == pytest.approx(-8, abs=0.6)
    sparse = line("W1", found)
    assert sparse[-1] == "holds" and float(sparse[5]) == pytest.approx(-6, abs=0.6)
    assert {row[0] for row in claims.comparison(found).rows} == {"E1", "E2", "E3", "E4", "E5", "E6", "W1", "W2", "W3"}


def test_few_noisy_seeds_decide_nothing():
    row = line("E1", rows(seeds=3, noise=1.0, edges=0.8))
    assert row[-1] == "undecided" and row[8] > 20 * 0.47 / 2


def test_pairs_that_are_apart_or_cannot_do_the_task_are_left_out():
    assert not [row for row in claims.comparison(rows(loss=0.65)).rows if row[0] == "E1"]
    unable = rows(answers=0.7, edges=0.5)
    assert not [row for row in claims.comparison(unable).rows if row[0] == "E1"]
    assert line("E2", unable)[6] == 5  # features need no task
    some = [*rows(edges=0.5), *rows(ks=(8,), seeds=2, loss=0.7)]
    assert line("E1", some)[7] == 2


def test_the_cost_holds_below_the_published_one():
    published = math.log(6.629 / 5.73)
    for loss, verdict in ((0.6 + published / 2, "holds"), (0.6 + 2 * published, "does not hold")):
        found = rows(loss=loss)
        for i, row in enumerate(found):
            row["run"] = row["run"] | {"loss": loss + 1e-3 * (i % 3)}
        assert line("E5", found)[-1] == verdict


def test_power_is_that_of_a_t_test():
    """A paired t-test finds the smallest effect that is told in four of five draws of normal differences."""
    rng, sizes = np.random.default_rng(1), 5
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    effect = claims.smallest(spread) / np.std(spread, ddof=1)
    draws = rng.standard_normal((20_000, sizes)) + effect
    t = draws.mean(-1) / (draws.std(-1, ddof=1) / math.sqrt(sizes))
    assert (abs(t) > 2.776).mean() == pytest.approx(0.8, abs=0.01)


def test_the_checkpoint_of_equal_loss_stands_alone(baseline_run, tmp_path):
    run = open_run(baseline_run, 4)
    record, _ = claims.score.run_suite(claims.perplexity.SUITE, run)
    loss = float(clean_loss(claims.score.with_record(claims.score.empty_results(run), record)))
    assert claims.matched_step(tmp_path, 0, baseline_run, loss + 1e-6) == 4
    known = json.loads((tmp_path / "matched/seed-0/losses.json").read_text())
    assert set(known) == {"2", "4", "6"} and known["4"] == loss
    path = claims.alone(tmp_path, 0, baseline_run, 4)
    assert path == claims.alone(tmp_path, 0, baseline_run, 4) == tmp_path / "matched/seed-0/step-4"
    assert open_run(path).digest == run.digest and not list(path.parent.glob("*.partial"))
