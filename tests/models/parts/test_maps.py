"""Tokens ride along as constant images; up-sampling and queries against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.parts.maps import (
    ConvolvedMLP,
    DropPath,
    UpSampler,
    convolve,
    depthwise,
    on_constant,
    to_map,
    to_sequence,
    tokens_of,
)
from repro.models.parts.queries import QueryDecoder


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 5, 7, 2, 3), nn.Conv2d(3, 4, 2, 2, bias=False), depthwise(3)],
    ids=["stem", "no bias", "depth-wise"],
)
def test_a_token_is_a_constant_image(conv: nn.Conv2d) -> None:
    tokens = torch.randn(2, 1, 3)
    out = conv(tokens[:, 0, :, None, None].expand(2, 3, 24, 24))
    middle = out[:, :, out.shape[2] // 2, out.shape[3] // 2]
    assert torch.allclose(on_constant(conv, tokens)[:, 0], middle, atol=1e-5)


def test_a_sequence_is_its_map_and_its_tokens() -> None:
    x, tokens = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 3)
    sequence = to_sequence(x, tokens)
    assert torch.equal(to_map(sequence, (4, 6)), x)
    assert torch.equal(tokens_of(sequence, (4, 6)), tokens)
    conv = nn.Conv2d(3, 4, 3, 2, 1)
    convolved, size = convolve(conv, sequence, (4, 6))
    assert size == (2, 3)
    assert torch.allclose(to_map(convolved, size), conv(x), atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_the_mlp_convolves_between_its_layers(residual: bool) -> None:
    mlp = ConvolvedMLP(4, 2.0, residual)
    x = torch.randn(2, 4, 5, 5)
    hidden = F.conv2d(x, mlp.fc1.weight[..., None, None], mlp.fc1.bias)
    between = mlp.dwconv(hidden) + hidden if residual else mlp.dwconv(hidden)
    expected = F.conv2d(F.gelu(between), mlp.fc2.weight[..., None, None], mlp.fc2.bias)
    assert torch.allclose(to_map(mlp(to_sequence(x), (5, 5)), (5, 5)), expected, atol=1e-6)


def test_paths_are_dropped_by_example_and_only_in_training() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    assert torch.equal(drop.eval()(x), x)
    kept = drop.train()(x)
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))  # whole examples
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


def test_up_sampling_adds_the_encoders_maps_and_crops_odd_sizes() -> None:
    up: Any = UpSampler([4, 6], (3, 2), from_below=True)
    maps = [torch.randn(1, 4, 14, 14), torch.randn(1, 6, 7, 7)]
    below = torch.randn(1, 6, 4, 4)
    deepest = up.below(below)[..., :7, :7] + maps[1]
    wide = up.up[0](deepest)
    refined = wide + 0.1 * up.convs[0].conv2(F.relu(up.convs[0].conv1(wide)))
    out = up.end(refined + maps[0])
    assert out.shape == (1, 2, 56, 56)
    assert torch.allclose(up(maps, below), out, atol=1e-6)


def test_queries_are_resampled_to_the_places_of_the_map() -> None:
    """48 queries on 16 places: every third one, as attention in a loop shows."""
    torch.manual_seed(0)
    decoder = QueryDecoder(8, 1, 2).eval()
    block: Any = decoder.blocks[0]
    x, queries = torch.randn(2, 8, 8, 8), torch.randn(2, 48, 8)
    embedded, size = decoder.embed(to_sequence(x), (8, 8))
    assert size == (4, 4)
    k, v = block.kv(block.norm1(embedded)).chunk(2, -1)
    q = block.q(queries)
    found = torch.empty(2, 16, 8)
    for place in range(16):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = (k[..., part] @ q[:, 3 * place, part, None])[..., 0] / 2
            found[:, place, part] = (scores.softmax(1)[..., None] * v[..., part]).sum(1)
    attended = embedded + block.proj(found)
    expected = attended + block.mlp(block.norm2(attended), size)
    out = decoder(x, queries)
    assert torch.allclose(out, to_map(decoder.norm(expected), size), atol=1e-5)
    used = queries.clone()
    used[:, 1::3] = 0  # none of these is asked
    assert torch.equal(decoder(x, used), out)
