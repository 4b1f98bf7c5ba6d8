"""A check that an arm without the method passes, too, shows nothing of the method."""

from __future__ import annotations

from typing import Any

import pytest

from repro.claims.evidence import RunResult
from repro.claims.file import check_arms, parse_claims
from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict
from repro.errors import UserError

NOISE = (-0.010, 0.004, 0.001, -0.003, 0.008)
OTHER = (0.005, -0.006, 0.002, 0.009, -0.004)
CLOSE = {
    "relation": "non_inferior",
    "arm": "method",
    "versus": "dense",
    "margin": 0.05,
    "null_arm": "null",
}


def arms(method: float, null: float) -> dict[str, list[float]]:
    """The accuracies of three arms, the dense one at 0.9."""
    return {
        "method": [method + e for e in NOISE],
        "dense": [0.9 + e for e in OTHER],
        "null": [null + e for e in NOISE[::-1]],
    }


@pytest.mark.parametrize(
    ("method", "null", "expected", "passes"),
    [
        (0.90, 0.60, Verdict.SUPPORTED, False),
        (0.90, 0.85, Verdict.SUPPORTED, False),  # itself on the edge: it does not pass
        (0.90, 0.90, Verdict.INCONCLUSIVE, True),
        (0.60, 0.90, Verdict.NOT_SUPPORTED, True),
        (0.85, 0.90, Verdict.INCONCLUSIVE, True),
    ],
)
def test_what_the_null_arm_passes_is_not_supported(
    build: Any, method: float, null: float, expected: Verdict, passes: bool
) -> None:
    claim = build.verdict(CLOSE, arms(method, null))
    (check,) = claim.checks
    assert (claim.verdict, check.null_arm, check.null_passes) == (expected, "null", passes)
    says_so = "null passes as well" in check.reason
    assert says_so == (method == null == 0.9)
    assert check.effect == pytest.approx(method - 0.9 - 0.0012)  # the method's own, not the null's
    assert CheckVerdict.from_dict(check.to_dict()) == check


def test_a_null_arm_that_was_not_run_leaves_the_check_untested(build: Any) -> None:
    runs = arms(0.9, 0.6)
    del runs["null"]
    claim = build.verdict(CLOSE, runs)
    assert claim.verdict is Verdict.NOT_TESTED
    assert "arm 'null' is not in this study" in claim.reason
    refused = build.verdict(CLOSE, {**runs, "method": [0.6 + e for e in NOISE]})
    assert refused.verdict is Verdict.NOT_SUPPORTED  # no null arm can change that


def test_a_null_arm_without_a_value_does_not_pass(build: Any) -> None:
    runs = build.study(arms(0.9, 0.6))
    lost = [
        run if run.arm != "null" else RunResult("null", run.seed, status="diverged") for run in runs
    ]
    assert build.verdict(CLOSE, lost).verdict is Verdict.SUPPORTED


def test_it_stands_in_on_both_sides_where_one_arm_is_compared_with_itself(build: Any) -> None:
    check = {
        "relation": "non_inferior",
        "metric": "unseen",
        "versus_metric": "seen",
        "arm": "net",
        "margin": 0.05,
        "null_arm": "null",
    }
    runs = [
        RunResult(arm, seed, metrics={"seen": seen + e, "unseen": 0.8 - e})
        for arm, seen in (("net", 0.8), ("null", 0.81))
        for seed, e in enumerate(NOISE)
    ]
    assert "null passes as well" in build.verdict(check, runs).reason


def test_verdicts_of_checks_without_one_are_written_as_before(build: Any) -> None:
    plain = {key: value for key, value in CLOSE.items() if key != "null_arm"}
    (check,) = build.verdict(plain, arms(0.9, 0.9)).checks
    assert not {"null_arm", "null_passes"} & check.to_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"null_arm": "dense"}, "null_arm: the check reads 'dense' already"),
        ({"null_arm": "method"}, "null_arm: the check reads 'method' already"),
        ({"null_arm": ""}, "null_arm: String should have at least 1 character"),
    ],
)
def test_mistakes_are_said(build: Any, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build.claims_file({**CLOSE, **change})
    assert message in str(caught.value)


def test_only_an_arm_can_be_stood_in_for(build: Any) -> None:
    check = {
        "relation": "ordered",
        "metric": "m",
        "arms": ["a", "b"],
        "direction": "increasing",
        "null_arm": "c",
    }
    with pytest.raises(UserError, match="null_arm: stands in for arm, which this check does not"):
        parse_claims({"claims": [build.claim(check)]}, "claims.yaml")


def test_null_arms_are_arms_of_the_paper(build: Any) -> None:
    claims = build.claims_file({**CLOSE, "null_arm": "{each}", "each": ["null", "nul"]})
    with pytest.raises(UserError, match="unknown arm 'nul'"):
        check_arms(claims, ["method", "dense", "null"])
