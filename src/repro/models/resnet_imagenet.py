"""Residual networks for ImageNet: He et al. 2016, "Deep residual learning", Table 1.

Parameters are named as in torchvision, so that its published checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.errors import UserError
from repro.models.checks import image_shape, require_positive
from repro.models.residual import BasicBlock, conv3x3, he_init


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution; batch norm brings the bias."""
    return nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)


class Bottleneck(nn.Module):
    """1x1 to ``channels``, 3x3, 1x1 to four times ``channels`` (He et al. 2016, Figure 5).

    The stride sits in the 3x3 convolution and not in the first 1x1 ("v1.5", Goyal et al. 2017),
    which costs no parameters and gains about half a point on ImageNet.

    Maps (batch, channels_in, height, width) to
    (batch, 4 * channels, ceil(height / stride), ceil(width / stride)).

    Args:
        channels_in: channels of the input.
        channels: channels of the 3x3 convolution.
        stride: stride of the 3x3 convolution.
        shortcut: maps the input to the shape of the output.
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels_in, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(channels, self.expansion * channels)
        self.bn3 = nn.BatchNorm2d(self.expansion * channels)
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm whose zero scale would make the block its shortcut."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu3(self.downsample(x) + residual)


Block = type[BasicBlock] | type[Bottleneck]

# The kind of block and how many of them each of the four stages has.
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNetImageNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152 with projection shortcuts where the shape changes (option B).

    Maps (batch, *input_shape) to logits of shape (batch, classes); any image size will do. At
    1000 classes ResNet-18 has 11,689,512 parameters and ResNet-50 has 25,557,032.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        depth: one of `DEPTHS`.
        zero_init_last_gamma: start every block as its shortcut, with a zero scale in its last
            batch norm (Goyal et al. 2017, Section 5.1).
        small_images: a 3x3 stem without striding and pooling, the usual change for CIFAR.

    Raises:
        UserError: an unknown depth, or a size below 1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        depth: int = 50,
        zero_init_last_gamma: bool = False,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet_imagenet", input_shape)
        require_positive("resnet_imagenet", classes=classes)
        if depth not in DEPTHS:
            known = ", ".join(map(str, DEPTHS))
            raise UserError(f"resnet_imagenet: depth must be one of {known}, got {depth}.")
        block, blocks = DEPTHS[depth]

        self.conv1: nn.Module
        self.maxpool: nn.Module
        if small_images:
            self.conv1 = conv3x3(channels, 64)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(block, blocks[0], 64, 64, stride=1)
        self.layer2 = _stage(block, blocks[1], 64 * block.expansion, 128, stride=2)
        self.layer3 = _stage(block, blocks[2], 128 * block.expansion, 256, stride=2)
        self.layer4 = _stage(block, blocks[3], 256 * block.expansion, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, classes)

        he_init(self)
        if zero_init_last_gamma:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(block: Block, blocks: int, channels_in: int, channels: int, stride: int) -> nn.Module:
    """A first block that changes the shape, then blocks that keep it."""
    channels_out = channels * block.expansion
    shortcut: nn.Module = nn.Identity()
    if stride != 1 or channels_in != channels_out:
        shortcut = nn.Sequential(
            conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
        )
    return nn.Sequential(
        block(channels_in, channels, stride, shortcut),
        *(block(channels_out, channels, 1, nn.Identity()) for _ in range(blocks - 1)),
    )
