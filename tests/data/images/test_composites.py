"""Digits in scenes: nothing of the test is in training, and the dial says what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro.data.base.iterators import generator_for
from repro.data.images import composites
from repro.data.images.composites import (
    SCENES,
    SIDE,
    compose,
    digits_in_scenes,
    drawn_scenes,
    own_scenes,
)
from repro.errors import UserError

FACTS: dict[str, Any] = {"task": "classification", "input_shape": [3, 32, 32], "classes": 10}
SMALL: dict[str, Any] = {"train_size": 60, "val_size": 20, "test_size": 40, "source_size": 30}


def test_it_repeats_itself_and_seeds_differ() -> None:
    data, same, other = (
        digits_in_scenes("d", **FACTS, **SMALL, data_seed=seed) for seed in (0, 0, 1)
    )
    assert data.fingerprint() == same.fingerprint() != other.fingerprint()
    assert {name: len(split[0]) for name, split in data.splits.items()} == {
        "train": 60, "val": 20, "test": 40, "source": 30
    }  # fmt: skip
    x, digit, scene = data.splits["source"]
    assert x.dtype == torch.uint8
    assert x.shape[1:] == (3, 32, 32)
    assert (int(digit.max()), int(scene.max())) == (9, len(SCENES) - 1)


def test_classes_stand_in_their_scenes_as_often_as_said() -> None:
    order, own = own_scenes(3)
    assert sorted(order.tolist()) == list(range(10))
    assert len(set(own.tolist())) == 10
    strength = torch.linspace(0.1, 0.95, 10)[order]
    y = torch.arange(10).repeat(4000)
    scenes = drawn_scenes(y, own, strength, generator_for(5))
    shares = torch.stack([(scenes[y == k] == own[k]).float().mean() for k in range(10)])
    torch.testing.assert_close(shares, strength, atol=0.03, rtol=0)
    others = torch.bincount(scenes[y == 0], minlength=len(SCENES))
    others = others[torch.arange(len(SCENES)) != own[0]]
    torch.testing.assert_close(others / others.sum(), torch.full((11,), 1 / 11), atol=0.03, rtol=0)
    data = digits_in_scenes("d", **FACTS, **SMALL, data_seed=3)
    torch.testing.assert_close(data.strength_K, strength)


def test_halves_do_not_overlap_and_are_wide_enough() -> None:
    left, right = composites._halves()
    assert len(left) == len(right) == len(SCENES)
    for one, other in zip(left, right, strict=True):
        assert min(*one.shape[1:], *other.shape[1:]) > 2 * SIDE
        assert one.min() < one.max()
    known, unknown = composites._digits()
    assert (len(known[0]), len(unknown[0])) == (1200, 597)
    parts = [{image.numpy().tobytes() for image in images} for images, _ in (known, unknown)]
    assert not parts[0] & parts[1]


def test_pictures_are_crops_with_a_digit_on_them() -> None:
    """A photograph that says by its values where each of its pixels was."""
    rows, columns = torch.meshgrid(torch.arange(80), torch.arange(70), indexing="ij")
    photograph = torch.stack([rows, columns, torch.full_like(rows, 128)]).to(torch.uint8)
    nothing = torch.zeros(10, 16, 16), torch.arange(10)
    y, scene = torch.arange(10), torch.zeros(10, dtype=torch.long)
    x = compose(y, scene, [photograph], nothing, 0.5, generator_for(0)).int()
    assert (x[:, :, 1:] - x[:, :, :-1])[:, 0].unique().tolist() == [2]  # every second row
    assert (x[:, 1, :, 1:] - x[:, 1, :, :-1]).unique().tolist() == [2]
    assert x[:, 0].max() < 80
    full = torch.ones(10, 16, 16), torch.arange(10)
    y = compose(y, scene, [photograph], full, 0.25, generator_for(0)).int()
    changed = (x != y).any(1).flatten(1).sum(1)
    assert changed.tolist() == [256] * 10  # one digit of 16 x 16 pixels each
    third = y[:, 2].flatten(1)
    assert set(third.unique().tolist()) == {64, 128, 192}  # 128 - 64, as it was, 128 + 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weakest": 1.5}, r"weakest lies in \[0, 1\]"), ({"contrast": 0.0}, "contrast is positive")],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        digits_in_scenes("d", **FACTS, **settings)
