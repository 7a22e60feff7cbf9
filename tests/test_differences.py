"""Differences of configurations: intervals, tests over seeds, what is shown of them in 80 columns, and files."""

import csv
import dataclasses
import io

import pytest
from faults.hostile import TEXTS
from helpers.commands import error_of, run_command
from helpers.results import record, results
from scipy import stats as scipy_stats

from jaxablate import stats
from jaxablate.errors import ConfigError
from jaxablate.reports import results as files
from jaxablate.reports.compare import ScoredRun, compare, select
from jaxablate.reports.differences import differences, table, terminal_view
from jaxablate.reports.results import Figure
from jaxablate.reports.tables import latex, markdown
from jaxablate.stats import Estimate
from jaxablate.terminal import PlainConsole

FOUR = {0: 1.80, 1: 1.82, 2: 1.79, 3: 1.85}
EIGHT = {0: 1.83, 1: 1.88, 2: 1.80, 3: 1.87}


def runs(values, k, name="perplexity clean"):
    """A run for each seed whose figure is a value, and a second figure that no seed changes."""
    def one(seed, value):
        figures = [Figure(name, Estimate(value, value - 0.1, value + 0.2), better="down"), Figure("edges", 7, "edges")]
        return ScoredRun(name=f"runs/k{k}/seed-{seed}",
                         results=results(k=k, seed=seed, suites={"perplexity": record(figures=figures)}))

    return [one(seed, value) for seed, value in values.items()]


def shown(renderable, width=80):
    console = PlainConsole(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_same_seeds_are_pairs():
    comparison = compare([*runs(FOUR, 4), *reversed(runs(EIGHT, 8))])  # by seed, whatever the order
    first, second = differences(comparison)
    reference = scipy_stats.ttest_rel([EIGHT[s] for s in range(4)], [FOUR[s] for s in range(4)])
    low, high = reference.confidence_interval()
    assert first.kind == "paired" and first.p == pytest.approx(reference.pvalue) == first.corrected
    assert float(first.estimate) == pytest.approx(0.03) and first.estimate.interval == pytest.approx((low, high))
    assert (second.kind, second.p, second.corrected, float(second.estimate)) == ("paired", None, None, 0)


def test_other_seeds_are_not():
    comparison = compare([*runs(FOUR, 4), *runs({5: 1.9, 6: 1.7, 7: 2.0}, 8)])
    first = differences(comparison)[0]
    reference = scipy_stats.ttest_ind([1.9, 1.7, 2.0], list(FOUR.values()), equal_var=False)
    low, high = reference.confidence_interval()
    assert first.kind == "unpaired" and first.p == pytest.approx(reference.pvalue)
    assert first.estimate.interval == pytest.approx((low, high))


def test_single_runs_have_an_interval_and_no_test():
    first, second = differences(compare([*runs({0: 1.0}, 4), *runs({1: 3.0}, 8)]))
    half = (0.1**2 + 0.2**2) ** 0.5
    assert (first.kind, first.p) == ("single", None) and first.estimate.interval == pytest.approx((2 - half, 2 + half))
    assert second.kind == "" and not second.estimate.has_interval
    lone = differences(compare([*runs(FOUR, 4), *runs({0: 3.0}, 8)]))[0]
    assert (lone.kind, lone.p, lone.estimate.interval) == ("", None, None)


def test_another_reference_turns_the_sign():
    comparison = compare([*runs(FOUR, 4), *runs(EIGHT, 8)])
    there, back = differences(comparison)[0], differences(comparison, 1)[0]
    assert float(there.estimate) == -float(back.estimate) and there.p == back.p


@pytest.mark.parametrize("ps", [[], [0.3], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9], [1e-9, 1.0]])
def test_holms_correction_rejects_what_its_steps_reject(ps):
    """Holm (1979): walk the p values upwards, compare the i-th of m with alpha / (m - i), stop at the first that is not
    below."""
    corrected = stats.holm(ps)
    for alpha in (0.01, 0.02, 0.05, 0.1, 0.5):
        rejected = set()
        for i, j in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
            if ps[j] > alpha / (len(ps) - i):
                break
            rejected.add(j)
        assert {j for j, p in enumerate(corrected) if p <= alpha} == rejected


