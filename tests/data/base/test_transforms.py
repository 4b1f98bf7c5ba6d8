"""Augmentation against a loop over images, normalisation against the formula."""

from __future__ import annotations

import pytest
import torch

from repro.data.base.iterators import generator_for
from repro.data.base.transforms import CropFlip, Normalise


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_a_loop_over_images(pad, flip, dtype):
    x = torch.randint(1, 255, (40, 3, 6, 9), generator=generator_for(0)).to(dtype)
    ours = CropFlip(pad, flip)(x, generator_for(7))
    draws = generator_for(7)
    rows, columns = torch.randint(2 * pad + 1, (2, 40), generator=draws).tolist()
    flips = (torch.rand(40, generator=draws) < 0.5).tolist()
    for image, out, top, left, mirrored in zip(x, ours, rows, columns, flips, strict=True):
        padded = torch.zeros(3, 6 + 2 * pad, 9 + 2 * pad, dtype=dtype)
        padded[:, pad : pad + 6, pad : pad + 9] = image
        expected = padded[:, top : top + 6, left : left + 9]
        assert torch.equal(out, expected.flip(2) if flip and mirrored else expected)
    if flip and pad == 0:
        assert 5 < sum(flips) < 35


def test_without_padding_or_flip_nothing_changes():
    x = torch.rand(5, 1, 4, 4)
    assert torch.equal(CropFlip(0, False)(x, generator_for(0)), x)


def test_normalise():
    x = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    expected = (x / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    out = Normalise(mean, std)(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected)


def test_reflected_borders_are_the_images_own_pixels():
    x = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)  # nothing is black
    out = CropFlip(pad=3, flip=False, reflect=True)(x, torch.Generator().manual_seed(0))
    assert (out.dtype, out.shape) == (torch.uint8, x.shape)
    assert out.min() > 0
    padded = torch.nn.functional.pad(x.double(), (3, 3, 3, 3), mode="reflect")
    for image, source in zip(out, padded, strict=True):
        crops = source.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (crops == image).flatten(1).all(dim=1).any()
