"""Iterative boundary peeling: delete simple points that are no end points, eight times a round."""

from __future__ import annotations

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
POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}


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
    It therefore keeps one tensor of them instead of a graph, and a round without deletions
    settles all rounds to come. Outputs and gradients are bit for bit those of autograd.

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
                skeleton, weight = self._peel_binary(x)
            # x − x is 0: this adds the gradient weight · d x and nothing else.
            return skeleton + weight * (x - x.detach()) if x.requires_grad else skeleton
        return self._peel(x)

    def _peel(self, x: Tensor) -> Tensor:
        """The definition, in differentiable steps."""
        dims = x.dim() - 2
        padded, peeled = _with_margin(x)
        for _ in range(self.num_iter):
            ends = _end_points(2 * padded - 1)
            for offset in _subfields(dims):
                at = _lattice(offset)
                # Autograd keeps what a minimum read: a copy, since the volume changes in place.
                peeled[at] = torch.minimum(peeled[at].clone(), self._kept(padded, ends, offset))
        return _without_padding(peeled)

    def _peel_binary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same of binary x, and the factor with which each point passes its gradient."""
        dims = x.dim() - 2
        padded, peeled = _with_margin(x)
        weight = torch.ones_like(peeled)
        for done in range(1, self.num_iter + 1):
            ends = _end_points(2 * padded - 1)
            before = peeled.clone()
            factor = torch.ones_like(peeled)
            for offset in _subfields(dims):
                at = _lattice(offset)
                here, kept = peeled[at], self._kept(padded, ends, offset)
                # The derivative of min(a, b) by a: 1 where a is less, 1/2 where both are equal.
                factor[at] = 0.5 * (1 + (kept - here).sign())
                peeled[at] = torch.minimum(here, kept)
            weight *= factor
            if torch.equal(before, peeled):
                weight *= factor ** (self.num_iter - done)
                break
        return _without_padding(peeled), _without_padding(weight)

    def _kept(self, padded: Tensor, ends: Tensor, offset: tuple[int, ...]) -> Tensor:
        """1 at points of a subfield that stay, 0 at those to be deleted."""
        dims = len(offset)
        window = padded[last_axes(slice(start, None) for start in offset)]
        simple: Tensor = self.tests[str(dims)](window, stride=2)
        return 1 - simple * (1 - ends[_lattice(offset)])


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


def _end_points(x: Tensor) -> Tensor:
    """1 where x, −1 or +1 with a margin, has at most one foreground neighbour; without margin."""
    dims = x.dim() - 2
    around = POOLS[dims](x, 3, 1, divisor_override=1) - _without_padding(x)
    neighbours = (around + 3**dims - 1) / 2
    return F.hardtanh(2 - neighbours, 0.0, 1.0)
