"""MS COCO as a problem of one label: photographs with a large object, in their surroundings.

Papers that classify COCO's photographs have to say which of the objects in one is meant. Here it
is the one whose box is largest, and photographs without a large one are left out. Whole photographs
are shown, because a crop to the object would take its context away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from repro.data.base.files import HubFiles, cached_arrays, read_table, sha256_of
from repro.data.base.iterators import generator_for
from repro.data.base.modules import Splits, TensorData
from repro.data.images.hub import SPLIT_SEED, open_image
from repro.errors import UserError
from repro.knobs import Count, Share, checked

COLUMNS = ("image", "width", "height", "objects")
MARGIN = 256 / 224  # photographs are resized to this times the side of the crop out of their middle


@checked
def coco_objects(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    val_size: Count,
    smallest: Share = 0.1,
    limit: Count | None = None,
    root: str | None = None,
    **facts: Any,
) -> TensorData:
    """Photographs of COCO 2017 with the category of their largest object, in memory as bytes.

    Read from parquet files with the columns ``image``, ``width``, ``height`` and ``objects`` (lists
    ``category``, from 0 to 79, and ``bbox``, corners left, top, right, bottom in pixels). The hub's
    ``train`` is cut into train and val; its ``val`` is the test split, as COCO keeps the labels of
    its own test pictures.

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        input_shape: (3, S, S): the short side is resized to S times 256/224, the middle cut out.
        val_size: training photographs set aside for validation, the same for every run.
        smallest: share of the photograph's area that the largest box covers at least.
        limit: train on the first this many of what is left; None for all.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        facts: see `TensorData`.

    A `UserError` says so if files are missing or damaged (in `TensorData.setup`).
    """
    files = HubFiles.of(name, info, root)

    def source_digest() -> str:
        return sha256_of([*files.split("train"), *files.split("val")], contents=False)

    def load() -> Splits:
        parts = {}
        for split in ("train", "val"):
            paths = files.split(split)
            key = f"{name}-{split}-{input_shape[1]}-{smallest:g}-{sha256_of(paths, False)[:32]}"
            made = cached_arrays(key, partial(_decoded, paths, input_shape[1], smallest))
            parts[split] = torch.from_numpy(made["x"]), torch.from_numpy(made["y"])
        x, y = parts["train"]
        if val_size >= len(y):
            raise UserError(
                f"Data set '{name}': val_size={val_size} of {len(y)} training photographs."
            )
        return {
            "train": (x[val_size:][:limit], y[val_size:][:limit]),
            "val": (x[:val_size], y[:val_size]),
            "test": parts["val"],
        }

    return TensorData(
        name, load, input_shape=input_shape, source_digest=source_digest, info=info, **facts
    )


def largest_object(
    boxes: Sequence[Sequence[float]], categories: Sequence[int], area: float, smallest: float
) -> int | None:
    """The category of the largest box; None where it covers less than a share of the area.

    Args:
        boxes: left, top, right, bottom of each.
        categories: of each.
        area: of the photograph.
        smallest: share of it.
    """
    sizes = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    if not sizes or max(sizes) < smallest * area:
        return None
    return categories[int(np.argmax(sizes))]


def _decoded(paths: Sequence[Any], side: int, smallest: float) -> dict[str, np.ndarray]:
    """Pictures and labels, in one fixed random order.

    Raises:
        UserError: no object is large enough.
    """
    found = list(_labelled(paths, side, smallest))
    if not found:
        raise UserError(f"{paths[0].parent}: no photograph has an object that large.")
    order = torch.randperm(len(found), generator=generator_for(SPLIT_SEED)).tolist()
    return {
        "x": np.stack([found[place][0] for place in order]),
        "y": np.array([found[place][1] for place in order], dtype=np.int64),
    }


def _labelled(paths: Sequence[Any], side: int, smallest: float) -> Iterator[tuple[np.ndarray, int]]:
    """One file after the other: all encoded photographs at once would take 20 GB.

    Raises:
        UserError: a photograph is damaged.
    """
    for path in paths:
        for row in read_table([path], COLUMNS).to_pylist():
            objects = row["objects"]
            area = row["width"] * row["height"]
            label = largest_object(objects["bbox"], objects["category"], area, smallest)
            if label is not None:
                try:
                    yield _middle(row["image"]["bytes"], side), label
                except OSError as error:
                    raise UserError(f"{path}: a photograph is damaged.") from error


def _middle(encoded: bytes, side: int) -> np.ndarray:
    """The square in the middle of a photograph, (3, side, side) bytes."""
    from PIL import Image

    image = open_image(encoded).convert("RGB")
    width, height = image.size
    edge = min(width, height) / MARGIN
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    square = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
