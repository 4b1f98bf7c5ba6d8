"""Translators of pictures and their discriminators: published sizes, patches, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.models.vision.translation import PatchGAN, Pix2PixUNet, ResizeUNet


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: Pix2PixUNet([3, 256, 256], 3), 54_413_955),
        (lambda: Pix2PixUNet([6, 256, 256], 1), 54_412_929),
        (lambda: PatchGAN(6), 2_768_705),
        (lambda: PatchGAN(7), 2_769_729),
    ],
)
def test_published_networks_have_their_parameters(model: type, parameters: int) -> None:
    with torch.device("meta"):
        assert count(model()) == parameters


def test_pictures_keep_their_size_and_range() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 32, 32)
    small, large = ResizeUNet([6, 32, 32], width=8), Pix2PixUNet([6, 32, 32], width=4, halvings=5)
    signed = Pix2PixUNet([6, 32, 32], width=4, halvings=5, output="tanh")
    for model in (small, large):
        y = model(x)
        assert y.shape == (2, 1, 32, 32)
        assert 0 < y.min() < y.max() < 1
    assert signed(x).min() < 0


def test_dropout_is_next_to_the_deepest_level() -> None:
    with torch.device("meta"):
        up = Pix2PixUNet([3, 256, 256]).up
    assert [any(isinstance(part, nn.Dropout) for part in block.children()) for block in up] == [
        False, False, False, False, True, True, True, False
    ]  # fmt: skip


def nested(net: Pix2PixUNet, x: Tensor, level: int = 0) -> Tensor:
    """The published block of a level, which holds those below it and hands on what it reads."""

    def through(block: Any, kind: type[nn.Module], x: Tensor) -> Tensor:
        for part in block:
            x = part(x) if isinstance(part, kind) else x
        return x

    down, up = net.down[level], net.up[level]
    y = through(down, nn.Conv2d, F.leaky_relu(x, 0.2) if level else x)
    y = through(down, nn.BatchNorm2d, y)
    if level + 1 < len(net.down):
        y = nested(net, y, level + 1)
    y = through(up, nn.BatchNorm2d, through(up, nn.ConvTranspose2d, F.relu(y)))
    return torch.cat([x, y], 1) if level else y.sigmoid()


def test_levels_are_wired_as_in_the_published_blocks() -> None:
    torch.manual_seed(0)
    net = Pix2PixUNet([3, 64, 64], width=4, halvings=6, dropout=0.0, deviation=0.2)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(x), nested(net, x))


def seen_by_a_logit(model: PatchGAN, size: int) -> int:
    """Edge of the patch that the middle logit looks at, by its gradient."""
    picture = torch.randn(1, 1, size, size, requires_grad=True)
    logits: Tensor = model(torch.zeros(1, 1, size, size), picture)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert picture.grad is not None
    return int(picture.grad[0, 0].any(1).sum())


def test_patches_have_the_published_size() -> None:
    assert seen_by_a_logit(PatchGAN(2, width=2, norm=False), 128) == 70
    assert seen_by_a_logit(PatchGAN(2, width=2, strides=[2, 2], head=3, norm=False), 32) == 18
    assert seen_by_a_logit(PatchGAN(2, width=2, strides=[2], head=3, norm=False), 32) == 8
    full = PatchGAN(7, width=2)
    assert full(torch.zeros(1, 6, 256, 256), torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)


def test_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    model = PatchGAN(7)
    layer = model.layers[5]
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("0.bias"))
    norms: list[Tensor] = [
        each.weight for each in model.modules() if isinstance(each, nn.BatchNorm2d)
    ]
    assert torch.cat(norms).mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResizeUNet([6, 30, 32]), "30 x 32 pixels cannot be halved 3 times"),
        (lambda: ResizeUNet([6, 32, 32], width=6), "groups=4"),
        (lambda: Pix2PixUNet([6, 64, 64]), "halved 8 times"),
    ],
)
def test_what_does_not_fit_is_one_line(build: type, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert len(str(error.value).splitlines()) == 1
