"""The tables of the papers' claims (benchmarks/claims): which pairs count, and what is said of them."""

import dataclasses
import doctest
import json
import math
import re
import types

import numpy as np
import pytest
from scipy import special

import benchmarks.claims.__main__ as claims
from benchmarks.claims import comparisons, data, measuring, runs, studies, tables
from jaxablate.commands import score
from jaxablate.commands.match import clean_loss
from jaxablate.errors import ConfigError, DataError
from jaxablate.runs.run import open_run
from jaxablate.stats import Estimate
from jaxablate.suites import perplexity

EMBEDDED = studies.STUDIES["embedded"]
BASE = {"loss": 0.6, "answers": 0.9, "logit difference": 3.0, "edges": 20.0, "L0": 10.0,
        "bits above random": 0.02, "mean |w|": 0.2}


def rows(scores="local", ks=studies.PAPER_KS, seeds=5, noise=0.02, **changes):
    """Pairs of gated runs and baselines, the gated ones' figures times what ``changes`` says."""
    rng, out = np.random.default_rng(0), []
    for k in ks:
        for seed in range(seeds):
            run = {name: value * changes.get(name, 1) * (1 + noise * rng.standard_normal())
                   for name, value in BASE.items()}
            run |= {name: changes.get(name, BASE[name]) for name in ("loss", "answers")}
            out.append({"variant": f"{scores}-k{k}", "seed": seed, "run": run, "equal": BASE, "last": BASE})
    return out


def line(name, found, study=EMBEDDED):
    """A primary comparison, by the names of the table's columns; empty where there is no pair."""
    grid = tables.summary(found, study)
    return next((dict(zip(grid.columns, row, strict=True)) for row in grid.rows if row[0] == name), {})


@pytest.mark.parametrize("module", [comparisons, runs])
def test_examples_hold(module):
    found = doctest.testmod(module)
    assert found.failed == 0 < found.attempted


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "holds"), (0.9, "only in sign"), (1.0, "does not hold"),
                                                   (1.5, "does not hold")])
def test_smaller_circuits_hold_where_they_are_smaller(factor, verdict):
    row = line("E1", rows(edges=factor))
    assert row["verdict"] == verdict and (row["seeds"], row["left out"]) == (5, "0")
    assert float(row["difference"]) == pytest.approx(20 * (factor - 1), abs=0.6)


def test_local_scores_against_global_ones_and_sparse_weights():
    sparse = [row | {"variant": row["variant"].replace("k", "0.")} for row in rows("sparse", edges=0.7)]
    found = [*rows(edges=0.5), *rows("global", edges=0.9), *sparse]
    local = line("E6", found)
    assert local["verdict"] == "holds" and float(local["difference"]) == pytest.approx(-8, abs=0.6)
    apart = [row | {"equal": row["equal"] | {"loss": 0.7}} if row["variant"] == "local-k8" else row for row in found]
    e6 = next(claim for claim in EMBEDDED.claims if claim.name == "E6")
    table = tables.claim_table(apart, EMBEDDED, e6)
    assert dict(zip(table.columns, table.rows[0], strict=True))["left out"] == "5 apart"  # it was counted twice
    fewer = line("W1", found)
    assert (local["published"], fewer["published"]) == ("-2.6 (-13 %)", "no figure")
    assert fewer["verdict"] == "holds" and float(fewer["difference"]) == pytest.approx(-6, abs=0.6)
    assert {row[0] for row in tables.summary(found, EMBEDDED).rows} == {x.name for x in EMBEDDED.claims}


def test_a_second_look_is_at_half_the_level_and_leaves_the_first_alone():
    e1 = EMBEDDED.claims[0]
    assert (e1.name, e1.level, EMBEDDED.first_look) == ("E1", 0.025, 5)
    close = Estimate(-9.0, -17.0, -1.0)
    assert comparisons.verdict(dataclasses.replace(e1, level=0.05), close, 0.04, 20, 5) == "holds"
    assert comparisons.verdict(e1, close, 0.04, 20, 5) == "undecided"
    near = Estimate(0.0, -4.6, 4.6)  # half of the published effect is 4.7
    assert comparisons.verdict(dataclasses.replace(e1, level=0.05), near, 1.0, 20, 10) == "does not hold"
    assert comparisons.verdict(e1, near, 1.0, 20, 10) == "undecided"
    more = [*rows(seeds=10, edges=0.5), *rows("global", seeds=10, edges=0.5)]
    first = [row for row in more if row["seed"] < 5]
    assert "second look" not in tables.all_tables(first, EMBEDDED)
    both = tables.all_tables([row for row in more if (row["variant"], row["seed"]) != ("global-k2", 7)], EMBEDDED)
    assert both["summary"] == tables.summary(first, EMBEDDED)
    e1 = next(x for x in both["second look"].rows if x[0] == "E1")
    assert dict(zip(both["second look"].columns, e1, strict=True))["seeds"] == 9  # the seventh is not complete


