"""Missing classes, wrong labels and uneven classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repro.data.base.spoilt import Spoilt
from repro.errors import UserError


def test_spoilt_data_have_the_shares_that_were_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(2000)
    images = torch.zeros(6000, 1)
    _, dropped = Spoilt(drop=[1]).spoil(images, y, 3, generator)
    assert sorted(dropped.unique().tolist()) == [0, 2]
    _, noisy = Spoilt(label_noise=0.3).spoil(images, y, 3, generator)
    assert float((noisy != y).double().mean()) == pytest.approx(0.2, abs=0.02)
    _, few = Spoilt(imbalance=0.5).spoil(images, y, 3, generator)
    shares = np.bincount(few) / 2000
    np.testing.assert_allclose(shares, [1, 0.5, 0.25], atol=0.04)
    with pytest.raises(UserError, match="lies in"):
        Spoilt(imbalance=0.0)
