"""Exact Bayesian-network policies for tabular cooperative games of binary agents.

A conditional π^i(a^i | s, a^P) is a table with one axis per agent: of length 2 for agent i itself
and for its parents, of length 1 for everybody else. The joint policy is then nothing but the
broadcast product of the conditionals, and marginals are sums over axes.

Axes: ``...`` independent starts, S states, then the n agents' actions (or A = 2ⁿ joint actions).
State and joint action are numbered with agent 0 as the most significant bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Fraction, Natural, checked

# Largest |#0 − #1| that still counts as miscoordination (official code).
TOLERANCES = {2: 1, 3: 1, 5: 2, 10: 3}


class CoordinationGame(nn.Module):
    """The paper's coordination game, with exact values, occupancies and best responses.

    A state is n bits; each bit of the next state is the agent's action, flipped with probability
    ``flip``, whatever the state was. The reward of a state with z zeros and o ones is
    ``1 if z < o else 0`` where ``|z − o| ≤ tolerance``, otherwise 3 where zeros and 2 where ones
    prevail: two coordinated optima, of which one is better.

    Args:
        agents: n, at least 2; tables grow with 4ⁿ.
        flip: probability ε in [0, 0.5] that an action comes out as its opposite.
        gamma: discount γ in [0, 1).
        tolerance: the paper's l; None for the official value (n = 2, 3, 5 or 10).
        normalise_start: False weights each of the 2ⁿ start states with 1/n, as the official code
            does, which scales J and with it the effective step; True with 2⁻ⁿ.

    Raises:
        UserError: a knob is out of its range.
    """

    bits: Tensor
    reward: Tensor
    transition: Tensor
    start: Tensor

    @checked
    def __init__(
        self,
        agents: Annotated[int, Ge(2)] = 2,
        flip: Annotated[float, Ge(0), Le(0.5)] = 0.1,
        gamma: Fraction = 0.95,
        tolerance: Natural | None = None,
        normalise_start: bool = False,
    ) -> None:
        super().__init__()
        if tolerance is None and agents not in TOLERANCES:
            known = ", ".join(map(str, TOLERANCES))
            raise UserError(
                f"bn_marl: the paper gives no tolerance for {agents} agents (only for {known}): "
                "set method.tolerance."
            )
        self.agents, self.flip, self.gamma = agents, flip, gamma
        self.tolerance = TOLERANCES[agents] if tolerance is None else tolerance
        self.states = 2**agents
        place_n = 2 ** torch.arange(agents - 1, -1, -1)
        bits = (torch.arange(self.states)[:, None] // place_n) % 2
        # T(s' | a): agreement of each bit of s' with the action behind it.
        agree_ASn = bits[:, None] == bits[None]
        weight = 1 / self.states if normalise_start else 1 / agents
        tables = {
            "bits": bits,
            "reward": coordination_reward(bits, self.tolerance).double(),
            "transition": (flip + (1 - 2 * flip) * agree_ASn.double()).prod(-1),
            "start": torch.full((self.states,), weight, dtype=torch.float64),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self._optimum: float | None = None

    def value(self, joint: Tensor) -> Tensor:
        """V = (I − γ P_π)⁻¹ r of a joint policy (..., S, A); returns (..., S). Differentiable."""
        P = joint @ self.transition
        system = torch.eye(self.states).to(P) - self.gamma * P
        return torch.linalg.solve(system, self.reward.expand(P.shape[:-1]))

    def quality(self, value: Tensor) -> Tensor:
        """Q(s, a) = r(s) + γ Σ_s' T(s' | a) V(s'); (..., S) to (..., S, A)."""
        following_A = value @ self.transition.T
        return self.reward[:, None] + self.gamma * following_A[..., None, :]

    def occupancy(self, joint: Tensor) -> Tensor:
        """D = (1−γ)(I − γ P_πᵀ)⁻¹ μ, the discounted state occupancy (..., S)."""
        P = joint @ self.transition
        system = torch.eye(self.states).to(P) - self.gamma * P.mT
        return (1 - self.gamma) * torch.linalg.solve(system, self.start.expand(P.shape[:-1]))

    def objective(self, joint: Tensor) -> Tensor:
        """J = μᵀ V of joint policies (..., S, A); returns (...)."""
        return self.value(joint) @ self.start

    def optimum(self) -> float:
        """J* of the best joint policy: the best constant one, as T does not depend on the state."""
        if self._optimum is None:
            constant = torch.eye(self.states).to(self.reward)[:, None]
            joint = constant.expand(-1, self.states, -1)
            self._optimum = float(self.objective(joint).max())
        return self._optimum

    def best_response(
        self, conditionals: Sequence[Tensor], agent: int, visible: Sequence[int] = ()
    ) -> Tensor:
        """J when one agent answers optimally to the others' conditionals, by policy iteration.

        Args:
            conditionals: of all agents, see `conditionals`.
            agent: who deviates. Its children still react to what it does.
            visible: the agents whose actions it may look at: nobody, as in the official code, or
                any of its non-descendants, e.g. its parents.

        Returns:
            The value (...) of the best deviation.
        """
        others: Tensor | float = 1.0
        for i, table in enumerate(conditionals):
            if i != agent:
                others = others * table
        shape = torch.broadcast_shapes(*(table.shape for table in conditionals))
        batch = len(shape) - self.agents
        others = torch.as_tensor(others).expand(shape)
        hidden = [batch + j for j in range(self.agents) if j != agent and j not in visible]
        choice = conditionals[agent].expand(shape)  # where to start from does not matter
        best = self.objective(self._flat(others * choice))
        # Each round is an exact evaluation and a greedy improvement: it ends after finitely many.
        while True:
            value = self.value(self._flat(others * choice))
            Q = self.quality(value).view(*shape[:batch], *[2] * self.agents)
            gain = (others * Q).sum(hidden, keepdim=True) if hidden else others * Q
            first = gain.select(batch + agent, 0) >= gain.select(batch + agent, 1)
            choice = torch.stack([first, ~first], batch + agent).double()
            better = self.objective(self._flat(others * choice))
            if not (better > best + 1e-12 * best.abs()).any():
                return torch.maximum(better, best)
            best = torch.maximum(better, best)

    def nash_gaps(
        self, conditionals: Sequence[Tensor], G: Tensor, see_parents: bool = False
    ) -> Tensor:
        """Per agent, what it gains by its best deviation: (..., n).

        Args:
            conditionals: of all agents.
            G: adjacency (n, n).
            see_parents: True for deviations that use the parents' actions, which is the class of
                the policy itself (all gaps are then ≥ 0); False for those that use the state
                alone, as published. A root agent's gap is the same in both.
        """
        J = self.objective(joint_policy(conditionals))
        gaps = []
        for i in range(self.agents):
            visible = G[:, i].nonzero().flatten().tolist() if see_parents else ()
            gaps.append(self.best_response(conditionals, i, visible) - J)
        return torch.stack(gaps, -1)

    def _flat(self, table: Tensor) -> Tensor:
        return table.reshape(*table.shape[: -self.agents], self.states)


def coordination_reward(bits: Tensor, tolerance: int) -> Tensor:
    """Reward (...) of states given as bits (..., n)."""
    ones = bits.sum(-1)
    zeros = bits.shape[-1] - ones
    mixed = (zeros < ones).float()
    agreed = torch.where(zeros > ones, 3.0, 2.0)
    return torch.where((zeros - ones).abs() <= tolerance, mixed, agreed)


def logit_shape(G: Tensor, agent: int, states: int) -> tuple[int, ...]:
    """Shape of an agent's table of logits: (S, then 2 for itself and its parents, 1 for others)."""
    n = len(G)
    return (states, *(2 if j == agent or G[j, agent] else 1 for j in range(n)))


def conditionals(logits: Sequence[Tensor]) -> list[Tensor]:
    """Softmax of each agent's logits over its own action; the i-th of the last n axes is its own.

    Args:
        logits: per agent (..., S, *axes) as `logit_shape` says.
    """
    n = len(logits)
    return [table.softmax(i - n) for i, table in enumerate(logits)]


def joint_policy(conditionals: Sequence[Tensor]) -> Tensor:
    """π(a | s) = Π_i π^i(a^i | s, a^P(i)): the broadcast product, as a table (..., S, A)."""
    n = len(conditionals)
    joint = conditionals[0]
    for table in conditionals[1:]:
        joint = joint * table
    return joint.expand(*joint.shape[:-n], *[2] * n).reshape(*joint.shape[:-n], 2**n)


def policy_gradient(game: CoordinationGame, tables: Sequence[Tensor]) -> list[Tensor]:
    """The paper's gradient of J with respect to each agent's logits, in closed form.

    ``∂J/∂θ^i = 1/(1−γ) · d(s) · π(a^P | s) · π^i(a^i | s, a^P) · A^i(s, a^P, a^i)`` with
    ``A^i = E[Q | s, a^P, a^i] − E[Q | s, a^P]``; both expectations are sums over the axes of
    agents that are neither i nor a parent of it.

    Args:
        game: the game.
        tables: conditionals of all agents.

    Returns:
        One tensor per agent, of the shape of its conditional.
    """
    n, joint = game.agents, joint_policy(tables)
    Q = game.quality(game.value(joint))
    weight = game.occupancy(joint)[..., None] / (1 - game.gamma)
    flow = (weight * joint * Q).view(*joint.shape[:-1], *[2] * n)
    gradients = []
    for i, own in enumerate(tables):
        hidden = [axis for axis in range(-n, 0) if own.shape[axis] == 1]
        # d(s) π(a^P) π^i(a^i | a^P) E[Q | s, a^P, a^i], divided by 1 − γ.
        gained = flow.sum(hidden, keepdim=True) if hidden else flow
        gradients.append(gained - own * gained.sum(i - n, keepdim=True))
    return gradients
