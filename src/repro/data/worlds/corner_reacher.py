"""A gripper that is to reach a place beside an object; a corner of the picture says which place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from repro.data.worlds.sights import Sight, Step
from repro.knobs import Count, Positive, checked

OFFSETS = ((-0.45, 0.0), (0.45, 0.0), (0.0, -0.45), (0.0, 0.45))  # opposing pairs: (0, 1), (2, 3)
START, OBJECT = 0.9, 0.4  # the gripper starts within ±START, the object lies within ±OBJECT
BLOB = 0.04  # a blob is exp(-r²/BLOB)


class CornerReacher:
    """Copies side by side, simulated and drawn in batches: a `repro.data.worlds.sights.World`.

    The square [-1, 1]² is seen in three channels: the gripper and the object as blobs, and a white
    square, a quarter of the picture wide, in the corner that stands for the task. An action moves
    the gripper by ``reach`` times itself; it pays ``1 − tanh(2d) + [d < near]`` at distance d of
    the target. A state (E, 5) is the gripper's place, the object's, and the task.

    Args:
        size: of the picture.
        horizon: steps of an episode.
        reach: of an action.
        near: distance that counts as there; an episode succeeds if it ends there.
    """

    actions, joints, stack, tasks, resumes = 2, 0, 1, len(OFFSETS), True
    padding: Literal["repeat", "zeros"] = "repeat"

    @checked
    def __init__(
        self, size: Count = 16, horizon: Count = 15, reach: Positive = 0.35, near: Positive = 0.15
    ) -> None:
        self.shape = (3, size, size)
        self.horizon, self.reach, self.near = horizon, reach, near
        self.grid = torch.linspace(-1, 1, size)
        corner = max(1, size // 4)
        self.corners = torch.zeros(self.tasks, size, size)
        for task, (row, column) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1)]):
            rows = slice(corner) if row == 0 else slice(-corner, None)
            columns = slice(corner) if column == 0 else slice(-corner, None)
            self.corners[task, rows, columns] = 255

    def reset(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Places drawn from the generator, or from the global one."""
        places = 2 * torch.rand(count, 4, generator=generator) - 1
        scale = torch.tensor([START, START, OBJECT, OBJECT])
        task = torch.arange(count)[:, None] % self.tasks
        return torch.cat([places * scale, task], 1)

    def target(self, state: Tensor) -> Tensor:
        """Where the gripper is to go, (E, 2)."""
        return state[:, 2:4] + torch.tensor(OFFSETS)[state[:, 4].long()]

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Moves the gripper, and pays for where it is then."""
        state = state.clone()
        state[:, :2] = (state[:, :2] + self.reach * action.clamp(-1, 1)).clamp(-1, 1)
        distance = (state[:, :2] - self.target(state)).norm(dim=1)
        there = distance < self.near
        return Step(state, 1 - torch.tanh(2 * distance) + there, torch.ones_like(distance), there)

    def see(self, frames: Tensor) -> Sight:
        """Draws states (B, 1, 5) as bytes (B, 3, size, size); rows are the second coordinate."""
        state = frames[:, 0]
        grid = self.grid.to(state.device)
        line_B4S = torch.exp(-(grid - state[:, :4, None]).square() / BLOB)
        blobs_B2SS = 255 * line_B4S[:, 1::2, :, None] * line_B4S[:, ::2, None]
        corner_BSS = self.corners.to(state.device)[state[:, 4].long()]
        pixels = torch.cat([blobs_B2SS, corner_BSS[:, None]], 1).to(torch.uint8)
        return Sight(pixels, state[:, :0])

    def solved(self, success: Tensor) -> Tensor:
        """Those that end there."""
        return success[-1]
