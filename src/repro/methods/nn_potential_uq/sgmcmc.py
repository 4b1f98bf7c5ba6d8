"""Stochastic-gradient MCMC with an RMSprop preconditioner, as a PyTorch optimizer.

With g = ∇Ũ, the gradient of minus the log-posterior of *all* data estimated from a batch:

    V ← αV + (1 − α)g²,  V₀ = 1        G = 1 / (λ + √V)
    v ← (1 − f)v − εGg + √(2fεGT) ξ,   ξ ~ N(0, I)        θ ← θ + v

f = 1 is SGLD with RMSprop (Li et al., 2016, without its curvature term Γ), f < 1 is
stochastic-gradient HMC (Chen et al., 2014). V is updated with the gradient that is stepped, and
nothing corrects its start. T multiplies the noise's variance: up to λ and V₀ that equals dividing Ũ
by T, as jax-sgmc does, and T = 0 is allowed: RMSprop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from repro.knobs import Fraction, NonNegative, Positive, Share, checked

Noise = Callable[[Tensor], Tensor]


class SGMCMC(torch.optim.Optimizer):
    """Samples instead of minimising; see the module. Gradients are those of the whole potential.

    Args:
        params: parameters, of one network or of many chains at once.
        lr: ε; a tensor broadcasts with the parameters, (chains, 1) for a rate each.
        temperature: T, likewise.
        friction: f in (0, 1].
        preconditioned: whether G is RMSprop's, or 1.
        alpha: of V.
        damping: λ.
        noise: of a parameter to standard normal numbers of its shape; None: PyTorch's own.
    """

    @checked
    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: NonNegative | Tensor = 0.005,
        temperature: NonNegative | Tensor = 1.0,
        friction: Share = 1.0,
        preconditioned: bool = True,
        alpha: Fraction = 0.9,
        damping: Positive = 1e-5,
        noise: Noise | None = None,
    ) -> None:
        knobs = {"temperature": temperature, "friction": friction, "alpha": alpha}
        defaults = {"lr": lr, "preconditioned": preconditioned, "damping": damping, **knobs}
        super().__init__(params, defaults)
        self.noise = noise or torch.randn_like

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, self.state[parameter], group)
        return loss

    def _move(self, theta: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        gradient, friction = theta.grad, group["friction"]
        assert gradient is not None
        rate: Any = group["lr"]
        if group["preconditioned"]:
            if not state:
                state["square"] = torch.ones_like(theta)
            square = state["square"].mul_(group["alpha"])
            square.addcmul_(gradient, gradient, value=1 - group["alpha"])
            rate = rate / square.sqrt().add_(group["damping"])
        variance = 2 * friction * group["temperature"] * rate  # numbers first: one pass less
        spread = torch.as_tensor(variance).sqrt_()
        move = self.noise(theta).mul(spread).sub_(gradient * rate)
        if friction < 1:
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(theta)
            move = state["velocity"].mul_(1 - friction).add_(move)
        theta.add_(move)


@checked
def polynomial_rates(first: Positive, last: Positive, steps: int, power: Positive = 0.33) -> Tensor:
    """ε_t = a(b + t)^−γ for t = 0 … steps − 1, from the first to the last value.

    Examples:
        >>> rates = polynomial_rates(0.005, 0.000375, 1000)
        >>> [round(float(rates[t]), 7) for t in (0, 1, 10, 100, 999)]
        [0.005, 0.0032868, 0.0016922, 0.0008005, 0.000375]
    """
    if first == last or steps == 1:
        return torch.full((steps,), first)
    slope = (last ** (-1 / power) - first ** (-1 / power)) / (steps - 1)
    a = slope**-power
    b = (first / a) ** (-1 / power)
    return a * (b + torch.arange(steps, dtype=torch.float64)).pow(-power)


def accepted_steps(rates: Tensor, burn_in: int, count: int, generator: torch.Generator) -> Tensor:
    """Steps (count,), rising, whose parameters are kept as samples.

    They are drawn without replacement from those after the burn-in, with probabilities that are
    proportional to their rates.
    """
    weights = rates.clone().double()
    weights[:burn_in] = 0
    return torch.multinomial(weights, count, generator=generator).sort().values
