"""What all relations share: the fields of a check, and judging the mean of one number per seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from repro.claims.evidence import Evidence, Strict, SweptValue, Text, UndecidedError
from repro.claims.intervals import Estimate, Region
from repro.claims.outcomes import Verdict
from repro.claims.ranges import range_of
from repro.claims.verdicts import percent_word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Values = Sequence[float] | NDArray[np.float64]

Scale = Annotated[str, Field(pattern=r"^(smoke|mini|full)(_[a-z0-9]+)*$")]
RELATIONS: dict[str, type[Check]] = {}
PLACEHOLDER = "{each}"
POWER = 0.8  # with which probability a number of seeds is said to decide
OTHER_ARMS = ("arms", "start", "goal", "versus")  # fields that name arms, beside ``arm``


@dataclass(frozen=True)
class Outcome:
    """What came out of a check.

    Attributes:
        verdict: The outcome.
        reason: Why it is not clear cut; may be empty.
        estimate: The effect with its interval.
        seeds: How many it rests on.
        needed: How many would probably decide it.
    """

    verdict: Verdict
    reason: str = ""
    estimate: Estimate | None = None
    seeds: int = 0
    needed: int | None = None


class Sample(NamedTuple):
    """One number per seed.

    Attributes:
        values: The numbers, in the order of the seeds.
        note: What to know about them; may be empty.
        open_below: Some are only upper bounds, so that nothing is known about the lower end.
        open_above: Some are only lower bounds.
    """

    values: Values
    note: str = ""
    open_below: bool = False
    open_above: bool = False


class Check(Strict):
    """What every check has.

    Attributes:
        relation: The names of the relation, a ``Literal`` in each class.
        scales: The scales this check is for, when they are fewer than the claim's.
        each: Names, e.g. of data sets: the check is made once with each in the place of ``{each}``
            in its texts (``metric: "test/rmse/{each}"``), and all have to hold. However many there
            are, a wrong ``supported`` is no more frequent than for one; a wrong ``not supported``
            may be that many times as frequent.
        at: Looks only at runs with these swept values, e.g. ``{method.ratio: 0.01}``.
        level: Confidence level of the two-sided interval; ``supported`` is wrong at most half as
            often as the interval misses.
        min_seeds: Fewer seeds than this leave a statistical check inconclusive.
        unit: Shown behind the numbers.
        percent: Shows fractions as percentages.
        margin_because: Why its margin or bound is what it is, in a line.
        null_arm: An arm without the method. The check is made with it in the place of ``arm``, too:
            where it passes as well, the check shows nothing of the method, and is inconclusive.
    """

    relation: str
    scales: tuple[Scale, ...] | None = None
    each: tuple[Text, ...] = ()
    at: dict[str, SweptValue] = Field(default_factory=dict)
    level: float = Field(0.95, ge=0.5, lt=1)
    min_seeds: int = Field(2, ge=2)
    unit: str = ""
    percent: bool = False
    margin_because: Text | None = None
    null_arm: Text | None = None

    # The fields that say how far the effect has to go, each with the value that asks for nothing.
    limits: ClassVar[Mapping[str, float | None]] = {}
    signed: ClassVar[bool] = False  # Whether the effect is a difference, to be shown with its sign.
    is_factor: ClassVar[bool] = False  # Whether it is a ratio: judged by logarithms, shown with ×.

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Registers a class that says which relations it is.

        Raises:
            TypeError: another class is one of them already.
        """
        for name in get_args(cls.model_fields["relation"].annotation):
            if name in RELATIONS:
                raise TypeError(f"{RELATIONS[name].__name__} is the relation '{name}' already")
            RELATIONS[name] = cls

    @model_validator(mode="after")
    def _each_has_its_place(self) -> Self:
        texts = str(self.model_dump(exclude_unset=True, exclude={"each"}))
        if (PLACEHOLDER in texts) != bool(self.each):
            raise ValueError("each: lists what {each} stands for in the other fields; say both")
        if len(set(self.each)) < len(self.each):
            raise ValueError("each: one is listed twice")
        self.expanded()  # raises where a name makes the check impossible
        return self

    @model_validator(mode="after")
    def _null_arm_stands_in(self) -> Self:
        if self.null_arm is not None and self.null_arm in self._named("arm", *OTHER_ARMS):
            raise ValueError(f"null_arm: the check reads '{self.null_arm}' already")
        if self.null_arm is not None and getattr(self, "arm", None) is None:
            raise ValueError("null_arm: stands in for arm, which this check does not have")
        return self

    @property
    def of_null_arm(self) -> Self | None:
        """The same check of the arm without the method, if there is one."""
        if self.null_arm is None:
            return None
        raw = self.model_dump(exclude_unset=True, exclude={"null_arm"})
        return self.model_validate(raw | {"arm": self.null_arm})

    def expanded(self) -> tuple[Self, ...]:
        """The checks that this one stands for: one for each of ``each``, or itself."""
        if not self.each:
            return (self,)
        raw = self.model_dump(exclude_unset=True, exclude={"each"})
        return tuple(self.model_validate(_filled(raw, name)) for name in self.each)

    @property
    def compared(self) -> str:
        """What the effect is, in a few words."""
        raise NotImplementedError

    @property
    def region(self) -> Region:
        """The effects for which the check holds."""
        raise NotImplementedError

    @property
    def claimed(self) -> str:
        """Where the effect has to lie, in a few words."""
        return self.region.text(percent_word(self.percent, self.signed))

    @property
    def effect_name(self) -> str:
        """What the effect is, of which runs and, where that matters, of which machine."""
        at = ", ".join(f"{key}={value}" for key, value in self.at.items())
        here = "on this machine" if self.timed else ""
        return ", ".join(filter(None, (self.compared, at and f"at {at}", here)))

    @property
    def timed(self) -> bool:
        """Whether the check reads a time, which is only that of the machine it was taken on."""
        return any(name.startswith("time/") for name in self.metric_names())

    @property
    def foregone(self) -> str:
        """Why the check cannot fail, or cannot hold, whatever is measured; may be empty."""
        return ""

    @property
    def chosen_limits(self) -> dict[str, float]:
        """The margins and bounds that somebody had to choose: `margin_because` is about them."""
        values = {name: getattr(self, name) for name in self.limits}
        return {
            name: value
            for name, value in values.items()
            if value is not None and value != self.limits[name]
        }

    def arm_names(self) -> tuple[str, ...]:
        """The arms this check reads, by its fields."""
        return self._named("arm", *OTHER_ARMS, "null_arm")

    def metric_names(self) -> tuple[str, ...]:
        """The metrics this check reads, by its fields ``metric`` and ``versus_metric``."""
        return self._named("metric", "versus_metric")

    def _named(self, *fields: str) -> tuple[str, ...]:
        values = [getattr(self, field, None) or () for field in fields]
        names = [[value] if isinstance(value, str) else value for value in values]
        return tuple(dict.fromkeys(itertools.chain(*names)))

    def judge(self, evidence: Evidence) -> Outcome:
        """The verdict.

        Raises:
            UndecidedError: The evidence allows none.
        """
        raise NotImplementedError

    def seen_at(self, scale: str) -> bool:
        """Whether the check is for this scale, given that its claim is."""
        return self.scales is None or scale in self.scales

    def too_few(self, n: int) -> str:
        """Says that so many seeds are fewer than ``min_seeds``."""
        return f"{n} seed{'s' if n > 1 else ''}; at least {self.min_seeds} are needed"


