"""Dynamics and observables: equilibrium of a spring, an ideal gas, angles by hand."""

from __future__ import annotations

import math

import pytest
import torch

from repro.data.worlds.mechanics import dihedral, langevin, minimum_image, radial_distribution


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_spring_has_its_equilibrium_variance() -> None:
    """BAOAB is exact in position for springs, at any step."""
    k = torch.tensor([1.0, 4.0])
    states = langevin(
        lambda x: -k * x, torch.zeros(3000, 2), kT=0.7, mass=2.0, friction=1.0, dt=0.3,
        steps=150, every=50, generator=generator(),
    )  # fmt: skip
    last = list(states)[-1]
    assert torch.allclose(last.var(0), 0.7 / k, rtol=0.08)


def test_an_ideal_gas_has_no_structure() -> None:
    x = 3.0 * torch.rand(2, 60, 40, 3, generator=generator())
    g = radial_distribution(x, box=3.0, cutoff=1.5, bins=10)
    assert g.shape == (2, 10)
    assert torch.allclose(g[:, 3:], torch.ones(2, 7), atol=0.08)


def test_two_particles_across_the_boundary() -> None:
    x = torch.tensor([[[[0.1, 0.0, 0.0], [2.8, 0.0, 0.0]]]])
    g = radial_distribution(x, box=3.0, cutoff=1.5, bins=15)[0]
    shell = 4 / 3 * math.pi * (0.4**3 - 0.3**3)
    assert g.argmax() in (2, 3)
    assert float(minimum_image(torch.tensor(2.7), 3.0)) == pytest.approx(-0.3)
    assert float(g.max()) == pytest.approx(
        27 / (4 / 3 * math.pi * (0.3**3 - 0.2**3)), rel=1e-3
    ) or (float(g.max()) == pytest.approx(27 / shell, rel=1e-3))


@pytest.mark.parametrize("angle", [-2.5, -0.3, 0.0, 1.2, 3.0])
def test_a_dihedral_is_the_turn_about_the_middle_bond(angle: float) -> None:
    end = [1.0, math.cos(angle), math.sin(angle)]
    x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], end])
    assert float(dihedral(x, (0, 1, 2, 3))) == pytest.approx(angle, abs=1e-6)
