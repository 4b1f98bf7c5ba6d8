"""What differs between runs, or between studies: settings, results, verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.claims.studies import read_verdicts
from repro.errors import UserError
from repro.records import names
from repro.records.layers import flatten
from repro.records.run import Run
from repro.records.study import Study
from repro.report.tables import arm_rows, effect_of

Row = list[Any]  # a value for each thing compared; None where it has none
TITLES = {
    "config": "Settings that differ",
    "summary": "Results that differ",
    "claims": "Claims",
    "arms": "Results that differ",
}


@dataclass(frozen=True)
class Comparison:
    """Several runs, or studies, side by side.

    Attributes:
        common: the folder that all are in.
        names: their paths below it.
        tables: rows by key, by what they are about: ``config`` and ``summary`` of runs, ``config``,
            ``claims`` and ``arms`` of studies.
    """

    common: str
    names: list[str]
    tables: dict[str, dict[str, Row]]

    def titled(self) -> dict[str, dict[str, Row]]:
        """The tables under the words that people read."""
        return {TITLES[name]: rows for name, rows in self.tables.items()}


def compare(folders: Sequence[Path]) -> Comparison:
    """Compares two or more run directories, or as many folders of studies.

    Raises:
        UserError: there are too few, or they are not all of one kind.
    """
    if len(folders) < 2:
        raise UserError("compare takes two or more run directories, or two or more studies.")
    are_studies = [(folder / names.STUDY_RECORD).is_file() for folder in folders]
    if any(are_studies) and not all(are_studies):
        raise UserError("compare takes run directories or studies, not both at once.")
    tables = (
        _of_studies([Study.open(folder) for folder in folders])
        if all(are_studies)
        else _of_runs([Run.open(folder) for folder in folders])
    )
    common = os.path.commonpath([folder.absolute() for folder in folders])
    below = [os.path.relpath(folder.absolute(), common) for folder in folders]
    return Comparison(os.path.relpath(common), below, tables)


def _of_runs(runs: Sequence[Run]) -> dict[str, dict[str, Row]]:
    return {
        "config": _differing(_settings(run) for run in runs),
        "summary": _differing(run.summary() for run in runs),
    }


def _of_studies(studies: Sequence[Study]) -> dict[str, dict[str, Row]]:
    typed = ({"typed": " ".join(study.about.typed)} for study in studies)
    return {
        "config": _differing(typed),
        "claims": _side_by_side(_verdicts(study) for study in studies),
        "arms": _differing(_measured(study) for study in studies),
    }


def _settings(run: Run) -> dict[str, Any]:
    plain = run.plain_config()
    plain.pop("module", None)  # it points at the groups above it
    return flatten(plain)


def _verdicts(study: Study) -> dict[str, str]:
    """Verdict and first effect by claim."""
    return {
        claim.id: "  ".join(
            [f"{claim.verdict.mark} {claim.verdict}", *map(effect_of, claim.checks[:1])]
        )
        for claim in read_verdicts(study)
    }


def _measured(study: Study) -> dict[str, str]:
    """Mean and deviation over seeds by arm and metric."""
    rows = arm_rows([run.measured() for run in study.runs], study.paper.report)
    return {
        f"{row.label}, {metric}": value for row in rows for metric, value in row.metrics.items()
    }


def _side_by_side(each: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    columns = list(each)
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key) for column in columns] for key in keys}


def _differing(each: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    rows = _side_by_side(each)
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
