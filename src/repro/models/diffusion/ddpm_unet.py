"""The convolutional UNet of denoising diffusion models (Ho, Jain, Abbeel, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Fraction, Natural, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.skips import PlainSkips, sinusoidal


class ResBlock(nn.Module):
    """Two normalised convolutions with the time added between them, and a residual.

    Args:
        before: channels of the input.
        after: channels of the output.
        time_width: of the time embedding.
        groups: of the group norms.
        dropout: before the second convolution.
        attention: append self-attention over all pixels.
    """

    def __init__(
        self,
        before: int,
        after: int,
        time_width: int,
        groups: int,
        dropout: float,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_width, after))
        self.second = nn.Sequential(
            nn.GroupNorm(groups, after),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.attention = Attention(after, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, time_BT: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        inner = self.first(x) + self.time(time_BT)[:, :, None, None]
        out: Tensor = self.attention(self.shortcut(x) + self.second(inner))
        return out


class Attention(nn.Module):
    """Self-attention of one head over the pixels, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = x + self.project(attended.reshape(x.shape))
        return out


class DDPMUNet(nn.Module):
    """Maps noised images (B, C, H, W) and times (B,) to noise (B, C, H, W).

    With the defaults and CIFAR-10 it has 35.7 M parameters, as published, and N = 12 long skips:
    every encoder feature (of the first convolution, each block and each downsampling) is kept and
    concatenated to the input of a decoder block. Weights keep PyTorch's initialisation; the
    original's zero-initialised projections would hide what scaling skips does at the start.

    Args:
        input_shape: (C, H, W).
        width: channels of the first level.
        multipliers: channels of each level over ``width``; levels halve the image.
        blocks: residual blocks of an encoder level (a decoder level has one more).
        attention: levels with self-attention, counted from 0.
        groups: of the group norms; divides all channel numbers.
        dropout: in every residual block.

    Raises:
        UserError: sizes that do not fit together.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        width: Count = 128,
        multipliers: Sequence[Count] = (1, 2, 2, 2),
        blocks: Count = 2,
        attention: Sequence[Natural] = (1,),
        groups: Count = 32,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        C, H, W = image_shape("ddpm_unet", input_shape)
        if H % 2 ** (levels - 1) or W % 2 ** (levels - 1):
            raise UserError(
                f"ddpm_unet: images of {H}x{W} pixels cannot be halved {levels - 1} times."
            )
        if width % groups:
            raise UserError(
                f"ddpm_unet: model.groups={groups} does not divide model.width={width}."
            )
        self.width = width
        block = partial(ResBlock, time_width=4 * width, groups=groups, dropout=dropout)
        channels = [width * factor for factor in multipliers]
        self.time = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )
        # An encoder step is a residual block or a downsampling; each leaves one feature behind.
        self.encoder = nn.ModuleList([nn.Conv2d(C, width, 3, padding=1)])
        kept = [width]
        for level, after in enumerate(channels):
            for _ in range(blocks):
                has_attention = level in attention
                self.encoder.append(block(kept[-1], after, attention=has_attention))
                kept.append(after)
            if level < levels - 1:
                self.encoder.append(nn.Conv2d(after, after, 3, stride=2, padding=1))
                kept.append(after)
        deepest = channels[-1]
        self.middle = nn.ModuleList(
            [
                block(deepest, deepest, attention=True),
                block(deepest, deepest),
            ]
        )
        self.skip_features = kept[::-1]  # in decoder order
        self.decoder = nn.ModuleList()
        self.upsample = nn.ModuleDict()  # by the decoder block that it follows
        before = deepest
        for level in reversed(range(levels)):
            for _ in range(blocks + 1):
                merged = before + self.skip_features[len(self.decoder)]
                before = channels[level]
                self.decoder.append(block(merged, before, attention=level in attention))
            if level > 0:
                last = str(len(self.decoder) - 1)
                self.upsample[last] = nn.Sequential(
                    nn.Upsample(scale_factor=2), nn.Conv2d(before, before, 3, padding=1)
                )
        self.head = nn.Sequential(
            nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, C, 3, padding=1)
        )
        self.scaler: nn.Module = PlainSkips()

    def forward(self, x: Tensor, time_B: Tensor, condition_BT: Tensor | None = None) -> Tensor:
        """The predicted noise, of the shape of ``x``; a condition is added to the time."""
        time_BT = self.time(sinusoidal(time_B, self.width).to(x.dtype))
        if condition_BT is not None:
            time_BT = time_BT + condition_BT
        h = x
        skips = []
        for step in self.encoder:
            h = step(h, time_BT) if isinstance(step, ResBlock) else step(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, time_BT)
        for j, block in enumerate(self.decoder):
            h = block(torch.cat([h, self.scaler(skips.pop(), j)], dim=1), time_BT)
            if str(j) in self.upsample:
                h = self.upsample[str(j)](h)
        noise: Tensor = self.head(h)
        return noise
