from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from repro.claims import statistics


def test_t_interval_is_scipys():
    x = np.random.default_rng(0).normal(size=7)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    ours = statistics.t_interval(x, 0.9)
    assert ours == pytest.approx((x.mean(), expected.low, expected.high))


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_t_interval_covers_the_mean(seeds, level):
    draws = np.random.default_rng(seeds).normal(3, 2, (4000, seeds))
    intervals = [statistics.t_interval(x, level) for x in draws]
    covered = np.mean([estimate.low <= 3 <= estimate.high for estimate in intervals])
    assert covered == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 4000))


def test_bootstrap_covers_nearly_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(1.0, (300, 20))
    intervals = [statistics.bootstrap_interval(x) for x in draws]
    covered = np.mean([estimate.low <= 1 <= estimate.high for estimate in intervals])
    assert covered > 0.88


def test_bootstrap_is_repeatable():
    x = np.random.default_rng(0).exponential(size=12)
    assert statistics.bootstrap_interval(x) == statistics.bootstrap_interval(x)


def test_the_skewed_interval_is_never_narrower_than_students():
    rng = np.random.default_rng(0)
    pairs = [
        (statistics.skewed_interval(x), statistics.t_interval(x))
        for x in rng.exponential(size=(20, 12))
    ]
    assert all(wide.low <= student.low for wide, student in pairs)
    assert all(wide.high >= student.high for wide, student in pairs)
    assert any(wide.high > student.high for wide, student in pairs)  # The long tail is followed.


def test_the_judge_uses_the_bootstrap_only_with_enough_seeds(build):
    check = {"relation": "at_least", "arm": "a", "value": 0.5, "interval": "bootstrap"}
    check["metric"] = "test/margin"  # which no bound holds for
    x = np.random.default_rng(0).exponential(size=statistics.BOOTSTRAP_MIN_SEEDS).tolist()
    many = build.verdict(check, build.study({"a": x}, "test/margin")).checks[0]
    assert (many.low, many.high) == statistics.skewed_interval(x)[1:]
    few = build.verdict(check, build.study({"a": x[:5]}, "test/margin")).checks[0]
    assert (few.low, few.high) == statistics.t_interval(x[:5])[1:]
    assert "too few for the bootstrap" in few.reason


def test_sign_test_seeds():
    assert [statistics.sign_test_seeds(level) for level in (0.5, 0.75, 0.9, 0.95, 0.99)] == [
        2,
        3,
        5,
        6,
        8,
    ]


def test_identical_means_to_nine_digits():
    assert statistics.identical([0.0, 0.0])
    assert statistics.identical([0.3, 0.1 + 0.2])
    assert not statistics.identical([1.0, 1.00001])


def test_newcombe_interval_matches_the_published_example():
    """Newcombe (1998), table II, method 10: 56/70 against 48/80."""
    estimate = statistics.compare_proportions(56, 70, 48, 80).estimate
    assert estimate == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_barnard_p_value_by_hand():
    """Only 3 of 3 against 0 of 3 is as extreme; its chance p³(1-p)³ is largest at one half."""
    result = statistics.compare_proportions(3, 3, 0, 3)
    assert result.p_greater == pytest.approx(1 / 64)
    assert result.p_less == pytest.approx(1)


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("p", [0.2, 0.6])
def test_newcombe_interval_covers_the_difference(seeds, p):
    rng = np.random.default_rng(seeds)
    draws = rng.binomial(seeds, (p, p + 0.2), (2000, 2))
    estimates = [
        statistics.compare_proportions(b, seeds, a, seeds).estimate for a, b in draws.tolist()
    ]
    assert np.mean([e.low <= 0.2 <= e.high for e in estimates]) > 0.93


def test_slopes_are_numpys():
    rng = np.random.default_rng(0)
    x, y_SX = rng.normal(size=6), rng.normal(size=(4, 6))
    assert statistics.slopes(x, y_SX) == pytest.approx(np.polyfit(x, y_SX.T, 1)[0])


def test_slope_interval_covers_a_power_law():
    rng = np.random.default_rng(0)
    x = np.log([1.0, 2.0, 4.0, 8.0])
    intervals = [
        statistics.t_interval(statistics.slopes(x, 1.5 * x + rng.normal(0, 0.1, (5, 4))))
        for _ in range(2000)
    ]
    covered = np.mean([estimate.low <= 1.5 <= estimate.high for estimate in intervals])
    assert covered == pytest.approx(0.95, abs=0.017)
