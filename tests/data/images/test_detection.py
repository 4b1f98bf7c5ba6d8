"""Scenes and their boxes; COCO's and Pascal VOC's published layouts; augmentation moves boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_files import RED, scene, write_coco, write_voc
from torch import Tensor

from repro.data.images.mosaic import Augment, Scene, blended, cut, mirrored, pasted, tiled
from repro.errors import UserError


def red_box(image: Any) -> list[int]:
    """The tight box of what is red."""
    pixels = np.array(image).astype(int)
    red = (pixels[..., 0] > 120) & (pixels[..., 1] < 60)
    rows, columns = (np.flatnonzero(red.any(axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.fixture
def coco(tmp_path: Path, dataset: Callable[..., Any]) -> Any:
    write_coco(tmp_path, "train2017", 6, ((64, 48), (40, 64)))
    write_coco(tmp_path, "val2017", 3, ((64, 48), (40, 64)))
    return dataset(
        "coco",
        tmp_path / "hf",
        classes=2,
        val_size=2,
        input_shape=[3, 64, 64],
        batch_size=2,
        eval_batch_size=2,
        workers=0,
    )


def first(batches: Any) -> tuple[Tensor, Tensor]:
    batch: tuple[Tensor, Tensor] = next(iter(batches))
    return batch


def test_scenes_are_what_their_boxes_say(dataset: Callable[..., Any]) -> None:
    data = dataset("scenes", train_size=30, val_size=5, test_size=8)
    x, y = data.splits["train"]
    assert x.shape == (30, 3, 64, 64)
    assert x.dtype == torch.uint8
    real = y[..., 0] >= 0
    assert real.sum(1).min() >= 1
    boxes = y[real][:, 1:5]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    size = boxes[:, 2:] - boxes[:, :2]
    assert size.max() <= 28
    assert size.min() >= 2
    assert torch.equal(y[real][:, 6], size.prod(1))
    for one in y:
        kept = one[one[:, 0] >= 0, 1:5]
        for i in range(len(kept)):
            for j in range(i):
                low, high = torch.maximum(kept[i], kept[j])[:2], torch.minimum(kept[i], kept[j])[2:]
                assert (high - low).min() <= 2
    again = dataset("scenes", train_size=30, val_size=5, test_size=8)
    assert again.fingerprint() == data.fingerprint()
    with pytest.raises(UserError, match="rise"):
        dataset("scenes", size=32, largest=40)


def test_coco_in_its_layout(coco: Any) -> None:
    assert coco.fingerprint()["sizes"] == {"train": 4, "val": 2, "test": 3}
    x, y = first(coco.train_dataloader())
    assert x.shape == (2, 3, 64, 64)
    assert x.dtype == torch.uint8
    assert y.shape[2] == 7
    assert y[..., 5].eq(0).all()  # crowds teach nothing
    again, _ = first(coco.train_dataloader())
    assert torch.equal(x, again)
    batches = list(coco.test_dataloader())
    assert [len(images) for images, _ in batches] == [2, 1]
    wide, targets = batches[0]
    # The longest side is 64, and every batch has half a stride to spare.
    assert wide.shape == (2, 3, 64, 96)
    for image, target in zip(wide, targets, strict=True):
        thing, crowd = target[target[:, 0] >= 0]
        assert thing[0] in (0, 1)
        assert thing[1:5].tolist() == pytest.approx(red_box(image.permute(1, 2, 0)), abs=1)
        assert crowd[5:].tolist() == [1, 50]


def test_voc_in_its_layout(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    write_voc(tmp_path, "2007", {"trainval": ["1", "2"], "test": ["3"]})
    write_voc(tmp_path, "2012", {"trainval": ["4"]})
    data = dataset(
        "voc", tmp_path / "hf", val_size=1, input_shape=[3, 64, 64], batch_size=1, workers=0
    )
    assert data.fingerprint()["sizes"] == {"train": 2, "val": 1, "test": 1}
    x, y = first(data.test_dataloader())
    assert y[0, :, 0].tolist() == [0, 19, 19]
    assert y[0, :, 5].tolist() == [0, 1, 0]
    assert y[0, 0, 1:5].tolist() == pytest.approx(red_box(x[0].permute(1, 2, 0)), abs=1)


def test_what_is_missing_or_wrong_is_said(
    tmp_path: Path, dataset: Callable[..., Any], coco: Any
) -> None:
    with pytest.raises(UserError, match="COCO is missing"):
        dataset("coco", tmp_path / "nowhere" / "hf").setup()
    with pytest.raises(UserError, match="Pascal VOC is missing"):
        dataset("voc", tmp_path / "nowhere" / "hf").setup()
    coco.classes = 3
    with pytest.raises(UserError, match="classes"):
        coco.setup()
    coco.classes, coco.val_size = 2, 6
    with pytest.raises(UserError, match="val_size"):
        coco.setup()
    coco.val_size = 1
    coco.setup()
    coco.pictures["val"][0].source.write_bytes(b"none")
    with pytest.raises(UserError, match="damaged"):
        first(coco.val_dataloader())


def still(**changes: Any) -> Augment:
    """An augmentation that changes nothing unless it is told to."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("mosaic", "mixup", "copy_paste", "hue", "saturation", "value", "translate", "scale",
         "mirror", "rare"), 0.0)  # fmt: skip
    return Augment(**{**nothing, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"mosaic": 1.0}, {"scale": 0.4, "translate": 0.1}, {"mirror": 1.0}, {"value": 0.1}],
)
def test_boxes_move_with_what_they_are_around(changes: dict[str, float]) -> None:
    augment, own, blank = still(**changes), scene((20, 14, 44, 34)), scene()
    for trial in range(6):
        draw = np.random.default_rng(trial)
        found = augment(lambda n: own if n == 0 else blank, 0, 4, 64, 0, draw)
        assert found.image.size == (64, 64)
        if len(found.targets) == 1:  # of mosaics some show nothing of it, or show it twice
            box = found.targets[0, 1:5].tolist()
            assert box == pytest.approx(red_box(found.image), abs=2)


