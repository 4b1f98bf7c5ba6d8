"""Do tasks pull one network in opposite directions, and do experts share tasks among them?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gradient_cosines(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Cosines between the gradients of L losses, (L, L); NaN beside a gradient that is zero.

    Args:
        losses: one for each task.
        weights: the shared weights that are looked at.
    """
    found = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
    gradients = torch.stack([torch.cat([part.flatten() for part in each]) for each in found])
    norms = gradients.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, F.normalize(gradients), torch.nan)
    return unit @ unit.T


def conflict(cosines: Tensor, pairs: Iterable[tuple[int, int]]) -> Tensor:
    """Mean of ``min(cos, 0)`` over pairs of tasks: 0 without conflict, −1 where all are opposed.

    Not the mean cosine, which tends to 0 whenever tasks share fewer weights. NaN if no pair's
    cosine exists.
    """
    return torch.stack([cosines[i, j] for i, j in pairs]).clamp(max=0).nanmean()


def mutual_information(counts: Tensor) -> float:
    """I(row; column) in nats of a table of counts, 0 if rows and columns are independent."""
    joint = counts.double() / counts.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0)
    return float(torch.special.xlogy(joint, joint / product.clamp(min=1e-300)).sum())
