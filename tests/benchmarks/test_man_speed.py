"""What the fused momentum update gains over a loop over parameters, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timing import fastest

from repro.methods.man import LocalLearning, update_all
from repro.models import ResNetCIFAR

pytestmark = pytest.mark.benchmark


def test_fused_momentum_update(record_property: Callable[[str, object], None]) -> None:
    """All copies of a ResNet-110 cut at every unit: 53 copies, 318 tensors."""
    torch.set_num_threads(1)
    model = ResNetCIFAR((3, 32, 32), 10, depth=110)
    method = LocalLearning((3, 32, 32), 10)
    method.attach(model)
    averages = [local_loss.bridge.ema for local_loss in method.auxiliary]

    @torch.no_grad()
    def naive() -> None:
        for average in averages:
            pairs = zip(average.module.parameters(), average.source.parameters(), strict=True)
            for own, source in pairs:
                own.copy_(average.momentum * own + (1 - average.momentum) * source)

    ratio = fastest(naive, 20) / fastest(lambda: update_all(averages), 20)
    record_property("fused_over_naive", round(ratio, 2))
    print(f"fused momentum update: {ratio:.1f} times as fast as a loop over parameters")
    assert ratio > 1.3
