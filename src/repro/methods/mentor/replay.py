"""A replay of whole episodes, from which n-step transitions are drawn.

Shape suffixes: E environments, T steps, B samples, K stacked frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Count, checked

Padding = Literal["repeat", "zeros"]


class Transitions(NamedTuple):
    """n-step transitions; frames are (B, K, ...)."""

    state: Tensor
    action: Tensor
    reward: Tensor  # (B,): Σ_i γ^i r_i, discounted by the world as well
    discount: Tensor  # (B,): γ^n times the world's discounts
    next_state: Tensor


class Episodes(NamedTuple):
    """Episodes side by side: ``state`` has one more step than the others."""

    state: Tensor  # (E, T + 1, ...)
    action: Tensor  # (E, T, A)
    reward: Tensor  # (E, T)
    discount: Tensor  # (E, T), the world's own


def stacked(states: Tensor, episode: Tensor, step: Tensor, count: int, padding: Padding) -> Tensor:
    """The last ``count`` frames at a step of an episode, the oldest first: (B, K, ...).

    Args:
        states: (E, T + 1, ...).
        episode: (B,) which of E.
        step: (B,) which of T + 1.
        count: K.
        padding: what stands for frames before the first: the first, or zeros.
    """
    steps_BK = step[:, None] - torch.arange(count - 1, -1, -1, device=step.device)
    frames = states[episode[:, None], steps_BK.clamp(min=0)]
    if padding == "zeros":
        frames[steps_BK < 0] = 0
    return frames


class Replay:
    """The latest episodes, in a ring; the episodes that are being played are not among them.

    Samples are uniform over episodes, then over starts; the last n − 1 steps start none.

    Args:
        episodes: that it holds.
        horizon: most steps of one.
        n_step: n.
        stack: frames that make an observation.
        padding: see `stacked`.

    Raises:
        UserError: n is more than an episode has.
    """

    @checked
    def __init__(
        self,
        episodes: Count,
        horizon: Count,
        n_step: Count = 3,
        stack: Count = 1,
        padding: Padding = "repeat",
    ) -> None:
        if n_step > horizon:
            raise UserError(f"mentor: n_step={n_step} is more than the {horizon} of an episode.")
        self.capacity, self.horizon, self.n_step = episodes, horizon, n_step
        self.stack, self.padding = stack, padding
        self.kept: Episodes | None = None
        self.lengths = torch.zeros(episodes, dtype=torch.int64)
        self.tasks = torch.zeros(episodes, dtype=torch.int64)
        self.size = self.place = 0

    def add(self, new: Episodes, tasks: Tensor | None = None) -> None:
        """Takes in episodes of one length; those too short to start a sample are left out.

        Args:
            new: E of them.
            tasks: (E,) the task of each.
        """
        E, steps = new.reward.shape
        if steps < self.n_step:
            return
        if self.kept is None:
            shapes = [(*each.shape[2:],) for each in new]
            times = [self.horizon + 1, *[self.horizon] * 3]
            self.kept = Episodes(*(
                torch.zeros(self.capacity, time, *shape, dtype=each.dtype)
                for each, shape, time in zip(new, shapes, times, strict=True)
            ))  # fmt: skip
        where = (self.place + torch.arange(E)) % self.capacity
        for mine, theirs in zip(self.kept, new, strict=True):
            mine[where, : theirs.shape[1]] = theirs.to(mine.device)
        self.lengths[where] = steps
        if tasks is not None:
            self.tasks[where] = tasks.to(self.tasks.device)
        self.place = (self.place + E) % self.capacity
        self.size = min(self.capacity, self.size + E)

    def sample(self, count: int, gamma: float, task: int | None = None) -> Transitions:
        """Draws transitions from the global generator.

        Args:
            count: B.
            gamma: the agent's discount.
            task: the episodes' task; None for all.
        """
        assert self.kept is not None, "no episode yet"
        if task is None:
            episode = torch.randint(self.size, (count,))
        else:
            known = (self.tasks[: self.size] == task).nonzero().squeeze(1)
            episode = known[torch.randint(len(known), (count,))]
        starts = self.lengths[episode] - self.n_step + 1
        start = (torch.rand(count) * starts).long().clamp(max=starts - 1)
        return self.at(episode, start, gamma)

    def at(self, episode: Tensor, start: Tensor, gamma: float) -> Transitions:
        """The transitions that start at these steps (B,) of these episodes (B,)."""
        assert self.kept is not None
        kept, n = self.kept, self.n_step
        steps = start[:, None] + torch.arange(n)
        discounts = gamma * kept.discount[episode[:, None], steps]
        before = torch.cat([torch.ones_like(discounts[:, :1]), discounts[:, :-1]], 1).cumprod(1)
        return Transitions(
            state=stacked(kept.state, episode, start, self.stack, self.padding),
            action=kept.action[episode, start],
            reward=(before * kept.reward[episode[:, None], steps]).sum(1),
            discount=discounts.prod(1),
            next_state=stacked(kept.state, episode, start + n, self.stack, self.padding),
        )

    def state_dict(self) -> dict[str, Any]:
        """What it holds; a full-scale one has tens of GB."""
        filled = None if self.kept is None else [each[: self.size] for each in self.kept]
        return {
            "kept": filled,
            "lengths": self.lengths,
            "tasks": self.tasks,
            "place": self.place,
            "size": self.size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a `state_dict`."""
        self.lengths, self.tasks = state["lengths"], state["tasks"]
        self.place, self.size = state["place"], state["size"]
        self.kept = None if state["kept"] is None else Episodes(*map(self._grown, state["kept"]))

    def _grown(self, filled: Tensor) -> Tensor:
        whole = filled.new_zeros(self.capacity, *filled.shape[1:])
        whole[: self.size] = filled
        return whole
