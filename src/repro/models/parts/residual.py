"""What the CIFAR and the ImageNet residual networks share: the basic block and the init."""

from __future__ import annotations

from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width at stride 1; batch norm brings the bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`` (He et al. 2016, Figure 2).

    Maps (batch, channels_in, height, width) to
    (batch, channels_out, ceil(height / stride), ceil(width / stride)).

    Args:
        channels_in: channels of the input.
        channels_out: channels of both convolutions.
        stride: stride of the first convolution.
        shortcut: maps the input to the shape of the output.
    """

    expansion = 1  # channels of the output for each channel of the 3x3 convolution

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm whose zero scale would make the block its shortcut."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(self.downsample(x) + residual)


def he_init(model: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / (kernel area x channels out)).

    He et al. 2015, "Delving deep into rectifiers", equation 14: the form that keeps the variance
    of backward signals, which the authors' residual networks use. Linear and batch-norm layers
    keep PyTorch's own init.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
