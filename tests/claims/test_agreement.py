"""Whether a fresh study says the same as the record."""

from __future__ import annotations

from typing import Any

import pytest
from fake_outputs import claim

from repro.claims.agreement import agreements, beside
from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict, ClaimVerdict

SUPPORTED = claim("C1", Verdict.SUPPORTED)  # an effect of 0.0083 in [-0.0021, 0.0188]


def changed(verdict: Verdict = Verdict.SUPPORTED, **fields: Any) -> ClaimVerdict:
    """The claim, its check changed."""
    (check,) = SUPPORTED.checks
    check = CheckVerdict.from_dict(check.to_dict() | {"verdict": verdict} | fields)
    return SUPPORTED.model_copy(update={"verdict": verdict, "checks": (check,)})


@pytest.mark.parametrize(
    ("fresh", "outcome", "problem"),
    [
        (SUPPORTED, "agrees", ""),
        (changed(effect=0.0188), "agrees", ""),
        (changed(effect=0.0188 * (1 + 1e-9)), "agrees", ""),
        (
            changed(effect=0.05, low=0.04, high=0.06),
            "differs",
            "test/accuracy: +5.0 [+4.0, +6.0] points instead of +0.8 [-0.2, +1.9] points",
        ),
        (changed(effect=None, low=None, high=None), "differs", "test/accuracy: – instead of +0.8"),
        (changed(Verdict.INCONCLUSIVE), "differs", "inconclusive instead of supported"),
        (changed(compared="dgc − other, test/accuracy"), "differs", "is not recorded"),
    ],
)
def test_verdicts_and_effects_are_compared(fresh: ClaimVerdict, outcome: str, problem: str) -> None:
    (found,) = agreements([fresh], [SUPPORTED])
    assert found.outcome == outcome
    assert problem in found.problem
    assert bool(found.problem) == bool(problem)


def test_times_of_another_machine_may_differ() -> None:
    slow = changed(compared="a / b, time/ms, on this machine", effect=5.0, low=4.0, high=6.0)
    quick = changed(
        Verdict.NOT_SUPPORTED, compared="a / b, time/ms, on this machine", effect=9, low=8, high=9.5
    )
    (found,) = agreements([quick], [slow])
    assert found.outcome == "another machine"
    assert found.problem.startswith("not supported instead of supported; a / b, time/ms")


def test_rounding_of_an_identity_may_differ() -> None:
    one, other = (changed(relation="identity", effect=e, low=e, high=e) for e in (1e-12, 3e-11))
    (found,) = agreements([other], [one])
    assert found.outcome == "agrees"


def test_an_unknown_interval_holds_every_effect() -> None:
    unknown = changed(low=None, high=None)
    (found,) = agreements([changed(effect=7.0)], [unknown])
    assert found.outcome == "agrees"


def test_claims_come_and_go() -> None:
    out_of_reach = claim("C3", Verdict.NOT_AT_SCALE)
    found = agreements(
        [SUPPORTED, claim("C2", Verdict.SUPPORTED), out_of_reach],
        [SUPPORTED, out_of_reach, claim("C4", Verdict.INCONCLUSIVE)],
    )
    assert [(each.id, each.outcome, each.problem) for each in found] == [
        ("C1", "agrees", ""),
        ("C2", "differs", "is not recorded"),
        ("C4", "differs", "is not judged any more"),
    ]


def test_the_recorded_values_stand_beside_the_fresh_ones() -> None:
    fresh = changed(Verdict.INCONCLUSIVE, effect=0.001, claimed="≥ -1 points")
    (found,) = beside([fresh], [SUPPORTED])
    (check,) = found.checks
    assert found.recorded is Verdict.SUPPORTED
    assert check.recorded is not None
    assert (check.recorded.verdict, check.recorded.effect) == (Verdict.SUPPORTED, 0.0083)
    assert check.recorded_text == "+0.8 [-0.2, +1.9] points"
    assert ClaimVerdict.from_dict(found.to_dict()) == found


def test_what_is_not_recorded_is_written_as_before() -> None:
    (found,) = beside([SUPPORTED], [])
    assert found == SUPPORTED
    assert found.checks[0].recorded_text == "–"
    assert "recorded" not in found.to_dict()
    assert "recorded" not in found.to_dict()["checks"][0]


def test_checks_that_compare_the_same_are_matched_in_order() -> None:
    (check,) = SUPPORTED.checks
    two = [check, check.model_copy(update={"effect": 0.5})]
    both = SUPPORTED.model_copy(update={"checks": tuple(two)})
    (found,) = beside([both], [both])
    assert [each.recorded.effect for each in found.checks if each.recorded] == [0.0083, 0.5]
