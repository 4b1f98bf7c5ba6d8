"""The head of YOLOv9: anchor-free, with box and class apart, distances as distributions.

Shapes: B images, A anchors (all points of all levels), K classes, R bins of a distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from repro.knobs import Count, Positive, checked
from repro.models.vision.gelan.blocks import Conv


class Predictions(NamedTuple):
    """What a head says.

    Attributes:
        bins: logits of the distances to the S = 4 sides left, top, right and bottom, in
            strides.
        logits: of the classes.
        boxes: x1, y1, x2, y2 in pixels.
        centres: of the anchors, x and y in pixels.
        stride: pixels between neighbouring anchors.
    """

    bins: Tensor  # BASR
    logits: Tensor  # BAK
    boxes: Tensor  # BA4
    centres: Tensor  # A2
    stride: Tensor  # A


@checked
class DetectionHead(nn.Module):
    """Boxes and classes from the levels of a pyramid.

    Args:
        channels: of each level.
        strides: of each level, in pixels.
        classes: K.
        bins: R, so that the largest distance is R − 1 strides.
        box_width: hidden channels for boxes; None: as published.
        class_width: hidden channels for classes; None: as published.
        depth: hidden convolutions of each.
        groups: of all but the first convolution for boxes.
        objects: expected in an image, for the first bias of the classes.
        image_size: edge of that image in pixels.
        momentum: of batch norms.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: Count,
        bins: Count = 16,
        box_width: Count | None = None,
        class_width: Count | None = None,
        depth: Count = 2,
        groups: Count = 4,
        objects: Positive = 5.0,
        image_size: Count = 640,
        momentum: float = 0.03,
    ) -> None:
        super().__init__()
        self.classes, self.strides = classes, tuple(strides)
        box_width = box_width or 4 * math.ceil(max(channels[0] // 4, 4 * bins, 16) / 4)
        class_width = class_width or max(channels[0], min(2 * classes, 128))

        def branch(level: int, width: int, out: int, groups: int, bias: float) -> nn.Sequential:
            layers = [Conv(level, width, 3, momentum=momentum)] + [
                Conv(width, width, 3, groups=groups, momentum=momentum) for _ in range(depth - 1)
            ]
            last = nn.Conv2d(width, out, 1, groups=groups)
            assert last.bias is not None
            nn.init.constant_(last.bias, bias)
            return nn.Sequential(*layers, last)

        priors = [math.log(objects / classes / (image_size / stride) ** 2) for stride in strides]
        self.box = nn.ModuleList(branch(c, box_width, 4 * bins, groups, 1.0) for c in channels)
        self.category = nn.ModuleList(
            branch(c, class_width, classes, 1, prior)
            for c, prior in zip(channels, priors, strict=True)
        )
        # A fixed parameter, because published counts include it.
        self.distances_R = nn.Parameter(torch.arange(float(bins)), requires_grad=False)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Levels (B, C, H, W), in the order of the strides, to what is seen in them."""
        bins, logits, centres, strides = [], [], [], []
        for x_BCHW, stride, box, category in zip(
            levels, self.strides, self.box, self.category, strict=True
        ):
            bins.append(box(x_BCHW).flatten(2))
            logits.append(category(x_BCHW).flatten(2))
            centres.append(stride * _centres(x_BCHW))
            strides.append(torch.full_like(centres[-1][:, 0], stride))
        bins_BASR = torch.cat(bins, 2).mT.unflatten(2, (4, -1))
        centres_A2, stride_A = torch.cat(centres), torch.cat(strides)
        distances_BA4 = (bins_BASR.softmax(-1) @ self.distances_R) * stride_A[:, None]
        near_BA2, far_BA2 = distances_BA4.chunk(2, -1)
        boxes_BA4 = torch.cat([centres_A2 - near_BA2, centres_A2 + far_BA2], -1)
        return Predictions(bins_BASR, torch.cat(logits, 2).mT, boxes_BA4, centres_A2, stride_A)


def _centres(x_BCHW: Tensor) -> Tensor:
    """The centres (H W, 2) of a level's points, x and y in strides."""
    height, width = x_BCHW.shape[2:]
    rows, columns = (
        torch.arange(size, device=x_BCHW.device, dtype=x_BCHW.dtype) + 0.5
        for size in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)
