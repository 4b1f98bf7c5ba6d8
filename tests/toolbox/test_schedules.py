"""Schedules against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from repro.errors import UserError
from repro.toolbox import schedules

STEPS = 50


def rates(schedule: Any, **knobs: Any) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, STEPS, **knobs)
    used = []
    for _ in range(STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_constant_is_constant() -> None:
    assert rates(schedules.constant) == [2.0] * STEPS


@pytest.mark.parametrize("schedule", [schedules.constant, schedules.cosine, schedules.step])
def test_warm_up_rises_linearly_and_never_starts_at_zero(schedule: Any) -> None:
    used = rates(schedule, warmup=0.2)
    assert used[:10] == pytest.approx([2.0 * (n + 1) / 10 for n in range(10)])


def test_step_falls_at_its_milestones() -> None:
    used = rates(schedules.step, milestones=[0.5, 0.8], gamma=0.1)
    assert used == pytest.approx([2.0] * 25 + [0.2] * 15 + [0.02] * 10)


def test_cosine_is_half_a_cosine() -> None:
    used = rates(schedules.cosine)
    assert used == pytest.approx([1 + math.cos(math.pi * n / STEPS) for n in range(STEPS)])


def test_cosine_after_warm_up_spans_what_is_left() -> None:
    used = rates(schedules.cosine, warmup=0.2)
    assert used[10] == pytest.approx(2.0)
    assert used[30] == pytest.approx(1.0)


def test_linear_decay_may_end_early_and_above_zero() -> None:
    used = rates(schedules.linear_decay, start=0.5, stop=0.9, low=0.01)
    assert used[0] == used[len(used) // 2] == pytest.approx(used[-1] * 100)
    with pytest.raises(UserError, match=r"stop=0\.5 has to be above"):
        rates(schedules.linear_decay, start=0.5, stop=0.5)


def test_linear_decay_is_flat_and_then_a_line_to_zero() -> None:
    used = rates(schedules.linear_decay, start=0.6)
    assert used == pytest.approx([2.0] * 30 + [2.0 * (STEPS - n) / 20 for n in range(30, STEPS)])


def test_plateau_falls_when_the_loss_does_not() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedules.plateau(optimizer, STEPS, gamma=0.5, patience=1)
    used = []
    for loss in (3.0, 2.0, 2.0, 2.0, 1.0, 1.0):
        scheduler.step(loss)
        used.append(optimizer.param_groups[0]["lr"])
    assert used == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "knobs", "words"),
    [
        (schedules.constant, {"warmup": 1.0}, "constant.warmup lies in"),
        (schedules.constant, {"warmup": -0.1}, "constant.warmup lies in"),
        (schedules.step, {"milestones": [0.8, 0.5]}, "schedule.milestones"),
        (schedules.step, {"milestones": [30]}, "step.milestones is a list"),
        (schedules.linear_decay, {"start": 1.0}, "linear_decay.start lies in"),
    ],
)
def test_senseless_knobs_are_refused(schedule: Any, knobs: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        rates(schedule, **knobs)
