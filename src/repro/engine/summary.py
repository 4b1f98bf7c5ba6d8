"""How the runs of an arm are put into a few words and numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from repro.engine.runs import Status


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
