"""Energies and descents, against finite differences, closed forms and sine transforms."""

from __future__ import annotations

import doctest
import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch

from repro.errors import UserError
from repro.methods import barron_pde
from repro.methods.barron_pde import (
    Grid,
    GridRing,
    QuasiLinear,
    Reaction,
    Sobolev,
    SparseRing,
    Spectrum,
    descend,
    h1_seminorm,
    largest_curvature,
    multiply,
    newton,
    solve,
)

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
EXACT = SparseRing(tol=1e-15, floor=0)
FORMS: dict[str, Any] = {
    "linear": lambda f, ring: Reaction(f, ring, alpha=0.0),
    "anisotropic": lambda f, ring: Reaction(f, ring, alpha=0.0, A_DD=A),
    "cubic": lambda f, ring: Reaction(f, ring, alpha=1.3),
    "quintic": lambda f, ring: Reaction(f, ring, alpha=0.7, power=5),
    "taylor": lambda f, ring: QuasiLinear(f, ring, beta=0.3, degree=5),
    "straight": lambda f, ring: QuasiLinear(f, ring, beta=0.3, degree=1),
    "pure": lambda f, ring: QuasiLinear(f, ring, beta=0.3, degree=3, mass=0.0),
}
of_each_form = pytest.mark.parametrize("form", FORMS)


def cosines(*terms: tuple[tuple[int, ...], float]) -> Spectrum:
    omega, a = zip(*terms, strict=True)
    return Spectrum.of(torch.tensor(omega), torch.tensor(a, dtype=torch.float64))


F_2D = cosines(((1, 1), 0.8), ((1, -1), -0.5), ((2, 0), 0.3))
U_2D = cosines(((1, 0), 0.3), ((1, 1), 0.2), ((0, 0), 0.1))
V_2D = cosines(((1, 1), 0.5), ((0, 2), -0.4), ((1, 0), 0.6), ((0, 0), 0.3))


@of_each_form
def test_gradients_and_hessians_are_those_of_the_energy(form: str) -> None:
    energy, h = FORMS[form](F_2D, EXACT), 1e-4
    slope = (energy.value(U_2D + V_2D * h) - energy.value(U_2D - V_2D * h)) / (2 * h)
    assert energy.gradient(U_2D).inner(V_2D) == pytest.approx(slope, abs=1e-7)
    change = energy.gradient(U_2D + V_2D * h) - energy.gradient(U_2D - V_2D * h)
    difference = change * (1 / (2 * h)) - energy.hessian(U_2D)(V_2D)
    assert difference.amplitude() < 1e-6


@of_each_form
def test_sparse_fields_and_grids_agree(form: str) -> None:
    sparse = FORMS[form](F_2D, EXACT)
    dense = FORMS[form](Grid.of(F_2D, 64), GridRing(band=20))
    on_grid = Grid.of(U_2D, 64)
    assert dense.value(on_grid) == pytest.approx(sparse.value(U_2D), abs=1e-12)
    expected = Grid.of(sparse.gradient(U_2D), 64).values
    torch.testing.assert_close(dense.gradient(on_grid).values, expected, atol=1e-12, rtol=0)


@of_each_form
def test_the_density_is_what_is_integrated(form: str) -> None:
    energy, u = FORMS[form](F_2D, EXACT), U_2D * 0.2  # small enough for a Taylor polynomial
    axis = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    x = torch.cartesian_prod(axis, axis)
    density = energy.density(u(x), u.gradient_at(x)) - F_2D(x) * u(x)
    assert float(density.mean()) == pytest.approx(energy.value(u), abs=2e-6)


def test_taylor_polynomials_of_the_sine_approach_it() -> None:
    energies = [QuasiLinear(Grid.of(F_2D, 64), GridRing(21), degree=n) for n in (1, 3, 5, None)]
    *rough, exact = (energy.gradient(Grid.of(U_2D, 64)).values for energy in energies)
    errors = [float((each - exact).abs().max()) for each in rough]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 0


