"""The two short cuts of the room against what they replace."""

import math

import pytest
import torch
from timing import fastest

from repro.methods.nngp_mixture import (
    FixedScale,
    NNGPKernel,
    WideNetworks,
    condition,
    condition_all,
    draw_features,
)

pytestmark = pytest.mark.benchmark


def test_one_eigendecomposition_beats_a_factorisation_for_each_noise():
    """Fourteen noises, as the room's grid has, for 500 training and 100 test inputs."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=generator, dtype=torch.float64)
    y = torch.randn(500, generator=generator, dtype=torch.float64)
    K = NNGPKernel()(x).detach()
    parts = (K[:500, :500], K[:500, 500:], K.diagonal()[500:], y)
    noises = torch.logspace(-3, 4, 14, dtype=torch.float64)
    together = fastest(lambda: condition_all(*parts, noises), 3)
    apart = fastest(lambda: [condition(*parts, noise) for noise in noises], 3)
    print(f"\n14 noises at once: {1e3 * together:.0f} ms; one by one {apart / together:.1f} times")
    assert together < apart


def test_drawing_a_layers_units_beats_drawing_its_weights():
    """100 networks of width 256 with three hidden layers, at nine inputs."""
    torch.set_num_threads(1)
    x = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)[:, None]
    kernel = NNGPKernel(depth=3, act="erf", w_std=8.0, b_std=0.05)

    def weights():
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            WideNetworks(kernel, 1, 256, 100, FixedScale(), generator)(x)

    def units():
        draw_features(x, kernel, 256, 100, torch.Generator().manual_seed(0))

    short, long = fastest(units, 3), fastest(weights, 3)
    print(f"\n100 networks: {1e3 * short:.0f} ms; drawing all weights {long / short:.0f} times")
    assert short * 3 < long
