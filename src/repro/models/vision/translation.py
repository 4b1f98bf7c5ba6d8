"""Networks that turn one picture into another, and what tells the outcome from real ones.

`Pix2PixUNet` and `PatchGAN` are those of Isola, Zhu, Zhou, Efros (CVPR 2017) as published in code;
`ResizeUNet` is a small one without batch statistics, for maps of some 32 x 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Fraction, NonNegative, checked
from repro.models.parts.checks import image_shape

SLOPE = 0.2  # of leaky rectifiers


class ResizeUNet(nn.Module):
    """Maps pictures (B, C, H, W) to (B, outputs, H, W) in [0, 1].

    Downwards 3 x 3 convolutions, all but the first of stride 2, group norm and leaky ReLU; upwards
    nearest neighbours, beside what the same level saw downwards, and the same; then a sigmoid.
    There is neither dropout nor batch norm: it does the same in training and evaluation.

    Args:
        input_shape: (C, H, W).
        outputs: channels.
        width: of the first level.
        multipliers: of ``width`` by level; each level but the first halves the picture.
        groups: of the group norms; divides all widths.

    Raises:
        UserError: sizes that do not fit together.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        outputs: Count = 1,
        width: Count = 16,
        multipliers: Sequence[Count] = (1, 2, 4, 4),
        groups: Count = 4,
    ) -> None:
        super().__init__()
        C = _divided("resize_unet", input_shape, len(multipliers) - 1)
        if width % groups:
            raise UserError(f"resize_unet: model.groups={groups} does not divide width={width}.")

        def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(before, after, 3, stride, 1)
            return nn.Sequential(conv, nn.GroupNorm(groups, after), nn.LeakyReLU(SLOPE))

        widths = [width * factor for factor in multipliers]
        self.down = nn.ModuleList(
            block(before, after, 1 if level == 0 else 2)
            for level, (before, after) in enumerate(zip([C, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            block(widths[level + 1] + widths[level], widths[level])
            for level in reversed(range(len(widths) - 1))
        )
        self.out = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, H, W)."""
        seen = []
        for block in self.down:
            x = block(x)
            seen.append(x)
        for block, beside in zip(self.up, reversed(seen[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], 1))
        y: Tensor = self.out(x).sigmoid()
        return y


class Pix2PixUNet(nn.Module):
    """The published U-Net: 4 x 4 convolutions of stride 2 down to one pixel, transposed ones up.

    The first and the deepest down-convolution have no batch norm. Dropout is in the up-convolutions
    next to the deepest one, as far as they are of full width.

    Args:
        input_shape: (C, H, W).
        outputs: channels.
        width: of the first level; it doubles up to eight times as much.
        halvings: 8 for 256 x 256 pixels.
        dropout: share.
        output: ``tanh`` as published, for pictures in [-1, 1]; ``sigmoid`` for [0, 1].
        deviation: of the Gaussian that weights are drawn from.

    Raises:
        UserError: a picture that cannot be halved so often.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        outputs: Count = 1,
        width: Count = 64,
        halvings: Count = 8,
        dropout: Fraction = 0.5,
        output: Literal["tanh", "sigmoid"] = "sigmoid",
        deviation: NonNegative = 0.02,
    ) -> None:
        super().__init__()
        C = _divided("pix2pix_unet", input_shape, halvings)
        widths = [width * min(2**level, 8) for level in range(halvings)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, after in enumerate(widths):
            before = C if level == 0 else widths[level - 1]
            down: list[nn.Module] = [] if level == 0 else [nn.LeakyReLU(SLOPE)]
            down.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            if 0 < level < halvings - 1:
                down.append(nn.BatchNorm2d(after))
            self.down.append(nn.Sequential(*down))

            goes_in = after if level == halvings - 1 else 2 * after
            if level == 0:
                up: list[nn.Module] = [nn.ReLU(), nn.ConvTranspose2d(goes_in, outputs, 4, 2, 1)]
                up.append(nn.Tanh() if output == "tanh" else nn.Sigmoid())
            else:
                conv = nn.ConvTranspose2d(goes_in, before, 4, 2, 1, bias=False)
                up = [nn.ReLU(), conv, nn.BatchNorm2d(before)]
                if 4 < level + 1 < halvings and dropout:
                    up.append(nn.Dropout(dropout))
            self.up.append(nn.Sequential(*up))
        gaussian_weights(self, deviation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, H, W)."""
        seen = []
        for block in self.down:
            x = block(x)
            seen.append(x)
        for level in reversed(range(len(seen))):
            x = self.up[level](x if level == len(seen) - 1 else torch.cat([seen[level], x], 1))
        return x


class PatchGAN(nn.Module):
    """Maps pictures (B, C, H, W) to logits (B, 1, h, w), each of a patch: positive for real ones.

    With the defaults the published discriminator, whose patches have 70 x 70 pixels.

    Args:
        channels: C, of the condition and the picture together.
        width: of the first convolution; it doubles up to eight times as much.
        strides: of the convolutions with 4 x 4 pixels.
        head: edge of the last convolution, stride 1.
        norm: whether there is batch norm behind all but the first and the last.
        deviation: of the Gaussian that weights are drawn from; None: PyTorch's own.
    """

    @checked
    def __init__(
        self,
        channels: Count,
        width: Count = 64,
        strides: Sequence[Count] = (2, 2, 2, 1),
        head: Count = 4,
        norm: bool = True,
        deviation: NonNegative | None = 0.02,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for level, stride in enumerate(strides):
            after = width * min(2**level, 8)
            has_norm = norm and level > 0
            layers.append(nn.Conv2d(before, after, 4, stride, 1, bias=not has_norm))
            if has_norm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(SLOPE))
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, head, 1, 1))
        if deviation is not None:
            gaussian_weights(self, deviation)

    def forward(self, condition: Tensor, picture: Tensor) -> Tensor:
        """(B, C - c, H, W) and (B, c, H, W) to (B, 1, h, w)."""
        logits: Tensor = self.layers(torch.cat([condition, picture], 1))
        return logits


def gaussian_weights(model: nn.Module, deviation: float) -> None:
    """Draws convolutions from N(0, deviation²), scales of batch norms from N(1, deviation²).

    Biases become 0.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            nn.init.normal_(layer.weight, mean, deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _divided(name: str, input_shape: Sequence[int], halvings: int) -> int:
    """The channels of pictures that can be halved so often.

    Raises:
        UserError: these cannot.
    """
    C, H, W = image_shape(name, input_shape)
    if H % 2**halvings or W % 2**halvings:
        raise UserError(f"{name}: pictures of {H} x {W} pixels cannot be halved {halvings} times.")
    return C