def test_the_linear_problem_takes_one_step() -> None:
    energy = Reaction(F_2D, EXACT, alpha=0.0)
    first, second = itertools.islice(descend(energy, F_2D * 0.0, 1.0), 2)
    assert first.residual > 0.1
    assert second.residual == 0
    assert (second.u - F_2D.bessel(-1)).amplitude() < 1e-15
    halved = list(itertools.islice(descend(energy, F_2D * 0.0, 0.5), 5))
    for before, after in itertools.pairwise(halved):
        assert after.residual == pytest.approx(before.residual / 2)


def test_modes_of_a_pure_energy_shrink_as_their_frequency_says() -> None:
    """1 − ημ/(1 + μ)."""
    energy = QuasiLinear(F_2D * 0.0, EXACT, beta=0.0, mass=0.0, degree=1)
    start = cosines(((1, 1), 1.0))
    _, after = itertools.islice(descend(energy, start, 0.3), 2)
    assert after.u.amplitude() == pytest.approx(1 - 0.3 * 2 / 3)


def test_a_manufactured_solution_is_found() -> None:
    u = cosines(((1, 1, 0), 0.3), ((0, 0, 1), 0.2))
    cube, _ = multiply(multiply(u, u)[0], u)
    f = u.bessel(1) + cube * 1.7
    energy = Reaction(f, SparseRing(tol=1e-12), alpha=1.7)
    *_, last = itertools.islice(descend(energy, f * 0.0, 0.6), 40)
    assert (last.u - u).amplitude() < 1e-9
    newtons = [each.residual for each in itertools.islice(newton(energy, f * 0.0), 6)]
    assert newtons[-1] < 1e-9
    assert (solve(energy, f * 0.0) - u).amplitude() < 1e-9


def test_sparse_fields_solve_what_a_grid_of_128_points_does() -> None:
    energy = Reaction(F_2D, SparseRing(tol=1e-10), alpha=1.0)
    sparse = solve(energy, F_2D * 0.0)
    dense = solve(Reaction(Grid.of(F_2D, 128), GridRing(band=31)), Grid.of(F_2D, 128) * 0.0)
    assert float((Grid.of(sparse, 128).values - dense.values).abs().max()) < 1e-6


def box(D: int) -> Spectrum:
    """Π_j sin(κ x_j) on the box with sides π√D, continued oddly."""
    u = Spectrum.of(torch.zeros(1, D), torch.ones(1, dtype=torch.complex128), D**-0.5)
    for j in range(D):
        omega = torch.zeros(1, D)
        omega[0, j] = 1
        u, _ = multiply(u, Spectrum.of(omega, torch.tensor([-1j], dtype=torch.complex128), u.unit))
    return u


