"""A super-network: cells that add up several convolutions, any of which could be left out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape


class Cell(nn.Module):
    """The sum of convolutions with batch norm, one for each kernel; no identity beside them.

    Maps (batch, width, height, width) to the same shape.

    Args:
        width: channels in and out.
        kernels: odd sizes.
    """

    def __init__(self, width: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
            )
            for kernel in kernels
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the candidates say."""
        total = self.candidates[0](x)
        for candidate in list(self.candidates)[1:]:
            total = total + candidate(x)
        return self.relu(total)


class CellNet(nn.Module):
    """A 3x3 convolution, cells with pooling after the first, average pooling, a linear layer.

    Maps (batch, *input_shape) to logits of shape (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image; at least 2x2 pixels.
        classes: number of outputs.
        width: channels of all convolutions.
        cells: number of cells.
        kernels: of the candidates of each cell.

    Raises:
        UserError: a size below 1, or images that are too small.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        width: Count = 16,
        cells: Count = 3,
        kernels: Sequence[Count] = (1, 3, 5, 3),
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("cell_net", input_shape, smallest=2)
        stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.cells = nn.Sequential()
        for number in range(cells):
            self.cells.append(Cell(width, kernels))
            if number == 0:
                self.cells.append(nn.MaxPool2d(2))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        return self.fc(self.pool(self.cells(self.stem(x))))
