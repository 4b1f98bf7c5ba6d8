"""A search among so few students that all of them can be trained: how good is what it selects?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from repro.methods.n2n import (
    Architecture,
    Judge,
    Recipe,
    Reinforce,
    Removal,
    RemovalPolicy,
    accuracies,
    read,
    train,
)
from repro.models import MLP

X, Y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
X = X.float() / 16
HELD_OUT = 400


def epochs(epoch: int) -> Iterator[tuple[Tensor, ...]]:
    x, y = X[HELD_OUT:1400], Y[HELD_OUT:1400]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    yield from zip(x[order].split(100), y[order].split(100), strict=True)


def held_out() -> Iterator[tuple[Tensor, ...]]:
    yield X[:HELD_OUT], Y[:HELD_OUT]


@dataclasses.dataclass
class World:
    """A teacher, the judge of its students, and the reward of each by its table of actions."""

    court: Judge
    teacher: Architecture
    rewards: dict[tuple[int, ...], float]

    def of(self, tables: Tensor) -> list[float]:
        return [self.rewards[tuple(each)] for each in tables[:, self.free].tolist()]

    @property
    def free(self) -> Tensor:
        return Removal(keep=[]).free(self.teacher)


@pytest.fixture(scope="module")
def world() -> World:
    """Four hidden layers: three linear layers and four activations are there to be removed."""
    torch.manual_seed(0)
    model, edit = MLP([64], 10, [32] * 4), Removal(keep=[])
    train([model], epochs, Recipe(epochs=10, lr=0.005, loss="labels"))
    (accuracy,) = accuracies([model], held_out())
    court = Judge(model, accuracy, [64], epochs, held_out, Recipe(epochs=2, lr=0.01, weight=0.01))
    teacher = read(model)
    free = edit.free(teacher)
    actions = list(itertools.product((0, 1), repeat=int(free.sum())))
    tables = torch.ones(len(actions), len(free), dtype=torch.int64)
    tables[:, free] = torch.tensor(actions)
    students = [edit.apply(teacher, each) for each in tables]
    rollouts = court.rate(students, court.size(teacher) or 0)
    return World(court, teacher, dict(zip(actions, (r.reward for r in rollouts), strict=True)))


def searched(world: World, learns: bool = True) -> Tensor:
    """The rewards (updates, 5) of the students that a search proposes."""
    torch.manual_seed(1)
    search = Reinforce(RemovalPolicy(Removal(keep=[])), lr=0.01, learns=learns)
    rewards = []
    for update in range(24):
        tables = search.propose(world.teacher, 5, torch.Generator().manual_seed(update))
        rewards.append(world.of(tables))
        search.learn(world.teacher, tables, torch.tensor(rewards[-1]))
    return torch.tensor(rewards)


def test_no_students_company_changes_its_reward(world: World) -> None:
    court, edit = dataclasses.replace(world.court, known={}), Removal(keep=[])
    tables = torch.ones(3, len(edit.free(world.teacher)), dtype=torch.int64)
    tables[0, 2], tables[1, 1], tables[2, 2:5] = 0, 0, 0
    students = [edit.apply(world.teacher, each) for each in tables]
    rollouts = court.rate(students, court.size(world.teacher) or 0)
    assert [each.reward for each in rollouts] == world.of(tables)
    assert rollouts[1].reward == -1  # without an activation it is as large as the teacher


def test_a_policy_selects_one_of_the_best_and_stays_there(world: World) -> None:
    """Of 128 students; chance, which keeps proposing all of them, does neither on average."""
    rewards = torch.tensor(list(world.rewards.values()))
    assert len(rewards) == 2**7
    found, by_chance = searched(world), searched(world, learns=False)
    print(
        f"\nmean of the table {rewards.mean():.2f}, of chance {by_chance.mean():.2f}, of a "
        f"policy at the end {found[-5:].mean():.2f}; best {found.max():.3f} of {rewards.max():.3f}"
    )
    assert found.max() >= rewards.quantile(0.95)
    assert found[-5:].mean() >= rewards.quantile(0.95)
    assert by_chance.mean() < rewards.quantile(0.75)
