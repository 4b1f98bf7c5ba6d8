"""Sampled and trained two-layer networks, and the theorems as numbers."""

from __future__ import annotations

import math

import pytest
import torch

from repro.errors import UserError
from repro.methods.barron_pde import (
    Reaction,
    SparseRing,
    Spectrum,
    TwoLayer,
    bounds,
    deep_ritz_loss,
    maurey_errors,
    maurey_network,
    maurey_variance,
    residual_loss,
    solve,
)

ENTRIES = torch.Generator().manual_seed(0)
U = Spectrum.of(
    torch.randint(-3, 4, (20, 3), generator=ENTRIES),
    torch.randn(20, dtype=torch.complex128, generator=ENTRIES),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_sampled_network_is_as_wrong_as_its_counts_say() -> None:
    """The same draws, once as a network at many points, once as exact coefficients."""
    network = maurey_network(U, 50, generator(3))
    (exact,) = maurey_errors(U, 50, 1, generator(3))
    x = 2 * math.pi * torch.rand(200_000, 3, dtype=torch.float64, generator=generator())
    with torch.no_grad():
        measured = (network(x) - U(x)).square().mean()
    assert float(measured) == pytest.approx(float(exact), rel=0.03)


@pytest.mark.parametrize("sample", ["amplitude", "uniform"])
def test_the_mean_error_is_maureys_identity(sample: str) -> None:
    errors = 64 * maurey_errors(U, 64, 4000, generator(), sample)  # type: ignore[arg-type]
    spread = float(errors.std()) / math.sqrt(4000)
    assert abs(float(errors.mean()) - maurey_variance(U, sample)) < 4 * spread  # type: ignore[arg-type]


def test_a_sampled_network_has_the_norm_of_what_it_samples() -> None:
    norms = [maurey_network(U, 400, generator(seed)).path_norm() for seed in range(5)]
    assert sum(norms) / 5 == pytest.approx(U.barron_norm(), rel=0.05)


@pytest.mark.parametrize("activation", ["cos", "tanh"])
def test_derivatives_are_those_of_autograd(activation: str) -> None:
    network = TwoLayer(3, 7, activation).double()
    x = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    u = network(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    bend = sum(
        torch.autograd.grad(slope[:, j].sum(), x, retain_graph=True)[0][:, j] for j in range(3)
    )
    values = network.derivatives(x)
    for ours, expected in zip(values, (u, slope, bend), strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(expected))


@torch.no_grad()
def test_losses_are_least_at_the_solution() -> None:
    f = Spectrum.of(torch.tensor([[1, 1], [1, 0]]), torch.tensor([1.0, 0.5], dtype=torch.float64))
    energy = Reaction(f, SparseRing(tol=1e-10))
    u = solve(energy, f * 0.0)
    exact = TwoLayer(2, len(u), "cos").double()
    exact.weight_KD.copy_(u.omega)
    exact.bias_K.zero_()
    exact.outer_K.copy_(u.a)
    x = 2 * math.pi * torch.rand(100_000, 2, dtype=torch.float64, generator=generator())
    assert float(residual_loss(exact, energy, x)) < 1e-14
    best = float(deep_ritz_loss(exact, energy, x))
    assert best == pytest.approx(energy.value(u), abs=0.01)
    exact.outer_K.mul_(1.3)
    assert float(deep_ritz_loss(exact, energy, x)) > best
    assert float(residual_loss(exact, energy, x)) > 1e-3


def test_the_theorems_numbers() -> None:
    assert bounds.largest_rate(1, 1.5) == pytest.approx(0.148, abs=1e-3)  # quoted as .15
    assert bounds.largest_rate(1, 2) == pytest.approx(0.0625)
    assert bounds.contraction(1, 2) == pytest.approx(0.96875)
    assert bounds.contraction(1, 3) == pytest.approx(0.9938, abs=1e-4)
    assert bounds.steps_needed(0.5, 0.01, 1, 2) == math.ceil(math.log(100) / -math.log(0.96875))
    assert bounds.polynomial_constant(4, 3, [3.0, 4.0]) == pytest.approx(8 * 5)
    assert bounds.norm_after_step(2.0, 0.1, 3, 2, 5.0, 1) == pytest.approx((1 + 6) * 2)
    assert bounds.cubic_norm_after_step(2.0, 0.5, -1.0, 3.0) == pytest.approx(1 + 0.5 * 11)
    assert bounds.drift(1.0, 0.5, 1.0, 4.0, 2) == pytest.approx(2 * (2**2 - 1))
    assert bounds.network_error(3.0, 9, radius=2.0) == pytest.approx(4)


def test_a_bad_knob_is_said() -> None:
    with pytest.raises(UserError, match=r"TwoLayer\.activation is cos or tanh"):
        TwoLayer(2, 3, "relu")
    with pytest.raises(UserError, match=r"maurey_network\.units"):
        maurey_network(U, 0)
