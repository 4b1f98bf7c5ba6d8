"""`repro show SLUG --power`: which effects the recorded studies could have found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from repro.claims.file import ClaimsFile, load_claims
from repro.claims.outcomes import Verdict
from repro.claims.power import Power, power
from repro.claims.studies import recorded_claims, recorded_results
from repro.errors import UserError
from repro.records.papers import Paper
from repro.records.recorded import recorded_study
from repro.report.tables import detail_of, effect_of

from . import render


def show(paper: Paper, as_json: bool) -> None:
    """Prints the checks of each recorded scale.

    Raises:
        UserError: nothing of the paper is recorded.
    """
    if not paper.recorded_scales:
        raise UserError(
            f"Nothing of '{paper.slug}' is recorded yet, so that no spread over seeds is known. "
            f"Run it: repro run paper={paper.slug}, then repro record paper={paper.slug}."
        )
    claims = load_claims(paper.claims_file)
    found = {scale: _power(paper, claims, scale) for scale in paper.recorded_scales}
    if as_json:
        render.emit({scale: [_as_json(row) for row in rows] for scale, rows in found.items()})
        return
    for scale, rows in found.items():
        _print(f"{paper.slug} at scale={scale}, today's checks on the recorded runs", rows)
    render.console.print(
        "\ntells: how far from its limit an effect has to be for four of five studies to decide "
        "the check. null arm: an arm without the method, and whether it passes, too. to decide: "
        "how many seeds would probably do, were the effect as measured; ? where no number is known."
    )


def _power(paper: Paper, claims: ClaimsFile, scale: str) -> list[Power]:
    """Today's checks on the recorded runs; what reads curves, which are not recorded, as it was."""
    record = recorded_study(paper, scale)
    known = {
        (claim.id, check.relation, check.compared): check
        for claim in recorded_claims(paper, scale)
        for check in claim.checks
    }

    def as_known(row: Power) -> Power:
        before = known.get((row.claim, row.check.relation, row.check.compared))
        is_gone = row.check.verdict is Verdict.NOT_TESTED
        return replace(row, check=before) if is_gone and before is not None else row

    rows = power(claims, recorded_results(record), scale, record.get("looks", ()))
    return [as_known(row) for row in rows]


def _print(title: str, rows: list[Power]) -> None:
    render.console.print(Text(f"\n{title}", "bold"))
    for (claim, paper), checks in groupby(rows, key=lambda row: (row.claim, row.paper)):
        render.console.print(Text.assemble((claim, "bold"), f"  the paper: {paper}"))
        for row in checks:
            found = Text("; ".join(_found(row)))
            compared = Text(detail_of(row.check), "dim")
            render.console.print(Padding(Group(found, compared), (0, 0, 0, 3)))


def _found(row: Power) -> Iterator[str]:
    """What a check measured, what it could tell, and what it would take to decide it."""
    check = row.check
    yield f"{check.verdict.mark} {effect_of(check)}, {check.seeds} seeds"
    yield f"tells {row.detectable_text}"
    if check.null_arm is not None:
        yield f"null arm {check.null_arm} {'passes' if check.null_passes else 'fails'}"
    if check.verdict is Verdict.INCONCLUSIVE:
        yield f"to decide: {check.seeds_needed or '?'} seeds"


def _as_json(row: Power) -> dict[str, object]:
    return {
        "claim": row.claim,
        "paper": row.paper,
        "detectable": row.detectable,
        **row.check.to_dict(),
    }
