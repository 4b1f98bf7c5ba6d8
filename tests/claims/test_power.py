"""What a study could have found, against published tables and against simulated studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from repro.claims import statistics
from repro.claims.evidence import RunResult
from repro.claims.outcomes import Verdict
from repro.claims.power import power

LEVEL, POWER = 0.95, 0.8


def two(mean: float, deviation: float = 1.0) -> list[float]:
    """Two numbers with this mean and this standard deviation."""
    return [mean - deviation / math.sqrt(2), mean + deviation / math.sqrt(2)]


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_are_those_of_published_tables(effect: float, seeds: int) -> None:
    """The paired t test, two-sided at 5 %, with a power of 80 %."""
    assert statistics.seeds_to_decide(two(effect), 0, math.inf, LEVEL, POWER) == seeds
    assert statistics.seeds_to_decide(two(-effect), 0, math.inf, LEVEL, POWER) == seeds
    scaled = two(7 - effect * 3, 3)
    assert statistics.seeds_to_decide(scaled, -math.inf, 7, LEVEL, POWER) == seeds


def test_proportions_are_told_apart_by_published_numbers() -> None:
    """An effect h of 0.5 takes 63 in each group."""
    other = math.sin(math.asin(math.sqrt(0.5)) - 0.25) ** 2
    assert statistics.seeds_to_tell_apart(0.5, other, LEVEL, POWER) == 63
    assert statistics.seeds_to_tell_apart(0.5, 0.5, LEVEL, POWER) is None
    assert statistics.seeds_to_tell_apart(0.5, 0.501, LEVEL, POWER) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_an_effect_of_the_detectable_size_is_found_in_four_of_five_studies(seeds: int) -> None:
    distance = statistics.detectable(LEVEL, POWER)[seeds]
    noise = np.random.default_rng(seeds).standard_normal((20_000, seeds))
    error = noise.std(axis=1, ddof=1) / math.sqrt(seeds)
    quantile = stats.t.ppf((1 + LEVEL) / 2, seeds - 1)
    found = noise.mean(axis=1) + distance - quantile * error > 0
    assert found.mean() == pytest.approx(POWER, abs=0.01)


def test_both_ends_of_a_range_take_more_seeds_than_one() -> None:
    one = statistics.seeds_to_decide(two(0.0), -0.5, math.inf, LEVEL, POWER)
    both = statistics.seeds_to_decide(two(0.0), -0.5, 0.5, LEVEL, POWER)
    assert (one, both) == (34, 44)  # as published for a power of 90 %
    assert statistics.seeds_to_decide(two(1.0), -0.5, 0.5, LEVEL, POWER) == one


@pytest.mark.parametrize("sample", [[1.0], [1.0, 1.0], two(0.01), two(0.0)])
def test_nothing_is_said_where_it_would_be_a_guess(sample: list[float]) -> None:
    assert statistics.seeds_to_decide(sample, 0, math.inf, LEVEL, POWER) is None


GREATER = {"relation": "greater", "arm": "a", "versus": "b"}
CLOSE = {"a": two(0.5, 0.5), "b": [0.0, 0.0]}  # one standard deviation apart


def test_an_inconclusive_check_says_how_many_seeds_would_decide(build: Any) -> None:
    claim = build.verdict(GREATER, CLOSE)
    assert claim.verdict is Verdict.INCONCLUSIVE
    assert claim.checks[0].seeds_needed == 10
    assert claim.outlook == "about 10 seeds would probably decide it"
    assert build.verdict({**GREATER, "min_seeds": 12}, CLOSE).checks[0].seeds_needed == 12


def test_a_claim_needs_what_its_hardest_check_needs(build: Any) -> None:
    runs = {**CLOSE, "c": [-1.0, -1.0], "d": [0.49, 0.49]}
    against = [GREATER, {**GREATER, "versus": "d"}]
    assert build.verdict(against, runs).outlook == ""  # nobody knows for the second
    runs["d"] = [0.25, 0.25]  # half a standard deviation
    assert build.verdict(against, runs).outlook == "about 34 seeds would probably decide it"


def test_what_is_decided_or_cannot_be_says_nothing(build: Any) -> None:
    decided = build.verdict(GREATER, {"a": [0.9, 0.91, 0.92], "b": [0.1, 0.1, 0.1]})
    assert decided.verdict is Verdict.SUPPORTED
    untested = build.verdict([GREATER, {**GREATER, "versus": "x"}], CLOSE)
    for claim in (decided, untested, build.verdict(GREATER, {"a": [1.0], "b": [0.0]})):
        assert claim.outlook == ""
    assert "seeds_needed" not in decided.checks[0].to_dict()


def test_agreeing_seeds_need_as_many_as_a_sign_test(build: Any) -> None:
    (check,) = build.verdict(GREATER, {"a": [1.0, 1.0, 1.0], "b": [0.5, 0.5, 0.5]}).checks
    assert (check.verdict, check.seeds_needed) == (Verdict.INCONCLUSIVE, 6)


def test_ratios_are_measured_in_logarithms(build: Any) -> None:
    check = {"relation": "ratio", "arm": "a", "versus": "b", "at_least": 2}
    values = [2 * math.exp(x) for x in two(0.5, 0.5)]  # one deviation above the limit
    runs = build.study({"a": values, "b": [1.0, 1.0]})
    (row,) = power(build.claims_file(check), runs, "mini")
    assert row.check.seeds_needed == 10
    distance = 0.5 * statistics.detectable(LEVEL, POWER)[2]
    assert row.detectable == pytest.approx(math.exp(distance))


def test_a_collapse_check_says_how_many_would_tell(build: Any) -> None:
    runs = [
        RunResult(arm, seed, status="diverged" if seed < lost else "finished")
        for arm, lost in (("a", 3), ("b", 1))
        for seed in range(4)
    ]
    (check,) = build.verdict({"relation": "collapses_more", "arm": "a", "versus": "b"}, runs).checks
    expected = statistics.seeds_to_tell_apart(0.75, 0.25, LEVEL, POWER)
    assert (check.verdict, check.seeds_needed) == (Verdict.INCONCLUSIVE, expected)


def test_rows_name_claim_effect_and_null_arm(build: Any) -> None:
    check = {**GREATER, "margin": 0.1, "percent": True, "null_arm": "null"}
    runs = build.study({"a": [0.9, 0.91, 0.92], "b": [0.5, 0.5, 0.5], "null": [0.5, 0.6, 0.4]})
    (row,) = power(build.claims_file(check), runs, "mini")
    assert (row.claim, row.paper) == ("C1", "1 %")
    assert (row.check.verdict, row.check.null_passes) == (Verdict.SUPPORTED, False)
    deviation = 0.01
    expected = deviation * statistics.detectable(LEVEL, POWER)[3]
    assert row.detectable == pytest.approx(expected)
    assert row.detectable_text == f"{100 * expected:.2g} points"


def test_a_weakest_step_decides_what_an_order_can_tell(build: Any) -> None:
    check = {"relation": "ordered", "arms": ["a", "b", "c"], "direction": "increasing"}
    runs = build.study({"a": [0.0, 0.0], "b": two(1.0, 0.1), "c": [2.0, 2.0]})
    wide = build.study({"a": [0.0, 0.0], "b": two(1.0, 0.1), "c": two(2.0, 0.7)})
    tells = [power(build.claims_file(check), some, "mini")[0].detectable for some in (runs, wide)]
    assert tells[0] == pytest.approx(0.1 * statistics.detectable(LEVEL, POWER)[2])
    assert tells[1] == pytest.approx(0.6 * statistics.detectable(LEVEL, POWER)[2])


def test_what_is_no_mean_or_was_not_measured_has_no_detectable_effect(build: Any) -> None:
    for check in ({**GREATER, "statistic": "median"}, {**GREATER, "versus": "x"}):
        (row,) = power(build.claims_file(check), build.study(CLOSE), "mini")
        assert (row.detectable, row.detectable_text) == (None, "–")
