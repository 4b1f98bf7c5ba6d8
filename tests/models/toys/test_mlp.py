import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models import MLP


def test_the_digits_network_has_the_counted_parameters() -> None:
    model = MLP((1, 8, 8), 10)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    biases = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert (weights, biases) == (84_480, 522)


def test_flattens_and_applies_the_activation_between_layers_only() -> None:
    torch.manual_seed(0)
    model = MLP((2, 3), 4, hidden=[5], activation="tanh")
    first, last = (layer for layer in model if isinstance(layer, nn.Linear))
    x = torch.randn(7, 2, 3)
    by_hand = torch.tanh(x.reshape(7, 6) @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model(x), by_hand)


def test_no_hidden_layer_is_a_linear_classifier() -> None:
    model = MLP((64,), 10, hidden=[])
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"hidden": [16, -1]},
            r"hidden is a list, and each item is a whole number of at least 1, not \[16, -1\]",
        ),
        ({"hidden": [0.5]}, "hidden is a list, and each item is a whole number"),
        ({"classes": 0}, "classes is a whole number"),
        ({"input_shape": (1, 0, 8)}, "input_shape is a list"),
        ({"activation": "rely"}, "Did you mean 'relu'"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        MLP(**({"input_shape": (1, 8, 8), "classes": 10} | arguments))
    assert "\n" not in str(error.value)
