"""Relations about one arm, or between two, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.claims.evidence import (
    CollapseRule,
    Evidence,
    Text,
    UndecidedError,
    common_seeds,
    lone_seeds,
)
from repro.claims.intervals import Estimate, Region
from repro.claims.outcomes import Verdict
from repro.claims.ranges import range_of
from repro.claims.relations.base import (
    POWER,
    Check,
    MetricCheck,
    Outcome,
    Range,
    Sample,
    log,
    sentence,
)


class Level(MetricCheck):
    """The mean of one arm's metric."""

    arm: Text

    @property
    def compared(self) -> str:
        """The arm and its metric."""
        return f"{self.arm}, {self.metric}"

    @property
    def possible(self) -> Region:
        """The metric's range."""
        return Region(*self.metric_range)

    def sample(self, evidence: Evidence) -> Sample:
        """The metric."""
        values = self.values(evidence, self.arm)
        return Sample([values[seed] for seed in sorted(values)])


class Bound(Level):
    """The mean is at least, or at most, a value."""

    limits: ClassVar[Mapping[str, float | None]] = {"value": 0.0}
    relation: Literal["at_least", "at_most"]
    value: float

    @property
    def region(self) -> Region:
        """One side of the value."""
        return Region(low=self.value) if self.relation == "at_least" else Region(high=self.value)


class Within(Range, Level):
    """The mean lies within a range."""

    relation: Literal["within"]


class Sides(Check):
    """Two sides, each a metric of an arm.

    Attributes:
        metric: A name in the runs' ``summary.json``.
        arm: The arm the claim is about.
        versus: The arm it is compared with; the same arm when only ``versus_metric`` is given.
        versus_metric: The metric on the other side, when it is not the same.
    """

    metric: Text
    arm: Text
    versus: Text | None = None
    versus_metric: Text | None = None

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Arm and metric of each side."""
        ours = (self.arm, self.metric)
        return ours, (self.versus or self.arm, self.versus_metric or self.metric)

    def check_sides(self) -> None:
        """Refuses two sides that are the same.

        Raises:
            ValueError: they are the same.
        """
        if len(set(self.sides)) < 2:
            raise ValueError("the two sides are the same: say versus, versus_metric or both")

    def written(self, sign: str, other: str = "{}") -> str:
        """Both sides with a sign between, naming what they share only once.

        Args:
            sign: What stands between them.
            other: How the other side is written, with ``{}`` for its name.
        """
        (arm, metric), (versus, versus_metric) = self.sides
        if metric == versus_metric:
            return f"{arm} {sign} {other.format(versus)}, {metric}"
        if arm == versus:
            return f"{arm}, {metric} {sign} {other.format(versus_metric)}"
        return f"{arm}, {metric} {sign} {other.format(versus)}, {versus_metric}"


class Paired(Sides, MetricCheck):
    """Two arms (or two metrics of one arm) compared seed by seed.

    Attributes:
        censored_at: In the place of ``on_collapse``, the least that a collapsed run's value can be:
            the length of a training that ended before what is timed was reached. A comparison with
            it is a bound, and its interval is open on the other side.
    """

    censored_at: float | None = None

    @model_validator(mode="after")
    def _one_credit(self) -> Self:
        if self.censored_at is not None and self.on_collapse is not None:
            raise ValueError("say censored_at or on_collapse, not both")
        return self

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        self.check_sides()
        return self

    @property
    def compared(self) -> str:
        """Both sides and their metric."""
        return self.written("/" if self.is_factor else "−")

    @property
    def versus_range(self) -> tuple[float, float]:
        """The range of the other side's metric."""
        same = self.range is not None or self.versus_metric is None
        return self.metric_range if same else range_of(self.versus_metric or "")

    @property
    def possible(self) -> Region:
        """Differences between the ends of both sides' ranges; ratios are only positive."""
        if self.is_factor:
            return Region(low=0.0)
        (low, high), (least, most) = self.metric_range, self.versus_range
        return Region(low - most, high - least)

    def counted(self, value: float) -> float:
        """What a value of the other side counts for."""
        return value

    @property
    def credit(self) -> float | None:
        """What a collapsed run without a value counts for."""
        return self.on_collapse if self.censored_at is None else self.censored_at

    def sample(self, evidence: Evidence) -> Sample:
        """Differences, or logarithms of ratios."""
        ours, theirs = (self.values(evidence, *side) for side in self.sides)
        seeds = common_seeds(ours, theirs)
        pairs = [(ours[seed], self.counted(theirs[seed])) for seed in seeds]
        if self.is_factor:
            pairs = log(pairs, self.metric).tolist()
        differences, note = [one - other for one, other in pairs], lone_seeds(ours, theirs)
        if self.censored_at is None:
            return Sample(differences, note)
        late, late_theirs = (evidence.lacking(*side, self.at) for side in self.sides)
        notes = [
            f"{count} runs of arm '{arm}' never get there: {self.censored_at:g} is the least"
            for count, (arm, _) in zip((late, late_theirs), self.sides, strict=True)
            if count
        ]
        note = sentence(*notes, note)
        return Sample(differences, note, open_below=late_theirs > 0, open_above=late > 0)


