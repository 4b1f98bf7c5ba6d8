"""Studies that grow until their claims are decided: how often they err, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from repro.claims import statistics
from repro.claims.evidence import RunResult
from repro.claims.judge import judge
from repro.claims.looks import shares, spent
from repro.claims.outcomes import Verdict

LOOKS = (4, 6, 9, 14, 20)  # what max_seeds=20 gives
STUDIES = 2000
ERROR = 0.025  # on either side
Noise = NDArray[np.float64]


def decisions(differences: Noise) -> tuple[Noise, Noise]:
    """By study (rows): 1 supported, -1 not supported, 0 undecided at last; and after which seeds.

    The claim is that the mean is above zero; written down anew, for thousands of studies at once.
    """
    verdict = np.zeros(len(differences))
    used = np.full(len(differences), LOOKS[-1])
    for seeds, share in zip(LOOKS, shares(LOOKS), strict=True):
        seen = differences[:, :seeds]
        half = stats.t.ppf(1 - ERROR * share, seeds - 1) * stats.sem(seen, axis=1)
        outcome = (seen.mean(axis=1) > half) * 1.0 - (seen.mean(axis=1) < -half)
        fresh = (verdict == 0) & (outcome != 0)
        verdict[fresh], used[fresh] = outcome[fresh], seeds
    return verdict, used


def noise(kind: str, rng: np.random.Generator) -> Noise:
    size = (STUDIES, LOOKS[-1])
    if kind == "heavy-tailed":
        return rng.standard_t(3, size)
    if kind == "accuracies":  # of two arms with 360 test images each
        return (rng.binomial(360, 0.9, size) - rng.binomial(360, 0.9, size)) / 360
    return rng.standard_normal(size)


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "accuracies"])
def test_looking_often_is_not_being_wrong_more_often(kind: str) -> None:
    """At the edge of the claim, where a wrong verdict is most likely."""
    verdict, _ = decisions(noise(kind, np.random.default_rng(0)))
    assert (verdict == 1).mean() <= ERROR
    assert (verdict == -1).mean() <= ERROR
    # Without the shares it would be: five looks, each with the whole error.
    if kind == "normal":
        assert (verdict != 0).mean() > ERROR / 2  # nor is it needlessly cautious


def test_an_effect_of_one_deviation_takes_fewer_seeds_than_a_fixed_study() -> None:
    """Of equal power, both at 2.5 % on either side."""
    verdict, used = decisions(noise("normal", np.random.default_rng(1)) + 1)
    power = (verdict == 1).mean()
    assert power > 0.9
    enough = statistics.detectable(1 - 2 * ERROR, power) <= 1
    fixed = int(enough.argmax())
    assert used.mean() < 0.9 * fixed


def test_a_large_effect_is_decided_at_the_first_look() -> None:
    _, used = decisions(noise("normal", np.random.default_rng(2)) + 8)
    assert (used == LOOKS[0]).mean() > 0.9


def test_shares_are_those_of_the_spending_function() -> None:
    assert spent(0.0) == 0
    assert spent(1.0) == pytest.approx(1)
    assert ERROR * spent(0.5) == pytest.approx(0.0155, abs=5e-5)  # the published 0.0155
    assert sum(shares(LOOKS)) == pytest.approx(1)
    assert shares((5,)) == pytest.approx([1])
    assert shares((2, 4)) == pytest.approx([0.62, 0.38], abs=0.001)


GREATER = {"relation": "greater", "metric": "x", "arm": "a", "versus": "b"}


def runs(differences: Noise) -> list[RunResult]:
    return [
        RunResult(arm, seed, metrics={"x": value})
        for seed, difference in enumerate(differences.tolist())
        for arm, value in (("a", difference), ("b", 0.0))
    ]


def test_the_judge_decides_as_written_down_here(build: Any) -> None:
    claims = build.claims_file(GREATER)
    effects = np.linspace(-1.5, 1.5, 60)[:, None]
    differences = noise("normal", np.random.default_rng(3))[:60] + effects
    verdict, used = decisions(differences)
    meaning = {1: Verdict.SUPPORTED, -1: Verdict.NOT_SUPPORTED, 0: Verdict.INCONCLUSIVE}
    assert len(set(zip(verdict, used, strict=True))) > 5  # all kinds of them
    for row, outcome, seeds in zip(differences, verdict, used, strict=True):
        (claim,) = judge(claims, runs(row), "mini", LOOKS)
        assert claim.verdict is meaning[int(outcome)]
        assert claim.checks[0].seeds == seeds


def test_what_is_decided_stays_decided(build: Any) -> None:
    claims = build.claims_file(GREATER)
    first = np.array([1.0, 1.1, 0.9, 1.05])
    for later in (np.array([-50.0, 50.0]), np.array([])):
        (claim,) = judge(claims, runs(np.concatenate([first, later])), "mini", (4, 6))
        (check,) = claim.checks
        assert (check.verdict, check.seeds) == (Verdict.SUPPORTED, 4)
        assert check.level == pytest.approx(1 - 0.05 * shares((4, 6))[0])
    (fixed,) = judge(claims, runs(np.concatenate([first, [-50.0, 50.0]])), "mini")
    assert fixed.verdict is Verdict.INCONCLUSIVE


def test_seeds_that_are_not_there_use_up_no_look(build: Any) -> None:
    """An arm that nobody needed more seeds of is judged on those it has."""
    claims = build.claims_file({**GREATER, "arm": "c", "versus": "b"}, GREATER)
    row = np.array([0.1, -0.1, 0.05, -0.02, 0.1, -0.1])
    few = [RunResult("c", seed, metrics={"x": -1 - value}) for seed, value in enumerate(row[:4])]
    (claim,) = judge(claims, [*runs(row), *few], "mini", (4, 6))
    assert claim.verdict is Verdict.NOT_SUPPORTED
    assert [check.seeds for check in claim.checks] == [4, 6]


def test_only_what_seeds_can_decide_is_open(build: Any) -> None:
    wide = runs(np.array([5.0, -5.0, 4.0, -4.0]))
    (claim,) = judge(build.claims_file(GREATER), wide, "mini", LOOKS)
    assert claim.checks[0].is_open
    lost = [RunResult(run.arm, run.seed, status="diverged") for run in wide if run.arm == "a"]
    rest = [run for run in wide if run.arm == "b"]
    (claim,) = judge(build.claims_file(GREATER), [*rest, *lost], "mini", LOOKS)
    assert (claim.verdict, claim.checks[0].is_open) == (Verdict.INCONCLUSIVE, False)
    null = {**GREATER, "null_arm": "c"}
    passing = [
        RunResult(arm, seed, metrics={"x": float(arm in "ac") + seed / 1000})
        for arm in "abc"
        for seed in range(4)
    ]
    spoilt = [RunResult("b", r.seed, metrics={"x": 0.0}) if r.arm == "b" else r for r in passing]
    (claim,) = judge(build.claims_file(null), spoilt, "mini", LOOKS)
    assert (claim.verdict, claim.checks[0].is_open) == (Verdict.INCONCLUSIVE, False)


def test_a_run_that_collapses_later_is_not_overlooked(build: Any) -> None:
    some = runs(np.array([5.0, -5.0, 4.0, -4.0]))
    more = [RunResult("a", s, status="diverged") for s in (4, 5)]
    more += [RunResult("b", s, metrics={"x": 0.0}) for s in (4, 5)]
    (claim,) = judge(build.claims_file(GREATER), [*some, *more], "mini", (4, 6))
    assert "2 of 6 runs of arm 'a' collapsed" in claim.reason
