from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest

from repro.claims.evidence import RunResult
from repro.claims.judge import judge
from repro.claims.outcomes import Verdict
from repro.claims.verdicts import ClaimVerdict
from repro.errors import UserError

NOISE = (-0.010, 0.004, 0.001, -0.003, 0.008)
OTHER = (0.005, -0.006, 0.002, 0.009, -0.004)
A_OVER_B = {"arm": "a", "versus": "b"}


def around(mean: float, noise=NOISE) -> list[float]:
    return [mean + e for e in noise]


def two_arms(a: float, b: float) -> dict[str, list[float]]:
    return {"a": around(a), "b": around(b, OTHER)}


SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = (
    Verdict.SUPPORTED,
    Verdict.NOT_SUPPORTED,
    Verdict.INCONCLUSIVE,
)


@pytest.mark.parametrize(
    ("check", "a", "b", "expected"),
    [
        ({"relation": "greater", **A_OVER_B}, 0.9, 0.8, SUPPORTED),
        ({"relation": "greater", **A_OVER_B}, 0.8, 0.9, NOT_SUPPORTED),
        ({"relation": "greater", **A_OVER_B}, 0.9, 0.899, INCONCLUSIVE),
        ({"relation": "greater", **A_OVER_B, "margin": 0.2}, 0.9, 0.8, NOT_SUPPORTED),
        ({"relation": "less", **A_OVER_B}, 0.8, 0.9, SUPPORTED),
        ({"relation": "less", **A_OVER_B}, 0.9, 0.8, NOT_SUPPORTED),
        ({"relation": "less", **A_OVER_B, "margin": 0.2}, 0.8, 0.9, NOT_SUPPORTED),
        ({"relation": "non_inferior", **A_OVER_B, "margin": 0.05}, 0.9, 0.91, SUPPORTED),
        ({"relation": "non_inferior", **A_OVER_B, "margin": 0.05}, 0.8, 0.9, NOT_SUPPORTED),
        ({"relation": "non_inferior", **A_OVER_B, "margin": 0.01}, 0.89, 0.9, INCONCLUSIVE),
        (
            {"relation": "non_inferior", **A_OVER_B, "margin": 0.05, "better": "lower"},
            0.9,
            0.8,
            NOT_SUPPORTED,
        ),
        ({"relation": "equivalent", **A_OVER_B, "margin": 0.05}, 0.9, 0.9, SUPPORTED),
        ({"relation": "equivalent", **A_OVER_B, "margin": 0.05}, 0.7, 0.9, NOT_SUPPORTED),
        ({"relation": "equivalent", **A_OVER_B, "margin": 0.005}, 0.9, 0.9, INCONCLUSIVE),
        ({"relation": "at_least", "arm": "a", "value": 0.5}, 0.9, 0, SUPPORTED),
        ({"relation": "at_least", "arm": "a", "value": 0.95}, 0.9, 0, NOT_SUPPORTED),
        ({"relation": "at_least", "arm": "a", "value": 0.9}, 0.9, 0, INCONCLUSIVE),
        ({"relation": "at_most", "arm": "a", "value": 0.95}, 0.9, 0, SUPPORTED),
        ({"relation": "at_most", "arm": "a", "value": 0.5}, 0.9, 0, NOT_SUPPORTED),
        ({"relation": "within", "arm": "a", "low": 0.8, "high": 1.0}, 0.9, 0, SUPPORTED),
        ({"relation": "within", "arm": "a", "low": 0.8, "high": 0.85}, 0.9, 0, NOT_SUPPORTED),
        ({"relation": "ratio", **A_OVER_B, "at_least": 2}, 0.9, 0.3, SUPPORTED),
        ({"relation": "ratio", **A_OVER_B, "at_least": 4}, 0.9, 0.3, NOT_SUPPORTED),
        ({"relation": "ratio", **A_OVER_B, "at_least": 2, "at_most": 4}, 0.9, 0.3, SUPPORTED),
        ({"relation": "ratio", **A_OVER_B, "at_most": 2}, 0.9, 0.3, NOT_SUPPORTED),
        ({"relation": "ratio", **A_OVER_B, "at_least": 2}, 0.9, -0.3, INCONCLUSIVE),
    ],
)
def test_two_arms(build, check, a, b, expected):
    assert build.verdict(check, two_arms(a, b)).verdict is expected


