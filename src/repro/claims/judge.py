"""From the runs of a study to verdicts on a paper's claims.

Every statistical check becomes one number per seed (a *sample*), an interval for its mean, and a
region in which the claim says the mean lies:

* the whole interval inside the region: supported;
* the whole interval outside the region: not supported;
* otherwise: inconclusive.

With a two-sided interval at ``level``, and noise that is roughly symmetric, a wrong ``supported``
is at most as frequent as ``(1 - level) / 2``, i.e. 2.5 % at the default, for every relation. All
checks of a claim have to hold, so a claim with several checks is supported wrongly no more often
than that (intersection-union). A wrong ``not supported`` has the same bound per check; over a claim
of k checks it may reach k times as much when the truth lies on every check's edge. Differences
between equally noisy arms are symmetric; the mean of one arm need not be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.claims import statistics
from repro.claims.schema import (
    Check,
    Claim,
    ClaimsFile,
    Collapse,
    CollapseRule,
    Comparison,
    Curve,
    Identity,
    Level,
    MetricCheck,
    Ordered,
    Paired,
    Ratio,
    Region,
    Spread,
    SweptValue,
    Trend,
)
from repro.claims.statistics import Estimate
from repro.claims.verdicts import CheckVerdict, ClaimVerdict, Verdict
from repro.errors import did_you_mean


@dataclass(frozen=True)
class RunResult:
    """What a run contributes to a judgement.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        point: The swept values it ran with.
        status: ``finished`` and ``diverged`` runs are evidence; any other status leaves it out.
        metrics: The scalars of its ``summary.json``.
    """

    arm: str
    seed: int
    point: Mapping[str, SweptValue] = field(default_factory=dict)
    status: str = "finished"
    metrics: Mapping[str, float] = field(default_factory=dict)


def judge(claims: ClaimsFile, runs: Iterable[RunResult], scale: str) -> list[ClaimVerdict]:
    """Judges all claims of a paper on the runs of one study.

    Args:
        claims: The paper's claims.
        runs: The study's runs, in any order.
        scale: The scale the study ran at.

    Returns:
        One verdict per claim, in the file's order.
    """
    study = _Study(runs, claims.collapse)
    return [_judge_claim(claim, study, scale) for claim in claims.claims]


def _judge_claim(claim: Claim, study: _Study, scale: str) -> ClaimVerdict:
    checks: tuple[CheckVerdict, ...] = ()
    if scale in claim.scales:
        checks = tuple(_judge_check(check, study) for check in claim.checks_at(scale))
        verdict = _together(check.verdict for check in checks)
        reasons = [
            check.reason
            for check in checks
            if check.verdict is not Verdict.SUPPORTED or verdict is Verdict.SUPPORTED
        ]
        reason = "; ".join(dict.fromkeys(filter(None, reasons)))
    else:
        verdict = Verdict.NOT_AT_SCALE
        reason = claim.why_not or f"can be tested at {' and '.join(claim.scales)}"
    return ClaimVerdict(
        id=claim.id,
        statement=claim.statement,
        where=claim.where,
        paper=claim.paper,
        verdict=verdict,
        reason=reason,
        checks=checks,
    )


def _together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a statement of which every part has to hold."""
    parts = set(verdicts)
    if Verdict.NOT_SUPPORTED in parts:
        return Verdict.NOT_SUPPORTED
    return parts.pop() if len(parts) == 1 else Verdict.INCONCLUSIVE


