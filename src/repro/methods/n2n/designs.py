"""Students made by hand or rule, which a search has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from repro.methods.n2n.architecture import (
    Architecture,
    Block,
    Layer,
    Part,
    count_parameters,
    rows,
)
from repro.methods.n2n.edits import map_widths

STEPS = 30  # of bisection: finer than any width


def whole(teacher: Architecture) -> Architecture:
    """The teacher itself, to be trained again."""
    return teacher


def first_layer(teacher: Architecture) -> Architecture:
    """The first layer, what normalises and activates it, and all that nobody may leave out.

    Of a perceptron one hidden layer remains; of a convolutional network the convolutions with a
    stride, all pools and the last layer, too.
    """
    return _with_every(teacher, lambda number: number == 0)


def half_depth(teacher: Architecture) -> Architecture:
    """Every second layer with weights (with a residual block for a layer), and what follows it."""
    return _with_every(teacher, lambda number: number % 2 == 0)


def half_width(teacher: Architecture) -> Architecture:
    """All widths halved but the last."""
    return map_widths(teacher, lambda width: max(1, width // 2))


def of_size(
    architecture: Architecture, input_shape: Sequence[int], parameters: int
) -> Architecture:
    """All widths times one factor, the largest with which there are at most so many parameters."""

    def scaled(factor: float) -> Architecture:
        return map_widths(architecture, lambda width: max(1, int(width * factor)))

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if count_parameters(scaled(middle), input_shape) <= parameters:
            low = middle
        else:
            high = middle
    return scaled(low)


def _with_every(teacher: Architecture, wanted: Callable[[int], bool]) -> Architecture:
    """The units that are wanted by number, and those that have to be there."""
    kept: list[Part] = []
    number, is_kept = -1, True
    last = rows(teacher)[-1].part
    for index, part in enumerate(teacher):
        if isinstance(part, Block) or part.kind in ("conv", "linear"):
            number += 1
            is_kept = wanted(number) or _changes_shape(part) or index == last
        if is_kept or (isinstance(part, Layer) and part.kind not in FOLLOWING):
            kept.append(part)
    return tuple(kept)


FOLLOWING = ("conv", "linear", "batch_norm", "relu", "dropout")  # gone with the layer before


def _changes_shape(part: Part) -> bool:
    """Whether something behind it could not be built without it."""
    if isinstance(part, Block):
        return bool(part.shortcut)
    return part.kind == "conv" and part.stride > 1


DESIGNS: dict[str, Callable[[Architecture], Architecture]] = {
    each.__name__: each for each in (whole, first_layer, half_depth, half_width)
}
