"""Relations over several arms, swept values or steps: spreads, orders, trends, speed-ups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.claims.evidence import Evidence, Series, Text, common_seeds, lone_seeds
from repro.claims.intervals import Region
from repro.claims.outcomes import Verdict, all_of
from repro.claims.relations.base import MetricCheck, Outcome, Range, Sample, log, sentence
from repro.claims.relations.pairs import Comparison, Factor


class Spread(MetricCheck):
    """The metric varies more over some arms than over others: which of two choices matters more.

    The spread of a group of arms is the standard deviation of log(metric) over them, so the metric
    has to be positive. The effect is the ratio of the two spreads; its mean is geometric.

    Attributes:
        arms: The arms that should differ more.
        versus: The arms that should differ less.
    """

    is_factor: ClassVar[bool] = True
    relation: Literal["spreads_more"]
    arms: tuple[Text, ...]
    versus: tuple[Text, ...]

    @model_validator(mode="after")
    def _groups(self) -> Spread:
        for name in ("arms", "versus"):
            group = getattr(self, name)
            if len(set(group)) < max(2, len(group)):
                raise ValueError(f"{name}: two or more different arms are needed")
        if set(self.arms) == set(self.versus):
            raise ValueError("the two groups are the same")
        return self

    @property
    def compared(self) -> str:
        """Both groups and the metric."""
        return (
            f"spread of {', '.join(self.arms)} / spread of {', '.join(self.versus)}, {self.metric}"
        )

    @property
    def region(self) -> Region:
        """Ratios above one."""
        return Region(low=1.0, strict=True)

    def sample(self, evidence: Evidence) -> Sample:
        """Logarithms of the ratio of the two spreads."""
        values = {arm: self.values(evidence, arm) for arm in self.arm_names()}
        seeds = common_seeds(*values.values())
        spreads = [
            log([[values[arm][seed] for arm in group] for seed in seeds], self.metric)
            .std(axis=1, ddof=1)
            for group in (self.arms, self.versus)
        ]  # fmt: skip
        ratio = log(spreads, f"the spread of {self.metric}")
        return Sample(ratio[0] - ratio[1], lone_seeds(*values.values()))


class Directed(MetricCheck):
    """A change that is claimed to be greater than a margin in one direction."""

    limits: ClassVar[Mapping[str, float | None]] = {"margin": 0.0}
    signed: ClassVar[bool] = True
    direction: Literal["increasing", "decreasing"]
    margin: float = Field(0.0, ge=0)

    @property
    def region(self) -> Region:
        """Changes beyond the margin."""
        return Region.beyond(self.margin, upwards=self.direction == "increasing")


class Ordered(Directed):
    """The metric rises (or falls) from each arm to the next by more than the margin.

    Every step has to hold; the numbers shown are those of the weakest one.
    """

    relation: Literal["ordered"]
    arms: tuple[Text, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Ordered:
        if len(self.arms) < 2:
            raise ValueError("arms: two or more are needed")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: one is listed twice")
        return self

    @property
    def compared(self) -> str:
        """The arms in the claimed order, and the metric."""
        sign = " < " if self.direction == "increasing" else " > "
        return f"{sign.join(self.arms)}, {self.metric}"

    @property
    def steps(self) -> list[Comparison]:
        """The comparison of every arm with the one before it."""
        shared = self.model_fields_set & set(MetricCheck.model_fields) - {"each"}
        fields = self.model_dump(include=shared) | {
            "relation": "greater" if self.direction == "increasing" else "less",
            "margin": self.margin,
        }
        return [
            Comparison.model_validate(fields | {"arm": arm, "versus": before})
            for before, arm in itertools.pairwise(self.arms)
        ]

    def judge(self, evidence: Evidence) -> Outcome:
        """Judges every step."""
        outcomes = [(step.judge(evidence), step) for step in self.steps]

        def strength(pair: tuple[Outcome, Comparison]) -> tuple[int, float]:
            outcome, _ = pair
            low, high = outcome.estimate[1:] if outcome.estimate else (-math.inf, math.inf)
            order = (Verdict.NOT_SUPPORTED, Verdict.INCONCLUSIVE, Verdict.SUPPORTED)
            return order.index(outcome.verdict), low if self.direction == "increasing" else -high

        weakest, step = min(outcomes, key=strength)
        return replace(
            weakest,
            verdict=all_of(outcome.verdict for outcome, _ in outcomes),
            reason=sentence(f"weakest step: {step.arm} − {step.versus}", weakest.reason),
        )

    def detectable(self, evidence: Evidence) -> float | None:
        """That of the step about which least is known."""
        found = [step.detectable(evidence) for step in self.steps]
        known = [distance for distance in found if distance is not None]
        return max(known) if len(known) == len(found) else None


class Curve(MetricCheck):
    """The metric as a function of x, one curve per seed.

    Attributes:
        arms: The arms along the curve, each with its x; or else
        arm: one arm whose runs differ
        over: in this swept config value.
    """

    is_power_law: ClassVar[bool] = False  # Whether the slope is that of the logarithms.

    arms: dict[str, float] | None = None
    arm: Text | None = None
    over: Text | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        swept = self.arm is not None and self.over is not None
        mixed = self.arms is not None and (self.arm is not None or self.over is not None)
        if mixed or (self.arms is None and not swept):
            raise ValueError("say either arms (name: x) or arm with over")
        if self.arms is not None and len(self.arms) < 2:
            raise ValueError("arms: two or more are needed")
        if self.arms is not None and len(set(self.arms.values())) < len(self.arms):
            raise ValueError("arms: two have the same x")
        return self

    @property
    def along(self) -> str:
        """What the curve runs along, in a few words."""
        return f"{self.arm} along {self.over}" if self.arms is None else ", ".join(self.arms)

    def sample(self, evidence: Evidence) -> Sample:
        """The slope of every seed's curve, by least squares."""
        from repro.claims import statistics

        curve = self._curve(evidence)
        seeds, points = common_seeds(*curve.values()), sorted(curve)
        y_SX = [[curve[point][seed] for point in points] for seed in seeds]
        if self.is_power_law:
            slopes = statistics.slopes(log(points, str(self.over)), log(y_SX, self.metric))
        else:
            slopes = statistics.slopes(range(len(points)), y_SX)
        return Sample(slopes, lone_seeds(*curve.values()))

    def _curve(self, evidence: Evidence) -> dict[float, dict[int, float]]:
        """The metric by x and seed."""
        if self.arms is not None:
            return {x: self.values(evidence, arm) for arm, x in self.arms.items()}
        arm, over = self.arm or "", self.over or ""
        return {
            x: evidence.values(arm, self.metric, {**self.at, over: x}, self.on_collapse)
            for x in evidence.swept(arm, over, self.at)
        }


