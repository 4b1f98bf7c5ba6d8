"""The two-dihedral world has the free energy, forces and noise that it says."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.data.worlds.dihedrals import TwoDihedrals


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def potentials(*energies: Any) -> Any:
    """Functions of the angles, as worlds take them."""
    return SimpleNamespace(energies=lambda x, shared: torch.stack([e(x) for e in energies]))


def test_mean_forces_are_slopes_and_the_bias_is_one_too() -> None:
    q = (6 * torch.rand(9, 2, generator=generator())).requires_grad_()
    world = TwoDihedrals(depth=1.5, bias=4.0)
    (slope,) = torch.autograd.grad((world.energy(q) - 4 * q[:, 0].sin()).sum(), q)
    assert torch.allclose(world.mean_force(q), -slope, atol=1e-4)


def test_the_known_free_energy() -> None:
    found = TwoDihedrals().reference(torch.zeros(1, 2))
    assert float(found["free_energy"]) == pytest.approx(-4.65, abs=0.01)
    assert float(found["density"].sum()) * math.tau / 60 == pytest.approx(1)


def test_a_flat_potential_and_a_constant() -> None:
    world = TwoDihedrals()
    flat = world.observe(potentials(lambda x: torch.zeros(len(x))), generator(), nowhere())
    assert torch.allclose(flat["density"], torch.tensor(1 / math.tau), atol=1e-6)
    assert float(flat["free_energy"]) == pytest.approx(0, abs=1e-5)
    moved = world.observe(
        potentials(world.energy, lambda x: world.energy(x) + 50), generator(), nowhere()
    )
    for name, value in moved.items():
        assert torch.allclose(value[0], value[1], atol=1e-3)
        assert torch.allclose(value[0], world.reference(nowhere())[name], atol=1e-5)


def nowhere() -> Tensor:
    return torch.zeros(1, 2)


def test_draws_have_the_density_and_the_noise() -> None:
    world = TwoDihedrals()
    q, forces = world.draw(40000, generator())
    counts = torch.histc(q[:, 0], 60, -math.pi, math.pi) / 40000 / world.width
    assert (counts - world.reference(q)["density"]).abs().max() < 0.03
    noise = forces - world.mean_force(q)
    assert noise.mean(0).abs().max() < 0.3
    assert float(noise.square().mean().sqrt()) == pytest.approx(world.sigma, rel=0.02)
    assert float((noise / world.noise_scale(q)).std()) == pytest.approx(1, rel=0.02)


def test_a_stiffer_bath_is_noisier_by_its_root() -> None:
    assert TwoDihedrals(stiffness=800.0).sigma == pytest.approx(2 * TwoDihedrals().sigma)
    assert 15 < TwoDihedrals().sigma < 16
