"""U-Net (Ronneberger, Fischer, Brox 2015) for masks, in two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, checked

LAYERS = {
    2: (nn.Conv2d, nn.BatchNorm2d, F.max_pool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, F.max_pool3d),
}


class SegmentationUNet(nn.Module):
    """Maps pictures (B, channels, *size) to one logit for each point, (B, 1, *size).

    On each level two 3-wide convolutions with batch norm and ReLU; downwards the size halves and
    the width doubles, upwards the reverse, by interpolation and beside what the same level saw
    downwards. Pictures are padded to what can be halved ``depth`` times.

    Args:
        input_shape: (channels, *size) of one picture, 2-D or 3-D; only channels and the number of
            axes matter.
        width: channels of the first level.
        depth: how often the size is halved.

    Raises:
        UserError: a size below 1, or an input_shape that is no picture's.
    """

    @checked
    def __init__(self, input_shape: Sequence[Count], width: Count = 8, depth: Count = 2) -> None:
        super().__init__()
        self.dims = len(input_shape) - 1
        if self.dims not in LAYERS:
            raise UserError(
                "unet: takes pictures or volumes, so input_shape must be (channels, height, width) "
                f"or (channels, depth, height, width), got {tuple(input_shape)}."
            )
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            self._block(inputs, outputs)
            for inputs, outputs in zip([input_shape[0], *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            self._block(widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(depth))
        )
        self.out = LAYERS[self.dims][0](width, 1, 1)
        self.multiple = 2**depth

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        conv, norm, _ = LAYERS[self.dims]
        return nn.Sequential(
            conv(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU(),
            conv(outputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, *size) to logits (B, 1, *size)."""
        size = x.shape[2:]
        missing = [-edge % self.multiple for edge in size]
        # F.pad counts axes from the last one.
        x = F.pad(x, [part for edge in reversed(missing) for part in (0, edge)])
        pool = LAYERS[self.dims][2]
        passed = []
        for level, block in enumerate(self.down):
            x = block(pool(x, 2) if level else x)
            passed.append(x)
        for block, beside in zip(self.up, reversed(passed[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], 1))
        logits: Tensor = self.out(x)
        for axis, edge in enumerate(size):
            logits = logits.narrow(axis + 2, 0, edge)
        return logits
