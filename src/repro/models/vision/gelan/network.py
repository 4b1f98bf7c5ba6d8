"""GELAN: backbone, pyramid and head, and the published sizes T, S, M, C and E.

Shapes: B images of H × W pixels, C channels. A block is written (out, hidden, width, depth), see
`Elan`; without a depth it is an ELAN1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.vision.gelan.blocks import (
    DOWN,
    CBLinear,
    Conv,
    Elan,
    Inner,
    RepConv,
    SppElan,
    fuse,
)
from repro.models.vision.gelan.head import DetectionHead, Predictions

Block = Sequence[int]
Features = tuple[list[Tensor], list[Tensor]]  # what an auxiliary branch may read, and the pyramid

# Published facts (the authors' configurations). The paper's DHLC is `twice`.
SIZES: dict[str, dict[str, Any]] = {
    "t": {
        "stem": [16, 32],
        "first": [32, 32, 16],
        "stages": [[64, 64, 32, 3], [96, 96, 48, 3], [128, 128, 64, 3]],
        "down": "aconv",
        "downs": [64, 96, 128],
        "pooled": [128, 64],
        "top_down": [[96, 96, 48, 3], [64, 64, 32, 3]],
        "neck_downs": [48, 64],
        "bottom_up": [[96, 96, 48, 3], [128, 128, 64, 3]],
    },
    "s": {
        "stem": [32, 64],
        "first": [64, 64, 32],
        "stages": [[128, 128, 64, 3], [192, 192, 96, 3], [256, 256, 128, 3]],
        "down": "aconv",
        "downs": [128, 192, 256],
        "pooled": [256, 128],
        "top_down": [[192, 192, 96, 3], [128, 128, 64, 3]],
        "neck_downs": [96, 128],
        "bottom_up": [[192, 192, 96, 3], [256, 256, 128, 3]],
    },
    "m": {
        "stem": [32, 64],
        "first": [128, 128, 64, 1],
        "stages": [[240, 240, 120, 1], [360, 360, 180, 1], [480, 480, 240, 1]],
        "down": "aconv",
        "downs": [240, 360, 480],
        "pooled": [480, 240],
        "top_down": [[360, 360, 180, 1], [240, 240, 120, 1]],
        # The table has 180; only with the next multiple of 8 the published count comes out.
        "neck_downs": [184, 240],
        "bottom_up": [[360, 360, 180, 1], [480, 480, 240, 1]],
    },
    "c": {
        "stem": [64, 128],
        "first": [256, 128, 64, 1],
        "stages": [[512, 256, 128, 1], [512, 512, 256, 1], [512, 512, 256, 1]],
        "down": "adown",
        "downs": [256, 512, 512],
        "pooled": [512, 256],
        "top_down": [[512, 512, 256, 1], [256, 256, 128, 1]],
        "neck_downs": [256, 512],
        "bottom_up": [[512, 512, 256, 1], [512, 512, 256, 1]],
    },
    "e": {
        "stem": [64, 128],
        "first": [256, 128, 64, 2],
        "stages": [[512, 256, 128, 2], [1024, 512, 256, 2], [1024, 512, 256, 2]],
        "down": "adown",
        "downs": [256, 512, 1024],
        "pooled": [512, 256],
        "top_down": [[512, 512, 256, 2], [256, 256, 128, 2]],
        "neck_downs": [256, 512],
        "bottom_up": [[512, 512, 256, 2], [512, 1024, 512, 2]],
        "twice": True,
    },
}


class Backbone(nn.Module):
    """Stem, first block, and three times a halving and a block; each level may be added to.

    Args:
        stem: channels of convolutions at stride 2.
        first: the block after them, or None.
        stages: three blocks.
        downs: channels after each halving.
        down: ``adown`` or ``aconv``.
        shape: ``inner``, ``steps`` and ``momentum`` of all blocks, see `Elan`.
        image_channels: of the image.
    """

    def __init__(
        self,
        stem: Sequence[int],
        first: Block | None,
        stages: Sequence[Block],
        downs: Sequence[int],
        down: str,
        shape: Mapping[str, Any],
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        momentum = shape["momentum"]
        before = [image_channels, *stem]
        self.stem = nn.ModuleList(
            Conv(c, out, 3, 2, momentum=momentum) for c, out in zip(before[:-1], stem, strict=True)
        )
        self.first = None if first is None else elan(stem[-1], first, shape)
        before = [stem[-1] if first is None else first[0], *(stage[0] for stage in stages[:-1])]
        self.downs = nn.ModuleList(
            DOWN[down](c, out, momentum) for c, out in zip(before, downs, strict=True)
        )
        self.stages = nn.ModuleList(
            elan(c, stage, shape) for c, stage in zip(downs, stages, strict=True)
        )
        # Of every level before its block, and after it.
        self.entries = [*stem, *downs]
        last = stem[-1] if first is None else first[0]
        self.exits = [*stem[:-1], last, *(stage[0] for stage in stages)]

    def forward(self, x: Tensor, others: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """The levels (B, C, H / 2, W / 2), (B, C, H / 4, W / 4), … of images (B, 3, H, W).

        Args:
            x: the images.
            others: for each level, what is added to it before its block.
        """
        added: Sequence[Sequence[Tensor]] = others or [()] * len(self.entries)
        levels = []
        for number, entry in enumerate([*self.stem, *self.downs]):
            x = fuse(entry(x), added[number])
            if number == len(self.stem) - 1 and self.first is not None:
                x = self.first(x)
            if number >= len(self.stem):
                x = self.stages[number - len(self.stem)](x)
            levels.append(x)
        return levels


class TwicePass(nn.Module):
    """A backbone read by a second one, to each level of which all deeper ones are added (DHLC).

    Args:
        sizes: of both, see `Backbone`.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.one, self.other = Backbone(**sizes), Backbone(**sizes)
        entries = self.other.entries
        self.projections = nn.ModuleList(
            CBLinear(c, entries[: number + 1]) for number, c in enumerate(self.one.exits)
        )

    def forward(self, x: Tensor) -> Features:
        """The levels of the first pass, and those of the second."""
        first = self.one(x)
        chunks = [project(level) for project, level in zip(self.projections, first, strict=True)]
        added = [[c[number] for c in chunks[number:]] for number in range(len(first))]
        return first, self.other(x, added)


