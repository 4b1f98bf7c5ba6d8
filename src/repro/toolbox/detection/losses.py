"""The losses of a detector that predicts distances as distributions (Li et al., "GFL", 2020).

Shapes as in `repro.toolbox.detection.assignment`; P positive anchors, R bins, S = 4 sides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.knobs import Count, NonNegative, checked
from repro.models.vision.gelan import Predictions
from repro.toolbox.detection.assignment import Assignment, task_aligned
from repro.toolbox.detection.boxes import ciou


class LossParts(NamedTuple):
    """The parts of a loss, each divided by the sum of the targets and without its gain."""

    box: Tensor
    category: Tensor
    distance: Tensor


def distance_loss(bins_PSR: Tensor, distances_PS: Tensor) -> Tensor:
    """Cross-entropy of distances at the two bins beside them, weighted linearly; (P,) over sides.

    Args:
        bins_PSR: logits.
        distances_PS: in units of a bin; kept within [0, R − 1.01].
    """
    distances_PS = distances_PS.clamp(0, bins_PSR.shape[-1] - 1 - 0.01)
    below_PS = distances_PS.long()
    weight_PS = below_PS + 1 - distances_PS
    logs_PSR = bins_PSR.log_softmax(-1)
    below, above = (logs_PSR.gather(-1, (below_PS + k)[..., None])[..., 0] for k in (0, 1))
    return -(weight_PS * below + (1 - weight_PS) * above).mean(-1)


@checked
class DetectionLoss:
    """Box, class and distance losses of `Predictions` under task-aligned assignment.

    Args:
        box: gain of 1 − CIoU.
        category: gain of the binary cross-entropy.
        distance: gain of the distance loss.
        top: see `task_aligned`; likewise `alpha` and `beta`.
        alpha: exponent of the score.
        beta: exponent of the overlap.
    """

    def __init__(
        self,
        box: NonNegative = 7.5,
        category: NonNegative = 0.5,
        distance: NonNegative = 1.5,
        top: Count = 10,
        alpha: NonNegative = 0.5,
        beta: NonNegative = 6.0,
    ) -> None:
        self.gains = (box, category, distance)
        self.top, self.alpha, self.beta = top, alpha, beta

    def assign(self, found: Predictions, labels_BM: Tensor, objects_BM4: Tensor) -> Assignment:
        """Which anchors answer for which objects; see `task_aligned`."""
        return task_aligned(
            found.logits.detach().float().sigmoid(),
            found.boxes.detach().float(),
            found.centres.float(),
            labels_BM,
            objects_BM4,
            self.top,
            self.alpha,
            self.beta,
        )

    def parts(self, found: Predictions, assigned: Assignment, least: float = 1.0) -> LossParts:
        """The three losses of predictions against what their anchors should say.

        Args:
            found: predictions.
            assigned: targets.
            least: smallest number that the sum of the targets counts as.
        """
        total = assigned.normaliser.clamp(min=least)
        category = F.binary_cross_entropy_with_logits(
            found.logits.float(), assigned.scores, reduction="sum"
        )
        weight_P = assigned.scores.sum(-1)[assigned.positive]
        boxes_P4 = assigned.boxes[assigned.positive]
        box_P = 1 - ciou(found.boxes.float()[assigned.positive], boxes_P4)
        _, anchor_P = assigned.positive.nonzero().unbind(1)
        centres_P2, stride_P1 = found.centres[anchor_P], found.stride[anchor_P, None]
        sides_P4 = torch.cat([centres_P2 - boxes_P4[:, :2], boxes_P4[:, 2:] - centres_P2], 1)
        bins_PSR = found.bins.float()[assigned.positive]
        distance_P = distance_loss(bins_PSR, sides_P4 / stride_P1)
        return LossParts(
            (weight_P * box_P).sum() / total,
            category / total,
            (weight_P * distance_P).sum() / total,
        )

    def weighted(self, parts: LossParts) -> Tensor:
        """The sum of the parts times their gains."""
        box, category, distance = self.gains
        return box * parts.box + category * parts.category + distance * parts.distance

    def __call__(self, found: Predictions, labels_BM: Tensor, objects_BM4: Tensor) -> Tensor:
        """The loss of an image on average, as a number.

        Args:
            found: predictions.
            labels_BM: classes; −1 for padding.
            objects_BM4: boxes in pixels.
        """
        return self.weighted(self.parts(found, self.assign(found, labels_BM, objects_BM4)))
