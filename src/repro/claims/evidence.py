"""What a study's runs have to say: the numbers of an arm by seed, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from repro.claims.outcomes import Verdict
from repro.errors import did_you_mean

Text = Annotated[str, Field(min_length=1)]
SweptValue = bool | int | float | str
Series = Mapping[int, float]  # by step: the number of the last update, counted from 0


class Strict(BaseModel):
    """What a person types: unknown fields and infinite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # until one is needed: a study needs few of the relations
    )


class CollapseRule(Strict):
    """When a finished run counts as collapsed; a diverged run always does."""

    metric: Text
    below: float | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> CollapseRule:
        if (self.below is None) == (self.above is None):
            raise ValueError("say either below or above")
        return self

    def applies(self, value: float) -> bool:
        """Whether a run with this value of the metric has collapsed (NaN counts as collapsed)."""
        if self.below is not None:
            return not value >= self.below
        return self.above is not None and not value <= self.above


@dataclass(frozen=True)
class RunResult:
    """What a run contributes to a judgement.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        point: The swept values it ran with.
        status: ``finished`` and ``diverged`` runs are evidence; any other status leaves it out.
        metrics: The scalars of its ``summary.json``.
        series: Reads a metric's series from its ``metrics.csv``; called only by checks that need
            one.
    """

    arm: str
    seed: int
    point: Mapping[str, SweptValue] = field(default_factory=dict)
    status: str = "finished"
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Callable[[str], Series] = field(default=lambda _metric: {}, repr=False, compare=False)

    def is_at(self, at: Mapping[str, SweptValue]) -> bool:
        """Whether the run had these swept values."""
        return all(key in self.point and self.point[key] == value for key, value in at.items())


