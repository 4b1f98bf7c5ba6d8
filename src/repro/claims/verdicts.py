"""Verdicts, their JSON form and how their numbers are written. Cheap to import."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from repro.claims.outcomes import Verdict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls.model_validate(raw)


def _unless_none() -> Any:
    """A field that stands in the JSON form only if it has a value."""
    return Field(None, exclude_if=lambda value: value is None)


class Paper(_Record):
    """What the paper reports, and how we know it."""

    value: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    setting: str = ""
    source: Literal["read", "recalled", "inferred"]

    @property
    def text(self) -> str:
        """The value, marked where it was not read in the paper itself."""
        return self.value if self.source == "read" else f"{self.value} ({self.source})"


class Recorded(_Record):
    """What the paper's record says of the same check."""

    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    seeds: int


class CheckVerdict(_Record):
    """The outcome of one check.

    Attributes:
        relation: The check's relation.
        compared: What the effect is, e.g. ``dgc − dense, test/accuracy``.
        claimed: Where the effect should lie, e.g. ``≥ -0.01``.
        verdict: The outcome.
        reason: Why it is not clear cut, and which runs were left out; may be empty.
        effect: Mean difference, mean, geometric mean ratio, slope or difference of fractions.
        low: Lower end of the effect's interval; None when there is no finite one.
        high: Upper end.
        level: The interval's confidence level.
        seeds: Number of seeds the effect rests on.
        signed: Whether the effect is a difference, shown with its sign.
        percent: Whether it is shown as a percentage.
        unit: What stands behind the numbers.
        margin_because: Why the margin or bound is what it is, if the check says so.
        null_arm: An arm without the method, of which the same was asked.
        null_passes: Whether the check holds for it, too; then it shows nothing of the method.
        seeds_needed: How many would probably (4 times of 5) decide what is inconclusive, were the
            effect and the spread over seeds as measured; None where that cannot be told.
        recorded: What the paper's record says of the same check, if it has it.
    """

    relation: str
    compared: str
    claimed: str
    verdict: Verdict
    reason: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    seeds: int = 0
    signed: bool = False
    percent: bool = False
    unit: str = ""
    margin_because: str | None = _unless_none()
    null_arm: str | None = _unless_none()
    null_passes: bool | None = _unless_none()
    seeds_needed: int | None = _unless_none()
    recorded: Recorded | None = _unless_none()

    @property
    def is_open(self) -> bool:
        """Whether more seeds may decide it: there is a number, and it does not yet say enough."""
        return (
            self.verdict is Verdict.INCONCLUSIVE
            and self.effect is not None
            and not self.null_passes
        )

    @property
    def detail(self) -> str:
        """What the effect is, where it should lie, and whether that shows anything."""
        text = f"{self.compared}; claimed {self.claimed}"
        return f"{text}, which holds for {self.null_arm} as well" if self.null_passes else text

    @property
    def effect_text(self) -> str:
        """The effect and its interval as a table shows them."""
        return self._write(self.effect, self.low, self.high)

    @property
    def recorded_text(self) -> str:
        """The recorded effect, likewise."""
        known = self.recorded
        return "–" if known is None else self._write(known.effect, known.low, known.high)

    def _write(self, effect: float | None, low: float | None, high: float | None) -> str:
        return format_effect(
            effect, low, high, signed=self.signed, percent=self.percent, unit=self.unit
        )


class ClaimVerdict(_Record):
    """The outcome of a claim: the worst that its checks allow.

    Attributes:
        id: The claim's id.
        statement: The claim in our own words.
        where: Where the paper makes it.
        paper: The paper's own numbers.
        verdict: The outcome.
        reason: Why, in a line; may be empty.
        checks: The outcomes of the checks done at this scale.
        recorded: The verdict in the paper's record, if the claim is there.
    """

    id: str
    statement: str
    where: str
    paper: Paper
    verdict: Verdict
    reason: str = ""
    checks: tuple[CheckVerdict, ...] = ()
    recorded: Verdict | None = _unless_none()

    @property
    def outlook(self) -> str:
        """How many seeds would probably decide the claim, if it is inconclusive; may be empty."""
        needed = [c.seeds_needed for c in self.checks if c.verdict is not Verdict.SUPPORTED]
        if self.verdict is not Verdict.INCONCLUSIVE or not needed or None in needed:
            return ""
        return f"about {max(filter(None, needed))} seeds would probably decide it"


def format_effect(
    effect: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    signed: bool = False,
    percent: bool = False,
    unit: str = "",
) -> str:
    """Writes an effect with its interval to as many digits as the interval justifies.

    Examples:
        >>> format_effect(0.00831, -0.00213, 0.01875, signed=True)
        '+0.008 [-0.002, +0.019]'
        >>> format_effect(0.00831, -0.00213, 0.01875, signed=True, percent=True)
        '+0.8 [-0.2, +1.9] points'
        >>> format_effect(597.3, 590.1, 604.6, unit="×")
        '597 [590, 605] ×'
        >>> format_effect(None)
        '–'
    """
    factor = 100 if percent else 1
    centre, low, high = (
        value * factor if value is not None and math.isfinite(value * factor) else None
        for value in (effect, low, high)
    )
    if centre is None:
        return "–"
    ends = [end for end in (low, high) if end is not None]
    spread = max((abs(end - centre) for end in ends), default=0.0)
    decimals = _decimals(spread, centre)
    plus = "+" if signed else ""
    size = max(abs(centre), spread)

    def write(value: float) -> str:
        if size and not 1e-4 <= size < 1e6:
            return f"{value:{plus}.3g}"
        # Adding zero turns the -0.0 of a rounded tiny negative into 0.0.
        text = f"{round(value, decimals) + 0.0:{plus}.{decimals}f}"
        # Trailing zeros claim a precision that only an interval can give.
        return text if spread or not decimals else text.rstrip("0").rstrip(".")

    text = write(centre)
    if spread:
        below = "−∞" if low is None else write(low)
        above = "∞" if high is None else write(high)
        text += f" [{below}, {above}]"
    return " ".join(part for part in (text, percent_word(percent, signed), unit) if part)


def percent_word(percent: bool, signed: bool) -> str:
    """What stands behind a percentage: a difference of two is one of points."""
    return ("points" if signed else "%") if percent else ""


def _decimals(spread: float, centre: float) -> int:
    """Decimals that show the spread to two digits when its first is 1, otherwise to one.

    Without a spread, four significant digits of the centre.
    """
    if 0 < spread < math.inf:
        first = math.floor(math.log10(spread))
        return min(max(-first + (spread < 2 * 10.0**first), 0), 12)
    if centre == 0:
        return 0
    return min(max(3 - math.floor(math.log10(abs(centre))), 0), 12)
