"""Gradients of an ODE's solution: kept by autograd, recomputed by steps, or by the adjoint ODE."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repro.errors import UserError
from repro.knobs import checked
from repro.methods.adjoint_dpm.solvers import ONE_STEP, Field, OneStep, Solver, State, walk

Gradient = Literal["naive", "checkpoint", "adjoint"]
States = Literal["saved", "recomputed"]


@checked
def solve(
    field: Field,
    y0: Tensor,
    grid: Sequence[float],
    solver: Solver = "euler",
    gradient: Gradient = "adjoint",
    inputs: Sequence[Tensor] = (),
    backward: OneStep | None = None,
    states: States = "saved",
) -> Tensor:
    """The solution of ``dy/du = field(u, y)`` at the grid's last point, to be differentiated.

    ``naive`` lets autograd keep the activations of all steps. ``checkpoint`` keeps the states at
    the grid's points, and has the same gradient: steps are made again on the way back.
    ``adjoint`` keeps as little and solves, from the last point to the first,

        da/du = -aᵀ ∂field/∂y,    dg/du = -aᵀ ∂field/∂input

    (the paper's augmented ODE), of which the gradients are the ends: those of the ODE's exact
    solution in the limit of small steps.

    Args:
        field: of a point and a state (any shape), returns the state's rate.
        y0: the state at the first point.
        grid: the points, rising or falling.
        solver: of the way forward.
        gradient: see above.
        inputs: other tensors that ``field`` reads and whose gradients are wanted: conditions,
            weights. Naive gradients reach whatever it reads.
        backward: solver of the adjoint ODE; None: that of the way forward, or RK4 where that has
            several steps. Each of its evaluations is one of the field, and one product with its
            Jacobian.
        states: the adjoint ODE starts every interval from the ``saved`` state, or solves for y,
            too, with nothing but the last state kept (``recomputed``).

    Returns:
        The state at the last point. Gradients of its gradients only exist if naive.

    Raises:
        UserError: steps that depend on those before cannot be made again one by one.
    """
    if gradient == "naive":
        (end,) = deque(walk(field, y0, grid, solver), maxlen=1)
        return end
    if gradient == "checkpoint" and solver not in ONE_STEP:
        raise UserError(
            f"gradient=checkpoint repeats single steps, which solver={solver} has not: "
            f"choose {', '.join(ONE_STEP)}, or gradient=adjoint."
        )
    way_back, reverse = repeat_steps, solver
    if gradient == "adjoint":
        way_back, reverse = integrate_adjoint, backward or (solver if solver in ONE_STEP else "rk4")
    keep_all = gradient == "checkpoint" or states == "saved"
    plan = _Plan(field, tuple(grid), solver, way_back, reverse, keep_all)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    solution: Tensor = _Solve.apply(plan, y0, *wanted)
    return solution


def integrate_adjoint(
    field: Field,
    grid: Sequence[float],
    states: Sequence[Tensor],
    a: Tensor,
    inputs: Sequence[Tensor] = (),
    solver: str = "euler",
) -> State:
    """Solves the adjoint ODE from the last point to the first.

    Args:
        field: see `solve`; likewise the grid.
        grid: N + 1 points.
        states: of y, at all of them; or one, that at the last, from which the others are solved.
        a: the gradient with respect to the last state.
        inputs: other tensors whose gradients are wanted.
        solver: one of `ONE_STEP`.

    Returns:
        The gradients with respect to the first state and each of the inputs.
    """

    def rates(u: float, state: State) -> State:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            slope = field(u, y)
        return slope.detach(), *_pulled(slope, y, inputs, -state[1])

    y, sums = states[-1], tuple(torch.zeros_like(each) for each in inputs)
    for i in range(len(grid) - 1, 0, -1):
        y, a, *rest = ONE_STEP[solver](rates, grid[i], grid[i - 1] - grid[i], (y, a, *sums))
        sums = tuple(rest)
        if len(states) > 1:
            y = states[i - 1]
    return a, *sums


def repeat_steps(
    field: Field,
    grid: Sequence[float],
    states: Sequence[Tensor],
    a: Tensor,
    inputs: Sequence[Tensor] = (),
    solver: str = "euler",
) -> State:
    """Makes every step again, the last one first, and differentiates it.

    Args, what is returned: see `integrate_adjoint`; all states are needed.
    """
    sums = tuple(torch.zeros_like(each) for each in inputs)
    for i in range(len(grid) - 1, 0, -1):
        with torch.enable_grad():
            y = states[i - 1].detach().requires_grad_()
            (end,) = walk(field, y, grid[i - 1 : i + 1], solver)
        a, *pulled = _pulled(end, y, inputs, a)
        sums = tuple(total + each for total, each in zip(sums, pulled, strict=True))
    return a, *sums


@dataclass(frozen=True)
class _Plan:
    """What is the same on both ways."""

    field: Field
    grid: tuple[float, ...]
    solver: str
    way_back: Callable[..., State]
    reverse: str
    keep_all: bool


class _Solve(torch.autograd.Function):
    """The way forward keeps states and no activations."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, y0: Tensor, *inputs: Tensor) -> Tensor:
        states = [y0, *walk(plan.field, y0, plan.grid, plan.solver)]
        kept = states if plan.keep_all else states[-1:]
        ctx.plan, ctx.count = plan, len(kept)
        ctx.save_for_backward(*kept, *inputs)
        return states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        states, inputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        return None, *plan.way_back(plan.field, plan.grid, states, a, inputs, plan.reverse)


def _pulled(end: Tensor, y: Tensor, inputs: Sequence[Tensor], a: Tensor) -> State:
    """``aᵀ ∂end/∂(y, inputs)``; zeros for what ``end`` does not depend on."""
    return torch.autograd.grad(end, (y, *inputs), a, allow_unused=True, materialize_grads=True)
