"""A convolutional network small enough to be trained hundreds of times in a minute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import conv3x3


class SmallCNN(nn.Module):
    """Some 3x3 convolutions with batch norm, average pooling, a linear classifier.

    Maps (batch, *input_shape) to logits of shape (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image; at least 4x4 pixels.
        classes: number of outputs.
        widths: channels of the convolutions.
        strides: of each; None: each after the first halves height and width, except the last.
        pool: height and width of what the last one is averaged to.
        dropout: rate before the classifier.

    Raises:
        UserError: a size below 1, images that are too small, or not a stride for each width.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        widths: Sequence[Count] = (16, 32, 32),
        strides: Sequence[Count] | None = None,
        pool: Count = 2,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("small_cnn", input_shape, smallest=4)
        if strides is None:
            strides = [2 if 0 < index < len(widths) - 1 else 1 for index in range(len(widths))]
        if len(strides) != len(widths):
            raise UserError(f"small_cnn: {len(widths)} widths, but {len(strides)} strides.")
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            layers += [conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers += [nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
        self.features = nn.Sequential(*layers, *[nn.Dropout(dropout)] * (dropout > 0))
        self.fc = nn.Linear(pool**2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.features(x))
