"""What the fused momentum update gains over a loop over parameters."""

from __future__ import annotations

from typing import Any

import torch
from timing import faster

from repro.methods.man import LocalLearning, update_all
from repro.models import ResNetCIFAR


def test_fused_momentum_update() -> None:
    """All copies of a ResNet-110 cut at every unit: 53 copies, 318 tensors."""
    method = LocalLearning((3, 32, 32), 10)
    method.attach(ResNetCIFAR((3, 32, 32), 10, depth=110))
    losses: list[Any] = list(method.auxiliary)
    averages = [local_loss.bridge.ema for local_loss in losses]

    @torch.no_grad()
    def naive() -> None:
        for average in averages:
            pairs = zip(average.module.parameters(), average.source.parameters(), strict=True)
            for own, source in pairs:
                own.copy_(average.momentum * own + (1 - average.momentum) * source)

    faster("fused momentum update", lambda: update_all(averages), naive, 1.3, repeats=20)
