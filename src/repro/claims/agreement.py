"""Whether a fresh study says the same as the paper's record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict, ClaimVerdict, Recorded

ROUNDING = 1e-6  # relative: what another processor's order of sums may change


@dataclass(frozen=True)
class Agreement:
    """How a fresh verdict compares with the recorded one.

    Attributes:
        id: The claim's id.
        fresh: The fresh verdict; None if the claim is not judged any more.
        recorded: The recorded one; None if the claim was not judged then.
        outcome: Times of another machine may differ without any harm.
        problem: What differs; empty if nothing does.
    """

    id: str
    fresh: Verdict | None
    recorded: Verdict | None
    outcome: Literal["agrees", "differs", "another machine"]
    problem: str = ""


def beside(fresh: Iterable[ClaimVerdict], recorded: Iterable[ClaimVerdict]) -> list[ClaimVerdict]:
    """Fresh verdicts, each with what is recorded of the same claim and checks.

    A check is the same if it compares the same: its limit may have changed.
    """
    known = {claim.id: claim for claim in recorded}
    return [_beside(claim, known[claim.id]) if claim.id in known else claim for claim in fresh]


def agreements(fresh: Sequence[ClaimVerdict], recorded: Sequence[ClaimVerdict]) -> list[Agreement]:
    """Compares all claims that are judged in either, in the order of the fresh ones."""
    compared = [_agreement(claim) for claim in beside(fresh, recorded)]
    judged = {claim.id for claim in fresh}
    gone = [
        Agreement(claim.id, None, claim.verdict, "differs", "is not judged any more")
        for claim in recorded
        if claim.id not in judged
    ]
    unjudged = (None, Verdict.NOT_AT_SCALE)
    return [a for a in (*compared, *gone) if {a.fresh, a.recorded} - set(unjudged)]


def _beside(claim: ClaimVerdict, recorded: ClaimVerdict) -> ClaimVerdict:
    known: dict[tuple[str, str], list[CheckVerdict]] = {}
    for check in recorded.checks:
        known.setdefault((check.relation, check.compared), []).append(check)
    checks = []
    for check in claim.checks:
        same = known.get((check.relation, check.compared))
        checks.append(
            check.model_copy(update={"recorded": _recorded(same.pop(0))}) if same else check
        )
    return claim.model_copy(update={"checks": tuple(checks), "recorded": recorded.verdict})


def _recorded(check: CheckVerdict) -> Recorded:
    return Recorded(
        verdict=check.verdict,
        effect=check.effect,
        low=check.low,
        high=check.high,
        seeds=check.seeds,
    )


def _agreement(claim: ClaimVerdict) -> Agreement:
    if claim.recorded is None:
        return Agreement(claim.id, claim.verdict, None, "differs", "is not recorded")
    problems = [text for check in claim.checks if (text := _difference(check))]
    if claim.verdict is not claim.recorded:
        problems.insert(0, f"{claim.verdict} instead of {claim.recorded}")
    if not problems:
        return Agreement(claim.id, claim.verdict, claim.recorded, "agrees")
    timed = any("time/" in check.compared for check in claim.checks)
    outcome: Literal["differs", "another machine"] = "another machine" if timed else "differs"
    return Agreement(claim.id, claim.verdict, claim.recorded, outcome, "; ".join(problems))


def _difference(check: CheckVerdict) -> str:
    """Whether an effect lies outside of the recorded interval, in words; may be empty."""
    recorded = check.recorded
    if recorded is None:
        return f"{check.compared} is not recorded"
    if check.relation == "identity":  # what deviates is rounding
        return ""
    if (check.effect is None) != (recorded.effect is None):
        return f"{check.compared}: {check.effect_text} instead of {check.recorded_text}"
    if check.effect is None or recorded.effect is None:
        return ""
    slack = ROUNDING * max(abs(check.effect), abs(recorded.effect))
    low = -math.inf if recorded.low is None else recorded.low - slack
    high = math.inf if recorded.high is None else recorded.high + slack
    if low <= check.effect <= high:
        return ""
    return f"{check.compared}: {check.effect_text} instead of {check.recorded_text}"
