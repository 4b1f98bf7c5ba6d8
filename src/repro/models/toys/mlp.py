"""Multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from repro.errors import UserError, did_you_mean
from repro.models.parts.chain import Chain
from repro.models.parts.checks import require_positive

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Flatten, then linear layers with an activation between each two; PyTorch's own init.

    Maps (batch, *input_shape) to logits of shape (batch, classes).

    Args:
        input_shape: shape of one example; any number of dimensions.
        classes: number of outputs.
        hidden: widths of the hidden layers; empty for a linear classifier.
        activation: one of `ACTIVATIONS`.

    Raises:
        UserError: a size below 1, or an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
    ) -> None:
        for dimension in input_shape:
            require_positive("mlp", input_shape=dimension)
        for width in hidden:
            require_positive("mlp", hidden=width)
        require_positive("mlp", classes=classes)
        if activation not in ACTIVATIONS:
            raise UserError(
                f"mlp: unknown activation '{activation}'; known: {', '.join(ACTIVATIONS)}."
                + did_you_mean(activation, ACTIVATIONS)
            )

        widths = [math.prod(input_shape), *hidden, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])  # logits: no activation after the last layer

    def chain(self) -> Chain:
        """Flattening, the hidden layers with their activations, and the last layer."""
        flatten, *hidden, last = self
        units: list[nn.Module] = [
            nn.Sequential(linear, activation)
            for linear, activation in zip(hidden[::2], hidden[1::2], strict=True)
        ]
        return Chain(flatten, units, [1] * len(units), last)
