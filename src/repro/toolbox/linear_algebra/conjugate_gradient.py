"""Conjugate gradients with a fixed number of steps: batched, complex, differentiable, no inverse.

For a Hermitian positive definite A and right-hand sides B, the method of Hestenes and Stiefel
(1952) builds X_t with X_t → A⁻¹ B; the error falls, in the norm of A, at every step. With Jacobi
scaling it works on q A q, where q = diag(A)^(-1/2), whose diagonal is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12  # keeps a column that has converged from dividing zero by zero


def conjugate_gradient(A: Tensor, B: Tensor, steps: int, jacobi: bool = True) -> Tensor:
    """Approximates A⁻¹ B by so many steps of conjugate gradients, all columns at once.

    Gradients flow through the steps, so what surrounds them learns to live with few.

    Args:
        A: (…, n, n), Hermitian (or symmetric) and positive definite, real or complex.
        B: (…, n, r), of the same type.
        steps: at least one; n steps are exact up to rounding.
        jacobi: scale the system to a unit diagonal first.

    Returns:
        (…, n, r).

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"conjugate gradients take at least one step, not {steps}")
    if A.is_complex():
        # The real system of twice the size has the same iterates, and its arithmetic is faster.
        A = torch.cat([torch.cat([A.real, -A.imag], -1), torch.cat([A.imag, A.real], -1)], -2)
        X = conjugate_gradient(A, torch.cat([B.real, B.imag], -2), steps, jacobi)
        return torch.complex(*X.chunk(2, dim=-2))
    q = None
    if jacobi:
        q = torch.diagonal(A, dim1=-2, dim2=-1).rsqrt().unsqueeze(-1)
        A, B = q * A * q.mT, q * B
    X = torch.zeros_like(B)
    residual, direction = B, B
    square = _inner(residual, residual)
    for step in range(steps):
        image = A @ direction
        length = square / (_inner(direction, image) + TINY)
        X = X + length * direction
        if step + 1 == steps:
            break
        residual = residual - length * image
        before, square = square, _inner(residual, residual)
        direction = residual + square / (before + TINY) * direction
    return X if q is None else q * X


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb of each column: (…, n, r) to (…, 1, r)."""
    return (a * b).sum(-2, keepdim=True)