class MetricCheck(Check):
    """A check that reads one number per seed and asks where its mean lies.

    Attributes:
        metric: A name in the runs' ``summary.json``.
        statistic: What is asked of the numbers over seeds: their mean, or their median, for noise
            whose mean is at the mercy of single seeds or does not exist. The effect of a paired
            check is then the median of the differences.
        interval: Of a mean: Student's t, or, where the noise is skewed, the same widened by a BCa
            bootstrap (from ten seeds on). A median's is exact for any noise: two order statistics,
            by the binomial distribution, which takes at least six seeds at 95 %.
        on_collapse: The value credited to a collapsed run that has no (finite) value. Without it,
            such runs leave the check inconclusive.
        range: The lowest and the highest value that the metric can have, where its name does not
            tell (`repro.claims.ranges`): no interval goes beyond what is possible.
        deterministic: The number depends on no random draw (counted bytes). One seed is enough
            when all seeds agree; when they do not, the usual statistics apply.
    """

    metric: Text
    statistic: Literal["mean", "median"] = "mean"
    interval: Literal["t", "bootstrap"] = "t"
    on_collapse: float | None = None
    range: tuple[float, float] | None = None
    deterministic: bool = False

    @model_validator(mode="after")
    def _interval_of_a_mean(self) -> Self:
        if self.statistic == "median" and "interval" in self.model_fields_set:
            raise ValueError("interval: is for means; a median's comes from order statistics")
        return self

    @model_validator(mode="after")
    def _range_in_order(self) -> Self:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range: the lowest value, then the highest")
        return self

    @property
    def effect_name(self) -> str:
        """What the effect is, and that it is a median if it is."""
        name = super().effect_name
        return f"median of {name}" if self.statistic == "median" else name

    @property
    def metric_range(self) -> tuple[float, float]:
        """The lowest and the highest value of the metric."""
        return range_of(self.metric) if self.range is None else self.range

    @property
    def possible(self) -> Region:
        """The effects that there can be: of a difference, those between the ends of the range."""
        low, high = self.metric_range
        return Region(low - high, high - low) if self.signed else Region()

    @property
    def foregone(self) -> str:
        """Whether all that is possible lies where the check holds, or nothing of it."""
        if self.region.contains(*self.possible[:2]):
            word = "fail"
        elif self.region.excludes(*self.possible[:2]):
            word = "hold"
        else:
            return ""
        ends = Region(*self.possible[:2]).text(percent_word(self.percent, self.signed))
        return f"cannot {word}: {self.claimed} is claimed, and {self.compared} is always {ends}"

    def sample(self, evidence: Evidence) -> Sample:
        """The check's number for every seed; logarithms where the effect is a factor.

        Raises:
            UndecidedError: The evidence allows none.
        """
        raise NotImplementedError

    @property
    def credit(self) -> float | None:
        """What a collapsed run without a value counts for."""
        return self.on_collapse

    def values(self, evidence: Evidence, arm: str, metric: str | None = None) -> dict[int, float]:
        """An arm's metric by seed, collapsed runs credited as the check says."""
        return evidence.values(arm, metric or self.metric, self.at, self.credit)

    def judge(self, evidence: Evidence) -> Outcome:
        """Whether the interval from the sample lies in the region, outside, or on both sides."""
        sample = self.sample(evidence)
        n = len(sample.values)
        estimate, reason = self._estimate(sample.values)
        low = -math.inf if sample.open_below else estimate.low
        high = math.inf if sample.open_above else estimate.high
        estimate = Estimate(estimate.effect, low, high)
        if self.is_factor:
            estimate = Estimate(*map(_exp, estimate))
        estimate = estimate.within(self.possible)
        if self.region.contains(estimate.low, estimate.high):
            verdict = Verdict.SUPPORTED
        elif self.region.excludes(estimate.low, estimate.high):
            verdict = Verdict.NOT_SUPPORTED
        else:
            verdict = Verdict.INCONCLUSIVE
            reason = reason or f"the interval from {n} seeds lies on both sides of the limit"
        needed = self._seeds_needed(sample) if verdict is Verdict.INCONCLUSIVE else None
        return Outcome(verdict, sentence(reason, sample.note), estimate, n, needed)

    @property
    def sample_region(self) -> tuple[float, float]:
        """The ends of the region on the scale of the sample, which holds logarithms of factors."""
        low, high, _ = self.region
        return (_log(low), _log(high)) if self.is_factor else (low, high)

    def detectable(self, evidence: Evidence) -> float | None:
        """How far from its limit an effect has to be to be told, given spread and number of seeds.

        That is with a probability of `POWER`; None where it is not known.
        """
        from repro.claims import statistics

        if self.statistic == "median":
            return None
        # Between two ends the interval has to leave out both: each may go wrong half as often.
        power = (1 + POWER) / 2 if all(map(math.isfinite, self.sample_region)) else POWER
        values = self.sample(evidence).values
        distance = statistics.detectable_distance(values, self.level, power)
        return _exp(distance) if self.is_factor and distance is not None else distance

    def _seeds_needed(self, sample: Sample) -> int | None:
        """How many seeds would probably decide, as far as a sample tells."""
        from repro.claims import statistics

        is_open = sample.open_below or sample.open_above
        if self.statistic == "median" or is_open or len(sample.values) < 2:
            return None
        if statistics.identical(sample.values):
            return statistics.sign_test_seeds(self.level)
        needed = statistics.seeds_to_decide(sample.values, *self.sample_region, self.level, POWER)
        return None if needed is None else max(needed, self.min_seeds)

    def _estimate(self, values: Values) -> tuple[Estimate, str]:
        """The interval of a sample's mean or median and, if it is not the ordinary one, why."""
        from repro.claims import statistics

        estimate = statistics.point(values, self.statistic)
        n = len(values)
        same = statistics.identical(values)
        if self.deterministic and same:
            return estimate, ""
        unknown = Estimate(estimate.effect, -math.inf, math.inf)
        needed = statistics.sign_test_seeds(self.level)
        if n < self.min_seeds:
            return unknown, self.too_few(n)
        if self.statistic == "median" and n < needed:
            return unknown, f"{n} seeds; a median needs at least {needed}"
        if same and n < needed:
            return unknown, (
                f"all {n} seeds agree exactly, which leaves no noise to judge by: "
                f"run at least {needed} seeds, or mark the check deterministic if it is"
            )
        if same:
            return estimate, f"all {n} seeds agree exactly"
        note = "the seeds disagree although the check is deterministic"
        note = note if self.deterministic else ""
        if self.statistic == "median":
            return statistics.median_interval(values, self.level), note
        if self.interval == "bootstrap":
            if n >= statistics.BOOTSTRAP_MIN_SEEDS:
                return statistics.skewed_interval(values, self.level), note
            note = sentence(note, f"t interval: {n} seeds are too few for the bootstrap")
        return statistics.t_interval(values, self.level), note


def sentence(*parts: str) -> str:
    """The parts that are not empty, as one sentence."""
    return "; ".join(part for part in parts if part)


class Range(MetricCheck):
    """The mean lies within a range.

    Attributes:
        low: The lowest mean for which the check holds.
        high: The highest.
    """

    limits: ClassVar[Mapping[str, float | None]] = {"low": None, "high": None}
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is greater than high")
        return self

    @property
    def region(self) -> Region:
        """The range."""
        return Region(self.low, self.high)


def log(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Logarithms.

    Raises:
        UndecidedError: A value is not positive; ``name`` says what it is.
    """
    import numpy as np

    array = np.asarray(values, dtype=float)
    if array.min() <= 0:
        raise UndecidedError(
            Verdict.INCONCLUSIVE,
            f"{name} is {array.min():g} in a run; logarithms need it positive",
        )
    return np.log(array)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _filled(raw: Any, name: str) -> Any:
    """A check's content with a name in the place of ``{each}``."""
    if isinstance(raw, str):
        return raw.replace(PLACEHOLDER, name)
    if isinstance(raw, Mapping):
        return {_filled(key, name): _filled(value, name) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [_filled(value, name) for value in raw]
    return raw
