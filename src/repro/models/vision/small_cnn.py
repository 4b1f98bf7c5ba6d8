"""A convolutional network small enough to be trained hundreds of times in a minute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import conv3x3


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with batch norm, average pooling to 2x2, a linear classifier.

    Maps (batch, *input_shape) to logits of shape (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image; at least 4x4 pixels.
        classes: number of outputs.
        widths: channels of the convolutions; each after the first halves height and width, except
            the last.

    Raises:
        UserError: a size below 1, or images that are too small.
    """

    @checked
    def __init__(
        self, input_shape: Sequence[Count], classes: Count, widths: Sequence[Count] = (16, 32, 32)
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("small_cnn", input_shape, smallest=4)
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            stride = 2 if 0 < index < len(widths) - 1 else 1
            layers += [conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.features(x))
