"""The skeletonisation against closed forms, a naive second version, and counted topology."""

import doctest
from typing import Any

import gudhi
import numpy as np
import one_by_one
import pytest
import torch
from torch.nn import functional as F

import repro.methods.skeleton
from repro.errors import UserError
from repro.methods.skeleton import Skeletonize, betti_numbers

KINDS = ["boolean", "euler"]


def thin(x, num_iter=5, kind="boolean", **knobs):
    return Skeletonize(num_iter, kind, probabilistic=False, **knobs)(x)


def blobs(*shape, seed=0, threshold=0.5):
    """Smoothed noise above a threshold."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
    return (pool(x, 3, 1, 1, count_include_pad=False) > threshold).float()


def box(shape, *spans):
    x = torch.zeros(1, 1, *shape)
    inside: Any = (..., *[slice(*span) for span in spans])
    x[inside] = 1
    return x


def ball(low, high, size):
    r2 = ((torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")) - size // 2) ** 2).sum(0)  # fmt: skip  # noqa: E501
    return ((r2 >= low) & (r2 <= high)).float()[None, None]


def torus(size=21, radius=6, tube=6):
    z, y, x = torch.meshgrid(*[torch.arange(size) - size // 2.0] * 3, indexing="ij")
    return (((y**2 + x**2).sqrt() - radius) ** 2 + z**2 <= tube).float()[None, None]


def betti_of(x):
    return betti_numbers(x[0, 0].numpy())


def test_doctest():
    result = doctest.testmod(repro.methods.skeleton)
    assert result.attempted > 10
    assert result.failed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_in_2d(kind):
    rectangle = thin(box((9, 15), (2, 7), (2, 13)), kind=kind)
    assert rectangle[0, 0].nonzero().tolist() == [[4, column] for column in range(5, 10)]
    ring = box((9, 9), (1, 8), (1, 8)) - box((9, 9), (4, 5), (4, 5))
    diamond = thin(ring, kind=kind)
    assert ring.sum() == 48
    assert (diamond.sum(), betti_of(diamond)) == (8, (1, 1))
    for same in (box((5, 5), (2, 3), (2, 3)), box((5, 11), (2, 3), (2, 9))):
        assert torch.equal(thin(same, kind=kind), same)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "rounds", "voxels", "left"),
    [
        (ball(0, 49, 21), 5, 1419, 1),
        (box((13, 13, 13), (2, 11), (2, 11), (2, 11)), 5, 729, 1),
        (box((9, 9, 21), (2, 7), (2, 7), (2, 19)), 5, 425, 11),
        (torus(), 8, 736, 28),
    ],
    ids=["ball", "cube", "rod", "torus"],
)
def test_closed_forms_in_3d(kind, x, rounds, voxels, left):
    skeleton = thin(x, rounds, kind)
    assert (int(x.sum()), int(skeleton.sum())) == (voxels, left)
    assert betti_of(skeleton) == betti_of(x)


@pytest.mark.parametrize(("kind", "voxels", "numbers"), [("boolean", 396, (1, 0, 1)), ("euler", 82, (7, 5, 0))])  # fmt: skip  # noqa: E501
def test_the_hollow_shell_tells_the_tests_apart(kind, voxels, numbers):
    shell = ball(16, 64, 21)
    assert shell.sum() == 1858
    skeleton = thin(shell, 10, kind)
    assert (int(skeleton.sum()), betti_of(skeleton)) == (voxels, numbers)


def with_gradient(run, x):
    x = x.clone().requires_grad_()
    skeleton = run(x)
    weights = torch.arange(1.0, x.numel() + 1).view_as(x)  # every point its own
    (gradient,) = torch.autograd.grad((skeleton * weights).sum(), x)
    return skeleton.detach(), gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 17, 12), (2, 1, 7, 8, 9)], ids=["2d", "3d"])
def test_bit_identical_to_one_convolution_per_orientation(kind, shape):
    """Outputs and gradients; with rounds left over once nothing changes any more."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = torch.cat([blobs(*shape, threshold=0.4), (noise < 0.3).float()])
    skeleton, gradient = with_gradient(lambda x: one_by_one.skeletonize(x, 5, kind), x)
    assert torch.equal(skeleton, thin(x, 4, kind))  # the last round changed nothing
    for shortcut in (True, False):
        mine = with_gradient(lambda x: thin(x, 5, kind, shortcut=shortcut), x)  # noqa: B023
        assert torch.equal(mine[0], skeleton)
        assert torch.equal(mine[1], gradient)


