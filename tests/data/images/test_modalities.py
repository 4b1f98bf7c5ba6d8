"""Modal digits: counts by hand, splits apart, and what each instrument does to a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from repro.data.images.modalities import (
    MODALITIES,
    _glyphs_of_splits,
    _shifted,
    balanced_shots,
    tailed_counts,
)
from repro.errors import UserError

Build = Callable[..., Any]


def test_counts_fall_by_the_same_factor() -> None:
    counts = tailed_counts(700, 30, 0.93)
    assert counts.sum() == 700
    assert counts[0] / counts[9] == pytest.approx(0.93**-9, rel=0.15)
    assert all(np.diff(counts) <= 1)
    assert tailed_counts(12, 4, 1.0).tolist() == [3, 3, 3, 3]


def test_splits_have_the_stated_sizes_and_only_training_is_long_tailed(dataset: Build) -> None:
    data = dataset("modal_digits")
    counts = {split: data.labels(split).bincount() for split in ("train", "val", "test")}
    assert {split: int(count.sum()) for split, count in counts.items()} == {
        "train": 700, "val": 300, "test": 1500,
    }  # fmt: skip
    assert counts["val"].unique().tolist() == [10]
    assert counts["test"].unique().tolist() == [50]
    assert counts["train"].max() > 5 * counts["train"].min() > 0
    x = data.splits["train"][0]
    assert x.mean().abs() < 1e-5
    assert x.std().item() == pytest.approx(1)
    # The order by frequency is a fact of the data set, not of the seed.
    assert torch.equal(
        dataset("modal_digits", data_seed=3).labels("train").bincount(), counts["train"]
    )


def test_another_seed_renders_anew(dataset: Build) -> None:
    one, same, other = (dataset("modal_digits", data_seed=n).splits["test"][0] for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_glyphs_of_the_splits_are_disjoint() -> None:
    parts = _glyphs_of_splits(np.arange(1797) % 10)
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 720, "val": 180, "test": 897,
    }  # fmt: skip
    assert len(np.unique(np.concatenate(list(parts.values())))) == 1797


def test_labels_are_modality_times_digit(dataset: Build) -> None:
    """Ultrasound of an eight is no tomography of a nine: the classes' means tell."""
    data = dataset("modal_digits", digits=[8, 9], classes=6)
    x, y = data.splits["test"]
    deviation = torch.stack([x[y == label].std() for label in range(6)])
    assert deviation[:2].max() < deviation[2:4].min()  # low contrast, and magnetic resonance
    with pytest.raises(UserError, match="classes"):
        dataset("modal_digits", digits=[8, 9]).setup()


def test_instruments() -> None:
    draw = np.random.default_rng(0)
    dark, half = np.zeros((400, 16, 16)), np.full((400, 16, 16), 0.5)
    shown = MODALITIES["ct"](half, draw)
    assert shown.mean() == pytest.approx(0.5, abs=0.01)
    assert shown.std() == pytest.approx(0.12, abs=0.01)
    # The magnitude of complex noise of deviation .18 has the mean of a Rayleigh variable.
    assert MODALITIES["mr"](dark, draw).mean() == pytest.approx(0.18 * np.sqrt(np.pi / 2), abs=0.01)
    assert MODALITIES["us"](dark, draw).mean() < MODALITIES["us"](half, draw).mean()
    assert np.abs(MODALITIES["outline"](half, draw)).max() < 0.5
    assert all(np.isfinite(render(half, draw)).all() for render in MODALITIES.values())


def test_digits_move_by_two_pixels_at_most() -> None:
    x = np.zeros((300, 16, 16))
    x[:, 8, 8] = 1
    moved = _shifted(x, np.random.default_rng(0))
    places = np.argwhere(moved == 1)
    assert len(places) == 300
    assert set(places[:, 1]) == set(places[:, 2]) == {6, 7, 8, 9, 10}


def test_shots_are_balanced_and_the_same_for_the_same_key() -> None:
    labels = torch.arange(60) % 3
    chosen = balanced_shots(labels, 5, 0, 7)
    assert labels[chosen].bincount().tolist() == [5, 5, 5]
    assert torch.equal(chosen, balanced_shots(labels, 5, 0, 7))
    assert not torch.equal(chosen, balanced_shots(labels, 5, 0, 8))
    assert len(balanced_shots(labels, 100, 0)) == 60


def test_too_few_examples_is_one_line(dataset: Build) -> None:
    with pytest.raises(UserError, match="30 classes need"):
        dataset("modal_digits", val_size=20)
