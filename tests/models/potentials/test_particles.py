"""Pair networks, priors and graphs of particles: symmetries, slopes, and formulas by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.models.potentials.dimenet import DimeNet, triplets
from repro.models.potentials.particles import MolecularPrior, PairNetwork, Repulsion, switch

# The ten heavy atoms of alanine dipeptide: C-C(=O)-N-CA(-CB)-C(=O)-N-C.
BONDS = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(copies: int = 2, n: int = 8, box: float = 3.0) -> Tensor:
    line = torch.tensor([0.25, 0.75]) * box
    lattice = torch.cartesian_prod(line, line, line)[:n]
    return (lattice + 0.2 * torch.randn(copies, n, 3, generator=generator())).double()


def forces(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x)
    return -slope


def numerical(model: nn.Module, x: Tensor, step: float = 1e-5) -> Tensor:
    found = torch.zeros_like(x)
    for index in range(x[0].numel()):
        moved = torch.zeros(x[0].numel(), dtype=x.dtype)
        moved[index] = step
        moved = moved.view(x[0].shape)
        found.flatten(1)[:, index] = (model(x - moved) - model(x + moved)) / (2 * step)
    return found


def network() -> PairNetwork:
    """The same one whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PairNetwork(cutoff=1.4, hidden=[5], box=3.0).double()


