"""What single relations do beyond comparing means, and how a relation is added."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from scipy import stats

from repro.claims import statistics
from repro.claims.evidence import Evidence, RunResult
from repro.claims.file import check_arms, parse_claims
from repro.claims.intervals import Region
from repro.claims.outcomes import Verdict
from repro.claims.relations import RELATIONS, MetricCheck, Outcome
from repro.claims.relations.curves import steps_to
from repro.claims.relations.pairs import Level
from repro.errors import UserError

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = (
    Verdict.SUPPORTED,
    Verdict.NOT_SUPPORTED,
    Verdict.INCONCLUSIVE,
)
NOISE = (-0.010, 0.004, 0.001, -0.003, 0.008)
A_OVER_B = {"arm": "a", "versus": "b"}


def complaint(build, check) -> str:
    with pytest.raises(UserError) as caught:
        parse_claims({"claims": [build.claim({"metric": "m", **check})]}, "claims.yaml")
    return str(caught.value).removeprefix("claims.yaml, claim C1, checks[0]: ")


FIVE_TIMES = {"relation": "greater", **A_OVER_B, "times": 5, "floor": 0}


class TestTimesAndFloor:
    def test_the_other_side_counts_several_times(self, build):
        runs = {"a": [0.10 + e for e in NOISE], "b": [0.015 - e / 10 for e in NOISE]}
        outcome = build.verdict(FIVE_TIMES, runs)
        assert outcome.verdict is SUPPORTED
        [check] = outcome.checks
        assert check.effect == pytest.approx(0.10 - 5 * 0.015)
        assert check.compared == "a − 5 × max(b, 0), test/accuracy"
        assert build.verdict({**FIVE_TIMES, "times": 8}, runs).verdict is NOT_SUPPORTED

    def test_a_negative_other_side_counts_as_the_floor(self, build):
        runs = {"a": [e - 0.05 for e in NOISE], "b": [-0.1] * 5}
        assert build.verdict(FIVE_TIMES, runs).verdict is NOT_SUPPORTED
        free = {name: value for name, value in FIVE_TIMES.items() if name != "floor"}
        assert build.verdict(free, runs).verdict is SUPPORTED

    def test_two_metrics_are_both_named(self, build):
        runs = [RunResult(arm, 0, metrics={"m": 1.0, "n": 2.0}) for arm in "ab"]
        check = {**FIVE_TIMES, "metric": "m", "versus_metric": "n"}
        assert build.verdict(check, runs).checks[0].compared == "a, m − 5 × max(b, 0), n"

    def test_times_is_positive(self, build):
        assert "greater than 0" in complaint(build, {**FIVE_TIMES, "times": 0})


class TestMedian:
    SKEWED = (0.1, 0.2, 0.15, 0.12, 0.18, 0.11, 90.0)

    def test_one_wild_seed_decides_nothing(self, build):
        check = {"relation": "at_least", "arm": "a", "value": 0.05, "range": [0, 100]}
        assert build.verdict(check, {"a": self.SKEWED}).verdict is INCONCLUSIVE
        outcome = build.verdict({**check, "statistic": "median"}, {"a": self.SKEWED})
        assert outcome.verdict is SUPPORTED
        [judged] = outcome.checks
        assert (judged.effect, judged.low, judged.high) == (0.15, 0.1, 90.0)
        assert judged.compared == "median of a, test/accuracy"

    def test_differences_are_taken_before_the_median(self, build):
        ours, theirs = (9.0, 1.0, 5.0, 7.0, 3.0, 8.0), (8.9, 0.9, 4.8, 6.9, 2.8, 7.9)
        check = {"relation": "greater", **A_OVER_B, "statistic": "median"}
        outcome = build.verdict(check, {"a": ours, "b": theirs})
        assert outcome.verdict is SUPPORTED
        assert outcome.checks[0].effect == pytest.approx(0.1)

    @pytest.mark.parametrize("relation", ["ordered", "ratio"])
    def test_other_relations_know_medians_too(self, build, relation):
        checks: dict[str, dict[str, Any]] = {
            "ordered": {"relation": "ordered", "arms": ["b", "a"], "direction": "increasing"},
            "ratio": {"relation": "ratio", **A_OVER_B, "at_least": 1},
        }
        check = checks[relation]
        runs = {"a": [2.0, 2.1, 2.2, 2.3, 2.4, 2000.0], "b": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
        assert build.verdict({**check, "statistic": "median"}, runs).verdict is SUPPORTED

    def test_five_seeds_are_too_few(self, build):
        check = {"relation": "at_least", "arm": "a", "value": 0.05, "statistic": "median"}
        outcome = build.verdict(check, {"a": self.SKEWED[:5]})
        assert outcome.verdict is INCONCLUSIVE
        assert outcome.reason == "5 seeds; a median needs at least 6"

    def test_it_has_one_interval(self, build):
        check = {"relation": "at_least", "arm": "a", "value": 0, "statistic": "median"}
        message = "interval: is for means; a median's comes from order statistics"
        assert complaint(build, {**check, "interval": "t"}) == message

    @pytest.mark.parametrize("level", [0.8, 0.95])
    @pytest.mark.parametrize("seeds", [6, 9, 20])
    def test_the_interval_covers_the_median_whatever_the_noise(self, seeds, level):
        rng = np.random.default_rng(seeds)
        for draws in (rng.exponential(1.0, (4000, seeds)), rng.standard_cauchy((4000, seeds))):
            median = np.log(2) if draws.min() >= 0 else 0.0
            intervals = [statistics.median_interval(x, level) for x in draws]
            wrong = (1 - level) / 2 + 3.5 * np.sqrt((1 - level) / 2 / 4000)
            assert np.mean([estimate.low > median for estimate in intervals]) <= wrong
            assert np.mean([estimate.high < median for estimate in intervals]) <= wrong

    def test_no_narrower_pair_of_order_statistics_would_do(self):
        x = np.arange(20.0)
        _, low, high = statistics.median_interval(x)
        assert high == 19 - low
        # The median is missed below if no more than ``low`` values lie under it.
        assert stats.binom.cdf(low, 20, 0.5) <= 0.025 < stats.binom.cdf(low + 1, 20, 0.5)

    def test_too_few_values_are_refused(self):
        with pytest.raises(ValueError, match="5 values are too few"):
            statistics.median_interval(range(5))


EACH = {"relation": "at_least", "metric": "acc/{each}", "arm": "a", "value": 0.5}


class TestEach:
    def test_all_have_to_hold(self, build):
        runs = [
            RunResult("a", seed, metrics={"acc/x": 0.9 + e, "acc/y": 0.8 - e, "acc/z": 0.4 + e})
            for seed, e in enumerate(NOISE)
        ]
        good = build.verdict({**EACH, "each": ["x", "y"]}, runs)
        assert good.verdict is SUPPORTED
        assert [check.compared for check in good.checks] == ["a, acc/x", "a, acc/y"]
        assert build.verdict({**EACH, "each": ["x", "z"]}, runs).verdict is NOT_SUPPORTED

    def test_arms_are_filled_in_too(self, build):
        claims = build.claims_file(
            {"relation": "greater", "arm": "{each}", "versus": "b", "each": ["a", "c"]},
            {"relation": "trend", "arms": {"{each}_1": 1, "b": 2}, "direction": "increasing",
             "each": ["a", "c"]},
        )  # fmt: skip
        [claim] = claims.claims
        assert [check.arm_names() for check in claim.checks_at("mini")] == [
            ("a", "b"),
            ("c", "b"),
            ("a_1", "b"),
            ("c_1", "b"),
        ]
        with pytest.raises(UserError, match=r"checks\[1\]: unknown arm 'c_1'"):
            check_arms(claims, ["a", "b", "c", "a_1"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, "each: lists what {each} stands for in the other fields; say both"),
            ({"metric": "m", "each": ["x"]}, "each: lists what {each} stands for in the other"),
            ({"each": ["x", "x"]}, "each: one is listed twice"),
        ],
    )
    def test_each_and_its_place_come_together(self, build, change, message):
        assert complaint(build, {**EACH, **change}).startswith(message)

    def test_every_filled_check_has_to_make_sense(self, build):
        check = {"relation": "greater", "arm": "{each}", "versus": "b", "each": ["a", "b"]}
        assert complaint(build, check).startswith("the two sides are the same")


def curves(**series: list[dict[int, float]]) -> list[RunResult]:
    return [
        RunResult(arm, seed, series=lambda metric, one=one: one if metric == "val/loss" else {})  # type: ignore[misc]
        for arm, seeds in series.items()
        for seed, one in enumerate(seeds)
    ]


SPEED_UP = {"relation": "speed_up", "metric": "val/loss", **A_OVER_B, "at_least": 1.5}
SLOW = {9: 1.0, 19: 0.8, 39: 0.5}  # after 10, 20 and 40 updates


class TestSpeedUp:
    def test_the_steps_to_the_other_sides_end(self, build):
        quick = [{9: 0.6, 19: 0.4}, {9: 0.5, 19: 0.3}, {9: 0.7, 19: 0.5}]  # at 15, 10 and 20
        outcome = build.verdict(SPEED_UP, curves(a=quick, b=[SLOW] * 3))
        [check] = outcome.checks
        assert check.effect == pytest.approx((40 / 15 * 40 / 10 * 40 / 20) ** (1 / 3))
        assert check.compared == "steps of b / steps of a to its last val/loss"
        assert check.unit == "×"

    def test_a_rising_metric(self, build):
        turned = [{step: -loss for step, loss in SLOW.items()}] * 6
        quick = [{9: -0.5}] * 6
        check = {**SPEED_UP, "better": "higher"}
        assert build.verdict(check, curves(a=quick, b=turned)).checks[0].effect == pytest.approx(4)
        assert build.verdict(check, curves(a=quick, b=turned)).verdict is SUPPORTED

    def test_who_never_gets_there_can_lose_but_not_win(self, build):
        never = [{9: 1.0, 39: 0.51}] * 6
        slow = curves(a=never, b=[SLOW] * 6)
        outcome = build.verdict({**SPEED_UP, "at_least": 1}, slow)
        assert outcome.verdict is INCONCLUSIVE
        assert "6 of 6 runs of arm 'a' never get there" in outcome.reason
        assert outcome.checks[0].effect == 1
        assert build.verdict(SPEED_UP, slow).verdict is NOT_SUPPORTED
        slower = {name: value for name, value in SPEED_UP.items() if name != "at_least"}
        assert build.verdict({**slower, "at_most": 1}, slow).verdict is SUPPORTED

    def test_without_series_nothing_is_tested(self, build):
        runs = curves(a=[SLOW], b=[{}])
        outcome = build.verdict(SPEED_UP, runs)
        assert outcome.verdict is Verdict.NOT_TESTED
        assert outcome.reason == "1 of 1 runs of arm 'b' have no series 'val/loss'"

    def test_a_diverged_run_leaves_it_open(self, build):
        runs = [*curves(b=[SLOW]), RunResult("a", 0, status="diverged")]
        outcome = build.verdict(SPEED_UP, runs)
        assert (outcome.verdict, outcome.reason) == (
            INCONCLUSIVE,
            "1 of 1 runs of arm 'a' diverged",
        )

    @pytest.mark.parametrize("field", ["versus_metric", "on_collapse"])
    def test_what_it_does_not_know(self, build, field):
        value = 1 if field == "on_collapse" else "x"
        assert complaint(build, {**SPEED_UP, field: value}) == f"{field}: a speed-up has none"

    def test_steps_are_interpolated(self):
        curve = {0: 1.0, 10: 0.6, 20: 0.4, 30: 0.5}
        assert steps_to(curve, 0.5, "lower") == pytest.approx(15)
        assert steps_to(curve, 2.0, "lower") == 0
        assert steps_to(curve, 0.1, "lower") == np.inf


def test_a_relation_is_added_by_defining_a_class(build):
    try:

        class Positive(Level):
            """Every seed is above zero."""

            relation: Literal["positive"]
            region: ClassVar[Region] = Region.beyond(0, upwards=True)

            def judge(self, evidence: Evidence) -> Outcome:
                worst = min(self.values(evidence, self.arm).values())
                return Outcome(SUPPORTED if worst > 0 else NOT_SUPPORTED, f"worst: {worst:g}")

        check = {"relation": "positive", "arm": "a"}
        assert build.verdict(check, {"a": [1.0, 2.0]}).verdict is SUPPORTED
        lost = build.verdict(check, {"a": [1.0, -2.0]})
        assert (lost.verdict, lost.reason) == (NOT_SUPPORTED, "worst: -2")
        assert "unknown field 'arms'. Did you mean 'arm'?" in complaint(
            build, {**check, "arms": ["a"]}
        )
    finally:
        RELATIONS.pop("positive", None)


def test_a_name_belongs_to_one_relation():
    with pytest.raises(TypeError, match="Ratio is the relation 'ratio' already"):

        class Another(MetricCheck):
            relation: Literal["ratio"]


class TestGapClosed:
    CHECK: ClassVar = {"relation": "closes_gap", "arm": "a", "start": "b", "goal": "c"}

    @staticmethod
    def runs(a: float, b: float = 0.5, c: float = 0.9) -> dict[str, list[float]]:
        noises = (NOISE, NOISE[::-1], NOISE[2:] + NOISE[:2])
        return {
            arm: [mean + e for e in noise]
            for arm, mean, noise in zip("abc", (a, b, c), noises, strict=True)
        }

    @pytest.mark.parametrize(
        ("a", "expected"),
        [(0.8, SUPPORTED), (0.7, INCONCLUSIVE), (0.6, NOT_SUPPORTED), (0.5, NOT_SUPPORTED)],
    )
    def test_half_of_the_way(self, build, a, expected):
        outcome = build.verdict(self.CHECK, self.runs(a))
        assert outcome.verdict is expected
        assert outcome.checks[0].effect == pytest.approx(a - 0.7)

    def test_the_share_counts(self, build):
        assert build.verdict({**self.CHECK, "share": 0.9}, self.runs(0.8)).verdict is NOT_SUPPORTED
        assert build.verdict({**self.CHECK, "share": 0.6}, self.runs(0.8)).verdict is SUPPORTED

    def test_no_gap_is_no_evidence(self, build):
        check = {**self.CHECK, "least_gap": 0.1}
        assert build.verdict(check, self.runs(0.95, c=0.55)).verdict is INCONCLUSIVE

    def test_the_arms_differ(self, build):
        assert "three different arms" in complaint(build, {**self.CHECK, "goal": "b"})
