"""Small data sets that come with scikit-learn: no download, in memory, splits fixed for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from sklearn import datasets as bundled
from sklearn.model_selection import train_test_split

from repro.data.base.iterators import generator_for
from repro.data.base.modules import Split, Splits, TensorData
from repro.errors import UserError, did_you_mean
from repro.knobs import Count, NonNegative, checked

# Which examples are held out must never depend on a run, unless its config says so.
SPLIT_SEED = 0
TABLES: Mapping[str, Callable[[], Any]] = {
    "wine": bundled.load_wine,
    "iris": bundled.load_iris,
    "breast_cancer": bundled.load_breast_cancer,
    "diabetes": bundled.load_diabetes,
}


def split_indices(
    size: int,
    test: int | float,
    val: int | float,
    labels: np.ndarray | None = None,
    split: int = 0,
) -> dict[str, np.ndarray]:
    """Cuts ``range(size)`` into train, val and test, the same way every time.

    Args:
        size: number of examples.
        test: number or share of test examples.
        val: number of validation examples, or their share of what is not test.
        labels: (size,) classes to stratify by.
        split: another number cuts in another way.

    Returns:
        ``{"train": …, "val": …, "test": …}``, disjoint and covering.
    """
    cut = partial(train_test_split, random_state=SPLIT_SEED + split)
    rest, test_part = cut(np.arange(size), test_size=test, stratify=labels)
    train, val_part = cut(rest, test_size=val, stratify=None if labels is None else labels[rest])
    return {"train": train, "val": val_part, "test": test_part}


@checked
def digits(
    name: str = "digits",
    *,
    split: int = 0,
    test_size: float = 0.2,
    val_size: float = 0.1,
    noise: NonNegative = 0.0,
    copies: Count = 1,
    invert: bool = False,
    roll: int = 0,
    **facts: Any,
) -> TensorData:
    """Handwritten digits, 8 × 8 pixels: 1293 train, 144 validation and 360 test images.

    Stratified by class; standardised by the mean and deviation of all training pixels. Source:
    `sklearn.datasets.load_digits` (E. Alpaydin, C. Kaynak, 1998, UCI).

    Args:
        name: of the data set.
        split: another number cuts train, val and test in another way.
        test_size: share of all images.
        val_size: share of what is not test.
        noise: standard deviation of Gaussian noise on every image, as a share of the range of a
            pixel; drawn once, so an image is the same in every epoch.
        copies: of each image, with noise of its own.
        invert: dark digits on bright paper; still standardised by the statistics of the plain ones,
            as a device would that was made for these.
        roll: pixels by which images are shifted to the right, what leaves coming in at the left.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        images, labels = bundled.load_digits(return_X_y=True)
        parts = split_indices(len(labels), test_size, val_size, labels, split)
        parts = {name: np.repeat(index, copies) for name, index in parts.items()}
        # One mean and one deviation for all pixels: many are constant, and pixels are comparable.
        mean, std = images[parts["train"]].mean(), images[parts["train"]].std()
        shown = 16 - images if invert else images
        x = torch.from_numpy((shown - mean) / std).float().view(-1, 1, 8, 8).roll(roll, dims=3)
        y = torch.from_numpy(labels).long()
        generator = generator_for(SPLIT_SEED, split)
        splits = {}
        for name, index in parts.items():
            shift = torch.randn(len(index), 1, 8, 8, generator=generator) if noise else 0.0
            splits[name] = (x[index] + shift * (noise * 16 / std), y[index])
        return splits

    return TensorData(name, load, **facts)


def _digit_sums(pairs: Mapping[str, int], modulus: int) -> Splits:
    images, labels = bundled.load_digits(return_X_y=True)
    parts = split_indices(len(labels), test=360, val=0.1, labels=labels)
    pixels = torch.from_numpy(images * (255 / 16)).round().to(torch.uint8).view(-1, 8, 8)
    digit = torch.from_numpy(labels)
    splits = {}
    for number, (name, index) in enumerate(parts.items()):
        chosen = torch.randint(
            len(index), (2, pairs[name]), generator=generator_for(SPLIT_SEED, number)
        )
        left, right = torch.from_numpy(index)[chosen]
        x = torch.cat([pixels[left], pixels[right]], dim=2)[:, None]
        splits[name] = (x, (digit[left] + digit[right]) % modulus)
    return splits


