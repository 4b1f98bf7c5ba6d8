"""Norm balls and their linear minimisation oracles: norm, dual norm and direction as one object.

An optimizer with a linear minimisation oracle (LMO) moves a layer by a step of fixed length,
``X <- X - eta D`` with ``D`` the point of a norm's unit ball that decreases the linear model most
(`direction` is the negative LMO)::

    D = argmax <B, D> over ||D|| <= 1,    <B, D> = ||B||_*,    ||D|| = 1

Which norm suits which layer is what Muon, Scion, Gluon and LANTON differ in:

======================== ========================= ============================ ====================
ball                     norm of X                 dual norm of B               direction
======================== ========================= ============================ ====================
`Spectral`               largest singular / f      f x sum of singular values   f U V^T
`Sign`                   largest entry             sum of entries               sign(B)
`RMS`                    norm2 / sqrt(size)        sqrt(size) x norm2           sqrt(size) B / norm2
`ColumnNorm`             longest column            sum of the columns' lengths  columns of length 1
`RowNorm`                longest row               sum of the rows' lengths     rows of length 1
======================== ========================= ============================ ====================

Everything takes a stack of layers of one shape, (K, out, in) or for `RMS` (K, anything), and works
layer by layer: many small matrices cost little more than one.

>>> import torch
>>> from repro.toolbox.lmo import Spectral
>>> ball, b = Spectral(method="exact", dual_method="exact"), torch.randn(2, 3, 5)
>>> d = ball.direction(b)
>>> torch.allclose((b * d).sum((1, 2)), ball.dual(b), rtol=1e-4)
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from repro.knobs import Count, checked

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's quintic: the steepest at zero that stays in
EPS = 1e-7  # added to a norm that is divided by
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NormBall:
    """A norm on layers, with its dual norm and the direction that its LMO gives."""

    def norm(self, x_K: Tensor) -> Tensor:
        """The norm of each layer: (K, …) to (K,)."""
        raise NotImplementedError

    def dual(self, b_K: Tensor) -> Tensor:
        """The dual norm of each layer, ``max <b, d>`` over the ball: (K, …) to (K,)."""
        raise NotImplementedError

    def direction(self, b_K: Tensor) -> Tensor:
        """The point of the ball that each layer's `b` is most aligned with; 0 where `b` is 0."""
        raise NotImplementedError

    def flops(self, shape: Sequence[int]) -> tuple[int, int]:
        """Floating-point operations in matrix products for one layer: direction and dual norm."""
        del shape
        return 0, 0


