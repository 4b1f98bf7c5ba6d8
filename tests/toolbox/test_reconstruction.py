"""What compressing unit by unit rests on: activations that follow, inputs as rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.models import PlainCNN, VisionTransformer
from repro.toolbox.reconstruction import batches, following_activation, input_matrix


def test_activations_that_follow_a_layer() -> None:
    x = torch.randn(2, 1, 8, 8)
    model = PlainCNN([1, 8, 8], 10, widths=[4, 4], hidden=8).eval()
    assert following_activation(model, "stages.0.0", x) is model.stages[0][1]  # type: ignore[index]
    assert following_activation(model, "head.3", x) is None
    vit = VisionTransformer([1, 8, 8], 10, patch=4, width=8, depth=1, heads=2).eval()
    assert isinstance(following_activation(vit, "blocks.0.mlp.fc1", x), nn.GELU)
    assert following_activation(vit, "blocks.0.attn.qkv", x) is None
    # What a folded batch norm leaves does not matter; what changes the output does.
    shared = nn.ReLU()
    folded = nn.Sequential(nn.Linear(3, 3), nn.Identity(), shared, nn.Linear(3, 3), shared)
    assert following_activation(folded, "0", torch.randn(2, 3)) is shared
    apart = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.ReLU())
    assert following_activation(apart, "0", torch.randn(2, 3)) is None


def test_inputs_as_rows_that_a_flattened_weight_multiplies() -> None:
    conv, x = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), torch.randn(4, 2, 7, 7)
    product: Tensor = input_matrix(conv, x) @ conv.weight.flatten(1).T
    torch.testing.assert_close(product, conv(x).flatten(2).mT.flatten(0, 1))
    linear, tokens = nn.Linear(5, 2, bias=False), torch.randn(3, 4, 5)
    rows = input_matrix(linear, tokens) @ linear.weight.T
    torch.testing.assert_close(rows, linear(tokens).flatten(0, 1))


def test_batches_use_all_examples_before_any_twice() -> None:
    found = list(batches(10, 5, 5, torch.Generator().manual_seed(0)))
    assert len(found) == 5
    for first in (0, 2):
        assert sorted(torch.cat(found[first : first + 2]).tolist()) == list(range(10))
    assert [len(each) for each in batches(3, 8, 2, torch.Generator())] == [3, 3]