class _UndecidedError(Exception):
    """A check ends here: the reason is complete, there is nothing to compute."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


class _Study:
    """The runs, by arm."""

    def __init__(self, runs: Iterable[RunResult], collapse: CollapseRule | None) -> None:
        self.rule = collapse
        self.evidence: dict[str, list[RunResult]] = {}
        self.left_out: dict[str, list[RunResult]] = {}
        for run in runs:
            counts = run.status in ("finished", "diverged")
            (self.evidence if counts else self.left_out).setdefault(run.arm, []).append(run)

    def runs(self, arm: str, at: Mapping[str, SweptValue]) -> dict[int, RunResult]:
        """An arm's usable runs by seed, at the given swept values."""
        runs = [run for run in self.evidence.get(arm, ()) if _is_at(run, at)]
        if not runs:
            raise _UndecidedError(Verdict.NOT_TESTED, self.why_no_runs(arm, at))
        by_seed = {run.seed: run for run in runs}
        if len(by_seed) < len(runs):
            raise _UndecidedError(
                Verdict.NOT_TESTED,
                f"arm '{arm}' has several runs with the same seed"
                + (f" (swept: {', '.join(_swept(runs))}; choose with at)" if _swept(runs) else ""),
            )
        return by_seed

    def values(self, check: MetricCheck | Identity, arm: str, metric: str) -> dict[int, float]:
        """An arm's metric by seed."""
        return self.read(check, arm, metric, self.runs(arm, check.at))

    def read(
        self,
        check: MetricCheck | Identity,
        arm: str,
        metric: str,
        runs: Mapping[int, RunResult],
    ) -> dict[int, float]:
        """The metric of the given runs; collapsed ones get the check's credit if they have none."""
        credit = check.on_collapse if isinstance(check, MetricCheck) else None
        values: dict[int, float] = {}
        collapsed = missing = 0
        for seed, run in runs.items():
            value = run.metrics.get(metric, math.nan)
            if math.isfinite(value):
                values[seed] = value
            elif not _collapsed(run, self.rule):
                missing += 1
            elif credit is not None:
                values[seed] = credit
            else:
                collapsed += 1
        if collapsed:
            raise _UndecidedError(
                Verdict.INCONCLUSIVE,
                f"{collapsed} of {len(runs)} runs of arm '{arm}' collapsed and have no {metric}; "
                "on_collapse would credit them a value",
            )
        if missing:
            known = {name for run in runs.values() for name in run.metrics}
            raise _UndecidedError(
                Verdict.NOT_TESTED,
                f"{missing} of {len(runs)} runs of arm '{arm}' have no finite metric '{metric}'."
                + did_you_mean(metric, known - {metric}),
            )
        return values

    def note(self, arms: Iterable[str], at: Mapping[str, SweptValue]) -> str:
        """Names the runs that were left out, if any."""
        names = [
            f"{arm} seed {run.seed} ({run.status})"
            for arm in dict.fromkeys(arms)
            for run in sorted(self.left_out.get(arm, ()), key=lambda run: (run.seed, run.status))
            if _is_at(run, at)
        ]
        return f"left out: {', '.join(names)}" if names else ""

    def why_no_runs(self, arm: str, at: Mapping[str, SweptValue]) -> str:
        """Why an arm has nothing to offer at the given swept values."""
        if arm in self.evidence:
            wanted = ", ".join(f"{key}={value}" for key, value in at.items())
            return f"arm '{arm}' has no run at {wanted}"
        if arm in self.left_out:
            return f"no run of arm '{arm}' has finished"
        return f"arm '{arm}' is not in this study"


def _collapsed(run: RunResult, rule: CollapseRule | None) -> bool:
    """Whether a run diverged or its metric is beyond the rule's limit."""
    if run.status == "diverged" or rule is None:
        return run.status == "diverged"
    return rule.metric in run.metrics and rule.applies(run.metrics[rule.metric])


def _is_at(run: RunResult, at: Mapping[str, SweptValue]) -> bool:
    return all(key in run.point and run.point[key] == value for key, value in at.items())


def _swept(runs: Iterable[RunResult]) -> list[str]:
    return sorted({key for run in runs for key in run.point})


def _judge_check(check: Any, study: _Study) -> CheckVerdict:
    try:
        outcome = _assess(check, study)
    except _UndecidedError as undecided:
        outcome = _Outcome(undecided.verdict, undecided.reason)
    effect, low, high = outcome.estimate or (None, None, None)
    at = ", ".join(f"{key}={value}" for key, value in check.at.items())
    return CheckVerdict(
        relation=check.relation,
        compared=f"{check.compared}, at {at}" if at else check.compared,
        claimed=check.claimed,
        verdict=outcome.verdict,
        reason=_sentence(outcome.reason, study.note(check.arm_names(), check.at)),
        effect=effect,
        low=_finite(low),
        high=_finite(high),
        level=check.level,
        seeds=outcome.seeds,
        signed=check.signed,
        percent=check.percent,
        unit=check.unit or ("×" if isinstance(check, Ratio | Spread) else ""),
    )


def _finite(end: float | None) -> float | None:
    return end if end is not None and math.isfinite(end) else None


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


class _Outcome(NamedTuple):
    """What came out of a check."""

    verdict: Verdict
    reason: str = ""
    estimate: Estimate | None = None
    seeds: int = 0


@functools.singledispatch
def _assess(check: Any, study: _Study) -> _Outcome:
    """Judges one check; the kinds of checks that need their own way are registered below."""
    raise TypeError(f"no way to judge {type(check).__name__}")


