"""VGG-16 for small images (Simonyan & Zisserman 2015, configuration D, with a smaller head)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, Fraction, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import he_init

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """13 convolutions of 3x3 in five stages with max pooling, then 512-512-classes with dropout.

    Convolutions have biases of zero and weights from N(0, 2 / (kernel area x channels out)). On
    3x32x32 images 15.3M parameters with 100 classes. Maps (batch, *input_shape) to logits
    (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image, 32 pixels wide and high at least.
        classes: number of outputs.
        batch_norm: after every convolution.
        dropout: rate before each of the hidden linear layers.

    Raises:
        UserError: a size below 1, images that are too small, or a rate outside [0, 1).
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        batch_norm: bool = False,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("vgg", input_shape, smallest=32)
        layers: list[nn.Module] = []
        for widths in STAGES:
            for width in widths:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(512, 512), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, classes),
        )  # fmt: skip
        he_init(self)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.head(self.features(x))
