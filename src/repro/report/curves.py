"""Learning curves: metrics.csv of all seeds of an arm become one mean line with a band."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from repro.records import names
from repro.records.series import read_series
from repro.records.status import Status
from repro.report.collect import StudyEntry
from repro.report.settings import Settings

Series = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Curve:
    """One arm's metric over steps: mean, lowest and highest seed.

    Attributes:
        name: of the arm, and of its grid point.
        steps: at which the arm is drawn.
        mean: over seeds that did not diverge, if there are such.
        low: the lowest of them.
        high: the highest.
        lost: last step and value of each seed that diverged.
    """

    name: str
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    lost: list[tuple[int, float]] = field(default_factory=list)
    is_lost: bool = False  # all seeds diverged


def claimed_first(study: StudyEntry) -> tuple[list[str], set[str]]:
    """The groups of a study, those that its claims compare before the others.

    Returns:
        All groups, and those that claims name: all of them where no claim was judged.
    """
    checks = [check for claim in study.verdicts for check in claim.checks]
    words = {word for check in checks for word in re.split(r"[\s,|]+", check.compared)}
    groups = list(study.groups)
    named = {name for name in groups if study.groups[name][0].arm in words}
    return sorted(groups, key=lambda name: name not in named), named or set(groups)


def curves_of(
    study: StudyEntry, metrics: Sequence[str], settings: Settings
) -> dict[str, list[Curve]]:
    """The curves of the metrics that changed while the arms were trained, by metric.

    Args:
        study: whose runs to read.
        metrics: the metrics wanted, most important first.
        settings: how many metrics, lines and points to keep.
    """
    order, _ = claimed_first(study)
    series = {
        name: [
            (read_columns(run.folder / names.SERIES, metrics), run.status is Status.DIVERGED)
            for run in study.groups[name]
        ]
        for name in order[: settings.lines]
    }
    found: dict[str, list[Curve]] = {}
    for metric in dict.fromkeys(metrics):
        drawn = [
            curve
            for name, seeds in series.items()
            if (curve := _of_metric(name, metric, seeds, settings.points)).steps
        ]
        if any(_changes(curve) for curve in drawn):
            found[metric] = drawn
        if len(found) == settings.curves:
            break
    return found


def _of_metric(
    name: str, metric: str, seeds: Sequence[tuple[dict[str, Series], bool]], points: int
) -> Curve:
    """An arm's metric, of which the seeds that diverged have their ends marked."""
    well = [seed[metric] for seed, diverged in seeds if seed.get(metric) and not diverged]
    lost = [seed[metric] for seed, diverged in seeds if seed.get(metric) and diverged]
    ends = [max(seed.items()) for seed in lost]
    return replace(average(name, well or lost, points), lost=ends, is_lost=not well)


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


def read_columns(file: Path, metrics: Sequence[str]) -> dict[str, Series]:
    """The finite values of some columns of metrics.csv; a damaged file counts up to the damage."""
    columns: dict[str, Series] = {}
    for row in read_series(file, metrics, up_to_damage=True):
        for name in metrics:
            if "step" in row and math.isfinite(row.get(name, math.nan)):
                columns.setdefault(name, {})[row["step"]] = row[name]
    return columns


def _changes(curve: Curve) -> bool:
    """Whether there is something to see: more than a constant."""
    return len(curve.steps) > 1 and len({*curve.low, *curve.high}) > 1


def _thin(steps: list[int], points: int) -> list[int]:
    """At most so many steps, evenly chosen, the first and the last among them."""
    if len(steps) <= points:
        return steps
    last = len(steps) - 1
    return [steps[round(index * last / max(1, points - 1))] for index in range(points)]
