"""The networks of seconds: sizes by hand, shapes, and what a cell adds up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models.vision.cell_net import Cell, CellNet
from repro.models.vision.even_resnet import EvenResNet
from repro.models.vision.small_cnn import SmallCNN


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (EvenResNet([1, 8, 8], 10), 9 * 24 + 48 + 6 * (24 * 24 * 9 + 48) + 250),
        (SmallCNN([1, 8, 8], 10), 9 * (16 + 16 * 32 + 32 * 32) + 2 * 80 + 128 * 10 + 10),
        (
            SmallCNN([1, 8, 8], 10, (4, 8), strides=(2, 2), pool=1, dropout=0.3),
            9 * (4 + 32) + 2 * 12 + 90,
        ),
        (CellNet([1, 8, 8], 10), 9 * 16 + 32 + 3 * (256 * (1 + 9 + 25 + 9) + 4 * 32) + 170),
    ],
)
def test_parameters(model: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_cell_is_a_sum() -> None:
    cell = Cell(3, (1, 3)).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = (cell.candidates[0](x) + cell.candidates[1](x)).relu()
    assert torch.equal(cell(x), expected)


@pytest.mark.parametrize("kind", [EvenResNet, CellNet])
def test_images_that_are_too_small_are_one_line(kind: type[EvenResNet | CellNet]) -> None:
    with pytest.raises(UserError, match="at least 2x2"):
        kind([1, 1, 1], 10)


def test_a_small_cnn_has_a_stride_for_each_width() -> None:
    with pytest.raises(UserError, match="2 widths, but 1 strides"):
        SmallCNN([1, 8, 8], 10, (4, 8), strides=(2,))
