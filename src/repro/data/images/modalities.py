"""Digits as three instruments would show them: a small stand-in for images of many modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData
from repro.data.tables.bundled import SPLIT_SEED
from repro.errors import UserError
from repro.knobs import Count, Share, checked

Draws = np.random.Generator
HALF = 900  # glyphs for training and validation; the other 897 are for test
VAL_SHARE = 0.2  # of that half, for validation
EDGE = 16  # pixels a side
REACH = 2  # pixels by which a digit is shifted at most, in each direction


def ct(x_NHW: np.ndarray, draw: Draws) -> np.ndarray:
    """Like tomography: low contrast, additive noise, clipped to [0, 1]."""
    return np.clip(0.6 * x_NHW + 0.2 + draw.normal(0, 0.12, x_NHW.shape), 0, 1)


def mr(x_NHW: np.ndarray, draw: Draws) -> np.ndarray:
    """Like magnetic resonance: a smooth multiplicative bias field, and Rician noise."""
    field = ndimage.gaussian_filter(draw.normal(size=x_NHW.shape), (0, 6, 6))
    field -= field.mean((1, 2), keepdims=True)
    biased = x_NHW * np.exp(0.4 * field / field.std((1, 2), keepdims=True))
    real, imaginary = draw.normal(0, 0.18, (2, *x_NHW.shape))
    return np.hypot(biased + real, imaginary)


def us(x_NHW: np.ndarray, draw: Draws) -> np.ndarray:
    """Like ultrasound: smooth Rayleigh speckle, compressed by a logarithm."""
    speckle = ndimage.gaussian_filter(draw.rayleigh(0.8, x_NHW.shape), (0, 0.7, 0.7))
    return np.log1p(8 * (0.15 + x_NHW) * speckle) / 2.5


def outline(x_NHW: np.ndarray, draw: Draws) -> np.ndarray:
    """What none of the three shows: the length of the gradient, with a little noise."""
    slopes = [ndimage.sobel(x_NHW, axis) for axis in (1, 2)]
    return np.hypot(*slopes) / 4 + draw.normal(0, 0.05, x_NHW.shape)


Modality = Literal["ct", "mr", "us", "outline"]
MODALITIES: Mapping[str, Callable[[np.ndarray, Draws], np.ndarray]] = {
    "ct": ct,
    "mr": mr,
    "us": us,
    "outline": outline,
}


def tailed_counts(size: int, classes: int, tail: float) -> np.ndarray:
    """So many examples in all, a class's share ``tail`` times that of the one before; each >= 1.

    Args:
        size: examples in all, at least ``classes``.
        classes: K.
        tail: 1 for equal shares.

    Returns:
        (K,) counts, falling.
    """
    shares = tail ** np.arange(classes)
    edges = np.round((size - classes) * np.cumsum(shares) / shares.sum()).astype(int)
    return 1 + np.diff(edges, prepend=0)


@checked
def modal_digits(
    name: str = "modal_digits",
    *,
    modalities: Sequence[Modality] = ("ct", "mr", "us"),
    digits: Sequence[int] = tuple(range(10)),
    train_size: Count = 700,
    val_size: Count = 300,
    test_size: Count = 1500,
    tail: Share = 0.93,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Digits on 16 x 16 pixels, shifted at random, as one of several instruments shows them.

    A class is a modality with a digit; there are ``len(modalities) * len(digits)``. Training
    examples are long-tailed over the classes, whose order by frequency never changes; validation
    and test examples are balanced. The glyphs of the three splits (720, 180 and 897 of
    scikit-learn's) are disjoint, and may be shown more than once. Standardised by the mean and
    deviation of the training pixels.

    Args:
        name: of the data set.
        modalities: ``ct``, ``mr``, ``us`` and ``outline``.
        digits: which of the ten.
        train_size: examples.
        val_size: examples.
        test_size: examples.
        tail: frequency of a class as a share of that of the next more frequent one.
        data_seed: of shifts, noise and which glyphs are shown.
        facts: see `TensorData`.

    Raises:
        UserError: fewer examples than classes.
    """
    counts = dict(zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True))
    classes = len(modalities) * len(digits)
    if min(counts.values()) < classes:
        raise UserError(
            f"Data set '{name}': {classes} classes need as many examples in every split."
        )

    def load() -> Splits:
        glyphs, labels = load_digits(return_X_y=True)
        glyphs = ndimage.zoom(glyphs.reshape(-1, 8, 8) / 16, (1, 2, 2), order=1)
        parts = _glyphs_of_splits(labels)
        order = np.random.default_rng(SPLIT_SEED).permutation(classes)
        splits = {}
        for number, split in enumerate(SPLIT_NAMES):
            draw = np.random.default_rng((data_seed, number))
            share = tail if split == "train" else 1.0
            per_class = np.empty(classes, dtype=int)
            per_class[order] = tailed_counts(counts[split], classes, share)
            y = np.repeat(np.arange(classes), per_class)
            x = np.empty((len(y), EDGE, EDGE))
            for label in range(classes):
                modality, digit = divmod(label, len(digits))
                pool = parts[split][labels[parts[split]] == digits[digit]]
                shown = _shifted(glyphs[draw.choice(pool, per_class[label])], draw)
                x[y == label] = MODALITIES[modalities[modality]](shown, draw)
            splits[split] = (torch.from_numpy(x).float()[:, None], torch.from_numpy(y))
        mean, std = splits["train"][0].mean(), splits["train"][0].std()
        return {split: ((x - mean) / std, y) for split, (x, y) in splits.items()}

    return TensorData(name, load, **facts)


def _glyphs_of_splits(labels: np.ndarray) -> dict[str, np.ndarray]:
    everything = np.arange(len(labels))
    half, test = train_test_split(
        everything, train_size=HALF, stratify=labels, random_state=SPLIT_SEED
    )
    train, val = train_test_split(
        half, test_size=VAL_SHARE, stratify=labels[half], random_state=SPLIT_SEED
    )
    return {"train": train, "val": val, "test": test}


def _shifted(x_NHW: np.ndarray, draw: Draws) -> np.ndarray:
    """Images moved by up to `REACH` pixels in each direction; what comes in is black."""
    padded = np.pad(x_NHW, ((0, 0), (REACH, REACH), (REACH, REACH)))
    rows, columns = draw.integers(2 * REACH + 1, size=(2, len(x_NHW), 1))
    steps = np.arange(EDGE)
    rows_NH, columns_NW = rows + steps, columns + steps
    return padded[np.arange(len(x_NHW))[:, None, None], rows_NH[:, :, None], columns_NW[:, None]]


def balanced_shots(labels: torch.Tensor, shots: int, *key: int) -> torch.Tensor:
    """Indices of so many examples of each class, or of all where a class has fewer.

    Args:
        labels: (N,).
        shots: of each class.
        key: non-negative integers that decide which.
    """
    order = torch.randperm(len(labels), generator=generator_for(*key))
    chosen = [order[labels[order] == label][:shots] for label in labels.unique()]
    return torch.cat(chosen)
