from itertools import pairwise
from typing import Any

import pytest
import torch

from repro.errors import UserError
from repro.models import ResNetImageNet
from repro.models.parts.residual import BasicBlock
from repro.models.vision.resnet_imagenet import Bottleneck


@pytest.mark.parametrize(
    ("depth", "count"),
    [
        (18, 11_689_512),
        (34, 21_797_672),
        (50, 25_557_032),
        (101, 44_549_160),
        (152, 60_192_808),
    ],
)
def test_parameters_are_the_published_ones(depth: Any, count: int) -> None:
    with torch.device("meta"):
        model = ResNetImageNet((3, 224, 224), 1000, depth=depth)
    assert sum(p.numel() for p in model.parameters()) == count


def resnet10t(size: int = 224) -> ResNetImageNet:
    return ResNetImageNet((3, size, size), 1000, 10, tiered_stem=True, pooled_shortcuts=True)


def test_a_light_network_by_hand() -> None:
    with torch.device("meta"):
        model = resnet10t()
    stem = 9 * (3 * 24 + 24 * 32 + 32 * 64) + 2 * (24 + 32 + 64)
    widths = (64, 64, 128, 256, 512)
    convolutions = sum(9 * (a + b) * b + 4 * b for a, b in pairwise(widths))
    shortcuts = sum(a * b + 2 * b for a, b in pairwise(widths[1:]))
    assert sum(p.numel() for p in model.parameters()) == (
        stem + convolutions + shortcuts + 512 * 1000 + 1000
    )
    assert {"conv1.6.weight", "layer2.0.downsample.1.weight"} <= model.state_dict().keys()


def test_pooled_shortcuts_see_every_pixel() -> None:
    torch.manual_seed(0)
    shortcut = resnet10t(32).get_submodule("layer2.0.downsample").eval()
    x = torch.randn(1, 64, 5, 5)
    weight = shortcut.get_parameter("1.weight")[:, :, 0, 0]
    corner = shortcut(x)[0, :, 2, 2] * (1 + 1e-5) ** 0.5  # one pixel alone, not three zeros with it
    torch.testing.assert_close(corner, weight @ x[0, :, 4, 4])
    inner = shortcut(x)[0, :, 0, 1] * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(inner, weight @ x[0, :, :2, 2:4].mean((1, 2)))


@pytest.mark.parametrize("size", [8, 32, 64])
def test_resnet18_takes_any_image_size(size: int) -> None:
    model = ResNetImageNet((3, size, size), 10, depth=18).eval()
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize(("small_images", "size"), [(False, 7), (True, 28)])
def test_the_last_stage_sees_the_image_at_the_expected_size(small_images: bool, size: int) -> None:
    # Table 1: 224 ends at 7; without the strided stem 224 ends four times as large.
    with torch.device("meta"):
        model = ResNetImageNet((3, 224, 224), 1000, depth=50, small_images=small_images)
        x = model.maxpool(model.conv1(torch.empty(1, 3, 224, 224)))
        x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    assert x.shape == (1, 2048, size, size)


def test_the_stride_of_a_bottleneck_sits_in_its_3x3() -> None:
    with torch.device("meta"):
        block: Any = ResNetImageNet((3, 224, 224), 1000, depth=50).get_submodule("layer2.0")
    assert [c.stride for c in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_makes_every_block_its_shortcut(depth: Any) -> None:
    torch.manual_seed(0)
    model = ResNetImageNet((3, 32, 32), 10, depth=depth, zero_init_last_gamma=True)
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert len(blocks) == {18: 8, 50: 16}[depth]
    assert not any(block.last_norm.weight.any() for block in blocks)
    x = torch.randn(2, 64 * blocks[0].expansion, 4, 4)
    assert torch.equal(model.get_submodule("layer1.1")(x), x.relu())


def test_names_are_those_of_public_checkpoints() -> None:
    with torch.device("meta"):
        names = ResNetImageNet((3, 224, 224), 1000, depth=50).state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias",
        "layer4.2.bn3.weight",
        "fc.bias",
    } <= names
    # 53 convolutions, 53 batch norms with five tensors each, and the linear layer's two.
    assert len(names) == 53 + 5 * 53 + 2


@pytest.mark.parametrize("depth", [18, 50])
def test_gradient_reaches_every_parameter(depth: Any) -> None:
    torch.manual_seed(0)
    model = ResNetImageNet((1, 16, 16), 10, depth=depth, small_images=True)
    model(torch.randn(2, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"depth": 20}, "depth is 10, 18, 34, 50, 101 or 152, not 20"),
        ({"classes": 0}, "classes is a whole number"),
        ({"input_shape": (28, 28)}, "input_shape must be"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        ResNetImageNet(**({"input_shape": (3, 64, 64), "classes": 10} | arguments))
    assert "\n" not in str(error.value)
