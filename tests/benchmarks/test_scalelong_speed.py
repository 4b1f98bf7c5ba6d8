"""What scaling the skips costs: a training step of U-ViT with CS and LS against one without."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from repro.methods.scalelong import SkipScaling
from repro.models.diffusion.uvit import UViT

pytestmark = pytest.mark.benchmark
ROUNDS = 15


def test_scaling_skips_is_nearly_free(record_property: Callable[[str, object], None]) -> None:
    """Claim C8 as time: 65 tokens of width 128, 13 blocks, 16 images."""
    torch.set_num_threads(1)
    x, times = torch.randn(16, 3, 16, 16), 999 * torch.rand(16)
    models = {}
    for kind in ("none", "cs", "ls"):
        models[kind] = UViT([3, 16, 16], width=128, heads=4)
        SkipScaling(kind).attach(models[kind])
    fastest = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):  # in turns, so that a slow moment of the machine meets all
        for kind, model in models.items():
            start = time.perf_counter()
            model.zero_grad()
            model(x, times).square().mean().backward()
            fastest[kind] = min(fastest[kind], time.perf_counter() - start)
    for kind in ("cs", "ls"):
        ratio = fastest[kind] / fastest["none"]
        record_property(f"{kind}_over_none", round(ratio, 3))
        print(f"a step with {kind} takes {ratio:.3f} times that without")
        assert ratio < 1.1
