"""Every metric that a claim reads should be named in a test of its room or method.

A report more than a test: what is missing is listed (``pytest -rx``), so that it can be written.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repro.claims.file import load_claims
from repro.records.papers import load_paper, paper_files

TESTS = Path(__file__).parents[1]


def sources(slug: str) -> str:
    """The tests of a room and of its method."""
    methods = TESTS / "methods"
    files = [TESTS / "experiments" / f"test_{slug}.py", methods / f"test_{slug}.py"]
    found = [*(file for file in files if file.is_file()), *(methods / slug).rglob("*.py")]
    return "\n".join(file.read_text() for file in found)


def is_named(metric: str, text: str) -> bool:
    """Whether a text has a metric's name, be its numbers written or put in: ``n{size}``."""
    pattern = re.sub(r"\d+", lambda _: r"(\d+|\{[^{}]+\})", re.escape(metric))
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("slug", sorted(paper_files()))
def test_metrics_of_claims_are_named(slug: str) -> None:
    read = {
        metric
        for claim in load_claims(load_paper(slug).claims_file).claims
        for check in claim.all_checks()
        for metric in check.metric_names()
    }
    text = sources(slug)
    missing = sorted(metric for metric in read if not is_named(metric, text))
    if missing:
        pytest.xfail(f"{len(missing)} of {len(read)} metrics are named in no test: {missing}")
