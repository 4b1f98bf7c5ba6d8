"""Rewards by hand, students trained side by side as if alone, and judged once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repro.methods.n2n.judge as judging
from repro.methods.n2n import (
    INVALID,
    Judge,
    Layer,
    Limit,
    Recipe,
    accuracies,
    compression_reward,
    fresh,
    read,
    reward,
    train,
)
from repro.models import MLP

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def epochs(epoch: int) -> Iterator[tuple[Tensor, ...]]:
    order = torch.randperm(96, generator=torch.Generator().manual_seed(epoch))
    yield from zip(X[order].split(32), Y[order].split(32), strict=True)


def network(*hidden: int) -> nn.Module:
    return fresh(read(MLP([6], 3, hidden, batch_norm=True)), [6], seed=1)


def test_rewards_by_hand() -> None:
    assert [compression_reward(c) for c in (0, 0.5, 0.9)] == pytest.approx([0, 0.75, 0.99])
    assert reward(100, 0.9, 100, 0.9) == 0
    assert reward(50, 0.9, 100, 0.9) == pytest.approx(0.75)
    assert reward(50, 0.45, 100, 0.9) == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("update", "expected"),
    [(0, 0.6), (7.5, 0.0625 - 1 + 0.0625 * 0.6), (15, -1), (100, -1)],
)
def test_a_soft_limit_becomes_hard(update: float, expected: float) -> None:
    limit = Limit(parameters=10, enforce="soft")
    assert limit.apply(0.6, 11, 0.5, update) == pytest.approx(expected)  # type: ignore[arg-type]
    assert limit.apply(0.6, 10, 0.5, update) == 0.6  # type: ignore[arg-type]


def test_limits_on_size_and_accuracy() -> None:
    limit = Limit(parameters=10, accuracy=0.8, enforce="hard")
    assert [limit.holds(10, 0.8), limit.holds(11, 0.9), limit.holds(9, 0.7)] == [True, False, False]
    assert limit.apply(0.6, 11, 0.9, 0) == INVALID
    assert Limit(parameters=10).apply(0.6, 11, 0.9, 99) == 0.6  # only observed


def test_the_losses_by_hand() -> None:
    logits, z = torch.randn(4, 3), torch.randn(4, 3)
    y = torch.tensor([0, 1, 2, 0])
    hard = F.cross_entropy(logits, y)
    soft = sum((logits - z).square().sum(1)) / 4
    torch.testing.assert_close(Recipe(loss="both", weight=0.3).of(logits, y, z), hard + 0.3 * soft)
    torch.testing.assert_close(Recipe(loss="logits").of(logits, y, z), soft)
    torch.testing.assert_close(Recipe(loss="labels").of(logits, y, z), hard)
    torch.testing.assert_close(Recipe(loss="both").of(logits, y, None), hard)


def test_students_trained_side_by_side_end_as_if_alone() -> None:
    teacher, recipe = network(8), Recipe(epochs=2, lr=0.01)
    together = [network(5), network(4, 4)]
    train(together, epochs, recipe, teacher)
    alone = [network(5), network(4, 4)]
    for student in alone:
        train([student], epochs, recipe, teacher)
    for one, other in zip(together, alone, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
        assert not one.training


def test_training_is_adam_on_the_loss() -> None:
    student, twin, teacher = network(5), network(5), network(8)
    recipe = Recipe(epochs=3, lr=0.02, weight_decay=0.1, weight=0.5, schedule="cosine")
    train([student], epochs, recipe, teacher)
    optimizer = torch.optim.Adam(twin.parameters(), 0.02, weight_decay=0.1)
    twin.train()
    teacher.eval()
    for epoch, rate in enumerate((0.02, 0.015, 0.005)):
        optimizer.param_groups[0]["lr"] = rate
        for x, y in epochs(epoch):
            logits = twin(x)
            distance = (logits - teacher(x).detach()).square().sum(1).mean()
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + 0.5 * distance).backward()
            optimizer.step()
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_released_statistics_come_from_the_first_epoch() -> None:
    after = []
    for epochs_made in (1, 3):
        student = network(5)
        train([student], epochs, Recipe(epochs=epochs_made, frozen_statistics=True))
        after.append({n: v for n, v in student.state_dict().items() if "running" in n})
    assert all(map(torch.equal, after[0].values(), after[1].values()))


def test_accuracy_by_hand() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    batches = [(x[:3], torch.tensor([0, 1, 1])), (x[3:], torch.tensor([0]))]
    assert accuracies([model], batches) == [0.75]


TEACHER = read(MLP([6], 3, [8, 7], batch_norm=True))
SMALLER = [TEACHER[:start] + TEACHER[start + 3 :] for start in (1, 4)]  # without a hidden layer


def judge(**knobs: Any) -> Judge:
    held_out = [(X[:10], Y[:10])]
    recipe = Recipe(epochs=1, lr=0.01)
    return Judge(network(8, 7), 0.5, [6], epochs, lambda: held_out, recipe, **knobs)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many students each call of `train` gets."""
    counts: list[int] = []

    def counted(students: list[nn.Module], *rest: Any) -> None:
        counts.append(len(students))
        train(students, *rest)

    monkeypatch.setattr(judging, "train", counted)
    return counts


def test_each_architecture_is_trained_once(trained: list[int]) -> None:
    court = judge()
    first = court.rate([*SMALLER, SMALLER[0]], update=3)
    again = court.rate(SMALLER, update=4)
    assert trained == [2, 0]
    assert len(court.known) == 2
    assert first[0] == first[2]
    assert [each.update for each in (*first, *again)] == [3, 3, 3, 4, 4]
    assert [each.reward for each in first[:2]] == [each.reward for each in again]


def test_rollouts_by_hand() -> None:
    court = judge(limit=Limit(parameters=100))
    (rollout, other) = court.rate(SMALLER)
    sizes = [6 * n + n + 2 * n + n * 3 + 3 for n in (7, 8)]
    assert [rollout.parameters, other.parameters] == sizes
    whole = sum(each.numel() for each in court.guide.parameters())
    student = court.student(SMALLER[0])
    train([student], epochs, court.recipe, court.guide)
    (accuracy,) = accuracies([student], [(X[:10], Y[:10])])
    assert rollout.accuracy == accuracy
    assert rollout.reward == pytest.approx(reward(sizes[0], accuracy, whole, 0.5))
    assert rollout.within
    assert not judge(limit=Limit(parameters=86)).rate(SMALLER[:1])[0].within
    assert judge(parameters=10 * whole).rate(SMALLER)[0].reward > rollout.reward


def test_what_is_no_smaller_or_impossible_is_not_trained(trained: list[int]) -> None:
    court = judge(least_inputs=5)
    whole = court.size(TEACHER)
    assert whole is not None
    narrow = (TEACHER[0], Layer("linear", 4), Layer("linear", 3))
    found = court.rate([TEACHER, narrow], whole)
    assert trained == [0]
    assert [each.reward for each in found] == [INVALID, INVALID]
    assert not any(each.valid for each in found)
    assert court.size(narrow) is None


def test_repetitions_and_seeds_are_other_students() -> None:
    first, again = judge(seed=1), judge(seed=1)
    weights = [
        next(each.parameters())
        for each in (
            *(first.student(SMALLER[0]), again.student(SMALLER[0])),
            *(first.student(SMALLER[0], repeat=1), judge(seed=2).student(SMALLER[0])),
        )
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_what_is_known_is_gone_on_from(trained: list[int]) -> None:
    known: dict[str, float] = {}
    judge(known=known).rate(SMALLER)
    judge(known=known).rate(SMALLER)
    assert trained == [2, 0]
