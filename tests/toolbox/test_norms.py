"""What watches training, against hand-made networks and series."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from repro.toolbox.norms import FeatureNorms, gradient_norm, oscillation


def test_feature_norms_are_recorded_only_when_active() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    norms = FeatureNorms(model)
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    model(x)
    assert math.isnan(norms.latest[0])
    norms.active = True
    model(x)
    assert [float(norm) for norm in norms.latest] == [3.0, 3.0]


def test_the_gradient_norm_is_that_of_all_parameters() -> None:
    model = nn.Linear(3, 2)
    unused = nn.Parameter(torch.ones(4))
    model(torch.ones(5, 3)).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient_norm([*model.parameters(), unused]), flat.norm())


def test_a_trend_is_no_oscillation() -> None:
    rising = torch.arange(100.0)
    assert oscillation(rising, 11) == pytest.approx(0, abs=1e-9)
    wave = rising + 2 * (-1.0) ** torch.arange(100)
    assert oscillation(wave, 11) == pytest.approx(2, rel=0.1)
    assert math.isnan(oscillation([1.0, 2.0], 5))
