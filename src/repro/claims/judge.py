"""From the runs of a study to verdicts on a paper's claims.

Every statistical check becomes one number per seed (a *sample*), an interval for its mean, and a
region in which the claim says the mean lies:

* the whole interval inside the region: supported;
* the whole interval outside the region: not supported;
* otherwise: inconclusive.

With a two-sided interval at ``level``, and noise that is roughly symmetric, a wrong ``supported``
is at most as frequent as ``(1 - level) / 2``, i.e. 2.5 % at the default, for every relation. All
checks of a claim have to hold, so a claim with several checks is supported wrongly no more often
than that (intersection-union). A wrong ``not supported`` has the same bound per check; over a claim
of k checks it may reach k times as much when the truth lies on every check's edge. Differences
between equally noisy arms are symmetric; the mean of one arm need not be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from repro.claims.evidence import Evidence, RunResult, UndecidedError
from repro.claims.file import Claim, ClaimsFile
from repro.claims.looks import shares
from repro.claims.outcomes import Verdict, all_of
from repro.claims.relations import Check, Outcome
from repro.claims.relations.base import sentence
from repro.claims.verdicts import CheckVerdict, ClaimVerdict


class _Stage(NamedTuple):
    """What is known at a look, and the share of the error that it may spend."""

    evidence: Evidence
    share: float


def judge(
    claims: ClaimsFile, runs: Iterable[RunResult], scale: str, looks: Sequence[int] = ()
) -> list[ClaimVerdict]:
    """Judges all claims of a paper on the runs of one study.

    Args:
        claims: The paper's claims.
        runs: The study's runs, in any order.
        scale: The scale the study ran at.
        looks: After how many seeds (0, 1, …) a growing study was judged, see `repro.claims.looks`:
            what one look decides stays decided.

    Returns:
        One verdict per claim, in the file's order.
    """
    stages = _stages(list(runs), claims, looks)
    return [_judge_claim(claim, stages, scale) for claim in claims.claims]


def _stages(runs: list[RunResult], claims: ClaimsFile, looks: Sequence[int]) -> list[_Stage]:
    if not looks:
        return [_Stage(Evidence(runs, claims.collapse), 1.0)]
    return [
        _Stage(Evidence([run for run in runs if run.seed < seeds], claims.collapse), share)
        for seeds, share in zip(looks, shares(looks), strict=True)
    ]


def _judge_claim(claim: Claim, stages: Sequence[_Stage], scale: str) -> ClaimVerdict:
    checks: tuple[CheckVerdict, ...] = ()
    if scale in claim.scales:
        checks = tuple(_judge_in_turn(check, stages) for check in claim.checks_at(scale))
        verdict = all_of(check.verdict for check in checks)
        reasons = [
            check.reason
            for check in checks
            if check.verdict is not Verdict.SUPPORTED or verdict is Verdict.SUPPORTED
        ]
        reason = "; ".join(dict.fromkeys(filter(None, reasons)))
    else:
        verdict = Verdict.NOT_AT_SCALE
        reason = claim.why_not or f"can be tested at {' and '.join(claim.scales)}"
    return ClaimVerdict(
        id=claim.id,
        statement=claim.statement,
        where=claim.where,
        paper=claim.paper,
        verdict=verdict,
        reason=reason,
        checks=checks,
    )


def _judge_in_turn(check: Check, stages: Sequence[_Stage]) -> CheckVerdict:
    """Judges a check at one look after the other, until it is decided or its seeds end."""
    verdict = _judge_at(check, stages[0])
    for before, stage in itertools.pairwise(stages):
        has_grown = all(
            stage.evidence.size(arm) > before.evidence.size(arm) for arm in check.arm_names()
        )
        if not (verdict.is_open and has_grown):
            break
        verdict = _judge_at(check, stage)
    return verdict


def _judge_at(check: Check, stage: _Stage) -> CheckVerdict:
    if stage.share < 1:
        level = 1 - stage.share * (1 - check.level)
        check = check.model_copy(update={"level": level})
    return judge_check(check, stage.evidence)


def judge_check(check: Check, evidence: Evidence) -> CheckVerdict:
    """Judges one check."""
    outcome, null_check = _outcome(check, evidence), check.of_null_arm
    null = None if null_check is None else _outcome(null_check, evidence)
    if null is not None:
        outcome = _against_null(outcome, null, check.null_arm or "")
    effect, low, high = outcome.estimate or (None, None, None)
    return CheckVerdict(
        relation=check.relation,
        compared=check.effect_name,
        claimed=check.claimed,
        verdict=outcome.verdict,
        reason=sentence(outcome.reason, evidence.note(check.arm_names(), check.at)),
        effect=effect,
        low=_finite(low),
        high=_finite(high),
        level=check.level,
        seeds=outcome.seeds,
        seeds_needed=outcome.needed,
        signed=check.signed,
        percent=check.percent,
        unit=check.unit or ("×" if check.is_factor else ""),
        margin_because=check.margin_because,
        null_arm=check.null_arm,
        null_passes=None if null is None else null.verdict is Verdict.SUPPORTED,
    )


def _outcome(check: Check, evidence: Evidence) -> Outcome:
    try:
        return check.judge(evidence)
    except UndecidedError as undecided:
        return Outcome(undecided.verdict, undecided.reason)


def _against_null(outcome: Outcome, null: Outcome, arm: str) -> Outcome:
    """What is left of a check that holds, given how it goes for an arm without the method."""
    if outcome.verdict is not Verdict.SUPPORTED:
        return outcome
    if null.verdict is Verdict.SUPPORTED:
        why = f"it holds, but {arm} passes as well, which lacks the method"
        reason = sentence(why, outcome.reason)
        return replace(outcome, verdict=Verdict.INCONCLUSIVE, reason=reason)
    if null.verdict is Verdict.NOT_TESTED:
        reason = sentence(null.reason, outcome.reason)
        return replace(outcome, verdict=Verdict.NOT_TESTED, reason=reason)
    return outcome


def _finite(end: float | None) -> float | None:
    return end if end is not None and math.isfinite(end) else None
