"""What a study could have found: the effects that its checks can tell, given spread and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repro.claims.evidence import Evidence, RunResult, UndecidedError
from repro.claims.file import ClaimsFile
from repro.claims.judge import judge
from repro.claims.relations import Check, MetricCheck
from repro.claims.verdicts import CheckVerdict, format_effect


@dataclass(frozen=True)
class Power:
    """What a check could have found.

    Attributes:
        claim: The claim's id.
        paper: The paper's own effect, as far as it is known.
        check: How the check is judged on these runs.
        detectable: How far from its limit the effect has to be for the check to be decided in 4 of
            5 studies; a factor where the effect is one. None where that is not known.
    """

    claim: str
    paper: str
    check: CheckVerdict
    detectable: float | None

    @property
    def detectable_text(self) -> str:
        """The distance in the unit of the effect, to two digits."""
        if self.detectable is None:
            return "–"
        check, rounded = self.check, float(f"{self.detectable:.2g}")
        text = format_effect(rounded, signed=check.signed, percent=check.percent, unit=check.unit)
        return text.lstrip("+")


def power(
    claims: ClaimsFile, runs: Iterable[RunResult], scale: str, looks: Sequence[int] = ()
) -> list[Power]:
    """What the checks of a scale could have found with these runs, in the file's order."""
    runs = list(runs)
    evidence = Evidence(runs, claims.collapse)
    verdicts = judge(claims, runs, scale, looks)
    return [
        Power(claim.id, claim.paper.text, verdict, _detectable(check, verdict.level, evidence))
        for claim, judged in zip(claims.claims, verdicts, strict=True)
        for check, verdict in zip(claim.checks_at(scale), judged.checks, strict=True)
    ]


def _detectable(check: Check, level: float, evidence: Evidence) -> float | None:
    if not isinstance(check, MetricCheck):
        return None
    try:
        return check.model_copy(update={"level": level}).detectable(evidence)
    except UndecidedError:
        return None
