"""What exact gradients and the choice of orders gain over the ways they are published with."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from timing import faster
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


def test_gradient_of_five_agents() -> None:
    """Against solving for Q over all pairs of state and joint action, as the official code does."""
    game, G = CoordinationGame(5), fixed_graph("full", 5)
    shapes = [(1, *logit_shape(G, agent, 32)) for agent in range(5)]
    logits = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

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
    faster("the exact gradient for 5 agents, against the system of Q", ours, naive, 5)


def test_orders_of_three_agents() -> None:
    scores = torch.randn(2400, 3, 3)
    faster(
        "orders of 3 agents, against the Hungarian method in a loop",
        lambda: best_permutation(scores),
        lambda: [linear_sum_assignment(each, maximize=True) for each in scores.numpy()],
        3,
    )
