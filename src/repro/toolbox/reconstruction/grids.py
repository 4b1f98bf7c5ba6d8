"""Grids: which values a quantised weight may take, and how a grid is fitted to a weight.

A grid maps *positions* to weights, ``w = scale · g(position)``, with ``g`` odd and increasing.
Whole positions from ``low`` to ``high`` are the grid; the positions between them are what gradients
move through. Everything is element by element, with one scale per tensor or per output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import checked

SHRINK = [1 - 0.01 * i for i in range(80)]  # the search of BRECQ's code
NORM = 2.4  # of the error that the search minimises, likewise
EXPONENTS = [0.1 * i for i in range(1, 11)]  # of the power grid


class Grid(nn.Module):
    """The uniform grid: g is the identity, so the levels are ``low·Δ, …, high·Δ``.

    An asymmetric grid has ``low = -z``: what others write ``(clip(⌊w/Δ⌉ + z, 0, 2^b - 1) - z)·Δ``
    is here ``clip(⌊w/Δ⌉, low, high)·Δ``.

    Args:
        scale: Δ, broadcastable to the weight.
        low: lowest whole position, broadcastable to the weight.
        high: highest whole position.
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: Tensor, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def shape(self, position: Tensor) -> Tensor:
        """The odd function g."""
        return position

    def position(self, weight: Tensor) -> Tensor:
        """Where a weight lies: the inverse of `weight`, neither rounded nor clipped."""
        return weight / self.scale

    def weight(self, position: Tensor) -> Tensor:
        """The weight at a position."""
        return self.scale * self.shape(position)

    def clip(self, position: Tensor) -> Tensor:
        """Positions moved into [low, high]."""
        return position.clamp(self.low, self.high)

    def nearest(self, weight: Tensor) -> Tensor:
        """Round to nearest: the weight on the grid whose position is closest."""
        return self.weight(self.clip(self.position(weight).round()))

    def overhead_bits(self) -> int:
        """Bits that the grid itself takes: 32 for each scale."""
        return 32 * self.scale.numel()


class PowerGrid(Grid):
    """PowerQuant's non-uniform grid: ``g(q) = sign(q)·(|q|/Q)^(1/a)`` with ``scale = M = max|w|``.

    The levels are symmetric and 2Q + 1 in number, denser around zero for a < 1; at a = 1 the grid
    is uniform with step M/Q.

    Args:
        scale: M, broadcastable to the weight.
        high: Q = 2^(b-1) - 1.
        exponent: a in (0, 1].
    """

    def __init__(self, scale: Tensor, high: Tensor, exponent: float) -> None:
        super().__init__(scale, -high, high)
        self.exponent = exponent

    def shape(self, position: Tensor) -> Tensor:
        """``sign(q)·(|q|/Q)^(1/a)``."""
        # The derivative of a power at zero is 0 or infinite; a floor keeps gradients finite.
        size = (position.abs() / self.high).clamp(min=1e-12)
        return position.sign() * size ** (1 / self.exponent)

    def position(self, weight: Tensor) -> Tensor:
        """``Q·sign(w)·(|w|/M)^a``."""
        return self.high * weight.sign() * (weight.abs() / self.scale) ** self.exponent

    def overhead_bits(self) -> int:
        """32 for each scale; the exponent is one number for the whole network."""
        return 32 * self.scale.numel()


@checked
def fit_grid(
    weight: Tensor,
    bits: int | Tensor,
    *,
    quantizer: Literal["uniform", "power"] = "uniform",
    per_channel: bool = True,
    symmetric: bool = False,
    search: Literal["mse", "minmax"] = "mse",
    exponent: float = 1.0,
) -> Grid:
    """Fits a grid to a weight.

    The range starts at the minimum and maximum and shrinks to the factor in `SHRINK` with the least
    ``mean |w - ŵ|^2.4``; ``search="minmax"`` keeps the whole range.

    Args:
        weight: (out, …); output channels come first.
        bits: at least 2; an int, or one for each output channel, of shape (out,).
        quantizer: ``uniform`` or ``power``.
        per_channel: one scale per output channel instead of one for the tensor.
        symmetric: uniform grids: levels -2^(b-1) … 2^(b-1)-1 around an exact zero.
        search: ``mse`` or ``minmax``.
        exponent: a of the power grid.

    Raises:
        UserError: an unknown quantizer or search, fewer than 2 bits, or bits per channel with a
            single scale.
    """
    weight = weight.detach()
    ones = [1] * (weight.dim() - 1)
    per_tensor_bits = torch.as_tensor(bits, device=weight.device).to(weight.dtype)
    if per_tensor_bits.min() < 2:
        raise UserError("A weight takes at least 2 bits.")
    if per_tensor_bits.dim() and not per_channel:
        raise UserError("Bits per channel need method.per_channel=true.")
    count = 2 ** per_tensor_bits.view(-1, *ones)  # levels
    dims = tuple(range(1 if per_channel else 0, weight.dim()))
    high_w = weight.amax(dims, keepdim=True).clamp(min=0)
    low_w = weight.amin(dims, keepdim=True).clamp(max=0)
    top = torch.maximum(high_w, -low_w)

    def candidate(shrink: float) -> Grid:
        tiny = torch.finfo(weight.dtype).tiny
        if quantizer == "power":
            return PowerGrid((shrink * top).clamp(min=tiny), count / 2 - 1, exponent)
        if symmetric:
            scale = (2 * shrink * top / (count - 1)).clamp(min=tiny)
            return Grid(scale, -count / 2, count / 2 - 1)
        scale = (shrink * (high_w - low_w) / (count - 1)).clamp(min=tiny)
        low = (shrink * low_w / scale).round()
        return Grid(scale, low, low + count - 1)

    if search == "minmax":
        return candidate(1.0)
    best = torch.full_like(top, torch.inf)
    shrink = torch.ones_like(top)
    for factor in SHRINK:
        error = (weight - candidate(factor).nearest(weight)).abs().pow(NORM).mean(dims, True)
        better = error < best
        best = torch.where(better, error, best)
        shrink = torch.where(better, factor, shrink)
    return candidate(shrink)  # type: ignore[arg-type]  # a factor for each scale


def best_exponent(weights: Sequence[Tensor], bits: Sequence[int | Tensor], **how: Any) -> float:
    """PowerQuant's exponent: the a in `EXPONENTS` with the least ``Σ_layers ‖W - Ŵ‖²``.

    Args:
        weights: of all layers.
        bits: of each layer.
        how: what `fit_grid` takes.
    """

    def error(exponent: float) -> float:
        return sum(
            float((w - fit_grid(w, b, exponent=exponent, **how).nearest(w)).square().sum())
            for w, b in zip(weights, bits, strict=True)
        )

    return min(EXPONENTS, key=error)
