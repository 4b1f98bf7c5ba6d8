"""Image benchmarks from local parquet files: small ones decoded once into memory, large streamed.

Small sets are kept as uint8 and normalised batch by batch, which takes a quarter of the memory of
floats and lets the augmentation pad with black, as papers do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from typing_extensions import override

from repro.data.base.files import (
    INSTALL,
    HubFiles,
    cache_home,
    cached_arrays,
    read_table,
    sha256_of,
)
from repro.data.base.iterators import Batch, BatchIterator, generator_for
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData, check_fact
from repro.data.base.transforms import Normalise
from repro.errors import UserError
from repro.knobs import Count, Natural, checked

# The order out of which validation examples and limited training sets are cut: never the run's.
SPLIT_SEED = 0


def open_image(data: bytes) -> Any:
    """Opens an encoded image with Pillow, lazily imported.

    Bytes that are no image are Pillow's `OSError`.

    Raises:
        UserError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"Decoding images needs Pillow: {INSTALL}") from error
    return Image.open(io.BytesIO(data))


def _decode(
    files: Sequence[Path], image_column: str, label_column: str, mode: str
) -> dict[str, np.ndarray]:
    table = read_table(files, [image_column, label_column])
    encoded = table.column(image_column).combine_chunks().field("bytes").to_pylist()
    images: list[np.ndarray] = []
    for data in encoded:
        try:
            images.append(np.asarray(open_image(data).convert(mode)))
        except OSError as error:
            raise UserError(f"{files[0].parent}: image {len(images)} is damaged.") from error
    try:
        x_NHWC = np.stack(images).reshape(len(images), *images[0].shape[:2], -1)
    except ValueError as error:
        raise UserError(f"{files[0].parent}: images differ in size; stream them.") from error
    x_NCHW = np.ascontiguousarray(x_NHWC.transpose(0, 3, 1, 2))
    return {"x": x_NCHW, "y": table.column(label_column).to_numpy().astype(np.int64)}


@lru_cache(maxsize=4)
def _decoded(
    name: str, sha: str, files: tuple[Path, ...], image_column: str, label_column: str, mode: str
) -> tuple[Tensor, Tensor]:
    """Decodes files in one fixed random order; kept for the life of the process and on disk."""

    def make() -> dict[str, np.ndarray]:
        arrays = _decode(files, image_column, label_column, mode)
        # Shuffled here, so that validation and limited training sets are views instead of copies.
        order = torch.randperm(len(arrays["y"]), generator=generator_for(SPLIT_SEED)).numpy()
        return {key: array[order] for key, array in arrays.items()}

    arrays = cached_arrays(f"{name}-{mode}-{sha[:32]}", make)
    return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def _check_sizes(name: str, available: int, val_size: int) -> None:
    if not 0 < val_size < available:
        raise UserError(
            f"Data set '{name}': val_size={val_size} of {available} training examples."
            f" Choose 1 to {available - 1}."
        )


@checked
def hub_images(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    val_size: int,
    image_column: str = "image",
    label_column: str = "label",
    root: str | None = None,
    limit: Count | None = None,
    **facts: Any,
) -> TensorData:
    """A small image classification benchmark with hub splits ``train`` and ``test``.

    Validation examples are cut from the training split in one fixed random order, the same for
    every run; the test split is only ever the published one.

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        input_shape: (1, H, W) reads images as grey, (3, H, W) as colours.
        val_size: number of training examples set aside for validation.
        image_column: of the parquet files.
        label_column: of the parquet files.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        limit: train on the first this many of what is left; None for all.
        facts: see `TensorData`.

    A `UserError` says so if files are missing or damaged, or a fact is wrong (in
    `TensorData.setup`).
    """
    files = HubFiles.of(name, info, root)
    mode = "L" if input_shape[0] == 1 else "RGB"

    def source_digest() -> str:
        return sha256_of([*files.split("train"), *files.split("test")])

    def load() -> Splits:
        parts = {}
        for split in ("train", "test"):
            paths = tuple(files.split(split))
            parts[split] = _decoded(
                f"{name}-{split}", sha256_of(paths), paths, image_column, label_column, mode
            )
        x, y = parts["train"]
        _check_sizes(name, len(y), val_size)
        return {
            "train": (x[val_size:][:limit], y[val_size:][:limit]),
            "val": (x[:val_size], y[:val_size]),
            "test": parts["test"],
        }

    return TensorData(
        name, load, input_shape=input_shape, source_digest=source_digest, info=info, **facts
    )


