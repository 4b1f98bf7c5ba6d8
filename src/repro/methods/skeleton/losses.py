"""Overlap losses: Dice of areas, and Dice of centrelines with whatever finds the centrelines."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Skeletonizer = Callable[[Tensor], Tensor]


def dice(a: Tensor, b: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice coefficients (B,) of maps (B, …) in [0, 1]; ``smooth`` is added to both sides."""
    overlap = (a * b).flatten(1).sum(1)
    return (2 * overlap + smooth) / (a.flatten(1).sum(1) + b.flatten(1).sum(1) + smooth)


def cldice(
    predicted: Tensor, target: Tensor, skeleton: Skeletonizer, smooth: float = 1.0
) -> Tensor:
    """Centreline Dice (B,): of two maps, how much of each one's skeleton lies in the other.

    Topological precision is the share of the prediction's skeleton inside the target, sensitivity
    the share of the target's skeleton inside the prediction, clDice their harmonic mean (Shit et
    al. 2021). The skeletonisation is the only part that the paper exchanges.

    Args:
        predicted: (B, 1, *size) in [0, 1].
        target: the same of the truth.
        skeleton: maps such maps to their skeletons.
        smooth: added to numerators and denominators.
    """
    return cldice_of(predicted, skeleton(predicted), target, skeleton(target), smooth)


def cldice_of(
    predicted: Tensor,
    predicted_skeleton: Tensor,
    target: Tensor,
    target_skeleton: Tensor,
    smooth: float = 1.0,
) -> Tensor:
    """`cldice` of maps whose skeletons are known."""
    precision = _share(predicted_skeleton, target, smooth)
    sensitivity = _share(target_skeleton, predicted, smooth)
    return 2 * precision * sensitivity / (precision + sensitivity)


def overlap_loss(
    predicted: Tensor,
    target: Tensor,
    skeleton: Skeletonizer | None,
    share: float,
    target_skeleton: Tensor | None = None,
) -> Tensor:
    """``(1 − share) (1 − Dice) + share (1 − clDice)``, (B,).

    Args:
        predicted: (B, 1, *size) in [0, 1].
        target: the same of the truth.
        skeleton: of the centreline term; None leaves Dice alone, whatever ``share`` is.
        share: weight of the centreline term, in [0, 1]; the paper's lambda.
        target_skeleton: the target's skeleton where it is known already.
    """
    area = 1 - dice(predicted, target)
    if skeleton is None or share == 0:
        return area
    if target_skeleton is None:
        target_skeleton = skeleton(target)
    centre = 1 - cldice_of(predicted, skeleton(predicted), target, target_skeleton)
    return (1 - share) * area + share * centre


def _share(part: Tensor, whole: Tensor, smooth: float) -> Tensor:
    inside = (part * whole).flatten(1).sum(1)
    return (inside + smooth) / (part.flatten(1).sum(1) + smooth)
