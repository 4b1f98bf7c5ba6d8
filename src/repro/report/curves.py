"""Learning curves: metrics.csv of all seeds of an arm become one mean line with a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.records import names
from repro.records.run import MeasuredRun
from repro.records.series import read_series
from repro.report.collect import StudyEntry
from repro.report.settings import Settings

Series = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Curve:
    """One arm's metric over steps: mean, lowest and highest seed."""

    name: str
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curves_of(
    study: StudyEntry, metrics: Sequence[str], settings: Settings
) -> dict[str, list[Curve]]:
    """The curves of the metrics that were logged more than once, by metric.

    Args:
        study: whose runs to read.
        metrics: the metrics wanted, most important first.
        settings: how many metrics, lines and points to keep.
    """
    groups = list(study.groups.items())[: settings.lines]
    series = {name: [_read(run, metrics) for run in runs] for name, runs in groups}
    found: dict[str, list[Curve]] = {}
    for metric in dict.fromkeys(metrics):
        drawn = [
            average(name, [seed[metric] for seed in seeds if seed.get(metric)], settings.points)
            for name, seeds in series.items()
        ]
        if any(len(curve.steps) > 1 for curve in drawn):
            found[metric] = [curve for curve in drawn if curve.steps]
        if len(found) == settings.curves:
            break
    return found


def average(name: str, seeds: Sequence[Series], points: int) -> Curve:
    """The mean over seeds and the band between the lowest and the highest, at some steps.

    Where seeds stopped early, the later points rest on those that went on.
    """
    steps = _thin(sorted({step for seed in seeds for step in seed}), points)
    values = [[seed[step] for seed in seeds if step in seed] for step in steps]
    return Curve(
        name=name,
        steps=steps,
        mean=[math.fsum(each) / len(each) for each in values],
        low=[min(each) for each in values],
        high=[max(each) for each in values],
    )


def read_columns(file: Path, wanted: Sequence[str]) -> dict[str, Series]:
    """The finite values of some columns of metrics.csv; a damaged file counts up to the damage."""
    found: dict[str, Series] = {}
    for row in read_series(file, wanted, up_to_damage=True):
        for name in wanted:
            if "step" in row and math.isfinite(row.get(name, math.nan)):
                found.setdefault(name, {})[row["step"]] = row[name]
    return found


def _read(run: MeasuredRun, metrics: Sequence[str]) -> dict[str, Series]:
    return read_columns(run.folder / names.SERIES, metrics)


def _thin(steps: list[int], points: int) -> list[int]:
    """At most so many steps, evenly chosen, the first and the last among them."""
    if len(steps) <= points:
        return steps
    last = len(steps) - 1
    return [steps[round(index * last / max(1, points - 1))] for index in range(points)]
