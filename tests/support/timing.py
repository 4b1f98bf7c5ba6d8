"""One harness for all benchmarks: ours against a named alternative, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def faster(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    factor: float = 1.0,
    repeats: int = 5,
) -> None:
    """Asserts that the reference takes at least ``factor`` times as long as ours.

    The two take turns, so that a slow moment of the machine meets both, and the median of the
    ratios counts. A first turn, which warms up, does not.

    Args:
        name: what is printed with the ratio.
        ours: one call of what is measured.
        reference: one call of what it is measured against.
        factor: the least ratio; below one where ours may cost more, e.g. 0.5 for twice as much.
        repeats: turns that count.
    """
    turns = [(seconds(ours), seconds(reference)) for _ in range(repeats + 1)][1:]
    ratio = statistics.median(theirs / own for own, theirs in turns)
    own = statistics.median(own for own, _ in turns)
    print(f"\n{name}: {1e3 * own:.3g} ms, the reference {ratio:.2f} times (least {factor:.2f})")
    assert ratio >= factor, name


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
