"""The parts of `repro.toolbox.linear_algebra` against loops over other libraries."""

from __future__ import annotations

import torch
from scipy.sparse.linalg import cg
from timing import faster

from repro.toolbox.linear_algebra.conjugate_gradient import conjugate_gradient


@torch.no_grad()
def test_conjugate_gradients_in_one_batch_against_scipy_column_by_column() -> None:
    """64 systems of 8 unknowns, 8 right-hand sides each, 8 steps."""
    H = torch.randn(64, 8, 12, dtype=torch.complex128)
    A, B = H @ H.mH + torch.eye(8), torch.eye(8, dtype=torch.complex128).expand(64, 8, 8)

    def one_by_one() -> None:
        for matrix, right in zip(A.numpy(), B.numpy(), strict=True):
            for column in right.T:
                cg(matrix, column, maxiter=8, rtol=0)

    faster("512 systems", lambda: conjugate_gradient(A, B, 8), one_by_one, 10, repeats=3)