class Comparison(Paired):
    """``arm`` is greater, or less, than ``versus`` by more than the margin.

    Attributes:
        margin: By how much more.
        times: The other side counts so many times: ``greater`` with 5 asks whether ``arm`` is more
            than five times ``versus``, and unlike a ratio allows values around zero.
        floor: The other side counts as this where it is lower, before it is multiplied: a loss of
            quality below zero would make "five times the loss" an easy thing to beat.
    """

    limits: ClassVar[Mapping[str, float | None]] = {"margin": 0.0, "times": 1.0}
    signed: ClassVar[bool] = True
    relation: Literal["greater", "less"]
    margin: float = Field(0.0, ge=0)
    times: float = Field(1.0, gt=0)
    floor: float | None = None

    @property
    def region(self) -> Region:
        """Differences beyond the margin."""
        return Region.beyond(self.margin, upwards=self.relation == "greater")

    @property
    def compared(self) -> str:
        """Both sides, the other one as it counts."""
        other = "{}" if self.floor is None else f"max({{}}, {self.floor:g})"
        return self.written("−", other if self.times == 1 else f"{self.times:g} × {other}")

    @property
    def possible(self) -> Region:
        """Differences between the ends of both sides' ranges."""
        low, high = self.metric_range
        other = [self.counted(end) for end in self.versus_range]
        return Region(low - max(other), high - min(other))

    def counted(self, value: float) -> float:
        """The metric, not below the floor, so many times."""
        return self.times * (value if self.floor is None else max(value, self.floor))


class NonInferior(Paired):
    """``arm`` is not worse than ``versus`` by more than the margin."""

    limits: ClassVar[Mapping[str, float | None]] = {"margin": 0.0}
    signed: ClassVar[bool] = True
    relation: Literal["non_inferior"]
    margin: float = Field(ge=0)
    better: Literal["higher", "lower"] = "higher"

    @property
    def region(self) -> Region:
        """Differences on the good side of the margin."""
        return Region(low=-self.margin) if self.better == "higher" else Region(high=self.margin)


class Equivalent(Paired):
    """``arm`` and ``versus`` differ by at most the margin (two one-sided tests)."""

    limits: ClassVar[Mapping[str, float | None]] = {"margin": 0.0}
    signed: ClassVar[bool] = True
    relation: Literal["equivalent"]
    margin: float = Field(gt=0)

    @property
    def region(self) -> Region:
        """Differences within the margin on both sides."""
        return Region(-self.margin, self.margin)


