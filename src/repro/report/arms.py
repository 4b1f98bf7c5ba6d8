"""The table of arms: how their runs ended, and their metrics over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repro.records.summary import mean_and_spread, state_counts
from repro.report.collect import PaperEntry, RunEntry, StudyEntry


@dataclass(frozen=True)
class Arm:
    """A row: an arm, or an arm at a grid point."""

    name: str
    states: str
    values: list[str]  # mean and standard deviation of each metric


def measured(paper: PaperEntry, study: StudyEntry) -> list[str]:
    """The paper's metrics that the study has."""
    return [name for name in paper.metrics if any(name in run.metrics for run in study.runs)]


def table(study: StudyEntry, metrics: Sequence[str]) -> list[Arm]:
    """A row for each arm and grid point."""
    return [_row(name, runs, metrics) for name, runs in study.groups.items()]


def _row(name: str, runs: Sequence[RunEntry], metrics: Sequence[str]) -> Arm:
    values = [[run.metrics[metric] for run in runs if metric in run.metrics] for metric in metrics]
    states = state_counts([run.status for run in runs])
    return Arm(name, states, [mean_and_spread(each) for each in values])
