"""Force matching as a likelihood, for many parameter sets of one potential at once.

Shapes: M parameter sets, B states in a batch, Q parameters of the posterior: those of the
network and a log-scale for each kind of target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repro.knobs import Positive, checked
from repro.toolbox.ensembles import Layout, outputs
from repro.toolbox.method import Batch

LOG_2PI = math.log(math.tau)


class ForceMatching:
    """Posterior of a potential's parameters and of the scatter of its targets.

    Every component of a target is Gaussian about the prediction, log N(F; F̂, σ²), with one σ for
    all forces and, where there are any, one for all energies. A σ is exponential a priori, with a
    mean that is typed; θ holds log(σ / mean), 0 at the start, with the Jacobian that goes with it.

    Args:
        model: (B, …) states to energies (B,), with whatever prior potential belongs to it.
        scales: mean of σ by target: ``forces``, and perhaps ``energies``, in their units. A batch
            is (states, forces, energies), as far as they are named.
        prior_std: of the Gaussian of every parameter of the network; None: improper, uniform.
        learn_scales: whether σ is sampled, too; False leaves it at its prior mean.
        stacked: whether the model can be vectorised over parameter sets; False takes one after
            the other, for networks whose graph depends on the state.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        scales: Mapping[str, Positive],
        prior_std: Positive | None = 1.0,
        learn_scales: bool = True,
        stacked: bool = True,
    ) -> None:
        self.model, self.scales = model, dict(scales)
        self.prior_std, self.learn_scales, self.stacked = prior_std, learn_scales, stacked
        self.layout = Layout.of(model)
        self.network_size = sum(self.layout.sizes)

    @property
    def size(self) -> int:
        """Q."""
        return self.network_size + len(self.scales)

    def start(self, seed: int) -> Tensor:
        """Parameters (Q,) of a network that is initialised anew, and log-scales of zero."""
        model = copy.deepcopy(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in reversed(list(model.modules())):  # what contains others resets them last
                reset: Any = getattr(part, "reset_parameters", None)
                if reset is not None:
                    reset()
        return torch.cat([self.layout.vector(model), torch.zeros(len(self.scales))])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Parameters (count, Q) from the prior; a uniform one has none to draw."""
        assert self.prior_std is not None, "a uniform prior cannot be drawn from"
        network = self.prior_std * torch.randn(count, self.network_size, generator=generator)
        scales = torch.empty(count, len(self.scales)).exponential_(generator=generator)
        return torch.cat([network, scales.log()], 1)

    # -- Predictions ------------------------------------------------------------------------------

    def energies(self, theta_MQ: Tensor, x: Tensor) -> Tensor:
        """Energies (M, B) of states (M, B, …)."""
        weights = self.layout.split(theta_MQ[:, : self.network_size])
        if self.stacked:
            return outputs(self.model, weights, x, stacked=True)
        one_by_one = [
            outputs(self.model, {name: each[m] for name, each in weights.items()}, x[m], False)
            for m in range(len(x))
        ]
        return torch.stack(one_by_one)

    def predict(self, theta_MQ: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Forces −∂U/∂x (M, B, …) and energies (M, B) of states (M, B, …)."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energies = self.energies(theta_MQ, x)
            keep = theta_MQ.requires_grad
            (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=keep)
        return {"forces": -slope, "energies": energies if keep else energies.detach()}

    def at(self, theta_MQ: Tensor) -> BoundPotentials:
        """The potentials of M parameter sets, for simulations."""
        return BoundPotentials(self, theta_MQ)

    # -- Densities --------------------------------------------------------------------------------

    def log_scales(self, theta_MQ: Tensor) -> Tensor:
        """log(σ / prior mean) (M, targets)."""
        learned = theta_MQ[:, self.network_size :]
        return learned if self.learn_scales else torch.zeros_like(learned)

    def sigmas(self, theta_MQ: Tensor) -> dict[str, Tensor]:
        """σ (M,) of every target."""
        factors = self.log_scales(theta_MQ).exp().unbind(1)
        return {name: m * f for (name, m), f in zip(self.scales.items(), factors, strict=True)}

    def log_likelihood(self, theta_MQ: Tensor, batch: Batch) -> Tensor:
        """Log p (M, B) of each state's targets; a batch is (M, B, …) each."""
        x, *targets = batch
        predicted, total = self.predict(theta_MQ, x), torch.zeros(())
        for (name, sigma_M), target in zip(self.sigmas(theta_MQ).items(), targets, strict=True):
            residual = (target - predicted[name]).flatten(2) if target.dim() > 2 else (
                (target - predicted[name])[..., None]
            )  # fmt: skip
            squares = (residual / sigma_M[:, None, None]).square().sum(-1)
            normaliser = residual.shape[-1] * (sigma_M.log() + 0.5 * LOG_2PI)
            total = total - 0.5 * squares - normaliser[:, None]
        return total

    def log_prior(self, theta_MQ: Tensor) -> Tensor:
        """Log p(θ) (M,), of the logarithms of the scales; constants are left out."""
        logs = self.log_scales(theta_MQ)
        log_p = (logs - logs.exp()).sum(1)  # exponential density, and the Jacobian
        if self.prior_std is None:
            return log_p
        network = theta_MQ[:, : self.network_size]
        return log_p - 0.5 * (network / self.prior_std).square().sum(1)

    def potential(self, theta_MQ: Tensor, batch: Batch, totals_M: Tensor) -> Tensor:
        """Minus the log-posterior (M,), estimated from a batch; the prior counts once.

        Args:
            theta_MQ: parameters.
            batch: (M, B, …) each.
            totals_M: N, how many training states there are for each parameter set.
        """
        log_p = self.log_likelihood(theta_MQ, batch)
        return -totals_M * log_p.mean(1) - self.log_prior(theta_MQ)

    def squared_error(self, theta_MQ: Tensor, batch: Batch) -> Tensor:
        """Mean squared residual (M,) in units of each prior scale: plain force matching."""
        x, *targets = batch
        predicted = self.predict(theta_MQ, x)
        errors = [
            ((target - predicted[name]) / scale).square().flatten(1).mean(1)
            for (name, scale), target in zip(self.scales.items(), targets, strict=True)
        ]
        return torch.stack(errors).sum(0)


class BoundPotentials:
    """Potentials with their parameters: functions of the state alone.

    Args:
        posterior: of which model.
        theta_MQ: parameters.
    """

    def __init__(self, posterior: ForceMatching, theta_MQ: Tensor) -> None:
        self.posterior, self.theta_MQ = posterior, theta_MQ.detach()

    @property
    def count(self) -> int:
        """M."""
        return len(self.theta_MQ)

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        return self.theta_MQ.device

    def energies(self, x: Tensor, shared: bool = False) -> Tensor:
        """Energies (M, B) of states (M, B, …), or of (B, …) that all of them share."""
        with torch.no_grad():
            return self.posterior.energies(self.theta_MQ, self._each(x, shared))

    def forces(self, x: Tensor, shared: bool = False) -> Tensor:
        """Forces (M, B, …), likewise."""
        return self.posterior.predict(self.theta_MQ, self._each(x, shared))["forces"]

    def _each(self, x: Tensor, shared: bool) -> Tensor:
        x = x.to(self.device)
        return x.expand(self.count, *x.shape) if shared else x
