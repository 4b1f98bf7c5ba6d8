"""Iterative boundary peeling: delete simple points that are no end points, eight times a round."""

from __future__ import annotations

import functools
import itertools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Natural, NonNegative, Positive, checked
from repro.methods.skeleton.binarise import binarise
from repro.methods.skeleton.layer import SkeletonLayer
from repro.methods.skeleton.simple_points import BooleanTest, EulerTest, last_axes

TESTS = {"boolean": BooleanTest, "euler": EulerTest}


class Skeletonize(SkeletonLayer):
    """Maps soft or binary masks to skeletons of the same topology, and passes gradients.

    Each of ``num_iter`` rounds visits the points in subfields: every second point along every
    axis, eight sub-lattices of a volume, four of an image. No two points of a subfield are
    neighbours, so all its simple points may go at once, but for end points: those with at most one
    foreground neighbour when the round began.

    The gradient is that of the chain of minima ``x = min(x, 1 − deleted)`` through the rounds: the
    tests for simple points have derivative 0 on binary data. A deleted point gets 0; a point that
    ties with the other side of its minimum is halved, which happens to surviving points once a
    round (2^−num_iter in all). These factors are powers of two that the forward pass knows already.
    It therefore keeps one tensor of them instead of a graph, looks only at points where a deletion
    is possible (or a tie, if a gradient is wanted), and a round without deletions settles all
    rounds to come. Outputs and gradients are bit for bit those of autograd.

    Args:
        num_iter: rounds; at least half the width of the thickest part, or that part stays thick.
        simple_points: ``boolean`` (exact) or ``euler`` (necessary, in 3-D not sufficient).
        probabilistic: binarise at random first, see `binarise`; False expects binary input, and
            differentiates through everything if it is not.
        beta: scale of the binarisation's noise.
        tau: its temperature.
        shortcut: use the known gradient factors on binary data; False leaves all to autograd, with
            the same results but memory that grows with the rounds.

    Raises:
        UserError: a knob is out of its range.
    """

    @checked
    def __init__(
        self,
        num_iter: Natural = 5,
        simple_points: Literal["boolean", "euler"] = "boolean",
        probabilistic: bool = True,
        beta: NonNegative = 0.33,
        tau: Positive = 1.0,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.num_iter = num_iter
        self.probabilistic = probabilistic
        self.beta = beta
        self.tau = tau
        self.shortcut = shortcut
        self.tests = nn.ModuleDict({str(d): TESTS[simple_points](d) for d in (2, 3)})

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Skeletonises masks.

        Args:
            x: (B, 1, H, W) or (B, 1, D, H, W), values in [0, 1].
            generator: of the binarisation's random numbers.

        Returns:
            The skeletons, in the shape of x; exactly 0 or 1 where the peeled mask is binary.

        A `UserError` says so if the shape is another one, a size is 2, H or W is 1, or a value lies
        outside [0, 1].
        """
        _check(x)
        if self.probabilistic:
            x = binarise(x, self.beta, self.tau, generator)
        if self.shortcut and bool(((x == 0) | (x == 1)).all()):
            with torch.no_grad():
                skeleton, weight = self._peel_binary(x, weighted=x.requires_grad)
            # x − x is 0: this adds the gradient weight · d x and nothing else.
            return skeleton + weight * (x - x.detach()) if weight is not None else skeleton
        return self._peel(x)

    def _peel(self, x: Tensor) -> Tensor:
        """The definition, in differentiable steps."""
        dims = x.dim() - 2
        padded, peeled = _with_margin(x)
        for _ in range(self.num_iter):
            ends = _end_points(padded)
            for offset in _subfields(dims):
                at = _lattice(offset)
                # Autograd keeps what a minimum read: a copy, since the volume changes in place.
                window = padded[last_axes(slice(start, None) for start in offset)]
                simple = self.tests[str(dims)](window, stride=2)
                kept = 1 - simple * (1 - ends[at])
                peeled[at] = torch.minimum(peeled[at].clone(), kept)
        return _without_padding(peeled)

    def _peel_binary(self, x: Tensor, weighted: bool) -> tuple[Tensor, Tensor | None]:
        """The same of binary x, and the factor with which each point passes its gradient."""
        dims = x.dim() - 2
        test: Any = self.tests[str(dims)]
        padded, peeled = _with_margin(x)
        points, window = padded.view(-1), _window(padded)
        position = torch.arange(len(points), device=x.device).view_as(padded)
        position = _without_padding(position)
        weight = torch.ones_like(padded) if weighted else None
        for done in range(1, self.num_iter + 1):
            open_ended = _end_points(padded) == 0
            factor = _factor(padded, open_ended, test) if weighted else None
            deleted = False
            for offset in _subfields(dims):
                at = _lattice(offset)
                looked_at = open_ended[at] & ~_surrounded(padded, offset)
                if not (weighted and test.tells_background):  # it stays
                    looked_at &= peeled[at] > 0
                centre = position[at][looked_at]
                around = points.index_select(0, (centre[:, None] + window).view(-1))
                around = around.view(-1, len(window))
                here, kept = around[:, len(window) // 2], 1 - test.of_windows(around)[:, 0]
                if factor is not None:
                    factor.view(-1)[centre] = 0.5 * (1 + (kept - here).sign())
                points[centre] = torch.minimum(here, kept)
                deleted = deleted or bool((kept < here).any())
            if weight is not None and factor is not None:
                weight *= factor if deleted else factor ** (self.num_iter - done + 1)
            if not deleted:
                break
        skeleton = _without_padding(peeled)
        return skeleton, None if weight is None else _without_padding(_without_padding(weight))


def _check(x: Tensor) -> None:
    if x.dim() not in (4, 5) or x.shape[1] != 1:
        raise UserError(
            f"skeleton: takes (batch, 1, height, width) or (batch, 1, depth, height, width), "
            f"not {tuple(x.shape)}."
        )
    size = x.shape[2:]
    if 2 in size or 1 in size[-2:]:
        raise UserError(
            f"skeleton: an image of {'×'.join(map(str, size))} points: no axis may have 2, and "
            "neither height nor width 1."
        )
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise UserError(
            f"skeleton: values lie in [0, 1], these between {x.min():g} and {x.max():g}. Of logits "
            "take the sigmoid."
        )


def _with_margin(x: Tensor) -> tuple[Tensor, Tensor]:
    """A padded copy of x, and the view of it that is peeled.

    The paper pads by one; one more makes every window around the peeled points whole.
    """
    dims = x.dim() - 2
    padded = F.pad(x, (2,) * 2 * dims)
    return padded, padded[last_axes([slice(1, -1)] * dims)]


def _without_padding(x: Tensor) -> Tensor:
    return x[last_axes([slice(1, -1)] * (x.dim() - 2))]


def _subfields(dims: int) -> list[tuple[int, ...]]:
    """First points of the sub-lattices, in the paper's order: the first axis changes fastest.

    An image is the middle slice of a padded volume, of which only the subfields that start at
    depth 1 hold anything.
    """
    return [offset[::-1] for offset in itertools.product((0, 1), repeat=dims)]


def _lattice(offset: tuple[int, ...]) -> Any:
    return last_axes(slice(start, None, 2) for start in offset)


def _surrounded(padded: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Which points of a subfield are foreground, and all face neighbours too: never simple."""
    *outer, last = offset
    sizes = padded.shape[2:]
    reached = []
    for step in itertools.product((-1, 0, 1), repeat=len(offset)):
        if sum(map(abs, step)) < 2:
            rows = [
                slice(1 + o + s, n - 1 + s, 2) for o, s, n in zip(outer, step, sizes, strict=False)
            ]
            whole = slice(1 + step[-1], sizes[-1] - 1 + step[-1])
            reached.append(padded[last_axes([*rows, whole])])
    # Every second point of the last axis is taken at the end: rows in one piece are faster.
    return functools.reduce(torch.minimum, reached)[..., last::2] > 0


def _factor(padded: Tensor, open_ended: Tensor, test: BooleanTest | EulerTest) -> Tensor:
    """The derivative of min(a, b) by a, 1 where a is less, 1/2 where both are equal.

    Here a is the image, and b, what is kept, that of points which are not looked at: 1, but at
    background that passes for simple.
    """
    factor = 1 - padded / 2
    if not test.tells_background:
        _without_padding(factor).masked_fill_(open_ended, 0.5)
    return factor


def _window(padded: Tensor) -> Tensor:
    """From a point of a tensor to those around it and itself, as differences of flat positions."""
    strides = padded.stride()[2:]
    steps = itertools.product((-1, 0, 1), repeat=len(strides))
    to = [sum(s * stride for s, stride in zip(step, strides, strict=True)) for step in steps]
    return torch.tensor(to, device=padded.device)


def _end_points(x: Tensor) -> Tensor:
    """1 where x, in [0, 1] with a margin, has at most one foreground neighbour; without margin."""
    total = x
    for axis in range(2, x.dim()):  # axis by axis: a sixth of what pooling costs in 3-D
        size = x.shape[axis] - 2
        first, second, third = (total.narrow(axis, start, size) for start in range(3))
        total = first + second + third
    return F.hardtanh(2 - (total - _without_padding(x)), 0.0, 1.0)
