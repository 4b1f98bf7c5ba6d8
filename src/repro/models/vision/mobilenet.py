"""MobileNet, version 1: Howard et al. 2017, "MobileNets", arXiv 1704.04861, Table 1.

Parameters are named as in timm's ``mobilenetv1_100``, so that its published checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape

# Channels, stride of the first block and number of blocks of each stage behind the stem.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, 6), (1024, 2, 2))


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across channels.

    Maps (batch, channels_in, height, width) to
    (batch, channels_out, ceil(height / stride), ceil(width / stride)).

    Args:
        channels_in: channels of the input.
        channels_out: channels of the 1x1 convolution.
        stride: stride of the 3x3 convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.act1 = nn.ReLU6()
        self.conv_pw = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.act2 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Filters, then mixes."""
        return self.act2(self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x))))))


class MobileNet(nn.Module):
    """MobileNet v1; 4,231,976 parameters at 1000 classes.

    Maps (batch, *input_shape) to logits of shape (batch, classes); any image size will do.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.

    Raises:
        UserError: a size below 1.
    """

    @checked
    def __init__(self, input_shape: Sequence[Count], classes: Count) -> None:
        super().__init__()
        channels, _, _ = image_shape("mobilenet", input_shape)
        self.conv_stem = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU6()
        stages = []
        channels = 32
        for width, stride, blocks in STAGES:
            first = DepthwiseSeparable(channels, width, stride)
            rest = (DepthwiseSeparable(width, width, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        return self.classifier(self.avgpool(x).flatten(1))
