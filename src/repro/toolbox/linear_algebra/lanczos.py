"""Lanczos with full reorthogonalisation, for many operators at once, and stochastic quadrature.

From q_1 = z/|z| the three-term recurrence of Lanczos (1950) builds an orthonormal basis Q of the
Krylov space of a symmetric A in which A is tridiagonal: Qᵀ A Q = T. The eigenvalues of T (Ritz
values) approach the extreme ones of A from within, and with the squares of the first components of
T's eigenvectors as weights they are a Gauss quadrature of the spectral density that z sees (Golub
and Welsch 1969)::

    zᵀ f(A) z / zᵀz  ≈  Σ_i w_i f(θ_i)

Every new direction is made orthogonal to all earlier ones as well, and where that takes much of it
once more (Daniel et al. 1976): in floating point the recurrence alone finds the largest eigenvalue
again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.knobs import Count, checked

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """What Lanczos found; m steps, any leading dimensions (one operator a row).

    Attributes:
        values: (…, m), ascending, in float64.
        weights: (…, m), at least 0 and of sum 1: how much of the start lies along each.
        residuals: (…, m): |A y - θ y| of each Ritz pair, a bound of the value's error.
        basis: (…, m, P), orthonormal rows.
        turns: (…, m, m): the eigenvectors of T, one a column.
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor
    basis: Tensor
    turns: Tensor

    @property
    def top(self) -> Tensor:
        """The largest value (…)."""
        return self.values[..., -1]

    @property
    def bottom(self) -> Tensor:
        """The smallest value (…)."""
        return self.values[..., 0]

    def vectors(self, count: int) -> Tensor:
        """Unit Ritz vectors (…, count, P) of the largest values, the largest first."""
        chosen = self.turns[..., -count:].flip(-1).to(self.basis.dtype)
        return chosen.mT @ self.basis


@checked
def lanczos(product: Product, start: Tensor, steps: Count, tolerance: float | None = None) -> Ritz:
    """Runs so many steps of Lanczos, or fewer: an invariant space ends it, or the tolerance.

    Args:
        product: maps (…, P) to A times it; with leading dimensions one symmetric A a row.
        start: (…, P), not zero.
        steps: most products.
        tolerance: stop once |A y - θ y| of the largest value is at most this share of it; None:
            take all steps.

    Returns:
        m ≤ steps Ritz pairs. A row that ended before others repeats a Rayleigh quotient of weight
        zero, which is never extreme.
    """
    *rows, P = start.shape
    steps = min(steps, P)
    basis = start.new_zeros(*rows, steps, P)
    alpha = torch.zeros(*rows, steps, dtype=torch.float64, device=start.device)
    beta = torch.zeros_like(alpha)
    q = start / start.norm(dim=-1, keepdim=True)
    floor = 10 * torch.finfo(start.dtype).eps
    for step in range(steps):
        basis[..., step, :] = q
        known = basis[..., : step + 1, :]
        w = product(q)
        size = w.norm(dim=-1)
        own = (w * q).sum(-1).to(alpha.dtype)
        alpha[..., step] = torch.where(q.any(-1), own, alpha[..., 0]) if step else own
        w, rest = _without(w, known[..., -2:, :])
        for _ in range(2):
            before, (w, rest) = rest, _without(w, known)
            if bool((rest >= before / 2).all()):  # else much of what was left was rounding
                break
        goes_on = rest > floor * size  # else the space is invariant, and what is left is rounding
        beta[..., step] = torch.where(goes_on, rest, 0)
        if not bool(goes_on.any()):
            break
        if tolerance is not None:
            so_far = _ritz(alpha[..., : step + 1], beta[..., : step + 1], known)
            if bool((so_far.residuals[..., -1] <= tolerance * so_far.top.abs()).all()):
                break
        q = torch.where(goes_on, 1 / rest, 0).unsqueeze(-1) * w
    return _ritz(alpha[..., : step + 1], beta[..., : step + 1], basis[..., : step + 1, :])


def _without(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of vectors (…, P) outside the span of rows (…, k, P), and its norm."""
    left = w - ((rows @ w.unsqueeze(-1)).mT @ rows).squeeze(-2)
    return left, left.norm(dim=-1)


def _ritz(alpha: Tensor, beta: Tensor, basis: Tensor) -> Ritz:
    """Solves the tridiagonal problem (…, m, m)."""
    beside = torch.diag_embed(beta[..., :-1], offset=1)
    values, turns = torch.linalg.eigh(torch.diag_embed(alpha) + beside + beside.mT)
    residuals = beta[..., -1:] * turns[..., -1, :].abs()
    return Ritz(values, turns[..., 0, :].square(), residuals, basis, turns)


def slq_density(values: Tensor, weights: Tensor, grid_G: Tensor, width: float) -> Tensor:
    """The spectral density by stochastic Lanczos quadrature, each value a Gaussian.

    Args:
        values: Ritz values (…, m); leading dimensions are probes, and averaged over.
        weights: (…, m).
        grid_G: where the density is wanted.
        width: standard deviation of each Gaussian.

    Returns:
        (G,), of integral one.
    """
    offsets = (grid_G - values.unsqueeze(-1)) / width
    bumps = torch.exp(-offsets.square() / 2) / (width * math.sqrt(2 * math.pi))
    density = (weights.unsqueeze(-1) * bumps).sum(-2)
    return density.reshape(-1, len(grid_G)).mean(0)
