"""An agent that plays, remembers and learns: act, store, update, episode by episode.

Shape suffixes: E copies of the world, T steps, K stacked frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.data.worlds.sights import Sight, Step, World
from repro.knobs import Count, Natural, checked
from repro.methods.mentor.agent import Agent
from repro.methods.mentor.replay import Episodes, Padding, Replay, Transitions


def newest(states: Sequence[Tensor], count: int, padding: Padding) -> Tensor:
    """The last ``count`` states (E, ...) as frames (E, K, ...); see `replay.stacked`."""
    first = states[0] if padding == "repeat" else torch.zeros_like(states[0])
    missing = [first] * (count - len(states))
    return torch.stack([*missing, *states[-count:]], 1)


@torch.no_grad()
def rollout(agent: Agent, world: World, first: Tensor) -> Iterator[Step]:
    """Plays an episode by the actor's mean, step by step.

    Args:
        agent: acts in evaluation mode.
        world: where; not one in which an episode is under way, unless it resumes.
        first: states (E, ...) as `World.reset` gives them.
    """
    states = [first]
    for _ in range(world.horizon):
        sight = _on(agent, world.see(newest(states, world.stack, world.padding)))
        step = world.step(states[-1], agent.act(*sight).cpu())
        yield step
        if step.over:
            return
        states = [*states[-world.stack :], step.state]


def evaluate(
    agent: Agent, world: World, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Plays episodes by the actor's mean.

    Args:
        agent: see `rollout`.
        world: likewise.
        count: E.
        generator: of the first states.

    Returns:
        Returns (E,), and which episodes succeeded (E,), as floats.
    """
    steps = rollout(agent, world, world.reset(count, generator))
    rewards, success = zip(*((step.reward, step.success) for step in steps), strict=True)
    return torch.stack(rewards).sum(0), world.solved(torch.stack(success)).float()


def filmed(
    agent: Agent, world: World, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, float]:
    """Plays one episode by the actor's mean, and keeps some of its frames.

    Args:
        agent: see `rollout`.
        world: likewise.
        count: of frames, from the first state to the last; at most one of each state is kept.
        generator: of the first state.

    Returns:
        Frames (T, C, H, W) as bytes, and the return.
    """
    first = world.reset(1, generator)
    steps = list(rollout(agent, world, first))
    states = torch.cat([first, *(step.state for step in steps)])
    shown = states[torch.linspace(0, len(states) - 1, min(count, len(states))).round().long()]
    frames = world.see(torch.stack([shown] * world.stack, 1)).pixels[:, : world.shape[0]]
    return frames, float(sum(step.reward for step in steps))


class Player(nn.Module):
    """An `Agent` in copies of a `repro.data.worlds.sights.World`.

    A step acts once in every copy and learns once in ``update_every`` steps. States stay on the
    CPU, where worlds and replay are; the agent may be elsewhere.

    Args:
        world: the environment.
        agent: arguments of `Agent`, but for what the world says.
        envs: E.
        episodes: that the replay holds.
        n_step: of the returns.
        batch: transitions of an update.
        random_steps: first steps, whose actions are uniform.
        learning_from: the step of the first update, if an episode is over by then.
        update_every: steps between two updates.
    """

    @checked
    def __init__(
        self,
        world: World,
        agent: Mapping[str, Any],
        envs: Count = 1,
        episodes: Count = 2000,
        n_step: Count = 3,
        batch: Count = 256,
        random_steps: Natural = 2000,
        learning_from: Natural = 2000,
        update_every: Count = 2,
    ) -> None:
        super().__init__()
        channels, *sides = world.shape
        self.agent = Agent([world.stack * channels, *sides], world.actions, world.joints, **agent)
        self.world, self.envs, self.batch = world, envs, batch
        self.random_steps, self.learning_from = random_steps, learning_from
        self.update_every = update_every
        self.replay = Replay(episodes, world.horizon, n_step, world.stack, world.padding)
        self.steps = 0  # so far, each of all copies
        self.states: list[Tensor] = []  # of the running episode, with the one to act in
        self.played: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # its steps
        self.score = float("nan")  # mean return of the last episode

    @torch.no_grad()
    def act(self) -> bool:
        """Acts once in every copy, and says whether that ended the episode."""
        world = self.world
        if not self.states:
            self.states = [world.reset(self.envs)]
        if self.steps < self.random_steps:
            action = 2 * torch.rand(self.envs, world.actions) - 1
        else:
            sight = _on(self.agent, world.see(newest(self.states, world.stack, world.padding)))
            action = self.agent.act(*sight, sigma=self.agent.sigma(self.steps)).cpu()
        step = world.step(self.states[-1], action)
        self.steps += 1
        self.states.append(step.state)
        self.played.append((action, step.reward, step.discount, step.success))
        return step.over or len(self.played) == world.horizon

    def remember(self) -> None:
        """Ends the episode: into the replay with it, and the agent is offered to its top set."""
        action, reward, discount, _ = (
            torch.stack(each, 1) for each in zip(*self.played, strict=True)
        )
        states = torch.stack(self.states, 1)
        tasks = torch.arange(self.envs) % self.world.tasks
        self.replay.add(Episodes(states, action, reward, discount), tasks)
        self.score = float(reward.sum(1).mean())
        self.agent.offer(self.score)
        self.states, self.played = [], []

    def sample(
        self, count: int, task: int | None = None
    ) -> tuple[Transitions, tuple[Tensor, Tensor]]:
        """Draws transitions as they are seen, and the joint readings of both ends."""
        drawn = self.replay.sample(count, self.agent.gamma, task)
        before, after = (
            _on(self.agent, self.world.see(frames)) for frames in (drawn.state, drawn.next_state)
        )
        device = before.pixels.device
        seen = Transitions(
            before.pixels,
            drawn.action.to(device),
            drawn.reward.to(device),
            drawn.discount.to(device),
            after.pixels,
        )
        return seen, (before.joints, after.joints)

    def advance(self, optimizer: Optimizer, steps: int = 1) -> dict[str, Tensor]:
        """Plays and learns; returns the losses of the last update, if there was one.

        Args:
            optimizer: over all parameters of the agent that have a gradient.
            steps: how many, each of all copies.
        """
        losses: dict[str, Tensor] = {}
        for _ in range(steps):
            if self.act():
                self.remember()
            ready = self.replay.size and self.steps > self.learning_from
            if ready and self.steps % self.update_every == 0:
                losses = self.agent.update(optimizer, *self.sample(self.batch), self.steps)
        return losses

    # -- State ------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """What a checkpoint needs besides the weights: the replay, and the running episode."""
        return {
            "agent": self.agent.memory(),
            "replay": self.replay.state_dict(),
            "steps": self.steps,
            "states": list(self.states),
            "played": list(self.played),
            "score": self.score,
        }

    def recall(self, state: Mapping[str, Any]) -> None:
        """Takes over a `memory`; where a world lives elsewhere, its running episode begins anew."""
        self.agent.recall(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.steps, self.score = state["steps"], state["score"]
        resumes = self.world.resumes
        self.states = list(state["states"]) if resumes else []
        self.played = list(state["played"]) if resumes else []


def _on(agent: Agent, sight: Sight) -> Sight:
    """What is seen, where the agent is."""
    device = next(agent.parameters()).device
    return Sight(sight.pixels.to(device), sight.joints.to(device))
