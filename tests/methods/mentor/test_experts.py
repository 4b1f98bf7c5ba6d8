"""The mixture against a plain loop over experts, and dormancy and its rules against arithmetic."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.mentor import (
    StackedLinear,
    TopKMoE,
    conflict,
    dormant_neurons,
    dormant_ratio,
    exploitation_weight,
    exploration_noise,
    gradient_cosines,
    kept_share,
    mutual_information,
    recorded_layers,
)

N, K, D, A, B = 6, 2, 5, 3, 40


def mixture(**knobs: object) -> TopKMoE:
    torch.manual_seed(1)
    settings = {"experts": N, "top_k": K, "hidden": 4, "gate_hidden": 7} | knobs
    return TopKMoE(D, A, **settings).eval()  # type: ignore[arg-type]


def plain(moe: TopKMoE, x: Tensor) -> Tensor:
    """Sample by sample and expert by expert; the softmax is over the kept logits alone."""
    rows = []
    for each in x:
        values, chosen = moe.gate(each[None])[0].topk(moe.top_k)
        row = torch.zeros(A)
        for weight, i in zip(values.softmax(0), chosen.tolist(), strict=True):
            first, second = moe.experts[0], moe.experts[2]
            assert isinstance(first, StackedLinear)
            assert isinstance(second, StackedLinear)
            hidden = F.relu(F.linear(each, first.weight[i], first.bias[i]))
            row = row + weight * F.linear(hidden, second.weight[i], second.bias[i])
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2, N])
def test_the_mixture_equals_a_loop_over_experts(k: int) -> None:
    moe, x = mixture(top_k=k), torch.randn(B, D)
    torch.testing.assert_close(moe(x), plain(moe, x))
    seen = torch.randn(B, A)
    ours = torch.autograd.grad((moe(x) * seen).sum(), list(moe.parameters()))
    theirs = torch.autograd.grad((plain(moe, x) * seen).sum(), list(moe.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_all_experts_are_the_dense_mixture_and_one_is_itself() -> None:
    x = torch.randn(B, D)
    moe = mixture(top_k=N)
    ours = moe(x)
    moe.routing = "dense"
    torch.testing.assert_close(ours, moe(x))
    alone = mixture(experts=1, top_k=1)
    torch.testing.assert_close(alone(x), alone.experts(x)[0])


def test_experts_that_are_not_chosen_learn_nothing() -> None:
    moe, x = mixture(), torch.randn(1, D)
    moe(x).sum().backward()
    assert moe.gates is not None
    chosen = set(moe.gates[0].topk(K).indices.tolist())
    gradient = moe.experts[2].weight.grad
    assert isinstance(gradient, Tensor)
    moved = {i for i in range(N) if gradient[i].abs().sum() > 0}
    assert moved == chosen


def test_the_order_of_experts_does_not_matter() -> None:
    moe, x = mixture(), torch.randn(B, D)
    before, order = moe(x), torch.randperm(N)
    with torch.no_grad():
        for part in [*moe.experts.parameters(), *moe.gate[-1].parameters()]:
            part.copy_(part[order].clone())
    torch.testing.assert_close(moe(x), before)


def test_random_routing_draws_experts_anew_and_keeps_gates() -> None:
    moe, x = mixture(routing="random"), torch.randn(B, D)
    (_, first), (_, second) = moe.route(x), moe.route(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort(1).values, second.sort(1).values)
    assert (first > 0).sum(1).tolist() == [K] * B


def test_gates_drop_out_in_training_alone() -> None:
    moe, x = mixture(dropout=0.5), torch.randn(B, D)
    assert torch.equal(moe(x), moe(x))
    moe.train()
    assert not torch.equal(moe(x), moe(x))


def test_the_auxiliary_loss_of_gates_that_are_equal() -> None:
    moe = mixture(top_k=N)
    with torch.no_grad():
        for part in moe.gate[-1].parameters():
            part.zero_()
    moe(torch.randn(B, D))
    assert moe.auxiliary_loss().item() == pytest.approx(math.log(N))


def test_only_entropy_of_the_auxiliary_loss_has_a_gradient() -> None:
    moe, x = mixture(), torch.randn(B, D)
    moe(x)
    assert moe.gates is not None
    load = F.one_hot(moe.gates.topk(K).indices, N).sum(1).float().mean(0)
    assert float(load.sum()) == pytest.approx(K)
    entropy = torch.distributions.Categorical(moe.gates).entropy().mean()
    torch.testing.assert_close(moe.auxiliary_loss(), load.var() + entropy)
    weights = list(moe.gate.parameters())
    ours = torch.autograd.grad(moe.auxiliary_loss(), weights, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(entropy, weights))


def test_gates_that_are_sure_have_a_gradient() -> None:
    """Gates of exactly 0, by underflow, whose entropy alone has an infinite slope."""
    moe = mixture()
    with torch.no_grad():
        [*moe.gate.parameters()][-1].copy_(200.0 * torch.arange(N))
    moe(torch.randn(B, D)).sum().backward(retain_graph=True)
    moe.auxiliary_loss().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in moe.parameters())


def test_a_mixture_that_has_answered_can_be_copied() -> None:
    moe, x = mixture(), torch.randn(B, D)
    torch.testing.assert_close(moe(x), copy.deepcopy(moe)(x))


def test_a_mixture_of_too_few_experts_is_refused() -> None:
    with pytest.raises(UserError, match="top_k=7 is more than its experts=6"):
        mixture(top_k=7)


# -- Dormancy --------------------------------------------------------------------------------------


def test_neurons_below_a_share_of_the_mean_are_dormant() -> None:
    assert not dormant_neurons(torch.ones(B, 4)).any()
    output = torch.tensor([1.0, -0.01, 0.0, 1.0]).repeat(B, 1)
    assert dormant_neurons(output).tolist() == [False, True, True, False]
    assert torch.equal(dormant_neurons(output), dormant_neurons(1e4 * output))
    stacked = torch.stack([output, torch.ones(B, 4)])
    assert dormant_neurons(stacked).tolist() == [[False, True, True, False], [False] * 4]


def test_the_ratio_counts_after_a_relu_and_raw_outputs_elsewhere() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        weight, bias, *_ = net.parameters()
        weight.fill_(0.1)
        bias.copy_(torch.tensor([-9.0, -9.0, -9.0, 9.0, 9.0, 9.0]))
    x = torch.rand(B, 4)
    found = [
        dormant_ratio(recorded_layers(net, layers), lambda: net(x))
        for layers in ("all", "relu_only")
    ]
    assert found == pytest.approx([3 / 8, 3 / 6])  # before the ReLU there would be none
    assert list(recorded_layers(net)) == [net[1], net[2]]


def test_every_expert_is_counted() -> None:
    moe, sizes = mixture(), []
    for each in recorded_layers(moe):
        each.register_forward_hook(lambda _, __, out: sizes.append(dormant_neurons(out).numel()))
    moe(torch.randn(B, D))
    assert sorted(sizes) == sorted([N * 4, N * A, 7, N])


def test_what_dormancy_sets() -> None:
    assert [kept_share(b, most=0.9) for b in (0, 0.2, 0.4, 1)] == pytest.approx(
        [0.9, 0.6, 0.2, 0.2]
    )
    assert exploration_noise(0.2, 0.8) == pytest.approx(0.4)
    assert exploration_noise(0.0, 0.8) == pytest.approx(0.8 / (1 + math.e**2))
    assert exploitation_weight(0.2, 0.6) == pytest.approx(0.3)
    assert exploitation_weight(0.0, 0.6) == pytest.approx(0.6, abs=1e-4)
    assert exploitation_weight(1.0, 0.6) == pytest.approx(0.0, abs=1e-9)


# -- Measures --------------------------------------------------------------------------------------


def test_cosines_of_gradients() -> None:
    w = torch.zeros(3, requires_grad=True)
    pulls = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    cosines = gradient_cosines([(w * pull).sum() for pull in pulls], [w])
    assert cosines[0, 1] == pytest.approx(-1)
    assert cosines[0, 2] == pytest.approx(math.sqrt(0.5))
    assert cosines[0, 3].isnan()
    assert conflict(cosines, [(0, 1), (0, 2)]) == pytest.approx(-0.5)
    assert conflict(cosines, [(0, 1), (0, 3)]) == pytest.approx(-1)


def test_information_equals_that_of_scikit_learn() -> None:
    table = torch.tensor([[5, 0, 1], [2, 2, 2], [0, 0, 9]])
    pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(int(table[i, j]))]
    assert mutual_information(table) == pytest.approx(mutual_info_score(*zip(*pairs, strict=True)))
    assert mutual_information(torch.ones(4, 6)) == pytest.approx(0, abs=1e-12)