MODELS = {
    "network": network(),
    "repulsion": Repulsion(sigma=1.0, onset=1.2, cutoff=1.45, box=3.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_energies_of_pairs_are_smooth_and_know_no_frame(name: str) -> None:
    model, x = MODELS[name], states()
    found = forces(model, x)
    assert torch.allclose(found, numerical(model, x), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-10)
    order = torch.randperm(8, generator=generator())
    assert torch.allclose(model(x[:, order]), model(x))
    assert torch.allclose(model(x + torch.tensor([0.7, 3.0, -9.0])), model(x))
    assert found.abs().max() > 1e-3


def test_a_network_conserves_energy() -> None:
    """Velocity Verlet: the error of the energy falls with the square of the step."""
    model, errors = MODELS["network"], []

    def total(x: Tensor, v: Tensor) -> float:
        return float(model(x).detach() + 0.5 * v.square().sum())

    for dt in (0.04, 0.02):
        x, v = states(1), torch.randn(1, 8, 3, generator=generator(1)).double()
        energy = [total(x, v)]
        force = forces(model, x)
        for _ in range(int(1 / dt)):
            v = v + 0.5 * dt * force
            x = x + dt * v
            force = forces(model, x)
            v = v + 0.5 * dt * force
            energy.append(total(x, v))
        errors.append(max(abs(e - energy[0]) for e in energy))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 5e-3


def test_the_switch_goes_from_one_to_zero() -> None:
    r = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
    assert switch(r, 1.0, 2.0).tolist() == [1, 1, 0.5, 0, 0]


def test_repulsion_by_hand() -> None:
    x = torch.tensor([[[0.0, 0.0, 0.0], [2.8, 0.0, 0.0], [1.0, 1.5, 0.0]]])
    expected = 2.0 * (0.25 / 0.2) ** 6
    model = Repulsion(sigma=0.25, epsilon=2.0, power=6, onset=0.4, cutoff=0.5, box=3.0)
    assert float(model(x)) == pytest.approx(expected, rel=1e-5)


def chain(count: int) -> Tensor:
    """Ten atoms that scatter about one place each."""
    place = torch.cumsum(torch.randn(10, 3, generator=generator(4)), 0)
    return (place + 0.05 * torch.randn(count, 10, 3, generator=generator(5))).double()


def test_a_molecules_prior_has_its_terms_and_the_datas_stiffness() -> None:
    prior = MolecularPrior(BONDS, kT=2.5).double()
    assert prior.get_buffer("bonds").shape == (2, 9)
    assert prior.get_buffer("angles").shape == (3, 11)  # of a centre with b bonds: b (b − 1) / 2
    assert prior.get_buffer("dihedrals").shape == (
        4,
        10,
    )  # about the bonds 1-3, 3-4, 4-6, 6-8: 2 + 2 + 4 + 2
    x = chain(4000)
    prior.fit(x)
    length = (x[:, 0] - x[:, 1]).norm(dim=-1)
    assert float(prior.get_buffer("bonds_means")[0]) == pytest.approx(float(length.mean()))
    assert float(prior.get_buffer("bonds_stiffness")[0]) == pytest.approx(2.5 / float(length.var()))
    lengths, angles, dihedrals = prior.coordinates(x[:2])
    cosine = nn.functional.cosine_similarity(x[:2, 0] - x[:2, 1], x[:2, 2] - x[:2, 1], dim=-1)
    assert torch.allclose(angles[:, 0], torch.arccos(cosine))
    bonds = 0.5 * (
        prior.get_buffer("bonds_stiffness") * (lengths - prior.get_buffer("bonds_means")) ** 2
    ).sum(1)
    bends = 0.5 * (
        prior.get_buffer("angles_stiffness") * (angles - prior.get_buffer("angles_means")) ** 2
    ).sum(1)
    turns = (
        prior.get_buffer("dihedrals_stiffness")
        * torch.cos(dihedrals - prior.get_buffer("dihedrals_means"))
    ).sum(1)
    assert torch.allclose(prior(x[:2]), bonds + bends - turns)
    assert torch.allclose(forces(prior, x[:1]), numerical(prior, x[:1], 1e-6), rtol=1e-4, atol=1e-3)


def test_a_dihedrals_stiffness_is_von_mises() -> None:
    drawn = torch.distributions.VonMises(torch.tensor(1.0), torch.tensor(3.0))
    torch.manual_seed(0)
    angle = drawn.sample((20000,))
    end = torch.stack([torch.ones_like(angle), angle.cos(), angle.sin()], -1)
    rest = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    jitter = 1 + 0.01 * torch.randn(20000, 1, 1, generator=generator())
    x = torch.cat([rest.expand(20000, 3, 3), end[:, None]], 1) * jitter
    prior = MolecularPrior([(0, 1), (1, 2), (2, 3)], kT=2.0)
    prior.fit(x)
    assert float(prior.get_buffer("dihedrals_means")) == pytest.approx(1.0, abs=0.02)
    assert float(prior.get_buffer("dihedrals_stiffness")) == pytest.approx(6.0, rel=0.03)


def test_triplets_by_brute_force() -> None:
    source = torch.tensor([0, 1, 2, 1, 0, 3, 2])
    target = torch.tensor([1, 0, 1, 2, 2, 2, 3])
    expected = {
        (a, b)
        for a in range(7)
        for b in range(7)
        if target[a] == source[b] and source[a] != target[b]
    }
    first, second = triplets(source, target, 4)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(first) == len(expected)


def test_dimenet_knows_no_frame_and_its_forces_are_slopes() -> None:
    pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    few = {"blocks": 1, "spherical": 2, "radial": 2}  # seven of them take minutes to derive
    model = DimeNet(species=list(range(8)), cutoff=1.5, box=3.0, **few).double()
    x = states(2)
    energy = model(x)
    assert energy.shape == (2,)
    assert torch.allclose(model(x + torch.tensor([0.7, 3.0, -9.0])), energy, atol=1e-8)
    assert torch.allclose(torch.cat([model(x[:1]), model(x[1:])]), energy, atol=1e-8)
    found = forces(model, x)
    assert found.abs().max() > 1e-4
    assert torch.allclose(found, numerical(model, x), atol=1e-6)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator()).double())
    free = DimeNet(cutoff=1.5, **few).double()
    assert torch.allclose(free(x @ turn), free(x), atol=1e-8)


def test_without_torch_geometric_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric.nn.models", None)
    with pytest.raises(UserError, match=r"pip install 'gradient-repro\[molecules\]'"):
        DimeNet()


def test_angles_of_a_square() -> None:
    square = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0], [0.0, 1.0, 0]]])
    prior = MolecularPrior([(0, 1), (1, 2), (2, 3)])
    lengths, angles, dihedrals = prior.coordinates(square)
    assert lengths[0].tolist() == [1, 1, 1]
    assert torch.allclose(angles, torch.full((1, 2), math.pi / 2))
    assert float(dihedrals) == pytest.approx(0)
