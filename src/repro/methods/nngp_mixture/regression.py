"""Gaussian process regression at unit scale: all that a mixture over scales needs to know.

Targets are y = f(x) + noise with f | σ² ~ GP(0, σ² K) and noise of variance σ² ε. With C = K + εI,
a solve at σ = 1 gives the mean μ, the variance v, q = yᵀC⁻¹y and log |C|; every scale σ² then has
the mean μ, the variance σ² v and the evidence N(y; 0, σ² C), which needs q and log |C| alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.errors import UserError
from repro.methods.nngp_mixture.kernels import NNGPKernel


@dataclass(frozen=True)
class Fit:
    """A Gaussian process of scale 1, conditioned on N targets; leading dimensions are settings.

    Attributes:
        mean: (…, M) of the targets at M test inputs.
        variance: (…, M), noise included.
        quadratic: (…) q = yᵀC⁻¹y.
        logdet: (…) log |C|.
        size: N.
    """

    mean: Tensor
    variance: Tensor
    quadratic: Tensor
    logdet: Tensor
    size: int

    def __getitem__(self, index: int) -> Fit:
        """One setting."""
        i = index
        return Fit(self.mean[i], self.variance[i], self.quadratic[i], self.logdet[i], self.size)

    def gaussian_evidence(self, scale: Tensor) -> Tensor:
        """The log of N(y; 0, σ² C) for variances σ² that broadcast with `quadratic`."""
        N = self.size
        squares = self.quadratic / scale + N * scale.log() + self.logdet
        return -0.5 * (squares + N * math.log(2 * math.pi))


def condition(K: Tensor, K_star: Tensor, diag_star: Tensor, y: Tensor, noise: Tensor) -> Fit:
    """Conditions by one Cholesky factorisation; differentiable.

    Args:
        K: (N, N) kernel of the training inputs.
        K_star: (N, M) kernel of training and test inputs.
        diag_star: (M,) kernel of each test input with itself.
        y: (N,) targets.
        noise: ε > 0, a scalar.

    Raises:
        UserError: C is not positive definite to rounding.
    """
    C = K + noise * torch.eye(len(K), dtype=K.dtype, device=K.device)
    L, failed = torch.linalg.cholesky_ex(C)
    if bool(failed):
        raise UserError(
            f"nngp: the kernel matrix plus noise {float(noise):.3g} is not positive definite;"
            " raise the noise."
        )
    columns = torch.linalg.solve_triangular(L, torch.cat([y[:, None], K_star], 1), upper=False)
    a, V = columns[:, 0], columns[:, 1:]
    return Fit(
        mean=a @ V,
        variance=diag_star - V.square().sum(0) + noise,
        quadratic=a.square().sum(),
        logdet=2 * L.diagonal().log().sum(),
        size=len(y),
    )


def condition_all(K: Tensor, K_star: Tensor, diag_star: Tensor, y: Tensor, noises: Tensor) -> Fit:
    """Conditions for many noises (E,) at the price of one eigendecomposition.

    Args:
        K: (N, N).
        K_star: (N, M).
        diag_star: (M,).
        y: (N,).
        noises: (E,), positive.

    Returns:
        A `Fit` with the leading dimension E.
    """
    values_N, U = torch.linalg.eigh(K)
    a_N, B_NM = U.T @ y, U.T @ K_star
    spectrum_EN = values_N.clamp_min(0) + noises[:, None]
    return Fit(
        mean=(a_N / spectrum_EN) @ B_NM,
        variance=diag_star - (1 / spectrum_EN) @ B_NM.square() + noises[:, None],
        quadratic=(a_N.square() / spectrum_EN).sum(1),
        logdet=spectrum_EN.log().sum(1),
        size=len(y),
    )


def condition_kernel(
    kernel: NNGPKernel, x: Tensor, y: Tensor, x_star: Tensor, noise: Tensor
) -> Fit:
    """Conditions the process of a kernel.

    Args:
        kernel: of inputs.
        x: (N, …) training inputs.
        y: (N,) targets.
        x_star: (M, …) test inputs.
        noise: one ε, a scalar, or many (E,): see `condition` and `condition_all`.
    """
    K_star, diagonal = kernel.with_diagonals(x_star, x)
    solve = condition_all if noise.dim() else condition
    return solve(kernel(x), K_star.T, diagonal, y, noise)