@pytest.mark.parametrize(
    ("check", "means", "expected"),
    [
        ({"relation": "ordered", "direction": "increasing"}, (0.1, 0.5, 0.9), SUPPORTED),
        ({"relation": "ordered", "direction": "decreasing"}, (0.9, 0.5, 0.1), SUPPORTED),
        ({"relation": "ordered", "direction": "increasing"}, (0.1, 0.9, 0.5), NOT_SUPPORTED),
        ({"relation": "ordered", "direction": "increasing"}, (0.1, 0.5, 0.5), INCONCLUSIVE),
        ({"relation": "trend", "direction": "increasing"}, (0.1, 0.5, 0.9), SUPPORTED),
        ({"relation": "trend", "direction": "increasing"}, (0.1, 0.5, 0.49), SUPPORTED),
        ({"relation": "trend", "direction": "increasing"}, (0.9, 0.5, 0.1), NOT_SUPPORTED),
        ({"relation": "trend", "direction": "decreasing"}, (0.9, 0.5, 0.1), SUPPORTED),
        ({"relation": "trend", "direction": "increasing"}, (0.5, 0.5, 0.5), INCONCLUSIVE),
        ({"relation": "slope", "low": 1.5, "high": 2.5}, (0.1, 0.4, 1.6), SUPPORTED),
        ({"relation": "slope", "low": 2.5, "high": 3}, (0.1, 0.4, 1.6), NOT_SUPPORTED),
        ({"relation": "slope", "low": 2, "high": 3}, (0.1, 0.4, 1.6), INCONCLUSIVE),
        ({"relation": "slope", "low": 2, "high": 3}, (-0.1, 0.4, 1.6), INCONCLUSIVE),
    ],
)
def test_three_arms(build, check, means, expected):
    arms = {"a": 1.0, "b": 2.0, "c": 4.0}
    named = list(arms) if check["relation"] == "ordered" else arms
    runs = {
        arm: around(mean, noise)
        for arm, mean, noise in zip(arms, means, (NOISE, OTHER, NOISE[::-1]), strict=True)
    }
    assert build.verdict({**check, "arms": named}, runs).verdict is expected


def test_ordered_shows_its_weakest_step(build):
    runs = {"a": around(0.1), "b": around(0.5, OTHER), "c": around(0.55)}
    check = {"relation": "ordered", "arms": ["a", "b", "c"], "direction": "increasing"}
    outcome = build.verdict(check, runs).checks[0]
    assert outcome.effect == pytest.approx(0.05, abs=0.005)
    assert outcome.reason == "weakest step: c − b"


def test_a_curve_over_a_swept_value(build):
    runs = [
        RunResult("a", seed, {"width": width}, metrics={build.metric: width ** (e - 0.5)})
        for width in (64, 16, 256)
        for seed, e in enumerate(NOISE)
    ]
    curve = {"arm": "a", "over": "width"}
    slope = build.verdict({"relation": "slope", **curve, "low": -0.6, "high": -0.4}, runs)
    assert slope.verdict is SUPPORTED
    assert slope.checks[0].effect == pytest.approx(-0.5)
    trend = build.verdict({"relation": "trend", **curve, "direction": "decreasing"}, runs)
    assert trend.verdict is SUPPORTED
    other = build.verdict(
        {"relation": "trend", "arm": "a", "over": "depth", "direction": "decreasing"}, runs
    )
    assert other.verdict is Verdict.NOT_TESTED
    assert "not swept over two or more numbers of 'depth'" in other.reason


