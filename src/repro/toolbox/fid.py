"""The Fréchet Inception distance of natural images, as an optional dependency."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import UserError


def require_inception() -> None:
    """Checks that the Inception network's package is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError(
            "module.sampling.fid_samples needs: pip install 'gradient-repro[fid]' (or set it to 0)."
        )


def as_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes, rounded to the nearest as image files are, not cut.

    Args:
        images: of any shape; values beyond the range are cut.
    """
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def frechet_inception_distance(
    reals: Iterable[Tensor], fakes: Iterable[Tensor], device: torch.device, network: Any = 2048
) -> float:
    """FID of two streams of images (B, C, H, W) in [-1, 1] (torchmetrics' implementation).

    Args:
        reals: batches of real images.
        fakes: batches of samples; values beyond the range are cut.
        device: where to compute.
        network: features of the Inception network, or a module that maps bytes to features.

    A `UserError` says so if the Inception network's package is not installed.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if not isinstance(network, nn.Module):
        require_inception()
    metric = FrechetInceptionDistance(feature=network).to(device)
    for images, real in ((reals, True), (fakes, False)):
        for batch in images:
            metric.update(as_bytes(batch), real=real)
    return float(metric.compute())
