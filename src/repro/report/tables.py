"""The rows of the tables that say what a study found, and tables in Markdown.

The terminal, README files, Markdown and HTML reports all show these rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from repro.claims.verdicts import ClaimVerdict, Verdict
from repro.records.run import MeasuredRun
from repro.records.summary import by_arm, mean_and_spread, state_counts

TALLY = {
    "supported": (Verdict.SUPPORTED,),
    "not supported": (Verdict.NOT_SUPPORTED,),
    "inconclusive": (Verdict.INCONCLUSIVE,),
    "not tested": (Verdict.NOT_TESTED, Verdict.NOT_AT_SCALE),
}
VERDICT_COLUMNS = ("claim", "statement", "the paper", "measured here", "seeds", "verdict")


def escape_cell(text: str) -> str:
    """Text that stays within its cell."""
    return text.replace("|", "\\|")


def escape_markdown(value: Any) -> str:
    r"""A value as text that stays within its cell and its line, and means nothing to Markdown.

    Examples:
        >>> escape_markdown("a|b <i>")
        'a\\|b \\<i\\>'
    """
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*\[\]<>|&#])", r"\\\1", line)


class VerdictRow(NamedTuple):
    """A check of a claim, or a claim without any; a claim's first row names it."""

    id: str
    statement: str
    paper: str
    effect: str
    detail: str  # what was compared, and what is claimed
    seeds: str
    verdict: Verdict | None  # the claim's, in its first row
    check: Verdict | None  # the check's, where the claim has several


def verdict_rows(verdicts: Iterable[ClaimVerdict]) -> list[VerdictRow]:
    """The rows of the table of claims."""
    rows = []
    for claim in verdicts:
        head = (claim.id, claim.statement, claim.paper.text)
        if not claim.checks:
            rows.append(VerdictRow(*head, "–", claim.reason, "", claim.verdict, None))
        for number, check in enumerate(claim.checks):
            first = number == 0
            rows.append(
                VerdictRow(
                    *(head if first else ("", "", "")),
                    check.effect_text,
                    check.detail,
                    str(check.seeds),
                    claim.verdict if first else None,
                    check.verdict if len(claim.checks) > 1 else None,
                )
            )
    return rows


def verdicts_markdown(
    verdicts: Iterable[ClaimVerdict], escape: Callable[[str], str] = escape_cell
) -> list[str]:
    """The table of claims in Markdown, as lines, and below it the reasons of margins.

    Args:
        verdicts: the claims.
        escape: makes text harmless; by default only what ends a cell is.
    """
    verdicts = list(verdicts)
    rows = []
    for row in verdict_rows(verdicts):
        cells = [escape(text) for text in row[:3]]
        verdict = f"**{row.verdict}**" if row.verdict else ""
        if row.seeds:
            measured = escape(f"{row.effect} ({row.detail})")
            verdict = " ".join(filter(None, [verdict, f"({row.check})" if row.check else ""]))
        else:
            measured, verdict = row.effect, f"{verdict}: {escape(row.detail)}"
        rows.append((*cells, measured, row.seeds, verdict))
    return [*markdown_table(VERDICT_COLUMNS, rows), *_margins_markdown(verdicts, escape)]


def margin_reasons(verdicts: Iterable[ClaimVerdict]) -> list[tuple[str, str, str]]:
    """Claim, limit and reason of every check that says why its margin is what it is."""
    reasons = [
        (claim.id, check.claimed, check.margin_because)
        for claim in verdicts
        for check in claim.checks
        if check.margin_because is not None
    ]
    return list(dict.fromkeys(reasons))


def _margins_markdown(verdicts: Iterable[ClaimVerdict], escape: Callable[[str], str]) -> list[str]:
    texts = [f"{name} {limit}, {because}" for name, limit, because in margin_reasons(verdicts)]
    return ["", f"Limits: {escape('; '.join(texts))}."] if texts else []


@dataclass(frozen=True)
class ArmRow:
    """An arm, or an arm at a grid point.

    Attributes:
        arm: its name.
        point: the grid point, as text; may be empty.
        states: how its runs ended.
        metrics: mean and standard deviation over seeds, by metric; only what some run has.
    """

    arm: str
    point: str
    states: str
    metrics: dict[str, str]

    @property
    def label(self) -> str:
        """The arm and its grid point."""
        return f"{self.arm} {self.point}".rstrip()


def arm_rows(runs: Iterable[MeasuredRun], metrics: Sequence[str]) -> list[ArmRow]:
    """The rows of the table of arms."""
    rows = []
    for (arm, point), same in by_arm(runs).items():
        values = {
            name: [run.metrics[name] for run in same if name in run.metrics] for name in metrics
        }
        states = state_counts([run.status for run in same])
        shown = {name: mean_and_spread(found) for name, found in values.items() if found}
        rows.append(ArmRow(arm, point, states, shown))
    return rows


def metrics_of(rows: Iterable[ArmRow], wanted: Sequence[str]) -> list[str]:
    """Those of the wanted metrics that some arm has."""
    rows = list(rows)
    return [name for name in wanted if any(name in row.metrics for row in rows)]


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table in Markdown, as lines; the cells have to be escaped."""
    lines: list[Iterable[Any]] = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]
