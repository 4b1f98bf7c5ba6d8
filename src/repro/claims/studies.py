"""Judging a study: from its runs' summaries to verdicts.json and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repro.claims.verdicts import ClaimVerdict
from repro.records import files
from repro.records.study import Study

if TYPE_CHECKING:
    from repro.claims.judge import RunResult


def results(study: Study) -> list[RunResult]:
    """What claims read of each run."""
    from repro.claims.judge import RunResult

    records = [(run.record(), run.summary()) for run in study.runs]
    return [
        RunResult(arm=r.arm, seed=r.seed, point=r.point, status=r.status, metrics=metrics)
        for r, metrics in records
    ]


def judge_study(study: Study) -> list[ClaimVerdict]:
    """Judges the paper's claims on a study's runs and writes verdicts.json."""
    from repro.claims.judge import judge
    from repro.claims.schema import load_claims

    runs = results(study)
    for arm, first in study.about.twins.items():
        runs += [replace(run, arm=arm) for run in runs if run.arm == first]
    verdicts = judge(load_claims(study.paper.claims_file), runs, study.scale)
    files.write_json(study.verdicts_file, [verdict.to_dict() for verdict in verdicts])
    return verdicts


def read_verdicts(study: Study) -> list[ClaimVerdict]:
    """The verdicts as they were written, or an empty list."""
    if not study.verdicts_file.is_file():
        return []
    return [ClaimVerdict.from_dict(raw) for raw in files.read_json(study.verdicts_file)]