def test_all_tests_that_are_shown_are_corrected_together():
    sixteen = {seed: value + 0.5 + seed / 100 for seed, value in FOUR.items()}
    both = compare([*runs(FOUR, 4), *runs(EIGHT, 8), *runs(sixteen, 16)])
    found = [d for d in differences(both) if d.p is not None]
    assert [d.corrected for d in found] == stats.holm([d.p for d in found]) and len(found) == 2
    assert found[1].corrected == 2 * found[1].p
    assert "Holm's method for the 2 tests" in table(both).caption


@pytest.mark.parametrize(("a", "b"), [
    (Estimate(None), Estimate(1)), (Estimate(1), Estimate(None, n=0))])
def test_what_is_missing_has_no_difference(a, b):
    assert stats.difference(a, b).value is None


def test_figures_are_chosen_by_words_patterns_and_suites():
    both = dataclasses.replace(results(), suites={
        "ioi": record("ioi", [Figure("accuracy clean", 1.0), Figure("accuracy ablated", 0.5)]),
        "perplexity": record("perplexity", [Figure("perplexity clean", 2.0)])})
    one = [ScoredRun(name="a", results=both)]

    def chosen(**options):
        return [f"{c.suite}/{c.name}" for c in compare(select(one, **options)).columns]

    assert chosen(suites=["perplexity"]) == ["perplexity/perplexity clean"]
    assert chosen(figures=["CLEAN"]) == ["ioi/accuracy clean", "perplexity/perplexity clean"]
    assert chosen(figures=["ioi/*ablated", "perp*"]) == ["ioi/accuracy ablated", "perplexity/perplexity clean"]
    assert chosen(figures=["accuracy a"], suites=["ioi"]) == ["ioi/accuracy ablated"]
    with pytest.raises(ConfigError, match="--rows 'acuracy clean' is in no run; did you mean 'accuracy clean'"):
        chosen(figures=["acuracy clean"])
    with pytest.raises(ConfigError, match="--suites 'gates' is in no run; there are ioi, perplexity"):
        chosen(suites=["gates"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_comparisons_fit_80_columns(count):
    found = [run for i in range(count) for run in runs({s: v + i * (s + 1) / 50 for s, v in FOUR.items()}, 4 + i,
                                                       name="share of neurons that never fire, in the clean stream")]
    comparison = compare(found)
    text = shown(terminal_view(comparison, 80))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert ("difference" in text) == (1 < count <= 3)
    assert ("own intervals are left out" in " ".join(text.split())) == (1 < count <= 3)
    assert "Holm" in text or count not in (3,)
    wide = shown(terminal_view(comparison, 200), 200)
    assert "left out" not in wide
    assert "difference" in shown(terminal_view(comparison, 80, 0)) or count == 1


def test_a_second_table_is_written_below_the_first(tmp_path, capsys):
    folders = []
    for run in (*runs(FOUR, 4), *runs(EIGHT, 8), *runs(FOUR, 16), *runs(EIGHT, 32)):
        folders.append(tmp_path / run.name)
        files.write(folders[-1], run.results)
    chosen = ("--rows", "perplexity clean", "--against", folders[4])
    for name in ("t.tex", "t.md", "t.csv"):
        run_command("compare", *folders, "--out", tmp_path / name, *chosen)
    out = capsys.readouterr().out
    assert "Differences are from k_neurons 8" in out and "edges" not in out
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"t.tex", "t.md", "t.csv"}
    assert (tmp_path / "t.tex").read_text().count(r"\\") == 5
    text = (tmp_path / "t.md").read_text()
    assert "| suite | figure | configuration | difference | p |" in text and text.count("| k\\_neurons") == 0
    assert len(list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text())))) == 5
    line = error_of(capsys, "compare", *folders, "--against", tmp_path)
    assert "is none of the runs that are compared" in line
    assert "did you mean" in error_of(capsys, "compare", *folders, "--rows", "perplexty")


@pytest.mark.parametrize("text", [x for x in TEXTS if x.strip() and len(x) < 1000], ids=ascii)
def test_names_of_figures_are_text_in_every_table(text):
    comparison = compare([*runs(FOUR, 4, name=text), *runs(EIGHT, 8, name=text)])
    grid = table(comparison)
    assert len(latex(grid).splitlines()) == 9 and markdown(grid).count("\n") == 6
    out = shown(terminal_view(comparison, 80))
    assert "\x1b" not in out and "\u202e" not in out and "\x07" not in out
