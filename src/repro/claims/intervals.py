"""An effect's interval, and the region in which a claim says that the effect lies."""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """An effect with its interval; infinite ends say that the data allow no statement."""

    effect: float
    low: float
    high: float

    def within(self, possible: Region) -> Estimate:
        """The interval without what cannot be; infinite ends still say that nothing is known."""
        low, high = (
            end if math.isinf(end) else min(max(end, possible.low), possible.high)
            for end in self[1:]
        )
        return Estimate(self.effect, low, high)


class Region(NamedTuple):
    """The values of an effect for which a check holds: an interval, perhaps without its ends."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    @classmethod
    def beyond(cls, margin: float, upwards: bool) -> Region:
        """More than a margin above zero, or below it."""
        return cls(low=margin, strict=True) if upwards else cls(high=-margin, strict=True)

    def contains(self, low: float, high: float) -> bool:
        """Whether the whole interval from ``low`` to ``high`` lies in the region."""
        if self.strict:
            is_above = low > self.low or self.low == -math.inf
            is_below = high < self.high or self.high == math.inf
            return is_above and is_below
        return low >= self.low - _slack(self.low, low) and high <= self.high + _slack(
            self.high, high
        )

    def excludes(self, low: float, high: float) -> bool:
        """Whether the whole interval from ``low`` to ``high`` lies outside the region."""
        if self.strict:
            return high <= self.low or low >= self.high
        return high < self.low - _slack(self.low, high) or low > self.high + _slack(self.high, low)

    def text(self, percent: str = "") -> str:
        """The region in words, its ends as percentages (``%`` or ``points``) if so wanted."""
        # Adding zero turns the -0.0 of a margin of nothing into 0.0.
        low, high = ((100 if percent else 1) * end + 0.0 for end in (self.low, self.high))
        unit = f" {percent}" if percent else ""
        if math.isinf(low):
            return f"{'<' if self.strict else '≤'} {high:g}{unit}"
        if math.isinf(high):
            return f"{'>' if self.strict else '≥'} {low:g}{unit}"
        return f"between {low:g} and {high:g}{unit}"


def _slack(bound: float, value: float) -> float:
    """Rounding allowed at the closed end of a region: exactly 1 % is often 0.010000000000000009."""
    if math.isinf(bound) or math.isinf(value):
        return 0.0
    return 1e-9 * max(abs(bound), abs(value))