def test_swept_runs_are_chosen_with_at_and_never_mixed(build):
    runs = [
        RunResult("a", seed, {"ratio": ratio}, metrics={build.metric: ratio + e})
        for ratio in (0.1, 0.9)
        for seed, e in enumerate(NOISE)
    ]
    check = {"relation": "at_least", "arm": "a", "value": 0.5}
    mixed = build.verdict(check, runs)
    assert mixed.verdict is Verdict.NOT_TESTED
    assert mixed.reason == (
        "arm 'a' has several runs with the same seed (swept: ratio; choose with at)"
    )
    chosen = build.verdict({**check, "at": {"ratio": 0.9}}, runs)
    assert chosen.verdict is SUPPORTED
    assert chosen.checks[0].compared == "a, test/accuracy, at ratio=0.9"
    assert build.verdict({**check, "at": {"ratio": 0.1}}, runs).verdict is NOT_SUPPORTED
    absent = build.verdict({**check, "at": {"ratio": 0.3}}, runs)
    assert (absent.verdict, absent.reason) == (
        Verdict.NOT_TESTED,
        "arm 'a' has no run at ratio=0.3",
    )


def test_two_metrics_of_one_arm(build):
    runs = [
        RunResult("a", seed, metrics={"acc@10": 0.9 + e, "acc": 0.91 + o})
        for seed, (e, o) in enumerate(zip(NOISE, OTHER, strict=True))
    ]
    check = {"relation": "non_inferior", "metric": "acc@10", "versus_metric": "acc", "arm": "a"}
    outcome = build.verdict({**check, "margin": 0.05}, runs)
    assert outcome.verdict is SUPPORTED
    assert outcome.checks[0].compared == "a, acc@10 − acc"


def test_pairing_is_by_seed_not_by_order(build):
    """Noise shared by both arms cancels only when the right runs are paired."""
    shared = [0.0, 3.0, -7.0, 5.0]
    runs = [RunResult("a", s, metrics={build.metric: v + 0.1}) for s, v in enumerate(shared)]
    runs += [
        RunResult("b", s, metrics={build.metric: v + 0.001 * s})
        for s, v in reversed(list(enumerate(shared)))
    ]
    assert build.verdict({"relation": "greater", **A_OVER_B}, runs).verdict is SUPPORTED


def test_lone_seeds_are_left_out_and_named(build):
    runs = build.study({"a": around(0.9), "b": around(0.8, OTHER)[:3]})
    outcome = build.verdict({"relation": "greater", **A_OVER_B}, runs).checks[0]
    assert outcome.seeds == 3
    assert outcome.reason == "without a partner: seed 3, 4"


def test_the_order_of_runs_does_not_matter(build):
    runs = build.study({"a": around(0.9), "b": around(0.8, OTHER), "c": around(0.95)})
    runs.append(RunResult("a", 9, status="failed"))
    runs.append(RunResult("a", 8, status="interrupted"))
    claims = build.claims_file(
        {"relation": "greater", **A_OVER_B},
        {"relation": "ratio", **A_OVER_B, "at_least": 1.0},
        {"relation": "ordered", "arms": ["b", "a", "c"], "direction": "increasing"},
        {"relation": "trend", "arms": {"b": 1, "a": 2, "c": 3}, "direction": "increasing"},
        {"relation": "identity", "arm": "a", "value": 0.9, "tolerance": 0.1},
        {"relation": "collapses_less", **A_OVER_B},
    )
    first = judge(claims, runs, "mini")
    for seed in range(10):
        shuffled = random.Random(seed).sample(runs, len(runs))
        assert judge(claims, shuffled, "mini") == first


