"""Effects as small SVG pictures: the interval, the point, and the region that was claimed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from repro.claims.verdicts import CheckVerdict

WIDTH, HEIGHT = 260, 34
EDGE = 8  # left free on both sides
LINE = 11  # height of the interval; labels stand below it
LOG_ABOVE = 20  # largest over smallest value from which the axis is logarithmic
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_CLAIMED = re.compile(rf"(between|[<≤>≥]) ({_NUMBER})(?: and ({_NUMBER}))?(?: (?:%|points))?")


@dataclass(frozen=True)
class Mark:
    """A value that is named on the axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Row:
    """A row of a forest plot, in the units of its picture.

    Attributes:
        claimed: left and right end of the region in which the effect should lie.
        interval: likewise of the effect's interval.
        effect: where the point is.
        limits: the ends of the region that lie within the picture, with their values.
    """

    claimed: tuple[float, float]
    interval: tuple[float, float]
    effect: float
    limits: list[Mark]


def row(check: CheckVerdict) -> Row | None:
    """Lays out a check; None where it has no effect to show."""
    if check.effect is None or not math.isfinite(check.effect):
        return None
    factor = 100.0 if check.percent else 1.0
    region = claimed_region(check.claimed)
    limits = [end for end in region if math.isfinite(end)]
    effect = factor * check.effect
    ends = [factor * end for end in (check.low, check.high) if end is not None]
    place = _axis([effect, *ends, *limits])
    # An end that is not finite reaches the edge; without any there is but a point.
    low, high = (-math.inf, math.inf) if ends else (effect, effect)
    if check.low is not None:
        low = factor * check.low
    if check.high is not None:
        high = factor * check.high
    return Row(
        claimed=(place(region[0]), place(region[1])),
        interval=(place(low), place(high)),
        effect=place(effect),
        limits=[Mark(place(end), f"{end:g}".replace("-", "−")) for end in limits],
    )


def claimed_region(claimed: str) -> tuple[float, float]:
    """The region that a check's ``claimed`` tells, in the units that are shown.

    Examples:
        >>> claimed_region("≥ -1 %")
        (-1.0, inf)
        >>> claimed_region("between 0.8 and 1.25")
        (0.8, 1.25)
        >>> claimed_region("something else")
        (-inf, inf)
    """
    found = _CLAIMED.fullmatch(claimed)
    if found is None:
        return -math.inf, math.inf
    word, first, second = found.groups()
    if word == "between":
        return float(first), float(second or "inf")
    return (-math.inf, float(first)) if word in "<≤" else (float(first), math.inf)


def _axis(values: list[float]) -> Callable[[float], float]:
    """Maps values to the picture's width, what lies beyond to its edges."""
    low, high = min(values), max(values)
    is_log = low > 0 and high / low >= LOG_ABOVE

    def along(value: float) -> float:
        if not is_log or math.isinf(value):
            return value
        return math.log10(value) if value > 0 else -math.inf

    first, last = along(low), along(high)
    free = 0.08 * (last - first) or 0.5 * abs(first) or 1.0  # around a single value
    first, last = first - free, last + free

    def place(value: float) -> float:
        share = (along(value) - first) / (last - first)
        return EDGE + (WIDTH - 2 * EDGE) * min(max(share, 0.0), 1.0)

    return place