class UndecidedError(Exception):
    """A check ends here: the reason is complete, there is nothing to compute."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


class Evidence:
    """The runs of a study, by arm.

    Args:
        runs: The runs, in any order.
        collapse: When a finished run counts as collapsed.
    """

    def __init__(self, runs: Iterable[RunResult], collapse: CollapseRule | None = None) -> None:
        self.rule = collapse
        self.by_arm: dict[str, list[RunResult]] = {}
        self.left_out: dict[str, list[RunResult]] = {}
        for run in runs:
            counts = run.status in ("finished", "diverged")
            (self.by_arm if counts else self.left_out).setdefault(run.arm, []).append(run)

    def size(self, arm: str) -> int:
        """How many runs of an arm there are, whatever became of them."""
        return len(self.by_arm.get(arm, ())) + len(self.left_out.get(arm, ()))

    def runs(self, arm: str, at: Mapping[str, SweptValue]) -> dict[int, RunResult]:
        """An arm's usable runs by seed, at the given swept values.

        Raises:
            UndecidedError: There are none, or several with the same seed.
        """
        runs = [run for run in self.by_arm.get(arm, ()) if run.is_at(at)]
        if not runs:
            raise UndecidedError(Verdict.NOT_TESTED, self._why_no_runs(arm, at))
        by_seed = {run.seed: run for run in runs}
        if len(by_seed) < len(runs):
            swept = ", ".join(sorted({key for run in runs for key in run.point}))
            raise UndecidedError(
                Verdict.NOT_TESTED,
                f"arm '{arm}' has several runs with the same seed"
                + (f" (swept: {swept}; choose with at)" if swept else ""),
            )
        return by_seed

    def lacking(self, arm: str, metric: str, at: Mapping[str, SweptValue]) -> int:
        """How many runs of an arm have no finite value of a metric."""
        values = (run.metrics.get(metric, math.nan) for run in self.runs(arm, at).values())
        return sum(not math.isfinite(value) for value in values)

    def values(
        self,
        arm: str,
        metric: str,
        at: Mapping[str, SweptValue],
        on_collapse: float | None = None,
    ) -> dict[int, float]:
        """An arm's metric by seed; collapsed runs that have none get ``on_collapse``.

        Raises:
            UndecidedError: A run has no finite value, and there is none to credit it with.
        """
        runs = self.runs(arm, at)
        values: dict[int, float] = {}
        collapsed = missing = 0
        for seed, run in runs.items():
            value = run.metrics.get(metric, math.nan)
            if math.isfinite(value):
                values[seed] = value
            elif not self.has_collapsed(run):
                missing += 1
            elif on_collapse is not None:
                values[seed] = on_collapse
            else:
                collapsed += 1
        if collapsed:
            raise UndecidedError(
                Verdict.INCONCLUSIVE,
                f"{collapsed} of {len(runs)} runs of arm '{arm}' collapsed and have no {metric}; "
                "on_collapse would credit them a value",
            )
        if missing:
            known = {name for run in runs.values() for name in run.metrics}
            meant = "" if metric in known else did_you_mean(metric, known)
            raise UndecidedError(
                Verdict.NOT_TESTED,
                f"{missing} of {len(runs)} runs of arm '{arm}' have no finite metric '{metric}'."
                + meant,
            )
        return values

    def series(self, arm: str, metric: str, at: Mapping[str, SweptValue]) -> dict[int, Series]:
        """An arm's logged series by seed.

        Raises:
            UndecidedError: A run diverged, or logged no such series.
        """
        runs = self.runs(arm, at)
        diverged = [run for run in runs.values() if run.status == "diverged"]
        if diverged:
            raise UndecidedError(
                Verdict.INCONCLUSIVE,
                f"{len(diverged)} of {len(runs)} runs of arm '{arm}' diverged",
            )
        series = {seed: run.series(metric) for seed, run in runs.items()}
        if not all(series.values()):
            missing = sum(not each for each in series.values())
            raise UndecidedError(
                Verdict.NOT_TESTED,
                f"{missing} of {len(runs)} runs of arm '{arm}' have no series '{metric}'",
            )
        return series

    def swept(self, arm: str, over: str, at: Mapping[str, SweptValue]) -> list[float]:
        """The numbers that an arm's runs swept a config value over, rising.

        Raises:
            UndecidedError: There are fewer than two, or not all are numbers.
        """
        points = [
            run.point[over]
            for run in self.by_arm.get(arm, ())
            if over in run.point and run.is_at(at)
        ]
        numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in points)
        numbers = sorted({float(x) for x in points}) if numeric else []
        if len(numbers) < 2:
            raise UndecidedError(
                Verdict.NOT_TESTED,
                f"arm '{arm}' was not swept over two or more numbers of '{over}'"
                if arm in self.by_arm
                else self._why_no_runs(arm, at),
            )
        return numbers

    def has_collapsed(self, run: RunResult, rule: CollapseRule | None = None) -> bool:
        """Whether a run diverged or is beyond the limit of ``rule``, or else of the file's rule."""
        rule = rule or self.rule
        if run.status == "diverged" or rule is None:
            return run.status == "diverged"
        return rule.metric in run.metrics and rule.applies(run.metrics[rule.metric])

    def note(self, arms: Iterable[str], at: Mapping[str, SweptValue]) -> str:
        """Names the runs that were left out, if any."""
        names = [
            f"{arm} seed {run.seed} ({run.status})"
            for arm in dict.fromkeys(arms)
            for run in sorted(self.left_out.get(arm, ()), key=lambda run: (run.seed, run.status))
            if run.is_at(at)
        ]
        return f"left out: {', '.join(names)}" if names else ""

    def _why_no_runs(self, arm: str, at: Mapping[str, SweptValue]) -> str:
        if arm in self.by_arm:
            point = ", ".join(f"{key}={value}" for key, value in at.items())
            return f"arm '{arm}' has no run at {point}"
        if arm in self.left_out:
            return f"no run of arm '{arm}' has finished"
        return f"arm '{arm}' is not in this study"


def common_seeds(*values: Mapping[int, object]) -> list[int]:
    """The seeds that all sides have, rising.

    Raises:
        UndecidedError: There is none.
    """
    seeds = sorted(set(values[0]).intersection(*values[1:]))
    if not seeds:
        raise UndecidedError(Verdict.NOT_TESTED, "the two sides have no seed in common")
    return seeds


def lone_seeds(*values: Mapping[int, object]) -> str:
    """Names the seeds that not all sides have, if any."""
    lone = set().union(*values) - set(values[0]).intersection(*values[1:])
    return f"without a partner: seed {', '.join(map(str, sorted(lone)))}" if lone else ""
