"""AlexNet, in the original form with grouped convolutions and in the later single-tower form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from repro.knobs import Count, Fraction, Known, checked
from repro.models.parts.checks import image_shape


def grouped_features(channels: int) -> nn.Sequential:
    """The convolutions of Krizhevsky et al. 2012, Section 3.5, as one network on one device.

    Two groups stand for the paper's two GPUs, which talk only in the third convolution.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 96, 11, stride=4, padding=2),
        nn.ReLU(),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
    )


def _response_norm() -> nn.LocalResponseNorm:
    """``a / (2 + 1e-4 * sum of a**2 over 5 channels) ** 0.75`` (Section 3.3)."""
    # PyTorch takes the mean of the squares where the paper takes their sum: hence the factor 5.
    return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def single_tower_features(channels: int) -> nn.Sequential:
    """The convolutions of Krizhevsky 2014, "One weird trick", without response normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
    )


VARIANTS = {"grouped": grouped_features, "single_tower": single_tower_features}


class AlexNet(nn.Module):
    """Five convolutions and three linear layers.

    At 1000 classes and three channels the variant ``grouped`` has 60,965,224 parameters (the
    60.97M of the 2012 paper) and ``single_tower`` has 61,100,840. Maps (batch, *input_shape) to
    logits of shape (batch, classes). Features are averaged to 6x6, which changes nothing at the
    papers' 224x224 and lets other sizes in.

    Args:
        input_shape: (channels, height, width) of one image, at least 63x63.
        classes: number of outputs.
        variant: ``grouped``, with the init of the 2012 paper, or ``single_tower``, with
            PyTorch's own.
        dropout: rate after each of the two hidden linear layers.

    Raises:
        UserError: an unknown variant, an image too small, or a size below 1.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        variant: Annotated[str, Known(tuple(VARIANTS))] = "grouped",
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        # The three poolings leave nothing of an image smaller than 63x63.
        channels, _, _ = image_shape("alexnet", input_shape, smallest=63)
        self.features = VARIANTS[variant](channels)
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, classes),
        )
        if variant == "grouped":
            self._init_as_2012()

    def _init_as_2012(self) -> None:
        """Weights from N(0, 0.01**2); biases 1 in layers 2, 4, 5, 6 and 7, else 0 (Section 5)."""
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for number, layer in enumerate(layers, start=1):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, 1.0 if number in (2, 4, 5, 6, 7) else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))
