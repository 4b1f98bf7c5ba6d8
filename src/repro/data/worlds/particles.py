"""Particles: fluids and molecules that are observed by simulation, and snapshots with forces."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.base.files import data_root, sha256_of
from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData
from repro.data.worlds.mechanics import (
    Potentials,
    dihedral,
    langevin,
    pair_distances,
    radial_distribution,
)
from repro.errors import UserError
from repro.knobs import Count, Fraction, Inside, NonNegative, Positive, checked


class Simulated(ABC):
    """A world whose observables are averages over Langevin dynamics.

    Args:
        kT: temperature, kJ/mol.
        mass: of each particle, or of all; in kJ/mol, nm and ps its unit is g/mol.
        friction: per ps.
        dt: of a step, ps.
        equilibration: steps before anything is measured.
        steps: of the measurement.
        every: steps between two snapshots.
        copies: simulated for each potential, from random states of the data.
    """

    @checked
    def __init__(
        self,
        kT: Positive,
        mass: Positive | Sequence[Positive] = 1.0,
        friction: Positive = 1.0,
        dt: Positive = 0.002,
        equilibration: Count = 100,
        steps: Count = 1000,
        every: Count = 10,
        copies: Count = 1,
    ) -> None:
        self.mass = torch.tensor(mass if isinstance(mass, float) else list(mass))[..., None]
        self.knobs: dict[str, Any] = {"kT": kT, "friction": friction, "dt": dt, "every": every}
        self.equilibration, self.steps, self.copies, self.kT = equilibration, steps, copies, kT

    @abstractmethod
    def measure(self, x: Tensor) -> dict[str, Tensor]:
        """Observables (M, bins) of snapshots (M, S, n, 3)."""

    def finish(self, observables: dict[str, Tensor]) -> dict[str, Tensor]:
        """What follows from averages over snapshots."""
        return observables

    def observe(
        self, potentials: Potentials, generator: torch.Generator, states: Tensor
    ) -> dict[str, Tensor]:
        """Observables (M, bins) of M potentials, each simulated from states of the data."""
        rows = torch.randint(len(states), (potentials.count, self.copies), generator=generator)
        start = states[rows.to(states.device)].to(potentials.device)
        path = langevin(
            potentials.forces, start, mass=self.mass, steps=self.equilibration + self.steps,
            generator=generator, **self.knobs,
        )  # fmt: skip
        skipped, count = self.equilibration // self.knobs["every"], 0
        total: dict[str, Tensor] = {}
        for number, x in enumerate(path):
            if number >= skipped:
                measured, count = self.measure(x), count + 1
                total = {k: total[k] + v if total else v for k, v in measured.items()}
        return self.finish({name: value / count for name, value in total.items()})

    def reference(self, states: Tensor) -> dict[str, Tensor]:
        """Observables (bins,) of the data themselves, which stand for the truth."""
        parts = [self.measure(part[None]) for part in states.split(500)]
        weights = [len(part) / len(states) for part in states.split(500)]
        mean = {
            name: sum(
                (w * part[name] for w, part in zip(weights, parts, strict=True)), torch.zeros(())
            )
            for name in parts[0]
        }
        return {name: value[0] for name, value in self.finish(mean).items()}


class Fluid(Simulated):
    """Particles in a periodic cube; ``density`` is their radial distribution function.

    Args:
        box: length of the cube, nm.
        cutoff: of the radial distribution function, at most half the box.
        bins: of it.
        dynamics: see `Simulated`.
    """

    @checked
    def __init__(
        self, box: Positive, cutoff: Positive, bins: Count = 60, **dynamics: Any
    ) -> None:  # fmt: skip
        super().__init__(**dynamics)
        self.box, self.cutoff, self.bins = box, cutoff, bins

    def measure(self, x: Tensor) -> dict[str, Tensor]:
        """g(r) (M, bins)."""
        return {"density": radial_distribution(x, self.box, self.cutoff, self.bins)}


class Peptide(Simulated):
    """A molecule; ``density`` is that of its dihedral φ, ``free_energy`` of φ < 0 against the rest.

    Args:
        phi: the four atoms of φ.
        bins: of the angle.
        dynamics: see `Simulated`.
    """

    @checked
    def __init__(self, phi: Sequence[int], bins: Count = 60, **dynamics: Any) -> None:
        super().__init__(**dynamics)
        self.phi, self.bins = tuple(phi), bins

    def measure(self, x: Tensor) -> dict[str, Tensor]:
        """Histogram (M, bins) of φ, per radian."""
        a, b, c, d = self.phi
        where = ((dihedral(x, (a, b, c, d)) / math.tau + 0.5) * self.bins).long()
        one_hot = torch.nn.functional.one_hot(where.clamp(0, self.bins - 1), self.bins)
        return {"density": one_hot.float().mean(1) * self.bins / math.tau}

    def finish(self, observables: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the difference of free energy, −kT ln(P(φ < 0) / P(φ ≥ 0))."""
        density = observables["density"]
        half = self.bins // 2
        left, right = density[:, :half].sum(1), density[:, half:].sum(1)
        return observables | {"free_energy": self.kT * (right.log() - left.log())[:, None]}


