"""The distance between streams of images, with a stand-in for the Inception network."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.toolbox.fid import as_bytes, frechet_inception_distance


def test_all_bytes_survive_the_normalisation_of_images() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    normalised = (pixels.float() / 255 - 0.5) / 0.5
    assert torch.equal(as_bytes(normalised), pixels)
    assert as_bytes(torch.tensor([-2.0, 1.4 / 127.5 - 1, 1.6 / 127.5 - 1, 2.0])).tolist() == [
        0, 1, 2, 255,
    ]  # fmt: skip


def test_fid_of_equal_images_is_nought_and_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pixels(nn.Module):
        """Features of a stand-in for the Inception network."""

        num_features = 4

        def forward(self, images: Tensor) -> Tensor:
            return images.float().flatten(2).mean(2).repeat(1, 4)[:, :4]

    images = torch.rand(64, 3, 8, 8) * 2 - 1
    device = torch.device("cpu")
    same = frechet_inception_distance([images], [images], device, Pixels())
    other = frechet_inception_distance([images], [images * 0.1], device, Pixels())
    assert abs(same) < 1e-3 < abs(other)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gradient-repro\[fid\]"):
        frechet_inception_distance([images], [images], device)
