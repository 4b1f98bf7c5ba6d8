"""A plain convolutional network without normalisation, in stages of two convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.parts.chain import Chain
from repro.models.parts.checks import image_shape


class PlainCNN(nn.Module):
    """Stages of two 3x3 convolutions with ReLU, and a perceptron with one hidden layer.

    The second convolution of a stage halves height and width. Maps (batch, *input_shape) to logits
    (batch, classes). At the default sizes, on 1x8x8 images, it has 54,842 parameters.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        widths: channels of the convolutions, two for each stage.
        hidden: width of the perceptron.

    Raises:
        UserError: a size below 1, or an odd number of widths.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        widths: Sequence[Count] = (24, 32, 48, 48),
        hidden: Count = 64,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("plain_cnn", input_shape, smallest=4)
        if not widths or len(widths) % 2:
            raise UserError(f"plain_cnn: widths come in pairs, one for each stage, got {widths}.")
        self.stages = nn.Sequential()
        for first, second in zip(widths[::2], widths[1::2], strict=True):
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, first, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(first, second, 3, stride=2, padding=1),
                    nn.ReLU(),
                )
            )
            channels, height, width = second, (height + 1) // 2, (width + 1) // 2
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.head(self.stages(x))

    def chain(self) -> Chain:
        """No stem, the stages as units, the perceptron as the head."""
        units = list(self.stages.children())
        return Chain(nn.Identity(), units, list(range(1, len(units) + 1)), self.head)
