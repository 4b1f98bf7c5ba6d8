"""Many chains, or members of an ensemble, trained side by side: one matrix of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repro.methods.nn_potential_uq.posterior import BoundPotentials
from repro.toolbox.method import Batch

Loss = Callable[[Tensor, Batch, Tensor], Tensor]


class Chains:
    """M parameter sets that never see each other, each with batches of its own.

    Args:
        loss: of parameters (M, Q), a batch (M, B, …) and totals (M,) to losses (M,), such as
            `ForceMatching.potential`.
        theta_MQ: where they start.
        optimizer: called with the matrix as its only parameter; must work element by element.
        data: training tensors (N, …), states first.
        totals_M: how many of them, from the first on, each chain may see; None: all.
        batch_size: B, drawn with replacement.
    """

    def __init__(
        self,
        loss: Loss,
        theta_MQ: Tensor,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        data: Batch,
        totals_M: Tensor | None = None,
        batch_size: int = 32,
    ) -> None:
        self.loss, self.data, self.batch_size = loss, data, batch_size
        self.theta_MQ = nn.Parameter(theta_MQ.clone())
        self.optimizer = optimizer([self.theta_MQ])
        total = torch.full((len(theta_MQ),), len(data[0]))
        self.totals_M = (total if totals_M is None else totals_M).to(theta_MQ.device)

    def draw(self, generator: torch.Generator | None = None) -> Batch:
        """A batch (M, B, …) for each chain."""
        unit_MB = torch.rand(len(self.theta_MQ), self.batch_size, generator=generator)
        rows_MB = (unit_MB.to(self.totals_M.device) * self.totals_M[:, None]).long()
        return tuple(each[rows_MB] for each in self.data)

    def step(self, batch: Batch) -> Tensor:
        """One update of all chains; returns their losses (M,) before it."""
        losses_M = self.loss(self.theta_MQ, batch, self.totals_M)
        (self.theta_MQ.grad,) = torch.autograd.grad(losses_M.sum(), self.theta_MQ)
        self.optimizer.step()
        return losses_M.detach()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"theta": self.theta_MQ.detach(), "optimizer": self.optimizer.state_dict()["state"]}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a `state`."""
        with torch.no_grad():
            self.theta_MQ.copy_(state["theta"])
        whole = self.optimizer.state_dict() | {"state": state["optimizer"]}
        self.optimizer.load_state_dict(whole)


def propagate(
    at: Callable[[Tensor], BoundPotentials],
    theta_SQ: Tensor,
    observe: Callable[[BoundPotentials, torch.Generator, Tensor], dict[str, Tensor]],
    generator: torch.Generator,
    states: Tensor,
    together: int = 256,
) -> dict[str, Tensor]:
    """Observables (S, bins) of S parameter samples, each simulated on its own.

    Args:
        at: such as `ForceMatching.at`.
        theta_SQ: samples, of all chains.
        observe: potentials, a generator and states to observables (M, bins) by name.
        generator: of the simulations' noise.
        states: (N, …), of the data, for simulations to start from.
        together: most samples simulated at once.
    """
    parts = [observe(at(part), generator, states) for part in theta_SQ.split(together)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