def test_comparisons_without_a_verdict_count_in_the_correction():
    weak = [row | {"variant": row["variant"].replace("k", "0.")} for row in rows("sparse", L0=0.9, answers=0.5)]
    of = {x.of.claim.name: x for x in comparisons.primary(weak, EMBEDDED)}
    assert of["W1"].difference.value is None and {x.family for x in of.values() if x.of.claim.name[0] == "W"} == {3}
    _, p = of["W2"].of.test()
    assert p is not None and of["W2"].p == pytest.approx(3 * p)


def test_cells_that_are_complete_are_also_compared_alone():
    found = [row for row in rows(edges=0.5) if row["variant"] != "local-k2" or row["seed"]]
    whole = comparisons.complete(found, EMBEDDED.claims[0], "local", ("local-k1", "local-k2"))
    assert whole is not None and whole.models == "local: local-k1" and len(whole.pairs) == 5
    assert comparisons.complete(rows(), EMBEDDED.claims[0], "local", ("local-k1", "local-k2")) is None


def test_few_noisy_seeds_decide_nothing():
    row = line("E1", rows(seeds=3, noise=1.0, edges=0.8))
    assert row["verdict"] == "undecided" and float(row["power from"].split()[0]) > 20 * 0.47 / 2


def test_pairs_that_are_apart_or_cannot_do_the_task_are_left_out():
    unable = rows(answers=0.7, edges=0.5)
    for none, why in ((line("E1", rows(loss=0.65)), "20 apart"), (line("E1", unable), "20 unable")):
        assert (none["verdict"], none["difference"], none["seeds"], none["left out"]) == ("no verdict", "", 0, why)
    assert not line("W1", unable)  # there are no such runs
    assert line("E2", unable)["seeds"] == 5  # features need no task
    lacking = [row | {"run": row["run"] | {"answers": None, "edges": None}} for row in rows()]
    assert line("E1", lacking)["left out"] == "20 lacking"  # not measured yet
    some = [*rows(edges=0.5), *rows(ks=(8,), seeds=2, loss=0.7)]
    assert line("E1", some)["left out"] == "2 apart"
    of_all = tables.claim_table(unable, EMBEDDED, EMBEDDED.claims[0]).rows
    assert [row[8] for row in of_all if row[1] == "edges, able or not"] == [5]


def test_the_cost_holds_below_the_published_one():
    published = math.log(6.629 / 5.73)
    for loss, verdict in ((0.6 + published / 2, "holds"), (0.6 + 2 * published, "does not hold")):
        found = rows(loss=loss)
        for i, row in enumerate(found):
            row["run"] = row["run"] | {"loss": loss + 1e-3 * (i % 3)}
        assert line("E5", found)["verdict"] == verdict


def safr(**changes):
    """Ten seeds of (0, 0) and of the settings that are compared with it."""
    rng, out = np.random.default_rng(0), []
    base = {"accuracy": 0.72, "importance part": 0.02, "interaction part": -0.03, "SRS": -0.01, "capacity": 0.3,
            "capacity of important": 0.3}
    for variant in ("lambdas-0-0", "lambdas-1-0", "lambdas-0-1", "lambdas-1-1"):
        for seed in range(10):
            run = {name: value + 0.002 * rng.standard_normal() for name, value in (base | changes).items()}
            out.append({"variant": variant, "seed": seed, "run": run, "last": base, "equal": None})
    return out


