"""Explicit solvers on a given grid: Euler, midpoint, RK4, and Adams–Bashforth for uneven steps.

A one-step solver moves a tuple of tensors, so that an augmented state needs no other code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Field = Callable[[float, Tensor], Tensor]
State = tuple[Tensor, ...]
Rates = Callable[[float, State], State]
Solver = Literal["euler", "midpoint", "rk4", "ab2", "ab3", "ab4"]
OneStep = Literal["euler", "midpoint", "rk4"]


def euler(rates: Rates, u: float, h: float, state: State) -> State:
    """The state at ``u + h``, of first order: one evaluation."""
    return moved(state, h, rates(u, state))


def midpoint(rates: Rates, u: float, h: float, state: State) -> State:
    """The state at ``u + h``, of second order: two evaluations."""
    half = moved(state, h / 2, rates(u, state))
    return moved(state, h, rates(u + h / 2, half))


def rk4(rates: Rates, u: float, h: float, state: State) -> State:
    """The state at ``u + h``, of fourth order: four evaluations."""
    k1 = rates(u, state)
    k2 = rates(u + h / 2, moved(state, h / 2, k1))
    k3 = rates(u + h / 2, moved(state, h / 2, k2))
    k4 = rates(u + h, moved(state, h, k3))
    slope = tuple(a + 2 * b + 2 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return moved(state, h / 6, slope)


def moved(state: State, h: float, slope: State) -> State:
    """``state + h slope``."""
    return tuple(torch.add(x, k, alpha=h) for x, k in zip(state, slope, strict=True))


ONE_STEP: dict[str, Callable[[Rates, float, float, State], State]] = {
    "euler": euler,
    "midpoint": midpoint,
    "rk4": rk4,
}


def adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """Weights of the rates at ``nodes``, the latest last, for the step from there to ``end``.

    They integrate the polynomial through the rates, whatever the distances between the nodes:
    ``sum_j w_j (u_j - u)^m = h^(m+1) / (m+1)`` for every power m below their number.
    """
    h = end - nodes[-1]
    powers = np.vander((np.array(nodes) - nodes[-1]) / h, increasing=True).T
    weights: list[float] = (h * np.linalg.solve(powers, 1 / np.arange(1, len(nodes) + 1))).tolist()
    return weights


def walk(field: Field, y: Tensor, grid: Sequence[float], solver: str) -> Iterator[Tensor]:
    """The states at the grid's points after the first.

    Args:
        field: dy/du at u and y.
        y: at the first point.
        grid: points u, rising or falling.
        solver: one of `Solver`; ``ab<k>`` starts with k - 1 steps of RK4.
    """
    if solver in ONE_STEP:
        step = ONE_STEP[solver]
        for u, end in pairwise(grid):
            (y,) = step(lambda u, state: (field(u, *state),), u, end - u, (y,))
            yield y
        return
    order = int(solver.removeprefix("ab"))
    past: deque[tuple[float, Tensor]] = deque(maxlen=order)
    for u, end in pairwise(grid):
        if len(past) + 1 < order:
            seen: list[Tensor] = []

            def noted(u: float, state: State, seen: list[Tensor] = seen) -> State:
                seen.append(field(u, *state))
                return (seen[-1],)

            (y,) = rk4(noted, u, end - u, (y,))
            past.append((u, seen[0]))
        else:
            past.append((u, field(u, y)))
            nodes, slopes = zip(*past, strict=True)
            for weight, slope in zip(adams_bashforth(nodes, end), slopes, strict=True):
                y = torch.add(y, slope, alpha=weight)
        yield y
