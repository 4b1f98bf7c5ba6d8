"""Binarisation, baselines and losses against closed forms and other libraries."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import skeletonize as skimage_skeletonize
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.skeleton import (
    ClassicalSkeleton,
    LearnedSkeleton,
    Skeletonize,
    SoftSkeleton,
    baselines,
    binarise,
    cldice,
    dice,
    overlap_loss,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_binarisation_has_the_stated_probability(tau):
    x = torch.full((200_000,), 0.6)
    drawn = binarise(x, beta=0.33, tau=tau, generator=seeded())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    expected = 0.6 ** (1 / 0.33) / (0.6 ** (1 / 0.33) + 0.4 ** (1 / 0.33))
    assert expected == pytest.approx(0.774, abs=1e-3)
    assert drawn.mean() == pytest.approx(expected, abs=0.005)


def test_binarisation_passes_the_gradient_of_its_relaxation():
    x = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    tau, beta = 0.7, 0.4
    (gradient,) = torch.autograd.grad(binarise(x, beta, tau, seeded(3)).sum(), x)
    uniform = torch.rand(4, dtype=torch.float64, generator=seeded(3))
    y = torch.sigmoid((torch.logit(x) + beta * torch.logit(uniform)) / tau)
    torch.testing.assert_close(gradient, (y * (1 - y) / (tau * x * (1 - x))).detach())


def test_without_noise_binarisation_is_a_threshold_of_gradient_one():
    x = torch.tensor([0.0, 0.1, 0.49, 0.51, 1.0], dtype=torch.float64, requires_grad=True)
    y = binarise(x, beta=0.0)
    assert y.tolist() == [0, 0, 0, 1, 1]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.ones(5, dtype=torch.float64))


def test_certain_values_stay_what_they_are():
    x = torch.cat([torch.zeros(50_000), torch.ones(50_000)]).requires_grad_()
    y = binarise(x, beta=0.33, generator=seeded())
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()


def test_gradients_reach_probabilities_through_the_skeleton():
    x = torch.rand(1, 1, 20, 20, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(Skeletonize(3)(x, seeded(1)).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()
    again = Skeletonize(3)(x, seeded(1))
    assert torch.equal(again, Skeletonize(3)(x, seeded(1)))


@pytest.mark.parametrize("dims", [2, 3])
def test_soft_skeleton_is_the_union_of_openings(dims):
    draw = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(draw.random([20] * dims), 1.5) > 0.5
    cross, cube = ndimage.generate_binary_structure(dims, 1), np.ones([3] * dims)
    left, expected = mask, np.zeros_like(mask)
    for _ in range(7):
        eroded = ndimage.binary_erosion(left, cross, border_value=1)
        expected |= left & ~ndimage.binary_dilation(eroded, cube)
        left = eroded
    soft = SoftSkeleton(6)(torch.from_numpy(mask).float()[None, None])
    assert np.array_equal(soft[0, 0].numpy() > 0.5, expected)


def test_classical_skeletons_are_those_of_scikit_image():
    mask = torch.zeros(2, 1, 20, 30)
    mask[0, 0, 5:12, 3:25] = 1
    mask[1, 0, 2:18, 8:15] = 0.9
    for algorithm in ("lee", "zhang"):
        thinned = ClassicalSkeleton(algorithm)(mask)
        for one, image in zip(thinned, mask, strict=True):
            expected = skimage_skeletonize(image[0].numpy() > 0.5, method=algorithm)
            assert np.array_equal(one[0].numpy() > 0, expected > 0)
    with pytest.raises(UserError, match="images only"):
        ClassicalSkeleton("zhang")(mask[:, :, None])
    with pytest.raises(UserError, match="Did you mean 'lee'"):
        ClassicalSkeleton("le")  # type: ignore[arg-type]


def test_a_learned_skeleton_stays_inside_and_passes_gradients():
    network = nn.Conv2d(1, 1, 3, padding=1)
    x = (torch.rand(1, 1, 8, 8, generator=seeded()) < 0.5).float().requires_grad_()
    skeleton = LearnedSkeleton(network)(x)
    assert (skeleton <= x).all()
    assert set(skeleton.unique().tolist()) <= {0, 1}
    skeleton.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_dice_counts_areas():
    a, b = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    a[0, 0, 0], b[0, 0, :2] = 1, 1
    assert dice(a, b, smooth=0)[0] == pytest.approx(2 * 4 / 12)
    assert dice(a, b)[1] == 1  # two empty masks agree


def test_cldice_counts_centrelines():
    predicted, target = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    predicted[..., 4, 0:6] = 1  # half of it lies beside the target
    target[..., 4, 3:9] = 1
    same = nn.Identity()
    assert cldice(predicted, target, same, smooth=0) == pytest.approx(0.5)
    assert cldice(target, target, same) == 1
    precision, sensitivity = (3 + 1) / (6 + 1), (3 + 1) / (6 + 1)
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert cldice(predicted, target, same) == pytest.approx(expected)


def test_the_loss_weighs_both_terms():
    draw = seeded()
    p = torch.rand(2, 1, 12, 12, generator=draw)
    g = (torch.rand(2, 1, 12, 12, generator=draw) < 0.5).float()
    soft = SoftSkeleton(3)
    area, centre = 1 - dice(p, g), 1 - cldice(p, g, soft)
    torch.testing.assert_close(overlap_loss(p, g, soft, 0.3), 0.7 * area + 0.3 * centre)
    assert torch.equal(overlap_loss(p, g, None, 0.3), area)
    torch.testing.assert_close(overlap_loss(p, g, soft, 1.0, soft(g)), centre)


def test_a_soft_skeleton_ends_with_its_shape_and_loses_nothing_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    shape = torch.zeros_like(values)
    shape[:, :, 3:9, 2:10] = values[:, :, 3:9, 2:10]
    weights = torch.randn(shape.shape, generator=torch.Generator().manual_seed(1))
    eroded, erode = [], baselines._erode

    def counted(x: Tensor) -> Tensor:
        eroded.append(x)
        return erode(x)

    monkeypatch.setattr(baselines, "_erode", counted)

    def all_rounds(x: Tensor) -> Tensor:
        skeleton = F.relu(x - baselines._open(x))
        for _ in range(20):
            x = baselines._erode(x)
            removed = F.relu(x - baselines._open(x))
            skeleton = skeleton + F.relu(removed - skeleton * removed)
        return skeleton

    found = []
    for skeletonise in (SoftSkeleton(20), all_rounds):
        x = shape.clone().requires_grad_()
        eroded.clear()
        out = skeletonise(x)
        (out * weights).sum().backward()
        assert x.grad is not None
        found.append((out.detach(), x.grad, len(eroded)))
    (ours, gradient, calls), (reference, its_gradient, its_calls) = found
    assert torch.equal(ours, reference)
    assert torch.equal(gradient, its_gradient)
    # Six points wide: the third erosion leaves nothing, and nothing is opened then.
    assert (calls, its_calls) == (1 + 2 * 2 + 1, 1 + 2 * 20)
