"""Checks that cannot fail, or cannot hold, are refused when they are loaded."""

from __future__ import annotations

import pytest

from repro.claims.file import refuse_foregone
from repro.errors import UserError

TWO = {"arm": "a", "versus": "b"}


@pytest.mark.parametrize(
    ("check", "word"),
    [
        ({"relation": "at_least", "arm": "a", "value": 0}, "fail"),
        ({"relation": "at_most", "arm": "a", "value": 1}, "fail"),
        ({"relation": "at_most", "arm": "a", "value": -0.1}, "hold"),
        ({"relation": "within", "arm": "a", "low": 0, "high": 1}, "fail"),
        ({"relation": "at_least", "metric": "time/step_ms", "arm": "a", "value": 0}, "fail"),
        ({"relation": "greater", **TWO, "margin": 1}, "hold"),
        ({"relation": "non_inferior", **TWO, "margin": 1}, "fail"),
        ({"relation": "equivalent", **TWO, "margin": 1.5}, "fail"),
        ({"relation": "less", **TWO, "metric": "m", "range": [0, 5], "margin": 5}, "hold"),
    ],
)
def test_foregone_checks_are_refused_in_one_line(build, check, word):
    with pytest.raises(UserError, match=f"cannot {word}") as caught:
        refuse_foregone(build.claims_file(check))
    assert len(str(caught.value).splitlines()) == 1


def test_contradictions_are_refused(build):
    level = {"arm": "a", "metric": "m"}
    low, high = (
        {"relation": "at_most", "value": 1, **level},
        {"relation": "at_least", "value": 2, **level},
    )
    with pytest.raises(UserError, match="a, m cannot be ≤ 1 and ≥ 2"):
        refuse_foregone(build.claims_file(low, high))
    refuse_foregone(build.claims_file({**low, "value": 3}, high))
    greater = {"relation": "greater", **TWO}
    with pytest.raises(UserError, match="cannot be > 0 and < 0"):
        refuse_foregone(build.claims_file(greater, {**greater, "relation": "less"}))


def test_what_can_fail_and_hold_is_left_alone(build):
    claims = build.claims_file(
        {"relation": "at_least", "arm": "a", "value": 0.001},
        {"relation": "at_most", "metric": "test/loss", "arm": "a", "value": 0},
        {"relation": "greater", **TWO, "margin": 0.99},
        {"relation": "ratio", **TWO, "at_least": 2},
    )
    refuse_foregone(claims)
