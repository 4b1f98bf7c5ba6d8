"""Masks of independent Beta variables on a grid, and the smooth pictures that they become.

Shapes: B images, G cells a side, C = G*G cells, H and W pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.iterators import generator_for, process_rank
from repro.errors import UserError
from repro.internals import standard_gamma
from repro.knobs import Count, Positive, checked
from repro.toolbox.corruptions import gaussian_kernel

EDGE = 1e-6  # densities with a parameter below 1 are infinite at 0 or at 1


class BetaLogits(NamedTuple):
    """Logarithms (B, C) of both parameters of Beta distributions, cell by cell."""

    log_alpha: Tensor
    log_beta: Tensor

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws (B, C) values in (0, 1), which carry no gradient: X / (X + Y) of gamma variates."""
        tiny = torch.finfo(self.log_alpha.dtype).tiny
        x, y = (standard_gamma(each, generator).clamp(min=tiny) for each in self._parameters())
        return (x / (x + y)).clamp(EDGE, 1 - EDGE)

    def log_density(self, mask_BC: Tensor) -> Tensor:
        """The logarithm (B, C) of each cell's density at its value, with a gradient."""
        alpha, beta = self._parameters()
        norm = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
        return norm + (alpha - 1) * mask_BC.log() + (beta - 1) * torch.log1p(-mask_BC)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        return self.log_alpha.exp(), self.log_beta.exp()


def log_sum_density(log_density_BC: Tensor) -> Tensor:
    """``log Σ_j p_j`` (B,): what the published objective has in the place of ``Σ_j log p_j``.

    Its gradient is the mean of the cells' scores, weighted by their densities; for densities of
    about one its value is about log C.
    """
    return log_density_BC.logsumexp(1)


class SmoothUpsampling(nn.Module):
    """Grids (B, C) to pictures (B, 1, H, W): nearest neighbours, then a Gaussian blur.

    Both act on rows and columns alike and linearly, so that they are one product from either side,
    ``M = R m Cᵀ``. At the border the picture is reflected. Values stay within the grid's, and a
    constant grid stays constant.

    Args:
        grid: G, cells a side.
        size: (H, W).
        kernel: pixels of the blur, odd; 1: none.
        sigma: its standard deviation, in pixels.

    Raises:
        UserError: an even kernel, or one that is wider than the reflected picture.
    """

    rows: Tensor  # (H, G)
    columns: Tensor  # (W, G)

    @checked
    def __init__(self, grid: Count, size: tuple[int, int], kernel: Count, sigma: Positive) -> None:
        super().__init__()
        if not kernel % 2:
            raise UserError(f"method.kernel={kernel} has no centre: choose an odd number.")
        if kernel // 2 >= min(size):
            raise UserError(
                f"method.kernel={kernel} is too wide for images of {size[0]} x {size[1]} pixels:"
                f" choose at most {2 * min(size) - 1}."
            )
        self.grid = grid
        rows, columns = (_upsampled_and_blurred(grid, edge, kernel, sigma) for edge in size)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, mask_BC: Tensor) -> Tensor:
        """Maps (B, C) to (B, 1, H, W)."""
        mask_BGG = mask_BC.view(-1, self.grid, self.grid)
        return (self.rows @ mask_BGG @ self.columns.T)[:, None]


def _upsampled_and_blurred(grid: int, size: int, kernel: int, sigma: float) -> Tensor:
    """What one axis of a picture is of one axis of its grid, (size, grid)."""
    nearest_SG = F.interpolate(torch.eye(grid)[:, None], size, mode="nearest")[:, 0].T
    reach = kernel // 2
    weights = gaussian_kernel(sigma, reach).float()
    padded = F.pad(nearest_SG.T[:, None], (reach, reach), mode="reflect")
    return F.conv1d(padded, weights[None, None])[:, 0].T.contiguous()


def flat_loss_scale(grid: int) -> float:
    """``log G²``: the factor that the published objective puts on the loss of flat masks."""
    return 2 * math.log(grid)


def generator_of_step(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What a step draws from: its own for each process, and the same again in a resumed run."""
    rank, _ = process_rank()
    return torch.Generator(device).manual_seed(generator_for(seed, rank, step).initial_seed())
