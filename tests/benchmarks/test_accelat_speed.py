"""DeepFool for a whole batch at once, against one image and one class after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from repro.models import SmallCNN
from repro.toolbox.attacks import PGD, DeepFool

EPS = 0.15


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """DeepFool as its authors published it: a loop over images, and over classes in each step."""
    out = []
    for image, label in zip(x, y, strict=True):
        z, total = image[None], torch.zeros_like(image[None])
        order = model(z)[0].argsort(descending=True)
        for _ in range(50):
            point = z.detach().requires_grad_()
            logits = model(point)[0]
            if int(logits.argmax()) != int(label):
                break
            best, step = torch.inf, total
            (top,) = torch.autograd.grad(logits[order[0]], point, retain_graph=True)
            for k in order[1:]:
                (slope,) = torch.autograd.grad(logits[k], point, retain_graph=True)
                w = slope - top
                gap = float((logits[k] - logits[order[0]]).abs() / (w.abs().sum() + 1e-8))
                if gap < best:
                    best, step = gap, (gap + 1e-4) * w.sign()
            total = total + step
            z = (image[None] + 1.02 * total).clamp(0, 1)
        moved = image[None] + (z - image[None]).clamp(-EPS, EPS)
        out.append(moved.clamp(0, 1).detach())
    return torch.cat(out)


def seconds(function: Callable[[], Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return median(times)


def problem(size: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SmallCNN((1, 8, 8), 10).eval()
    x = torch.rand(size, 1, 8, 8)
    return model, x, model(x).argmax(1)


@pytest.mark.benchmark
def test_deepfool_beats_the_loop_over_images_and_classes() -> None:
    model, x, y = problem(128)
    attack = DeepFool(EPS)
    torch.testing.assert_close(attack(model, x, y), one_by_one(model, x, y), atol=1e-3, rtol=0)
    batched = seconds(lambda: attack(model, x, y), 5)
    looped = seconds(lambda: one_by_one(model, x, y), 1)
    print(f"\nDeepFool, 128 images: {1e3 * batched:.0f} ms, one by one {1e3 * looped:.0f} ms,"
          f" {looped / batched:.0f} times as long")  # fmt: skip
    assert looped > 5 * batched


@pytest.mark.benchmark
def test_pgd_costs_no_more_than_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = problem(256)
    theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(rel_stepsize=0.1, steps=20)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    ours = seconds(lambda: PGD(EPS, 20, 0.1)(model, x, y), 5)
    other = seconds(lambda: theirs(wrapped, x, y, epsilons=EPS)[1], 5)
    print(f"\nPGD-20, 256 images: {1e3 * ours:.0f} ms, foolbox {1e3 * other:.0f} ms,"
          f" {other / ours:.2f} times as long")  # fmt: skip
    assert ours < 1.1 * other
