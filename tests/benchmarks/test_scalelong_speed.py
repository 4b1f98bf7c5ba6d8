"""What scaling the skips costs: a training step of U-ViT with CS and LS against one without."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timing import faster

from repro.methods.scalelong import SkipScaling
from repro.models.diffusion.uvit import UViT


@pytest.mark.parametrize("kind", ["cs", "ls"])
def test_scaling_skips_is_nearly_free(kind: Any) -> None:
    """Claim C8 as time: 65 tokens of width 128, 13 blocks, 16 images; at most a tenth more."""
    x, times = torch.randn(16, 3, 16, 16), 999 * torch.rand(16)

    def step(model: UViT) -> None:
        model.zero_grad()
        model(x, times).square().mean().backward()

    kinds: tuple[Any, ...] = ("none", kind)
    models = {name: UViT([3, 16, 16], width=128, heads=4) for name in kinds}
    for name, model in models.items():
        SkipScaling(name).attach(model)
    work = partial(step, models[kind]), partial(step, models["none"])
    faster(f"a step with {kind}, against one without", *work, 1 / 1.1, repeats=15)
