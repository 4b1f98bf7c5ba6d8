"""Small cooperative games, many episodes at once, as pure functions of a state tensor.

A world has ``agents``, ``actions`` (per agent), ``observation`` (length of one agent's), ``shared``
(whether all agents see the same), ``parents_show`` (whether the paper lets children see their
parents' observations, too) and ``horizon``, and three functions over any leading shape:
``reset(shape)`` draws states, ``observe(state)`` gives (..., n, observation), or
(..., 1, observation) where it is shared, ``step(state, actions)`` gives the next state and the
team's reward of the step.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Known, Probability, checked
from repro.methods.bn_marl.tabular import CoordinationGame, coordination_reward

# Who disturbs whom among the ten islands, as the official code has it (4–5 is a neighbourhood).
NEIGHBOURS = (
    (1, 5), (0, 2, 6), (1, 3, 7), (2, 4, 8), (3, 5, 9),
    (0, 4, 6), (1, 5, 7), (2, 6, 8), (3, 7, 9), (4, 8),
)  # fmt: skip


class CoordinationWorld(nn.Module):
    """`CoordinationGame` in episodes; every agent observes all bits of the state.

    Args:
        agents: n.
        flip: see `CoordinationGame`; likewise `tolerance`.
        tolerance: the paper's l.
        horizon: steps of an episode.
        discount: of the exact value by which policies are compared.
        pays: the reward of the state that a step leads to (``next``, as the official environment
            does) or of the one that it leaves (``left``, as the tabular game counts).
        start: bits are 1 with probability 1 − 1/n (``published``) or ½ (``uniform``).

    Raises:
        UserError: a knob is out of its range.
    """

    actions = 2
    shared = True
    parents_show = False

    @checked
    def __init__(
        self,
        agents: Count = 3,
        flip: Probability = 0.1,
        tolerance: int | None = None,
        horizon: Count = 25,
        discount: float = 0.95,
        pays: Annotated[str, Known(("next", "left"))] = "next",
        start: Annotated[str, Known(("published", "uniform"))] = "published",
    ) -> None:
        super().__init__()
        self.agents = self.observation = agents
        self.horizon, self.flip, self.pays = horizon, flip, pays
        self.ones = 0.5 if start == "uniform" else 1 - 1 / agents
        self.game = CoordinationGame(agents, flip, discount, tolerance)

    def reset(self, shape: tuple[int, ...], device: Any = None) -> Tensor:
        """States (*shape, n) of zeros and ones."""
        return (torch.rand((*shape, self.agents), device=device) < self.ones).float()

    def observe(self, state: Tensor) -> Tensor:
        """The state, the same to each agent: (..., 1, n)."""
        return state[..., None, :]

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Flips some of the actions (..., n), which are the next state, and pays."""
        flipped = torch.rand_like(state) < self.flip
        after = torch.where(flipped, 1 - actions, actions).float()
        paid = after if self.pays == "next" else state
        return after, coordination_reward(paid, self.game.tolerance)


