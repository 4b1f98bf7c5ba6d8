"""A multilayer perceptron with dropout behind its first hidden layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from repro.knobs import Count, Fraction, checked


class DropoutMLP(nn.Sequential):
    """Flatten, linear layers with ReLUs between them, and dropout behind the first ReLU.

    Maps (batch, *input_shape) to logits of shape (batch, classes). With three hidden layers of 1000
    units, from 2 inputs to 2 classes, it has 2,007,002 parameters.

    Args:
        input_shape: shape of one example; any number of dimensions.
        classes: number of outputs.
        hidden: widths of the hidden layers, one or more.
        dropout: rate.
        last_relu: false: the last hidden layer goes into the output layer without a ReLU.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        hidden: Sequence[Count] = (1000, 1000, 1000),
        dropout: Fraction = 0.5,
        last_relu: bool = True,
    ) -> None:
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for number, (fan_in, fan_out) in enumerate(pairwise(widths), 1):
            layers.append(nn.Linear(fan_in, fan_out))
            if number < len(hidden) or last_relu:
                layers.append(nn.ReLU())
            if number == 1:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(widths[-1], classes))
