"""The rows of the tables that say what a study found, and tables in Markdown.

The terminal, README files, Markdown and HTML reports all show these rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.claims.outcomes import Verdict
from repro.claims.verdicts import CheckVerdict, ClaimVerdict
from repro.records.run import MeasuredRun
from repro.records.summary import by_arm, mean_and_spread, state_counts

TALLY = {
    "supported": (Verdict.SUPPORTED,),
    "not supported": (Verdict.NOT_SUPPORTED,),
    "inconclusive": (Verdict.INCONCLUSIVE,),
    "not tested": (Verdict.NOT_TESTED, Verdict.NOT_AT_SCALE),
}
VERDICT_COLUMNS = ("claim", "verdict", "measured here", "seeds", "statement", "the paper")
NOT_HERE = "not tested at this scale"
NOWHERE: Mapping[str, str] = {}  # no claim is judged at another scale


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


def with_minus(text: str) -> str:
    """The text with true minus signs in its numbers; hyphens stay.

    Examples:
        >>> with_minus("-0.5 [-0.9, 1e-05] of full-scale runs, claimed ≥ -1 %")
        '−0.5 [−0.9, 1e−05] of full-scale runs, claimed ≥ −1 %'
    """
    return re.sub(r"(?:(?<=\de)|(?<![\w.\])-]))-(?=\.?\d|∞)", "−", text)


def effect_of(check: CheckVerdict) -> str:
    """A check's effect and its interval."""
    return with_minus(check.effect_text)


def detail_of(check: CheckVerdict) -> str:
    """What a check compared, and where the effect should lie."""
    return with_minus(check.detail)


def in_reach(verdicts: Iterable[ClaimVerdict]) -> list[ClaimVerdict]:
    """The claims that the study's scale can test."""
    return [claim for claim in verdicts if claim.verdict is not Verdict.NOT_AT_SCALE]


def out_of_reach(
    verdicts: Iterable[ClaimVerdict], elsewhere: Mapping[str, str] = NOWHERE
) -> list[ClaimVerdict]:
    """The claims that it cannot test, and that are not judged elsewhere; see `judged_at`."""
    left = (claim for claim in verdicts if claim.verdict is Verdict.NOT_AT_SCALE)
    return [claim for claim in left if claim.id not in elsewhere]


def judged_at(studies: Mapping[str, Iterable[ClaimVerdict]]) -> dict[str, str]:
    """The scale at which each claim of a paper is judged, the first if several are; by its id.

    Args:
        studies: the verdicts of a study for each scale.
    """
    found: dict[str, str] = {}
    for scale, verdicts in studies.items():
        for claim in verdicts:
            if claim.verdict not in TALLY["not tested"]:
                found.setdefault(claim.id, scale)
    return found


def said_elsewhere(verdicts: Iterable[ClaimVerdict], elsewhere: Mapping[str, str]) -> str:
    """Where claims are judged that the scale cannot test: ``at mini: C1, C2``, or nothing."""
    found: dict[str, list[str]] = {}
    for claim in out_of_reach(verdicts):
        if claim.id in elsewhere:
            found.setdefault(elsewhere[claim.id], []).append(claim.id)
    return "; ".join(f"at {scale}: {', '.join(names)}" for scale, names in found.items())


def is_divided(claim: ClaimVerdict) -> bool:
    """Whether the checks of a claim came to different verdicts."""
    return len({check.verdict for check in claim.checks}) > 1


def answer(verdicts: Iterable[ClaimVerdict]) -> str:
    """What the claims came to, as the end of a sentence."""
    given = [claim.verdict for claim in verdicts]
    counts = {name: sum(given.count(v) for v in kinds) for name, kinds in TALLY.items()}
    left = counts.pop("not tested")
    held = counts.pop("supported")
    judged = len(given) - left
    if not judged:
        return "no claim tested"
    parts = [f"{held} of {judged} tested {'claim' if judged == 1 else 'claims'} supported"]
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    return ", ".join([*parts, *([f"{left} not tested"] if left else [])])


def verdicts_markdown(
    verdicts: Iterable[ClaimVerdict],
    escape: Callable[[str], str] = escape_cell,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> list[str]:
    """The table of claims in Markdown, as lines; below it what is left out, and limits' reasons.

    Args:
        verdicts: the claims.
        escape: makes text harmless; by default only what ends a cell is.
        elsewhere: other scales at which claims are judged, see `judged_at`.
    """
    verdicts = list(verdicts)
    rows = [
        (
            escape(claim.id),
            f"{claim.verdict.mark} **{claim.verdict}**",
            "<br>".join(escape(line) for line in _measured(claim)),
            ", ".join(dict.fromkeys(str(check.seeds) for check in claim.checks)),
            escape(claim.statement),
            escape(claim.paper.text),
        )
        for claim in in_reach(verdicts)
    ]
    lines = markdown_table(VERDICT_COLUMNS, rows) if rows else []
    judged, left = said_elsewhere(verdicts, elsewhere), out_of_reach(verdicts, elsewhere)
    if judged:
        lines += ["", f"Judged {escape(judged)}."]
    if left:
        lines += ["", f"{NOT_HERE.capitalize()}:", ""]
        lines += [f"- {escape(c.id)} {escape(c.statement)} ({escape(c.reason)})" for c in left]
    return [*lines, *_margins_markdown(verdicts, escape)]


def _measured(claim: ClaimVerdict) -> list[str]:
    """A line a check, marked where there are several; or why there is none."""
    several = len(claim.checks) > 1
    return [
        f"{f'{check.verdict.mark} ' if several else ''}{effect_of(check)} ({detail_of(check)})"
        for check in claim.checks
    ] or [claim.reason]


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
    reasons = margin_reasons(verdicts)
    texts = [f"{name} {with_minus(limit)}, {because}" for name, limit, because in reasons]
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


def metrics_of(rows: Iterable[ArmRow], metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that some arm has."""
    rows = list(rows)
    return [name for name in metrics if any(name in row.metrics for row in rows)]


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table in Markdown, as lines; the cells have to be escaped."""
    lines: list[Iterable[Any]] = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]
