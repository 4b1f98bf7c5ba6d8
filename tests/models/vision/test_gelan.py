"""GELAN's published sizes, and its blocks against the same written plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.models.vision.gelan import CBLinear, DetectionHead, Gelan, RepConv, fuse, gelan
from repro.models.vision.gelan.blocks import AConv, ADown, Conv, Elan, SppElan
from repro.toolbox.costs import multiply_accumulates

TINY: dict[str, Any] = {
    "stem": [8],
    "first": None,
    "stages": [[8, 8, 4, 1], [8, 8, 4], [8, 8, 4]],
    "down": "adown",
    "downs": [8, 8, 8],
    "pooled": [8, 4],
    "top_down": [[8, 8, 4], [8, 8, 4]],
    "neck_downs": [8, 8],
    "bottom_up": [[8, 8, 4], [8, 8, 4]],
    "head": {"bins": 8, "box_width": 8, "class_width": 8, "depth": 1, "groups": 1},
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shaken(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics of batch norms that are not those of the start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize(
    ("size", "unfolded", "folded", "flops"),
    [
        ("t", 2_442_640, 2_407_632, 9.82),
        ("s", 7_226_208, 7_105_888, 26.38),
        ("m", 20_124_000, 19_978_672, 76.31),
        ("c", 25_498_752, 25_288_768, 102.14),
        ("e", 58_114_432, 57_345_920, 188.95),
    ],
)
def test_published_sizes(size: Any, unfolded: int, folded: int, flops: float) -> None:
    """What the authors' own graphs count, to the last parameter, and their operations."""
    with torch.device("meta"):
        model = gelan(size)
        assert parameters(model) == unfolded
        assert parameters(model.eval().fold()) == folded
        if size == "t":  # the others are the audit's
            images = torch.empty(1, 3, 640, 640)
            assert round(2 * multiply_accumulates(model, images) / 1e9, 2) == flops


@pytest.mark.parametrize(
    ("size", "changes", "millions"),
    [
        ("s", {"depth": 1, "inner": "conv"}, 6.2),
        ("s", {"depth": 1, "inner": "res"}, 5.4),
        ("s", {"depth": 1, "inner": "dark"}, 5.7),
        ("s", {"depth": 1}, 5.9),
        ("s", {"depth": 1, "steps": 3}, 7.1),
        ("c", {"steps": 1}, 18.9),
        ("c", {"depth": 2}, 28.6),
        ("e", {"twice": False}, 41.2),
    ],
)
def test_tables_2_3_and_6(size: Any, changes: dict[str, Any], millions: float) -> None:
    """Inner blocks, depths, and one pass of E's backbone, to the printed digit."""
    with torch.device("meta"):
        model = gelan(size, **changes).eval().fold()
    assert round(parameters(model) / 1e6, 1) == millions


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = shaken(Gelan(3, **TINY))
    assert isinstance(model, Gelan)
    x = torch.rand(2, 3, 32, 32)
    before = model(x)
    after = model.fold().fold()(x)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(UserError, match="eval"):
        model.train().fold()


def test_a_fusable_convolution_is_one_kernel() -> None:
    """K = K3 γ3/σ3 + pad(K1 γ1/σ1), with σ² = variance + 1e-3."""
    torch.manual_seed(0)
    model = shaken(RepConv(3, 4))
    assert isinstance(model, RepConv)
    x = torch.randn(2, 3, 7, 7)
    expected: Tensor = torch.zeros(())
    for part, padding in ((model.wide, 1), (model.narrow, 0)):
        assert isinstance(part, Conv)
        norm = part.norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + 1e-3).sqrt()
        shift = norm.bias - norm.running_mean * scale
        kernel = part.conv.weight * scale[:, None, None, None]
        expected = expected + F.conv2d(x, kernel, shift, padding=padding)
    expected = F.silu(expected)
    assert torch.allclose(model(x), expected, atol=1e-5)
    model.fold()
    assert model.narrow is None
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_the_aggregation_block_joins_what_it_should() -> None:
    torch.manual_seed(0)
    block = shaken(Elan(6, 10, 8, 5, 2))
    assert isinstance(block, Elan)
    x = torch.randn(2, 6, 9, 9)
    u1, u2 = block.split(x).chunk(2, 1)
    u3 = block.parts[0](u2)
    u4 = block.parts[1](u3)
    assert u3.shape == u4.shape == (2, 5, 9, 9)
    assert torch.equal(block(x), block.join(torch.cat([u1, u2, u3, u4], 1)))
    assert block.join.conv.in_channels == 8 + 2 * 5


@pytest.mark.parametrize(("size", "half"), [(64, 32), (63, 31)])
def test_halving_begins_with_an_average_at_stride_1(size: int, half: int) -> None:
    x = torch.randn(1, 4, size, size)
    for down in (ADown(4, 6), AConv(4, 6)):
        assert down(x).shape == (1, 6, half, half)
        image = torch.randn(1, 4, 9, 9, requires_grad=True)
        (seen,) = torch.autograd.grad(down.eval()(image)[0, 0, 1, 1], image)
        assert seen.abs().sum((0, 1))[1:5, 1:5].gt(0).all()  # 3 × 3 of averages of 2 × 2
        assert seen.abs().sum((0, 1))[5:].eq(0).all()


def test_pooling_keeps_the_size() -> None:
    assert SppElan(4, 6, 2)(torch.randn(1, 4, 3, 3)).shape == (1, 6, 3, 3)


def test_fusing_is_a_sum_of_nearest_neighbours() -> None:
    own, coarse = torch.zeros(1, 2, 4, 4), torch.arange(8.0).view(1, 2, 2, 2)
    found = fuse(own, [coarse, coarse])
    assert torch.equal(found, 2 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(UserError, match="3 to 2"):
        fuse(own, [torch.zeros(1, 3, 2, 2)])
    one, other = CBLinear(5, [2, 3])(torch.randn(1, 5, 4, 4))
    assert (one.shape[1], other.shape[1]) == (2, 3)


def test_a_head_decodes_peaked_distances() -> None:
    head = DetectionHead([4], [8], 80, bins=16)
    for branch in head.box:
        last = branch[-1]  # type: ignore[index]
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(100 * F.one_hot(torch.tensor([1, 2, 3, 15]), 16).flatten())
    found = head([torch.randn(1, 4, 2, 3)])
    assert found.centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert found.boxes[0, 1].tolist() == pytest.approx([12 - 8, 4 - 16, 12 + 24, 4 + 120])
    assert found.bins.shape == (1, 6, 4, 16)


def test_first_biases_are_the_prior() -> None:
    head = DetectionHead([256, 512, 512], [8, 16, 32], 80)
    assert head.category[0][-1].bias[0].item() == pytest.approx(-11.54, abs=0.005)  # type: ignore[index]
    assert head.box[0][-1].bias.eq(1).all()  # type: ignore[index]
    assert head.category[2][-1].bias[0].item() == pytest.approx(math.log(5 / 80 / 400))  # type: ignore[index]


def test_a_bad_size_is_one_line() -> None:
    with pytest.raises(UserError, match=r"gelan\.size is t, s, m, c or e"):
        gelan("x")  # type: ignore[arg-type]
