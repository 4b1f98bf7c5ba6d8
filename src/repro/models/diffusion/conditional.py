"""Noise predictors with a condition: classes that are embedded, for flat inputs and for images.

A condition is a tensor (B, L, E), L tokens of width E, so that it can be optimised like any other
input; classes have one token. Times lie in [0, 1]. Shapes: B examples, L tokens, E features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.diffusion.ddpm_unet import DDPMUNet
from repro.models.parts.skips import sinusoidal

TIME_SCALE = 999  # what sinusoids see of a time of 1, as if there were a thousand levels


class _Classes(nn.Module):
    """Embeddings of classes, the conditions of both networks.

    Args:
        classes: their number.
        width: E.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, width)

    def forward(self, labels_B: Tensor) -> Tensor:
        """Conditions (B, 1, E) of classes (B,)."""
        embedded: Tensor = self.table(labels_B)
        return embedded[:, None]

    def blank(self) -> Tensor:
        """The mean of all, (1, E): a condition that tells nothing."""
        return self.table.weight.mean(0, keepdim=True)


class ConditionalMLP(nn.Module):
    """A perceptron of the flattened input, sinusoids of the time and the class, with SiLUs.

    Args:
        input_shape: of one example.
        classes: their number.
        hidden: widths of the hidden layers.
        time_width: sinusoids; even.
        class_width: E.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        hidden: Sequence[Count] = (256, 256, 256),
        time_width: Count = 32,
        class_width: Count = 16,
    ) -> None:
        super().__init__()
        self.input_shape, self.time_width = tuple(input_shape), time_width
        self.condition_shape = (1, class_width)
        self.embed = _Classes(classes, class_width)
        size = math.prod(input_shape)
        widths = [size + time_width + class_width, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], size))

    def forward(self, x: Tensor, time_B: Tensor, condition_BLE: Tensor) -> Tensor:
        """The predicted noise, of the shape of ``x``."""
        time_BT = sinusoidal(TIME_SCALE * time_B, self.time_width).to(x.dtype)
        noise: Tensor = self.layers(torch.cat([x.flatten(1), time_BT, condition_BLE.flatten(1)], 1))
        return noise.view_as(x)


class ConditionalUNet(DDPMUNet):
    """The UNet of DDPM with a class, whose embedding is added to that of the time.

    Args:
        input_shape: (C, H, W).
        classes: their number.
        width: channels of the first level; E is four times that.
        **knobs: see `DDPMUNet`.
    """

    @checked
    def __init__(
        self, input_shape: Sequence[Count], classes: Count, width: Count = 128, **knobs: Any
    ) -> None:
        super().__init__(input_shape, width, **knobs)
        self.input_shape, self.condition_shape = tuple(input_shape), (1, 4 * width)
        self.embed = _Classes(classes, 4 * width)

    def forward(self, x: Tensor, time_B: Tensor, condition_BLE: Tensor) -> Tensor:  # type: ignore[override]
        """The predicted noise, of the shape of ``x``."""
        return super().forward(x, TIME_SCALE * time_B, condition_BLE[:, 0])