@_assess.register
def _(check: MetricCheck, study: _Study) -> _Outcome:
    """Whatever has one number per seed and a region for its mean."""
    sample, unpaired = _sample(check, study)
    estimate, reason = _estimate(check, sample)
    if isinstance(check, Ratio | Spread):
        estimate = Estimate(*(_exp(value) for value in estimate))
    if check.region.contains(estimate.low, estimate.high):
        verdict = Verdict.SUPPORTED
    elif check.region.excludes(estimate.low, estimate.high):
        verdict = Verdict.NOT_SUPPORTED
    else:
        verdict = Verdict.INCONCLUSIVE
        reason = reason or f"the interval from {len(sample)} seeds lies on both sides of the limit"
    return _Outcome(verdict, _sentence(reason, unpaired), estimate, len(sample))


@_assess.register
def _(check: Ordered, study: _Study) -> _Outcome:
    """Every step has to hold; the numbers shown are those of the weakest one."""
    outcomes = [(_assess(step, study), step) for step in check.steps]
    verdict = _together(outcome.verdict for outcome, _ in outcomes)

    def strength(pair: tuple[_Outcome, Comparison]) -> tuple[int, float]:
        outcome, step = pair
        low, high = outcome.estimate[1:] if outcome.estimate else (-math.inf, math.inf)
        end = low if step.relation == "greater" else -high
        order = (Verdict.NOT_SUPPORTED, Verdict.INCONCLUSIVE, Verdict.SUPPORTED)
        return order.index(outcome.verdict), end

    weakest, step = min(outcomes, key=strength)
    reason = _sentence(f"weakest step: {step.arm} − {step.versus}", weakest.reason)
    return weakest._replace(verdict=verdict, reason=reason)


@_assess.register
def _(check: Collapse, study: _Study) -> _Outcome:
    """Two fractions, by an exact test."""
    counts: list[int] = []
    for arm in (check.arm, check.versus):
        runs = study.runs(arm, check.at).values()
        rule = check.collapse or study.rule
        if rule and any(
            run.status == "finished" and rule.metric not in run.metrics for run in runs
        ):
            raise _UndecidedError(
                Verdict.NOT_TESTED, f"arm '{arm}' has runs without the metric '{rule.metric}'"
            )
        counts += [sum(_collapsed(run, rule) for run in runs), len(runs)]
    hits, total, other_hits, other_total = counts
    result = statistics.compare_proportions(*counts, level=check.level)
    p, p_opposite = result.p_greater, result.p_less
    if check.relation == "collapses_less":
        p, p_opposite = p_opposite, p
    error = (1 - check.level) / 2
    reason = (
        f"{hits} of {total} against {other_hits} of {other_total} collapsed, "
        f"Barnard's p = {p:.2g} (at most {error:.2g} is needed)"
    )
    if min(total, other_total) < check.min_seeds:
        verdict, reason = Verdict.INCONCLUSIVE, _too_few(min(total, other_total), check)
    elif p <= error:
        verdict = Verdict.SUPPORTED
    elif p_opposite <= error:
        verdict = Verdict.NOT_SUPPORTED
    else:
        verdict = Verdict.INCONCLUSIVE
    return _Outcome(verdict, reason, result.estimate, min(total, other_total))


@_assess.register
def _(check: Identity, study: _Study) -> _Outcome:
    """Every seed has to satisfy it; the effect is the largest deviation."""
    ours = study.values(check, check.arm, check.metric)
    if check.value is not None:
        theirs, unpaired = dict.fromkeys(ours, check.value), ""
    else:
        theirs = study.values(check, check.versus or check.arm, check.versus_metric or check.metric)
        unpaired = _unpaired(ours, theirs)
    seeds = _common_seeds(ours, theirs)
    worst = max(seeds, key=lambda seed: abs(ours[seed] - theirs[seed]))
    deviation = abs(ours[worst] - theirs[worst])
    if Region(high=check.tolerance).contains(deviation, deviation):
        verdict, reason = Verdict.SUPPORTED, ""
    else:
        verdict = Verdict.NOT_SUPPORTED
        reason = f"seed {worst}: {ours[worst]:.6g} instead of {theirs[worst]:.6g}"
    estimate = Estimate(deviation, deviation, deviation)
    return _Outcome(verdict, _sentence(reason, unpaired), estimate, len(seeds))


