"""Lanczos against dense eigensolvers and SciPy's."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from repro.toolbox.linear_algebra.lanczos import lanczos, slq_density


@pytest.fixture(name="A")
def symmetric() -> Tensor:
    torch.manual_seed(0)
    G = torch.randn(30, 30, dtype=torch.float64)
    return G + G.mT


def test_as_many_steps_as_dimensions_find_every_eigenvalue(A: Tensor) -> None:
    ritz = lanczos(A.mv, torch.randn(30, dtype=torch.float64), 30)
    assert torch.allclose(ritz.values, torch.linalg.eigvalsh(A), atol=1e-9)
    eye = torch.eye(30, dtype=torch.float64)
    assert torch.allclose(ritz.basis @ ritz.basis.mT, eye, atol=1e-12)
    assert torch.allclose(A @ ritz.vectors(2).mT, ritz.vectors(2).mT * ritz.values[[-1, -2]])


def test_ritz_values_lie_within_and_their_residuals_are_what_they_say(A: Tensor) -> None:
    ritz = lanczos(A.mv, torch.randn(30, dtype=torch.float64), 8)
    true = torch.linalg.eigvalsh(A)
    assert true[0] < ritz.bottom < ritz.top < true[-1]
    (y,) = ritz.vectors(1)
    assert float((A @ y - ritz.top * y).norm()) == pytest.approx(float(ritz.residuals[-1]))


def test_basis_stays_orthonormal_where_the_recurrence_alone_finds_ghosts() -> None:
    spectrum = torch.cat([torch.linspace(0, 1, 99), torch.tensor([100.0])])
    ritz = lanczos(spectrum.mul, torch.ones(100), 60)
    assert torch.allclose(ritz.basis @ ritz.basis.mT, torch.eye(60), atol=1e-5)
    assert int((ritz.values > 50).sum()) == 1


def test_basis_stays_orthonormal_where_rounding_alone_goes_on() -> None:
    """Rank 20: after 21 steps there is nothing left to find."""
    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(400, 400, dtype=torch.float64)).Q
    low_rank = (rows[:, :20] * torch.arange(1.0, 21)) @ rows[:, :20].mT
    ritz = lanczos(low_rank.mv, torch.randn(400, dtype=torch.float64), 100)
    eye = torch.eye(len(ritz.values), dtype=torch.float64)
    assert torch.allclose(ritz.basis @ ritz.basis.mT, eye, atol=1e-12)


def test_quadrature_is_exact_for_low_powers(A: Tensor) -> None:
    z = torch.randn(30, dtype=torch.float64)
    ritz = lanczos(A.mv, z, 5)
    assert float(ritz.weights.sum()) == pytest.approx(1)
    for power in range(10):  # 2m - 1
        moment = float(z @ torch.linalg.matrix_power(A, power) @ z / (z @ z))
        assert float((ritz.weights * ritz.values**power).sum()) == pytest.approx(moment)


def test_rows_are_operators_of_their_own_also_when_one_ends_early(A: Tensor) -> None:
    zero = torch.zeros_like(A)
    low = torch.diag(torch.tensor([-1.0, -2.0] * 15, dtype=torch.float64))
    stack, start = torch.stack([A, zero, low]), torch.randn(3, 30, dtype=torch.float64)
    ritz = lanczos(lambda v: (stack @ v.unsqueeze(-1)).squeeze(-1), start, 30)
    assert torch.allclose(ritz.values[0], torch.linalg.eigvalsh(A), atol=1e-9)
    assert ritz.top.tolist() == pytest.approx([float(torch.linalg.eigvalsh(A)[-1]), 0, -1])
    assert ritz.bottom.tolist()[1:] == pytest.approx([0, -2])
    assert ritz.weights.sum(-1).tolist() == pytest.approx([1, 1, 1])


def test_a_tolerance_stops_in_time_and_agrees_with_scipy() -> None:
    torch.manual_seed(1)
    G = torch.randn(400, 600, dtype=torch.float64)
    A = G @ G.mT / 600
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return A @ v

    ritz = lanczos(product, torch.randn(400, dtype=torch.float64), 200, tolerance=1e-4)
    operator = LinearOperator((400, 400), matvec=lambda v: A.numpy() @ v, dtype=float)
    reference = eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0]
    assert products < 100
    assert float(ritz.top) == pytest.approx(reference, rel=1e-4)


def test_a_density_integrates_to_one_and_sits_at_the_values() -> None:
    grid_G = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    values = torch.tensor([[0.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    density = slq_density(values, torch.full((2, 2), 0.5, dtype=torch.float64), grid_G, 0.1)
    assert float(torch.trapezoid(density, grid_G)) == pytest.approx(1, abs=1e-6)
    assert float(grid_G[density.argmax()]) == pytest.approx(2, abs=0.01)