@pytest.mark.parametrize(
    "check",
    [
        {"relation": "greater", **A_OVER_B},
        {"relation": "less", **A_OVER_B},
        {"relation": "non_inferior", **A_OVER_B, "margin": 0.01},
        {"relation": "equivalent", **A_OVER_B, "margin": 0.01},
        {"relation": "at_least", "arm": "a", "value": 0.5},
        {"relation": "at_most", "arm": "a", "value": 0.5},
        {"relation": "within", "arm": "a", "low": 0, "high": 1},
        {"relation": "ratio", **A_OVER_B, "at_least": 0.5},
        {"relation": "ratio", **A_OVER_B, "at_most": 0.5},
        {"relation": "ordered", "arms": ["b", "a"], "direction": "increasing"},
        {"relation": "trend", "arms": {"b": 1, "a": 2}, "direction": "increasing"},
        {"relation": "slope", "arms": {"b": 1, "a": 2}, "low": 0, "high": 9},
        {"relation": "collapses_more", **A_OVER_B},
        {"relation": "collapses_less", **A_OVER_B},
    ],
)
def test_one_seed_settles_nothing(build, check):
    outcome = build.verdict(check, {"a": [0.9], "b": [0.2]})
    assert outcome.verdict is INCONCLUSIVE
    assert "1 seed; at least 2 are needed" in outcome.reason
    assert outcome.checks[0].seeds == 1
    # The same holds for the least spread a study can have: none.
    same = build.verdict(check, {"a": [0.9] * 5, "b": [0.2] * 5})
    assert same.verdict is INCONCLUSIVE


def test_agreement_without_spread_counts_as_a_sign_test(build):
    check = {"relation": "greater", **A_OVER_B}
    five = build.verdict(check, {"a": [1.0] * 5, "b": [0.5] * 5})
    assert five.verdict is INCONCLUSIVE
    assert five.reason == (
        "all 5 seeds agree exactly, which leaves no noise to judge by: "
        "run at least 6 seeds, or mark the check deterministic if it is"
    )
    assert build.verdict(check, {"a": [1.0] * 6, "b": [0.5] * 6}).verdict is SUPPORTED
    assert build.verdict(check, {"a": [0.5] * 6, "b": [0.5] * 6}).verdict is NOT_SUPPORTED


BYTES = {"relation": "ratio", **A_OVER_B, "at_least": 277, "deterministic": True}


class TestDeterministic:
    def test_one_seed_is_enough(self, build):
        outcome = build.verdict(BYTES, {"a": [27700.0], "b": [100.0]})
        assert outcome.verdict is SUPPORTED
        assert outcome.checks[0].effect_text == "277 ×"
        assert build.verdict(BYTES, {"a": [27600.0], "b": [100.0]}).verdict is NOT_SUPPORTED

    def test_disagreeing_seeds_fall_back_to_statistics(self, build):
        outcome = build.verdict(BYTES, {"a": [27700.0, 90000.0], "b": [100.0, 100.0]})
        assert outcome.verdict is INCONCLUSIVE
        assert "disagree although the check is deterministic" in outcome.reason

    def test_identity(self, build):
        check = {"relation": "identity", **A_OVER_B, "tolerance": 1e-6}
        assert build.verdict(check, {"a": [0.5], "b": [0.5 + 1e-7]}).verdict is SUPPORTED
        off = build.verdict(check, {"a": [0.5, 0.5], "b": [0.5, 0.6]})
        assert off.verdict is NOT_SUPPORTED
        assert off.reason == "seed 1: 0.5 instead of 0.6"
        value = {"relation": "identity", "arm": "a", "value": 1}
        assert build.verdict(value, {"a": [1.0, 1.0]}).verdict is SUPPORTED

    def test_rounding_at_a_closed_bound_is_forgiven(self, build):
        check = {"relation": "non_inferior", **A_OVER_B, "margin": 0.01, "deterministic": True}
        assert 0.99 - 1.0 < -0.01
        assert build.verdict(check, {"a": [0.99], "b": [1.0]}).verdict is SUPPORTED


RULE = {"metric": "test/accuracy", "below": 0.3}
MORE = {"relation": "collapses_more", **A_OVER_B}