class ImageExamples(Dataset[tuple[Tensor, Tensor]]):
    """Images decoded, cropped and resized one at a time, in the worker that asks for them.

    Training crops follow Szegedy et al., "Going Deeper with Convolutions", 2015: a random 8 to
    100 % of the area with an aspect ratio of 3/4 to 4/3, resized, flipped half of the time.
    Evaluation takes the central square of the short side times 224 / 256, resized.

    Args:
        table: a `datasets.Dataset`.
        indices: (N,) rows of `table` that belong here.
        image_column: of the table; its items are undecoded.
        label_column: of the table.
        size: height and width of what comes out.
        train: random crops instead of the central one.
        seed: of the crops, with epoch and example.
    """

    def __init__(
        self,
        table: Any,
        indices: Tensor,
        *,
        image_column: str,
        label_column: str,
        size: int,
        train: bool,
        seed: int = 0,
    ):
        self.table = table
        self.indices = indices
        self.image_column = image_column
        self.label_column = label_column
        self.size = size
        self.train = train
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns ((3, size, size) uint8, () int64) for (epoch, index)."""
        from PIL import Image

        epoch, index = key
        row = self.table[int(self.indices[index])]
        image = open_image(row[self.image_column]["bytes"]).convert("RGB")
        box, flip = self._random_box(image.size, epoch, index) if self.train else (None, False)
        box = box or self._central_box(image.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return x_CHW, torch.tensor(row[self.label_column])

    @staticmethod
    def _central_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
        width, height = size
        side = min(size) * 224 / 256
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def _random_box(
        self, size: tuple[int, int], epoch: int, index: int
    ) -> tuple[tuple[float, float, float, float] | None, bool]:
        draw = np.random.default_rng((self.seed, epoch, index))
        flip = bool(draw.random() < 0.5)
        width, height = size
        for _ in range(10):  # very long images may have no such crop
            area = width * height * draw.uniform(0.08, 1)
            ratio = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left = int(draw.integers(width - w + 1))
                top = int(draw.integers(height - h + 1))
                return (left, top, left + w, top + h), flip
        return None, flip


class StreamIterator(BatchIterator):
    """A `BatchIterator` whose examples are read by worker processes, batches ahead.

    Order, ranks and resumption are those of `BatchIterator`; what workers have read ahead does not
    count as handed out.

    Args:
        examples: a `torch.utils.data.Dataset` with a length, from (epoch, index) to tensors.
        batch_size: examples per batch and process.
        workers: number of reading processes; 0 reads in this one.
        prefetch: batches that each of them reads ahead.
        normalise: applied to the first tensor of a batch, where it is read.
        how: see `BatchIterator`.
    """

    def __init__(
        self,
        examples: Any,
        batch_size: int,
        *,
        workers: int = 0,
        prefetch: int = 2,
        normalise: Normalise | None = None,
        **how: Any,
    ):
        super().__init__((torch.arange(len(examples)),), batch_size, **how)
        self.examples = examples
        self.workers = workers
        self.prefetch = prefetch
        self.finish = normalise

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields (x, y), from batch `start` of the epoch on."""
        plan = (
            [(epoch, index) for index in indices.tolist()]
            for (indices,) in super().batches(epoch, start)
        )
        loader: DataLoader[Any] = DataLoader(
            self.examples,
            batch_sampler=plan,
            collate_fn=self._collated,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        yield from map(tuple, loader)  # pinning makes lists of them

    def _collated(self, examples: list[tuple[Tensor, Tensor]]) -> Batch:
        """A batch as it is handed out: only what is not touched afterwards can be pinned."""
        x, y = default_collate(examples)
        return (x if self.finish is None else self.finish(x)), y


class StreamedImages(LightningDataModule):
    """A large image benchmark from the hub's split ``train`` and the one that it is tested on.

    The parquet files are turned once into a memory-mapped Arrow copy under the cache folder, which
    takes about as much disk again; examples are decoded on the fly.

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        task: always ``"classification"``.
        input_shape: (3, S, S) of what a model sees.
        classes: number of classes, checked against the labels.
        val_size: number of training examples set aside for validation, the same for every run.
        batch_size: training examples per step and process.
        eval_batch_size: examples per validation or test step.
        workers: reading processes for each process that trains.
        prefetch: batches that each of them reads ahead.
        seed: of the training order and the crops.
        augment: True for random crops and flips in training.
        normalise: arguments of `repro.data.base.transforms.Normalise`.
        image_column: of the parquet files.
        label_column: of the parquet files.
        root: folder of data sets.
        limit: train on the first this many examples; None for all.
        test_split: the hub's split to test on (``validation`` where the labels of ``test`` are not
            public); None: none is published, and ``test_size`` training examples are set aside.
        test_size: see ``test_split``.
    """

    name: str

    @checked
    def __init__(
        self,
        name: str,
        *,
        info: Mapping[str, Any],
        task: Literal["classification"] = "classification",
        input_shape: Sequence[int],
        classes: int,
        val_size: int,
        batch_size: Count,
        eval_batch_size: Count,
        workers: int = 0,
        prefetch: Count = 2,
        seed: int = 0,
        augment: bool = True,
        normalise: Mapping[str, Any],
        image_column: str = "image",
        label_column: str = "label",
        root: str | None = None,
        limit: Count | None = None,
        test_split: str | None = "validation",
        test_size: Natural = 0,
    ):
        super().__init__()
        if (test_split is None) != (test_size > 0):
            raise UserError(
                f"Data set '{name}': say dataset.test_split or a dataset.test_size above 0; of the"
                " two exactly one."
            )
        if list(input_shape) != [3, input_shape[1], input_shape[1]]:
            raise UserError(
                f"Data set '{name}': input_shape={list(input_shape)}; streamed images are colour"
                " squares, [3, S, S]."
            )
        self.name = name
        self.files = HubFiles.of(name, info, root)
        self.task = task
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.val_size = val_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.prefetch = prefetch
        self.seed = seed
        self.augment = augment
        self.normalise = Normalise(**normalise)
        self.columns = {"image_column": image_column, "label_column": label_column}
        self.limit = limit
        self.test_split, self.test_size = test_split, test_size
        self._tables: dict[str, Any] = {}
        self._indices: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """Makes the Arrow copy on one process, before the others use it."""
        self.setup()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Opens the data and checks the labels; does so once.

        A `UserError` says so if files are missing or damaged, ``datasets`` is not installed, or the
        number of classes is wrong.
        """
        if self._indices:
            return
        train = self._open("train")
        labels = read_table(self.files.split(self.test_split or "train"), [self._label_column])
        check_fact(self.name, "classes", self.classes, int(labels[0].to_numpy().max()) + 1)
        _check_sizes(self.name, len(train) - self.test_size, self.val_size)
        order = torch.randperm(len(train), generator=generator_for(SPLIT_SEED))
        rest = order[: len(order) - self.test_size]
        self._tables = dict.fromkeys(SPLIT_NAMES, train)
        self._indices = {
            "train": rest[self.val_size :][: self.limit],
            "val": rest[: self.val_size],
            "test": order[len(rest) :],
        }
        if self.test_split is not None:
            self._tables["test"] = self._open(self.test_split)
            self._indices["test"] = torch.arange(len(self._tables["test"]))

    @property
    def _label_column(self) -> str:
        return self.columns["label_column"]

    def _open(self, split: str) -> Any:
        paths = self.files.split(split)
        try:
            import datasets
        except ImportError as error:
            raise UserError(f"Streaming '{self.name}' needs datasets: {INSTALL}") from error
        try:
            table = datasets.Dataset.from_parquet(
                [str(path) for path in paths],
                split=datasets.NamedSplit(split),
                cache_dir=str(cache_home() / "arrow"),
            )
            return table.cast_column(self.columns["image_column"], datasets.Image(decode=False))
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            read_table(paths, list(self.columns.values()))  # names the file, where one is to blame
            raise UserError(f"Data set '{self.name}' cannot be opened: {error}") from error

    def _examples(self, split: str, *, train: bool) -> ImageExamples:
        self.setup()
        return ImageExamples(
            self._tables[split],
            self._indices[split],
            size=self.input_shape[1],
            train=train,
            seed=self.seed,
            **self.columns,
        )

    def _iterator(self, split: str, batch_size: int, *, train: bool, **how: Any) -> StreamIterator:
        return StreamIterator(
            self._examples(split, train=train),
            batch_size,
            workers=self.workers,
            prefetch=self.prefetch,
            normalise=self.normalise,
            **how,
        )

    def labels(self, split: str) -> Tensor:
        """Returns the labels of a split, in its stored order."""
        self.setup()
        column = torch.from_numpy(np.asarray(self._tables[split][self._label_column]))
        return column[self._indices[split]]

    def take(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (x, y) of chosen examples: central squares, normalised and not augmented."""
        examples = self._examples(split, train=False)
        x, y = zip(*(examples[0, int(index)] for index in indices), strict=True)
        return self.normalise(torch.stack(x)), torch.stack(y)

    def train_dataloader(self) -> StreamIterator:
        """Returns shuffled, augmented batches; a last, smaller batch is left out."""
        return self._iterator(
            "train",
            self.batch_size,
            train=self.augment,
            shuffle=True,
            drop_last=True,
            seed=self.seed,
        )

    def val_dataloader(self) -> StreamIterator:
        """Returns the examples set aside for validation."""
        return self._iterator("val", self.eval_batch_size, train=False)

    def test_dataloader(self) -> StreamIterator:
        """Returns the published validation split (labels of the test split are not public)."""
        return self._iterator("test", self.eval_batch_size, train=False)

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` over file names and sizes, and ``sizes`` of the splits."""
        self.setup()
        files = self.files.split("train")
        if self.test_split is not None:
            files = [*files, *self.files.split(self.test_split)]
        sizes = {split: len(indices) for split, indices in self._indices.items()}
        return {"name": self.name, "sha256": sha256_of(files, contents=False), "sizes": sizes}
