"""What the paper compares with: a morphological, two classical, and a learned skeletonisation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Natural, checked
from repro.methods.skeleton.layer import SkeletonLayer

POOLS = {2: F.max_pool2d, 3: F.max_pool3d}


class SoftSkeleton(SkeletonLayer):
    """The morphological skeleton of the clDice loss (Shit et al. 2021): differentiable, no more.

    The union, over successive erosions, of what an opening removes. Erosion takes the minimum over
    a cross, dilation the maximum over a box of 3 points a side. It ends with the last point: what
    an empty image would add is nothing, and so is its gradient.

    Args:
        num_iter: erosions at most; at least half the width of the thickest part.
    """

    @checked
    def __init__(self, num_iter: Natural = 5) -> None:
        super().__init__()
        self.num_iter = num_iter

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 1, *size) in [0, 1] to a soft skeleton of the same shape."""
        skeleton = F.relu(x - _open(x))
        for _ in range(self.num_iter):
            x = _erode(x)
            if not x.any():
                break
            removed = F.relu(x - _open(x))
            skeleton = skeleton + F.relu(removed - skeleton * removed)
        return skeleton


def _erode(x: Tensor) -> Tensor:
    dims = x.dim() - 2
    arms = []
    for axis in range(dims):
        size = [3 if other == axis else 1 for other in range(dims)]
        arms.append(-POOLS[dims](-x, size, 1, [s // 2 for s in size]))
    return torch.stack(arms).amin(0)


def _open(x: Tensor) -> Tensor:
    return POOLS[x.dim() - 2](_erode(x), 3, 1, 1)


class ClassicalSkeleton(SkeletonLayer):
    """Thinning by scikit-image: exact, not differentiable.

    Args:
        algorithm: ``lee`` (1994; 2-D and 3-D) or ``zhang`` (1984; 2-D only).

    Raises:
        UserError: there is no such algorithm, or scikit-image is not installed.
    """

    @checked
    def __init__(self, algorithm: Literal["lee", "zhang"] = "lee") -> None:
        super().__init__()
        try:
            from skimage.morphology import skeletonize
        except ImportError as error:
            raise UserError(
                "Classical skeletons need scikit-image: pip install 'gradient-repro[data]'"
            ) from error
        self.algorithm = algorithm
        self.dims = (2,) if algorithm == "zhang" else (2, 3)  # what it can thin
        self.skeletonize = skeletonize

    def forward(self, x: Tensor) -> Tensor:
        """Skeletons, in {0, 1}, of x (B, 1, *size) above 0.5; no gradient passes.

        Raises:
            UserError: Zhang's algorithm was asked for a volume.
        """
        if self.algorithm == "zhang" and x.dim() == 5:
            raise UserError("classical skeleton: zhang thins images only; take algorithm=lee.")
        masks = (x.detach() > 0.5).cpu().numpy()
        thinned = np.stack([self.skeletonize(mask[0], method=self.algorithm) for mask in masks])
        return torch.from_numpy(thinned > 0)[:, None].to(x)


class LearnedSkeleton(nn.Module):
    """A network trained on classical skeletons, in the place of a skeletonisation.

    Args:
        network: maps masks (B, 1, *size) to logits of the same shape; may state its ``dims``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.dims = (network.dims,) if hasattr(network, "dims") else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities rounded to 0 or 1, with their own gradient, and nothing outside x."""
        soft = torch.sigmoid(self.network(x)) * x
        return (soft > 0.5).to(x.dtype) - soft.detach() + soft
