"""Alanine dipeptide: its built geometry, and a few steps where OpenMM is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from repro.data.worlds.alanine import ATOMS, BONDS, alanine_dipeptide, heavy_atoms, simulate
from repro.data.worlds.mechanics import dihedral
from repro.errors import UserError


def test_heavy_atoms_have_the_lengths_angles_and_dihedrals_that_are_typed() -> None:
    x = heavy_atoms()
    for parent, atom in BONDS:
        assert np.linalg.norm(x[atom] - x[parent]) == pytest.approx(ATOMS[atom][3])
    positions = torch.from_numpy(x)
    assert float(dihedral(positions, (1, 3, 4, 6))) == pytest.approx(np.radians(-70), abs=1e-6)
    assert float(dihedral(positions, (3, 4, 6, 8))) == pytest.approx(np.radians(150), abs=1e-6)
    distances = np.linalg.norm(x[:, None] - x, axis=-1) + np.eye(10)
    assert distances.min() > 0.12


def test_without_openmm_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(UserError, match=r"openmm is missing.*molecules"):
        alanine_dipeptide("alanine", frames=50, task="regression").setup()


def test_a_short_simulation() -> None:
    pytest.importorskip("openmm")
    x, forces = simulate(20, every=20, burn_in=100)
    assert x.shape == forces.shape == (20, 10, 3)
    for parent, atom in BONDS:
        length = (x[:, atom] - x[:, parent]).norm(dim=-1)
        assert float(length.mean()) == pytest.approx(ATOMS[atom][3], abs=0.01)
    # Nothing outside acts on the molecule: the implicit solvent's forces cancel.
    assert forces.sum(1).abs().max() < 0.01 * forces.abs().max()
    again, _ = simulate(1, every=20, burn_in=100, seed=1)
    assert not torch.allclose(again[0], x[0], atol=1e-4)