class LennardJones(Fluid):
    """A Lennard-Jones fluid, σ = ε = m = 1, with forces that scatter around the true ones.

    Args:
        particles: n.
        noise: standard deviation of each component of the forces.
        onset: from here to the cutoff of the potential it is switched off.
        reach: this cutoff, at most half the box.
        fluid: see `Fluid`.
    """

    @checked
    def __init__(
        self,
        particles: Count = 32,
        noise: NonNegative = 5.0,
        onset: Positive = 1.5,
        reach: Positive = 1.8,
        **fluid: Any,
    ) -> None:
        super().__init__(**fluid)
        self.particles, self.sigma = particles, noise
        self.onset, self.reach = onset, reach

    def energy(self, x: Tensor) -> Tensor:
        """Energies (…) of states (…, n, 3)."""
        r = pair_distances(x, self.box)
        t = ((r - self.onset) / (self.reach - self.onset)).clamp(0, 1)
        switched = 1 - t**3 * (10 - 15 * t + 6 * t**2)
        return (4 * (r**-12 - r**-6) * switched).sum(-1)

    def forces(self, x: Tensor) -> Tensor:
        """True forces."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x)
        return -slope

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (count, n, 3) of dynamics from a lattice, and noisy forces."""
        side = math.ceil(self.particles ** (1 / 3))
        line = (torch.arange(side) + 0.5) * self.box / side
        lattice = torch.cartesian_prod(line, line, line)[: self.particles]
        copies = min(count, 40)
        snapshots = math.ceil(count / copies)
        start = lattice + 0.02 * torch.randn(copies, self.particles, 3, generator=generator)
        steps = self.equilibration + snapshots * self.knobs["every"]
        path = langevin(
            self.forces, start, mass=self.mass, steps=steps, generator=generator, **self.knobs
        )
        x = torch.cat(list(path)[-snapshots:])[:count]
        x = x[torch.randperm(count, generator=generator)]
        noise = torch.randn(x.shape, generator=generator)
        return x, self.forces(x) + self.sigma * noise


