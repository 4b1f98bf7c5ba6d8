"""The algebra of sparse Fourier series, against grids, dictionaries and inequalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from repro.errors import UserError
from repro.methods.barron_pde import (
    Grid,
    SparseRing,
    Spectrum,
    interpolation_error,
    multiply,
    nodes_for,
)


def field(seed: int, terms: int = 12, D: int = 3, band: int = 3, even: bool = False) -> Spectrum:
    """Random terms, some of them the same or opposite."""
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randint(-band, band + 1, (terms, D), generator=generator)
    a = torch.randn(terms, 2, dtype=torch.float64, generator=generator)
    return Spectrum.of(omega, a[:, 0] if even else torch.view_as_complex(a))


def points(D: int = 3, N: int = 50) -> torch.Tensor:
    return 6 * torch.rand(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("even", [True, False])
def test_sums_and_products_are_those_of_values(even: bool) -> None:
    u, v, x = field(0, even=even), field(1, even=even), points()
    torch.testing.assert_close((u + v)(x), u(x) + v(x))
    torch.testing.assert_close((u - v * 2)(x), u(x) - 2 * v(x))
    product, lost = multiply(u, v)
    torch.testing.assert_close(product(x), u(x) * v(x))
    assert lost == 0
    assert bool((product.key.diff() > 0).all())
    assert int(product.key[0]) >= 0


def test_terms_of_either_sign_are_merged() -> None:
    """cos x + cos(−x) + 1 − 1."""
    u = Spectrum.of(torch.tensor([[1], [-1], [0], [0]]), torch.tensor([1.0, 1.0, 1.0, -1.0]))
    assert len(u.where(u.a != 0)) == 1
    assert float(u.a[u.omega[:, 0] != 0]) == 2


def test_the_cube_of_a_cosine() -> None:
    u = Spectrum.of(torch.tensor([[2, 1]]), torch.ones(1, dtype=torch.float64))
    cube, _ = multiply(multiply(u, u)[0], u)
    found = {
        tuple(map(abs, omega)): a
        for omega, a in zip(cube.omega.tolist(), cube.a.tolist(), strict=True)
    }
    assert found == {(2, 1): pytest.approx(0.75), (6, 3): pytest.approx(0.25)}


def test_a_product_equals_a_dictionary_of_frequencies() -> None:
    u, v = field(2, D=5), field(3, D=5)
    expected: dict[tuple[int, ...], complex] = {}
    full = []
    for w in (u, v):
        terms = [(o, a / 2) for o, a in zip(w.omega.numpy(), w.a.numpy(), strict=True)]
        full.append(terms + [(-o, a.conj()) for o, a in terms])  # the constant term has two halves
    for omega, a in full[0]:
        for other, b in full[1]:
            key = tuple((omega + other).tolist())
            expected[key] = expected.get(key, 0) + a * b
    product, _ = multiply(u, v)
    for omega, a in zip(product.omega.tolist(), product.a.tolist(), strict=True):
        both = expected[tuple(omega)] * (2 if any(omega) else 1)
        assert a == pytest.approx(both, abs=1e-12)
    assert len(expected) == 2 * len(product) - (0 in product.key)


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from repro.methods.barron_pde import spectrum

    u, v = field(4, 40), field(5, 30)
    whole, _ = multiply(u, v)
    blocks = spectrum._blocks
    monkeypatch.setattr(spectrum, "_blocks", lambda count, _: blocks(count, 50))
    parts, _ = multiply(u, v)
    assert torch.equal(whole.omega, parts.omega)
    torch.testing.assert_close(whole.a, parts.a)


def test_derivatives_smoothing_and_norms_equal_those_on_a_grid() -> None:
    u, v = field(6), field(7)
    on_grid, other = Grid.of(u, 16), Grid.of(v, 16)
    x = torch.cartesian_prod(*[torch.arange(16, dtype=torch.float64) * (math.pi / 8)] * 3)
    torch.testing.assert_close(on_grid.values.flatten(), u(x))
    for axis in range(3):
        torch.testing.assert_close(
            Grid.of(u.derivative(axis), 16).values, on_grid.derivative(axis).values
        )
    torch.testing.assert_close(
        Grid.of(u.bessel(-0.5, 3.0), 16).values, on_grid.bessel(-0.5, 3.0).values
    )
    assert u.inner(v) == pytest.approx(on_grid.inner(other))  # Parseval
    assert u.inner(u) == pytest.approx(float(on_grid.values.square().mean()))
    assert u.mean() == pytest.approx(on_grid.mean())
    back = on_grid.spectrum()
    assert back.barron_norm() == pytest.approx(u.barron_norm())
    assert torch.equal(back.omega, u.omega)


def test_a_derivative_is_that_of_autograd() -> None:
    u, x = field(8), points().requires_grad_()
    (expected,) = torch.autograd.grad(u(x).sum(), x)
    torch.testing.assert_close(u.gradient_at(x.detach()), expected)


def test_a_single_cosine_has_the_norm_of_the_paper() -> None:
    u = Spectrum.of(torch.tensor([[3, -4]]), torch.tensor([-2.0], dtype=torch.float64), unit=0.5)
    assert u.barron_norm() == pytest.approx(2 * (1 + 0.5 * 5))
    assert u.amplitude() == 2
    assert u.band == 4


@pytest.mark.parametrize("seed", range(20))
def test_the_algebra_of_barron_norms(seed: int) -> None:
    """Lemma 6."""
    u, v = field(seed, D=4), field(seed + 100, D=4)
    bound = 1 + 1e-12
    assert (u + v).barron_norm() <= bound * (u.barron_norm() + v.barron_norm())
    assert multiply(u, v)[0].barron_norm() <= bound * u.barron_norm() * v.barron_norm()
    assert u.bessel(-1).barron_norm() <= bound * u.barron_norm()
    for axis in range(4):
        assert u.derivative(axis).barron_norm() <= bound * u.band * u.barron_norm()


def test_another_norm_does_not_obey_it() -> None:
    u = Spectrum.of(torch.tensor([[1]]), torch.ones(1, dtype=torch.float64))
    square = multiply(u, u)[0] - Spectrum.constant(0.5, u)
    doubled = square.where(square.omega[:, 0] != 0) * 2  # the doubled frequency alone
    assert doubled.barron_norm(2) > u.barron_norm(2) ** 2
    assert doubled.barron_norm(1) <= u.barron_norm(1) ** 2


def test_pruning_reports_what_it_drops() -> None:
    u = field(10, 60, D=6)
    ring = SparseRing(tol=0.5)
    kept = ring.prune(u)
    assert ring.discarded == pytest.approx((u - kept).barron_norm())
    assert float(kept.a.abs().min()) >= 0.5
    capped = SparseRing(tol=0, cap=7).prune(u)
    assert sorted(capped.a.abs().tolist()) == sorted(u.a.abs().tolist())[-7:]
    assert SparseRing(band=2).project(u).band == 2


def test_a_floor_loses_no_more_than_it_reports() -> None:
    u, v = field(11, 80, D=5), field(12, 90, D=5)
    exact, _ = multiply(u, v)
    rough, lost = multiply(u, v, floor=0.5)
    assert 0 < (exact - rough).barron_norm() <= lost
    assert lost < 0.5 * u.barron_norm() * v.barron_norm()
    pruned, lost = multiply(u, v, tol=0.3)
    assert 0 < (exact - pruned).barron_norm() <= lost
    assert torch.equal(pruned.omega, exact.where(exact.a.abs() >= 0.3).omega)


def test_interpolation_is_as_wrong_as_the_formula_says() -> None:
    u, n = field(13, D=2), 9
    axis = np.arange(n + 1) * (2 * math.pi / n)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    values = u(torch.from_numpy(nodes.reshape(-1, 2))).numpy().reshape(n + 1, n + 1)
    x = 2 * math.pi * torch.rand(200_000, 2, dtype=torch.float64)
    error = RegularGridInterpolator((axis, axis), values)(x.numpy()) - u(x).numpy()
    measured = math.sqrt(np.square(error).mean() / u.inner(u))
    assert interpolation_error(u, n) == pytest.approx(measured, rel=0.02)
    n_needed = round(10 ** (nodes_for(u, 1e-2) / 2))
    assert interpolation_error(u, n_needed) <= 1e-2 < interpolation_error(u, n_needed - 1)


def test_what_cannot_be_multiplied_is_said() -> None:
    u = field(14)
    with pytest.raises(UserError, match="different domains"):
        multiply(u, Spectrum(u.omega, u.a, unit=2.0))
    with pytest.raises(UserError, match="different domains"):
        _ = u + field(14, D=2)
    huge = Spectrum.of(torch.tensor([[2**30 + 5]]), torch.ones(1))
    with pytest.raises(UserError, match="32 bits"):
        multiply(huge, huge)
    with pytest.raises(UserError, match=r"SparseRing\.tol is at least 0"):
        SparseRing(tol=-1.0)
    with pytest.raises(UserError, match="Taylor degree"):
        SparseRing().nonlinear("sin", u, None)
