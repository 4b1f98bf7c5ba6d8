"""`repro verify`: whether a paper's record comes out again, and whether a bundle is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from repro.claims.agreement import Agreement, agreements
from repro.claims.studies import recorded_claims, verdicts_of
from repro.claims.verdicts import ClaimVerdict
from repro.errors import UserError
from repro.launching.queue import check_ended
from repro.records import files
from repro.records.papers import Paper
from repro.records.recorded import recorded_study
from repro.records.study import Study
from repro.report.publish import RESULTS
from repro.report.tables import with_minus

from . import render, workflow


def verify(paper: Paper, study: Study | None, scale: str, quiet: bool, as_json: bool) -> int:
    """Compares a study with the record; without one, runs it as the record says.

    Returns:
        0 if all claims agree but for times of another machine, 1 if one differs or runs failed,
        130 if the user stopped the study.

    Raises:
        UserError: there is no record of the scale, or the study is of another paper or unfinished.
    """
    scale = scale if study is None else study.scale
    if not paper.results_file(scale).is_file():
        raise UserError(
            f"Nothing of '{paper.slug}' is recorded at scale={scale} to compare with. "
            f"Record it: repro run paper={paper.slug} scale={scale}, then repro record."
        )
    if study is None:
        study, stopped = _run(recorded_study(paper, scale)["typed"], quiet)
        if stopped is not None:
            return stopped
        workflow.report_failures(study)
    else:
        _check(study, paper)
    found = agreements(verdicts_of(study), recorded_claims(paper, scale))
    if as_json:
        render.emit({"folder": str(study.folder), "claims": [claim.__dict__ for claim in found]})
    else:
        _print(f"{study.folder} beside the record", found)
    return int(any(claim.outcome == "differs" for claim in found))


def verify_bundle(study: Study, as_json: bool) -> int:
    """Says whether what a bundle states follows from its runs, and agrees with the paper's record.

    Returns:
        0 if all claims agree but for times of another machine, 1 if one differs.

    Raises:
        UserError: the folder is a study, but no bundle.
    """
    file = study.folder / RESULTS
    if not file.is_file():
        raise UserError(f"{study.folder} is no bundle (it has no {RESULTS}): see repro publish.")
    stated = [ClaimVerdict.from_dict(raw) for raw in files.read_json(file)["claims"]]
    fresh = verdicts_of(study)
    sides = {"what it states": stated}
    if recorded := recorded_claims(study.paper, study.scale):
        sides["the record"] = recorded
    found = {side: agreements(fresh, claims) for side, claims in sides.items()}
    if as_json:
        render.emit({side: [claim.__dict__ for claim in claims] for side, claims in found.items()})
    else:
        for side, claims in found.items():
            _print(f"The runs of {study.folder} beside {side}", claims)
    return int(any(claim.outcome == "differs" for claims in found.values() for claim in claims))


def _run(typed: list[str], quiet: bool) -> tuple[Study, int | None]:
    """Runs a study again, and says how it was stopped, if it was."""
    from repro.launching import local, needs
    from repro.planning import trust
    from repro.planning.plan import plan_study

    plan = plan_study(typed)
    workflow.check_claims(plan)
    needs.check(plan)
    local.check(plan, detach=False)
    study = workflow.prepared(plan, Path(plan.runs[0].config.outputs))
    with workflow.discarded_if_refused(study), trust.trusted(), study.held():
        return study, workflow.execute(study, quiet)


def _check(study: Study, paper: Paper) -> None:
    """Refuses a study that says nothing about a paper's record.

    Raises:
        UserError: it is of another paper, or not finished.
    """
    if study.about.paper != paper.slug:
        raise UserError(f"{study.folder} is a study of {study.about.paper}, not of {paper.slug}.")
    check_ended(study)


def _print(title: str, found: list[Agreement]) -> None:
    render.console.print(Text(title, "bold"), soft_wrap=True)
    if not found:
        render.console.print("No claim is judged there: nothing to compare.")
        return
    shown = render.table("claim", "recorded", "now", "")
    for claim in found:
        verdicts: list[Any] = [
            "–" if verdict is None else f"{verdict.mark} {verdict}"
            for verdict in (claim.recorded, claim.fresh)
        ]
        outcome = claim.outcome + (f": {with_minus(claim.problem)}" if claim.problem else "")
        shown.add_row(claim.id, *verdicts, outcome)
    render.console.print(shown)
