"""Every metric that a claim reads is named in a test of its room or method.

What rooms older than this rule lack is counted, and the counts only fall.
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


# How many metrics of older rooms no test names yet: a room's number may only fall.
UNNAMED = {
    "accelat": 7, "barron_pde": 32, "bn_marl": 7, "gbnn": 6, "gradient_noise": 1, "gsae": 9,
    "lrp_pruning": 24, "man": 1, "nngp_mixture": 13, "otov3": 2, "rmt_lr": 56, "score_ntk": 21,
    "skeleton": 8,
}  # fmt: skip


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
    known = UNNAMED.get(slug, 0)
    assert len(missing) <= known, f"{len(missing)} of {len(read)} are named in no test: {missing}"
    assert len(missing) == known, f"UNNAMED: {slug} has {len(missing)} now"
