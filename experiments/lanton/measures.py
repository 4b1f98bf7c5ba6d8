"""What the room measures about the noise of layers: spreads, ranks and changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import spearmanr
from torch import Tensor

from repro.toolbox.lmo import NormBall


@dataclass
class Pairs:
    """Dual norms of gradients and of differences of independent ones, layer by layer.

    Attributes:
        ball: whose dual norm.
        noise: squared norms of differences, a list of (L,) for the pairs so far.
        gradient: squared norms of gradients, likewise.
    """

    ball: NormBall
    noise: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Adds the gradients of two batches, matrices of any shapes."""
        self.noise.append(self._norms([a - b for a, b in zip(first, second, strict=True)]))
        self.gradient.append(self._norms(second))

    @property
    def variance(self) -> list[float]:
        """sigma^2 of each layer: half the mean squared dual norm of a difference."""
        return [float(value) / 2 for value in torch.stack(self.noise).mean(0)]

    @property
    def gradients(self) -> list[float]:
        """The mean squared dual norm of each layer's gradient."""
        return [float(value) for value in torch.stack(self.gradient).mean(0)]

    def _norms(self, matrices: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.ball.dual(matrix[None])[0] for matrix in matrices]).square()


def iid_pairs(ball: NormBall, shapes: Sequence[Sequence[int]], pairs: int, seed: int) -> Pairs:
    """The same of gradients with independent N(0, 1) entries: what shape and sampling give."""
    generator = torch.Generator().manual_seed(seed)

    def draws() -> Iterator[Tensor]:
        return (torch.randn(*shape, generator=generator) for shape in shapes)

    found = Pairs(ball)
    for _ in range(pairs):
        found.add(list(draws()), list(draws()))
    return found


def spread(variances: Sequence[float]) -> float:
    """The largest noise over the smallest: a ratio of standard deviations, at least 1."""
    return float((max(variances) / min(variances)) ** 0.5)


def without_shape(variances: Sequence[float], iid: Sequence[float]) -> list[float]:
    """Variances over those of independent entries in layers of the same shapes."""
    return [value / constant for value, constant in zip(variances, iid, strict=True)]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, in [-1, 1]."""
    return float(spearmanr(one, other).statistic)


def largest_change(before: Sequence[float], after: Sequence[float]) -> float:
    """The largest change of a layer's share of all noise (standard deviations), in [0, 1]."""
    shares = [torch.tensor(list(variances)).sqrt() for variances in (before, after)]
    early, late = (sigma / sigma.sum() for sigma in shares)
    return float((late - early).abs().max())


def sum_over_largest(variances: Sequence[float]) -> float:
    """The sum of the layers' noise over what it were if all had the largest, in (0, 1]."""
    sigma = torch.tensor(list(variances)).sqrt()
    return float(sigma.sum() / (len(sigma) * sigma.max()))