def _estimate(check: MetricCheck, sample: NDArray[np.float64]) -> tuple[Estimate, str]:
    """The interval of a sample's mean and, if it is not the ordinary one, why."""
    n = len(sample)
    same = statistics.identical(sample)
    mean = float(sample.mean())
    if check.deterministic and same:
        return Estimate(mean, mean, mean), ""
    if n < check.min_seeds:
        return statistics.unknown(sample), _too_few(n, check)
    if same:
        needed = statistics.sign_test_seeds(check.level)
        if n >= needed:
            return Estimate(mean, mean, mean), f"all {n} seeds agree exactly"
        return statistics.unknown(sample), (
            f"all {n} seeds agree exactly, which leaves no noise to judge by: "
            f"run at least {needed} seeds, or mark the check deterministic if it is"
        )
    note = "the seeds disagree although the check is deterministic" if check.deterministic else ""
    if check.interval == "bootstrap":
        if n >= statistics.BOOTSTRAP_MIN_SEEDS:
            return statistics.skewed_interval(sample, check.level), note
        note = _sentence(note, f"t interval: {n} seeds are too few for the bootstrap")
    return statistics.t_interval(sample, check.level), note


def _too_few(n: int, check: Check) -> str:
    return f"{n} seed{'s' if n > 1 else ''}; at least {check.min_seeds} are needed"


@functools.singledispatch
def _sample(check: Any, study: _Study) -> tuple[NDArray[np.float64], str]:
    """The check's number for every seed, in the order of the seeds, and a note on lone seeds."""
    raise TypeError(f"no sample for {type(check).__name__}")


@_sample.register
def _(check: Level, study: _Study) -> tuple[NDArray[np.float64], str]:
    values = study.values(check, check.arm, check.metric)
    return np.array([values[seed] for seed in sorted(values)]), ""


@_sample.register
def _(check: Paired, study: _Study) -> tuple[NDArray[np.float64], str]:
    ours = study.values(check, check.arm, check.metric)
    theirs = study.values(check, check.versus or check.arm, check.versus_metric or check.metric)
    pairs = np.array([(ours[seed], theirs[seed]) for seed in _common_seeds(ours, theirs)])
    if isinstance(check, Ratio):
        pairs = _log(pairs, check.metric)
    return pairs[:, 0] - pairs[:, 1], _unpaired(ours, theirs)


@_sample.register
def _(check: Spread, study: _Study) -> tuple[NDArray[np.float64], str]:
    values = {arm: study.values(check, arm, check.metric) for arm in check.arm_names()}
    seeds = _common_seeds(*values.values())
    spreads = [
        _log(np.array([[values[arm][seed] for arm in group] for seed in seeds]), check.metric)
        .std(axis=1, ddof=1)
        for group in (check.arms, check.versus)
    ]  # fmt: skip
    ratio = _log(np.array(spreads), f"the spread of {check.metric}")
    return ratio[0] - ratio[1], _unpaired(*values.values())


@_sample.register
def _(check: Curve, study: _Study) -> tuple[NDArray[np.float64], str]:
    curve = _curve(check, study)
    seeds = _common_seeds(*curve.values())
    x = np.array(sorted(curve))
    y_SX = np.array([[curve[point][seed] for point in sorted(curve)] for seed in seeds])
    if isinstance(check, Trend):
        x = np.arange(len(x))
    else:
        x, y_SX = _log(x, str(check.over)), _log(y_SX, check.metric)
    return statistics.slopes(x, y_SX), _unpaired(*curve.values())


def _curve(check: Curve, study: _Study) -> dict[float, dict[int, float]]:
    """The metric by x and seed."""
    if check.arms is not None:
        return {x: study.values(check, arm, check.metric) for arm, x in check.arms.items()}
    arm, over = check.arm or "", check.over or ""
    found = [
        run.point[over]
        for run in study.evidence.get(arm, ())
        if over in run.point and _is_at(run, check.at)
    ]
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in found)
    numbers = {float(x) for x in found} if numeric else set()
    if len(numbers) < 2:
        raise _UndecidedError(
            Verdict.NOT_TESTED,
            f"arm '{arm}' was not swept over two or more numbers of '{over}'"
            if arm in study.evidence
            else study.why_no_runs(arm, check.at),
        )
    return {
        x: study.read(check, arm, check.metric, study.runs(arm, {**check.at, over: x}))
        for x in sorted(numbers)
    }


def _common_seeds(*values: Mapping[int, float]) -> list[int]:
    seeds = sorted(set(values[0]).intersection(*values[1:]))
    if not seeds:
        raise _UndecidedError(Verdict.NOT_TESTED, "the two sides have no seed in common")
    return seeds


def _unpaired(*values: Mapping[int, float]) -> str:
    lone = set().union(*values) - set(values[0]).intersection(*values[1:])
    return f"without a partner: seed {', '.join(map(str, sorted(lone)))}" if lone else ""


def _log(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if values.min() <= 0:
        raise _UndecidedError(
            Verdict.INCONCLUSIVE,
            f"{name} is {values.min():g} in a run; logarithms need it positive",
        )
    return np.log(values)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
