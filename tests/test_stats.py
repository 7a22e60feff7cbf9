"""Numbers with intervals: how they are made, what they may not leave, and how they are printed."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxablate import stats
from jaxablate.stats import Estimate


@pytest.mark.parametrize(("successes", "trials", "expected"), [
    (81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)),
])
def test_wilsons_interval_is_that_of_newcombes_table(successes, trials, expected):
    """Newcombe 1998, table I."""
    assert stats.proportion(successes, trials).interval == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("trials", [1, 7, 10_000])
def test_a_proportions_interval_stays_inside_its_range_and_has_the_value(trials):
    for successes in (0, 1, trials):
        p = stats.proportion(successes, trials)
        assert 0 <= p.low <= p.value <= p.high <= 1 and p.n == trials


def test_a_mean_over_runs_has_students_interval():
    mean = stats.student([5.0, 6.0, 7.0])
    half = 4.302652729911275 / math.sqrt(3)  # quantile 0.975 of t with 2 degrees of freedom; standard deviation 1
    assert mean.value == 6 and mean.n == 3 and mean.interval == pytest.approx((6 - half, 6 + half))
    assert stats.student([3.0]) == Estimate(3.0, n=1)


@pytest.mark.parametrize(("values", "within", "expected"), [
    ([0.0, 6.0, 1.0], stats.COUNT, (0.0, None)), ([0.9, 1.0, 1.0], stats.FRACTION, (None, 1.0)),
    ([0.1] * 3, stats.FRACTION, (0.1, 0.1)),
])
def test_an_interval_is_cut_where_the_number_cannot_be(values, within, expected):
    mean, free = stats.student(values, within=within), stats.student(values)
    low, high = (cut if cut is not None else end for cut, end in zip(expected, free.interval, strict=True))
    assert mean.interval == pytest.approx((low, high))
    assert mean.low <= mean.value <= mean.high


def test_a_bootstrap_interval_has_the_width_theory_gives():
    x = np.random.default_rng(3).normal(size=400)
    mean = stats.mean(x)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)
    assert mean.low < mean.value < mean.high and mean.value == pytest.approx(x.mean())


def test_a_ratio_is_of_sums_over_units_and_its_ends_are_transformed():
    losses, tokens = np.array([3.0, 8.0, 1.0, 4.0]), np.array([2.0, 4.0, 1.0, 1.0])
    plain, e = stats.ratio(losses, tokens, seed=1), stats.ratio(losses, tokens, seed=1, transform=np.exp)
    assert plain.value == 2 and e.value == pytest.approx(math.exp(2))
    low, high = np.percentile(np.exp(stats.ratio_resamples(losses, tokens, seed=1)), [2.5, 97.5])
    assert e.interval == pytest.approx((low, high))
    assert stats.ratio(losses[:1], tokens[:1]) == Estimate(1.5, n=1)
    assert stats.ratio(losses, 0 * tokens).value is None


def test_paired_numerators_share_their_draws():
    x = np.random.default_rng(0).random((2, 9))
    both = stats.ratio_resamples(x, np.ones(9), seed=4)
    assert both.shape == (2, stats.RESAMPLES)
    np.testing.assert_array_equal(both[1], stats.ratio_resamples(x[1], np.ones(9), seed=4))


def test_draws_that_are_not_finite_are_left_out():
    assert stats.from_draws(1.0, np.array([np.nan, 1.0, 1.0, np.inf])).interval == (1.0, 1.0)
    assert stats.from_draws(1.0, np.array([np.nan])).interval is None
    assert stats.from_draws(math.nan, np.ones(3)) == Estimate(None)


def test_half_an_interval_and_one_the_wrong_way_round_are_refused():
    for ends in ((0.5, None), (None, 0.5), (2.0, 1.0)):
        with pytest.raises(ValueError, match="interval"):
            Estimate(1.0, *ends)


def test_whether_intervals_overlap():
    one = Estimate(1.0, 0.5, 1.5)
    assert one.overlaps(Estimate(2.0, 1.5, 2.5)) is True
    assert one.overlaps(Estimate(2.0, 1.6, 2.5)) is False
    assert one.overlaps(Estimate(2.0)) is None


@pytest.mark.parametrize("estimate", [Estimate(None), Estimate(3, 1.0, 5.0, n=2, how="bootstrap")])
def test_estimates_survive_json(estimate):
    assert stats.from_json(json.loads(json.dumps(dataclasses.asdict(estimate)))) == estimate
    assert stats.from_json({"value": 1.0, "low": 0.5, "high": None, "n": 2, "how": ""}) == Estimate(1.0, n=2)
    assert stats.from_json({"value": 1.0}) == {"value": 1.0} and stats.from_json(7) == 7


@pytest.mark.parametrize(("value", "ends", "text"), [
    (0.00012345, (), "0.0001234"), (3, (), "3"), (1e-9, (), "1.000e-09"), (0.0, (), "0"), (math.nan, (), "nan"),
    (-0.5, (), "-0.5000"), (14535249, (), "14,535,249"), (None, (), "-"),
    (6.4712, (6.31, 6.63), "6.47 [6.31, 6.63]"), (1234.5, (1000.0, 1500.0), "1,234 [1,000, 1,500]"),
    (0.5, (0.5, 0.5), "0.5000"), (2, (1, 4), "2.0 [1.0, 4.0]"),
])
def test_an_estimate_shows_the_decimals_that_its_interval_warrants(value, ends, text):
    assert str(Estimate(value, *ends)) == text
