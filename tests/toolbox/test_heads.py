"""Classifiers at the end of networks: found, replaced, removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.heads import head_name, remove_head, replace_head


def test_the_last_linear_layer_is_the_head() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert (head_name(model), replace_head(model, 5)) == ("2", 2)
    assert model(torch.zeros(1, 4)).shape == (1, 5)


def test_without_its_head_a_network_gives_what_the_head_read() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(6, 4)
    read = model[:2](x)
    assert remove_head(model) == 3
    assert torch.equal(model(x), read)


def test_heads_are_found_inside_parts() -> None:
    with torch.device("meta"):
        model = ResNetImageNet([3, 64, 64], 1000, depth=18)
        assert remove_head(model) == 512
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 512)


def test_a_network_without_one_is_one_line() -> None:
    with pytest.raises(UserError, match="no linear classifier"):
        head_name(nn.Conv2d(1, 1, 1))
