"""How alike two pictures are, as restoration papers count it: PSNR and SSIM, in 8 bits.

Shapes: pictures (N, 3, H, W) in [0, 1]. Luma is that of ITU-R BT.601 as MATLAB has it: 16 for
black, 235 for white. `ms_ssim` is of maps in [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

LUMA = (65.481, 128.553, 24.966)
WINDOW = 11  # edge of SSIM's windows: 3.5 standard deviations to each side
SMALL_BETAS = (0.3, 0.3, 0.4)  # weights of three scales, for maps too small for five


def to_8_bit(x_N3HW: Tensor) -> Tensor:
    """Clamped and rounded to whole numbers from 0 to 255, as they are saved; float."""
    return (255 * x_N3HW.clamp(0, 1)).round()


def luma(x_N3HW: Tensor, rounded: bool = True) -> Tensor:
    """Y (N, 1, H, W) of pictures in 0…255.

    Args:
        x_N3HW: pictures.
        rounded: to whole numbers.
    """
    weights = torch.tensor(LUMA, dtype=x_N3HW.dtype, device=x_N3HW.device).view(3, 1, 1) / 255
    y = 16 + (x_N3HW * weights).sum(1, keepdim=True)
    return y.round() if rounded else y


def psnr(x: Tensor, target: Tensor, most: float = 100.0) -> Tensor:
    """Peak signal-to-noise ratio in dB (N,) of pictures in 0…255.

    Args:
        x: (N, …).
        target: likewise.
        most: what equal pictures count, whose ratio is infinite.
    """
    error = (x - target).flatten(1).square().mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=most)


def ssim(x_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
    """Structural similarity (N,) of pictures in 0…255, of at least 11 x 11 pixels.

    Gaussian windows of 11 x 11 pixels, standard deviation 1.5, only where they fit (Wang et al.
    2004). In double precision: variances of bright frames are small differences of large numbers.
    """
    _, everywhere = structural_similarity_index_measure(
        x_NCHW.double(),
        target_NCHW.double(),
        sigma=1.5,
        reduction="none",
        data_range=255.0,
        return_full_image=True,
    )
    border = WINDOW // 2
    fitting: Tensor = everywhere[..., border:-border, border:-border]
    return fitting.flatten(1).mean(1)


def ms_ssim(x_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
    """Multi-scale structural similarity (N,) of maps in [0, 1] (Wang, Simoncelli, Bovik 2003).

    The five scales and Gaussian windows of the definition where they fit; smaller maps, down to
    12 x 12 pixels, have three scales and windows of 3 x 3 pixels.
    """
    if min(x_NCHW.shape[-2:]) // 2**4 >= WINDOW:
        scales: dict[str, Any] = {}
    else:
        scales = {"gaussian_kernel": False, "kernel_size": 3, "betas": SMALL_BETAS}
    found: Tensor = multiscale_structural_similarity_index_measure(
        x_NCHW, target_NCHW, reduction="none", data_range=1.0, **scales
    )
    return found
