"""What exact gradients and the choice of orders gain over the ways they are published with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from timing import fastest
from torch import Tensor

from repro.methods.bn_marl import (
    CoordinationGame,
    best_permutation,
    conditionals,
    fixed_graph,
    joint_policy,
    logit_shape,
    policy_gradient,
)

pytestmark = pytest.mark.benchmark


def test_gradient_of_five_agents(record_property: Callable[[str, object], None]) -> None:
    """Against solving for Q over all pairs of state and joint action, as the official code does."""
    torch.set_num_threads(1)
    game, G = CoordinationGame(5), fixed_graph("full", 5)
    logits = [
        torch.randn(1, *logit_shape(G, i, 32), dtype=torch.float64, requires_grad=True)
        for i in range(5)
    ]

    def naive() -> tuple[Tensor, ...]:
        joint = joint_policy(conditionals(logits))[0]
        with torch.no_grad():
            step = (game.transition[None, :, :, None] * joint[None, None]).expand(32, -1, -1, -1)
            system = torch.eye(1024).double() - game.gamma * step.reshape(1024, 1024)
            Q = torch.linalg.solve(system, game.reward.repeat_interleave(32)).view(32, 32)
            d = game.occupancy(joint)
        loss = (d[:, None] * Q * joint).sum() / (1 - game.gamma)
        return torch.autograd.grad(loss, logits)

    def ours() -> list[Tensor]:
        return policy_gradient(game, [table.detach() for table in conditionals(logits)])

    for a, b in zip(naive(), ours(), strict=True):
        torch.testing.assert_close(a, b)
    ratio = fastest(naive, 3) / fastest(ours, 20)
    record_property("gradient_over_naive", round(ratio, 1))
    print(f"exact gradient, 5 agents: {ratio:.0f} times as fast as through the system of Q")
    assert ratio > 5


def test_orders_of_three_agents(record_property: Callable[[str, object], None]) -> None:
    """All n! orders at once, against the Hungarian method sample by sample."""
    torch.set_num_threads(1)
    scores = torch.randn(2400, 3, 3)

    def naive() -> list[object]:
        return [linear_sum_assignment(each, maximize=True) for each in scores.numpy()]

    ratio = fastest(naive, 5) / fastest(lambda: best_permutation(scores), 5)
    record_property("orders_over_naive", round(ratio, 1))
    print(f"orders of 3 agents: {ratio:.0f} times as fast as the Hungarian method in a loop")
    assert ratio > 3
