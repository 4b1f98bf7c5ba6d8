"""Alanine dipeptide simulated with all its atoms by OpenMM, seen as its ten heavy atoms.

Bonds to hydrogens are rigid, so that a heavy atom with the forces on its hydrogens added has the
right mean force (Noid et al., J. Chem. Phys. 128, 244114, 2008).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.base.modules import Splits, TensorData
from repro.data.worlds.particles import in_order
from repro.errors import UserError
from repro.knobs import Count, Inside, Positive, checked

INSTALL = "openmm is missing. Get it with: pip install 'gradient-repro[molecules]'"
# The heavy atoms as a tree, (name, residue, bonded to, length, angle, dihedral): enough for OpenMM
# to add hydrogens and relax it. Lengths in nm, angles in degrees; the first three lie in a plane.
ATOMS = (
    ("CH3", "ACE", -1, 0.0, 0.0, 0.0), ("C", "ACE", 0, 0.153, 0.0, 0.0),
    ("O", "ACE", 1, 0.123, 121.0, 0.0), ("N", "ALA", 1, 0.133, 116.0, 180.0),
    ("CA", "ALA", 3, 0.146, 122.0, 180.0), ("CB", "ALA", 4, 0.153, 110.0, 60.0),
    ("C", "ALA", 4, 0.153, 110.0, -70.0), ("O", "ALA", 6, 0.123, 120.0, -30.0),
    ("N", "NME", 6, 0.133, 116.0, 150.0), ("CH3", "NME", 8, 0.146, 122.0, 180.0),
)  # fmt: skip
BONDS = tuple((parent, atom) for atom, (_, _, parent, *_) in enumerate(ATOMS) if parent >= 0)


def heavy_atoms() -> np.ndarray:
    """Positions (10, 3) in nm from bond lengths, angles and dihedrals."""
    x = np.zeros((len(ATOMS), 3))
    parents = [parent for _, _, parent, *_ in ATOMS]
    for atom, (_, _, parent, length, angle, turn) in enumerate(ATOMS):
        if atom == 1:
            x[atom] = [length, 0, 0]
        elif atom > 1:
            before = parents[parent] if parents[parent] >= 0 else 0
            earlier = x[parents[before]] if parents[before] >= 0 else x[before] + [0, 1.0, 0]
            x[atom] = x[parent] + _placed(earlier, x[before], x[parent], length, angle, turn)
    return x


def _placed(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, turn: float
) -> np.ndarray:
    """From c to the atom at a length from it, an angle to b and a dihedral to a."""
    bond, bend, turn = c - b, math.radians(angle), math.radians(turn)
    bond = bond / np.linalg.norm(bond)
    normal = np.cross(b - a, bond)
    normal = normal / np.linalg.norm(normal)
    side = np.cross(normal, bond)
    along = [-math.cos(bend), math.sin(bend) * math.cos(turn), math.sin(bend) * math.sin(turn)]
    return length * (along[0] * bond + along[1] * side + along[2] * normal)


def relaxed(temperature: float, friction: float, dt: float, seed: int) -> Any:
    """A simulation of OpenMM in implicit solvent, after minimisation.

    Raises:
        UserError: OpenMM is not installed.
    """
    try:
        import openmm
        from openmm import app, unit
    except ImportError:
        raise UserError(INSTALL) from None
    topology = app.Topology()
    chain, atoms, residues = topology.addChain(), [], {}
    for name, residue, *_ in ATOMS:
        if residue not in residues:
            residues[residue] = topology.addResidue(residue, chain)
        element = app.Element.getBySymbol(name[0])
        atoms.append(topology.addAtom("C" if name == "CH3" and residue == "NME" else name, element,
                                      residues[residue]))  # fmt: skip
    for i, j in BONDS:
        topology.addBond(atoms[i], atoms[j])
    field = app.ForceField("amber14-all.xml", "implicit/gbn2.xml")
    modeller = app.Modeller(topology, heavy_atoms() * unit.nanometer)
    modeller.addHydrogens(field)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds
    )
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, dt)
    integrator.setRandomNumberSeed(seed + 1)  # zero asks for a random one
    simulation = app.Simulation(
        modeller.topology, system, integrator, openmm.Platform.getPlatformByName("CPU")
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(temperature, seed + 1)
    return simulation


def owners(topology: Any) -> np.ndarray:
    """For each atom the number of the heavy atom that it is, or is bonded to, in their order."""
    heavy = [atom.index for atom in topology.atoms() if atom.element.symbol != "H"]
    number = {index: k for k, index in enumerate(heavy)}
    for bond in topology.bonds():
        for one, other in (bond, reversed(bond)):
            if one.element.symbol == "H":
                number[one.index] = number[other.index]
    return np.array([number[atom.index] for atom in topology.atoms()])


@checked
def simulate(
    frames: Count,
    every: Count = 500,
    burn_in: Count = 5000,
    temperature: Positive = 300.0,
    friction: Positive = 1.0,
    dt: Positive = 0.002,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Heavy atoms of alanine dipeptide in implicit solvent (amber14, GBn2).

    Args:
        frames: how many.
        every: steps between two of them.
        burn_in: steps before the first.
        temperature: K.
        friction: per ps.
        dt: of a step, ps.
        seed: of the dynamics.

    Returns:
        Positions in nm and forces in kJ/mol/nm, (frames, 10, 3) each; the forces of hydrogens are
        added to those of the atoms that they are bonded to.
    """
    simulation = relaxed(temperature, friction, dt, seed)
    from openmm import unit

    owner = owners(simulation.topology)
    first = np.array([int(np.flatnonzero(owner == k)[0]) for k in range(owner.max() + 1)])
    simulation.step(burn_in)
    positions, forces = [], []
    for _ in range(frames):
        simulation.step(every)
        state = simulation.context.getState(getPositions=True, getForces=True)
        force = np.zeros((len(first), 3))
        raw = state.getForces(asNumpy=True)
        np.add.at(force, owner, raw.value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
        positions.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)[first])
        forces.append(force)
    return torch.tensor(np.array(positions)).float(), torch.tensor(np.array(forces)).float()


@checked
def alanine_dipeptide(
    name: str,
    *,
    frames: Count = 20000,
    every: Count = 500,
    val_size: Inside = 0.08,
    test_size: Inside = 0.12,
    box: Positive | None = None,  # noqa: ARG001 - read from the config
    seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Frames of `simulate` as a data set, split in their order.

    Args:
        name: of the data set.
        frames: how many.
        every: steps of 2 fs between two of them.
        val_size: share of validation, after the training frames.
        test_size: share of the test, at the end.
        box: none, for models; not used here.
        seed: of the dynamics.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        return in_order(simulate(frames, every, seed=seed), val_size, test_size)

    return TensorData(name, load, seed=seed, **facts)
