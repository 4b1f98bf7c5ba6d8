"""What turns data into parameter samples: chains, ensembles, or nothing but the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Fraction, NonNegative, Positive, Share, checked
from repro.methods.nn_potential_uq.chains import Loss
from repro.methods.nn_potential_uq.posterior import ForceMatching
from repro.methods.nn_potential_uq.sgmcmc import (
    SGMCMC,
    Noise,
    accepted_steps,
    polynomial_rates,
)
from repro.toolbox.method import Batch


class Sampling:
    """Stochastic-gradient MCMC at one or more posterior temperatures.

    Args:
        names: of the temperatures, from the table.
        table: by name their ``temperature``, ``first`` step size and ``ratio`` of the last to it.
        friction: 1 for SGLD, below for SGHMC.
        preconditioned: whether by RMSprop.
        alpha: of RMSprop.
        damping: λ of the preconditioner.
        burn_in: share of the steps of which no sample is kept.

    Raises:
        UserError: a name is not in the table.
    """

    best = False

    @checked
    def __init__(
        self,
        names: Sequence[str],
        table: Mapping[str, Mapping[str, float]],
        friction: Share = 1.0,
        preconditioned: bool = True,
        alpha: Fraction = 0.9,
        damping: Positive = 1e-5,
        burn_in: Fraction = 0.5,
    ) -> None:
        for name in names:
            if name not in table:
                raise UserError(f"sampling.names: '{name}' is none of {', '.join(table)}.")
        self.names, self.burn_in = list(names), burn_in
        self.rows = [table[name] for name in names]
        self.knobs: dict[str, Any] = {
            "friction": friction,
            "preconditioned": preconditioned,
            "alpha": alpha,
            "damping": damping,
        }

    def temperature(self, name: str) -> float:
        """The posterior temperature of that name."""
        return self.rows[self.names.index(name)]["temperature"]

    def loss(self, posterior: ForceMatching) -> Loss:
        """Minus the log-posterior."""
        return posterior.potential

    def optimizer(
        self, params: list[nn.Parameter], name_M: Tensor, noise: Noise
    ) -> torch.optim.Optimizer:
        """A sampler in which every chain has the temperature of its name."""
        temperatures = torch.tensor([row["temperature"] for row in self.rows])
        T_M1 = temperatures[name_M].to(params[0])[:, None]
        return SGMCMC(params, lr=0.0, temperature=T_M1, noise=noise, **self.knobs)

    def rates(self, steps: int) -> Tensor:
        """Step sizes (steps, names)."""
        tables = [
            polynomial_rates(row["first"], row["first"] * row["ratio"], steps) for row in self.rows
        ]
        return torch.stack(tables, 1)

    def kept(self, steps: int, count: int, generator: torch.Generator) -> Tensor:
        """Steps (names, count) whose parameters are samples, of all chains alike."""
        burn_in = int(self.burn_in * steps)
        rates = self.rates(steps).unbind(1)
        return torch.stack([accepted_steps(each, burn_in, count, generator) for each in rates])


class Ensembling:
    """Adam on the mean squared error, at a rate that falls exponentially.

    Args:
        lr: the first rate.
        final: the last one is so many times the first.
        decay: weight decay, in units of what the prior N(0, 1) amounts to.
        keep: ``best``: each member ends as it was when its validation error was least;
            ``iterates``: iterates of the last half are samples, as those of a chain are.
    """

    names = ("all",)

    @checked
    def __init__(
        self,
        lr: Positive = 0.003,
        final: Share = 0.02,
        decay: NonNegative = 0.0,
        keep: Literal["best", "iterates"] = "best",
    ) -> None:
        self.lr, self.final, self.decay, self.best = lr, final, decay, keep == "best"

    def temperature(self, _: str) -> float:
        """None: nothing is sampled."""
        return 0.0

    def loss(self, posterior: ForceMatching) -> Loss:
        """The error in units of σ's prior mean, with the weight decay."""

        def decayed(theta_MQ: Tensor, batch: Batch, totals_M: Tensor) -> Tensor:
            components = batch[1][0, 0].numel()
            weights = theta_MQ[:, : posterior.network_size].square().sum(1)
            penalty = self.decay * weights / (totals_M * components)
            return posterior.squared_error(theta_MQ, batch) + penalty

        return decayed

    def optimizer(self, params: list[nn.Parameter], _: Tensor, __: Noise) -> torch.optim.Optimizer:
        """Adam, which treats every number of a matrix alike."""
        return torch.optim.Adam(params, lr=self.lr)

    def rates(self, steps: int) -> Tensor:
        """Rates (steps, 1)."""
        return (self.lr * torch.logspace(0, 1, steps, base=self.final))[:, None]

    def kept(self, steps: int, count: int, generator: torch.Generator) -> Tensor:
        """Steps (1, count) of the last half, any of them."""
        return accepted_steps(torch.ones(steps), steps // 2, count, generator)[None]