class TestCollapse:
    def test_fractions(self, build):
        runs = {"a": [0.1] * 4 + [0.9], "b": [0.9, 0.8, 0.9, 0.7, 0.9]}
        outcome = build.verdict(MORE, runs, collapse=RULE)
        assert outcome.verdict is SUPPORTED
        assert outcome.checks[0].effect == pytest.approx(0.8)
        less = {**MORE, "relation": "collapses_less"}
        assert build.verdict(less, runs, collapse=RULE).verdict is NOT_SUPPORTED
        fewer = {**runs, "a": [0.1, 0.9, 0.9, 0.9, 0.9]}
        assert build.verdict(MORE, fewer, collapse=RULE).verdict is INCONCLUSIVE

    def test_a_check_may_have_its_own_rule(self, build):
        runs = {"a": [0.5] * 5, "b": [0.9] * 5}
        assert build.verdict(MORE, runs, collapse=RULE).verdict is INCONCLUSIVE
        own = {**MORE, "collapse": {"metric": "test/accuracy", "below": 0.6}}
        assert build.verdict(own, runs, collapse=RULE).verdict is SUPPORTED

    def test_diverged_runs_collapse_and_failed_ones_are_left_out(self, build):
        runs = build.study({"b": [0.9] * 5})
        runs += [RunResult("a", seed, status="diverged") for seed in range(4)]
        runs += [RunResult("a", 4, status="failed")]
        outcome = build.verdict(MORE, runs, collapse=RULE)
        assert outcome.verdict is SUPPORTED
        assert "4 of 4 against 0 of 5 collapsed" in outcome.reason
        assert "left out: a seed 4 (failed)" in outcome.reason

    def test_a_rule_on_a_metric_nobody_has(self, build):
        rule = {"metric": "loss", "above": 9}
        outcome = build.verdict(MORE, two_arms(0.9, 0.8), collapse=rule)
        assert outcome.verdict is Verdict.NOT_TESTED

    def test_missing_values_are_not_guessed(self, build):
        runs = build.study(two_arms(0.9, 0.8))
        runs[1] = dataclasses.replace(runs[1], status="diverged", metrics={})
        runs[2] = dataclasses.replace(
            runs[2], status="diverged", metrics={build.metric: float("nan")}
        )
        check = {"relation": "less", **A_OVER_B}
        outcome = build.verdict(check, runs)
        assert outcome.verdict is INCONCLUSIVE
        assert outcome.reason == (
            "2 of 5 runs of arm 'a' collapsed and have no test/accuracy; "
            "on_collapse would credit them a value"
        )
        credited = build.verdict({**check, "on_collapse": 0.1}, runs)
        assert credited.checks[0].seeds == 5
        assert credited.checks[0].effect == pytest.approx(-0.2222)

    @pytest.mark.parametrize(
        ("relation", "late", "expected"),
        [
            ("greater", "a", SUPPORTED),
            ("greater", "b", INCONCLUSIVE),
            ("less", "a", NOT_SUPPORTED),
            ("less", "b", INCONCLUSIVE),
        ],
    )
    def test_what_never_arrives_is_known_from_below(self, build, relation, late, expected):
        """One run of an arm of 0.9 against one of 0.8 is still on its way at 0.88 or 0.82."""
        runs = build.study(two_arms(0.9, 0.8))
        place = next(i for i, run in enumerate(runs) if run.arm == late)
        runs[place] = dataclasses.replace(runs[place], status="diverged", metrics={})
        credit = {"a": 0.88, "b": 0.82}[late]
        check = {"relation": relation, **A_OVER_B, "censored_at": credit}
        found = build.verdict(check, runs).checks[0]
        assert found.verdict is expected
        assert f"1 runs of arm '{late}' never get there: {credit:g} is the least" in found.reason
        assert found.seeds == 5
        credited = build.verdict({"relation": relation, **A_OVER_B, "on_collapse": credit}, runs)
        assert credited.verdict is (SUPPORTED if relation == "greater" else NOT_SUPPORTED)

    def test_a_run_is_credited_once(self, build):
        check = {"relation": "less", **A_OVER_B, "on_collapse": 1, "censored_at": 1}
        with pytest.raises(UserError, match="censored_at or on_collapse, not both"):
            build.verdict(check, two_arms(0.9, 0.8))

    def test_a_diverged_run_keeps_the_value_it_has(self, build):
        runs = build.study(two_arms(0.9, 0.8))
        runs[0] = dataclasses.replace(runs[0], status="diverged")
        check = {"relation": "greater", **A_OVER_B, "on_collapse": 0.0}
        assert build.verdict(check, runs).verdict is SUPPORTED


