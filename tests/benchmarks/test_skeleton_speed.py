"""What is fused, and looks only where a deletion may be, against a convolution for each test."""

from __future__ import annotations

from collections.abc import Callable

import one_by_one
import pytest
import torch
from timing import faster
from torch import Tensor
from torch.nn import functional as F

from repro.methods.skeleton import Skeletonize, SoftSkeleton

SHAPES = {
    "one image of 256 x 256": (1, 1, 256, 256),
    "eight images of 48 x 48": (8, 1, 48, 48),
    "one volume of 24 x 24 x 24": (1, 1, 24, 24, 24),
}


@pytest.mark.parametrize("kind", ["boolean", "euler"])
@pytest.mark.parametrize("name", SHAPES)
def test_ten_times_as_fast_as_one_convolution_per_orientation(name: str, kind: str) -> None:
    pool = F.avg_pool2d if len(SHAPES[name]) == 4 else F.avg_pool3d
    x = (pool(torch.rand(SHAPES[name]), 5, 1, 2) > 0.5).float().requires_grad_()
    fused = Skeletonize(5, kind, probabilistic=False)  # type: ignore[arg-type]
    plain = Skeletonize(5, kind, probabilistic=False, shortcut=False)  # type: ignore[arg-type]

    def both_ways(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        skeleton = run(x)
        (gradient,) = torch.autograd.grad(skeleton.square().sum(), x)
        return skeleton.detach(), gradient

    def naive(x: Tensor) -> Tensor:
        return one_by_one.skeletonize(x, 5, kind)

    for a, b, c in zip(both_ways(fused), both_ways(plain), both_ways(naive), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    references = {"autograd": (plain, 0), "orientations": (naive, 10), "soft": (SoftSkeleton(5), 0)}
    for reference, (run, factor) in references.items():
        work = (lambda: both_ways(fused)), (lambda run=run: both_ways(run))
        faster(f"{kind}, {name}, against {reference}", *work, factor, repeats=1)


@pytest.mark.parametrize("kind", ["boolean", "euler"])
def test_a_forward_pass_of_a_volume(kind: str) -> None:
    x = (F.avg_pool3d(torch.rand(1, 1, 64, 64, 64), 5, 1, 2) > 0.5).float()
    ours = Skeletonize(5, kind, probabilistic=False)  # type: ignore[arg-type]
    name = f"{kind}, one volume of 64 x 64 x 64, forward, against orientations"
    faster(name, lambda: ours(x), lambda: one_by_one.skeletonize(x, 5, kind), 20, repeats=1)
