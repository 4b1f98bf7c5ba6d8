"""Residual networks for small images: He et al. 2016, "Deep residual learning", Section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.parts.chain import Chain, staged
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import BasicBlock, conv3x3, he_init


class OptionAShortcut(nn.Module):
    """Identity without parameters: every ``stride``-th pixel, then zeros for the new channels.

    Maps (batch, channels_in, height, width) to
    (batch, channels_out, ceil(height / stride), ceil(width / stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.new_channels = channels_out - channels_in
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsamples and pads."""
        kept = x[:, :, :: self.stride, :: self.stride]
        # F.pad counts from the last dimension: width, height, then (before, after) the channels.
        return F.pad(kept, (0, 0, 0, 0, 0, self.new_channels))


class ResNetCIFAR(nn.Module):
    """ResNet-20, 32, 44, 56 or 110 with option-A shortcuts; 0.27M to 1.7M parameters (Table 6).

    A 3x3 convolution, then three stages of (depth - 2) / 6 blocks with width, 2 width and 4 width
    channels, the last two halving height and width; global average pooling; one linear layer.
    Maps (batch, *input_shape) to logits of shape (batch, classes); any image size will do.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        depth: number of weight layers, 6n + 2.
        width: channels of the first stage; 16 in the paper.

    Raises:
        UserError: a depth other than 6n + 2, or a size below 1.
    """

    @checked
    def __init__(
        self, input_shape: Sequence[Count], classes: Count, depth: Count = 20, width: Count = 16
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet_cifar", input_shape)
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise UserError(
                f"resnet_cifar: depth must be 6n + 2 (the paper's are 20, 32, 44, 56, 110),"
                f" got {depth}."
            )

        self.conv1 = conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))

    def chain(self) -> Chain:
        """The first convolution, the residual blocks, and pooling with the linear layer."""
        return Chain(
            nn.Sequential(self.conv1, self.bn1, self.relu),
            *staged(self.layer1, self.layer2, self.layer3),
            nn.Sequential(self.pool, nn.Flatten(), self.fc),
        )


def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """A first block that changes the shape, then blocks that keep it."""
    shortcut = nn.Identity() if stride == 1 else OptionAShortcut(channels_in, channels_out, stride)
    return nn.Sequential(
        BasicBlock(channels_in, channels_out, stride, shortcut),
        *(BasicBlock(channels_out, channels_out, 1, nn.Identity()) for _ in range(blocks - 1)),
    )
