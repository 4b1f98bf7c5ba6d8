"""A convolutional network small enough to be trained hundreds of times in a minute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import conv3x3


class SmallCNN(nn.Module):
    """3x3 convolutions with batch norm, average pooling, a linear classifier.

    Maps (batch, *input_shape) to logits of shape (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image; at least 4x4 pixels.
        classes: number of outputs.
        widths: channels of the convolutions.
        strides: of the convolutions; None: all after the first, except the last, have 2.
        pooled: height and width after average pooling.

    Raises:
        UserError: a size below 1, images that are too small, or another number of strides.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        widths: Sequence[Count] = (16, 32, 32),
        strides: Sequence[Count] | None = None,
        pooled: Count = 2,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("small_cnn", input_shape, smallest=4)
        if strides is None:
            strides = [2 if 0 < index < len(widths) - 1 else 1 for index in range(len(widths))]
        if len(strides) != len(widths):
            raise UserError(
                f"small_cnn: one stride a convolution, not {len(strides)} of {len(widths)}."
            )
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            layers += [conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten())
        self.fc = nn.Linear(pooled**2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.features(x))
