"""Shapes, vessels and arches: what they hold, that they repeat, that bad sizes are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from repro.data.base.iterators import generator_for
from repro.data.images.shapes import picture_masks, shapes, solid_masks
from repro.data.images.trees import vessel_tree
from repro.data.images.vessels import arches, vessap, vessels
from repro.errors import UserError
from repro.methods.skeleton import betti_numbers

FACTS: dict[str, Any] = {"input_shape": [1, 24, 20], "train_size": 3, "val_size": 2, "test_size": 2}


def test_pictures_become_masks() -> None:
    masks = picture_masks()
    assert list(masks) == ["horse", "text", "page", "coins", "retina", "digits"]
    for mask in masks.values():
        assert mask.dtype == torch.bool
        assert 0.02 < mask.float().mean() < 0.6
    assert betti_numbers(masks["digits"].numpy())[0] == 10
    assert betti_numbers(masks["horse"].numpy())[0] == 1


def test_solids_have_the_topology_of_their_names() -> None:
    numbers = {name: betti_numbers(mask.numpy()) for name, mask in solid_masks().items()}
    assert numbers == {
        "ball": (1, 0, 0), "torus": (1, 1, 0), "shell": (1, 0, 1), "rods": (1, 0, 0)
    }  # fmt: skip


def test_shapes_come_one_by_one_and_continue_where_they_stopped() -> None:
    few: dict[str, Any] = {"pictures": False, "blobs": 1, "trees": 1, "size": 12}
    data, same, other = (shapes(**few, data_seed=seed) for seed in (0, 0, 1))
    assert data.fingerprint() == same.fingerprint() != other.fingerprint()
    loader = data.train_dataloader()
    assert [int(number) for _, number in loader] == list(range(len(data.shapes)))
    loader.load_state_dict({"epoch": 0, "batch": 5, "batches": len(loader)})
    mask, number = next(iter(loader))
    assert (tuple(mask.shape), int(number)) == ((1, 1, 12, 12, 12), 5)


@pytest.mark.parametrize("size", [[40, 30], [16, 20, 18]])
def test_trees_branch_and_reach_the_border(size: list[int]) -> None:
    trees = [vessel_tree(size, generator_for(seed)) for seed in range(8)]
    assert torch.equal(trees[0], vessel_tree(size, generator_for(0)))
    assert all(tree.shape == torch.Size(size) for tree in trees)
    assert 0.01 < torch.stack(trees).float().mean() < 0.5


def test_vessels_differ_between_splits_and_seeds() -> None:
    one, two = (vessels(task="segmentation", data_seed=seed, **FACTS).splits for seed in (0, 1))
    x, y = one["train"]
    assert x.shape == y.shape == (3, 1, 24, 20)
    assert not torch.equal(one["val"][1], one["test"][1])
    assert not torch.equal(y, two["train"][1])


def test_arches_are_related_by_an_affine_map() -> None:
    data = arches(size=32, pairs=5, task="registration")
    fixed, moving, there, here = data.splits["test"]
    assert fixed.shape == moving.shape == (5, 1, 32, 32)
    assert moving.sum() > 1.3 * fixed.sum()
    with_one = torch.cat([there, torch.ones(5, there.shape[1], 1)], -1)
    maps = torch.linalg.lstsq(with_one, here).solution
    torch.testing.assert_close(with_one @ maps, here, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shapes(size=7), "size is a whole number of at least 8"),
        (lambda: shapes(pictures=False, solids=False, blobs=0, trees=0), "no shapes are left"),
        (
            lambda: vessels(task="segmentation", **{**FACTS, "input_shape": [3, 8, 8]}),
            "input_shape",
        ),
        (
            lambda: vessels(task="segmentation", **{**FACTS, "test_size": 0}),
            "test_size is a whole number of at least 1",
        ),
        (
            lambda: arches(size=32, pairs=0, task="registration"),
            "pairs is a whole number of at least 1",
        ),
    ],
)
def test_bad_sizes_are_one_line(make, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_volumes_are_cut_into_cubes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for folder in ("raw", "seg"):
        (tmp_path / "vessap" / folder).mkdir(parents=True)
        for number in range(3):
            volume = torch.zeros(17, 16, 9)
            volume[:, 4:7, 3:6] = 1 + number
            image = nibabel.Nifti1Image(volume.numpy(), None)
            nibabel.save(image, tmp_path / "vessap" / folder / f"{number}.nii.gz")

    def cubes_of(edge: int) -> Any:
        size = (1, 8, 8, 8)
        root = str(tmp_path / "hf")
        return vessap(patch=edge, input_shape=size, task="segmentation", root=root)

    data = cubes_of(8)
    x, y = data.splits["train"]
    assert x.shape == y.shape == (4, 1, 8, 8, 8)
    assert set(y.unique().tolist()) == {0, 1}
    assert data.splits["test"][0].max() == 1
    with pytest.raises(UserError, match="Choose a smaller patch"):
        cubes_of(32).setup()
