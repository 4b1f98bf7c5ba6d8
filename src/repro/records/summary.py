"""How the runs of an arm are put into a few words and numbers."""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from repro.errors import UserError
from repro.records import files
from repro.records.papers import Paper
from repro.records.provenance import paper_fingerprint
from repro.records.status import Status

if TYPE_CHECKING:
    from repro.records.study import Study


OLD = "†"  # marks a record that may be older than what is its paper's own
OLD_MEANS = f"{OLD} the paper's code has changed since, or the record does not say which ran"
# Where the runs of a record begin and what each took, as `files.write_json` writes them.
_RUNS, _SECONDS = b',\n "runs": [', re.compile(rb'\n   "seconds": ([\d.e+-]+)')


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


def recorded_study(paper: Paper, scale: str) -> dict[str, Any]:
    """What the paper's room holds of a study; parsed once for as long as the file is the same.

    A `UserError` says so if it is missing, or not JSON.
    """
    return _parsed(*_as_it_is(paper.results_file(scale)))


def _as_it_is(file: Path) -> tuple[Path, Hashable]:
    if not file.is_file():
        raise UserError(f"{file} does not exist.")
    return file, files.version_of(file)


@functools.cache
def _parsed(file: Path, _version: Hashable) -> dict[str, Any]:
    content: dict[str, Any] = files.read_json(file)
    return content


def _overview(paper: Paper, scale: str) -> dict[str, Any]:
    """A recorded study without its runs, which are nine tenths of it, but with their seconds."""
    return _skimmed(*_as_it_is(paper.results_file(scale)))


@functools.cache
def _skimmed(file: Path, version: Hashable) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # it cannot be read, which is said below
        head, is_as_written, runs = file.read_bytes().partition(_RUNS)
        if is_as_written:
            return {**json.loads(head + b"}"), "seconds": sum(map(float, _SECONDS.findall(runs)))}
    study = _parsed(file, version)
    return {**study, "seconds": float(sum(run["seconds"] or 0 for run in study["runs"]))}


def recorded_verdicts(paper: Paper) -> dict[str, dict[str, int]]:
    """How many claims got which verdict, for each scale with recorded results."""
    counts = {}
    for scale in paper.recorded_scales:
        given = [claim["verdict"] for claim in _overview(paper, scale)["claims"]]
        counts[scale] = {verdict: given.count(verdict) for verdict in dict.fromkeys(given)}
    return counts


def recorded_seconds(paper: Paper, scale: str) -> float:
    """How long the runs of a recorded study took, one after the other."""
    seconds: float = _overview(paper, scale)["seconds"]
    return seconds


def recorded_commit(paper: Paper, scale: str) -> str:
    """The git commit of the code that produced a recorded study, or ``unknown``."""
    return str(_overview(paper, scale)["code"].get("commit", "unknown"))


def is_outdated(paper: Paper, scale: str) -> bool:
    """Whether what is the paper's own is not known to be as it was for a recorded study."""
    produced = _overview(paper, scale)["code"].get("paper_sha256")
    return produced is None or bool(produced != paper_fingerprint(paper))
