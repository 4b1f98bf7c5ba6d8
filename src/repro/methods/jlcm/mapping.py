"""A weight that is looked up in a codebook, and the gradients that change what is looked up.

The forward pass is hard: ``ŵ = C_m`` with ``m = argmax_l I_l`` for logits I. The codebook gets its
exact gradient, the sum of ``∂L/∂ŵ`` over all weights that have a value. The logits get
``∂L/∂ŵ · K(C_l, C_m)`` with a kernel K: that of the relaxed weight, ``C_l - C_m``, grows with the
distance and so pushes hardest towards the farthest value; JLCM's kernels have the same sign and
decrease with the distance, so that an index moves to a neighbour first.

Suffixes of tensor names: G groups of rows, R rows, N columns, k values of a codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["inv", "exp", "near", "lin", "soft", "sign", "random"]
Shape = Callable[[Tensor, Tensor, Tensor], Tensor]  # (differences, mean gap, rank distance)


def _inv(difference: Tensor, gap: Tensor, _rank: Tensor) -> Tensor:
    """``δ̄²/d``: as large as the linear rule's where d is the mean gap δ̄."""
    safe = torch.where(difference == 0, torch.inf, difference)
    return gap.square() / safe


def _exp(difference: Tensor, gap: Tensor, _rank: Tensor) -> Tensor:
    """``δ̄ exp(-d/δ̄)``."""
    return difference.sign() * gap * torch.exp(-difference.abs() / gap)


def _near(difference: Tensor, gap: Tensor, rank: Tensor) -> Tensor:
    """``δ̄`` for the next value on either side, nothing for others."""
    return difference.sign() * gap * (rank == 1)


def _sign(difference: Tensor, gap: Tensor, _rank: Tensor) -> Tensor:
    """``δ̄`` whatever the distance: the control for a decreasing shape."""
    return difference.sign() * gap


def _lin(difference: Tensor, _gap: Tensor, _rank: Tensor) -> Tensor:
    """``C_l - C_m``: the gradient of the relaxed weight at a hard mapping."""
    return difference


SHAPES: dict[str, Shape] = {"inv": _inv, "exp": _exp, "near": _near, "sign": _sign, "lin": _lin}


def kernel_table(
    tables_Gk: Tensor, kernel: Kernel, generator: torch.Generator | None = None
) -> Tensor:
    """``K[γ, m, l]``, the pull of value l on a weight that has value m, (G, k, k).

    Args:
        tables_Gk: values, in any order.
        kernel: all but ``soft``, which depends on the logits. ``random``: a size drawn uniformly
            from [0, 2δ̄], anew in every call.
        generator: of ``random``.
    """
    difference = tables_Gk[:, None, :] - tables_Gk[:, :, None]
    count = max(tables_Gk.shape[1] - 1, 1)
    gap = ((tables_Gk.amax(1) - tables_Gk.amin(1)) / count).clamp(min=1e-30)[:, None, None]
    if kernel == "random":
        size = torch.rand(difference.shape, generator=generator, device=difference.device)
        return difference.sign() * 2 * gap * size
    rank = tables_Gk.argsort(1).argsort(1)
    distance = (rank[:, None, :] - rank[:, :, None]).abs()
    return SHAPES[kernel](difference, gap, distance)


class _Lookup(torch.autograd.Function):
    """The hard lookup, with the gradients of this module."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_RNk: Tensor,
        tables_Gk: Tensor,
        groups_R: Tensor,
        kernel: Kernel,
        generator: torch.Generator | None,
    ) -> Tensor:
        codes_RN = logits_RNk.argmax(-1)
        places_RN = codes_RN + tables_Gk.shape[1] * groups_R[:, None]
        ctx.save_for_backward(places_RN, tables_Gk, groups_R, logits_RNk)
        ctx.kernel, ctx.generator = kernel, generator
        return tables_Gk.flatten()[places_RN]

    @staticmethod
    def backward(ctx: Any, g_RN: Tensor) -> Any:
        places_RN, tables_Gk, groups_R, logits_RNk = ctx.saved_tensors
        to_logits = to_tables = None
        if ctx.needs_input_grad[1]:
            to_tables = torch.zeros_like(tables_Gk).flatten()
            to_tables.index_add_(0, places_RN.flatten(), g_RN.flatten())
            to_tables = to_tables.view_as(tables_Gk)
        if ctx.needs_input_grad[0]:
            if ctx.kernel == "soft":
                share_RNk = logits_RNk.softmax(-1)
                values_R1k = tables_Gk[groups_R][:, None, :]
                mean_RN1 = (share_RNk * values_R1k).sum(-1, keepdim=True)
                pull_RNk = share_RNk * (values_R1k - mean_RN1)
            else:
                table = kernel_table(tables_Gk, ctx.kernel, ctx.generator)
                pull_RNk = F.embedding(places_RN, table.flatten(0, 1))
            to_logits = g_RN[..., None] * pull_RNk
        return to_logits, to_tables, None, None, None


def mapped(
    logits_RNk: Tensor,
    tables_Gk: Tensor,
    groups_R: Tensor,
    kernel: Kernel = "inv",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Values (R, N) at the largest logits, with a gradient for tables and, by a kernel, for logits.

    Args:
        logits_RNk: I.
        tables_Gk: C, a codebook for each group.
        groups_R: group of each row.
        kernel: ``inv``, ``exp``, ``near`` (decreasing); ``lin``, ``soft`` (the relaxation's);
            ``sign`` and ``random`` (controls).
        generator: of ``random``.
    """
    found: Tensor = _Lookup.apply(logits_RNk, tables_Gk, groups_R, kernel, generator)
    return found


def start_logits(
    weight_RN: Tensor,
    codes_RN: Tensor,
    tables_Rk: Tensor,
    start: Literal["onehot", "distance"],
    size: float,
) -> Tensor:
    """First logits (R, N, k), whose argmax are the given codes.

    Args:
        weight_RN: float weights.
        codes_RN: codes of the nearest values.
        tables_Rk: values, by row.
        start: ``onehot``: `size` for the code and 0 for others; ``distance``:
            ``-|w - C_l| / (size · mean gap)``.
        size: δ, or τ.
    """
    if start == "onehot":
        return size * F.one_hot(codes_RN, tables_Rk.shape[1]).float()
    gap_R = (tables_Rk.amax(1) - tables_Rk.amin(1)) / max(tables_Rk.shape[1] - 1, 1)
    distance_RNk = (weight_RN[..., None] - tables_Rk[:, None, :]).abs()
    return -distance_RNk / (size * gap_R.clamp(min=1e-30))[:, None, None]
