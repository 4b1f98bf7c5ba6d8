import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models import ResNetCIFAR
from repro.models.parts.residual import BasicBlock
from repro.models.vision.resnet_cifar import OptionAShortcut


def published_count(depth: int, classes: int = 10, channels: int = 3) -> int:
    """He et al., Section 4.2: stages of n blocks of two 3x3 convolutions, each with batch norm."""
    n = (depth - 2) // 6
    convolutions = 9 * (channels * 16 + 2 * n * 16**2)
    convolutions += 9 * (16 * 32 + (2 * n - 1) * 32**2)
    convolutions += 9 * (32 * 64 + (2 * n - 1) * 64**2)
    batch_norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    return convolutions + batch_norms + 64 * classes + classes


@pytest.mark.parametrize(
    ("depth", "exact", "millions"),
    [
        (20, 269_722, "0.27"),
        (32, 464_154, "0.46"),
        (44, 658_586, "0.66"),
        (56, 853_018, "0.85"),
        (110, 1_727_962, "1.7"),
    ],
)
def test_parameters_are_those_of_table_6(depth: int, exact: int, millions: str) -> None:
    with torch.device("meta"):
        model = ResNetCIFAR((3, 32, 32), 10, depth=depth)
    count = sum(p.numel() for p in model.parameters())
    assert count == exact == published_count(depth)
    assert f"{count / 1e6:.{len(millions) - 2}f}" == millions
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert layers == depth


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 13)])
def test_any_image_size_gives_logits(shape: tuple[int, int, int]) -> None:
    model = ResNetCIFAR(shape, 7, depth=8, width=4)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_stages_halve_the_image_and_double_the_channels() -> None:
    with torch.device("meta"):
        model = ResNetCIFAR((3, 32, 32), 10)
        x = model.layer1(model.conv1(torch.empty(1, 3, 32, 32)))
        assert x.shape == (1, 16, 32, 32)
        x = model.layer2(x)
        assert x.shape == (1, 32, 16, 16)
        assert model.layer3(x).shape == (1, 64, 8, 8)


def test_option_a_is_every_second_pixel_then_zero_channels() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    expected = torch.tensor([[[[0.0, 2.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(OptionAShortcut(1, 2, stride=2)(x), expected)


def test_option_a_block_with_a_silent_residual_passes_its_shortcut() -> None:
    block = BasicBlock(2, 4, 2, OptionAShortcut(2, 4, stride=2))
    nn.init.zeros_(block.last_norm.weight)
    x = torch.randn(3, 2, 6, 6)
    y = block(x)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2].relu())
    assert torch.equal(y[:, 2:], torch.zeros(3, 2, 3, 3))


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = ResNetCIFAR((1, 8, 8), 10, depth=14, width=4)
    model(torch.randn(8, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_convolutions_start_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    weight = ResNetCIFAR((3, 32, 32), 10).get_parameter("layer3.1.conv1.weight")
    assert weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"depth": 18}, r"depth must be 6n \+ 2 .*, got 18"),
        ({"depth": 2}, r"depth must be 6n \+ 2"),
        ({"width": 0}, "width is a whole number"),
        ({"classes": -1}, "classes is a whole number"),
        ({"input_shape": (64,)}, r"\(channels, height, width\), got \(64,\)"),
        (
            {"input_shape": (0, 8, 8)},
            "input_shape is a list, and each item is a whole number of at least 1",
        ),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        ResNetCIFAR(**({"input_shape": (3, 32, 32), "classes": 10} | arguments))
    assert "\n" not in str(error.value)
