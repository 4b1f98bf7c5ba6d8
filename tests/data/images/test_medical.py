"""Medical sets in their published layouts, written small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repro.errors import UserError

Build = Callable[..., Any]
CLASSES = ("CT__abd__normal", "MR__knee__meniscus", "US__liver")


def write_radimagenet(folder: Path, images: int = 4) -> Path:
    """Returns the folder of data sets beside the one that is written."""
    for split in ("train", "val", "test"):
        for number, name in enumerate(CLASSES):
            place = folder / "radimagenet" / split / name
            place.mkdir(parents=True)
            for image in range(images):
                Image.new("L", (40, 30), 60 * number + image).save(place / f"{image}.png")
    return folder / "hf"


def write_medmnist(folder: Path, flag: str, labels: np.ndarray, grey: bool, size: int = 28) -> Path:
    """Six images a split, all of the brightness of their place."""
    shape = (6, size, size) if grey else (6, size, size, 3)
    images = np.broadcast_to(np.arange(6).reshape(6, *[1] * (len(shape) - 1)), shape)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    (folder / "medmnist").mkdir(exist_ok=True)
    np.savez(folder / "medmnist" / f"{flag}{'' if size == 28 else f'_{size}'}.npz", **arrays)
    return folder / "hf"


def radimagenet(dataset: Build, root: Path, **knobs: Any) -> Any:
    facts = {"classes": 3, "workers": 0, "batch_size": 4, "input_shape": [3, 16, 16]}
    return dataset("radimagenet", root, **{**facts, **knobs})


def test_radimagenet_is_read_from_its_folders(tmp_path: Path, dataset: Build) -> None:
    data = radimagenet(dataset, write_radimagenet(tmp_path))
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (4, 3, 16, 16)
    assert data.labels("test").bincount().tolist() == [4, 4, 4]
    assert data.fingerprint()["sizes"] == {"train": 12, "val": 12, "test": 12}
    # Images are as bright as their class says, after the authors' normalisation.
    x, y = next(iter(data.test_dataloader()))
    grey = (x * 0.3213 + 0.3162).mean((1, 2, 3)) * 255
    torch.testing.assert_close(grey, 60.0 * y + torch.arange(4).repeat(3), atol=0.01, rtol=0)


def test_a_part_of_radimagenet(tmp_path: Path, dataset: Build) -> None:
    data = radimagenet(dataset, write_radimagenet(tmp_path), limit=5)
    assert data.fingerprint()["sizes"]["train"] == 5


def test_radimagenet_missing_or_odd_is_one_line(tmp_path: Path, dataset: Build) -> None:
    with pytest.raises(UserError, match="Ask for it"):
        radimagenet(dataset, tmp_path / "hf").setup()
    root = write_radimagenet(tmp_path)
    with pytest.raises(UserError, match="classes"):
        radimagenet(dataset, root, classes=165).setup()
    (tmp_path / "radimagenet/test/XR").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "radimagenet/test/XR/0.png")
    with pytest.raises(UserError, match="XR"):
        radimagenet(dataset, root).setup()


def test_medmnists_sets_share_one_label_space(tmp_path: Path, dataset: Build) -> None:
    write_medmnist(tmp_path, "pathmnist", np.arange(6)[:, None] % 3, grey=False)
    findings = np.eye(6, 14, dtype=int)
    findings[2:] = 0
    root = write_medmnist(tmp_path, "chestmnist", findings, grey=True)
    data = dataset(
        "medmnist", root, sets=["pathmnist", "chestmnist"], size=28, input_shape=[3, 28, 28],
        classes=5, limit=4,
    )  # fmt: skip
    assert data.labels("test").tolist() == [0, 1, 2, 0, 1, 2, 4, 4, 3, 3, 3, 3]
    assert len(data.labels("train")) == 8
    x, _ = data.splits["test"]
    assert x.dtype == torch.uint8
    assert x[:, :, 3, 4].tolist() == [[n % 6] * 3 for n in range(12)]


def test_medmnist_missing_or_unknown_is_one_line(tmp_path: Path, dataset: Build) -> None:
    with pytest.raises(UserError, match="medmnist download"):
        dataset("medmnist", tmp_path / "hf", sets=["pathmnist"]).setup()
    with pytest.raises(UserError, match="organmnist3d"):
        dataset("medmnist", tmp_path, sets=["organmnist3d"])
