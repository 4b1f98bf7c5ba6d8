"""Magnitude pruning to a size: by hand on a small perceptron, and of residual networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repro.methods.n2n import count_parameters, prune_to_size, read
from repro.models import MLP, PlainCNN
from repro.models.vision.resnet_imagenet import ResNetImageNet


def test_the_largest_units_stay() -> None:
    model: Any = MLP([4], 3, [6])
    first, last = model[1], model[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    strength = torch.tensor([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    with torch.no_grad():
        first.weight.copy_(strength[:, None].expand(6, 4))
        first.bias.zero_()
    small: Any = prune_to_size(model, [4], 3 * 4 + 3 + 3 * 3 + 3)
    kept = [0, 2, 4]
    left = dict(small.named_parameters())
    assert torch.equal(left["1.weight"], first.weight[kept])
    assert torch.equal(left["3.weight"], last.weight[:, kept])
    assert sum(each.numel() for each in model.parameters()) == 6 * 4 + 6 + 3 * 6 + 3  # as it was


def test_a_channel_takes_the_columns_of_all_its_pixels_along() -> None:
    """So that half of every layer is left by as many parameters as a network of that size has."""
    model, half = (PlainCNN([1, 8, 8], 10, [4 * n, 4 * n, 6 * n, 6 * n], 8 * n) for n in (2, 1))
    wanted = sum(each.numel() for each in half.parameters())
    small = prune_to_size(model, [1, 8, 8], wanted)
    assert sum(each.numel() for each in small.parameters()) == wanted


def test_a_residual_network_meets_its_size() -> None:
    torch.manual_seed(0)
    model = ResNetImageNet([3, 8, 8], 10, depth=18, small_images=True)
    wanted = int(0.1 * sum(each.numel() for each in model.parameters()))
    small = prune_to_size(model, [3, 8, 8], wanted)
    count = sum(each.numel() for each in small.parameters())
    assert 0.9 * wanted < count <= wanted
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert count_parameters(read(small), [3, 8, 8]) == count
