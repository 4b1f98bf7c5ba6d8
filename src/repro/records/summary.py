"""How the runs of an arm are put into a few words and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from repro.records.status import Status

if TYPE_CHECKING:
    from repro.records.study import Study


class OfArm(Protocol):
    """A run that is planned, or that was made."""

    @property
    def arm(self) -> str:
        """Its arm."""

    @property
    def point(self) -> Mapping[str, Any]:
        """Its grid point: values by key."""


R = TypeVar("R", bound=OfArm)


@dataclass(frozen=True)
class Scored:
    """A point of a grid or a search, and how good it is.

    Attributes:
        names: what it is called: its arm, say, or its trial.
        point: the values that it stands for, by key.
        values: the validation metric of each seed.
        state: how its runs ended.
    """

    names: tuple[str, ...]
    point: Mapping[str, Any]
    values: Sequence[float]
    state: str


def scores(study: Study) -> tuple[list[Scored], str, str]:
    """The points of a grid with the validation metric that the paper selects by.

    Returns:
        The points, best first; the metric; and whether ``min`` or ``max`` is best.
    """
    training = study.runs[0].config().training
    groups = by_arm(run.measured() for run in study.runs)
    scored = [
        Scored(
            names=(arm,),
            point=runs[0].point,
            values=[r.metrics[training.monitor] for r in runs if training.monitor in r.metrics],
            state=state_counts([run.status for run in runs]),
        )
        for (arm, _), runs in groups.items()
    ]
    return best_first(scored, training.mode), training.monitor, training.mode


def identical_points(study: Study) -> list[list[str]]:
    """The points of a grid at which an arm measured the very same, so that a setting did nothing.

    Returns:
        Groups of points, each as ``arm key=value``.
    """
    alike: dict[str, list[str]] = {}
    for (arm, point), runs in by_arm(run.measured() for run in study.runs).items():
        # Times differ between equal runs.
        measured = {
            run.seed: {name: v for name, v in run.metrics.items() if not name.startswith("time/")}
            for run in runs
        }
        if any(measured.values()):
            alike.setdefault(f"{arm} {sorted(measured.items())}", []).append(f"{arm} {point}")
    return [points for points in alike.values() if len(points) > 1]


def best_first(rows: Sequence[Scored], mode: str) -> list[Scored]:
    """Sorts by the mean; rows that have no value, or ended before their time, come last.

    Args:
        rows: in an order that ties keep.
        mode: ``min`` or ``max``.
    """
    sign = 1.0 if mode == "min" else -1.0

    def rank(row: Scored) -> tuple[bool, bool, float]:
        whole = bool(row.values) and "finished" in row.state
        value = sign * statistics.fmean(row.values) if row.values else 0.0
        return not whole, not row.values, value

    return sorted(rows, key=rank)


def by_arm(runs: Iterable[R]) -> dict[tuple[str, str], list[R]]:
    """Groups runs that differ only in their seed.

    Returns:
        The runs by arm and grid point, the point as text: ``key=value, …``, or nothing.
    """
    groups: dict[tuple[str, str], list[R]] = {}
    for run in runs:
        point = ", ".join(f"{key}={value}" for key, value in run.point.items())
        groups.setdefault((run.arm, point), []).append(run)
    return groups


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, to the digits worth reading.

    Examples:
        >>> mean_and_spread([0.97, 0.98, 0.99])
        '0.98 ± 0.01'
        >>> mean_and_spread([2604.0, 2604.0])
        '2604'
        >>> mean_and_spread([])
        '–'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "–"
    deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
    spread = f" ± {deviation:.2g}" if deviation > 0 else ""
    missing = f" ({len(finite)} of {len(values)})" if len(finite) < len(values) else ""
    return f"{statistics.fmean(finite):.4g}{spread}{missing}"


def state_counts(statuses: Sequence[Status]) -> str:
    """How many runs ended how.

    Examples:
        >>> state_counts([Status.FINISHED, Status.DIVERGED, Status.FINISHED])
        '2 finished, 1 diverged'
    """
    return ", ".join(f"{statuses.count(state)} {state}" for state in dict.fromkeys(statuses))