class Spectral(NormBall):
    """Largest singular value over a factor f of the shape; the dual is f times the nuclear norm.

    Args:
        factor: ``operator``: f = sqrt(out / in), the norm from RMS to RMS (Scion, LANTON);
            ``muon``: sqrt(max(1, out / in)); ``rms_adamw``: 0.2 sqrt(max(out, in)) (Moonlight's
            D-Muon); ``none``: 1.
        method: of the direction: ``newton_schulz`` (singular values become 0.7 to 1.2) or
            ``exact``.
        dual_method: of the dual norm: ``exact`` (all singular values), ``newton_schulz`` (inner
            product with that of `newton_schulz`: 0.7 to 1 of the norm) or ``lanczos`` (see
            `lanczos_nuclear_norm`: right on average, a tenth of the cost).
        steps: of Newton-Schulz.
        dtype: of Newton-Schulz: ``float32`` or ``bfloat16`` (as published).
    """

    @checked
    def __init__(
        self,
        factor: Literal["operator", "muon", "rms_adamw", "none"] = "operator",
        method: Literal["newton_schulz", "exact"] = "newton_schulz",
        dual_method: Literal["newton_schulz", "exact", "lanczos"] = "newton_schulz",
        steps: Count = 5,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.factor = factor
        self.method = method
        self.dual_method = dual_method
        self.steps = steps
        self.dtype = DTYPES[dtype]

    def scale(self, shape: Sequence[int]) -> float:
        """The factor f of a matrix (…, out, in)."""
        out, inputs = shape[-2:]
        return {
            "operator": math.sqrt(out / inputs),
            "muon": math.sqrt(max(1.0, out / inputs)),
            "rms_adamw": 0.2 * math.sqrt(max(out, inputs)),
            "none": 1.0,
        }[self.factor]

    @override
    def norm(self, x_K: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(x_K.float(), 2) / self.scale(x_K.shape)

    @override
    def dual(self, b_K: Tensor) -> Tensor:
        b_K = b_K.float()
        if self.dual_method == "exact":
            nuclear_K = torch.linalg.svdvals(b_K).sum(-1)
        elif self.dual_method == "lanczos":
            nuclear_K = lanczos_nuclear_norm(b_K)
        else:
            nuclear_K = (b_K * newton_schulz(b_K, self.steps, self.dtype)).sum((-2, -1))
        return self.scale(b_K.shape) * nuclear_K

    @override
    def direction(self, b_K: Tensor) -> Tensor:
        if self.method == "exact":
            polar = polar_factor(b_K)
        else:
            polar = newton_schulz(b_K, self.steps, self.dtype)
        return self.scale(b_K.shape) * polar

    @override
    def flops(self, shape: Sequence[int]) -> tuple[int, int]:
        short, long = sorted(shape[-2:])
        iteration = 4 * short**2 * long + 2 * short**3
        lanczos = 4 * PROBES * LANCZOS_STEPS * short * long
        costs = {"newton_schulz": self.steps * iteration, "lanczos": lanczos}
        costs["exact"] = 14 * short**2 * long  # about: Golub & Van Loan, with singular vectors
        return costs[self.method], costs[self.dual_method]


class Sign(NormBall):
    """Largest entry (from l1 to l-infinity); the direction is the sign: Signum.

    Args:
        per_input: divide the direction by the number of inputs, as Scion does at an untied head;
            the norm is then so many times the largest entry.
    """

    def __init__(self, per_input: bool = False) -> None:
        self.per_input = per_input

    @override
    def norm(self, x_K: Tensor) -> Tensor:
        return x_K.flatten(1).abs().amax(1) * self._inputs(x_K)

    @override
    def dual(self, b_K: Tensor) -> Tensor:
        return b_K.float().flatten(1).abs().sum(1) / self._inputs(b_K)

    @override
    def direction(self, b_K: Tensor) -> Tensor:
        return b_K.sign() / self._inputs(b_K)

    def _inputs(self, x_K: Tensor) -> int:
        return x_K.shape[-1] if self.per_input else 1


class RMS(NormBall):
    """Root mean square of the entries; for gains and biases."""

    @override
    def norm(self, x_K: Tensor) -> Tensor:
        return _lengths(x_K) / math.sqrt(x_K[0].numel())

    @override
    def dual(self, b_K: Tensor) -> Tensor:
        return _lengths(b_K) * math.sqrt(b_K[0].numel())

    @override
    def direction(self, b_K: Tensor) -> Tensor:
        lengths_K = _lengths(b_K).view(-1, *[1] * (b_K.dim() - 1))
        return math.sqrt(b_K[0].numel()) * _divided(b_K, lengths_K)


class ColumnNorm(NormBall):
    """Length of the longest column (from l1 to l2)."""

    along = -2

    @override
    def norm(self, x_K: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x_K.float(), dim=self.along).amax(-1)

    @override
    def dual(self, b_K: Tensor) -> Tensor:
        return torch.linalg.vector_norm(b_K.float(), dim=self.along).sum(-1)

    @override
    def direction(self, b_K: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(b_K, dim=self.along, keepdim=True)
        return _divided(b_K, lengths)


class RowNorm(ColumnNorm):
    """Length of the longest row (from l2 to l-infinity)."""

    along = -1


def polar_factor(b_K: Tensor) -> Tensor:
    """``U V^T`` of each matrix ``U S V^T`` of (K, m, n)."""
    u_K, _, vh_K = torch.linalg.svd(b_K.float(), full_matrices=False)
    return (u_K @ vh_K).to(b_K.dtype)


def newton_schulz(b_K: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """About ``U V^T`` of each matrix ``U S V^T``, by matrix products alone (Jordan et al. 2024).

    Five steps bring singular values of at least a hundredth of the Frobenius norm to [0.68, 1.21].

    Args:
        b_K: (K, m, n) matrices.
        steps: iterations ``X <- a X + (b A + c A^2) X`` with ``A = X X^T``.
        dtype: in which they are done.

    Returns:
        (K, m, n) of the type of `b_K`.
    """
    a, b, c = COEFFICIENTS
    is_tall = b_K.shape[-2] > b_K.shape[-1]
    x_K = (b_K.mT if is_tall else b_K).to(dtype)
    x_K = x_K / (torch.linalg.matrix_norm(x_K, keepdim=True) + EPS)
    for _ in range(steps):
        gram_K = x_K @ x_K.mT
        x_K = torch.baddbmm(
            x_K, torch.baddbmm(gram_K, gram_K, gram_K, beta=b, alpha=c), x_K, beta=a
        )
    return (x_K.mT if is_tall else x_K).to(b_K.dtype)


PROBES, LANCZOS_STEPS = 8, 8


def lanczos_nuclear_norm(b_K: Tensor) -> Tensor:
    """The sum of singular values, by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    It is the trace of ``(B B^T)^(1/2)``, m times the mean of that form over random unit vectors;
    a few steps of Golub-Kahan bidiagonalisation give the form for a vector. `PROBES` fixed vectors
    of signs and `LANCZOS_STEPS` products with the matrix and its transpose for each: within some
    per cent for noise, some ten per cent for matrices of low rank.

    Args:
        b_K: (K, m, n) matrices.

    Returns:
        (K,) estimates.
    """
    b_K = b_K.mT if b_K.shape[-2] > b_K.shape[-1] else b_K
    m = b_K.shape[-2]
    generator = torch.Generator().manual_seed(0)
    signs_MP = torch.randint(0, 2, (m, PROBES), generator=generator).to(b_K) * 2 - 1
    left_KMP = (signs_MP / math.sqrt(m)).expand(len(b_K), -1, -1)
    right_KNP, alpha_KP = _normalised(b_K.mT @ left_KMP)
    alphas, betas = [alpha_KP], []
    for _ in range(min(LANCZOS_STEPS, m) - 1):
        left_KMP, beta_KP = _normalised(b_K @ right_KNP - alpha_KP[:, None] * left_KMP)
        right_KNP, alpha_KP = _normalised(b_K.mT @ left_KMP - beta_KP[:, None] * right_KNP)
        alphas.append(alpha_KP)
        betas.append(beta_KP)
    bidiagonal = torch.diag_embed(torch.stack(alphas, -1))  # (K, P, steps, steps)
    if betas:
        bidiagonal = bidiagonal + torch.diag_embed(torch.stack(betas, -1), offset=-1)
    u, s, _ = torch.linalg.svd(bidiagonal)
    return m * (u[..., 0, :].square() * s).sum(-1).mean(-1)


def iid_dual(ball: NormBall, shape: Sequence[int], samples: int = 16) -> float:
    """The mean dual norm of a layer with independent N(0, 1) entries: what shape alone gives.

    Args:
        ball: whose dual norm.
        shape: of one layer.
        samples: layers that are drawn; always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    return float(ball.dual(torch.randn(samples, *shape, generator=generator)).mean())


def _lengths(x_K: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_K.float().flatten(1), dim=1)


def _divided(x: Tensor, lengths: Tensor) -> Tensor:
    """X over lengths; 0 where they are."""
    return x / lengths.to(x.dtype).masked_fill(lengths == 0, 1.0)


def _normalised(x_KMP: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of length 1, or 0, and their lengths (K, P)."""
    lengths_KP = torch.linalg.vector_norm(x_KMP, dim=-2)
    return _divided(x_KMP, lengths_KP[:, None]), lengths_KP
