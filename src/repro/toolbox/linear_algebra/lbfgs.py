"""L-BFGS for many small problems at once: one row of a matrix per problem, no loop over rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
LINE_SEARCH_TRIES = 20


def minimise(
    objective: Objective,
    start_BP: Tensor,
    iterations: int,
    memory: int = 10,
    tolerance: float = 2.2e-9,
) -> tuple[Tensor, Tensor]:
    """Minimises B independent functions of P variables by limited-memory BFGS.

    The inverse Hessian is the compact form of Byrd, Nocedal and Schnabel (1994), equation 3.13;
    the line search is the weak-Wolfe bisection of Lewis and Overton (2013), algorithm 2.6. A row
    that has converged, or that finds no lower value, stays where it is while others go on.

    Args:
        objective: maps points (B, P) to values (B,) and gradients (B, P).
        start_BP: where to start; float64 is advised.
        iterations: most steps of each row.
        memory: pairs of differences that model the curvature.
        tolerance: a row has converged when its value falls by less than this, relative to the
            larger of the value and 1 (SciPy's ``ftol``, same default), or its gradient is zero.

    Returns:
        Points (B, P) and their values (B,).
    """
    B, P = start_BP.shape
    x_BP, (f_B, g_BP) = start_BP, objective(start_BP)
    history = _History(B, P, memory, start_BP)
    moving_B = torch.isfinite(f_B)
    for iteration in range(iterations):
        d_BP = -history.times(g_BP) if iteration else -g_BP
        slope_B = (d_BP * g_BP).sum(1)
        uphill_B = ~(slope_B < 0)
        d_BP = torch.where(uphill_B[:, None], -g_BP, d_BP)
        slope_B = torch.where(uphill_B, -g_BP.square().sum(1), slope_B)
        moving_B = moving_B & (slope_B < 0)
        # Before anything is known of the curvature, a step of length one at most.
        step_B = torch.ones_like(f_B) if iteration else (-slope_B).rsqrt().clamp(max=1)
        lower_B, upper_B = torch.zeros_like(f_B), torch.full_like(f_B, torch.inf)
        for _ in range(LINE_SEARCH_TRIES):
            new_BP = torch.where(moving_B[:, None], x_BP + step_B[:, None] * d_BP, x_BP)
            new_f_B, new_g_BP = objective(new_BP)
            decreased_B = new_f_B <= f_B + SUFFICIENT_DECREASE * step_B * slope_B
            flat_B = (new_g_BP * d_BP).sum(1) >= CURVATURE * slope_B
            if bool((decreased_B & flat_B | ~moving_B).all()):
                break
            # Too long a step lowers the upper end, too short a one raises the lower end.
            upper_B = torch.where(decreased_B, upper_B, step_B)
            lower_B = torch.where(decreased_B & ~flat_B, step_B, lower_B)
            middle_B = torch.where(upper_B.isinf(), 2 * lower_B, (lower_B + upper_B) / 2)
            step_B = torch.where(decreased_B & flat_B, step_B, middle_B)
        moved_B = moving_B & (new_f_B < f_B)
        new_BP = torch.where(moved_B[:, None], new_BP, x_BP)
        new_g_BP = torch.where(moved_B[:, None], new_g_BP, g_BP)
        new_f_B = torch.where(moved_B, new_f_B, f_B)
        largest_B = torch.maximum(f_B.abs(), new_f_B.abs()).clamp(min=1)
        moving_B = moved_B & (f_B - new_f_B > tolerance * largest_B)
        history.add(new_BP - x_BP, new_g_BP - g_BP)
        x_BP, f_B, g_BP = new_BP, new_f_B, new_g_BP
        if not bool(moving_B.any()):
            break
    return x_BP, f_B


class _History:
    """The last pairs (s, y) of each row, oldest first; a row of zeros stands for no pair."""

    def __init__(self, B: int, P: int, memory: int, like: Tensor) -> None:
        self.s_BMP = like.new_zeros(B, memory, P)
        self.y_BMP = like.new_zeros(B, memory, P)
        self.scale_B = like.new_ones(B)

    def add(self, s_BP: Tensor, y_BP: Tensor) -> None:
        """Adds a pair where its curvature is positive, and an empty one elsewhere."""
        sy_B, yy_B = (s_BP * y_BP).sum(1), y_BP.square().sum(1)
        good_B = sy_B > 1e-10 * yy_B
        self.scale_B = torch.where(good_B, sy_B / yy_B, self.scale_B)
        s_BP, y_BP = (torch.where(good_B[:, None], each, 0) for each in (s_BP, y_BP))
        self.s_BMP = torch.cat([self.s_BMP[:, 1:], s_BP[:, None]], 1)
        self.y_BMP = torch.cat([self.y_BMP[:, 1:], y_BP[:, None]], 1)

    def times(self, g_BP: Tensor) -> Tensor:
        """The inverse Hessian times a vector."""
        sy_BMM = self.s_BMP @ self.y_BMP.mT
        curvature_BM = sy_BMM.diagonal(dim1=1, dim2=2)
        # A one for each empty pair keeps R invertible; its zeros in s and y make it harmless.
        R_BMM = sy_BMM.triu() + torch.diag_embed((curvature_BM == 0).to(g_BP.dtype))
        scale_B11 = self.scale_B[:, None, None]
        g_BP1 = g_BP[:, :, None]
        v_BM1 = -torch.linalg.solve_triangular(R_BMM, self.s_BMP @ g_BP1, upper=True)
        yv_BM1 = self.y_BMP @ (self.y_BMP.mT @ v_BM1 + g_BP1)
        right_BM1 = -(curvature_BM[:, :, None] * v_BM1 + scale_B11 * yv_BM1)
        u_BM1 = torch.linalg.solve_triangular(R_BMM.mT, right_BM1, upper=False)
        product_BP1 = scale_B11 * (g_BP1 + self.y_BMP.mT @ v_BM1) + self.s_BMP.mT @ u_BM1
        return product_BP1[:, :, 0]
