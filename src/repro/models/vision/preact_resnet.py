"""Residual networks with activation first, deep or wide, for small images.

He et al. 2016, "Identity mappings in deep residual networks"; Zagoruyko & Komodakis 2016, "Wide
residual networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import conv3x3, he_init


class PreActBlock(nn.Module):
    """``shortcut(x) + conv(relu(bn(...)))``, each convolution behind its own norm and ReLU.

    Two 3x3 convolutions, or, as a bottleneck, 1x1 to a quarter of the channels, 3x3, and 1x1 back.
    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, bottleneck: bool, dropout: float
    ) -> None:
        super().__init__()
        if bottleneck:
            inner = channels_out // 4
            convs = [
                nn.Conv2d(channels_in, inner, 1, bias=False),
                conv3x3(inner, inner, stride),
                nn.Conv2d(inner, channels_out, 1, bias=False),
            ]
        else:
            convs = [
                conv3x3(channels_in, channels_out, stride),
                conv3x3(channels_out, channels_out),
            ]
        self.start = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU())
        self.residual = nn.Sequential(convs[0])
        for before, conv in pairwise(convs):
            self.residual.extend([nn.BatchNorm2d(before.out_channels), nn.ReLU()])
            self.residual.extend([nn.Dropout(dropout), conv] if dropout else [conv])
        self.shortcut: nn.Module | None = None
        if channels_in != channels_out or stride != 1:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        active = self.start(x)
        kept: Tensor = x if self.shortcut is None else self.shortcut(active)
        return kept + self.residual(active)


class PreActResNet(nn.Module):
    """PreResNet-110 and the like (bottlenecks), and wide residual networks (two 3x3 convolutions).

    A 3x3 convolution, three stages of blocks, a last norm and ReLU, global average pooling, one
    linear layer. WRN-28-10 has 36.5M parameters. Maps (batch, *input_shape) to logits (batch,
    classes).

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        depth: 9n + 2 with bottlenecks, 6n + 4 without.
        bottleneck: the kind of block.
        widen: factor on the channels of all stages: 16, 32 and 64, times four with bottlenecks.
        dropout: rate between the convolutions of a block.

    Raises:
        UserError: another depth, a size below 1, or a rate outside [0, 1).
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        depth: Count = 110,
        bottleneck: bool = True,
        widen: Count = 1,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("preact_resnet", input_shape)
        blocks, rest = divmod(depth - 2, 9) if bottleneck else divmod(depth - 4, 6)
        if blocks < 1 or rest:
            rule = "9n + 2" if bottleneck else "6n + 4"
            raise UserError(f"preact_resnet: depth must be {rule} here, got {depth}.")
        self.stem = conv3x3(channels, width := 16)
        self.stages = nn.Sequential()
        for stage in range(3):
            wanted = 16 * 2**stage * widen * (4 if bottleneck else 1)
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.stages.append(PreActBlock(width, wanted, stride, bottleneck, dropout))
                width = wanted
        self.end = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(width, classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.end(self.stages(self.stem(x))))
