"""Sets of agents and what is drawn from them, against arithmetic and moments."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repro.methods.mentor import TopKMoE, TopSet, candidate, perturb, perturbed_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), TopKMoE(5, 3, 3, 2, 4, 4))


def members(net: nn.Module, count: int, spread: float) -> TopSet:
    found = TopSet(count)
    for score in range(count):
        other = copy.deepcopy(net)
        for each in other.parameters():
            each.data += spread * torch.randn_like(each)
        found.offer(float(score), perturbed_weights([other]))
    return found


def test_linear_layers_alone_are_moved() -> None:
    net = network()
    moved = perturbed_weights([net])
    norm = {id(each) for each in net[1].parameters()}
    assert {id(each) for each in net.parameters()} - norm == {id(each) for each in moved}


@pytest.mark.parametrize("rule", ["random", "top", "mean"])
def test_all_kept_is_bitwise_the_same(rule: str) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    perturb(perturbed_weights([net]), 1.0, rule, members(net, 3, 0.1))  # type: ignore[arg-type]
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


def test_members_that_agree_are_returned() -> None:
    net, other = network(), network()
    agreed = members(other, 3, 0.0)
    perturb(perturbed_weights([net]), 0.0, "top", agreed)
    for ours, theirs in zip(perturbed_weights([net]), perturbed_weights([other]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    half = network()
    before = [each.detach().clone() for each in perturbed_weights([half])]
    perturb(perturbed_weights([half]), 0.25, "mean", agreed)
    for now, old, new in zip(
        perturbed_weights([half]), before, perturbed_weights([other]), strict=True
    ):
        torch.testing.assert_close(now, 0.25 * old + 0.75 * new)


def test_a_fresh_start_is_orthogonal_expert_by_expert() -> None:
    net = network()
    perturb(perturbed_weights([net]), 0.0, "random")
    weights = perturbed_weights([net])
    for matrix in [each for w in weights[::2] for each in w.detach().view(-1, *w.shape[-2:])]:
        small = min(matrix.shape)
        gram = matrix @ matrix.T if matrix.shape[0] == small else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(small), atol=1e-5, rtol=0)
    assert not any(bias.any() for bias in weights[1::2])


def test_draws_have_the_moments_of_the_members_element_by_element() -> None:
    torch.manual_seed(0)
    net = network()
    known = members(net, 5, 1.0)
    weights = perturbed_weights([net])
    draws = torch.stack([candidate("top", weights, known)[0] for _ in range(4000)])
    mean, deviation = (each[0] for each in known.moments())
    torch.testing.assert_close(draws.mean(0), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), deviation, atol=0, rtol=0.1)
    one, two = draws[:, 0, 0], draws[:, 0, 1]  # not one number for a whole tensor
    assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_members_move_nothing(count: int) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    perturb(
        perturbed_weights([net]), 0.0, "top", members(network(), count or 1, 1.0) if count else None
    )
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


def test_the_best_stay_and_the_latest_come() -> None:
    weight = torch.zeros(1)
    best, latest = TopSet(3), TopSet(3, "latest")
    lowest = []
    for score in [4.0, 1.0, 2.0, 1.0, 3.0, 0.0, 9.0, 3.0]:
        weight.fill_(score)
        best.offer(score, [weight])
        latest.offer(score, [weight])
        lowest.append(min(best.scores))
    assert sorted(best.scores) == [3.0, 4.0, 9.0]
    assert latest.scores == [0.0, 9.0, 3.0]
    assert best.numbers == [0, 4, 6]  # a tie replaces nobody
    assert latest.numbers == [5, 6, 7]
    assert lowest[2:] == sorted(lowest[2:])
    assert [float(each[0]) for each in latest.members] == latest.scores  # copies
    again = TopSet(3)
    again.load_state_dict(best.state_dict())
    assert again.scores == best.scores
    again.offer(99.0, [weight])
    assert sorted(best.scores) == [3.0, 4.0, 9.0]
