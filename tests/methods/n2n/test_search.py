"""REINFORCE against enumeration of all students; what each of the released faults does."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import repro.methods.n2n as n2n
from repro.errors import UserError
from repro.methods.n2n import (
    Budget,
    HillClimbing,
    Reinforce,
    Removal,
    RemovalPolicy,
    Search,
    Shrinkage,
    ShrinkagePolicy,
    describe,
    read,
)
from repro.models import MLP

TEACHER = read(MLP([4], 3, [6, 5]))  # linear, ReLU, linear, ReLU, linear: three may be removed
Policy = RemovalPolicy | ShrinkagePolicy


def removal_policy(**knobs: Any) -> RemovalPolicy:
    torch.manual_seed(0)
    return RemovalPolicy(Removal(keep=[]), **knobs).double()


def shrinkage_policy(**knobs: Any) -> ShrinkagePolicy:
    torch.manual_seed(0)
    edit = Shrinkage([0.3, 0.5, 1.0], ["outputs"], least_width=1, keep=[])
    return ShrinkagePolicy(edit, **knobs).double()


POLICIES: list[Callable[..., Policy]] = [removal_policy, shrinkage_policy]
of_each_policy = pytest.mark.parametrize("make", POLICIES)


def all_tables(policy: Policy) -> Tensor:
    """Every table whose entries that change nothing hold the action that changes nothing."""
    free = policy.edit.free(TEACHER)
    tables = []
    for actions in itertools.product(range(policy.edit.choices), repeat=int(free.sum())):
        table = torch.full(free.shape, policy.edit.identity)
        table[free] = torch.tensor(actions)
        tables.append(table)
    return torch.stack(tables)


def probabilities(policy: Policy, tables: Tensor) -> Tensor:
    log_probs, _ = policy.log_probs(TEACHER, tables)
    return (log_probs * policy.edit.free(TEACHER)).flatten(1).sum(1).exp()


def rewards_of(tables: Tensor) -> Tensor:
    """Some reward, the same for the same table."""
    weights = torch.arange(1, tables[0].numel() + 1, dtype=torch.float64)
    return (tables.flatten(1) * weights).sum(1).cos()


def gradients(policy: Policy, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(policy.parameters())))


@of_each_policy
def test_all_students_together_have_probability_one(make: Callable[[], Policy]) -> None:
    policy = make()
    tables = all_tables(policy)
    assert len(tables) == (8 if make is removal_policy else 9)
    assert probabilities(policy, tables).sum().item() == pytest.approx(1)


@of_each_policy
def test_samples_come_as_often_as_they_are_probable(make: Callable[[], Policy]) -> None:
    policy = make()
    tables = all_tables(policy)
    drawn = policy.sample(TEACHER, 4000, torch.Generator().manual_seed(1))
    found = (drawn[:, None] == tables[None]).flatten(2).all(2).double()
    assert (found.sum(1) == 1).all()
    p = probabilities(policy, tables).detach()
    chi_square = 4000 * ((found.mean(0) - p).square() / p).sum()
    assert chi_square < 3 * len(tables)


@of_each_policy
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_expected_gradient_is_that_of_the_expected_reward(
    make: Callable[[], Policy], baseline: float
) -> None:
    search = Reinforce(make())
    tables = all_tables(search.policy)
    rewards, p = rewards_of(tables), probabilities(search.policy, tables)
    enumerated = gradients(search.policy, (p * rewards).sum())
    p = probabilities(search.policy, tables).detach()
    # The mean over tables, each as often as it is probable.
    loss = search.loss(TEACHER, tables, len(tables) * p * (rewards - baseline))
    for ours, exact in zip(gradients(search.policy, loss), enumerated, strict=True):
        torch.testing.assert_close(-ours, exact)


def test_a_baseline_lowers_the_variance() -> None:
    search = Reinforce(removal_policy())
    tables = all_tables(search.policy)
    p, rewards = probabilities(search.policy, tables).detach(), 5 + rewards_of(tables)

    def variance(baseline: float) -> float:
        total = 0.0
        for table, weight, reward in zip(tables, p, rewards, strict=True):
            loss = search.loss(TEACHER, table[None], (reward - baseline)[None])
            total += float(weight * sum(g.square().sum() for g in gradients(search.policy, loss)))
        return total

    assert variance(float((p * rewards).sum())) < 0.1 * variance(0)


def test_entropy_is_ascended_where_asked_for() -> None:
    policy = removal_policy(keep_rate=0.9)
    search = Reinforce(policy, entropy=0.5)
    none = torch.zeros(1, dtype=torch.float64)
    table = policy.sample(TEACHER, 1, torch.Generator())
    loss = search.loss(TEACHER, table, none)
    rate = torch.tensor(0.9, dtype=torch.float64)
    binary = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
    assert float(loss) == pytest.approx(-0.5 * float(binary))
    assert search.learn(TEACHER, table, none)["entropy"] == pytest.approx(float(binary))


def test_the_baseline_is_an_average_of_earlier_batches() -> None:
    search = Reinforce(removal_policy(), decay=0.8)
    assert search.advantages(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]  # its own mean at first
    assert search.advantages(torch.tensor([2.0, 7.0])).tolist() == [0, 5]
    # 0.8 of 2, 0.2 of 4.5.
    assert search.advantages(torch.tensor([2.5, 2.5])).tolist() == pytest.approx([0, 0])


def test_the_released_baseline_lacks_a_term() -> None:
    search = Reinforce(removal_policy(), baseline="released")
    for mean, baseline in ((2.0, 0.0), (4.0, 2 / 2), (6.0, (2 + 4) / 3), (0.0, (2 + 4 + 6) / 4)):
        found = search.advantages(torch.tensor([mean - 1, mean + 1]))
        assert found.tolist() == pytest.approx([mean - 1 - baseline, mean + 1 - baseline])


def test_the_released_advantage_does_not_say_who_was_good() -> None:
    search = Reinforce(removal_policy(), advantage="shared")
    search.advantages(torch.tensor([0.25, 0.25]))
    assert search.advantages(torch.tensor([1.0, 0.0])).tolist() == [0.25, 0.25]
    own = Reinforce(removal_policy())
    own.advantages(torch.tensor([0.25, 0.25]))
    assert own.advantages(torch.tensor([1.0, 0.0])).tolist() == [0.75, -0.25]


def moved(search: Reinforce, tables: Tensor, rewards: Tensor) -> set[str]:
    """The parameters that one update changes."""
    before = {name: each.detach().clone() for name, each in search.policy.named_parameters()}
    search.advantages(torch.zeros(2))  # a first batch, so that b is 0
    search.learn(TEACHER, tables, rewards)
    after = dict(search.policy.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@of_each_policy
def test_every_parameter_learns(make: Callable[..., Policy]) -> None:
    search = Reinforce(make())
    tables = all_tables(search.policy)
    everything = {name for name, _ in search.policy.named_parameters()}
    assert moved(search, tables, rewards_of(tables)) == everything
    random = Reinforce(make(), learns=False)
    assert moved(random, tables, rewards_of(tables)) == set()


def test_the_released_cells_do_not_learn() -> None:
    search = Reinforce(shrinkage_policy(frozen_cells=True))
    tables = all_tables(search.policy)
    assert moved(search, tables, rewards_of(tables)) == {"head.weight", "head.bias"}


def test_an_update_for_each_rollout_is_another_than_one_for_all() -> None:
    ends = []
    for steps in ("batch", "rollout"):
        search = Reinforce(removal_policy(), steps=steps)
        tables = all_tables(search.policy)
        moved(search, tables, rewards_of(tables))
        ends.append(search.optimizer.state_dict()["state"][0]["step"])
    assert ends == [1, 8]


def test_which_entries_are_reinforced() -> None:
    free = Removal(keep=[]).free(TEACHER)
    table = torch.zeros(1, len(free), dtype=torch.int64)
    counted = {}
    for kind in ("free", "all", "forced"):
        search = Reinforce(removal_policy(), reinforced=kind)
        log_probs, _ = search.policy.log_probs(TEACHER, table)
        counted[kind] = float(search.loss(TEACHER, table, torch.ones(1)))
        expected = {"free": free, "all": free | True, "forced": ~free}[kind]
        assert counted[kind] == pytest.approx(float(-log_probs[0, expected].sum()))
    assert counted["all"] == pytest.approx(counted["free"] + counted["forced"])


def test_only_the_released_code_draws_what_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    for make in POLICIES:
        free = make().edit.free(TEACHER)
        ours = Reinforce(make()).propose(TEACHER, 20, generator)[:, ~free]
        released = Reinforce(make(), reinforced="all").propose(TEACHER, 20, generator)[:, ~free]
        assert (ours == make().edit.identity).all()
        assert not (released == make().edit.identity).all()


def test_what_a_policy_reads() -> None:
    raw = describe(TEACHER, raw=True)
    assert raw.tolist() == [[5, 0, 0, 6, 0], [3, 0, 0, 0, 0], [5, 0, 0, 5, 0], [3, 0, 0, 0, 0],
                            [5, 0, 0, 3, 0]]  # fmt: skip
    assert describe(TEACHER).max() <= 1
    assert describe(TEACHER, skips=True).shape == (5, 7)


def test_a_shrinkage_policy_sees_what_it_decided() -> None:
    edit = Shrinkage([0.5, 1.0], ["kernel", "outputs", "padding"], keep=[])
    policy = ShrinkagePolicy(edit, raw=True)
    teacher = (n2n.Layer("conv", 40, 3, 1, 1), n2n.Layer("relu"), n2n.Layer("linear", 3))
    table = torch.tensor([[[0, 0, 1], [1, 1, 1], [1, 1, 1]]])
    x_SF = policy.inputs(teacher, table)[0]
    assert x_SF[:4].tolist() == [
        [1, 3, 1, 40, 1, 1],
        [1, 1.5, 1, 40, 1, 0.5],
        [1, 1.5, 1, 20, 1, 0.5],
        [3, 0, 0, 0, 0, 1],
    ]


def test_a_keep_rate_is_every_layers() -> None:
    policy = removal_policy(keep_rate=0.8)
    assert policy.keep_rate(TEACHER) == pytest.approx(0.8)
    p = policy.distribution(TEACHER)[:, 1].exp()
    torch.testing.assert_close(p, torch.full_like(p, 0.8))


def searched(search: Search, updates: int) -> list[float]:
    """Mean rewards of updates towards one student, which keeps every second layer."""
    teacher = read(MLP([4], 3, [128] * 4))
    free = search.edit.free(teacher)
    wanted = torch.arange(int(free.sum())) % 2 == 0
    means = []
    for update in range(updates):
        tables = search.propose(teacher, 5, torch.Generator().manual_seed(update))
        rewards = (tables[:, free] == wanted).float().mean(1)
        search.learn(teacher, tables, rewards)
        means.append(float(rewards.mean()))
    return means


def test_a_policy_finds_a_known_optimum() -> None:
    """Without a bonus on entropy it keeps everything, which is four of seven, and stays there."""
    torch.manual_seed(0)
    means = searched(Reinforce(RemovalPolicy(Removal(keep=[])), lr=0.01, entropy=0.3), 90)
    assert max(means[:5]) < 0.8
    assert min(means[-10:]) >= 0.95


def test_hill_climbing_finds_it_too() -> None:
    search = HillClimbing(Removal(keep=[]))
    searched(search, 30)
    assert search.reward == 1


def test_hill_climbing_changes_one_place_and_keeps_the_best() -> None:
    search = HillClimbing(Shrinkage([0.5, 0.7, 1.0], ["outputs"], 1, []))
    tables = search.propose(TEACHER, 6, torch.Generator().manual_seed(0))
    assert ((tables != 2).flatten(1).sum(1) == 1).all()
    search.learn(TEACHER, tables, torch.tensor([0.0, 2.0, 1.0, 0.0, 0.0, 0.0]))
    search.learn(TEACHER, tables.roll(1, 0), torch.tensor([0.0, 1.5, 1.0, 0.0, 0.0, 0.0]))
    assert search.best is not None
    assert torch.equal(search.best, tables[1])
    twin = HillClimbing(search.edit)
    twin.remember(search.memory())
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert torch.equal(
        *(s.propose(TEACHER, 4, g) for s, g in zip((search, twin), generators, strict=True))
    )


def test_a_search_goes_on_where_it_was() -> None:
    def update(search: Reinforce, number: int) -> None:
        tables = search.propose(TEACHER, 3, torch.Generator().manual_seed(number))
        search.learn(TEACHER, tables, rewards_of(tables))

    straight, stopped = Reinforce(removal_policy()), Reinforce(removal_policy())
    for number in range(4):
        update(straight, number)
    for number in range(2):
        update(stopped, number)
    resumed = Reinforce(RemovalPolicy(Removal(keep=[])).double())
    resumed.load_state_dict(stopped.state_dict())
    resumed.remember(stopped.memory())
    for number in range(2, 4):
        update(resumed, number)
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_budget_is_spent_by_whichever_comes_first() -> None:
    budget = Budget(updates=10, trainings=20, least_entropy=0.3)
    assert not budget.is_spent(9, 19, 0.4)
    assert budget.is_spent(10, 0, 0.4)
    assert budget.is_spent(0, 20, 0.4)
    assert budget.is_spent(0, 0, 0.2)
    assert not Budget(updates=10).is_spent(9, 10_000, 0.0)


def test_searches_refuse_to_train() -> None:
    with pytest.raises(UserError, match="paper=n2n"):
        Reinforce(removal_policy()).attach(MLP([4], 3))


def test_the_plain_loop_of_the_docstring() -> None:
    assert doctest.testmod(n2n).failed == 0
    assert doctest.testmod(n2n.rewards).failed == 0