@pytest.mark.parametrize("D", [1, 2, 3, 6])
def test_the_box_with_sides_pi_root_d_has_the_first_eigenvalue_one(D: int) -> None:
    u = box(D)
    assert h1_seminorm(u) ** 2 / u.inner(u) == pytest.approx(1)
    assert float(u(torch.zeros(1, D, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)
    centre = torch.full((1, D), math.pi * D**0.5 / 2, dtype=torch.float64)
    assert float(u(centre)) == pytest.approx(1)


def test_odd_fields_solve_the_dirichlet_problem_of_a_sine_transform() -> None:
    """−Δu + u + u³ = f in two dimensions; f = 3 sin κx sin κy."""
    f = box(2) * 3.0
    u = solve(Reaction(f, SparseRing(tol=1e-11), alpha=1.0), f * 0.0)
    n, side = 31, math.pi * 2**0.5
    axis = torch.arange(1, n + 1, dtype=torch.float64) * side / (n + 1)
    x = torch.cartesian_prod(axis, axis)
    square = (np.arange(1, n + 1) * math.pi / side) ** 2
    symbol = 1 + square[:, None] + square
    right = f(x).numpy()

    def unbalanced(v: np.ndarray) -> np.ndarray:
        grid = v.reshape(n, n)
        elliptic = scipy.fft.idstn(symbol * scipy.fft.dstn(grid, type=1), type=1)
        return (elliptic + grid**3).ravel() - right

    assert np.abs(unbalanced(u(x).numpy())).max() < 1e-7


def test_odd_fields_solve_what_finite_elements_do() -> None:
    """The same problem on a box of sides π√2, by quadratic elements and Newton's method."""
    fem = pytest.importorskip("skfem")
    f = box(2) * 3.0
    u = solve(Reaction(f, SparseRing(tol=1e-11), alpha=1.0), f * 0.0)
    side, quadratic = math.pi * 2**0.5, fem.ElementQuad2()
    mesh = fem.MeshQuad.init_tensor(*[np.linspace(0, side, 17)] * 2)
    basis = fem.Basis(mesh, quadratic, intorder=8)
    slope = fem.BilinearForm(
        lambda v, w, at: (v.grad * w.grad).sum(0) + (1 + 3 * at["u"] ** 2) * v * w
    )

    def unbalanced(w: Any, at: Any) -> Any:
        u, right = at["u"], 3 * np.sin(at.x / 2**0.5).prod(0)
        return (u.grad * w.grad).sum(0) + (u + u**3 - right) * w

    residual = fem.LinearForm(unbalanced)
    found, inside = basis.zeros(), basis.complement_dofs(basis.get_dofs())
    for _ in range(8):
        now = {"u": basis.interpolate(found)}
        steps = fem.condense(
            slope.assemble(basis, **now), residual.assemble(basis, **now), I=inside
        )
        found -= fem.solve(*steps)
    ours = u(torch.from_numpy(basis.doflocs.T)).numpy()
    assert np.abs(ours - found).max() < 1e-5 < np.abs(found).max()


@pytest.mark.parametrize(("order", "scale"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 1.0), (-1.0, 10.0)])
def test_the_largest_curvature_is_where_descent_becomes_unstable(
    order: float, scale: float
) -> None:
    ring, start = GridRing(band=5), torch.Generator().manual_seed(0)
    energy = Reaction(Grid.of(F_2D, 24), ring, alpha=1.0)
    u, metric = solve(energy, Grid.of(F_2D, 24) * 0.0), Sobolev(order, scale)
    noise = ring.project(Grid(torch.randn(24, 24, dtype=torch.float64, generator=start)))
    limit = 2 / largest_curvature(energy, u, noise, metric, steps=300)
    for eta, grows in ((0.98 * limit, False), (1.02 * limit, True)):
        path = itertools.islice(descend(energy, u + noise * 1e-6, eta, metric), 400)
        sizes = [each.residual for each in path]
        assert (not sizes[-1] < 10 * sizes[0]) == grows  # NaN grows, too


def test_energy_falls_as_the_lemma_says() -> None:
    """Lemma 4, at its own rate: λ = 1, C_p = 1, Λ from the bound Σ|a| on ‖u‖_∞."""
    from repro.methods.barron_pde.bounds import contraction, largest_rate

    energy = Reaction(F_2D, EXACT, alpha=1.0)
    best = solve(Reaction(F_2D, SparseRing(tol=1e-13)), F_2D * 0.0)
    Lam = 1 + 3 * 1.2 * best.amplitude() ** 2
    path = itertools.islice(descend(energy, F_2D * 0.0, largest_rate(1, Lam)), 6)
    gaps = [energy.value(each.u) - energy.value(best) for each in path]
    assert all(b <= contraction(1, Lam) * a for a, b in itertools.pairwise(gaps))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Reaction(F_2D, EXACT, power=4), "odd"),
        (lambda: QuasiLinear(F_2D, EXACT, degree=2), "odd"),
        (lambda: QuasiLinear(F_2D, EXACT, beta=1.0), r"QuasiLinear\.beta lies in \[0, 1\)"),
        (lambda: next(descend(Reaction(F_2D, EXACT), F_2D, 0.0)), "descend.eta is positive"),
    ],
)
def test_a_bad_knob_is_said(make: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make()


def test_the_loop_in_the_docstring_runs() -> None:
    assert doctest.testmod(barron_pde).failed == 0