class Factor(Paired):
    """So many times something; the mean is geometric.

    Attributes:
        at_least: The lowest factor for which the check holds.
        at_most: The highest.
    """

    limits: ClassVar[Mapping[str, float | None]] = {"at_least": 1.0, "at_most": 1.0}
    is_factor: ClassVar[bool] = True
    at_least: float | None = Field(None, gt=0)
    at_most: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("say at_least, at_most or both")
        if self.region.low > self.region.high:
            raise ValueError("at_least is greater than at_most")
        return self

    @property
    def region(self) -> Region:
        """The factors between the bounds."""
        return Region(
            -math.inf if self.at_least is None else self.at_least,
            math.inf if self.at_most is None else self.at_most,
        )


class Ratio(Factor):
    """``arm`` is so many times ``versus``; both are positive. The mean ratio is geometric."""

    relation: Literal["ratio"]


class GapClosed(MetricCheck):
    """``arm`` closes more than a share of the way from ``start`` to ``goal``.

    The effect is by how much the arm passes that point, ``start + share (goal - start)``, seed by
    seed: unlike a quotient it stays harmless on a seed where the two are close.

    Attributes:
        arm: The arm the claim is about.
        start: The arm that closes nothing, a control.
        goal: The arm that closes everything.
        share: The share, in [0, 1].
        least_gap: A smaller mean distance from start to goal leaves the check inconclusive: there
            is nothing to close.
    """

    signed: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, float | None]] = {"share": 0.0, "least_gap": 0.0}
    relation: Literal["closes_gap"]
    arm: Text
    start: Text
    goal: Text
    share: float = Field(0.5, ge=0, le=1)
    least_gap: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _three_arms(self) -> Self:
        if len({self.arm, self.start, self.goal}) < 3:
            raise ValueError("arm, start and goal are three different arms")
        return self

    @property
    def compared(self) -> str:
        """The three arms, the share and the metric."""
        way = f"[{self.start} + {self.share:g} ({self.goal} − {self.start})]"
        return f"{self.arm} − {way}, {self.metric}"

    @property
    def region(self) -> Region:
        """Beyond the point."""
        return Region.beyond(0.0, upwards=True)

    def sample(self, evidence: Evidence) -> Sample:
        """By how much the arm passes the point.

        Raises:
            UndecidedError: the gap is too small.
        """
        three = (self.arm, self.start, self.goal)
        arm, start, goal = (self.values(evidence, name) for name in three)
        seeds = common_seeds(arm, start, goal)
        gap = sum(goal[seed] - start[seed] for seed in seeds) / len(seeds)
        if gap <= self.least_gap:
            raise UndecidedError(
                Verdict.INCONCLUSIVE,
                f"{self.goal} is {gap:.3g} above {self.start}: no gap to close",
            )
        closed = sum(arm[seed] - start[seed] for seed in seeds) / len(seeds) / gap
        past = [arm[seed] - start[seed] - self.share * (goal[seed] - start[seed]) for seed in seeds]
        return Sample(past, sentence(f"{closed:.0%} closed", lone_seeds(arm, start, goal)))


