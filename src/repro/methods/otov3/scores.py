"""Which groups look redundant: scores from the weights and the direction of the next step.

Every score maps `Evidence` to (G,) numbers; the highest are the most redundant. Section C of the
paper names two ingredients, and the authors' code combines them as `both` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Evidence:
    """What is known of all groups at a step; tensors are (G,).

    Attributes:
        squares: |x|^2 of each group.
        products: <x, g> with the direction g of the step, so that x moves along -g.
        directions: |g|^2.
        sizes: how many numbers each group has.
        generator: of whatever is random.
    """

    squares: Tensor
    products: Tensor
    directions: Tensor
    sizes: Tensor
    generator: torch.Generator

    @property
    def cosines(self) -> Tensor:
        """cos(x, g) = cos(-x, -g): 1 where the step leads straight to zero."""
        lengths = (self.squares * self.directions).sqrt()
        return self.products / lengths.clamp_min(1e-30)

    @property
    def magnitudes(self) -> Tensor:
        """|x| / dim(x)."""
        return self.squares.sqrt() / self.sizes


def cosine(known: Evidence) -> Tensor:
    """A group that the step leads to zero costs little to remove."""
    return known.cosines / known.cosines.norm().clamp_min(1e-30)


def magnitude(known: Evidence) -> Tensor:
    """Small entries on average; dividing by the size calls large groups redundant."""
    inverse = 1 / (known.magnitudes + 1e-6)
    return inverse / inverse.norm()


def both(known: Evidence) -> Tensor:
    """The authors' score: the mean of `cosine` and `magnitude`."""
    return 0.5 * cosine(known) + 0.5 * magnitude(known)


def rms(known: Evidence) -> Tensor:
    """A small root mean square: magnitude pruning across layers of different sizes."""
    return -(known.squares / known.sizes).sqrt()


def five(known: Evidence) -> Tensor:
    """Five measures of importance, each of unit norm over all groups, times a fifth (HESSO).

    Norm, norm / size, 1 + cos, and Taylor's first and second order terms of the loss at zero.
    """
    measures = [
        known.squares.sqrt(),
        known.magnitudes,
        1 - known.cosines,
        known.products.abs(),
        0.5 * known.products.square(),
    ]
    return -sum((0.2 * each / each.norm().clamp_min(1e-30) for each in measures), torch.tensor(0.0))


def random(known: Evidence) -> Tensor:
    """Nothing is known: a control."""
    drawn = torch.rand(len(known.sizes), generator=known.generator)
    return drawn.to(known.sizes.device)


def reversed_(known: Evidence) -> Tensor:
    """The least redundant first: a control."""
    return -both(known)


SCORES: dict[str, Callable[[Evidence], Tensor]] = {
    "both": both,
    "cosine": cosine,
    "magnitude": magnitude,
    "rms": rms,
    "five": five,
    "random": random,
    "reversed": reversed_,
}
