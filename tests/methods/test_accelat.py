"""The learning-rate rule and the shapes against traces, identities and a literal second version."""

from __future__ import annotations

import doctest
import math
import random

import pytest
import torch

import repro.methods.accelat as accelat
from repro.errors import UserError
from repro.methods.accelat import (
    SHAPES,
    AccuracySlopeLR,
    accuracy_slope,
    one_cycle,
    piecewise,
    range_test,
    sawtooth,
    shaped,
)

TRACE = [0.10, 0.20, 0.28, 0.34, 0.38, 0.40, 0.41, 0.412] + 11 * [0.413]


def scheduler(lr: float = 1e-3, **knobs: float) -> AccuracySlopeLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return AccuracySlopeLR(optimizer, **knobs)  # type: ignore[arg-type]


def rates(rule: AccuracySlopeLR, accuracies: list[float]) -> list[float]:
    """The rate set by the end of each epoch."""
    out = []
    for accuracy in accuracies:
        rule.step(accuracy)
        out.append(float(rule.get_last_lr()[0]))
    return out


def published(accuracies: list[float], lr: float = 1e-3) -> list[float]:
    """The published procedure, one line after the other, with its slice that wraps around."""
    w, quiet, threshold, factor, floor = 5, 5, 0.005, 0.8, 1e-6
    stored: list[float] = []
    means: list[float] = []
    q = quiet
    out = []
    for accuracy in accuracies:
        stored.append(accuracy)
        n = len(stored)
        part = stored[n - w : n]  # for n = 3 and 4 the start is negative: the last 2 and 1 values
        mean = sum(part) / len(part) if part else float("nan")
        q += 1
        if len(means) > w and q > quiet and mean - means[-1] < threshold:
            lr *= factor
            q = 1
        lr = max(lr, floor)
        means.append(mean)
        out.append(lr)
    return out


def test_the_docstring_holds() -> None:
    assert doctest.testmod(accelat).failed == 0


def test_reference_trace() -> None:
    rule = scheduler()
    got = rates(rule, TRACE)
    means = [rule.mean(epoch) for epoch in range(4, 11)]
    assert means == pytest.approx([0.26, 0.32, 0.362, 0.3884, 0.403, 0.4096, 0.4122])
    assert rule.cuts == [10, 15]
    assert got[9:11] == pytest.approx([1e-3, 8e-4])
    assert got[14:16] == pytest.approx([8e-4, 6.4e-4])


def test_the_published_slice_differs_in_means_alone() -> None:
    rule = scheduler()
    rates(rule, TRACE)
    assert sum(TRACE[1:3]) / 2 == pytest.approx(0.24)  # what the published code has after epoch 2
    assert TRACE[3] == pytest.approx(0.34)  # and after epoch 3
    assert rule.mean(2) == pytest.approx(sum(TRACE[:3]) / 3)
    draw = random.Random(0)
    for _ in range(50):
        level, slope = draw.random() / 2, draw.random() / 100
        walk = [
            min(1, level + slope * e + 0.02 * draw.gauss(0, 1)) for e in range(draw.randint(5, 80))
        ]
        assert rates(scheduler(), walk) == pytest.approx(published(walk), rel=1e-12)


def test_a_threshold_below_everything_is_constant() -> None:
    assert set(rates(scheduler(threshold=-math.inf), TRACE)) == {1e-3}


def test_a_threshold_above_everything_cuts_every_fifth_epoch() -> None:
    rule = scheduler(threshold=math.inf)
    last = rates(rule, [0.01 * e for e in range(50)])[-1]
    assert rule.cuts == [6, 11, 16, 21, 26, 31, 36, 41, 46]
    assert last == pytest.approx(1e-3 * 0.8**9) == pytest.approx(1.342e-4, rel=1e-3)


def test_the_mean_grows_by_the_gain_over_a_window() -> None:
    rule = scheduler()
    draw = random.Random(1)
    values = [draw.random() for _ in range(30)]
    rates(rule, values)
    for e in range(5, 30):
        gain = (values[e] - values[e - 5]) / 5
        assert rule.mean(e) - rule.mean(e - 1) == pytest.approx(gain, abs=1e-12)


def test_falling_cuts_and_the_floor_holds() -> None:
    rule = scheduler(floor=5e-4)
    got = rates(rule, [1 - 0.01 * e for e in range(60)])
    assert got == sorted(got, reverse=True)
    assert got[-1] == 5e-4


def test_the_floor_is_reached_no_earlier_than_epoch_157() -> None:
    got = rates(scheduler(), 200 * [0.5])
    assert got.index(1e-6) + 1 == 157


def test_every_group_is_cut() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.SGD(groups)
    rule = AccuracySlopeLR(optimizer)
    rates(rule, 7 * [0.5])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.08, 0.008])


def test_a_restored_rule_goes_on_as_if_nothing_had_been() -> None:
    straight = rates(scheduler(), TRACE)
    rule = scheduler()
    first = rates(rule, TRACE[:12])
    other = scheduler(lr=first[-1])
    other.load_state_dict(rule.state_dict())
    assert first + rates(other, TRACE[12:]) == straight


def test_floor_ratio_is_of_the_first_rate() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    assert accuracy_slope(optimizer, 10).floor == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"factor": 1.0}, "factor"),
        ({"window": 0}, "window"),
        ({"quiet": -1}, "quiet"),
        ({"floor": -1.0}, "floor"),
    ],
)
def test_bad_knobs(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scheduler(**knobs)
    with pytest.raises(UserError, match="epoch's metric"):
        scheduler().step()


# -- Shapes at T = 50, in the paper's unit of 1e-4 --


def test_piecewise() -> None:
    got = [1e-4 * piecewise(e, 50) for e in (16, 17, 33, 34)]
    assert got == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])


def test_one_cycle() -> None:
    got = [1e-4 * one_cycle(e, 50) for e in (0, 20, 40, 41, 49)]
    assert got == pytest.approx([1e-4, 1e-3, 1e-4, 9.01e-5, 1.09e-5])


def test_range_test() -> None:
    assert 1e-4 * range_test(0, 50) == pytest.approx(1e-8)
    assert 1e-4 * range_test(25, 50) == pytest.approx(1e-3)
    assert 1e-4 * range_test(49, 50) == pytest.approx(63.1, rel=1e-3)


def test_sawtooth() -> None:
    got = [1e-4 * sawtooth(e, 50) for e in (0, 9, 10, 19, 20)]
    assert got == pytest.approx([9.1e-5, 1e-5, 5.05e-5, 1e-5, 3.7e-5])
    plain = [sawtooth(e, 50, cyclic=False) for e in (0, 5, 10, 49)]
    assert plain == pytest.approx([1, 0.55, 0.1, 0.1])
    assert sawtooth(5, 50, power=3.0, cyclic=False) == pytest.approx(0.9 / 8 + 0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_changes_once_an_epoch(shape: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = shaped(optimizer, steps=30, shape=shape, epochs=10)
    seen = []
    for _ in range(30):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    wanted = [0.5 * SHAPES[shape](step // 3, epochs=10) for step in range(30)]
    assert seen == pytest.approx(wanted)


def test_unknown_shapes_and_knobs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(UserError, match=r"shape is piecewise, .*, not 'triangle'"):
        shaped(optimizer, 10, "triangle", 10)
    with pytest.raises(UserError, match="schedule=sawtooth"):
        shaped(optimizer, 10, "sawtooth", 10, teeth=0)
