"""What a study measured, by arm: final metrics as a table, logged metrics as curves."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.records import names
from repro.records.series import read_series
from repro.records.status import Status
from repro.records.study import Study


@dataclass(frozen=True)
class Row:
    """A final metric of a run."""

    arm: str
    seed: int
    point: str  # the swept values of a grid, empty in a study
    metric: str
    value: float


@dataclass(frozen=True)
class Curve:
    """A logged metric of a run; ``step``, ``x`` and ``y`` have the same length.

    Attributes:
        seed: the run's seed.
        step: optimizer steps done.
        x: what the curve is drawn against.
        y: the metric.
        diverged: whether the run ended because it diverged.
    """

    seed: int
    step: np.ndarray
    x: np.ndarray
    y: np.ndarray
    diverged: bool = False


@dataclass(frozen=True)
class Measured:
    """A run as a table sees it: what it is, how it ended, what it measured."""

    arm: str
    seed: int
    folder: Path
    metrics: dict[str, float]
    diverged: bool = False
    point: str = ""

    @functools.cached_property
    def series(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv, read when they are first asked for."""
        return read_series(self.folder / names.SERIES)


@dataclass(frozen=True)
class Table:
    """The runs of a study, in the order of the study."""

    runs: Sequence[Measured]

    @functools.cached_property
    def _values(self) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
        """By arm and metric, the value of each grid point and seed."""
        values: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
        for row in self.rows:
            values.setdefault((row.arm, row.metric), {})[row.point, row.seed] = row.value
        return values

    @property
    def rows(self) -> Iterable[Row]:
        """Every final metric of every run."""
        for run in self.runs:
            for metric, value in run.metrics.items():
                yield Row(run.arm, run.seed, run.point, metric, value)

    @property
    def arms(self) -> list[str]:
        """The arms that have runs."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def metrics_of(self, arm: str) -> list[str]:
        """The final metrics that the arm's runs have."""
        return [metric for name, metric in self._values if name == arm]

    @property
    def seeds(self) -> int:
        """How many seeds the study has."""
        return len({run.seed for run in self.runs})

    def has_diverged(self, arm: str) -> bool:
        """Whether a run of the arm diverged."""
        return any(run.diverged for run in self.runs if run.arm == arm)

    def values(self, arm: str, metric: str) -> np.ndarray:
        """A metric of all runs of an arm that have it, (runs,)."""
        return np.array(list(self._values.get((arm, metric), {}).values()), dtype=float)

    def differences(self, arm: str, other: str, metric: str) -> np.ndarray:
        """A metric minus the other arm's of the same seed, (seeds that both have,)."""
        own, rival = (self._values.get((name, metric), {}) for name in (arm, other))
        return np.array([own[key] - rival[key] for key in own if key in rival], dtype=float)

    def matrix(self, arm: str, metrics: Sequence[str]) -> np.ndarray:
        """Metrics of the arm's runs that have all of them, (runs, metrics)."""
        rows = [
            [run.metrics[name] for name in metrics]
            for run in self.runs
            if run.arm == arm and all(name in run.metrics for name in metrics)
        ]
        return np.array(rows, dtype=float).reshape(len(rows), len(metrics))

    def curves(self, arm: str, metric: str, x: str = "step", total: bool = False) -> list[Curve]:
        """A logged metric of each run of an arm that has it.

        Args:
            arm: whose runs.
            metric: a column of metrics.csv.
            x: what to put it against: ``step``, ``epoch`` (epochs done) or another column that is
                logged in the same rows.
            total: whether ``x`` is counted per step and is to be added up over the steps.
        """
        found = []
        for run in self.runs:
            rows = [row for row in run.series if x in row] if run.arm == arm else []
            has_metric = [metric in row for row in rows]
            if any(has_metric):
                step, along = (
                    np.array([row[key] for row in rows], dtype=float) for key in ("step", x)
                )
                if total:  # the first row is of step 0 or later: nothing was done before it
                    along = np.cumsum(along * np.diff(step, prepend=-1))
                if x == "epoch":
                    along = along + 1
                y = np.array([row[metric] for row in rows if metric in row], dtype=float)
                found.append(Curve(run.seed, step[has_metric], along[has_metric], y, run.diverged))
        return found


def table(study: Study) -> Table:
    """Reads the final metrics of a study's runs; curves are read when they are asked for."""
    runs = []
    for run in study.runs:
        record = run.record()
        runs.append(
            Measured(
                arm=record.arm,
                seed=record.seed,
                folder=run.folder,
                metrics=run.summary(record),
                diverged=record.status == Status.DIVERGED,
                point=" ".join(f"{key}={value}" for key, value in record.point.items()),
            )
        )
    return Table(runs)


def recorded_table(content: Mapping[str, Any]) -> Table:
    """The final metrics that a room's ``results/<scale>.json`` holds; it holds no curves.

    Args:
        content: of the file.
    """
    return Table(
        [
            Measured(
                arm=run["arm"],
                seed=run["seed"],
                folder=Path(os.devnull),
                metrics=run["metrics"],
                diverged=run["status"] == Status.DIVERGED,
            )
            for run in content["runs"]
        ]
    )
