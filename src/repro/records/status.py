"""Where a run stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum


class Status(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"  # a loss became infinite or not a number: a result, not a failure
    PRUNED = "pruned"  # a search stopped it, because others are better
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """Whether resuming the study leaves this run alone."""
        return self in (Status.FINISHED, Status.DIVERGED, Status.PRUNED)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of the run unless somebody resumes it on purpose."""
        return self.is_final or self is Status.FAILED


def count(statuses: Iterable[Status]) -> dict[Status, int]:
    """How many runs stand where, in the order of `Status`."""
    counts = Counter(statuses)
    return {status: counts[status] for status in Status if status in counts}
