"""The Hessian-based GPTQ of Frantar et al. (2023, arXiv 2210.17323), a baseline here.

Its name is the same as that of the family of *gradient-based* PTQ methods that this package is
about, hence ``hessian`` everywhere in this project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.toolbox.reconstruction.grids import Grid
from repro.toolbox.reconstruction.units import input_matrix

BLOCK = 128  # columns that are quantised before the rest of the matrix is updated
DAMPING = 0.01  # of the mean diagonal


def layer_hessian(layer: nn.Module, x: Tensor) -> Tensor:
    """``2 X Xᵀ / N`` (in, in) of a layer's inputs, the Hessian of the squared output error.

    Args:
        layer: linear (x: (N, …, in)) or a convolution without groups (x: (N, C, H, W)).
        x: its inputs.
    """
    x = input_matrix(layer, x)
    return 2 * x.T @ x / len(x)


def hessian_rounding(
    weight: Tensor, hessian: Tensor, grid: Grid, block: int = BLOCK, damping: float = DAMPING
) -> Tensor:
    """Rounds column by column, and moves the columns to come so as to undo the output error.

    Column j is rounded to nearest; the others take the optimal (OBS) update, read off the Cholesky
    factor of the inverse Hessian. Updates beyond a block of columns are applied once a block.

    Args:
        weight: (out, …); columns are the flattened other dimensions.
        hessian: (in, in).
        grid: fitted to `weight`; it stays as it is.
        block: columns in a block; any number gives the same result up to rounding errors.
        damping: added to the diagonal, as a share of its mean.

    Returns:
        The weight on the grid, shaped like `weight`.
    """
    W = weight.detach().flatten(1).clone()
    H = hessian.to(W.dtype).clone()
    dead = H.diagonal() == 0  # inputs that are always zero
    H.diagonal()[dead] = 1
    W[:, dead] = 0
    H.diagonal().add_(damping * H.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    U = torch.linalg.cholesky(inverse, upper=True)
    scale_shape = weight.shape[:1] + (1,) * (weight.dim() - 1)
    rounded = torch.empty_like(W)
    for start in range(0, W.shape[1], block):
        end = min(start + block, W.shape[1])
        errors = torch.empty_like(W[:, start:end])
        for j in range(start, end):
            column = W[:, j]
            rounded[:, j] = grid.nearest(column.view(scale_shape)).view(-1)
            error = (column - rounded[:, j]) / U[j, j]
            W[:, j:end] -= error[:, None] * U[j, j:end]
            errors[:, j - start] = error
        W[:, end:] -= errors @ U[start:end, end:]
    return rounded.view_as(weight)
