"""Judging a study: from its runs' summaries to verdicts.json and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from repro.claims.agreement import beside
from repro.claims.evidence import RunResult
from repro.claims.verdicts import ClaimVerdict
from repro.records import files
from repro.records.papers import Paper
from repro.records.recorded import recorded_study
from repro.records.study import Study
from repro.records.typed import Record, record_in, write_record


class Verdicts(Record):
    """The content of verdicts.json."""

    claims: list[dict[str, Any]]  # as `ClaimVerdict` has them


def results(study: Study) -> list[RunResult]:
    """What claims read of each run."""
    measured = [(run, run.measured()) for run in study.runs]
    return [
        RunResult(m.arm, m.seed, m.point, m.status, m.metrics, series=run.series)
        for run, m in measured
    ]


def recorded_results(record: Mapping[str, Any]) -> list[RunResult]:
    """What claims read of the runs of a recorded study; their series are not recorded.

    Args:
        record: The content of a room's ``results/<scale>.json``.
    """
    runs = [
        RunResult(run["arm"], run["seed"], {}, run["status"], run["metrics"])
        for run in record["runs"]
    ]
    return with_twins(runs, record.get("twins", {}))


def with_twins(runs: Sequence[RunResult], twins: Mapping[str, str]) -> list[RunResult]:
    """Runs, and those of arms that were not run because they equal another one."""
    copies = [replace(r, arm=arm) for arm, first in twins.items() for r in runs if r.arm == first]
    return [*runs, *copies]


def verdicts_of(study: Study) -> list[ClaimVerdict]:
    """Judges the paper's claims on a study's runs."""
    from repro.claims.file import load_claims
    from repro.claims.judge import judge

    runs = with_twins(results(study), study.about.twins)
    looks = study.about.looks.after if study.about.looks else ()
    return judge(load_claims(study.paper.claims_file), runs, study.scale, looks)


def judge_study(study: Study) -> list[ClaimVerdict]:
    """Judges a study, puts what is recorded beside it, and writes verdicts.json."""
    verdicts = beside(verdicts_of(study), recorded_claims(study.paper, study.scale))
    write_record(study.verdicts_file, Verdicts(claims=[verdict.to_dict() for verdict in verdicts]))
    return verdicts


def recorded_claims(paper: Paper, scale: str) -> list[ClaimVerdict]:
    """The verdicts in the paper's room, or an empty list."""
    if not paper.results_file(scale).is_file():
        return []
    return [ClaimVerdict.from_dict(raw) for raw in recorded_study(paper, scale)["claims"]]


def read_verdicts(study: Study) -> list[ClaimVerdict]:
    """The verdicts as they were written, or an empty list.

    A `UserError` says so if the file is damaged.
    """
    file = study.verdicts_file
    if not file.is_file():
        return []
    content = files.read_json(file)
    is_old = isinstance(content, list)  # of earlier versions
    listed = content if is_old else record_in(Verdicts, file, content).claims
    return [ClaimVerdict.from_dict(raw) for raw in listed]
