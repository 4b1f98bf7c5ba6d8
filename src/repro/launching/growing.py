"""``seeds=auto``: more seeds for the arms of claims that are not decided; see `repro.claims.looks`.

All that is known of a growing study lies in its folder, so that a killed one goes on where it was.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from repro.claims.file import load_claims
from repro.claims.outcomes import Verdict
from repro.claims.studies import verdicts_of
from repro.planning.plan import plan_study
from repro.planning.prepare import add_runs
from repro.records.study import LOOK_KEYS, Study

SETTLED = ("arm", "seed", "seeds", *LOOK_KEYS)  # what a look settles itself, whatever was typed


@dataclass(frozen=True)
class Look:
    """What a study needs before its claims are judged again.

    Attributes:
        claims: The claims that are open.
        arms: The arms that their open checks read.
        seeds: The seeds to add to each.
    """

    claims: list[str]
    arms: list[str]
    seeds: list[int]


def extend(study: Study) -> Look | None:
    """Adds the runs of the next look to a study of which all runs have ended, if there is one."""
    look = next_look(study)
    if look is not None:
        kept = [text for text in study.about.typed if text.partition("=")[0] not in SETTLED]
        seeds = ",".join(map(str, look.seeds))
        add_runs(study, plan_study([*kept, f"arm=[{','.join(look.arms)}]", f"seeds=[{seeds}]"]))
    return look


def next_look(study: Study) -> Look | None:
    """What a study needs next; None if every claim is decided, or its budget is spent."""
    looks = study.about.looks
    if looks is None:
        return None
    done = 1 + max(run.record().seed for run in study.runs)
    to_come = [seeds for seeds in looks.after if seeds > done]
    claims, arms = _open(study)
    if not arms or not to_come:
        return None
    look = Look(claims, arms, list(range(done, to_come[0])))
    too_long = looks.max_minutes is not None and _minutes(study, look) > looks.max_minutes
    return None if too_long else look


def _open(study: Study) -> tuple[list[str], list[str]]:
    """The claims that are not decided, and the arms that are run for them."""
    listed = load_claims(study.paper.claims_file).claims
    claims, arms = [], []
    for claim, verdict in zip(listed, verdicts_of(study), strict=True):
        checks = zip(claim.checks_at(study.scale), verdict.checks, strict=True)
        read = [arm for check, found in checks if found.is_open for arm in check.arm_names()]
        if verdict.verdict is Verdict.INCONCLUSIVE and read:
            claims.append(claim.id)
            arms += read
    twins = study.about.twins
    return claims, list(dict.fromkeys(twins.get(arm, arm) for arm in arms))


def _minutes(study: Study, look: Look) -> float:
    """How long all runs will have computed after a look, to judge by those that there are."""
    seconds: dict[str, list[float]] = {}
    for run in study.runs:
        record = run.record()
        seconds.setdefault(record.arm, []).append(record.seconds or 0.0)
    more = sum(statistics.median(seconds[arm]) for arm in look.arms) * len(look.seeds)
    return (sum(map(sum, seconds.values())) + more) / 60
