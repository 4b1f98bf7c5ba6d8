"""A folder of images of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repro.errors import UserError


def write(folder: Path, value: int, count: int = 10, size: tuple[int, int] = (6, 4)) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), (value, number, 0), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_classes_are_folders_and_every_class_is_in_every_part(
    tmp_path: Path, dataset: Callable[..., Any]
) -> None:
    write(tmp_path / "bright", 200)
    write(tmp_path / "dark", 10)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "dark" / "Thumbs.db").write_text("no image")
    data = dataset("image_folder", path=str(tmp_path), input_shape=[3, 4, 6], val_size=0.25)
    sizes = {name: len(y) for name, (_, y) in data.splits.items()}
    assert sizes == {"train": 12, "val": 4, "test": 4}
    for x_NCHW, y_N in data.splits.values():
        assert x_NCHW.dtype == torch.uint8
        assert torch.equal(x_NCHW[:, 0, 0, 0] < 100, y_N == 1)  # bright, dark: by name
        assert y_N.bincount().tolist() == [len(y_N) // 2] * 2
    seen = torch.cat([200 * x[:, 0, 0, 0].long() + x[:, 1, 0, 0] for x, _ in data.splits.values()])
    assert len(seen.unique()) == 20  # each image once
    x, y = next(iter(data.train_dataloader()))
    assert x.dtype == torch.float32
    assert x[y == 0][0, 0, 0, 0] == pytest.approx((200 / 255 - 0.5) / 0.25, abs=1e-5)


def test_folders_of_splits_are_kept_and_what_lacks_is_cut(
    tmp_path: Path, dataset: Callable[..., Any]
) -> None:
    for name in ("a", "b"):
        write(tmp_path / "train" / name, 100)
        write(tmp_path / "test" / name, 50, count=3)
    data = dataset("image_folder", path=str(tmp_path), input_shape=[1, 2, 3], val_size=0.2)
    assert {name: len(y) for name, (_, y) in data.splits.items()} == {
        "train": 16,
        "val": 4,
        "test": 6,
    }
    assert data.splits["train"][0].shape[1:] == (1, 2, 3)  # grey, and resized


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, 100)
    before = dataset("image_folder", path=str(tmp_path)).fingerprint()
    assert before == dataset("image_folder", path=str(tmp_path)).fingerprint()
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "0.png")
    assert dataset("image_folder", path=str(tmp_path)).fingerprint() != before


def test_what_is_wrong_is_said(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"dataset.path=DIR"):
        dataset("image_folder")
    with pytest.raises(UserError, match="no images in"):
        dataset("image_folder", path=str(tmp_path)).setup()
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 1, count=1)
    with pytest.raises(UserError, match="Nothing can be set aside for test"):
        dataset("image_folder", path=str(tmp_path)).setup()
    write(tmp_path / "c", 1)
    shutil.rmtree(tmp_path / "b")
    write(tmp_path / "b", 1)
    with pytest.raises(UserError, match="classes=2, the data have classes=3"):
        dataset("image_folder", path=str(tmp_path), input_shape=[3, 4, 6]).setup()
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png is damaged"):
        dataset("image_folder", path=str(tmp_path)).setup()