class Trend(Directed, Curve):
    """The metric tends to rise (or fall) with x.

    The effect is the least-squares change per step from one x to the next larger one, whatever the
    distance between them. A trend allows a dent on the way; ``ordered`` does not.
    """

    relation: Literal["trend"]

    @property
    def compared(self) -> str:
        """What runs along what."""
        return f"change per step, {self.along}, {self.metric}"


class Slope(Range, Curve):
    """The slope of log(metric) against log(x), i.e. the exponent of a power law, is in a range."""

    is_power_law: ClassVar[bool] = True
    relation: Literal["slope"]

    @model_validator(mode="after")
    def _positive(self) -> Slope:
        if self.arms is not None and min(self.arms.values()) <= 0:
            raise ValueError("arms: every x has to be positive for a log-log fit")
        return self

    @property
    def compared(self) -> str:
        """What runs along what."""
        return f"log-log slope, {self.along}, {self.metric}"


class SpeedUp(Factor):
    """``arm`` gets to where ``versus`` ends so many times sooner.

    The level is the last value that ``versus`` logged, e.g. its last validation loss. The effect is
    the steps that ``versus`` took to log it, over the steps after which ``arm`` first reaches the
    level (interpolated linearly between logged values); its mean is geometric.

    A run that never gets there counts with its last step, which bounds its speed-up from above.
    With such a run nothing is known about the lower end of the interval: ``at_least`` can still
    fail, but not hold.

    Attributes:
        metric: A name in the runs' ``metrics.csv``.
        better: Whether the metric is to fall or to rise.
    """

    relation: Literal["speed_up"]
    versus: Text
    better: Literal["lower", "higher"] = "lower"

    @model_validator(mode="after")
    def _nothing_else(self) -> SpeedUp:
        for name in ("versus_metric", "on_collapse", "censored_at"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: a speed-up has none")
        return self

    @property
    def compared(self) -> str:
        """Both arms, and the series that is followed."""
        return f"steps of {self.versus} / steps of {self.arm} to its last {self.metric}"

    def sample(self, evidence: Evidence) -> Sample:
        """Logarithms of the speed-ups."""
        ours, theirs = (
            evidence.series(arm, self.metric, self.at) for arm in (self.arm, self.versus)
        )
        speed_ups: list[float] = []
        late = 0
        for seed in common_seeds(ours, theirs):
            last = max(theirs[seed])
            needed = steps_to(ours[seed], theirs[seed][last], self.better)
            late += math.isinf(needed)
            # A logged step is the number of an update, counted from 0.
            speed_ups.append((last + 1) / (min(needed, max(ours[seed])) + 1))
        never = f"{late} of {len(speed_ups)} runs of arm '{self.arm}' never get there"
        note = sentence(never if late else "", lone_seeds(ours, theirs))
        return Sample(log(speed_ups, "the speed-up"), note, open_below=late > 0)


def steps_to(series: Series, level: float, better: Literal["lower", "higher"]) -> float:
    """The step at which a series first reaches a level, interpolated linearly.

    Args:
        series: Values by step, finite.
        level: What to reach.
        better: ``lower`` if the level is reached from above.

    Returns:
        The step; infinity if the level is never reached.
    """
    sign = 1 if better == "lower" else -1
    gaps = [(step, sign * (series[step] - level)) for step in sorted(series)]
    if gaps[0][1] <= 0:
        return gaps[0][0]
    for (before, gap), (step, new_gap) in itertools.pairwise(gaps):
        if new_gap <= 0:
            return before + gap / (gap - new_gap) * (step - before)
    return math.inf
