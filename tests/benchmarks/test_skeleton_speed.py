"""One convolution for all orientations against one for each, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable

import one_by_one
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from repro.methods.skeleton import Skeletonize, SoftSkeleton

pytestmark = [pytest.mark.benchmark, pytest.mark.usefixtures("one_thread")]
SHAPES = {
    "one image of 256 x 256": (1, 1, 256, 256),
    "eight images of 48 x 48": (8, 1, 48, 48),
    "one volume of 24 x 24 x 24": (1, 1, 24, 24, 24),
}


def timed(run: Callable[[Tensor], Tensor], x: Tensor, repeats: int) -> tuple[float, Tensor, Tensor]:
    """Seconds of the fastest forward and backward pass; the skeleton and the gradient."""
    times = []
    for _ in range(repeats):
        x = x.detach().requires_grad_()
        start = time.perf_counter()
        skeleton = run(x)
        (gradient,) = torch.autograd.grad(skeleton.square().sum(), x)
        times.append(time.perf_counter() - start)
    return min(times), skeleton.detach(), gradient


@pytest.mark.parametrize("kind", ["boolean", "euler"])
@pytest.mark.parametrize("name", SHAPES)
def test_ten_times_as_fast_as_one_convolution_per_orientation(
    name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = SHAPES[name]
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pool = F.avg_pool2d if len(shape) == 4 else F.avg_pool3d
    x = (pool(noise, 5, 1, 2) > 0.5).float()
    layer = Skeletonize(5, kind, probabilistic=False)  # type: ignore[arg-type]
    plain = Skeletonize(5, kind, probabilistic=False, shortcut=False)  # type: ignore[arg-type]
    fused, *ours = timed(layer, x, 3)
    graph, *same = timed(plain, x, 3)
    naive, *theirs = timed(lambda x: one_by_one.skeletonize(x, 5, kind), x, 1)
    soft, *_ = timed(SoftSkeleton(5), x, 3)
    for a, b, c in zip(ours, same, theirs, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    with capsys.disabled():
        print(
            f"\n{kind}, {name}: {1e3 * fused:.0f} ms; by autograd {graph / fused:.1f} times as "
            f"long, one convolution per orientation {naive / fused:.0f} times, the morphological "
            f"skeleton {soft / fused:.2f} times"
        )
    assert naive > 10 * fused
