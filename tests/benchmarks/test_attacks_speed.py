"""DeepFool for a whole batch at once, against one image and one class after the other."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timing import faster
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


def problem(size: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = SmallCNN((1, 8, 8), 10).eval(), torch.rand(size, 1, 8, 8)
    return model, x, model(x).argmax(1)


def test_deepfool() -> None:
    case, attack = problem(128), DeepFool(EPS)
    torch.testing.assert_close(attack(*case), one_by_one(*case), atol=1e-3, rtol=0)
    faster("DeepFool", partial(attack, *case), partial(one_by_one, *case), 5, repeats=1)


def test_pgd_against_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = problem(256)
    theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(rel_stepsize=0.1, steps=20)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    work = partial(PGD(EPS, 20, 0.1), model, x, y), partial(theirs, wrapped, x, y, epsilons=EPS)
    faster("PGD-20, 256 images, against foolbox", *work, 1 / 1.1)
