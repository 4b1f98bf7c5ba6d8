"""Tabular softmax gradient play from many random starts at once, with exact gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.knobs import Count, Fraction, Known, Natural, Positive, checked
from repro.methods.bn_marl.graphs import FIXED, fixed_graph
from repro.methods.bn_marl.layers import clip_each
from repro.methods.bn_marl.tabular import (
    CoordinationGame,
    conditionals,
    joint_policy,
    logit_shape,
    policy_gradient,
)

CONVERGED = 0.99  # a start has found the optimum when its POA is above this


class GradientPlay(nn.Module):
    """Ascends the exact J of coordination games under a Bayesian-network policy.

    Args:
        agents: one game is played for each of these numbers of agents.
        graph: see `fixed_graph`.
        starts: random starts of every game, logits from N(0, 1).
        updates: gradient steps in the whole training; ``poa_rise`` refers to its half.
        max_norm: of a start's gradient.
        flip: see `CoordinationGame`; likewise the rest.
        gamma: discount.
        tolerance: the paper's l, of all games.
        normalise_start: False for the official start weights.

    Raises:
        UserError: a knob is out of its range.
    """

    progress: Tensor

    @checked
    def __init__(
        self,
        agents: Sequence[Annotated[int, Ge(2)]] = (2, 3, 5),
        graph: Annotated[str, Known(FIXED)] = "full",
        starts: Count = 1,
        updates: Count = 2000,
        max_norm: Positive = 1e3,
        flip: Annotated[float, Ge(0), Le(0.5)] = 0.1,
        gamma: Fraction = 0.95,
        tolerance: Natural | None = None,
        normalise_start: bool = False,
    ) -> None:
        super().__init__()
        self.updates, self.max_norm = updates, max_norm
        self.games = nn.ModuleList(
            CoordinationGame(n, flip, gamma, tolerance, normalise_start) for n in agents
        )
        self.graphs = [fixed_graph(graph, n) for n in agents]
        self.logits = nn.ModuleList(
            nn.ParameterList(
                torch.randn(starts, *logit_shape(G, i, 2 ** len(G)), dtype=torch.float64)
                for i in range(len(G))
            )
            for G in self.graphs
        )
        self.register_buffer("progress", torch.zeros((), dtype=torch.int64))
        # What the claims about progress need: POA half-way and the first NE gaps, (games, starts).
        self.register_buffer("midway", self.poa())
        self.register_buffer("first_gap", self.nash_gap())

    midway: Tensor
    first_gap: Tensor

    def tables(self, k: int) -> list[nn.Parameter]:
        """Logits of all agents in one of the games."""
        return list(cast(nn.ParameterList, self.logits[k]))

    def policies(self, k: int) -> list[Tensor]:
        """Conditionals of all agents in one of the games."""
        return conditionals(self.tables(k))

    @torch.no_grad()
    def poa(self) -> Tensor:
        """J(π) / J* of every game and start: (games, starts), in (0, 1]."""
        values = [
            game.objective(joint_policy(self.policies(k))) / game.optimum()
            for k, game in enumerate(self._games())
        ]
        return torch.stack(values)

    @torch.no_grad()
    def nash_gap(self) -> Tensor:
        """The largest gain of any agent by deviating alone, as a share of J*: (games, starts)."""
        gaps = [
            game.nash_gaps(self.policies(k), self.graphs[k]).amax(-1) / game.optimum()
            for k, game in enumerate(self._games())
        ]
        return torch.stack(gaps)

    def _games(self) -> list[CoordinationGame]:
        return cast(list[CoordinationGame], list(self.games))

    @torch.no_grad()
    def advance(self, optimizer: Optimizer, updates: int = 1) -> dict[str, Tensor]:
        """Takes gradient steps in all games; returns the loss −J / J*, a mean, before the last.

        Args:
            optimizer: over all parameters of this module.
            updates: how many steps.
        """
        for _ in range(updates):
            for k, game in enumerate(self._games()):
                tables = self.tables(k)
                gradient = policy_gradient(game, self.policies(k))
                for table, ascent in zip(tables, gradient, strict=True):
                    table.grad = -ascent
                clip_each(tables, self.max_norm)
            optimizer.step()
            self.progress += 1
            if int(self.progress) == self.updates // 2:
                self.midway.copy_(self.poa())
        return {"loss": -self.poa().mean()}

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Numbers over starts, game by game (``_n<agents>``), and the mean POA of all games.

        ``poa``: mean; ``poa_median``; ``above``: share of starts whose POA is over 0.99; ``gap``:
        median NE gap; ``gap_share``: that over the median gap at the start; ``poa_rise``: mean POA
        gained in the second half of training.
        """
        poa, gap = self.poa(), self.nash_gap()
        measured = {"poa": poa.mean()}
        for k, G in enumerate(self.graphs):
            n = len(G)
            measured[f"poa_n{n}"] = poa[k].mean()
            measured[f"poa_median_n{n}"] = poa[k].median()
            measured[f"above_n{n}"] = (poa[k] > CONVERGED).double().mean()
            measured[f"gap_n{n}"] = gap[k].median()
            measured[f"gap_share_n{n}"] = gap[k].median() / self.first_gap[k].median()
            measured[f"poa_rise_n{n}"] = (poa[k] - self.midway[k]).mean()
        return measured
