"""Augmentation and normalisation of whole image batches; no loop over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CropFlip:
    """Random crop out of the zero-padded image, then a random horizontal flip.

    The augmentation of He et al., "Deep Residual Learning for Image Recognition", 2016, section
    4.2 (4 pixels of padding, flip with probability one half). Images are padded before they are
    normalised, i.e. with black.

    Args:
        pad: pixels of padding on each side; 0 for no crop.
        flip: flip half of the images.
        reflect: pad with the image's mirror image instead of with black.
    """

    pad: int = 4
    flip: bool = True
    reflect: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a tensor like `x`, (B, C, H, W) of any dtype; draws from the CPU `generator`."""
        B, C, H, W = x.shape
        row_B, column_B = torch.randint(2 * self.pad + 1, (2, B), generator=generator).to(x.device)
        flip_B = torch.rand(B, generator=generator).to(x.device) < 0.5
        rows_BH = row_B[:, None] + torch.arange(H, device=x.device)
        columns_W = torch.arange(W, device=x.device)
        columns_BW = columns_W.expand(B, W)
        if self.flip:
            columns_BW = torch.where(flip_B[:, None], columns_W.flip(0), columns_W)
        columns_BW = column_B[:, None] + columns_BW
        if self.reflect:  # which PyTorch offers for floats alone; bytes survive the way there
            padded = F.pad(x.float(), (self.pad,) * 4, mode="reflect").to(x.dtype)
        else:
            padded = F.pad(x, (self.pad,) * 4)
        # One flat gather moves all channels of all images at once.
        pixels_BHW = rows_BH[:, :, None] * padded.shape[3] + columns_BW[:, None, :]
        indices = pixels_BHW.view(B, 1, H * W).expand(B, C, H * W)
        return padded.flatten(2).gather(2, indices).view(B, C, H, W)


class Normalise:
    """Maps uint8 images to float: ``(x / 255 - mean) / std`` per channel.

    Args:
        mean: of each channel, on the scale 0 to 1.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        mean_C11 = torch.tensor(list(mean)).view(-1, 1, 1)
        std_C11 = torch.tensor(list(std)).view(-1, 1, 1)
        # Kept as one multiplication and one addition: this runs on every batch.
        self.scale = 1 / (255 * std_C11)
        self.shift = -mean_C11 / std_C11

    def __call__(self, x: Tensor) -> Tensor:
        """Returns float32 (B, C, H, W) for uint8 (B, C, H, W)."""
        scale, shift = self.scale.to(x.device), self.shift.to(x.device)
        return x.float().mul_(scale).add_(shift)
