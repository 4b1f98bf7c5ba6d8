"""Task-aligned assignment (Feng et al., "TOOD", 2021): which anchors answer for which object.

Shapes: B images, A anchors, M objects (padded with class −1), K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.toolbox.detection.boxes import ciou

EPS = 1e-9


class Assignment(NamedTuple):
    """What anchors should say.

    Attributes:
        scores: soft targets of the classes, in [0, 1]; 0 where there is no object.
        boxes: of the object that an anchor answers for; of any where it answers for none.
        positive: whether it answers for one.
    """

    scores: Tensor  # BAK
    boxes: Tensor  # BA4
    positive: Tensor  # BA

    @property
    def normaliser(self) -> Tensor:
        """The sum of the targets, by which losses are divided."""
        return self.scores.sum()


@torch.no_grad()
def task_aligned(
    scores_BAK: Tensor,
    boxes_BA4: Tensor,
    centres_A2: Tensor,
    labels_BM: Tensor,
    objects_BM4: Tensor,
    top: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Assigns each object the anchors inside it that find it best.

    An anchor's alignment with an object is m = s^α · CIoU^β of its score s for the object's class
    and its box. Of the anchors whose centre is inside an object the `top` best answer for it; one
    that several objects claim answers for the one of all that its box overlaps most, be its centre
    outside that one. Its target is m, scaled so that the best of an object gets the largest CIoU of
    that object.

    Args:
        scores_BAK: predicted, in [0, 1].
        boxes_BA4: predicted.
        centres_A2: of the anchors.
        labels_BM: classes; −1 for padding.
        objects_BM4: boxes.
        top: anchors of an object; all, where there are fewer.
        alpha: exponent of the score.
        beta: exponent of the overlap.
    """
    real_BM = labels_BM >= 0
    classes = scores_BAK.shape[2]
    if labels_BM.shape[1] == 0:
        return Assignment(torch.zeros_like(scores_BAK), boxes_BA4, scores_BAK[..., 0] > 2)
    low_BMA2 = centres_A2 - objects_BM4[:, :, None, :2]
    high_BMA2 = objects_BM4[:, :, None, 2:] - centres_A2
    inside_BMA = (torch.minimum(low_BMA2, high_BMA2).amin(-1) > EPS) & real_BM[..., None]
    label_BMA = labels_BM.clamp(min=0)[..., None].expand(-1, -1, len(centres_A2))
    score_BMA = scores_BAK.mT.gather(1, label_BMA)
    overlap_BMA = ciou(objects_BM4[:, :, None], boxes_BA4[:, None]).clamp(min=0)
    overlap_BMA = overlap_BMA * real_BM[..., None]
    aligned_BMA = score_BMA**alpha * overlap_BMA**beta

    best_BMT = (aligned_BMA * inside_BMA).topk(min(top, len(centres_A2)), -1).indices
    claimed_BMA = torch.zeros_like(inside_BMA).scatter_(2, best_BMT, True) & inside_BMA
    contested_BA = claimed_BMA.sum(1) > 1
    closest_BMA = F.one_hot(overlap_BMA.argmax(1), len(labels_BM[0])).mT.bool()
    claimed_BMA = torch.where(contested_BA[:, None], closest_BMA, claimed_BMA)

    positive_BA = claimed_BMA.any(1)
    object_BA = claimed_BMA.float().argmax(1)
    aligned_BMA = aligned_BMA * claimed_BMA
    largest_BM1 = (overlap_BMA * claimed_BMA).amax(-1, keepdim=True)
    scaled_BMA = aligned_BMA * largest_BM1 / (aligned_BMA.amax(-1, keepdim=True) + EPS)
    target_BA = scaled_BMA.amax(1)
    label_BA = labels_BM.clamp(min=0).gather(1, object_BA)
    boxes = objects_BM4.gather(1, object_BA[..., None].expand(-1, -1, 4))
    return Assignment(F.one_hot(label_BA, classes) * target_BA[..., None], boxes, positive_BA)
