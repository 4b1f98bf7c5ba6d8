"""What happens to pictures without an adversary.

A corruption is called like an attack (`repro.toolbox.attacks.Attack`), so that both can stand in
one table; it looks neither at the model nor at the labels:

>>> import torch
>>> from repro.toolbox.corruptions import GaussianBlur
>>> x = torch.rand(2, 3, 32, 32)
>>> blurred = GaussianBlur(sigma=2, side=32)(None, x, None)
>>> blurred.shape == x.shape and bool(blurred.std() < x.std())
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.errors import UserError, did_you_mean
from repro.knobs import Count, NonNegative, Positive, checked


@checked
@dataclass(frozen=True)
class GaussianBlur:
    """Convolution with a Gaussian, mirrored at the borders.

    Args:
        sigma: standard deviation in pixels of a picture of height `side`; 0 changes nothing.
        side: height of the pictures that `sigma` is said for; others are blurred as much in
            proportion. None: sigma is in pixels of whatever comes.
        radius: where the kernel ends, in standard deviations.
    """

    sigma: NonNegative
    side: Count | None = None
    radius: Positive = 4.0

    def __call__(self, model: object, x: Tensor, y: object) -> Tensor:  # noqa: ARG002 - an attack's
        """Returns blurred pictures (B, C, H, W) of the same shape.

        Args:
            model: not looked at.
            x: floating point pictures (B, C, H, W).
            y: not looked at.
        """
        sigma = self.sigma if self.side is None else self.sigma * x.shape[2] / self.side
        if sigma == 0:
            return x
        kernel = gaussian_kernel(sigma, math.ceil(self.radius * sigma)).to(x)
        return _along(kernel, _along(kernel, x, 2), 3)


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """Weights (2 radius + 1,) of a Gaussian at whole numbers, float64; they sum to one."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    return weights / weights.sum()


def _along(kernel: Tensor, x: Tensor, axis: int) -> Tensor:
    """Convolves one axis of (B, C, H, W)."""
    size, radius = x.shape[axis], len(kernel) // 2
    # Mirrored as often as it takes: a wide kernel reaches beyond a small picture's mirror image.
    places = (torch.arange(-radius, size + radius, device=x.device) % (2 * size)).tolist()
    mirrored = torch.tensor([min(p, 2 * size - 1 - p) for p in places], device=x.device)
    rows = x.index_select(axis, mirrored).movedim(axis, -1)
    return (
        F.conv1d(rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, -1))
        .view(*rows.shape[:-1], size)
        .movedim(-1, axis)
    )


# -- Corruptions by name, with noise from a generator of the caller's ------------------------------


def _noise(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return x + size * torch.randn(x.shape, generator=generator).to(x)


def _impulse(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    hit = torch.rand(x.shape, generator=generator).to(x) < share
    white = torch.rand(x.shape, generator=generator).to(x) < 0.5
    return torch.where(hit, torch.where(white, x.max(), x.min()), x)


def _roll(x: Tensor, pixels: float, _generator: torch.Generator) -> Tensor:
    return x.roll(int(pixels), -1)


def _blur(x: Tensor, width: float, _generator: torch.Generator) -> Tensor:
    return F.avg_pool2d(x, int(width), stride=1, padding=int(width) // 2)


# Each changes images (N, C, H, W) by an amount: a standard deviation in units of the pixels,
# a share of the pixels, columns, or the edge of a square.
SHIFTS = {"noise": _noise, "impulse": _impulse, "roll": _roll, "blur": _blur}


def shifted(x: Tensor, name: str, amount: float, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) under a shift of a name, by an amount.

    Raises:
        UserError: there is no such shift.
    """
    if name not in SHIFTS:
        raise UserError(
            f"There is no shift '{name}'; known: {', '.join(SHIFTS)}.{did_you_mean(name, SHIFTS)}"
        )
    return SHIFTS[name](x, amount, generator)
