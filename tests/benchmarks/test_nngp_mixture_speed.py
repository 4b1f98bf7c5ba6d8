"""The two short cuts of the room against what they replace."""

from __future__ import annotations

import math

import torch
from timing import faster

from repro.methods.nngp_mixture import (
    FixedScale,
    NNGPKernel,
    WideNetworks,
    condition,
    condition_all,
    draw_features,
)


@torch.no_grad()
def test_one_eigendecomposition_against_a_factorisation_for_each_noise() -> None:
    """Fourteen noises, as the room's grid has, for 500 training and 100 test inputs."""
    x, y = torch.randn(600, 10).double(), torch.randn(500).double()
    K = NNGPKernel()(x)
    parts = (K[:500, :500], K[:500, 500:], K.diagonal()[500:], y)
    noises = torch.logspace(-3, 4, 14, dtype=torch.float64)
    faster(
        "14 noises at once, against one by one",
        lambda: condition_all(*parts, noises),
        lambda: [condition(*parts, noise) for noise in noises],
        repeats=3,
    )


@torch.no_grad()
def test_drawing_a_layers_units_against_drawing_its_weights() -> None:
    """100 networks of width 256 with three hidden layers, at nine inputs."""
    x = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)[:, None]
    kernel = NNGPKernel(depth=3, act="erf", w_std=8.0, b_std=0.05)

    def weights() -> None:
        WideNetworks(kernel, 1, 256, 100, FixedScale(), torch.Generator().manual_seed(0))(x)

    def units() -> None:
        draw_features(x, kernel, 256, 100, torch.Generator().manual_seed(0))

    faster("units of 100 networks, against their weights", units, weights, 3, repeats=3)
