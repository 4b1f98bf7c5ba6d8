"""Multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from torch import nn

from repro.knobs import Count, Known, checked
from repro.models.parts.chain import Chain

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
        batch_norm: between each hidden linear layer and its activation.

    Raises:
        UserError: a size below 1, or an unknown activation.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        hidden: Sequence[Count] = (256, 256),
        activation: Annotated[str, Known(tuple(ACTIVATIONS))] = "relu",
        batch_norm: bool = False,
    ) -> None:
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            norm = [nn.BatchNorm1d(fan_out)] if batch_norm else []
            layers += [nn.Linear(fan_in, fan_out), *norm, ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(widths[-1], classes))

    def chain(self) -> Chain:
        """Flattening, the hidden layers with their activations, and the last layer."""
        flatten, *hidden, last = self
        units: list[nn.Sequential] = []
        for layer in hidden:
            if isinstance(layer, nn.Linear):
                units.append(nn.Sequential())
            units[-1].append(layer)
        return Chain(flatten, list(units), [1] * len(units), last)
