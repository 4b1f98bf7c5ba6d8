"""What a study may say about a claim, and the signs for it. Instant to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum


class Verdict(StrEnum):
    """What a study says about a claim.

    ``NOT_TESTED`` means that the study lacks the runs or metrics a check reads; ``NOT_AT_SCALE``
    that the claim cannot be tested at the study's scale, whatever is run.
    """

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTED = "not tested"
    NOT_AT_SCALE = "not tested at this scale"

    @property
    def mark(self) -> str:
        """A sign for it."""
        signs = {"supported": "✓", "not supported": "✗", "inconclusive": "?"}
        return signs.get(self, "–")


MARKS = tuple(dict.fromkeys(verdict.mark for verdict in Verdict))
LEGEND = "✓ supported, ✗ not supported, ? inconclusive, – not tested there"


def tally(counts: Mapping[str, int]) -> list[str]:
    """How many claims got which of `MARKS`, from counts by verdict, as cells of a table."""
    found = dict.fromkeys(MARKS, 0)
    for verdict, count in counts.items():
        found[Verdict(verdict).mark] += count
    return [str(count or "") for count in found.values()]


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a statement of which every part has to hold."""
    parts = set(verdicts)
    if Verdict.NOT_SUPPORTED in parts:
        return Verdict.NOT_SUPPORTED
    return parts.pop() if len(parts) == 1 else Verdict.INCONCLUSIVE