def test_mosaics_stop_before_the_end() -> None:
    reads: list[int] = []

    def read(number: int) -> Scene:
        reads.append(number)
        return scene((20, 14, 44, 34))

    augment = still(mosaic=1.0, mixup=1.0, epochs=10, close=3)
    augment(read, 0, 9, 64, 6, np.random.default_rng(0))
    assert len(reads) == 8
    augment(read, 0, 9, 64, 7, np.random.default_rng(0))
    assert len(reads) == 9


def test_pieces_of_the_augmentation() -> None:
    one = scene((4, 6, 24, 20))
    tiles = tiled([one] * 4, 64, np.array([64, 48]))
    assert tiles.targets[:, 1:3].tolist() == [[4, 6], [68, 6], [4, 54], [68, 54]]
    assert red_box(mirrored(one).image) == mirrored(one).targets[0, 1:5].tolist() == [40, 6, 60, 20]
    mixed = blended(one, scene((30, 30, 40, 40)), 0.75)
    assert len(mixed.targets) == len(mixed.outlines) == 2
    assert np.array(mixed.image)[10, 10, 0] == pytest.approx(0.75 * 250, abs=2)
    both = pasted(one, 1.0, np.random.default_rng(0))
    assert both.targets[:, 1].tolist() == [4, 40]
    assert np.array(both.image)[10, 50].tolist() == list(RED)
    hidden = pasted(scene((20, 6, 44, 20)), 1.0, np.random.default_rng(0))
    assert len(hidden.targets) == 1  # it would cover itself


def test_what_is_cut_off_too_far_is_no_object() -> None:
    boxes = [(-10, 0, 20, 30), (-99, 0, 1, 30), (30, 30, 60, 60)]
    whole = scene(size=(64, 64))
    rows = np.array([[0, *box, 0, 1] for box in boxes], dtype=np.float32)
    kept = cut(Scene(whole.image, rows, [[], [], []]), 50)
    assert kept.targets[:, 1:5].tolist() == [[0, 0, 20, 30], [30, 30, 50, 50]]
    outline = np.array([[30, 30], [40, 30], [60, 60], [30, 40]])
    bent = cut(Scene(whole.image, rows[2:], [[outline]]), 50)
    assert bent.targets[0, 1:5].tolist() == [30, 30, 50, 50]
