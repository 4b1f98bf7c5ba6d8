"""Many independent deep ReLU networks in one module: restarts at the price of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, Fraction, Known, checked


def simple_std(_fan_in: int) -> float:
    """0.1 whatever the fan-in: at width 50 each layer halves the signal."""
    return 0.1


def he_std(fan_in: int) -> float:
    """``sqrt(2 / fan_in)`` (He et al. 2015): ReLU layers keep the size of the signal."""
    return math.sqrt(2 / fan_in)


def random_walk_std(fan_in: int) -> float:
    """Sussillo & Abbott 2015: a little above He's, so that log |gradient| has no drift."""
    return math.sqrt(2) * math.exp(1.2 / (max(fan_in, 6) - 2.4)) / math.sqrt(fan_in)


def zero_std(_fan_in: int) -> float:
    """0: every weight starts at exactly zero, and no gradient reaches a hidden weight."""
    return 0.0


INITS = {
    "simple": simple_std,
    "he": he_std,
    "sussillo_abbott": random_walk_std,
    "zero": zero_std,
}


class StackedMLP(nn.Module):
    """R fully connected ReLU networks that share nothing but the input.

    Maps (B, *input_shape) to logits (R, B, classes). Every parameter has a leading dimension R; a
    layer of all networks is one batched matrix product, which is several times faster than R
    networks one after the other. A loss summed over R gives each network its own gradient.

    Args:
        input_shape: shape of one example; flattened.
        classes: number of outputs.
        members: R.
        depth: hidden layers.
        width: units of each hidden layer.
        init: of the weights, Gaussian: one of `INITS`; biases start at 0.
        dropout: rate after every hidden layer.

    Raises:
        UserError: a size below 1, a rate outside [0, 1), or an unknown init.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        members: Count = 1,
        depth: Count = 20,
        width: Count = 50,
        init: Annotated[str, Known(tuple(INITS))] = "simple",
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.members = members
        self.dropout = dropout
        inputs, sigma = math.prod(input_shape), INITS[init]

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(members, *shape) * sigma(shape[-2]))

        # The hidden layers are alike, so they share a tensor: whatever is done to every parameter
        # in every step (clipping, noise, the optimizer) then has six of them to visit.
        self.first, self.first_bias = draw(inputs, width), _zeros(members, 1, width)
        self.hidden = draw(depth - 1, width, width)
        self.hidden_bias = _zeros(members, depth - 1, 1, width)
        self.last, self.last_bias = draw(width, classes), _zeros(members, 1, classes)

    @property
    def weights(self) -> list[Tensor]:
        """The weights (R, in, out) of each layer, from the input to the logits."""
        return [self.first, *self.hidden.unbind(1), self.last]

    @property
    def biases(self) -> list[Tensor]:
        """The biases (R, 1, out) of each layer."""
        return [self.first_bias, *self.hidden_bias.unbind(1), self.last_bias]

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (R, B, classes) for x (B, *input_shape)."""
        h_RBI = x.flatten(1).expand(self.members, -1, -1)
        *hidden, (last, last_bias) = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            h_RBI = torch.baddbmm(bias, h_RBI, weight).relu_()
            if self.dropout:
                h_RBI = F.dropout(h_RBI, self.dropout, self.training)
        return torch.baddbmm(last_bias, h_RBI, last)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))