def test_the_gradient_of_a_rectangle():
    x = box((9, 11), (2, 7), (2, 9))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(thin(x).sum(), x)
    expected = torch.ones(9, 11)
    expected[1:8, 2:9] = expected[2:7, 1:10] = 0.5
    expected[2:7, 2:9] = 0
    expected[4, 5] = 2**-5
    assert torch.equal(gradient[0, 0], expected)


def test_mistakes_that_the_tests_here_would_notice(monkeypatch):
    """Clamp for hardtanh changes gradients; fresh end points in every subfield change skeletons."""
    x = blobs(1, 1, 24, 24, threshold=0.4)
    late = one_by_one.skeletonize(x, 5, refresh=True)
    assert not torch.equal(late, thin(x))
    right = with_gradient(lambda x: thin(x, shortcut=False), x)[1]
    monkeypatch.setattr(one_by_one, "clip", lambda value: value.clamp(0, 1))
    skeleton, wrong = with_gradient(lambda x: one_by_one.skeletonize(x, 5), x)
    assert torch.equal(skeleton, thin(x))
    assert not torch.equal(wrong, right)


def gudhi_betti(mask):
    """Betti numbers of closed cubes by another library."""
    cells = gudhi.CubicalComplex(top_dimensional_cells=np.where(mask, 0.0, 1.0))
    cells.compute_persistence()
    return tuple(cells.persistent_betti_numbers(0.5, 0.5)[: mask.ndim])


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 5)])
def test_betti_numbers_agree_with_gudhi(shape):
    draw = np.random.default_rng(0)
    for density in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        for _ in range(5):
            mask = draw.random(shape) < density
            assert betti_numbers(mask) == gudhi_betti(mask)


@pytest.mark.parametrize("shape", [(1, 1, 40, 33), (1, 1, 14, 15, 13)], ids=["2d", "3d"])
def test_topology_is_kept_says_gudhi(shape):
    for seed in range(4):
        for threshold in (0.4, 0.5, 0.55):
            x = blobs(*shape, seed=seed, threshold=threshold)
            skeleton = thin(x, 10)
            assert gudhi_betti(x[0, 0].numpy() > 0) == gudhi_betti(skeleton[0, 0].numpy() > 0)


def test_idempotent_inside_and_deaf_to_the_order_of_a_batch():
    x = (torch.rand(3, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    skeleton = thin(x, 8)
    assert torch.equal(thin(skeleton, 8), skeleton)
    assert (skeleton <= x).all()
    assert torch.equal(thin(x.flip(0), 8).flip(0), skeleton)


def test_moves_with_its_input_by_two_but_not_by_one():
    x = F.pad(blobs(1, 1, 20, 20, seed=1, threshold=0.45), (3,) * 4)
    assert torch.equal(thin(x.roll((2, -2), (2, 3))), thin(x).roll((2, -2), (2, 3)))
    assert not torch.equal(thin(x.roll(1, 3)), thin(x).roll(1, 3))


def test_soft_input_without_binarisation_differentiates_through_everything():
    x = torch.rand(1, 1, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = Skeletonize(2, probabilistic=False).double()
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), eps=1e-7)


def test_bfloat16_counts_exactly():
    x = blobs(1, 1, 30, 30)
    half = Skeletonize(5, probabilistic=False).bfloat16()(x.bfloat16())
    assert torch.equal(half.float(), thin(x))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"simple_points": "bolean"}, "Did you mean 'boolean'"),
        ({"num_iter": -1}, "num_iter is a whole number of at least 0"),
        ({"beta": -0.1}, "beta is at least 0"),
        ({"tau": 0.0}, "tau is positive"),
    ],
)
def test_wrong_knobs_are_one_line(knobs, message):
    with pytest.raises(UserError, match=message) as caught:
        Skeletonize(**knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 5, 5), "takes"),
        (torch.zeros(1, 2, 5, 5), "takes"),
        (torch.zeros(1, 1, 2, 5), "no axis may have 2"),
        (torch.zeros(1, 1, 5, 1), "no axis may have 2"),
        (torch.linspace(0, 2, 9).view(1, 1, 3, 3), "between 0 and 2. Of logits take the sigmoid"),
        (torch.linspace(-1, 0.5, 9).view(1, 1, 3, 3), "between -1 and 0.5"),
        (torch.full((1, 1, 4, 4), torch.nan), "values lie in"),
    ],
)
def test_wrong_input_is_one_line(x, message):
    with pytest.raises(UserError, match=message):
        Skeletonize()(x)