class Identity(Sides):
    """A number equals a value, or another arm's or metric's number, on every seed.

    For what holds by construction, so a single seed can support it and a single seed refutes it.
    The effect is the largest deviation.

    Attributes:
        value: The value, where there is no other side.
        tolerance: The largest deviation allowed.
    """

    limits: ClassVar[Mapping[str, float | None]] = {"tolerance": 0.0}
    relation: Literal["identity"]
    value: float | None = None
    tolerance: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _one_other_side(self) -> Identity:
        compared = self.versus is not None or self.versus_metric is not None
        if compared == (self.value is not None):
            raise ValueError("say either value, or versus and/or versus_metric")
        if compared:
            self.check_sides()
        return self

    @property
    def compared(self) -> str:
        """Both sides and their metric."""
        if self.value is not None:
            return f"|{self.arm} − {self.value:g}|, {self.metric}"
        return f"|{self.written('−')}|"

    @property
    def region(self) -> Region:
        """Deviations up to the tolerance."""
        return Region(high=self.tolerance)

    def judge(self, evidence: Evidence) -> Outcome:
        """Looks for the largest deviation."""
        side, other = self.sides
        ours = evidence.values(*side, self.at)
        if self.value is not None:
            theirs = dict.fromkeys(ours, self.value)
        else:
            theirs = evidence.values(*other, self.at)
        seeds = common_seeds(ours, theirs)
        worst = max(seeds, key=lambda seed: abs(ours[seed] - theirs[seed]))
        deviation = abs(ours[worst] - theirs[worst])
        if self.region.contains(deviation, deviation):
            verdict, reason = Verdict.SUPPORTED, ""
        else:
            verdict = Verdict.NOT_SUPPORTED
            reason = f"seed {worst}: {ours[worst]:.6g} instead of {theirs[worst]:.6g}"
        estimate = Estimate(deviation, deviation, deviation)
        return Outcome(verdict, sentence(reason, lone_seeds(ours, theirs)), estimate, len(seeds))


class Collapse(Check):
    """``arm`` collapses on more (or fewer) seeds than ``versus``, by Barnard's exact test.

    Attributes:
        collapse: A rule for this check alone, in place of the file's.
    """

    signed: ClassVar[bool] = True
    relation: Literal["collapses_more", "collapses_less"]
    arm: Text
    versus: Text
    collapse: CollapseRule | None = None

    @property
    def compared(self) -> str:
        """The difference of the fractions that collapsed."""
        return f"{self.arm} − {self.versus}, collapsed fraction"

    @property
    def region(self) -> Region:
        """Differences of the claimed sign."""
        return Region.beyond(0.0, upwards=self.relation == "collapses_more")

    def metric_names(self) -> tuple[str, ...]:
        """The metric of the check's own rule, if it has one."""
        return (self.collapse.metric,) if self.collapse else ()

    def judge(self, evidence: Evidence) -> Outcome:
        """Compares the two fractions."""
        from repro.claims import statistics

        counts = self._count(evidence, self.arm) + self._count(evidence, self.versus)
        hits, total, other_hits, other_total = counts
        result = statistics.compare_proportions(*counts, level=self.level)
        p, p_opposite = result.p_greater, result.p_less
        if self.relation == "collapses_less":
            p, p_opposite = p_opposite, p
        error = (1 - self.level) / 2
        reason = (
            f"{hits} of {total} against {other_hits} of {other_total} collapsed, "
            f"Barnard's p = {p:.2g} (at most {error:.2g} is needed)"
        )
        seeds = min(total, other_total)
        if seeds < self.min_seeds:
            verdict, reason = Verdict.INCONCLUSIVE, self.too_few(seeds)
        elif p <= error:
            verdict = Verdict.SUPPORTED
        elif p_opposite <= error:
            verdict = Verdict.NOT_SUPPORTED
        else:
            verdict = Verdict.INCONCLUSIVE
        needed = None
        if verdict is Verdict.INCONCLUSIVE:
            needed = statistics.seeds_to_tell_apart(
                hits / total, other_hits / other_total, self.level, POWER
            )
        return Outcome(verdict, reason, result.estimate, seeds, needed)

    def _count(self, evidence: Evidence, arm: str) -> tuple[int, int]:
        """How many of an arm's runs collapsed, and how many there are.

        Raises:
            UndecidedError: a run lacks the metric that the rule reads.
        """
        runs = evidence.runs(arm, self.at).values()
        rule = self.collapse or evidence.rule
        if rule and any(
            run.status == "finished" and rule.metric not in run.metrics for run in runs
        ):
            raise UndecidedError(
                Verdict.NOT_TESTED, f"arm '{arm}' has runs without the metric '{rule.metric}'"
            )
        return sum(evidence.has_collapsed(run, rule) for run in runs), len(runs)
