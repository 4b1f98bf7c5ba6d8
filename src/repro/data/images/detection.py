"""COCO and Pascal VOC as published: photographs, boxes and outlines of objects.

Targets are those of `repro.data.images.scenes`.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from repro.data.base.files import INSTALL, data_root, sha256_of
from repro.data.base.iterators import Batch, generator_for
from repro.data.base.modules import SPLIT_NAMES, check_fact
from repro.data.images.hub import StreamIterator
from repro.data.images.mosaic import GREY, Augment, Scene, resized
from repro.errors import UserError
from repro.knobs import Count, checked

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A photograph that is not read yet, and its objects.

    Attributes:
        source: the file, or what it holds.
        size: width and height in pixels.
        targets: see `repro.data.images.scenes`.
        outlines: of each object, polygons (points, 2); none where they are not known.
    """

    source: Path | bytes
    size: tuple[int, int]
    targets: np.ndarray  # M7
    outlines: Sequence[Sequence[np.ndarray]]

    def read(self) -> Scene:
        """Decodes it.

        Raises:
            UserError: Pillow is not installed, or the file is missing or damaged.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise UserError(f"Decoding images needs Pillow: {INSTALL}") from error
        source = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(source) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise UserError(f"{self.source!s} is missing or damaged: copy it again.") from error
        return Scene(image, self.targets.copy(), [list(each) for each in self.outlines])


def _require(file: Path, what: str) -> None:
    """Raises a `UserError` where a file or folder is missing.

    Raises:
        UserError: it is.
    """
    if not file.exists():
        raise UserError(
            f"{what} is missing: no {file}. Unpack the published archives there, or point"
            " `data.root=` (or REPRO_DATA_ROOT) at the folder beside that folder."
        )


def _targets(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 7)


def read_coco(folder: Path, split: str) -> list[Picture]:
    """Reads ``annotations/instances_<split>.json``; photographs are in ``<split>``.

    Classes are numbered in the order of their published numbers, which have gaps.

    Args:
        folder: of COCO.
        split: ``train2017`` or ``val2017``.

    A `UserError` says so if the file is missing.
    """
    file = folder / "annotations" / f"instances_{split}.json"
    _require(file, "COCO")
    content = json.loads(file.read_text(encoding="utf-8"))
    numbers = {
        c["id"]: n for n, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    rows: dict[int, list[list[float]]] = defaultdict(list)
    outlines: dict[int, list[list[np.ndarray]]] = defaultdict(list)
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        if width <= 0 or height <= 0:
            continue
        label = numbers[each["category_id"]]
        crowd = each.get("iscrowd", 0)
        rows[each["image_id"]].append([label, x, y, x + width, y + height, crowd, each["area"]])
        drawn = each.get("segmentation", [])  # of crowds it is a mask
        polygons = [np.array(p).reshape(-1, 2) for p in drawn] if isinstance(drawn, list) else []
        outlines[each["image_id"]].append(polygons)
    return [
        Picture(
            folder / split / image["file_name"],
            (image["width"], image["height"]),
            _targets(rows[image["id"]]),
            outlines[image["id"]],
        )
        for image in content["images"]
    ]


def read_voc(folder: Path, split: str) -> list[Picture]:
    """Reads ``VOC<year>/ImageSets/Main/<name>.txt`` and what it lists.

    Objects marked as difficult are left out of training, and are crowds (neither right nor wrong)
    in the test.

    Args:
        folder: ``VOCdevkit``.
        split: ``2007_trainval``, ``2012_trainval``, ``2007_test`` or several with ``+``.

    A `UserError` says so if a file is missing.
    """
    pictures = []
    for part in split.split("+"):
        year, name = part.split("_")
        place = folder / f"VOC{year}"
        listed = place / "ImageSets" / "Main" / f"{name}.txt"
        _require(listed, "Pascal VOC")
        for number in listed.read_text(encoding="utf-8").split():
            root = ElementTree.parse(place / "Annotations" / f"{number}.xml").getroot()
            width, height = (int(root.findtext(f"size/{e}", "0")) for e in ("width", "height"))
            rows = []
            for each in root.iter("object"):
                # Published pixels count from 1 and are both included.
                x1, y1, x2, y2 = (
                    float(each.findtext(f"bndbox/{e}", "0"))
                    for e in ("xmin", "ymin", "xmax", "ymax")
                )
                hard = int(each.findtext("difficult", "0"))
                label = VOC_CLASSES.index(each.findtext("name", ""))
                box = [x1 - 1, y1 - 1, x2, y2]
                rows.append([label, *box, hard, (box[2] - box[0]) * (box[3] - box[1])])
            file = place / "JPEGImages" / f"{number}.jpg"
            pictures.append(Picture(file, (width, height), _targets(rows), [[] for _ in rows]))
    return pictures


READERS = {"coco": read_coco, "voc": read_voc}


class TrainingScenes(Dataset[tuple[Tensor, Tensor]]):
    """Augmented training images, each a pure function of (seed, epoch, index).

    Args:
        pictures: all of the split.
        augment: how.
        size: edge of an image.
        seed: of the augmentation.
    """

    def __init__(self, pictures: list[Picture], augment: Augment, size: int, seed: int) -> None:
        self.pictures, self.augment, self.size, self.seed = pictures, augment, size, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """((3, size, size) uint8, (M, 7)) for (epoch, index); crowds teach nothing."""
        epoch, index = key
        draw = np.random.default_rng((self.seed, epoch, index))

        def read(number: int) -> Scene:
            return self.pictures[number].read().without_crowds()

        return self.augment(read, index, len(self.pictures), self.size, epoch, draw).tensors()


class WholeScenes(Dataset[tuple[Tensor, Tensor]]):
    """Images whose longest side is ``size``, wide ones first, so that batches need little padding.

    Args:
        pictures: all of the split.
        size: longest side.
    """

    def __init__(self, pictures: list[Picture], size: int) -> None:
        self.pictures = sorted(pictures, key=lambda p: p.size[1] / p.size[0])
        self.size = size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """((3, H, W) uint8, (M, 7)) for (epoch, index)."""
        return resized(self.pictures[key[1]].read(), self.size, smooth=True).tensors()


class SceneIterator(StreamIterator):
    """A `StreamIterator` of images of different sizes, on a grey canvas as large as they need.

    Args:
        stride: the canvas of a batch that is not square has multiples of it, half of one to spare.
        square: edge of the canvas, in training; None: see ``stride``.
        arguments: see `StreamIterator`.
    """

    def __init__(self, *arguments: Any, stride: int, square: int | None = None, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.stride, self.square = stride, square

    @override
    def _collated(self, examples: list[tuple[Tensor, Tensor]]) -> Batch:
        images, targets = zip(*examples, strict=True)
        height, width = (
            self.square or self._canvas(max(i.shape[axis] for i in images)) for axis in (1, 2)
        )
        x = torch.full((len(images), 3, height, width), GREY, dtype=torch.uint8)
        y = torch.zeros(len(images), max(1, *(len(t) for t in targets)), 7)
        y[..., 0] = -1
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
            x[number, :, top : top + image.shape[1], left : left + image.shape[2]] = image
            y[number, : len(target)] = target
            y[number, : len(target), 1:5] += torch.tensor([left, top, left, top])
        return x, y

    def _canvas(self, edge: int) -> int:
        """The smallest multiple of the stride with half a stride to spare."""
        return self.stride * -(-(2 * edge + self.stride) // (2 * self.stride))


class DetectionFiles(LightningDataModule):
    """A benchmark of detection, read as published.

    Args:
        name: of the data set.
        layout: how it lies on disk: ``coco`` or ``voc``.
        folder: beside the folder of data sets.
        train_split: see `read_coco` and `read_voc`.
        test_split: likewise.
        input_shape: (3, S, S) of a training image; the longest side of others is S.
        classes: K, checked against the objects.
        val_size: training pictures set aside for validation, the same for every run.
        batch_size: training images per step and process.
        eval_batch_size: images per validation or test step.
        workers: reading processes for each process that trains.
        prefetch: batches that each of them reads ahead.
        seed: of the training order and the augmentation.
        augment: arguments of `Augment`.
        task: always ``detection``.
        limit: train on the first this many pictures; None: on all.
        stride: of the canvas in validation and test.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        info: for `repro.data.base.catalog`.
    """

    name: str

    @checked
    def __init__(
        self,
        name: str,
        *,
        layout: Literal["coco", "voc"],
        folder: str,
        train_split: str,
        test_split: str,
        input_shape: Sequence[int],
        classes: Count,
        val_size: Count,
        batch_size: Count,
        eval_batch_size: Count,
        augment: Mapping[str, Any],
        workers: int = 0,
        prefetch: Count = 2,
        seed: int = 0,
        task: Literal["detection"] = "detection",
        limit: Count | None = None,
        stride: Count = 32,
        root: str | None = None,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        super().__init__()
        self.name, self.task, self.classes, self.seed = name, task, classes, seed
        self.folder = data_root(root).parent / folder
        self.layout, self.train_split, self.test_split = layout, train_split, test_split
        self.input_shape, self.stride = tuple(input_shape), stride
        self.val_size, self.limit = val_size, limit
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.prefetch = workers, prefetch
        self.augment = Augment(**augment)
        self.pictures: dict[str, list[Picture]] = {}

    def read(self, split: str) -> list[Picture]:
        """All pictures of a published split."""
        return READERS[self.layout](self.folder, split)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Reads what is known of the pictures, not yet the pictures; does so once.

        Raises:
            UserError: files are missing, or there are not as many classes or pictures as stated.
        """
        if self.pictures:
            return
        known, test = self.read(self.train_split), self.read(self.test_split)
        labels = np.concatenate([p.targets[:, 0] for p in known] or [np.zeros(0)])
        check_fact(self.name, "classes", self.classes, int(labels.max(initial=-1)) + 1)
        if self.val_size >= len(known):
            raise UserError(
                f"Data set '{self.name}': val_size={self.val_size} of {len(known)} training"
                f" pictures. Choose 1 to {len(known) - 1}."
            )
        order = torch.randperm(len(known), generator=generator_for(0)).tolist()
        rest = order[self.val_size :][: self.limit]
        self.pictures = {
            "train": [known[n] for n in rest],
            "val": [known[n] for n in order[: self.val_size]],
            "test": test,
        }

    def _iterator(self, examples: Any, batch_size: int, **how: Any) -> SceneIterator:
        return SceneIterator(
            examples,
            batch_size,
            workers=self.workers,
            prefetch=self.prefetch,
            stride=self.stride,
            **how,
        )

    def train_dataloader(self) -> SceneIterator:
        """Returns shuffled, augmented batches; a last, smaller batch is left out."""
        self.setup()
        size = self.input_shape[1]
        scenes = TrainingScenes(self.pictures["train"], self.augment, size, self.seed)
        return self._iterator(
            scenes, self.batch_size, shuffle=True, drop_last=True, seed=self.seed, square=size
        )

    def _whole(self, split: str) -> SceneIterator:
        self.setup()
        scenes = WholeScenes(self.pictures[split], self.input_shape[1])
        return self._iterator(scenes, self.eval_batch_size)

    def val_dataloader(self) -> SceneIterator:
        """Returns the pictures set aside for validation."""
        return self._whole("val")

    def test_dataloader(self) -> SceneIterator:
        """Returns the published split that is tested on."""
        return self._whole("test")

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` over what describes the pictures, and ``sizes``."""
        self.setup()
        pattern = "annotations/*.json" if self.layout == "coco" else "*/ImageSets/Main/*.txt"
        sha = sha256_of(sorted(self.folder.glob(pattern)))
        sizes = {split: len(self.pictures[split]) for split in SPLIT_NAMES}
        return {"name": self.name, "sha256": sha, "sizes": sizes}
