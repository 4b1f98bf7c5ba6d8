"""How long things take, beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(works: Mapping[str, Callable[[], object]], passes: int) -> dict[str, float]:
    """Median times of things that take turns, so that a busy machine is busy for all of them.

    A first turn, which warms up, does not count; a GPU is waited for.

    Args:
        works: what is timed, by name.
        passes: turns that count.

    Returns:
        Seconds of a call, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(passes + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}
