"""Parts of transformers that work on feature maps, with tokens that ride along.

Shape legend: N frames, C channels, H and W of a map, M tokens, L = H W + M places. A sequence
``x_NLC`` holds a map row by row and then the tokens; ``size`` is (H, W). A convolution treats a
token as an image that is the same everywhere: its kernel summed over space, and its bias. M may be
0.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, Fraction, Positive, checked

EPS = 1e-6  # of the layer norms in blocks
Size = tuple[int, int]


def to_map(x_NLC: Tensor, size: Size) -> Tensor:
    """The map (N, C, H, W) of a sequence, without its tokens."""
    H, W = size
    return x_NLC[:, : H * W].mT.unflatten(2, (H, W))


def tokens_of(x_NLC: Tensor, size: Size) -> Tensor:
    """The tokens (N, M, C) of a sequence."""
    return x_NLC[:, size[0] * size[1] :]


def to_sequence(x_NCHW: Tensor, tokens_NMC: Tensor | None = None) -> Tensor:
    """A map row by row, and then the tokens."""
    places = x_NCHW.flatten(2).mT
    return places if tokens_NMC is None else torch.cat([places, tokens_NMC], 1)


def size_of(x_NCHW: Tensor) -> Size:
    """(H, W) of a map."""
    return x_NCHW.shape[2], x_NCHW.shape[3]


def on_constant(conv: nn.Conv2d, tokens_NMC: Tensor) -> Tensor:
    """What a convolution makes of an image that is a token everywhere, away from the borders.

    Args:
        conv: dense, or depth-wise (as many groups as channels).
        tokens_NMC: the tokens.
    """
    kernel = conv.weight.sum((2, 3))
    if conv.groups > 1:
        out = tokens_NMC * kernel[:, 0]
        return out if conv.bias is None else out + conv.bias
    return F.linear(tokens_NMC, kernel, conv.bias)


def convolve(conv: nn.Conv2d, x_NLC: Tensor, size: Size) -> tuple[Tensor, Size]:
    """Convolves the map of a sequence, and its tokens as constant images; also the new size."""
    y_NCHW = conv(to_map(x_NLC, size))
    return to_sequence(y_NCHW, on_constant(conv, tokens_of(x_NLC, size))), size_of(y_NCHW)


def depthwise(width: int) -> nn.Conv2d:
    """A 3 x 3 convolution of each channel by itself, with a bias."""
    return nn.Conv2d(width, width, 3, padding=1, groups=width)


def attention(q_NLC: Tensor, k_NMC: Tensor, v_NMC: Tensor, heads: int) -> Tensor:
    """What queries find, (N, L, C), by scaled dot products of C / heads channels each."""
    parts = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q_NLC, k_NMC, v_NMC))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


class DropPath(nn.Module):
    """Leaves out a residual branch, example by example, in training (stochastic depth).

    Args:
        rate: probability of that; what is kept is divided by one minus it.
    """

    @checked
    def __init__(self, rate: Fraction = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch, or zero, for each example of the first dimension."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class PatchEmbedding(nn.Module):
    """A strided convolution and a layer norm.

    Args:
        channels: of the input.
        width: of the output.
        kernel: of the convolution, padded by half of it.
        stride: of the convolution.
    """

    @checked
    def __init__(self, channels: Count, width: Count, kernel: Count = 3, stride: Count = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NLC: Tensor, size: Size) -> tuple[Tensor, Size]:
        """The embedded sequence and its new size."""
        x_NLC, size = convolve(self.proj, x_NLC, size)
        return self.norm(x_NLC), size


class ConvolvedMLP(nn.Module):
    """Two linear layers with a depth-wise convolution between them: ``fc2(GELU(conv(fc1(x))))``.

    Args:
        width: of input and output.
        ratio: of the hidden width to it.
        residual: adds what goes into the convolution to what comes out.
    """

    @checked
    def __init__(self, width: Count, ratio: Positive, residual: bool) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dwconv = depthwise(hidden)
        self.residual = residual

    def forward(self, x_NLC: Tensor, size: Size) -> Tensor:
        """A sequence of the same shape."""
        hidden = self.fc1(x_NLC)
        convolved, _ = convolve(self.dwconv, hidden, size)
        out: Tensor = self.fc2(F.gelu(hidden + convolved if self.residual else convolved))
        return out


class ResidualConvs(nn.Module):
    """``x + 0.1 conv(ReLU(conv(x)))``, 3 x 3, as restoration networks have it.

    Args:
        channels: of all maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """A map of the same shape."""
        return x_NCHW + 0.1 * self.conv2(F.relu(self.conv1(x_NCHW)))


class UpSampler(nn.Module):
    """From the maps of an encoder back to the size of its images (TransWeather, CVPR 2022).

    Transposed convolutions of 4 x 4 double the size; where the encoder has a map of that size, it
    is added behind a `ResidualConvs`. Sizes that do not double evenly are cropped.

    Args:
        widths: channels of the encoder's maps, at strides 4, 8, 16, ….
        last: channels at stride 2 and at full size.
        from_below: there is another map at twice the deepest stride, of the last width.
    """

    @checked
    def __init__(self, widths: list[int], last: tuple[int, int], from_below: bool) -> None:
        super().__init__()
        self.below = _doubling(widths[-1], widths[-1]) if from_below else None
        wide = [*reversed(widths)]
        self.up = nn.ModuleList(_doubling(a, b) for a, b in pairwise(wide))
        self.convs = nn.ModuleList(ResidualConvs(each) for each in wide[1:])
        self.end = nn.Sequential(
            _doubling(widths[0], last[0]), ResidualConvs(last[0]), _doubling(*last)
        )

    def forward(self, maps: list[Tensor], below: Tensor | None = None) -> Tensor:
        """(N, last[1], H, W) of four times the size of the first map."""
        deepest, *others = reversed(maps)
        x = deepest if self.below is None else _like(self.below(below), deepest) + deepest
        for up, convs, other in zip(self.up, self.convs, others, strict=True):
            x = convs(_like(up(x), other)) + other
        out: Tensor = self.end(x)
        return out


def _doubling(channels: int, width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)


def _like(x_NCHW: Tensor, other: Tensor) -> Tensor:
    """Crops a map to the size of another, at the far ends."""
    return x_NCHW[:, :, : other.shape[2], : other.shape[3]]


def init_map_transformer(module: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan-out), linear layers from N(0, 0.02), biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 * layer.groups / fan_out))
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
