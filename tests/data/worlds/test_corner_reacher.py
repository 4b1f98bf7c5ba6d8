"""The reacher's pictures and rewards, against the formulas place by place."""

from __future__ import annotations

import math

import pytest
import torch

from repro.data.worlds.corner_reacher import OFFSETS, CornerReacher

WORLD = CornerReacher()


def test_pictures_are_blobs_and_a_corner() -> None:
    state = torch.tensor([[0.3, -0.8, -0.2, 0.1, 2.0]])
    pixels, joints = WORLD.see(state[:, None])
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == torch.uint8
    assert joints.shape == (1, 0)
    grid = [-1 + 2 * i / 15 for i in range(16)]
    for channel, (x, y) in enumerate([(0.3, -0.8), (-0.2, 0.1)]):
        for row, column in [(0, 0), (1, 9), (8, 6), (15, 15)]:
            value = 255 * math.exp(-((grid[column] - x) ** 2 + (grid[row] - y) ** 2) / 0.04)
            assert int(pixels[0, channel, row, column]) == pytest.approx(value, abs=1)
    white = (pixels[0, 2] == 255).nonzero().tolist()
    assert white == [[row, column] for row in range(12, 16) for column in range(4)]
    assert len({WORLD.corners[task].nonzero()[0].sum().item() for task in range(4)}) == 3


def test_starts_and_tasks() -> None:
    state = WORLD.reset(4000, torch.Generator().manual_seed(0))
    assert state[:, 4].tolist() == [0, 1, 2, 3] * 1000
    assert float(state[:, :2].abs().max()) == pytest.approx(0.9, abs=0.01)
    assert float(state[:, 2:4].abs().max()) == pytest.approx(0.4, abs=0.01)
    assert [
        a + b
        for first, second in ((0, 1), (2, 3))
        for a, b in zip(OFFSETS[first], OFFSETS[second], strict=True)
    ] == [0] * 4


def test_actions_move_and_pay() -> None:
    state = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [0.9, 0.0, 0.0, 0.0, 0.0]])
    action = torch.tensor([[1.0, 0.2], [5.0, 0.0]])
    step = WORLD.step(state, action)
    torch.testing.assert_close(step.state[:, :2], torch.tensor([[0.35, 0.07], [1.0, 0.0]]))
    near, far = math.hypot(0.1, 0.07), 1.45
    expected = [2 - math.tanh(2 * near), 1 - math.tanh(2 * far)]
    assert step.reward.tolist() == pytest.approx(expected, abs=1e-5)
    assert step.success.tolist() == [True, False]
    assert step.discount.tolist() == [1, 1]
    assert not step.over
    assert state[0, 0] == 0  # the old state is as it was
    assert WORLD.solved(torch.tensor([[True, False], [False, True]])).tolist() == [False, True]
