"""Residual networks for ImageNet: He et al. 2016, "Deep residual learning", Table 1.

Parameters are named as in torchvision, so that its published checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.parts.chain import Chain, staged
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import BasicBlock, conv3x3, he_init


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
        channels: a quarter of the output's channels, and with one group those of the 3x3
            convolution.
        stride: stride of the 3x3 convolution.
        shortcut: maps the input to the shape of the output.
        groups: groups of the 3x3 convolution (ResNeXt's cardinality).
        base_width: channels of each of these groups where ``channels`` is 64.
    """

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        shortcut: nn.Module,
        groups: int = 1,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        width = channels * base_width // 64 * groups
        self.conv1 = conv1x1(channels_in, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(width, self.expansion * channels)
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


Block = Callable[[int, int, int, nn.Module], BasicBlock | Bottleneck]

# The kind of block and how many of them each of the four stages has.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNetImageNet(nn.Module):
    """ResNet-10 to 152 with projection shortcuts where the shape changes (option B).

    Maps (batch, *input_shape) to logits of shape (batch, classes); any image size will do. At
    1000 classes ResNet-18 has 11,689,512 parameters and ResNet-50 has 25,557,032. With 32 groups of
    base width 8 depth 101 is ResNeXt-101 32x8d (Xie et al. 2017), of 88,791,336 parameters. Depth
    10 with a tiered stem and pooled shortcuts is timm's ResNet-10-T, of 5,435,488.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        depth: one of `DEPTHS`.
        zero_init_last_gamma: start every block as its shortcut, with a zero scale in its last
            batch norm (Goyal et al. 2017, Section 5.1).
        small_images: a 3x3 stem without striding and pooling, the usual change for CIFAR.
        groups: groups of every bottleneck's 3x3 convolution.
        base_width: see `Bottleneck`.
        init: of convolutions: ``default`` is PyTorch's; ``he`` see `he_init`.
        tiered_stem: three 3x3 convolutions of 24, 32 and 64 channels in the place of one of 7x7
            (small_images has none of them).
        pooled_shortcuts: halve height and width by averages of 2x2 before the 1x1 projection,
            instead of by its stride (He et al. 2019, "Bag of tricks", ResNet-D).

    Raises:
        UserError: an unknown depth, a size below 1, or groups in a network without bottlenecks.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        depth: Literal[10, 18, 34, 50, 101, 152] = 50,
        zero_init_last_gamma: bool = False,
        small_images: bool = False,
        groups: Count = 1,
        base_width: Count = 64,
        init: Literal["default", "he"] = "he",
        tiered_stem: bool = False,
        pooled_shortcuts: bool = False,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet_imagenet", input_shape)
        kind, blocks = DEPTHS[depth]
        block: Block = kind
        if kind is Bottleneck:
            block = partial(Bottleneck, groups=groups, base_width=base_width)
        elif (groups, base_width) != (1, 64):
            raise UserError(
                f"resnet_imagenet: groups and base_width change bottlenecks, and depth {depth} has"
                " none; choose depth 50, 101 or 152."
            )

        self.conv1: nn.Module
        self.maxpool: nn.Module
        if small_images:
            self.conv1 = conv3x3(channels, 64)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = (
                _tiered_stem(channels)
                if tiered_stem
                else nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            )
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        wider = kind.expansion
        stage = partial(_stage, block, pooled=pooled_shortcuts)
        self.layer1 = stage(blocks[0], 64, 64 * wider, 64, stride=1)
        self.layer2 = stage(blocks[1], 64 * wider, 128 * wider, 128, stride=2)
        self.layer3 = stage(blocks[2], 128 * wider, 256 * wider, 256, stride=2)
        self.layer4 = stage(blocks[3], 256 * wider, 512 * wider, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * wider, classes)

        if init == "he":
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

    def chain(self) -> Chain:
        """The stem with its pooling, the residual blocks, and pooling with the linear layer."""
        return Chain(
            nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool),
            *staged(self.layer1, self.layer2, self.layer3, self.layer4),
            nn.Sequential(self.avgpool, nn.Flatten(), self.fc),
        )


def _stage(
    block: Block,
    blocks: int,
    channels_in: int,
    channels_out: int,
    channels: int,
    stride: int,
    pooled: bool,
) -> nn.Module:
    """A first block that changes the shape, then blocks that keep it."""
    shortcut: nn.Module = nn.Identity()
    if stride != 1 or channels_in != channels_out:
        norm = nn.BatchNorm2d(channels_out)
        if pooled and stride != 1:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            shortcut = nn.Sequential(pool, conv1x1(channels_in, channels_out), norm)
        else:
            shortcut = nn.Sequential(conv1x1(channels_in, channels_out, stride), norm)
    return nn.Sequential(
        block(channels_in, channels, stride, shortcut),
        *(block(channels_out, channels, 1, nn.Identity()) for _ in range(blocks - 1)),
    )


def _tiered_stem(channels: int) -> nn.Sequential:
    """Three 3x3 convolutions, the first with stride 2; a norm and ReLU follow the last as well."""
    return nn.Sequential(
        conv3x3(channels, 24, stride=2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        conv3x3(24, 32),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        conv3x3(32, 64),
    )
