"""Worlds that are seen in pictures: what an agent that acts in them asks for.

States are tensors (E, ...) of E copies side by side, whose episodes begin and end together. They
are what a replay keeps; pictures are made of them when somebody looks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor


class Sight(NamedTuple):
    """What is seen, and what is felt beside it."""

    pixels: Tensor  # (B, C, H, W) in [0, 255]
    joints: Tensor  # (B, J)


class Step(NamedTuple):
    """What an action led to."""

    state: Tensor  # (E, ...)
    reward: Tensor  # (E,)
    discount: Tensor  # (E,): 0 where nothing follows
    success: Tensor  # (E,) boolean, see `World.solved`
    over: bool = False  # the episode ends before its horizon


class World(Protocol):
    """Copies of an environment.

    Attributes:
        shape: (C, H, W) of one frame.
        actions: numbers of an action, each in [-1, 1].
        joints: J readings beside the picture.
        horizon: most steps of an episode.
        stack: frames that make an observation.
        padding: what stands for frames before the first: the first, or zeros.
        tasks: copy i has task i modulo this number.
        resumes: a state is all that there is, so that an episode can be continued from it.
    """

    shape: tuple[int, int, int]
    actions: int
    joints: int
    horizon: int
    stack: int
    padding: Literal["repeat", "zeros"]
    tasks: int
    resumes: bool

    def reset(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """First states of so many copies."""

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Acts (E, actions) in all copies."""

    def see(self, frames: Tensor) -> Sight:
        """Looks at stacked states (B, stack, ...): their frames lie in one channel axis."""

    def solved(self, success: Tensor) -> Tensor:
        """Which episodes succeeded, of the flags (T, E) of their steps."""
