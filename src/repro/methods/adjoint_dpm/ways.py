"""Ways to a gradient through a sampler: the method's, its rivals', and those that do without.

Tensors: B examples; noises x_T and samples x_0 have any shape behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from repro.knobs import Count, Inside, checked
from repro.methods.adjoint_dpm.adjoint import States, integrate_adjoint
from repro.methods.adjoint_dpm.flow import Form, Grid, RhoFlow, TimeFlow, sample, time_grid
from repro.methods.adjoint_dpm.solvers import OneStep, Solver, walk
from repro.toolbox.diffusion import Predictor, VPProcess

Way = Literal[
    "rho", "t", "checkpoint", "naive", "naive_t",
    "t_rho", "identity", "last_step", "one_step", "random",
]  # fmt: skip
WAYS: tuple[str, ...] = get_args(Way)
# Form of the ODE and its gradient, of those ways that are a sampler's own.
SAMPLERS: dict[str, tuple[Form, Any]] = {
    "rho": ("rho", "adjoint"),
    "t": ("t", "adjoint"),
    "checkpoint": ("rho", "checkpoint"),
    "naive": ("rho", "naive"),
    "naive_t": ("t", "naive"),
}
OTHER = 2**31  # random directions are not the noise that the same seed makes elsewhere


class Pulled(NamedTuple):
    """A sample, its loss, and the gradients of noise and inputs."""

    x_0: Tensor
    loss: Tensor
    at_noise: Tensor
    at_inputs: list[Tensor]


@checked
@dataclass(frozen=True)
class Sampling:
    """A sampler of the probability-flow ODE, and how gradients come back through it.

    Attributes:
        process: of the noise.
        steps: N intervals.
        grid: of the times, uniform | logsnr.
        end: the last of them.
        solver: of the way forward.
        backward: of the adjoint ODE; None: see `solve`.
        states: of the adjoint ODE, saved | recomputed.
    """

    process: VPProcess
    steps: Count = 20
    grid: Grid = "uniform"
    end: Inside = 1e-3
    solver: Solver = "euler"
    backward: OneStep | None = None
    states: States = "saved"

    @property
    def times(self) -> list[float]:
        """N + 1, falling."""
        return time_grid(self.process, self.steps, self.grid, self.end)

    def draw(self, predict: Predictor, x_T: Tensor, way: str = "rho") -> Tensor:
        """The samples of a way, without gradients."""
        form = SAMPLERS[way][0] if way in SAMPLERS else "rho"
        with torch.no_grad():
            return sample(predict, x_T, self.times, self.process, form, self.solver, "naive")

    def gradients(
        self,
        way: str,
        predict: Predictor,
        x_T: Tensor,
        loss: Callable[[Tensor], Tensor],
        inputs: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> Pulled:
        """The gradients of a loss of the samples.

        ``rho`` and ``t`` are adjoints of either form; ``checkpoint`` and ``naive`` backpropagate
        through the sampler in ρ, ``naive_t`` in t. The rest samples in ρ: ``t_rho`` solves the
        adjoint of the other form on these states, ``identity`` takes the (scaled) gradient of x_0
        for that of x_T, ``last_step`` backpropagates through one step, ``one_step`` through one
        that leads from x_T to the end at once, and ``random`` are directions.

        Args:
            way: see above.
            predict: the noise in x (B, …) at times (B,).
            x_T: (B, …).
            loss: of samples, a scalar.
            inputs: what else a gradient is wanted of.
            seed: of random directions.
        """
        x_T = x_T.detach().requires_grad_()
        if way in SAMPLERS:
            form, gradient = SAMPLERS[way]
            x_0 = sample(
                predict, x_T, self.times, self.process, form, self.solver, gradient, inputs,
                self.backward, self.states,
            )  # fmt: skip
            value = loss(x_0)
            return Pulled(x_0.detach(), value.detach(), *_split(_grad(value, [x_T, *inputs])))
        x_0 = self.draw(predict, x_T).requires_grad_()
        value = loss(x_0)
        (v,) = torch.autograd.grad(value, x_0)
        found = self._without(
            way, predict, x_T, v, inputs, torch.Generator().manual_seed(OTHER + seed)
        )
        return Pulled(x_0.detach(), value.detach(), *_split(found))

    def _without(
        self,
        way: str,
        predict: Predictor,
        x_T: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        draws: torch.Generator,
    ) -> Sequence[Tensor]:
        """Gradients by ways that are no sampler's own, from the gradient v of x_0."""
        times, flow, wanted = self.times, RhoFlow(self.process), [x_T, *inputs]
        if way == "identity":
            return [flow.scale(self.end) * v, *map(torch.zeros_like, inputs)]
        if way == "random":
            return [torch.randn(x.shape, generator=draws).to(x) for x in wanted]
        if way == "last_step":
            with torch.no_grad():
                x = sample(predict, x_T, times[:-1], self.process, gradient="naive")
            end = sample(predict, x, times[-2:], self.process, gradient="naive")
            return _grad(end, wanted, v)
        if way == "one_step":
            end = sample(predict, x_T, [times[0], self.end], self.process, gradient="naive")
            return _grad(end, wanted, v)
        assert way == "t_rho"
        with torch.no_grad():
            grid = [flow.coordinate(time) for time in times]
            states = [x_T, *walk(flow.field(predict), x_T, grid, self.solver)]
        states = [y * flow.scale(time) for y, time in zip(states, times, strict=True)]
        field = TimeFlow(self.process).field(predict)
        return integrate_adjoint(field, times, states, v, inputs, self.backward or "euler")


def _grad(end: Tensor, wanted: Sequence[Tensor], v: Tensor | None = None) -> tuple[Tensor, ...]:
    if not end.requires_grad:
        return tuple(map(torch.zeros_like, wanted))
    return torch.autograd.grad(end, wanted, v, allow_unused=True, materialize_grads=True)


def _split(gradients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return gradients[0], list(gradients[1:])
