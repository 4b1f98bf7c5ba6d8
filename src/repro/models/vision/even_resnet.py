"""A residual network of one width, small enough to be trained and pruned in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import BasicBlock, conv3x3


class EvenResNet(nn.Module):
    """A 3x3 convolution and residual blocks of the same width, pooling after the first block.

    Maps (batch, *input_shape) to logits of shape (batch, classes). With a width of 24 and three
    blocks on grey digits it has 31,906 parameters.

    Args:
        input_shape: (channels, height, width) of one image; at least 2x2 pixels.
        classes: number of outputs.
        width: channels of all convolutions.
        blocks: residual blocks.

    Raises:
        UserError: a size below 1, or images that are too small.
    """

    @checked
    def __init__(
        self, input_shape: Sequence[Count], classes: Count, width: Count = 24, blocks: Count = 3
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("even_resnet", input_shape, smallest=2)
        self.stem = nn.Sequential(conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential()
        for number in range(blocks):
            self.blocks.append(BasicBlock(width, width, 1, nn.Identity()))
            if number == 0:
                self.blocks.append(nn.MaxPool2d(2))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.pool(self.blocks(self.stem(x))))
