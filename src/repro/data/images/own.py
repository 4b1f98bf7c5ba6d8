"""Images of one's own: a folder a class, cut into train, val and test unless it says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from repro.data.base.files import sha256_of
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData
from repro.data.images.hub import open_image
from repro.data.tables.bundled import SPLIT_SEED
from repro.errors import UserError
from repro.knobs import Inside, checked

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@checked
def image_folder(
    name: str,
    *,
    path: str | None,
    input_shape: Sequence[int],
    test_size: Inside = 0.2,
    val_size: Inside = 0.1,
    split: int = 0,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """Images in ``<path>/<class>/``, or in ``<path>/train/<class>/`` and so on.

    Classes are numbered in the order of their names. Images are resized to ``input_shape``.

    Args:
        name: of the data set.
        path: the folder.
        input_shape: (1, H, W) reads images as grey, (3, H, W) as colours.
        test_size: share of all images, where the folder has no ``test``.
        val_size: share of what is not test, where the folder has no ``val``.
        split: another number cuts in another way.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    A `UserError` says so if there are no images, or one is damaged (in `TensorData.setup`).

    Raises:
        UserError: no folder is named.
    """
    if path is None:
        raise UserError(f"Data set '{name}' takes a folder of images: dataset.path=DIR.")
    folder = Path(path).expanduser()

    def load() -> Splits:
        parts = {part: _of_classes(folder / part) for part in SPLIT_NAMES}
        found = {part: files for part, files in parts.items() if files}
        if "train" not in found:
            found = {"train": _of_classes(folder)}
        if not found["train"]:
            raise UserError(
                f"Data set '{name}': no images in {folder}. It takes a folder a class: "
                f"{folder}/<class>/*.png, or {folder}/train/<class>/*.png and so on."
            )
        classes = sorted({label for files in found.values() for _, label in files})
        number = {label: index for index, label in enumerate(classes)}
        listed = _cut(found, test_size, val_size, split)
        return {
            part: (
                _decoded([file for file, _ in files], input_shape),
                torch.tensor([number[label] for _, label in files]),
            )
            for part, files in listed.items()
        }

    def source_digest() -> str:
        return sha256_of(sorted(file for file in folder.rglob("*") if _is_image(file)))

    return TensorData(
        name, load, input_shape=input_shape, source_digest=source_digest, info=info, **facts
    )


Listed = list[tuple[Path, str]]  # a file and its class


def _of_classes(folder: Path) -> Listed:
    files = sorted(file for file in folder.glob("*/*") if _is_image(file))
    return [(file, file.parent.name) for file in files]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _cut(found: Mapping[str, Listed], test: float, val: float, split: int) -> dict[str, Listed]:
    """Cuts what has no folder of its own out of the training images, by class.

    Raises:
        UserError: a class has too few.
    """
    parts = dict(found)
    for part, share in (("test", test), ("val", val)):
        if part in parts:
            continue
        labels = [label for _, label in parts["train"]]
        try:
            parts["train"], parts[part] = train_test_split(
                parts["train"], test_size=share, stratify=labels, random_state=SPLIT_SEED + split
            )
        except ValueError as error:
            raise UserError(f"Nothing can be set aside for {part}: {error}") from error
    return parts


def _decoded(files: Sequence[Path], input_shape: Sequence[int]) -> Tensor:
    """Reads images as (N, C, H, W) bytes.

    Raises:
        UserError: one is damaged.
    """
    channels, height, width = input_shape
    images = []
    for file in files:
        try:
            image = open_image(file.read_bytes()).convert("L" if channels == 1 else "RGB")
        except OSError as error:
            raise UserError(f"{file} is damaged, or no image.") from error
        images.append(np.asarray(image.resize((width, height))).reshape(height, width, channels))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
