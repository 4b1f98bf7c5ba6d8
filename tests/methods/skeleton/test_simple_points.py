"""Simple points against their definition by brute force, and against the naive version."""

import itertools
from typing import Any

import numpy as np
import one_by_one
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from repro.methods.skeleton import BooleanTest, EulerTest
from repro.methods.skeleton.simple_points import boolean_detectors

DENSITIES = torch.linspace(0.1, 0.9, 9)


def neighbourhoods(dims, many, seed=0):
    """(9 * many, 1, 3, …) random windows of densities 0.1 to 0.9 around foreground."""
    generator = torch.Generator().manual_seed(seed)
    shape = (9, many, *[3] * dims)
    x = torch.rand(shape, generator=generator) < DENSITIES.view(-1, *[1] * (dims + 1))
    x = x.float().flatten(0, 1)[:, None]
    centre: Any = (..., *[1] * dims)
    x[centre] = 1
    return x


def is_simple(window):
    """One foreground component next to the centre, and one background component that touches it.

    Malandain and Bertrand's definition in topological numbers: foreground among all neighbours,
    background among the neighbours by face and edge (2-D: among all eight), 6- or 4-connected.
    """
    dims = window.ndim
    inside = window.astype(bool)
    order = sum(np.abs(np.indices(window.shape) - 1))
    inside[order == 0] = False
    foreground = ndimage.label(inside, np.ones([3] * dims))[1]
    outside = ~window.astype(bool) & (order > 0) & (order <= 2)
    labels, _ = ndimage.label(outside, ndimage.generate_binary_structure(dims, 1))
    touching = set(labels[(order == 1) & outside])
    return foreground == 1 and len(touching) == 1


def test_boolean_is_the_definition_in_3d():
    x = neighbourhoods(3, 500)
    truth = [is_simple(window[0].numpy()) for window in x]
    assert sum(truth) > 1000
    assert BooleanTest(3)(x).flatten().bool().tolist() == truth


def test_euler_is_necessary_but_not_sufficient_in_3d():
    x = neighbourhoods(3, 500)
    truth = torch.tensor([is_simple(window[0].numpy()) for window in x])
    euler = EulerTest(3)(x).flatten().bool()
    assert euler[truth].all()
    assert 10 <= (euler & ~truth).sum() <= 100  # of 4500


def test_both_are_the_definition_for_all_images_of_nine_points():
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    x = x[x[:, 0, 1, 1] == 1]
    truth = [is_simple(window[0].numpy()) for window in x]
    assert BooleanTest(2)(x).flatten().bool().tolist() == truth
    assert EulerTest(2)(x).flatten().bool().tolist() == truth


@pytest.mark.parametrize("name", ["boolean", "euler"])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_convolution_equals_one_per_orientation(name, stride):
    x = (torch.rand(2, 1, 8, 9, 7, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    fused = {"boolean": BooleanTest, "euler": EulerTest}[name](3)(x, stride)
    assert torch.equal(fused, getattr(one_by_one, name)(x, stride))


@pytest.mark.parametrize("test", [BooleanTest, EulerTest])
def test_an_image_is_a_slice_between_background(test):
    x = (torch.rand(3, 1, 12, 9, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    as_volume = test(3)(F.pad(x[:, :, None], (0, 0, 0, 0, 1, 1)))
    assert torch.equal(test(2)(x), as_volume[:, :, 0])


def test_detectors_are_those_of_the_paper():
    weight, bias, mix = boolean_detectors()
    assert mix.sum(1).tolist() == [6, 12, 8, 8, 12, 1, 1, 1]
    entries = mix @ weight.flatten(1).abs().sum(1) / mix.sum(1)
    assert entries[:5].tolist() == [5, 3, 7, 7, 9]
    assert (mix @ bias / mix.sum(1))[:5].tolist() == [-4, -2, -6, -6, -8]
    assert len(BooleanTest(2).weight) == 14


@pytest.mark.parametrize("configuration", [2, 3, 4])  # a26, b26, b18
def test_every_configuration_is_needed(configuration):
    x = neighbourhoods(3, 2000, seed=3)
    whole, crippled = BooleanTest(3), BooleanTest(3)
    crippled.mix[configuration] = 0
    assert not torch.equal(whole(x), crippled(x))
