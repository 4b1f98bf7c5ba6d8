"""Boxes (…, 4) as x1, y1, x2, y2: overlap, complete overlap, and greedy suppression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7
BLOCK = 512  # candidates that are compared with one another at once


def area(boxes: Tensor) -> Tensor:
    """The areas (…) of boxes (…, 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """The area that boxes (…, 4) share, for shapes that broadcast."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, in [0, 1], of boxes (…, 4) whose shapes broadcast."""
    shared = overlap(one, other)
    return shared / (area(one) + area(other) - shared + EPS)


def ciou(one: Tensor, other: Tensor) -> Tensor:
    """Complete intersection over union (Zheng et al., 2020), in (−1.5, 1], shapes broadcast.

    CIoU = IoU − ρ² / c² − α v: the squared distance of the centres over the squared diagonal of the
    smallest box around both, and v = 4/π² (atan(w/h) − atan(w'/h'))² with the weight
    α = v / (1 − IoU + v), which is a constant for gradients.
    """
    found = iou(one, other)
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    diagonal = (high - low).square().sum(-1) + EPS
    between = (one[..., :2] + one[..., 2:] - other[..., :2] - other[..., 2:]).square().sum(-1) / 4
    v = 4 / math.pi**2 * (_angle(one) - _angle(other)).square()
    with torch.no_grad():
        alpha = v / (1 - found + v + EPS)
    return found - between / diagonal - alpha * v


def _angle(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(width / (height + EPS))


def suppress(
    boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, threshold: float, most: int
) -> Tensor:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes_N4: candidates.
        scores_N: of them.
        labels_N: their classes; only boxes of the same one suppress each other.
        threshold: intersection over union above which the lower score goes.
        most: keep so many; the search ends there.

    Returns:
        The places of those that stay, highest score first; of equal scores the first one first.
    """
    order_N = scores_N.argsort(descending=True, stable=True)
    boxes_N4, labels_N = boxes_N4[order_N], labels_N[order_N]

    def close(some: Tensor, others: Tensor) -> Tensor:
        """Which of some places suppress which of others, or are suppressed by them."""
        same = labels_N[some][:, None] == labels_N[others]
        return same & (iou(boxes_N4[some][:, None], boxes_N4[others]) > threshold)

    kept: list[int] = []
    for places_P in torch.arange(len(order_N), device=order_N.device).split(BLOCK):
        before_K = torch.tensor(kept, dtype=torch.long, device=order_N.device)
        free_P = ~close(places_P, before_K).any(1).cpu().numpy()
        close_PP = close(places_P, places_P).cpu().numpy()
        for number, place in enumerate(places_P.tolist()):
            if free_P[number]:
                kept.append(place)
                free_P &= ~close_PP[number]
                if len(kept) == most:
                    return order_N[kept]
    return order_N[kept]
