"""How long something takes, for benchmarks."""

from __future__ import annotations

import timeit
from collections.abc import Callable


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls: whatever else the machine does only ever adds time."""
    return min(timeit.repeat(work, number=1, repeat=repeats))
