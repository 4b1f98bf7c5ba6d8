"""Heads on features that were kept, against forwarding every epoch; an attack, written out."""

from __future__ import annotations

from functools import partial

import torch
from timing import faster
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.contextual_fusion import FeatureFusion, HeadTraining, Stream
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.attacks import FGSM, PGD
from repro.toolbox.heads import remove_head

SIZE = 64  # of pictures; what is compared costs the same multiple at 224


def fusion() -> FeatureFusion:
    streams = {}
    for name in ("fg", "bg"):
        network = ResNetImageNet([3, SIZE, SIZE], 10, depth=18)
        streams[name] = Stream(network, remove_head(network))
    return FeatureFusion(streams, 10).eval()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, SIZE, SIZE), torch.arange(count) % 10


def plain_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step: float
) -> Tensor:
    z = x.clone()
    for _ in range(steps):
        z.requires_grad_()
        loss = F.cross_entropy(model(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = (x + (z.detach() + step * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def test_attacks_on_two_streams() -> None:
    """Nothing is lost to what attacks check and offer; the pictures are the same."""
    model, (x, y) = fusion(), pictures(16)
    eps = 1 / 255
    for name, attack, steps, step in (
        ("FGSM", FGSM(eps), 1, eps),
        ("PGD-10", PGD(eps, 10, 0.25, random_start=False), 10, eps / 4),
    ):
        plain = plain_pgd(model, x, y, eps, steps, step)
        torch.testing.assert_close(attack(model, x, y), plain)
        faster(
            f"{name} of two ResNet-18",
            partial(attack, model, x, y),
            partial(plain_pgd, model, x, y, eps, steps, step),
            0.9,
        )


def test_heads_on_kept_features() -> None:
    """An epoch from features, against one that forwards through the networks again."""
    model, (x, y) = fusion(), pictures(64)
    z = model.features(x)
    kept = HeadTraining(model, z, y, batch_size=16)
    optimizer = torch.optim.Adam(model.head.parameters(), 1e-3)

    def again() -> None:
        HeadTraining(model, model.features(x), y, batch_size=16).epoch(optimizer, 0)

    faster("an epoch of a head", lambda: kept.epoch(optimizer, 0), again, 20.0)