GREATER = {"relation": "greater", **A_OVER_B}


class TestNotTested:
    def test_arm_not_in_the_study(self, build):
        outcome = build.verdict(GREATER, {"a": around(0.9)})
        assert (outcome.verdict, outcome.reason) == (
            Verdict.NOT_TESTED,
            "arm 'b' is not in this study",
        )

    def test_no_run_finished(self, build):
        runs = [*build.study({"a": around(0.9)}), RunResult("b", 0, status="failed")]
        outcome = build.verdict(GREATER, runs)
        assert outcome.verdict is Verdict.NOT_TESTED
        assert outcome.reason == "no run of arm 'b' has finished; left out: b seed 0 (failed)"

    def test_unknown_metric(self, build):
        outcome = build.verdict({**GREATER, "metric": "test/acuracy"}, two_arms(0.9, 0.8))
        assert outcome.verdict is Verdict.NOT_TESTED
        assert outcome.reason == (
            "5 of 5 runs of arm 'a' have no finite metric 'test/acuracy'. "
            "Did you mean 'test/accuracy'?"
        )

    def test_no_other_name_is_meant_where_some_runs_have_the_metric(self, build):
        first, *others = build.study(two_arms(0.9, 0.8))
        lost = dataclasses.replace(first, metrics={build.metric: float("nan"), "test/acuracy": 1.0})
        outcome = build.verdict(GREATER, [lost, *others])
        assert outcome.reason == f"1 of 5 runs of arm 'a' have no finite metric '{build.metric}'."

    def test_no_common_seed(self, build):
        runs = [RunResult(arm, i, metrics={build.metric: 1.0}) for i, arm in enumerate("ab")]
        assert build.verdict(GREATER, runs).reason == "the two sides have no seed in common"

    def test_scale(self, build):
        claims = build.claims_file(GREATER)
        [outcome] = judge(claims, build.study(two_arms(0.9, 0.8)), "smoke")
        assert outcome.verdict is Verdict.NOT_AT_SCALE
        assert outcome.reason == "can be tested at mini"
        assert outcome.checks == ()

    def test_an_empty_study(self, build):
        assert build.verdict(GREATER, []).verdict is Verdict.NOT_TESTED


CHECKS: dict[str, dict[str, Any]] = {
    "good": {"relation": "greater", **A_OVER_B},
    "bad": {"relation": "less", **A_OVER_B},
    "open": {"relation": "greater", **A_OVER_B, "margin": 0.1},
    "absent": {"relation": "at_least", "arm": "z", "value": 0},
}


class TestSeveralChecks:
    @pytest.mark.parametrize(
        ("checks", "expected"),
        [
            (("good", "good"), SUPPORTED),
            (("good", "open"), INCONCLUSIVE),
            (("good", "bad"), NOT_SUPPORTED),
            (("open", "bad"), NOT_SUPPORTED),
            (("good", "absent"), INCONCLUSIVE),
            (("bad", "absent"), NOT_SUPPORTED),
            (("absent", "absent"), Verdict.NOT_TESTED),
        ],
    )
    def test_all_have_to_hold(self, build, checks, expected):
        outcome = build.verdict([CHECKS[name] for name in checks], two_arms(0.9, 0.8))
        assert outcome.verdict is expected

    def test_only_the_checks_of_this_scale_count(self, build):
        checks = [CHECKS["good"] | {"metric": build.metric}]
        checks.append(CHECKS["bad"] | {"metric": build.metric, "scales": ["full"]})
        claims = build.claims_file(CHECKS["good"])
        raw = build.claim(*checks, scales=["mini", "full"])
        claims = type(claims).model_validate({"claims": [raw]})
        runs = build.study(two_arms(0.9, 0.8))
        assert judge(claims, runs, "mini")[0].verdict is SUPPORTED
        assert judge(claims, runs, "full")[0].verdict is NOT_SUPPORTED


