"""A simple recurrent network (Elman 1990) that reads images row by row.

Shapes: B examples; T rows, the time steps; I numbers a row; U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from repro.knobs import Count, Known, Positive, checked
from repro.models.parts.chain import Chain
from repro.models.parts.checks import image_shape
from repro.models.toys.mlp import ACTIVATIONS


class Recurrent(nn.Module):
    """A recurrent layer, ``h_t = act(W x_t + b + U h_{t-1})`` from ``h_0 = 0``.

    Args:
        inputs: numbers that come in at a time step.
        units: size of the state.
        activation: one of `ACTIVATIONS`.
        radius: U starts as a random orthogonal matrix times this; None: all weights uniform within
            1 / sqrt(units), as in `torch.nn.RNN`.

    Raises:
        UserError: a size below 1, an unknown activation, or a radius that is not positive.
    """

    @checked
    def __init__(
        self,
        inputs: Count,
        units: Count,
        activation: Annotated[str, Known(tuple(ACTIVATIONS))] = "tanh",
        radius: Positive | None = None,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, units)
        self.recurrent = nn.Linear(units, units, bias=False)
        self.activation = ACTIVATIONS[activation]()
        if radius is None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -(units**-0.5), units**-0.5)
        else:
            nn.init.orthogonal_(self.recurrent.weight, radius)

    def start(self, x_BTI: Tensor) -> Tensor:
        """The state (B, U) before the first step."""
        return x_BTI.new_zeros(len(x_BTI), self.recurrent.in_features)

    def step(self, x_BI: Tensor, h_BU: Tensor) -> Tensor:
        """The next state (B, U)."""
        state: Tensor = self.activation(self.input(x_BI) + self.recurrent(h_BU))
        return state

    def forward(self, x_BTI: Tensor) -> Tensor:
        """The states (B, T, U) after each step."""
        h_BU, states = self.start(x_BTI), []
        for drive_BU in self.input(x_BTI).unbind(1):  # one product for all steps
            h_BU = self.activation(drive_BU + self.recurrent(h_BU))
            states.append(h_BU)
        return torch.stack(states, dim=1)


class RowRNN(nn.Module):
    """Recurrent layers over the rows of an image, and a linear classifier of the last state.

    Maps (batch, *input_shape) to logits (batch, classes).

    Args:
        input_shape: (channels, rows, columns) of one image; a row of all channels is a time step.
        classes: number of outputs.
        hidden: units of each recurrent layer.
        activation: see `Recurrent`.
        radius: see `Recurrent`.

    Raises:
        UserError: see `Recurrent`; or the inputs are no images.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        hidden: Sequence[Count] = (64,),
        activation: str = "tanh",
        radius: Positive | None = None,
    ) -> None:
        super().__init__()
        channels, _, columns = image_shape("row_rnn", input_shape)
        self.rows = Rows()
        self.layers = nn.Sequential(
            *(
                Recurrent(inputs, units, activation, radius)
                for inputs, units in pairwise((channels * columns, *hidden))
            )
        )
        self.head = nn.Sequential(Last(), nn.Linear([channels * columns, *hidden][-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, rows, columns) to logits (batch, classes)."""
        logits: Tensor = self.head(self.layers(self.rows(x)))
        return logits

    def chain(self) -> Chain:
        """Cutting into rows, the recurrent layers, the classifier of the last state."""
        units = list(self.layers)
        return Chain(self.rows, units, [1] * len(units), self.head)


class Rows(nn.Module):
    """Images (B, channels, T, columns) as sequences of their rows (B, T, channels * columns)."""

    def forward(self, x: Tensor) -> Tensor:
        """Cuts."""
        return x.transpose(1, 2).flatten(2)


class Last(nn.Module):
    """The last of the states (B, T, U)."""

    def forward(self, states_BTU: Tensor) -> Tensor:
        """Picks it."""
        return states_BTU[:, -1]