@pytest.mark.parametrize(("name", "changes", "verdict"), [
    ("S1", {"accuracy": 0.718}, "holds"), ("S1", {"accuracy": 0.70}, "does not hold"),
    ("S2", {"importance part": 0.15}, "holds"), ("S3", {"capacity of important": 0.28}, "does not hold"),
    ("S4", {}, "does not hold"), ("S5", {"SRS": -0.05}, "does not hold"),
])
def test_the_second_papers_claims(name, changes, verdict):
    row = line(name, safr(**changes), studies.STUDIES["sst2"])
    assert (row["verdict"], row["seeds"]) == (verdict, 10) and "last step" not in row["measure"]


def test_a_claims_table_has_its_cells_corrected_together():
    found = [*rows(edges=0.5), *rows("global", edges=0.9), *rows("both", edges=1.0)]
    for row in found:  # fewer edges, and half a logit less at two thirds of them
        less = row["variant"].startswith("local") * (0.5 + 0.1 * row["seed"])
        row["run"] = row["run"] | {"logit difference": 3 - less, "edges": row["run"]["edges"] - 4 * less}
    grid = tables.claim_table(found, EMBEDDED, EMBEDDED.claims[0])
    lines = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
    assert [x["models"] for x in lines[:2]] == ["local", "global"] and all(x["verdict"] for x in lines[:2])
    assert not any(x["verdict"] for x in lines[2:])
    cells = [x for x in lines if "-k" in x["models"]]
    assert len(cells) == 12 and max(float(x["p, Holm"]) for x in cells) == 1
    flat = next(x for x in lines if x["measure"] == "edges at equal logit difference" and x["models"] == "local")
    assert float(flat["difference"]) == pytest.approx(-10, abs=1)
    assert set(tables.all_tables(found, EMBEDDED)) == {"summary", *EMBEDDED.shown, *(x.name for x in EMBEDDED.claims)}


def test_a_claims_table_says_nothing_twice():
    study = studies.STUDIES["long"]
    found = [*rows(ks=(8,)), *rows("global", ks=(8,))]

    def lines(measure):
        return [row[0] for row in tables.claim_table(found, study, study.claims[0]).rows if row[1] == measure]

    assert lines("edges") == ["local", "global"] and not lines("edges, able or not")
    found[0] = found[0] | {"run": found[0]["run"] | {"answers": 0.5}}
    assert lines("edges") == ["local", "global"] and lines("edges, able or not") == ["local"]
    e6 = tables.claim_table([*found, *rows(ks=(1,), loss=0.7), *rows("global", ks=(1,))], EMBEDDED, studies.E6)
    whole = "local against global"
    assert [row[0] for row in e6.rows if row[1] == "edges"] == [whole, f"{whole}: local-global-k8"]


