from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models.vision.vgg import VGG

VGG11 = [[64], [128], [256, 256], [512, 512], [512, 512]]


def test_the_convolutions_of_vgg_11_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = VGG([3, 32, 32], 10, VGG11)
    assert sum(p.numel() for p in model.units.parameters()) == 9_220_480


def test_is_convolutions_activations_and_pooling_in_a_row() -> None:
    torch.manual_seed(0)
    model = VGG([2, 8, 8], 5, [[3, 4], [6]], hidden=[7], activation="tanh", batch_norm=True)
    model.eval()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hidden, last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    x = given = torch.randn(2, 2, 8, 8)
    for number, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = norm(nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)).tanh()
        if number > 0:  # behind each stage
            x = nn.functional.max_pool2d(x, 2)
    expected = last(hidden(x.flatten(1)).tanh())
    torch.testing.assert_close(model(given), expected)


def test_a_unit_ends_with_its_activation_so_that_pooling_begins_the_next() -> None:
    chain = VGG([1, 8, 8], 10, [[4], [8]], kernel=5, hidden=[12], dropout=0.1).chain()
    assert all(isinstance(unit[-1], nn.ReLU) for unit in chain.units)
    assert chain.units[0](torch.zeros(1, 1, 8, 8)).shape == (1, 4, 8, 8)
    assert chain.stages == [1, 2, 3]


def test_lenet_without_padding() -> None:
    model = VGG([3, 32, 32], 10, [[6], [16]], kernel=5, padding=0, hidden=[120, 84])
    assert sum(p.numel() for p in model.parameters()) == 62_006
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"input_shape": [3, 8, 8], "stages": VGG11}, "at least"),
        ({"input_shape": [64], "stages": [[4]]}, "takes images"),
        ({"input_shape": [1, 8, 8], "stages": [[0]]}, "stages"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, list[int]], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        VGG(classes=10, **settings)  # type: ignore[arg-type]
