"""What is asked of agents on their way, of agents whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.methods.mentor import (
    Actor,
    TopKMoE,
    TopSet,
    forks,
    perturbed_weights,
    task_conflict,
    task_information,
)

PULLS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])


class Same(nn.Module):
    """An actor that does the same in every state, by its hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        action: Tensor = self.hidden(torch.ones(len(x), 2))
        return action


def player(actor: Any) -> Any:
    """States are the number of their task; the critic pulls as the task says."""
    agent = SimpleNamespace(
        actor=actor,
        features=lambda state, joints: state,
        critic=lambda x, action: (action * PULLS[x[:, 0].long()]).sum(1).expand(2, -1),
    )

    def sample(count: int, task: int) -> Any:
        return SimpleNamespace(state=torch.full((count, 1), float(task))), (None, None)

    return SimpleNamespace(agent=agent, sample=sample, world=SimpleNamespace(tasks=4))


def test_opposed_tasks_have_opposed_gradients() -> None:
    """Tasks that pull apart are at −1; those that pull alike are at +1, which counts as 0."""
    found = task_conflict(player(Same()), [(0, 1), (2, 3)], 5)
    assert found == pytest.approx({"conflict": -0.5, "undefined": 0.0})


class HalfAndHalf(nn.Module):
    """Likes the first two of four experts for the first two tasks, and the others else."""

    def forward(self, z: Tensor) -> Tensor:
        return 3.0 * ((torch.arange(4) < 2) == (z < 2))


def test_experts_tell_tasks_as_far_as_they_differ() -> None:
    actor = SimpleNamespace(trunk=nn.Identity(), policy=nn.Sequential(nn.Identity(), nn.Identity()))
    mixture: Any = TopKMoE(1, 1, 4, 2, 1, 1)
    mixture.gate = HalfAndHalf()
    assert task_information(player(actor), mixture) == pytest.approx(math.log(2))
    mixture.routing = "random"
    assert task_information(player(actor), mixture, 4000) == pytest.approx(0, abs=5e-3)


def test_forks_leave_the_actor_as_it_was() -> None:
    torch.manual_seed(0)
    small = {"experts": 3, "top_k": 2, "hidden": 4, "gate_hidden": 4}
    actor = Actor(6, 0, 2, 5, 8, moe=small)
    before = {name: each.clone() for name, each in actor.state_dict().items()}
    best, latest = TopSet(3), TopSet(3, "latest")
    for members, shift in ((best, 0.0), (latest, 1.0)):
        for score in range(3):
            members.offer(score, [each + shift for each in perturbed_weights([actor])])
    latest.numbers = [2, 7, 8]

    def moved() -> float:
        return (actor.policy[0].weight - before["policy.0.weight"]).abs().mean().item()

    found = forks(actor, best, latest, 0.6, moved)
    assert found["fork_none"] == 0
    assert found["fork_mean"] == pytest.approx(0, abs=1e-6)
    assert found["fork_top"] == pytest.approx(0, abs=1e-6)  # members that agree
    assert found["fork_recent"] == pytest.approx(0.4, abs=1e-5)
    assert found["fresh_recent"] == pytest.approx(1, abs=1e-5)
    assert found["fork_random"] == pytest.approx(0.4 * found["fresh_random"], rel=0.5)
    assert found["shared_share"] == pytest.approx(1 / 3)
    assert all(torch.equal(before[name], each) for name, each in actor.state_dict().items())
