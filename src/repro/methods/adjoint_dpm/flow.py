"""The probability-flow ODE of a diffusion process, in the time and in the reparameterised ρ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from repro.knobs import Count, Inside, checked
from repro.methods.adjoint_dpm.adjoint import Gradient, States, solve
from repro.methods.adjoint_dpm.solvers import Field, OneStep, Solver
from repro.toolbox.diffusion import Predictor, VPProcess

Form = Literal["rho", "t"]
Grid = Literal["uniform", "logsnr"]


class Flow(Protocol):
    """One way to write the ODE."""

    def coordinate(self, time: float) -> float:
        """The integration variable at a time."""
        ...

    def scale(self, time: float) -> float:
        """X over the state y at a time."""
        ...

    def field(self, predict: Predictor) -> Field:
        """The rate of y."""
        ...


class TimeFlow:
    """``dx/dt = f x + g² / (2 σ) ε(x, t)``, ``f = -β/2``, ``g² = β``: stiff where σ is small.

    Args:
        process: of the noise.
    """

    def __init__(self, process: VPProcess, _start: float = 1.0) -> None:
        self.process = process

    def coordinate(self, time: float) -> float:
        """The time itself."""
        return time

    def scale(self, _time: float) -> float:
        """One: the state is x."""
        return 1.0

    def field(self, predict: Predictor) -> Field:
        """Drift and noise."""

        def rate(time: float, x: Tensor) -> Tensor:
            beta = self.process.beta(time)
            _, sigma = self.process.signal(time)
            noise = predict(x, _times(x, time))
            return torch.add(-beta / 2 * x, noise, alpha=beta / (2 * sigma))

        return rate


class RhoFlow:
    """``dy/dρ = ε(x, t)`` for ``y = (α_T / α) x`` and ``ρ = α_T σ / α - σ_T``, as in the paper.

    The linear part, which makes the other form stiff, is solved exactly by the change of variables.
    ρ is 0 at the noise and falls to nearly -σ_T at the data; an Euler step is one of DDIM.

    Args:
        process: of the noise.
        start: T, the time of the noise.
    """

    def __init__(self, process: VPProcess, start: float = 1.0) -> None:
        self.process = process
        self.alpha_T, self.sigma_T = process.signal(start)

    def coordinate(self, time: float) -> float:
        """ρ."""
        alpha, sigma = self.process.signal(time)
        return self.alpha_T * sigma / alpha - self.sigma_T

    def scale(self, time: float) -> float:
        """α / α_T."""
        return self.process.signal(time)[0] / self.alpha_T

    def time(self, rho: float) -> float:
        """The time at which ρ has this value."""
        return self.process.time_at(-math.log1p(self._ratio(rho) ** 2))

    def field(self, predict: Predictor) -> Field:
        """The predicted noise."""

        def rate(rho: float, y: Tensor) -> Tensor:
            x = y / (self.alpha_T * math.hypot(1, self._ratio(rho)))
            return predict(x, _times(y, self.time(rho)))

        return rate

    def _ratio(self, rho: float) -> float:
        """σ / α."""
        return (rho + self.sigma_T) / self.alpha_T


FLOWS: dict[str, type[TimeFlow] | type[RhoFlow]] = {"rho": RhoFlow, "t": TimeFlow}


@checked
def time_grid(
    process: VPProcess, steps: Count, kind: Grid = "uniform", end: Inside = 1e-3, start: float = 1.0
) -> list[float]:
    """N + 1 times from the noise to the data.

    Args:
        process: of the noise.
        steps: N. A scheduler's list of N levels makes N - 1 steps.
        kind: even in the time, or in the log signal-to-noise ratio, log(α / σ).
        end: of the data: at 0 the noise cannot be predicted.
        start: of the noise.
    """
    if kind == "uniform":
        return [start + (end - start) * i / steps for i in range(steps + 1)]
    first, last = (math.log(alpha / sigma) for alpha, sigma in map(process.signal, (start, end)))
    inner = (first + (last - first) * i / steps for i in range(1, steps))
    return [start, *(process.time_at(-math.log1p(math.exp(-2 * lam))) for lam in inner), end]


@checked
def sample(
    predict: Predictor,
    x_T: Tensor,
    times: Sequence[float],
    process: VPProcess,
    form: Form = "rho",
    solver: Solver = "euler",
    gradient: Gradient = "adjoint",
    inputs: Sequence[Tensor] = (),
    backward: OneStep | None = None,
    states: States = "saved",
) -> Tensor:
    """The sample x_0 that a noise becomes; its gradients reach the noise and ``inputs``.

    Args:
        predict: the noise in x (B, …) at times (B,). With guidance, the guided one.
        x_T: (B, …), the noise.
        times: falling; see `time_grid`.
        process: that the predictor was trained for.
        form: of the ODE.
        solver: see `solve`; likewise what follows.
        gradient: naive | checkpoint | adjoint.
        inputs: conditions or weights that the predictor reads, if their gradients are wanted.
        backward: of the adjoint ODE.
        states: saved | recomputed.

    Returns:
        x (B, …) at the last time.
    """
    flow: Flow = FLOWS[form](process, times[0])
    grid = [flow.coordinate(time) for time in times]
    field = flow.field(predict)
    y = solve(field, x_T, grid, solver, gradient, inputs, backward, states)
    return y * flow.scale(times[-1])


def _times(x: Tensor, time: float) -> Tensor:
    return x.new_full((len(x),), time)
