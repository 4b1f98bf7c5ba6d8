"""The blocks of GELAN (section 4.2 of the paper): CSP and ELAN with fusable convolutions inside.

Shapes: B images, C channels, H × W points.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repro.errors import UserError

EPS = 1e-3  # of batch norms, as published: PyTorch's own is 1e-5
Inner = Literal["csp", "conv", "res", "dark"]


def batch_norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    """The batch norm that all blocks have."""
    return nn.BatchNorm2d(channels, eps=EPS, momentum=momentum)


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU: (B, C, H, W) -> (B, out, H / stride, W / stride).

    Args:
        channels: C.
        out: channels that come out.
        kernel: odd edge of the kernel; padded by half of it.
        stride: of the convolution.
        groups: of the convolution.
        momentum: of the batch norm.
        activated: whether the SiLU is there.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        momentum: float = 0.03,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = batch_norm(out, momentum)
        self.act = nn.SiLU() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Applies the three."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y

    def fold(self) -> None:
        """Folds the batch norm into the convolution, for inference; does so once."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class RepConv(nn.Module):
    """SiLU of a 3 × 3 and a 1 × 1 convolution, each with its batch norm; one 3 × 3 once folded.

    Args:
        channels: of what comes in.
        out: of what comes out.
        momentum: of the batch norms.
    """

    def __init__(self, channels: int, out: int, momentum: float = 0.03) -> None:
        super().__init__()
        self.wide = Conv(channels, out, 3, momentum=momentum, activated=False)
        self.narrow: nn.Module | None = Conv(channels, out, 1, momentum=momentum, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        y: Tensor = self.wide(x)
        if self.narrow is not None:
            y = y + self.narrow(x)
        return F.silu(y)

    def fold(self) -> None:
        """Adds both convolutions up into one, for inference; does so once."""
        if isinstance(self.narrow, Conv):
            self.wide.fold()
            self.narrow.fold()
            wide, narrow = self.wide.conv, self.narrow.conv
            assert wide.bias is not None
            assert narrow.bias is not None
            with torch.no_grad():
                wide.weight += F.pad(narrow.weight, (1, 1, 1, 1))
                wide.bias += narrow.bias
            self.narrow = None


class Shortcut(nn.Module):
    """Layers beside the identity, where as many channels come out as go in.

    Args:
        layers: applied one after the other.
        open: whether the identity is there.
    """

    def __init__(self, *layers: nn.Module, open: bool = True) -> None:
        super().__init__()
        self.layers, self.open = nn.Sequential(*layers), open

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        y: Tensor = self.layers(x)
        return x + y if self.open else y


def bottleneck(channels: int, out: int, inner: Inner, momentum: float) -> nn.Module:
    """What a part of GELAN repeats.

    Args:
        channels: of what comes in.
        out: of what comes out.
        inner: ``csp``: a fusable and a plain 3 × 3; ``conv``: a plain 3 × 3; ``dark``: 1 × 1 and
            3 × 3; ``res``: 1 × 1, 3 × 3 and 1 × 1; these two with half of the channels inside.
        momentum: of batch norms.
    """
    half, is_open = out // 2, channels == out
    if inner == "conv":
        return Conv(channels, out, 3, momentum=momentum)
    if inner == "csp":
        wide = Conv(out, out, 3, momentum=momentum)
        return Shortcut(RepConv(channels, out, momentum), wide, open=is_open)
    narrow = Conv(channels, half, momentum=momentum)
    if inner == "dark":
        return Shortcut(narrow, Conv(half, out, 3, momentum=momentum), open=is_open)
    middle, last = Conv(half, half, 3, momentum=momentum), Conv(half, out, momentum=momentum)
    return Shortcut(narrow, middle, last, open=is_open)


class RepCSP(nn.Module):
    """Cross-stage partial block: `depth` bottlenecks on one half, beside the other half.

    Args:
        channels: of what comes in.
        out: of what comes out.
        depth: number of bottlenecks.
        momentum: of batch norms.
    """

    def __init__(self, channels: int, out: int, depth: int, momentum: float) -> None:
        super().__init__()
        half = out // 2
        self.main = nn.Sequential(
            Conv(channels, half, momentum=momentum),
            *(bottleneck(half, half, "csp", momentum) for _ in range(depth)),
        )
        self.side = Conv(channels, half, momentum=momentum)
        self.join = Conv(2 * half, out, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        y: Tensor = self.join(torch.cat([self.main(x), self.side(x)], 1))
        return y


class Elan(nn.Module):
    """Efficient layer aggregation with any inner block: RepNCSPELAN4, or ELAN1 for depth 0.

    A 1 × 1 convolution is cut into halves; each of ``steps`` parts reads what the part before it
    returns, and all are joined by another 1 × 1.

    Args:
        channels: of what comes in.
        out: of what comes out.
        hidden: channels of both halves together.
        width: channels of each part.
        depth: bottlenecks of a part; 0: a part is one 3 × 3 convolution.
        inner: what a part consists of: ``csp`` (published), ``conv``, ``res`` or ``dark``.
        steps: parts (the "ELAN depth").
        momentum: of batch norms.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        hidden: int,
        width: int,
        depth: int = 0,
        inner: Inner = "csp",
        steps: int = 2,
        momentum: float = 0.03,
    ) -> None:
        super().__init__()
        self.split = Conv(channels, hidden, momentum=momentum)
        widths = [hidden // 2, *[width] * steps]
        self.parts = nn.ModuleList(
            _part(before, width, depth, inner, momentum) for before in widths[:-1]
        )
        self.join = Conv(hidden + steps * width, out, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        found = list(self.split(x).chunk(2, 1))
        for part in self.parts:
            found.append(part(found[-1]))
        y: Tensor = self.join(torch.cat(found, 1))
        return y


def _part(channels: int, width: int, depth: int, inner: Inner, momentum: float) -> nn.Module:
    """What stands between two joints of an `Elan`."""
    last = Conv(width, width, 3, momentum=momentum)
    if depth == 0:
        return Conv(channels, width, 3, momentum=momentum)
    if inner == "csp":
        return nn.Sequential(RepCSP(channels, width, depth, momentum), last)
    widths = [channels, *[width] * depth]
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(bottleneck(c, out, inner, momentum) for c, out in pairs), last)


class SppElan(nn.Module):
    """Spatial pyramid pooling: three successive 5 × 5 maxima, joined with what they began at.

    Args:
        channels: of what comes in.
        out: of what comes out.
        hidden: of each of the four that are joined.
        momentum: of batch norms.
    """

    def __init__(self, channels: int, out: int, hidden: int, momentum: float = 0.03) -> None:
        super().__init__()
        self.first = Conv(channels, hidden, momentum=momentum)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = Conv(4 * hidden, out, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        found = [self.first(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        y: Tensor = self.join(torch.cat(found, 1))
        return y


class AConv(nn.Module):
    """Halves the size: an average of 2 × 2 at stride 1, and a 3 × 3 convolution at stride 2.

    Args:
        channels: of what comes in.
        out: of what comes out.
        momentum: of the batch norm.
    """

    def __init__(self, channels: int, out: int, momentum: float = 0.03) -> None:
        super().__init__()
        self.conv = Conv(channels, out, 3, 2, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H // 2, W // 2)."""
        y: Tensor = self.conv(F.avg_pool2d(x, 2, 1))
        return y


class ADown(nn.Module):
    """Halves the size: half of the channels by a 3 × 3 convolution, half by a maximum.

    Args:
        channels: of what comes in.
        out: of what comes out.
        momentum: of the batch norms.
    """

    def __init__(self, channels: int, out: int, momentum: float = 0.03) -> None:
        super().__init__()
        self.conv = Conv(channels // 2, out // 2, 3, 2, momentum=momentum)
        self.pooled = Conv(channels // 2, out // 2, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H // 2, W // 2)."""
        one, other = F.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat([self.conv(one), self.pooled(F.max_pool2d(other, 3, 2, 1))], 1)


DOWN: dict[str, type[ADown | AConv]] = {"adown": ADown, "aconv": AConv}


class CBLinear(nn.Module):
    """A linear projection of a level, in one chunk for each of the levels that will read it.

    Args:
        channels: of the level.
        chunks: channels of each chunk.
    """

    def __init__(self, channels: int, chunks: Sequence[int]) -> None:
        super().__init__()
        self.chunks = list(chunks)
        self.conv = nn.Conv2d(channels, sum(chunks), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> (B, chunk, H, W) for each chunk."""
        chunks: tuple[Tensor, ...] = self.conv(x).split(self.chunks, 1)
        return chunks


def fuse(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """CBFuse: adds to a tensor (B, C, H, W) the nearest neighbours of others (B, C, h, w).

    Args:
        own: the branch's own.
        others: of any size.

    Raises:
        UserError: channels differ.
    """
    for other in others:
        if other.shape[1] != own.shape[1]:
            raise UserError(
                f"CBFuse adds levels of as many channels, not {other.shape[1]} to {own.shape[1]}."
            )
        own = own + F.interpolate(other, own.shape[2:], mode="nearest")
    return own
