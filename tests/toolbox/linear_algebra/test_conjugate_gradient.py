"""Conjugate gradients against exact solutions, SciPy's, and what theory says of their error."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg

from repro.toolbox.costs import count_operations
from repro.toolbox.linear_algebra.conjugate_gradient import conjugate_gradient


def hermitian(n, batch=3, dtype=torch.complex128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(batch, n, n + 2, dtype=dtype, generator=generator)
    return H @ H.mH + 0.1 * torch.eye(n)


@pytest.mark.parametrize("jacobi", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_as_many_steps_as_unknowns_are_exact(jacobi, dtype):
    A = hermitian(6, dtype=dtype)
    B = torch.randn(3, 6, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    X = conjugate_gradient(A, B, steps=8, jacobi=jacobi)
    torch.testing.assert_close(X, torch.linalg.solve(A, B), rtol=1e-7, atol=1e-7)


def test_one_unknown_takes_one_step_and_more_do_no_harm():
    A = torch.full((2, 1, 1), 3.0 + 0j, dtype=torch.complex128)
    B = torch.tensor([[[6.0 + 3j]], [[0j]]], dtype=torch.complex128)
    for steps in (1, 5):
        torch.testing.assert_close(conjugate_gradient(A, B, steps), B / 3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_iterate_is_that_of_scipy(steps):
    A = hermitian(7, batch=1)
    b = torch.randn(1, 7, 1, dtype=A.dtype, generator=torch.Generator().manual_seed(2))
    theirs, _ = cg(A[0].numpy(), b[0, :, 0].numpy(), maxiter=steps, rtol=0, atol=0)
    ours = conjugate_gradient(A, b, steps, jacobi=False)[0, :, 0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    scale = torch.diagonal(A[0]).real.numpy()
    theirs, _ = cg(
        A[0].numpy(), b[0, :, 0].numpy(), maxiter=steps, rtol=0, atol=0, M=np.diag(1 / scale)
    )
    np.testing.assert_allclose(conjugate_gradient(A, b, steps)[0, :, 0].numpy(), theirs, rtol=1e-8)


def test_the_error_falls_in_the_norm_of_the_matrix():
    A, eye = hermitian(8), torch.eye(8, dtype=torch.complex128).expand(3, 8, 8)
    exact = torch.linalg.inv(A)
    errors = []
    for steps in range(1, 9):
        error = conjugate_gradient(A, eye, steps) - exact
        errors.append((error.conj() * (A @ error)).sum(-2).real)
    assert (torch.stack(errors).diff(dim=0) <= 1e-9).all()


def test_gradients_flow_through_the_steps():
    B = torch.eye(3, dtype=torch.complex128).expand(2, 3, 3)
    H = torch.randn(2, 3, 5, dtype=torch.complex128, requires_grad=True)

    def solve(H):
        return conjugate_gradient(H @ H.mH + torch.eye(3), B, steps=2)

    assert torch.autograd.gradcheck(solve, H)


def test_nothing_is_inverted():
    assert count_operations(conjugate_gradient, hermitian(4), hermitian(4), 3).solves == {}
    with pytest.raises(ValueError, match="at least one step"):
        conjugate_gradient(hermitian(2), hermitian(2), 0)
