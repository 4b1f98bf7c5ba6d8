"""COCO in the layout of the hub's parquet files: whose label a photograph gets, and its middle."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from repro.data.images.coco import largest_object
from repro.errors import UserError

SIZE = {"width": 64, "height": 48}
SMALL = (5, [0.0, 0.0, 12.0, 12.0])  # 4.7 % of it


def photograph(value: int) -> bytes:
    """Of one grey, with a black frame that the middle square leaves out."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[2:-2, 10:-10] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row(value: int, *objects: tuple[int, list[float]]) -> dict[str, Any]:
    categories, boxes = [k for k, _ in objects], [box for _, box in objects]
    return {
        "image_id": value,
        "image": {"bytes": photograph(value), "path": None},
        **SIZE,
        "objects": {"bbox_id": categories, "category": categories, "bbox": boxes},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven photographs; what is too small, or nothing, has no label."""
    folder = tmp_path / "detection-datasets" / "coco" / "data"
    folder.mkdir(parents=True)
    rows = [
        row(10, (7, [0.0, 0.0, 32.0, 24.0]), (3, [0.0, 0.0, 10.0, 10.0])),
        row(20, (79, [10.0, 10.0, 60.0, 40.0])),
        row(30, SMALL),
        row(40),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00002-0a1b.parquet")
    more = [row(50 + n, (n, [0.0, 0.0, 64.0, 48.0])) for n in range(3)]
    parquet.write_table(pa.Table.from_pylist(more), folder / "train-00001-of-00002-2c3d.parquet")
    parquet.write_table(pa.Table.from_pylist(more[:2]), folder / "val-00000-of-00001-4e5f.parquet")
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))


def test_labels_are_those_of_the_largest_objects(root: Path, dataset: Callable[..., Any]) -> None:
    for _ in range(2):  # decoded, and read from the cache
        data = dataset("coco_objects", root, val_size=2, input_shape=[3, 16, 16])
        parts = [data.splits[split] for split in ("train", "val")]
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        found = {int(picture[0, 0, 0]): int(label) for picture, label in zip(x, y, strict=True)}
        assert found == {10: 7, 20: 79, 50: 0, 51: 1, 52: 2}
        assert x.dtype == torch.uint8
        assert all(len(picture.unique()) == 1 for picture in x)  # the frame is cut away
        assert sorted(data.splits["test"][1].tolist()) == [0, 1]


def test_boxes_by_hand() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 10.0, 45.0]]
    assert largest_object(boxes, [1, 2], 1000, 0.1) == 2
    assert largest_object(boxes, [1, 2], 1000, 0.21) is None
    assert largest_object([], [], 1000, 0.1) is None


def test_what_is_missing_or_too_little_is_a_clear_message(
    root: Path, tmp_path: Path, dataset: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match="coco_objects' is missing"):
        dataset("coco_objects", tmp_path / "elsewhere").setup()
    with pytest.raises(UserError, match="val_size=5 of 5"):
        dataset("coco_objects", root, val_size=5, input_shape=[3, 16, 16]).setup()
    folder = root / "small" / "detection-datasets" / "coco" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist([row(30, SMALL)]), folder / "train-0.parquet")
    with pytest.raises(UserError, match="no photograph has an object that large"):
        dataset("coco_objects", root / "small", val_size=1, input_shape=[3, 16, 16]).setup()
