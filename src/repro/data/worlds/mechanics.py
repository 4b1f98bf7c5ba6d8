"""Molecular dynamics of many potentials at once, and what is read off its snapshots.

Shapes: M potentials, B copies of the system for each, n particles in three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from repro.knobs import Count, Positive, checked


class Potentials(Protocol):
    """M potentials side by side: what a world needs to be observed under each of them."""

    @property
    def count(self) -> int:
        """M."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        ...

    def energies(self, x: Tensor, shared: bool = False) -> Tensor:
        """Energies (M, B) of states (M, B, …), or of (B, …) that all of them share."""
        ...

    def forces(self, x: Tensor, shared: bool = False) -> Tensor:
        """Forces −∂E/∂x (M, B, …), likewise."""
        ...


@checked
def langevin(
    forces: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    kT: Positive,
    mass: Tensor | float = 1.0,
    friction: Positive = 1.0,
    dt: Positive = 0.005,
    steps: Count = 1000,
    every: Count = 10,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews, 2013).

    Args:
        forces: of states to forces of the same shape.
        x: the start, of any shape; velocities start from their equilibrium.
        kT: temperature, in units of energy.
        mass: broadcasts with ``x``.
        friction: per unit of time.
        dt: of a step.
        steps: of the simulation.
        every: steps between two states that are returned.
        generator: of the noise, on the CPU.

    Yields:
        The states, detached.
    """

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    mass = torch.as_tensor(mass).to(x)
    thermal = (kT / mass).sqrt()
    kept = math.exp(-friction * dt)
    v, force = thermal * noise(), forces(x)
    for step in range(1, steps + 1):
        v = v + 0.5 * dt * force / mass
        x = x + 0.5 * dt * v
        v = kept * v + math.sqrt(1 - kept**2) * thermal * noise()
        x = x + 0.5 * dt * v
        force = forces(x).detach()
        v = v + 0.5 * dt * force / mass
        if step % every == 0:
            yield x


def minimum_image(delta: Tensor, box: float | None) -> Tensor:
    """Differences of positions to the nearest periodic image; ``None`` is open space."""
    return delta if box is None else delta - box * (delta / box).round()


def pair_distances(x: Tensor, box: float | None) -> Tensor:
    """Distances (…, n(n−1)/2) of all pairs of positions (…, n, 3)."""
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1).to(x.device)
    return minimum_image(x[..., i, :] - x[..., j, :], box).norm(dim=-1)


def radial_distribution(x: Tensor, box: float, cutoff: float, bins: int) -> Tensor:
    """g(r) of each of M sets of snapshots.

    Args:
        x: (M, S, n, 3).
        box: length of the periodic cube.
        cutoff: largest distance, at most half the box.
        bins: from 0 to the cutoff.

    Returns:
        (M, bins), 1 for an ideal gas.
    """
    distances = pair_distances(x, box).flatten(1)
    edges = torch.linspace(0, cutoff, bins + 1, device=x.device)
    where = (distances / cutoff * bins).long().clamp(max=bins)  # the last bin: beyond the cutoff
    counts = torch.zeros(len(x), bins + 1, device=x.device)
    counts.scatter_add_(1, where, torch.ones_like(distances))
    shells = 4 / 3 * math.pi * edges.pow(3).diff()
    return counts[:, :-1] * box**3 / (shells * distances.shape[1])


def dihedral(x: Tensor, atoms: tuple[int, int, int, int]) -> Tensor:
    """A dihedral angle (…) in (−π, π] of positions (…, n, 3), in the IUPAC sense."""
    a, b, c, d = (x[..., atom, :] for atom in atoms)
    first, axis, last = b - a, c - b, d - c
    left, right = torch.cross(first, axis, dim=-1), torch.cross(axis, last, dim=-1)
    sine = (first * right).sum(-1) * axis.norm(dim=-1)
    return torch.atan2(sine, (left * right).sum(-1))
