"""Potentials of particles: pair networks, and the priors that keep a simulation in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from repro.data.worlds.mechanics import minimum_image, pair_distances
from repro.knobs import Count, Positive, checked
from repro.models.toys.mlp import MLP


def switch(r: Tensor, onset: float, cutoff: float) -> Tensor:
    """1 up to the onset, 0 from the cutoff on, with two continuous derivatives between."""
    t = ((r - onset) / (cutoff - onset)).clamp(0, 1)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)


class Repulsion(nn.Module):
    """Σ ε(σ/r)^power over pairs, switched off before the cutoff.

    Args:
        sigma: σ, nm.
        epsilon: ε, kJ/mol.
        power: of the wall.
        onset: where switching begins.
        cutoff: where it ends.
        box: length of the periodic cube; None: open space.
    """

    @checked
    def __init__(
        self,
        sigma: Positive = 0.3165,
        epsilon: Positive = 1.0,
        power: Count = 12,
        onset: Positive = 0.45,
        cutoff: Positive = 0.5,
        box: Positive | None = None,
    ) -> None:
        super().__init__()
        self.sigma, self.epsilon, self.power = sigma, epsilon, power
        self.onset, self.cutoff, self.box = onset, cutoff, box

    def forward(self, x_Bn3: Tensor) -> Tensor:
        """Energies (B,)."""
        r = pair_distances(x_Bn3, self.box)
        wall = self.epsilon * (self.sigma / r) ** self.power
        return (wall * switch(r, self.onset, self.cutoff)).sum(-1)


class PairNetwork(nn.Module):
    """Σ over pairs of a network of their distance: Gaussians of it, an MLP, a smooth cutoff.

    Args:
        cutoff: beyond it pairs do not interact.
        basis: Gaussians, evenly spaced up to the cutoff.
        hidden: widths of the hidden layers.
        scale: of the energy.
        box: length of the periodic cube; None: open space.
    """

    @checked
    def __init__(
        self,
        cutoff: Positive = 1.8,
        basis: Count = 12,
        hidden: Sequence[Count] = (16, 16),
        scale: Positive = 1.0,
        box: Positive | None = None,
    ) -> None:
        super().__init__()
        self.cutoff, self.box, self.scale = cutoff, box, scale
        self.width = cutoff / basis
        centres = torch.linspace(self.width, cutoff, basis)
        self.register_buffer("centres_K", centres, persistent=False)
        self.mlp = MLP([basis], 1, hidden, "silu")

    def forward(self, x_Bn3: Tensor) -> Tensor:
        """Energies (B,)."""
        r_BP = pair_distances(x_Bn3, self.box)
        near = (r_BP[..., None] - self.get_buffer("centres_K")) / self.width
        features = torch.exp(-0.5 * near.square())
        pair_energy = self.mlp(features.flatten(0, 1)).view(r_BP.shape)
        return self.scale * (pair_energy * switch(r_BP, 0.0, self.cutoff)).sum(-1)


class MolecularPrior(nn.Module):
    """Harmonic bonds and angles and one cosine per dihedral, fitted to what the data show.

    A bond's or angle's stiffness is kT over its variance; a dihedral's cosine has the circular mean
    of the data and κ kT of the von Mises distribution with their resultant length.

    Args:
        bonds: pairs of atoms that are bonded; the chain's angles and dihedrals follow from them.
        kT: temperature, kJ/mol.
        box: length of the periodic cube; None: open space.
    """

    @checked
    def __init__(
        self,
        bonds: Sequence[tuple[int, int]],
        kT: Positive = 2.494,
        box: Positive | None = None,
    ) -> None:
        super().__init__()
        self.kT, self.box = kT, box
        bonded = [(i, j) for i, j in bonds]
        both = bonded + [(j, i) for i, j in bonded]
        angles = [(i, j, k) for i, j in both for a, k in both if a == j and i < k]
        chains = [(i, j, k, end) for i, j, k in _paths(both) for a, end in both if a == k]
        dihedrals = [chain for chain in chains if len(set(chain)) == 4 and chain[0] < chain[3]]
        kinds = {"bonds": bonded, "angles": angles, "dihedrals": dihedrals}
        for name, rows in ((name, torch.tensor(terms)) for name, terms in kinds.items()):
            self.register_buffer(name, rows.T, persistent=False)
            for fact in ("means", "stiffness"):
                self.register_buffer(f"{name}_{fact}", torch.zeros(len(rows)))

    @torch.no_grad()
    def fit(self, x_Nn3: Tensor) -> None:
        """Takes means and stiffnesses from snapshots."""
        lengths, angles, dihedrals = self.coordinates(x_Nn3)
        for name, values in {"bonds": lengths, "angles": angles}.items():
            getattr(self, f"{name}_means").copy_(values.mean(0))
            getattr(self, f"{name}_stiffness").copy_(self.kT / values.var(0))
        mean = torch.complex(dihedrals.cos(), dihedrals.sin()).mean(0)
        self.get_buffer("dihedrals_means").copy_(mean.angle())
        self.get_buffer("dihedrals_stiffness").copy_(self.kT * concentration(mean.abs()))

    def coordinates(self, x_Bn3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bond lengths, angles and dihedrals, (B, number) each."""

        def vectors(rows: Tensor) -> list[Tensor]:
            atoms = [x_Bn3[:, atom] for atom in rows]
            return [minimum_image(b - a, self.box) for a, b in pairwise(atoms)]

        (bond,) = vectors(self.get_buffer("bonds"))
        first, second = vectors(self.get_buffer("angles"))
        bend = torch.linalg.cross(first, second).norm(dim=-1)
        angle = torch.atan2(bend, -(first * second).sum(-1))
        before, axis, after = vectors(self.get_buffer("dihedrals"))
        left, right = torch.linalg.cross(before, axis), torch.linalg.cross(axis, after)
        sine = (before * right).sum(-1) * axis.norm(dim=-1)
        return bond.norm(dim=-1), angle, torch.atan2(sine, (left * right).sum(-1))

    def forward(self, x_Bn3: Tensor) -> Tensor:
        """Energies (B,)."""
        lengths, angles, dihedrals = self.coordinates(x_Bn3)
        energy = torch.zeros(len(x_Bn3), device=x_Bn3.device)
        for name, values in {"bonds": lengths, "angles": angles}.items():
            off = values - self.get_buffer(f"{name}_means")
            energy = energy + 0.5 * (self.get_buffer(f"{name}_stiffness") * off**2).sum(-1)
        turn = torch.cos(dihedrals - self.get_buffer("dihedrals_means"))
        return energy - (self.get_buffer("dihedrals_stiffness") * turn).sum(-1)


def concentration(resultant: Tensor) -> Tensor:
    """κ of von Mises distributions with these resultant lengths, I₁(κ)/I₀(κ) = R, by Newton."""
    R = resultant.clamp(max=0.999)
    kappa = R * (2 - R**2) / (1 - R**2)  # Banerjee et al. (JMLR 6, 2005), a few per cent off
    for _ in range(4):
        ratio = torch.special.i1e(kappa) / torch.special.i0e(kappa)
        kappa = kappa - (ratio - R) / (1 - ratio / kappa - ratio**2)
    return kappa


def _paths(both: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [(i, j, k) for i, j in both for a, k in both if a == j and i != k]