def test_verdicts_survive_json(build):
    checks = [
        {"relation": "greater", **A_OVER_B, "percent": True},
        {"relation": "at_least", "arm": "z", "value": 0},
        {"relation": "collapses_more", **A_OVER_B},
    ]
    for runs in (two_arms(0.9, 0.8), {"a": [0.9], "b": [0.8]}, {}):
        outcome = build.verdict(checks, runs)
        text = json.dumps(outcome.to_dict(), allow_nan=False)
        assert ClaimVerdict.from_dict(json.loads(text)) == outcome


def test_a_time_is_that_of_this_machine(build):
    check = {"relation": "ratio", **A_OVER_B, "at_most": 1}
    timed = build.verdict({**check, "metric": "time/step_ms"}, {}).checks[0]
    assert timed.compared == "a / b, time/step_ms, on this machine"
    against = {**check, "metric": "ops", "versus_metric": "time/ops", "at": {"x": 1}}
    assert build.verdict(against, {}).checks[0].compared.endswith(", at x=1, on this machine")
    assert "machine" not in build.verdict(check, {}).checks[0].compared


def test_a_reason_for_a_margin_goes_along(build):
    check = {"relation": "greater", **A_OVER_B, "margin": 0.01}
    runs = two_arms(0.9, 0.8)
    assert "margin_because" not in build.verdict(check, runs).to_dict()["checks"][0]
    explained = build.verdict({**check, "margin_because": "half of the paper's effect"}, runs)
    assert explained.to_dict()["checks"][0]["margin_because"] == "half of the paper's effect"
    assert ClaimVerdict.from_dict(explained.to_dict()) == explained


SPREADS = {"relation": "spreads_more", "arms": ["a", "b", "c"], "versus": ["a", "d"]}


def test_spreads_are_compared_in_logarithms(build) -> None:
    """By hand: log2 of a, b, c is 0, 1, 2 (deviation 1), of a and d 0 and 0.5 (0.354)."""
    level = [1.0, 3.0, 0.5, 2.0]
    runs = {"a": level, "b": [2 * x for x in level], "c": [4 * x for x in level]}
    runs["d"] = [x * 2**e for x, e in zip(level, (0.5, 0.5, 0.4, 0.6), strict=True)]
    verdict = build.verdict(SPREADS, runs).checks[0]
    by_hand = np.exp(np.mean(np.log([1 / (e / np.sqrt(2)) for e in (0.5, 0.5, 0.4, 0.6)])))
    assert verdict.effect == pytest.approx(by_hand)
    assert (verdict.verdict, verdict.claimed, verdict.unit) == (SUPPORTED, "> 1", "×")
    turned = {**SPREADS, "arms": SPREADS["versus"], "versus": SPREADS["arms"]}
    assert build.verdict(turned, runs).verdict is NOT_SUPPORTED


def test_spreads_need_positive_metrics_that_differ(build) -> None:
    for values, reason in (
        ({"a": [1, 1], "b": [0, 2], "c": [1, 3], "d": [2, 2]}, "logarithms need it positive"),
        ({"a": [1, 1], "b": [1, 2], "c": [1, 3], "d": [2, 2]}, "the spread of test/accuracy is 0"),
    ):
        verdict = build.verdict(SPREADS, values)
        assert verdict.verdict is INCONCLUSIVE
        assert reason in verdict.reason
