"""The detections that are read from what an anchor-free detector says.

Shapes: B images, A anchors, K classes, N detections.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from repro.toolbox.detection.boxes import suppress


class Detections(NamedTuple):
    """What is found in an image, highest score first.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels.
        scores: in [0, 1].
        labels: classes.
    """

    boxes: Tensor  # N4
    scores: Tensor  # N
    labels: Tensor  # N


def detect(
    boxes_BA4: Tensor,
    logits_BAK: Tensor,
    confidence: float = 0.001,
    threshold: float = 0.7,
    most: int = 300,
    candidates: int = 30000,
) -> list[Detections]:
    """Detections image by image: every class of an anchor is a candidate, then suppression.

    Args:
        boxes_BA4: of the anchors.
        logits_BAK: of their classes.
        confidence: scores at or below are no candidates.
        threshold: see `suppress`.
        most: detections of an image.
        candidates: the best so many are looked at.
    """
    found = []
    for boxes_A4, scores_AK in zip(boxes_BA4, logits_BAK.sigmoid(), strict=True):
        anchor_N, label_N = (scores_AK > confidence).nonzero().unbind(1)
        score_N = scores_AK[anchor_N, label_N]
        if len(score_N) > candidates:
            best = score_N.topk(candidates).indices
            anchor_N, label_N, score_N = anchor_N[best], label_N[best], score_N[best]
        kept = suppress(boxes_A4[anchor_N], score_N, label_N, threshold, most)
        found.append(Detections(boxes_A4[anchor_N[kept]], score_N[kept], label_N[kept]))
    return found
