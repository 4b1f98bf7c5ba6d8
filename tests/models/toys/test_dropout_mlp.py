"""The perceptron with dropout."""

from __future__ import annotations

import torch
from torch import nn

from repro.models.toys.dropout_mlp import DropoutMLP


def test_sizes() -> None:
    model = DropoutMLP([2], 4)
    assert sum(each.numel() for each in model.parameters()) == 2_009_004
    kinds = [type(layer).__name__ for layer in DropoutMLP([1, 8, 8], 10, hidden=[5, 4, 3])]
    assert kinds == ["Flatten", *["Linear", "ReLU", "Dropout"], *["Linear", "ReLU"] * 2, "Linear"]
    assert DropoutMLP([1, 8, 8], 10, hidden=[5])(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_last_hidden_layer_may_stay_linear() -> None:
    *_, before, last = DropoutMLP([2], 2, hidden=[5, 4, 3], last_relu=False)
    assert isinstance(before, nn.Linear)
    assert isinstance(last, nn.Linear)
