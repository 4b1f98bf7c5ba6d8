"""What masks cost: their path against torch.distributions and a plain blur, and a whole step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import faster
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from repro.methods.noise_mask import BetaLogits, MaskPolicy, NoiseMask, SmoothUpsampling
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.costs import PeakMemory
from repro.toolbox.method import Method

GRID, SIZE, KERNEL, SIGMA = 64, 224, 13, 6.0


def logits(batch: int) -> BetaLogits:
    return BetaLogits(torch.rand(batch, GRID**2), torch.rand(batch, GRID**2))


def blurred(mask_BC: Tensor) -> Tensor:
    """Nearest neighbours, then one convolution by the whole square kernel."""
    picture = F.interpolate(mask_BC.view(-1, 1, GRID, GRID), SIZE, mode="nearest")
    line = torch.exp(-0.5 * (torch.arange(-(KERNEL // 2), KERNEL // 2 + 1.0) / SIGMA) ** 2)
    square = torch.outer(line, line) / line.sum() ** 2
    reach = KERNEL // 2
    return F.conv2d(F.pad(picture, (reach,) * 4, mode="reflect"), square[None, None])


def test_masks_against_torch_distributions_and_a_square_kernel() -> None:
    given, upsampling = logits(32), SmoothUpsampling(GRID, (SIZE, SIZE), KERNEL, SIGMA)
    generator = torch.Generator()

    def ours() -> None:
        mask = given.sample(generator)
        given.log_density(mask)
        upsampling(mask)

    def theirs() -> None:
        beta = Beta(given.log_alpha.exp(), given.log_beta.exp())
        mask = beta.sample().clamp(1e-6, 1 - 1e-6)
        beta.log_prob(mask)
        blurred(mask)

    faster("masks of 32 images, against torch.distributions and a square kernel", ours, theirs, 1.5)


def test_upsampling_against_a_square_kernel() -> None:
    upsampling, mask = SmoothUpsampling(GRID, (SIZE, SIZE), KERNEL, SIGMA), torch.rand(32, GRID**2)
    ours, theirs = partial(upsampling, mask), partial(blurred, mask)
    faster("up-sampling and blur of 32 masks, against a square kernel", ours, theirs, 3.0)


def resnet(depth: Any, classes: int = 165) -> ResNetImageNet:
    light = depth == 10
    return ResNetImageNet(
        (3, SIZE, SIZE), classes, depth, True, tiered_stem=light, pooled_shortcuts=light
    )


def step_of(method: Method, model: ResNetImageNet, batch: int) -> Callable[[], object]:
    x, y = torch.randn(batch, 3, SIZE, SIZE), torch.arange(batch)
    method.attach(model)
    optimizer = method.optimizer(model, partial(torch.optim.SGD, lr=1e-3, momentum=0.9))

    def step() -> None:
        optimizer.zero_grad()
        method.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), (x, y), Tensor.backward)
        method.before_step(model)
        optimizer.step()

    return step


def overhead(depth: Any, factor: float) -> None:
    """A step behind masks against a plain one; counted, the policy adds 27, 61 and 101 %."""
    masked = NoiseMask(MaskPolicy(resnet(10), GRID), KERNEL, SIGMA)
    ours, plain = step_of(masked, resnet(depth), 4), step_of(Method(), resnet(depth), 4)
    faster(f"a step of ResNet-{depth} behind masks, against a plain one", ours, plain, factor, 3)
    peaks = []
    for step in (ours, plain):
        with PeakMemory(torch.device("cpu")) as memory:
            step()
        peaks.append(memory.peak / 2**20)
    print(f"peak of a step: {peaks[0]:.0f} MB, without masks {peaks[1]:.0f} MB")
    assert math.isfinite(peaks[0])


def test_a_step_of_resnet18() -> None:
    overhead(18, 0.5)


def test_a_step_of_resnet10t() -> None:
    overhead(10, 0.4)


def test_a_step_of_resnet50() -> None:
    overhead(50, 0.65)
