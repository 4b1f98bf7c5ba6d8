"""Two dihedral angles with a known free energy, and noisy forces of what was coarse-grained away.

The energy of a fine-grained model is U(q, ξ) = A(q) + ½κ|ξ − g(q)|², with q = (φ, ψ). Its marginal
over ξ is exp(−A(q)/kT) exactly, whatever κ is, so that A is the potential of mean force. The force
that acts on q at an instant is −∇A(q) + κ(ξ − g)∂g with ξ − g from N(0, kT/κ): right on average,
with a scatter of √(κ kT) ∂g that no model of q alone can explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repro.data.base.iterators import generator_for
from repro.data.base.modules import TensorData
from repro.data.worlds.mechanics import Potentials
from repro.knobs import Count, NonNegative, Positive, checked

# A(q) = Σ a cos(mφ + nψ − δ) in kJ/mol: a, m, n, δ; 2.5 sin(φ − 2ψ) is the cosine of −π/2 less.
WAVES = (
    (6.0, 1, 0, 1.1), (4.0, 0, 1, -0.6), (5.0, 1, 1, 0.4),
    (3.0, 2, 0, 0.3), (3.0, 0, 2, -1.0), (2.5, 1, -2, math.pi / 2),
)  # fmt: skip

SPLITS = ("train", "val", "test")


class TwoDihedrals:
    """The surface, what is observed on it, and forces as an atomistic simulation would give them.

    Args:
        kT: temperature, kJ/mol; 2.494 is 300 K.
        stiffness: κ of the bath, kJ/mol; the forces' noise grows with its root.
        depth: factor on A; another than 1 is another state.
        bias: amplitude b in kJ/mol/rad of b cos φ that is added to every force on φ, a wrong level
            of theory: it is the force of −b sin φ.
        bins: of each angle, on the grid of quadratures.
    """

    @checked
    def __init__(
        self,
        kT: Positive = 2.494,
        stiffness: Positive = 200.0,
        depth: Positive = 1.0,
        bias: NonNegative = 0.0,
        bins: Count = 60,
    ) -> None:
        self.kT, self.stiffness, self.depth, self.bias = kT, stiffness, depth, bias
        self.bins, self.width = bins, math.tau / bins
        centres_B = (torch.arange(bins) + 0.5) * self.width - math.pi
        self.grid_G2 = torch.cartesian_prod(centres_B, centres_B)

    def energy(self, q_N2: Tensor) -> Tensor:
        """A(q) (N,)."""
        phi, psi = q_N2.unbind(-1)
        waves = [a * torch.cos(m * phi + n * psi - shift) for a, m, n, shift in WAVES]
        return self.depth * torch.stack(waves).sum(0)

    def mean_force(self, q_N2: Tensor) -> Tensor:
        """−∇A (N, 2), with the bias."""
        phi, psi = q_N2.unbind(-1)
        force = torch.zeros_like(q_N2)
        for a, m, n, shift in WAVES:
            slope = self.depth * a * torch.sin(m * phi + n * psi - shift)
            force = force + torch.stack([m * slope, n * slope], -1)
        return force + torch.stack([self.bias * torch.cos(phi), torch.zeros_like(psi)], -1)

    def noise_scale(self, q_N2: Tensor) -> Tensor:
        """Standard deviation (N, 2) of each force component, √(κ kT) ∂g."""
        return math.sqrt(self.stiffness * self.kT) * 0.6 * (1.2 + 0.8 * q_N2.cos())

    @property
    def sigma(self) -> float:
        """Root mean square of the forces' noise over the Boltzmann distribution."""
        weights_G = torch.softmax(-self.energy(self.grid_G2) / self.kT, 0)
        return float((weights_G @ self.noise_scale(self.grid_G2).square()).mean().sqrt())

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Angles (count, 2) from the Boltzmann distribution, uniform within each cell, and forces.

        The bias is one of the forces alone.
        """
        weights_G = torch.softmax(-self.energy(self.grid_G2) / self.kT, 0)
        cells = torch.multinomial(weights_G, count, replacement=True, generator=generator)
        jitter = torch.rand(count, 2, generator=generator) - 0.5
        q_N2 = self.grid_G2[cells] + self.width * jitter
        noise = torch.randn(count, 2, generator=generator)
        return q_N2, self.mean_force(q_N2) + self.noise_scale(q_N2) * noise

    def observe(self, potentials: Potentials, _: torch.Generator, __: Tensor) -> dict[str, Tensor]:
        """Observables of potentials by quadrature, which needs neither generator nor states.

        Args:
            potentials: M functions of the two angles.

        Returns:
            ``density`` (M, bins) of φ per radian, and ``free_energy`` (M, 1), of φ < 0 against the
            rest, −kT ln(P(φ < 0) / P(φ ≥ 0)) in kJ/mol.
        """
        return self._observables(potentials.energies(self.grid_G2, shared=True))

    def reference(self, _: Tensor) -> dict[str, Tensor]:
        """The truth, (bins,) and (1,), whatever was sampled: that of the surface itself."""
        observables = self._observables(self.energy(self.grid_G2)[None])
        return {name: value_MB[0] for name, value_MB in observables.items()}

    def _observables(self, energy_MG: Tensor) -> dict[str, Tensor]:
        log_joint = (-energy_MG / self.kT).unflatten(-1, (self.bins, self.bins))
        log_phi = log_joint.logsumexp(-1)
        left, right = log_phi.split([self.bins // 2, self.bins - self.bins // 2], -1)
        difference = self.kT * (right.logsumexp(-1) - left.logsumexp(-1))
        density = log_phi.softmax(-1) / self.width
        return {"density": density, "free_energy": difference[..., None]}


@checked
def two_dihedrals(
    name: str,
    *,
    world: TwoDihedrals,
    examples: Mapping[str, Count],
    seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Angles and forces as a data set.

    Args:
        name: of the data set.
        world: draws them.
        examples: how many of them by split.
        seed: of the draws; another seed is another data set.
        facts: see `TensorData`.
    """
    splits = {
        split: world.draw(examples[split], generator_for(seed, number))
        for number, split in enumerate(SPLITS)
    }
    return TensorData(name, splits, seed=seed, **facts)
