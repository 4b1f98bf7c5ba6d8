"""Fixed random projections of labels and errors, and the losses of a layer by itself.

Shapes: B examples; C classes; a layer's output is (B, n) or, of a convolution, (B, c, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.data.base.iterators import generator_for
from repro.knobs import Positive, checked

Kind = Literal["rademacher", "normal", "kaiming"]
LocalLoss = Callable[[Tensor, Tensor], Tensor]


@checked
def draw(
    shape: Sequence[int], fan: int, kind: Kind, scale: Positive, generator: torch.Generator
) -> Tensor:
    """Draws a fixed random projection, on the CPU.

    Args:
        shape: of the result.
        fan: what ``kaiming`` divides by.
        kind: ``rademacher``: -1 or 1; ``normal``: N(0, 1); ``kaiming``: uniform within
            sqrt(6 / fan), He's variance 2 / fan, as in the authors' code of DRTP.
        scale: what all entries are multiplied by.
        generator: decides the draw.
    """
    if kind == "rademacher":
        drawn = torch.randint(2, shape, generator=generator) * 2.0 - 1.0
    elif kind == "normal":
        drawn = torch.randn(shape, generator=generator)
    else:
        drawn = (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(6 / fan)
    return drawn * scale


class Projections:
    """One fixed random matrix P_i (C, n_i) for each layer, made out of a seed when first asked for.

    Row c of P_i is the target of layer i for class c (the paper's column: its matrices stand the
    other way round), or the direction into which output c's error is fed back.

    Args:
        kind: see `draw`; a layer's size is its fan.
        scale: see `draw`.
        spread: of a convolution: ``full`` draws every position by itself, ``channel`` once for all
            positions of a channel.
        seed: of all matrices.
    """

    @checked
    def __init__(
        self,
        kind: Kind = "rademacher",
        scale: Positive = 1.0,
        spread: Literal["full", "channel"] = "full",
        seed: int = 0,
    ) -> None:
        self.kind: Kind = kind
        self.scale = scale
        self.spread = spread
        self.seed = seed
        self._tables: dict[int, Tensor] = {}

    def of(self, layer: int, classes: int, output: Tensor) -> Tensor:
        """The matrix of a layer: (C, n), (C, c, h, w), or (C, c, 1, 1) for ``channel``.

        Args:
            layer: its number.
            classes: C.
            output: of the layer, (B, ...); tells the shape, the device and the type.
        """
        if layer not in self._tables:
            shape = tuple(output.shape[1:])
            if self.spread == "channel" and len(shape) == 3:
                shape = (shape[0], 1, 1)
            generator = generator_for(self.seed, layer)
            drawn = draw((classes, *shape), math.prod(shape), self.kind, self.scale, generator)
            self._tables[layer] = drawn.to(output)
        return self._tables[layer]


def positions(output: Tensor) -> int:
    """Pixels of a convolution's output (B, c, h, w); 1 for all other outputs."""
    return output[0, 0].numel() if output.dim() == 4 else 1


def _summed(entries: Tensor) -> Tensor:
    return entries.flatten(1).sum(1)


def squared(target: Tensor, output: Tensor) -> Tensor:
    """``||target - output||^2 / 2`` of each example (B,): the paper's l2, its factor 2 left out."""
    return _summed((target - output).square()) / 2


def absolute(target: Tensor, output: Tensor) -> Tensor:
    """``||target - output||_1`` of each example (B,): the paper's l1."""
    return _summed((target - output).abs())


def inner(target: Tensor, output: Tensor) -> Tensor:
    """``-<target, output>`` of each example (B,): direct random target projection (DRTP)."""
    return -_summed(target * output)


def hinge(target: Tensor, output: Tensor) -> Tensor:
    """``max(0, 1 - target * output)``, summed over the outputs of each example (B,)."""
    return _summed((1 - target * output).relu())


def cosine(target: Tensor, output: Tensor) -> Tensor:
    """One minus the cosine between target and output of each example (B,)."""
    return 1 - F.cosine_similarity(target.expand_as(output).flatten(1), output.flatten(1))


LOCAL_LOSSES: Mapping[str, LocalLoss] = {
    "l2": squared,
    "l1": absolute,
    "drtp": inner,
    "hinge": hinge,
    "cosine": cosine,
}