class Aloha(nn.Module):
    """Islands share a medium: sending (action 1) pays 0.1 unless a neighbour sends, too (−10).

    Every island starts with one message; with probability ``arrival`` a step brings another, up to
    ``capacity``. It observes its own backlog alone, one-hot: the official code's normalisation of
    observations would blank a single number.

    Args:
        agents: islands, the first so many of the ten.
        horizon: steps of an episode.
        arrival: probability of a new message.
        capacity: largest backlog.
        empty_disturbs: a neighbour that plays 1 with nothing to send disturbs, too, as published.

    Raises:
        UserError: there are not so many islands.
    """

    actions = 2
    shared = False
    parents_show = True

    @checked
    def __init__(
        self,
        agents: Annotated[int, Ge(2), Le(len(NEIGHBOURS))] = 10,
        horizon: Count = 20,
        arrival: Probability = 0.6,
        capacity: Count = 5,
        empty_disturbs: bool = True,
    ) -> None:
        super().__init__()
        self.agents, self.horizon, self.empty_disturbs = agents, horizon, empty_disturbs
        self.arrival, self.capacity = arrival, capacity
        self.observation = capacity + 1
        near = torch.zeros(agents, agents)
        for i in range(agents):
            near[i, [j for j in NEIGHBOURS[i] if j < agents]] = 1
        self.register_buffer("near", near, persistent=False)

    near: Tensor

    def reset(self, shape: tuple[int, ...], device: Any = None) -> Tensor:
        """Backlogs (*shape, n) of one message each."""
        return torch.ones(*shape, self.agents, device=device)

    def observe(self, state: Tensor) -> Tensor:
        """Own backlog, one-hot: (..., n, capacity + 1)."""
        return F.one_hot(state.long(), self.observation).float()

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sends, then lets messages arrive; only islands with a backlog can send."""
        sends = actions.float() * (state > 0)
        disturbed = (actions.float() if self.empty_disturbs else sends) @ self.near > 0
        paid = sends * torch.where(disturbed, -10.0, 0.1)
        state = state - sends * ~disturbed
        state = state + (torch.rand_like(state) < self.arrival)
        return state.clamp(max=self.capacity), paid.sum(-1)


class ParticleWorld(nn.Module):
    """A cooperative scenario of `mpe2` (the multi-agent particle environments), e.g. spread.

    Its worlds live in Python: the state is what they were observed in, and an episode that is
    under way is lost with the process (no update begins in the middle of one).

    Args:
        agents: N of the scenario.
        scenario: a module of mpe2 whose agents share sizes of observations and actions.
        horizon: steps of an episode.

    Raises:
        UserError: mpe2 is not installed, or has no such scenario.
    """

    shared = False
    parents_show = False

    def __init__(
        self, agents: int = 3, scenario: str = "simple_spread_v3", horizon: int = 25
    ) -> None:
        super().__init__()
        import importlib

        try:
            module = importlib.import_module(f"mpe2.{scenario}")
        except ImportError as error:
            raise UserError(
                f"bn_marl: mpe2.{scenario} cannot be imported ({error}):"
                " pip install 'gradient-repro[mpe]'."
            ) from error
        self._make = lambda: module.parallel_env(N=agents, max_cycles=horizon)
        world = self._make()
        spaces = {(world.observation_space(a).shape[0], world.action_space(a).n)
                  for a in world.possible_agents}  # fmt: skip
        if len(spaces) > 1:
            raise UserError(f"bn_marl: the agents of mpe2.{scenario} differ in their sizes.")
        self.agents, self.horizon = len(world.possible_agents), horizon
        self.observation, self.actions = map(int, spaces.pop())
        self._worlds: list[Any] = []

    def reset(self, shape: tuple[int, ...], device: Any = None) -> Tensor:
        """Observations (*shape, n, size) of fresh worlds, seeded from torch's generator."""
        count = int(torch.tensor(shape).prod())
        while len(self._worlds) < count:
            self._worlds.append(self._make())
        seeds = torch.randint(2**31, (count,)).tolist()
        seen = [
            list(world.reset(seed=seed)[0].values())
            for world, seed in zip(self._worlds, seeds, strict=False)
        ]
        return _tensor(seen).view(*shape, self.agents, -1).to(device)

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def step(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Steps every world; the reward is the mean over agents, who share most of it."""
        seen, rewards = [], []
        for world, chosen in zip(self._worlds, actions.flatten(0, -2).long().tolist(), strict=True):
            names = world.possible_agents
            observed, paid, *_ = world.step(dict(zip(names, chosen, strict=True)))
            seen.append([observed[name] for name in names])
            rewards.append(sum(paid.values()) / len(names))
        return _tensor(seen).view_as(state).to(state.device), torch.tensor(
            rewards, device=state.device
        ).float().view(actions.shape[:-1])


def _tensor(rows: list[Any]) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(rows, dtype=np.float32))
