"""How often a verdict is wrong, over hundreds of simulated studies; `make torture`: thousands.

Each study is drawn at the edge of every claim, where a wrong ``supported`` is most likely. With a
two-sided 95 % interval it may happen in 2.5 % of the studies.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from torture import torture, tries

from repro.claims.evidence import RunResult
from repro.claims.file import ClaimsFile, parse_claims
from repro.claims.judge import judge
from repro.claims.outcomes import Verdict

pytestmark = torture
STUDIES = tries(600, 2000)


def luck(rate: float, deviations: float) -> float:
    """What a rate differs by from one measured over so many studies."""
    return float(deviations * np.sqrt(rate * (1 - rate) / STUDIES))


ALLOWED = 0.025 + luck(0.025, 3.5)  # 4.7 % (torture: 3.7 %): luck of one test in 4,000
EXPECTED = 0.025 - luck(0.025, 3.4)  # 0.3 % (torture: 1.3 %)
EXPECTED_OF_SIGNS = 1 / 64 - luck(1 / 64, 2.7)  # 0.2 % (torture: 0.8 %); of six seeds, (1/2)^6
SHIFT = 4 / 360
ARMS = ("a", "b", "c")


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return 0.9 + 0.02 * rng.standard_normal(size)


def heavy_tailed(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return 0.9 + 0.02 * rng.standard_t(3, size)


def accuracy(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.binomial(360, 0.9, size) / 360


def edge_claims(build) -> ClaimsFile:
    """Every statistical relation, with the truth of ``studies`` exactly on its edge."""
    two = {"arm": "a", "versus": "b"}
    curve = {"a": 1, "b": 2, "c": 4}
    greater = {"relation": "greater", "metric": "x", **two}
    checks: dict[str, Any] = {
        "greater": [greater],
        "less": [{"relation": "less", "metric": "x", **two}],
        "greater by a margin": [{**greater, "metric": "raised", "margin": SHIFT}],
        "non_inferior": [{"relation": "non_inferior", "metric": "lowered", **two, "margin": SHIFT}],
        "equivalent": [{"relation": "equivalent", "metric": "lowered", **two, "margin": SHIFT}],
        "at_least": [{"relation": "at_least", "metric": "x", "arm": "a", "value": 0.9}],
        "at_most": [{"relation": "at_most", "metric": "x", "arm": "a", "value": 0.9}],
        "within": [{"relation": "within", "metric": "x", "arm": "a", "low": 0.9, "high": 99}],
        "ratio": [{"relation": "ratio", "metric": "power", **two, "at_least": 0.5}],
        # On the edge: both pairs lie a factor of two apart, but for their noise.
        "spreads_more": [
            {
                "relation": "spreads_more",
                "metric": "power",
                "arms": ["a", "b"],
                "versus": ["b", "c"],
            }
        ],
        "ordered": [
            {
                "relation": "ordered",
                "metric": "stair",
                "arms": ["a", "b", "c"],
                "direction": "increasing",
            }
        ],
        "trend": [{"relation": "trend", "metric": "x", "arms": curve, "direction": "increasing"}],
        "slope": [{"relation": "slope", "metric": "power", "arms": curve, "low": 1, "high": 9}],
        "times": [{**greater, "metric": "five", "times": 5, "floor": 0}],
        "two checks": [greater, {**greater, "versus": "c"}],
        "each": [{**greater, "versus": "{each}", "each": ["b", "c"]}],
    }
    claims = [build.claim(*listed, id=name) for name, listed in checks.items()]
    return parse_claims({"claims": claims}, "claims.yaml")


def studies(noise, seeds: int, rng: np.random.Generator):
    x = noise(rng, (STUDIES, len(ARMS), seeds))
    first = np.array([1, 0, 0])[:, None]
    metrics = {
        "x": x,
        "raised": x + SHIFT * first,
        "lowered": x - SHIFT * first,
        "power": np.exp(np.minimum(x, 99)) * np.array([1, 2, 4])[:, None],
        "five": x * np.array([5, 1, 1])[:, None],
        "stair": x + np.array([0, 0, 9])[:, None],
    }
    columns = list(metrics)
    for table in np.stack(list(metrics.values()), axis=-1).tolist():
        yield [
            RunResult(arm, seed, metrics=dict(zip(columns, row, strict=True)))
            for arm, rows in zip(ARMS, table, strict=True)
            for seed, row in enumerate(rows)
        ]


def rates(claims: ClaimsFile, simulated) -> dict[str, dict[Verdict, float]]:
    counts: dict[str, Counter[Verdict]] = {claim.id: Counter() for claim in claims.claims}
    total = 0
    for runs in simulated:
        total += 1
        for outcome in judge(claims, runs, "mini"):
            counts[outcome.id][outcome.verdict] += 1
    return {
        name: {verdict: n / total for verdict, n in count.items()} for name, count in counts.items()
    }


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [normal, heavy_tailed, accuracy])
def test_wrong_verdicts_are_as_rare_as_stated(build, noise, seeds):
    claims = edge_claims(build)
    measured = rates(claims, studies(noise, seeds, np.random.default_rng(seeds)))
    for claim in claims.claims:
        rate = measured[claim.id]
        assert rate.get(Verdict.SUPPORTED, 0) <= ALLOWED, claim.id
        # A wrong refusal has the bound per check, at most twice that for a claim with two.
        parts = len(claim.checks_at("mini")) + (claim.id == "ordered")
        refused = rate.get(Verdict.NOT_SUPPORTED, 0)
        assert refused <= ALLOWED + 0.025 * (parts - 1)
        # The bound is tight for normal noise: a needlessly cautious judge would waste seeds.
        if noise is normal and parts == 1 and claim.id != "equivalent":
            assert rate.get(Verdict.SUPPORTED, 0) > EXPECTED, claim.id


def cauchy(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return 0.9 + 0.02 * rng.standard_cauchy(size)


def skewed(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return 0.9 + 0.02 * (rng.lognormal(0, 2, size) - 1)


@pytest.mark.parametrize("seeds", [6, 9])
@pytest.mark.parametrize("noise", [normal, cauchy, skewed])
def test_medians_are_judged_rightly_whatever_the_noise(build, noise, seeds):
    checks: dict[str, Any] = {
        "at_least": {"relation": "at_least", "arm": "a", "value": 0.9},
        "at_most": {"relation": "at_most", "arm": "a", "value": 0.9},
        "greater": {"relation": "greater", "arm": "a", "versus": "b"},
    }
    shared = {"metric": "x", "statistic": "median"}
    claims = [build.claim({**shared, **check}, id=name) for name, check in checks.items()]
    simulated = studies(noise, seeds, np.random.default_rng(seeds))
    measured = rates(parse_claims({"claims": claims}, "claims.yaml"), simulated)
    for name, rate in measured.items():
        assert rate.get(Verdict.SUPPORTED, 0) <= ALLOWED, name
        assert rate.get(Verdict.NOT_SUPPORTED, 0) <= ALLOWED, name
        assert rate.get(Verdict.SUPPORTED, 0) > EXPECTED_OF_SIGNS, name


@pytest.mark.parametrize("noise", [normal, heavy_tailed])
@pytest.mark.parametrize("late", [0.0, 0.3])
def test_speed_ups_are_judged_rightly(build, noise, late):
    """On the edge, twice as fast; some runs (``late``) are stopped before they get there."""
    rng = np.random.default_rng(0)
    check = {"relation": "speed_up", "metric": "loss", "arm": "a", "versus": "b", "at_least": 2}
    claims = parse_claims({"claims": [build.claim(check)]}, "claims.yaml")
    needed = 500_000 * np.exp(10 * (noise(rng, (STUDIES, 5)) - 0.9))
    stopped = rng.random((STUDIES, 5)) < late

    def ours(steps: float, is_late: bool) -> dict[int, float]:
        return {round(steps / 2) - 1: 0.6} if is_late else {round(steps) - 1: 0.5}

    simulated = (
        [
            RunResult(arm, seed, series=lambda _, series=series: series)  # type: ignore[misc]
            for seed, (steps, is_late) in enumerate(zip(*study, strict=True))
            for arm, series in (("a", ours(steps, is_late)), ("b", {999_999: 0.5}))
        ]
        for study in zip(needed, stopped, strict=True)
    )
    [rate] = rates(claims, simulated).values()
    assert rate.get(Verdict.SUPPORTED, 0) <= ALLOWED
    assert rate.get(Verdict.NOT_SUPPORTED, 0) <= ALLOWED
    if late == 0 and noise is normal:
        assert rate.get(Verdict.SUPPORTED, 0) > EXPECTED


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_collapse_is_judged_exactly(build, seeds, chance):
    rng = np.random.default_rng(seeds)
    checks = [
        {"relation": relation, "arm": "a", "versus": "b"}
        for relation in ("collapses_more", "collapses_less")
    ]
    claims = parse_claims(
        {"claims": [build.claim(check, id=check["relation"]) for check in checks]}, "claims.yaml"
    )
    simulated = (
        [
            RunResult(arm, seed, status="diverged" if lost else "finished")
            for arm, row in zip("ab", study, strict=True)
            for seed, lost in enumerate(row)
        ]
        for study in rng.random((STUDIES, 2, seeds)) < chance
    )
    for rate in rates(claims, simulated).values():
        assert rate.get(Verdict.SUPPORTED, 0) <= ALLOWED
        assert rate.get(Verdict.NOT_SUPPORTED, 0) <= ALLOWED


@pytest.mark.parametrize("noise", [normal, accuracy])
def test_large_effects_are_found(build, noise):
    checks: dict[str, Any] = {
        "greater": {"relation": "greater", "arm": "a", "versus": "b"},
        "non_inferior": {
            "relation": "non_inferior",
            "arm": "a",
            "versus": "b",
            "margin": 0.01,
        },
        "ratio": {"relation": "ratio", "arm": "a", "versus": "b", "at_least": 1},
        "trend": {"relation": "trend", "arms": {"b": 1, "a": 2}, "direction": "increasing"},
        "ordered": {"relation": "ordered", "arms": ["b", "a"], "direction": "increasing"},
    }
    claims = parse_claims(
        {
            "claims": [
                build.claim({"metric": "x", **check}, id=name) for name, check in checks.items()
            ]
        },
        "claims.yaml",
    )
    x = noise(np.random.default_rng(0), (200, 2, 5))
    x[:, 0] += 0.1
    simulated = (build.study(dict(zip("ab", study, strict=True)), "x") for study in x.tolist())
    for rate in rates(claims, simulated).values():
        assert rate[Verdict.SUPPORTED] > 0.95