class TopDown(nn.Module):
    """The way down of a pyramid: pooled P5, then P4 and P3, each joined with its backbone level.

    Args:
        channels: of the backbone's three levels.
        pooled: (out, hidden) of the pooling.
        blocks: of P4 and P3.
        shape: see `Backbone`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        pooled: Sequence[int],
        blocks: Sequence[Block],
        shape: Mapping[str, Any],
    ) -> None:
        super().__init__()
        out, hidden = pooled
        self.pooled = SppElan(channels[2], out, hidden, shape["momentum"])
        self.p4 = elan(pooled[0] + channels[1], blocks[0], shape)
        self.p3 = elan(blocks[0][0] + channels[0], blocks[1], shape)
        self.exits = [blocks[1][0], blocks[0][0], pooled[0]]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels P3, P4 and P5 of a backbone, to those of the pyramid."""
        b3, b4, b5 = levels
        p5 = self.pooled(b5)
        p4 = self.p4(torch.cat([_upsampled(p5, b4), b4], 1))
        p3 = self.p3(torch.cat([_upsampled(p4, b3), b3], 1))
        return [p3, p4, p5]


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="nearest")


class BottomUp(nn.Module):
    """The way back up, that makes the pyramid a path aggregation network.

    Args:
        channels: of P3, P4 and P5.
        downs: channels after halving P3 and P4.
        blocks: of P4 and P5.
        down: ``adown`` or ``aconv``.
        shape: see `Backbone`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        downs: Sequence[int],
        blocks: Sequence[Block],
        down: str,
        shape: Mapping[str, Any],
    ) -> None:
        super().__init__()
        p3, p4, p5 = channels
        self.down3 = DOWN[down](p3, downs[0], shape["momentum"])
        self.p4 = elan(downs[0] + p4, blocks[0], shape)
        self.down4 = DOWN[down](blocks[0][0], downs[1], shape["momentum"])
        self.p5 = elan(downs[1] + p5, blocks[1], shape)
        self.exits = [p3, blocks[0][0], blocks[1][0]]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """P3, P4 and P5 to the same, each knowing the finer ones."""
        p3, p4, p5 = levels
        p4 = self.p4(torch.cat([self.down3(p3), p4], 1))
        p5 = self.p5(torch.cat([self.down4(p4), p5], 1))
        return [p3, p4, p5]


@checked
class Gelan(nn.Module):
    """A detector: images (B, 3, H, W) in [0, 1] to `Predictions`.

    Args:
        classes: K.
        stem: channels of convolutions at stride 2, before the first block.
        first: block at the last of these strides, or None.
        stages: the backbone's blocks P3, P4 and P5.
        down: how sizes are halved.
        downs: channels after each of the backbone's halvings.
        pooled: (out, hidden) of the spatial pyramid pooling.
        top_down: blocks P4 and P3.
        neck_downs: channels after the two halvings on the way back up.
        bottom_up: blocks P4 and P5.
        twice: two passes of the backbone (size E).
        inner: what blocks consist of, see `Elan`; likewise `steps` and `momentum`.
        steps: parts of a block.
        depth: bottlenecks of a part, in the place of those that blocks name.
        momentum: of batch norms.
        head: arguments of `DetectionHead`.

    Attributes:
        taps: channels of the backbone's P3, P4 and P5, which an auxiliary branch may read.
    """

    def __init__(
        self,
        classes: Count,
        *,
        stem: Sequence[int],
        first: Block | None,
        stages: Sequence[Block],
        down: Literal["adown", "aconv"],
        downs: Sequence[int],
        pooled: Sequence[int],
        top_down: Sequence[Block],
        neck_downs: Sequence[int],
        bottom_up: Sequence[Block],
        twice: bool = False,
        inner: Inner = "csp",
        steps: Count = 2,
        depth: Count | None = None,
        momentum: float = 0.03,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shape: dict[str, Any] = {"inner": inner, "steps": steps, "momentum": momentum}
        stages, top_down, bottom_up = (
            [_deep(block, depth) for block in blocks] for blocks in (stages, top_down, bottom_up)
        )
        self.shape = shape
        self.backbone_sizes: dict[str, Any] = {
            "stem": list(stem),
            "first": None if first is None else _deep(first, depth),
            "stages": stages,
            "downs": list(downs),
            "down": down,
            "shape": shape,
        }
        self.top_down_sizes: dict[str, Any] = {
            "pooled": list(pooled),
            "blocks": top_down,
            "shape": shape,
        }
        self.backbone: nn.Module = (TwicePass if twice else Backbone)(**self.backbone_sizes)
        self.taps = [stage[0] for stage in stages]
        self.top_down = TopDown(self.taps, **self.top_down_sizes)
        self.bottom_up = BottomUp(self.top_down.exits, neck_downs, bottom_up, down, shape)
        finest = 2 ** (len(stem) + 1)
        self.head_sizes: dict[str, Any] = {
            "strides": [finest, 2 * finest, 4 * finest],
            "classes": classes,
            "momentum": momentum,
            **(head or {}),
        }
        self.head = DetectionHead(self.bottom_up.exits, **self.head_sizes)

    def features(self, x: Tensor) -> Features:
        """The backbone's three levels, for an auxiliary branch, and the pyramid's."""
        found = self.backbone(x)
        read, levels = found if isinstance(found, tuple) else (found, found)
        return read[-3:], self.bottom_up(self.top_down(levels[-3:]))

    def forward(self, x: Tensor) -> Predictions:
        """What is seen in images (B, 3, H, W)."""
        _, pyramid = self.features(x)
        predictions: Predictions = self.head(pyramid)
        return predictions

    def fold(self) -> Gelan:
        """Folds batch norms and fusable convolutions, in place, for inference.

        Raises:
            UserError: it is in training mode.
        """
        if self.training:
            raise UserError("Only a network in evaluation mode can be folded: call eval() first.")
        for module in list(self.modules()):
            if isinstance(module, RepConv | Conv):
                module.fold()
        return self


def elan(channels: int, block: Block, shape: Mapping[str, Any]) -> Elan:
    """A block as it is written in tables.

    Args:
        channels: of what comes in.
        block: (out, hidden, width) or (out, hidden, width, depth).
        shape: see `Backbone`.
    """
    out, hidden, width, *depth = block
    return Elan(channels, out, hidden, width, depth[0] if depth else 0, **shape)


def _deep(block: Block, depth: int | None) -> list[int]:
    """The block with another depth, if it has one and another is asked for."""
    return [*block[:3], depth] if depth is not None and len(block) == 4 else list(block)


@checked
def gelan(size: Literal["t", "s", "m", "c", "e"], classes: Count = 80, **changes: Any) -> Gelan:
    """GELAN of a published size.

    Args:
        size: T, S, M, C or E.
        classes: K.
        changes: arguments of `Gelan` that replace the published ones.
    """
    return Gelan(classes, **{**SIZES[size], **changes})
