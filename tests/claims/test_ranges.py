"""No interval says what cannot be, and differences of percentages are points."""

from __future__ import annotations

import doctest
import json

import pytest

from repro.claims import ranges
from repro.claims.outcomes import Verdict
from repro.errors import UserError
from repro.records.papers import load_papers

NOISY = {"a": [0.99, 1.0, 0.7], "b": [0.05, 0.0, 0.3]}


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(ranges).failed == 0


@pytest.mark.parametrize(
    ("check", "low", "high"),
    [
        ({"relation": "at_least", "value": 0.5}, None, 1.0),
        ({"relation": "at_most", "arm": "b", "value": 0.5}, 0.0, None),
        ({"relation": "greater", "versus": "b"}, None, 1.0),
        ({"relation": "less", "versus": "b"}, None, 1.0),
        ({"relation": "greater", "versus": "b", "times": 5}, -5.0, 1.0),
        ({"relation": "ratio", "versus": "b", "at_least": 2, "range": [0.01, 1]}, None, None),
        ({"relation": "closes_gap", "arm": "c", "start": "b", "goal": "a"}, -1.0, 1.0),
        ({"relation": "at_least", "metric": "test/x", "value": 0.5, "range": [0.2, 1.0]}, 0.2, 1.0),
    ],
)
def test_intervals_stay_within_what_is_possible(build, check, low, high):
    metric = check.get("metric", build.metric)
    positive = {arm: [max(x, 0.01) for x in row] for arm, row in NOISY.items()}
    runs = build.study({**positive, "c": [0.6, 0.1, 1.0]}, metric)
    (one,) = build.verdict({"arm": "a", **check}, runs).checks
    assert one.low is not None
    assert one.high is not None
    if low is not None:
        assert one.low >= low
    if high is not None:
        assert one.high <= high


def test_the_ends_are_met(build):
    (one,) = build.verdict({"relation": "at_least", "arm": "a", "value": 0.5}, NOISY).checks
    assert one.high == 1.0
    (one,) = build.verdict({"relation": "greater", "arm": "a", "versus": "b"}, NOISY).checks
    assert (one.high, one.verdict) == (1.0, Verdict.SUPPORTED if one.low > 0 else one.verdict)


def test_what_is_unknown_stays_unknown(build):
    (one,) = build.verdict({"relation": "at_least", "arm": "a", "value": 0.5}, {"a": [0.9]}).checks
    assert (one.low, one.high) == (None, None)


def test_a_difference_of_percentages_is_one_of_points(build):
    both = {"arm": "a", "versus": "b", "percent": True}
    (one,) = build.verdict({"relation": "greater", "margin": 0.1, **both}, NOISY).checks
    assert one.claimed == "> 10 points"
    assert one.effect_text.endswith(" points")
    level = {"relation": "at_least", "arm": "a", "value": 0.5, "percent": True}
    (one,) = build.verdict(level, NOISY).checks
    assert one.claimed == "≥ 50 %"
    assert one.effect_text.endswith(" %")


def test_a_range_has_an_order(build):
    with pytest.raises(UserError, match="range: the lowest value"):
        build.claims_file({"relation": "at_least", "arm": "a", "value": 0, "range": [1, 0]})


def test_recorded_numbers_are_within_the_ranges_of_their_names():
    for paper in load_papers():
        for scale in paper.scales:
            file = paper.results_file(scale)
            for run in json.loads(file.read_text())["runs"] if file.is_file() else ():
                for name, value in run["metrics"].items():
                    low, high = ranges.range_of(name)
                    assert value is None or not (value < low or value > high), (paper.slug, name)
