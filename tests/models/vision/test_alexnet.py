import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models import AlexNet
from repro.models.vision.alexnet import grouped_features

LINEAR = (9216 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
GROUPED = (
    (121 * 3 * 96 + 96)
    + (25 * 48 * 256 + 256)
    + (9 * 256 * 384 + 384)
    + (9 * 192 * 384 + 384)
    + (9 * 192 * 256 + 256)
)
SINGLE_TOWER = (
    (121 * 3 * 64 + 64)
    + (25 * 64 * 192 + 192)
    + (9 * 192 * 384 + 384)
    + (9 * 384 * 256 + 256)
    + (9 * 256 * 256 + 256)
)


@pytest.mark.parametrize(
    ("variant", "published", "convolutions"),
    [("grouped", 60_965_224, GROUPED), ("single_tower", 61_100_840, SINGLE_TOWER)],
)
def test_parameters_are_the_published_ones(variant: str, published: int, convolutions: int) -> None:
    with torch.device("meta"):
        model = AlexNet((3, 224, 224), 1000, variant=variant)
    assert sum(p.numel() for p in model.parameters()) == published == convolutions + LINEAR


@pytest.mark.parametrize("variant", ["grouped", "single_tower"])
@pytest.mark.parametrize(("size", "features"), [(63, 1), (224, 6)])
def test_sizes_from_image_to_logits(variant: str, size: int, features: int) -> None:
    with torch.device("meta"):
        model = AlexNet((3, size, size), 20, variant=variant)
        x = torch.empty(2, 3, size, size)
        assert model.features(x).shape == (2, 256, features, features)
        assert model(x).shape == (2, 20)


def test_response_norm_is_the_formula_of_section_3_3() -> None:
    norm = grouped_features(3)[2]
    a = 100 * torch.rand(1, 6, 1, 1)
    squares = a.flatten().square()
    sums = torch.stack([squares[max(0, i - 2) : i + 3].sum() for i in range(6)])
    by_hand = a.flatten() / (2 + 1e-4 * sums) ** 0.75
    torch.testing.assert_close(norm(a).flatten(), by_hand)


def test_grouped_starts_as_in_2012(monkeypatch: pytest.MonkeyPatch) -> None:
    # Full size on a real device would draw 61M numbers: note the calls instead.
    biases: list[float] = []
    deviations: list[float] = []
    monkeypatch.setattr(nn.init, "constant_", lambda tensor, value: biases.append(value))
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, std: deviations.append(std))
    with torch.device("meta"):
        AlexNet((3, 224, 224), 1000)
    assert biases == [0, 1, 0, 1, 1, 1, 1, 0]
    assert deviations == [0.01] * 8


def test_gradient_reaches_every_convolution() -> None:
    torch.manual_seed(0)
    features = grouped_features(3)
    features(torch.randn(2, 3, 63, 63)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in features.parameters())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input_shape": (3, 32, 32)}, "at least 63x63 pixels, got 32x32"),
        ({"input_shape": (3, 224)}, "input_shape must be"),
        ({"variant": "groupd"}, "Did you mean 'grouped'"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
        ({"classes": 0}, "classes is a whole number"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        AlexNet(**({"input_shape": (3, 224, 224), "classes": 10} | arguments))
    assert "\n" not in str(error.value)
