"""Builds claims files and studies in a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from repro.claims.evidence import RunResult
from repro.claims.file import ClaimsFile, parse_claims
from repro.claims.judge import judge
from repro.claims.verdicts import ClaimVerdict

METRIC = "test/accuracy"


def claim(*checks: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "C1",
        "statement": "It works.",
        "where": "Table 1",
        "paper": {"value": "1 %", "source": "read"},
        "scales": ["mini"],
        "checks": [dict(check) for check in checks],
    } | fields


def claims_file(*checks: Mapping[str, Any], **fields: Any) -> ClaimsFile:
    """One claim with these checks; a check without a metric that needs one gets ``METRIC``."""
    filled = [
        check if check["relation"].startswith("collapses") else {"metric": METRIC, **check}
        for check in checks
    ]
    return parse_claims({"claims": [claim(*filled)], **fields}, "claims.yaml")


def study(values: Mapping[str, Sequence[float]], metric: str = METRIC) -> list[RunResult]:
    """Finished runs: per arm, the metric of seeds 0, 1, …"""
    return [
        RunResult(arm, seed, metrics={metric: value})
        for arm, row in values.items()
        for seed, value in enumerate(row)
    ]


class Build:
    """What the tests build with, as one fixture: test modules cannot import each other."""

    metric = METRIC
    claim = staticmethod(claim)
    claims_file = staticmethod(claims_file)
    study = staticmethod(study)

    @staticmethod
    def verdict(
        checks: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        runs: Mapping[str, Sequence[float]] | Sequence[RunResult],
        **fields: Any,
    ) -> ClaimVerdict:
        """Judges one check, or several together, on runs (or on a mapping of arms to values)."""
        listed = [checks] if isinstance(checks, Mapping) else checks
        results = study(runs) if isinstance(runs, Mapping) else runs
        return judge(claims_file(*listed, **fields), results, "mini")[0]


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()