def test_mixed_stories_have_prompts_after_each(tmp_path):
    (tmp_path / "stories.txt").write_text("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    data.mix(data.Options(folder=tmp_path, source=tmp_path / "stories.txt"))
    parts = [x.strip() for x in (tmp_path / "train.txt").read_text().split("<|endoftext|>")][:-1]
    assert len(parts) == 8 and parts[::4] == ["One.", "Two."]
    for prompt in (x for i, x in enumerate(parts) if i % 4):
        name = re.search(r" (\w+)\. \1 ", prompt)  # the answer, and the sentence that goes on with it
        assert name and prompt.count(name[1]) == 3, prompt


def test_the_pages_tables_are_those_of_the_record():
    page, record = claims.DOCS.read_text(), json.loads(claims.RECORD.read_text())
    for name, recorded in record.items():
        grids = tables.all_tables(recorded["runs"], studies.STUDIES[name])
        assert claims.with_tables(page, name, grids) == page, f"{name}: make the tables again"
        changed = [row | {"run": row["run"] | {"loss": 9.0, "accuracy": 9.0}} for row in recorded["runs"]]
        assert claims.with_tables(page, name, tables.all_tables(changed, studies.STUDIES[name])) != page or (
            f"<!-- {name} " not in page), f"{name}: its tables do not depend on its figures"


def test_runs_of_another_machine_keep_their_figures(tmp_path, monkeypatch, capsys):
    """A grid goes on elsewhere: what the folder does not have is taken from the record."""
    monkeypatch.setattr(claims, "RECORD", tmp_path / "claims.json")
    claims.RECORD.write_text(json.dumps({"embedded": {"runs": rows(edges=0.5)}}))
    folder = tmp_path / "claims_embedded"
    claims.tables(claims.Options(what="tables", folder=folder))
    out = capsys.readouterr().out
    assert out.startswith("20 runs, 0 of them read from") and "| E1 | local | edges |" in out
    with pytest.raises(DataError, match="records none of sst2; run its sweep first: jaxablate sweep claims_sst2"):
        claims.tables(claims.Options(what="tables", folder=tmp_path / "sst2"))


def test_runs_are_compared_with_the_recorded_baseline_where_their_folder_has_none(tmp_path, monkeypatch):
    suite = types.SimpleNamespace(provenance=types.SimpleNamespace(date="2026-11-30"))
    measured = types.SimpleNamespace(suites={"perplexity": suite})
    monkeypatch.setattr(runs, "figures", lambda path, _: {"loss": 0.6})
    names = [("local-k8", 0), ("local-k8", 1), ("baseline", 2), ("local-k8", 2)]
    monkeypatch.setattr(runs, "finished", lambda *_: [(*name, tmp_path, measured) for name in names])
    recorded = [{"variant": "baseline", "seed": seed, "run": {"loss": 0.5}} for seed in (0, 2)]
    last = [row.get("last") for row in runs.collect(tmp_path, EMBEDDED, recorded)]
    assert last == [{"loss": 0.5}, None, None, {"loss": 0.6}]


def test_a_folder_without_a_study_is_refused(tmp_path):
    assert studies.study_of(tmp_path / "claims_sst2")[0] == "sst2"
    with pytest.raises(ConfigError, match="no folder of a study"):
        studies.study_of(tmp_path / "other")


@pytest.mark.parametrize("sizes", [3, 4, 5, 10])
def test_power_is_that_of_a_t_test(sizes):
    """A paired t-test finds the smallest effect that is told in four of five draws of normal differences."""
    rng, spread = np.random.default_rng(1), np.linspace(-1, 1, sizes)
    effect = comparisons.smallest(spread) / np.std(spread, ddof=1)
    draws = rng.standard_normal((20_000, sizes)) + effect
    t = draws.mean(-1) / (draws.std(-1, ddof=1) / math.sqrt(sizes))
    assert (abs(t) > special.stdtrit(sizes - 1, 0.975)).mean() == pytest.approx(0.8, abs=0.01)


def test_the_checkpoint_of_equal_loss_stands_alone(baseline_run, tmp_path):
    run = open_run(baseline_run, 4)
    record, _ = score.run_suite(perplexity.SUITE, run)
    loss = float(clean_loss(score.with_record(score.empty_results(run), record)))
    assert measuring.matched_step(tmp_path, 0, baseline_run, loss + 1e-6) == 4
    known = json.loads((tmp_path / "matched/seed-0/losses.json").read_text())
    assert set(known) == {"2", "4", "6"} and known["4"] == loss
    path = measuring.alone(tmp_path, 0, baseline_run, 4)
    assert path == measuring.alone(tmp_path, 0, baseline_run, 4) == tmp_path / "matched/seed-0/step-4"
    assert open_run(path).digest == run.digest and not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize(("own", "options", "alike"), [
    (8, {}, True), (1, {}, False), (1, {"match_k": {"neurons": [8, 8], "attention": [8, 8]}}, True),
    (8, {"match_k": {"neurons": [2, 2], "attention": [2, 2]}}, False), ([8, 4], {}, False),
])
def test_bits_count_where_neurons_fire_as_often(own, options, alike, language_run):
    record, _ = score.run_suite(perplexity.SUITE, open_run(language_run))
    record = dataclasses.replace(record, suite="neurons", options=options)
    measured = score.with_record(score.empty_results(open_run(language_run)), record)
    model = {**measured.config["model"], "k_neurons": own, "k_attention": 8}
    measured = dataclasses.replace(measured, config={**measured.config, "model": model})
    assert runs.fires_alike(measured) == alike


def test_minutes_of_training_are_at_the_median_speed(tmp_path):
    assert runs.minutes(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"train": {"batch_size": 8, "sequence_length": 100}}))
    lines = [{"step": 10, "split": "train"}, *({"step": 10 * i + 20, "split": "train", "tokens_per_second": speed}
                                               for i, speed in enumerate((800.0, 1.0, 900.0)))]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines))
    assert runs.minutes(tmp_path) == pytest.approx(40 / 60)  # 40 steps, one a second
