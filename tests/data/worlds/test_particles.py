"""Fluids, molecules and snapshots: what is simulated, what is read, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.data.worlds.particles import (
    Fluid,
    LennardJones,
    Peptide,
    lennard_jones,
    snapshots,
    snapshots_stand_in,
)
from repro.errors import UserError

FLUID: dict[str, Any] = {
    "box": 3.76, "cutoff": 1.8, "bins": 18, "kT": 1.2, "dt": 0.006,
    "equilibration": 60, "steps": 60, "every": 20, "copies": 3,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_fluids_forces_are_slopes_and_scatter_as_they_say() -> None:
    world = LennardJones(particles=8, noise=3.0, **{**FLUID, "box": 3.0, "equilibration": 20})
    x, noisy = world.draw(60, generator())
    assert x.shape == noisy.shape == (60, 8, 3)
    off = noisy - world.forces(x)
    assert float(off.std()) == pytest.approx(3.0, rel=0.06)
    step = torch.zeros(8, 3, dtype=torch.float64)
    step[2, 1] = 1e-5
    y = x.double()
    slope = (world.energy(y + step) - world.energy(y - step)) / 2e-5
    assert torch.allclose(world.forces(y)[:, 2, 1], -slope, rtol=1e-4, atol=1e-4)


def test_the_true_potential_is_observed_as_its_data_are() -> None:
    world = LennardJones(**FLUID)
    x, _ = world.draw(24, generator())
    truth = world.reference(x)["density"]
    potentials: Any = SimpleNamespace(
        count=2, device=torch.device("cpu"), forces=world.forces
    )  # fmt: skip
    found = world.observe(potentials, generator(1), x)["density"]
    assert found.shape == (2, 18)
    assert truth.shape == (18,)
    assert truth[:8].max() < 0.05  # the core
    assert 1.5 < truth.max() < 3.5
    assert (found - truth).abs().mean() < 0.2


def test_a_peptides_histogram_and_free_energy() -> None:
    world = Peptide(phi=[0, 1, 2, 3], bins=4, kT=2.0)
    angles = torch.tensor([-3.0, -1.0, -0.5, 1.0])
    end = torch.stack([torch.ones(4), angles.cos(), angles.sin()], -1)
    rest = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = world.reference(torch.cat([rest.expand(4, 3, 3), end[:, None]], 1))
    expected = torch.tensor([1, 2, 1, 0]) / 4 * 4 / math.tau
    assert torch.allclose(found["density"], expected)
    assert float(found["free_energy"]) == pytest.approx(-2.0 * math.log(3))


def test_a_data_set_is_a_function_of_its_seed() -> None:
    def made(seed: int) -> Tensor:
        world = LennardJones(particles=8, **{**FLUID, "equilibration": 20, "every": 5})
        data = lennard_jones(
            "lj", world=world, examples={"train": 6, "val": 2, "test": 2}, seed=seed,
            task="regression", input_shape=[8, 3], targets=24,
        )  # fmt: skip
        return data.splits["train"][0]

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))


FILES = {"positions": "x.npy", "forces": "f.npy", "box": "box.npy"}


def written(folder: Path) -> Path:
    """Fifty frames of three particles, as published data lie."""
    (folder / "water").mkdir()
    frames = np.arange(50 * 9, dtype=np.float64).reshape(50, 3, 3)
    for name, array in {"x": frames, "f": -frames, "box": np.array(2.5)}.items():
        np.save(folder / "water" / f"{name}.npy", array)
    return folder


def read(root: Path, **settings: Any) -> Any:
    return snapshots(
        "water", root=str(root), folder="water", files=FILES, task="regression",
        **{"box": 2.5, **settings},
    )  # fmt: skip


def test_published_files_are_split_in_their_order(tmp_path: Path) -> None:
    data = read(written(tmp_path))
    sizes = {name: len(split[0]) for name, split in data.splits.items()}
    assert sizes == {"train": 40, "val": 4, "test": 6}
    assert torch.equal(data.splits["train"][0], -data.splits["train"][1])
    assert data.splits["val"][0][0, 0, 0] == 40 * 9
    assert len(read(tmp_path, frames=25).splits["train"][0]) == 20
    assert len(data.fingerprint()["sha256"]) == 64


def test_missing_files_and_another_box_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'water' is missing"):
        read(tmp_path).setup()
    with pytest.raises(UserError, match=r"set dataset.box=2.5, not 3"):
        read(written(tmp_path), box=3.0).setup()


def test_a_stand_in_fills_the_box() -> None:
    info = {"stand_in": {"frames": 50, "particles": 20, "spacing": 0.15}}
    data = snapshots_stand_in("water", info=info, box=2.0, task="regression")
    x, forces = data.splits["train"]
    assert x.shape == forces.shape == (40, 20, 3)
    assert 1.2 < float(x.max()) < 2.0
    fluid = Fluid(box=2.0, cutoff=1.0, bins=10, kT=1.0)
    assert fluid.reference(x)["density"][:2].max() < 0.1