@checked
def lennard_jones(
    name: str,
    *,
    world: LennardJones,
    examples: Mapping[str, Count],
    box: Positive | None = None,  # noqa: ARG001 - read from the config
    seed: int = 0,
    **facts: Any,
) -> TensorData:
    """States of a Lennard-Jones fluid and noisy forces as a data set; see `LennardJones`.

    Args:
        name: of the data set.
        world: simulates them.
        examples: how many of them by split.
        box: of the world, for models; not used here.
        seed: of the simulation.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        return {
            split: world.draw(examples[split], generator_for(seed, number))
            for number, split in enumerate(SPLIT_NAMES)
        }

    return TensorData(name, load, seed=seed, **facts)


def in_order(tensors: Sequence[Tensor], val_size: float, test_size: float) -> Splits:
    """Splits frames as they come: training, validation, test.

    Args:
        tensors: (N, …) each.
        val_size: share of validation.
        test_size: share of the test.
    """
    total = len(tensors[0])
    val, test = int(val_size * total), int(test_size * total)
    parts = zip(*(each.split([total - val - test, val, test]) for each in tensors), strict=True)
    return dict(zip(SPLIT_NAMES, parts, strict=True))


@checked
def snapshots(
    name: str,
    *,
    root: str | None,
    folder: str,
    files: Mapping[str, str],
    box: Positive | None = None,
    frames: Count | None = None,
    val_size: Inside = 0.08,
    test_size: Fraction = 0.12,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """Positions and forces of a simulation, NumPy files of (N, n, 3), split in their order.

    Args:
        name: of the data set.
        root: folder of all data sets; the files lie in ``<root>/<folder>``.
        folder: of this one.
        files: names of the ``positions`` and ``forces``, and perhaps of the length of the ``box``.
        box: its length as models take it, nm; a file that says otherwise is a mistake.
        frames: use so many of the first; None: all.
        val_size: share of validation, after the training frames.
        test_size: share of the test, at the end.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.
    """
    where = data_root(root) / folder
    paths = {kind: where / file for kind, file in files.items()}

    def load() -> Splits:
        for path in paths.values():
            if not path.is_file():
                raise UserError(
                    f"Data set '{name}' is missing: no {path}. Put the files of"
                    f" {(info or {}).get('source', 'the simulation')} there."
                )
        if box is not None and "box" in paths:
            _check_box(paths["box"], box)
        x, forces = (
            torch.from_numpy(np.load(paths[kind], mmap_mode="r")[:frames].astype(np.float32))
            for kind in ("positions", "forces")
        )
        return in_order((x, forces), val_size, test_size)

    def digest() -> str:
        return sha256_of(list(paths.values()))

    return TensorData(name, load, source_digest=digest, info=info, **facts)


def _check_box(path: Path, box: float) -> None:
    length = float(np.load(path).max())
    if abs(length - box) > 1e-4:
        raise UserError(f"{path} says {length:g} nm: set dataset.box={length:g}, not {box:g}.")


@checked
def snapshots_stand_in(
    name: str,
    *,
    info: Mapping[str, Any],
    box: Positive | None = None,
    frames: Count | None = None,
    val_size: Inside = 0.08,
    test_size: Fraction = 0.12,
    **facts: Any,
) -> TensorData:
    """Stands in for `snapshots`: jittered lattices and random forces.

    Args:
        name: of the data set.
        info: ``stand_in`` says the number of ``frames`` and ``particles`` and their ``spacing``.
        box: only its presence matters: particles fill it.
        frames: use so many.
        val_size: see `snapshots`.
        test_size: likewise.
        facts: see `TensorData`.
    """
    sizes: Callable[[str], Any] = info["stand_in"].__getitem__
    count, particles = min(frames or sizes("frames"), sizes("frames")), sizes("particles")

    def load() -> Splits:
        draws, side = generator_for(0), math.ceil(particles ** (1 / 3))
        line = torch.arange(side) * (sizes("spacing") if box is None else box / side)
        lattice = torch.cartesian_prod(line, line, line)[:particles]
        x = lattice + 0.02 * torch.randn(min(count, 100), particles, 3, generator=draws)
        x = x[torch.arange(count) % len(x)]
        return {
            split: (part, 100 * torch.randn(part.shape, generator=draws))
            for split, (part,) in in_order((x,), val_size, test_size).items()
        }

    for reading in ("root", "folder", "files"):
        facts.pop(reading, None)
    return TensorData(name, load, source_digest=lambda: "stand-in", **facts)