@checked
def digit_sums(
    name: str, *, pairs: Mapping[str, Count], modulus: Annotated[int, Ge(2)] = 5, **facts: Any
) -> TensorData:
    """Two digits side by side, 8 × 16 pixels; the label is their sum modulo ``modulus``.

    A stress test for layer-wise training: no single place of the image says anything about the
    label, so that a layer trained for what it can classify by itself throws away what later layers
    would need. The digits of the splits are those of `digits`, so no digit of a test pair occurs in
    a training pair. Pixels are uint8; normalise them.

    Args:
        name: of the data set.
        pairs: how many pairs to draw for ``train``, ``val`` and ``test``; always the same ones.
        modulus: number of classes.
        facts: see `TensorData`.
    """
    return TensorData(name, partial(_digit_sums, dict(pairs), modulus), **facts)


# Which part of `transfer_digits` is how large; together all 1797 images.
TRANSFER_SIZES = {"source": 500, "train": 700, "val": 250, "test": 347}


def _transfer_digits() -> Splits:
    images, labels = bundled.load_digits(return_X_y=True)
    x = torch.from_numpy(images / 16).float().view(-1, 1, 8, 8)
    y = torch.from_numpy(labels).long()
    rest = np.arange(len(y))
    splits = {}
    for name, size in TRANSFER_SIZES.items():
        part = rest
        if size < len(rest):
            rest, part = train_test_split(
                rest, test_size=size, random_state=SPLIT_SEED, stratify=labels[rest]
            )
        splits[name] = (x[part], y[part])
    return splits


def transfer_digits(name: str = "digits_transfer", **facts: Any) -> TensorData:
    """Handwritten digits for transfer learning: 500 source, 700 train, 250 val, 347 test images.

    The same pictures as `digits`, in [0, 1] and not standardised, so that a change of a pixel means
    the same everywhere. A model may be pretrained on the split ``source``. Stratified by class.

    Args:
        name: of the data set.
        facts: see `TensorData`.
    """
    return TensorData(name, _transfer_digits, **facts)


def standardised(
    x: np.ndarray, y: np.ndarray, parts: Mapping[str, np.ndarray], regression: bool
) -> Splits:
    """Standardises features (and regression targets) by the statistics of the training part.

    Args:
        x: (N, D) features.
        y: (N,) labels, or targets when `regression`.
        parts: indices of train, val and test.
        regression: whether y is a target.

    Returns:
        (x, y) of each part: (n, D) float32 with (n,) int64, or (n, 1) float32 when `regression`.
    """
    train = parts["train"]

    def scaled(values: np.ndarray) -> torch.Tensor:
        std = values[train].std(axis=0)
        # A constant column carries nothing: it becomes zero instead of a division by zero.
        return torch.from_numpy(
            (values - values[train].mean(axis=0)) / np.where(std > 0, std, 1)
        ).float()

    x_ND = scaled(x)
    y_N = scaled(y[:, None]) if regression else torch.from_numpy(y).long()

    def part(index: np.ndarray) -> Split:
        return x_ND[index], y_N[index]

    return {name: part(index) for name, index in parts.items()}


def table(
    name: str, *, split: int = 0, test_size: float = 0.2, val_size: float = 0.1, **facts: Any
) -> TensorData:
    """A table from scikit-learn: ``wine``, ``iris``, ``breast_cancer`` or ``diabetes``.

    20 % test and 10 % of the rest validation, stratified for classification. Features (and the
    target of ``diabetes``) are standardised by the training split.

    Args:
        name: which table.
        split: another number cuts train, val and test in another way.
        test_size: share of all examples.
        val_size: share of what is not test.
        facts: see `TensorData`.

    Raises:
        UserError: there is no such table.
    """
    if name not in TABLES:
        raise UserError(
            f"scikit-learn brings no table '{name}'; known: {', '.join(TABLES)}."
            + did_you_mean(name, TABLES)
        )

    data = TABLES[name]()
    regression = facts.get("task") == "regression"
    labels = None if regression else data.target
    parts = split_indices(len(data.target), test_size, val_size, labels, split)
    return TensorData(
        name,
        standardised(data.data, data.target, parts, regression),
        target_std=[float(data.target[parts["train"]].std())] if regression else None,
        **facts,
    )
