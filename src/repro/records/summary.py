"""How the runs of an arm are put into a few words and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repro.records.status import Status

if TYPE_CHECKING:
    from repro.records.run import RunRecord
    from repro.records.study import Study


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
    groups: dict[tuple[str, str], list[tuple[RunRecord, dict[str, float]]]] = {}
    for run in study.runs:
        record = run.record()
        groups.setdefault((record.arm, str(record.point)), []).append((record, run.summary()))
    scored = [
        Scored(
            names=(arm,),
            point=runs[0][0].point,
            values=[m[training.monitor] for _, m in runs if training.monitor in m],
            state=state_counts([record.status for record, _ in runs]),
        )
        for (arm, _), runs in groups.items()
    ]
    return best_first(scored, training.mode), training.monitor, training.mode


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
