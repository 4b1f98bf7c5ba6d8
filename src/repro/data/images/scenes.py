"""Scenes for detection: digits on pieces of two photographs, and boxes around them; no download.

Targets are (N, M, 7): class (−1 for padding), x1, y1, x2, y2 in pixels, whether it stands for a
crowd, area.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from repro.data.base.iterators import generator_for
from repro.data.base.modules import Split, Splits, TensorData
from repro.data.images.photographs import FROM_SKLEARN, photograph
from repro.errors import UserError
from repro.knobs import Count, Inside, Natural, checked

INK = 0.25  # above which a point belongs to a digit's box
TRIES = 20  # places that are tried for a digit before it is left out


@checked
def scenes(
    name: str = "scenes",
    *,
    size: Annotated[int, Ge(24)],
    train_size: Count,
    val_size: Count,
    test_size: Count,
    digits: Count = 3,
    smallest: Annotated[int, Ge(8)] = 14,
    largest: Annotated[int, Ge(8)] = 28,
    overlap: Natural = 2,
    train_share: Inside = 0.6,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Images (N, 3, size, size), bytes, with 1 to ``digits`` digits of one class, and `targets`.

    Training scenes are cut from the left half of each photograph, those for validation from the
    upper right and those for testing from the lower right quarter. No digit is in two splits.

    Args:
        name: of the data set.
        size: edge of an image in pixels.
        train_size: scenes of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        digits: in one scene, at most.
        smallest: edge of a digit in pixels.
        largest: likewise.
        overlap: of two boxes, in pixels, along either axis, at most.
        train_share: of the digits; the others are halved between validation and test.
        data_seed: of all of this.
        facts: see `TensorData`.

    Raises:
        UserError: digits that do not fit.
    """
    if not smallest <= largest <= size:
        raise UserError(
            f"Data set '{name}': smallest={smallest}, largest={largest} and size={size} have to"
            " rise."
        )

    def load() -> Splits:
        pools = _digit_pools(train_share, data_seed)
        return {
            split: _drawn(
                _regions(split, size),
                pools[split],
                generator_for(data_seed, 1, number),
                count,
                (size, digits, smallest, largest, overlap),
            )
            for number, (split, count) in enumerate(
                {"train": train_size, "val": val_size, "test": test_size}.items()
            )
        }

    shape: dict[str, Any] = {"task": "detection", "input_shape": (3, size, size)}
    return TensorData(name, load, **{**shape, **facts})


def _digit_pools(train_share: float, seed: int) -> dict[str, Tensor]:
    """Digits (N, 8, 8) in [0, 1] by split."""
    images = torch.from_numpy(load_digits().images).float() / 16
    images = images[torch.randperm(len(images), generator=generator_for(seed, 0))]
    first = int(train_share * len(images))
    second = (first + len(images)) // 2
    return {"train": images[:first], "val": images[first:second], "test": images[second:]}


def _regions(split: str, size: int) -> list[Tensor]:
    """The part of each photograph that a split is cut from, (3, H, W) in [0, 1].

    Raises:
        UserError: the part is smaller than a scene.
    """
    found = []
    for photo in map(photograph, FROM_SKLEARN):
        height, width = photo.shape[1] // 2, photo.shape[2] // 2
        region = {
            "train": photo[:, :, :width],
            "val": photo[:, :height, width:],
            "test": photo[:, height:, width:],
        }[split]
        if size > height:
            raise UserError(f"Scenes of {size} pixels do not fit photographs: at most {height}.")
        found.append(region)
    return found


def _drawn(
    regions: list[Tensor],
    pool: Tensor,
    generator: torch.Generator,
    count: int,
    sizes: tuple[int, int, int, int, int],
) -> Split:
    """Scenes and their targets."""
    size, digits, *_ = sizes
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    targets = torch.zeros(count, digits, 7)
    targets[..., 0] = -1

    def whole(low: int, high: int) -> int:
        """A random number from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=generator))

    for number in range(count):
        region = regions[whole(0, len(regions) - 1)]
        top, left = (whole(0, edge - size) for edge in region.shape[1:])
        scene = region[:, top : top + size, left : left + size].clone()
        boxes: list[list[float]] = []
        for _ in range(whole(1, digits)):
            box = _add_digit(scene, pool[whole(0, len(pool) - 1)], boxes, sizes, whole, generator)
            boxes += [] if box is None else [box]
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            targets[number, place] = torch.tensor([0, x1, y1, x2, y2, 0, (x2 - x1) * (y2 - y1)])
        images[number] = (255 * scene).round()
    return images, targets


def _add_digit(
    scene: Tensor,
    digit: Tensor,
    boxes: list[list[float]],
    sizes: tuple[int, int, int, int, int],
    whole: Any,
    generator: torch.Generator,
) -> list[float] | None:
    """Paints a digit where it hides no other, and returns its box; None if it fits nowhere."""
    size, _, smallest, largest, overlap = sizes
    edge = whole(smallest, largest)
    ink = F.interpolate(digit[None, None], (edge, edge), mode="bilinear")[0, 0]
    rows, columns = ((ink > INK).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    colour = torch.rand(3, 1, 1, generator=generator)
    for _ in range(TRIES):
        top, left = whole(0, size - edge), whole(0, size - edge)
        box = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
        if all(
            min(box[2], other[2]) - max(box[0], other[0]) <= overlap
            or min(box[3], other[3]) - max(box[1], other[1]) <= overlap
            for other in boxes
        ):
            part = scene[:, top : top + edge, left : left + edge]
            part += ink * (colour - part)
            return [float(edge) for edge in box]
    return None
