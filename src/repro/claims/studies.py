"""Judging a study: from its runs' summaries to verdicts.json and back."""

from __future__ import annotations

from dataclasses import replace

from repro.claims.evidence import RunResult
from repro.claims.verdicts import ClaimVerdict
from repro.records import files
from repro.records.study import Study


def results(study: Study) -> list[RunResult]:
    """What claims read of each run."""
    measured = [(run, run.measured()) for run in study.runs]
    return [
        RunResult(m.arm, m.seed, m.point, m.status, m.metrics, series=run.series)
        for run, m in measured
    ]


def judge_study(study: Study) -> list[ClaimVerdict]:
    """Judges the paper's claims on a study's runs and writes verdicts.json."""
    from repro.claims.file import load_claims
    from repro.claims.judge import judge

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
