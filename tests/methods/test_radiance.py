"""Gradient matching against closed forms and NumPy, and the two losses of the adversaries."""

from __future__ import annotations

import copy
import doctest
import math
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods import radiance
from repro.methods.radiance import Judgement, MapLoss, Slopes, adversarial_loss, judged
from repro.models.vision.translation import PatchGAN, ResizeUNet


def maps(seed: int = 0, count: int = 3) -> Tensor:
    return torch.rand(count, 1, 12, 14, generator=torch.Generator().manual_seed(seed)).double()


def plane(a: float, b: float) -> Tensor:
    """a x + b y."""
    x, y = torch.arange(14.0).double(), torch.arange(12.0).double()[:, None]
    return (a * x + b * y)[None, None]


def test_the_docstring_trains() -> None:
    assert doctest.testmod(radiance).failed == 0


# -- Slopes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", ["pixel", "sobel"])
def test_slopes_of_a_plane(derivative: Any) -> None:
    slopes = Slopes(derivative)
    slope = slopes.slope(plane(0.3, -0.4))
    for found, expected in ((slope.x, 0.3), (slope.y, -0.4)):
        inner = found[0, 0, 2:-2, 2:-2]
        torch.testing.assert_close(inner, torch.full_like(inner, expected))
    inner = slopes.magnitude(slope)[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=1e-6)
    for edge in (slope.x[..., 0], slope.x[..., 0, :], slope.y[..., -1], slope.y[..., -1, :]):
        assert not edge.any()


def test_errors_against_numpy() -> None:
    fake, real = maps(0), maps(1)
    found = Slopes()(fake, real)
    parts = []
    for map_ in (fake, real):
        u = map_[:, 0].numpy()
        dy, dx = (g[:, 1:-1, 1:-1] for g in np.gradient(u, axis=(1, 2)))
        parts.append(np.pad(np.stack([dx, dy]), ((0, 0), (0, 0), (1, 1), (1, 1))))
    ours, theirs = parts
    m, target = (np.sqrt((each**2).sum(0) + 1e-8) for each in parts)
    cosine = ((ours * theirs).sum(0) + 1e-8) / (m * target)
    assert found.magnitude.item() == pytest.approx(np.abs(m - target).mean())
    weighted = target / target.mean() * (1 - cosine)
    assert found.direction.item() == pytest.approx(weighted.mean())
    assert found.derivatives.item() == pytest.approx(np.abs(ours - theirs).mean((1, 2, 3)).sum())


def test_what_gradients_do_not_see_costs_nothing() -> None:
    y = maps()
    assert max(map(abs, Slopes()(y, y))) < 1e-12
    assert max(map(abs, Slopes()(y + 0.1, y))) < 1e-12


def test_a_map_turned_upside_down_has_the_same_magnitude_and_opposite_directions() -> None:
    """The border is left out of the mean, since it has no slope in either."""
    y = maps()
    errors = Slopes()(1 - y, y)
    assert errors.magnitude.item() == pytest.approx(0, abs=1e-12)
    assert errors.direction.item() == pytest.approx(2, abs=1e-2)
    assert Slopes(angle="angle")(1 - y, y).direction.item() == pytest.approx(math.pi, abs=5e-2)


def test_a_stretched_map_has_the_same_directions() -> None:
    y = maps()
    errors = Slopes(eps=1e-6)(3 * y, y)
    assert errors.direction.item() == pytest.approx(0, abs=1e-4)
    mean = Slopes(eps=1e-6).magnitude(Slopes().slope(y)).mean().item()
    assert errors.magnitude.item() == pytest.approx(2 * mean, rel=1e-4)


@pytest.mark.parametrize("angle", [0.3, 2.0, 3.0])
def test_directions_are_angles(angle: float) -> None:
    """Of planes; the border, 46 of 168 pixels, has next to no weight."""
    ours, theirs = plane(0.1, 0.0), plane(0.1 * math.cos(angle), 0.1 * math.sin(angle))
    assert Slopes()(ours, theirs).direction.item() == pytest.approx(1 - math.cos(angle), rel=5e-3)
    found = Slopes(angle="angle")(ours, theirs).direction.item()
    assert found == pytest.approx(angle, rel=5e-3)
    other_way = Slopes(angle="angle")(theirs, ours).direction.item()
    assert other_way == pytest.approx(found)


def test_flat_maps_have_finite_gradients() -> None:
    fake = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    for target in (torch.full((1, 1, 8, 8), 0.3), torch.rand(1, 1, 8, 8)):
        (gradient,) = torch.autograd.grad(sum(Slopes()(fake, target)), fake)  # type: ignore[arg-type]
        assert gradient.isfinite().all()


def test_rays_see_what_changes_along_them_alone() -> None:
    y, x = torch.meshgrid(torch.arange(15.0), torch.arange(15.0), indexing="ij")
    origin = torch.zeros(1, 1, 15, 15)
    origin[0, 0, 7, 7] = 1
    distance = torch.hypot(x - 7, y - 7)[None, None]
    slopes = Slopes("radial")
    outwards = slopes.slope(distance, origin).x[0, 0, 1:-1, 1:-1]
    away = distance[0, 0, 1:-1, 1:-1] > 3
    torch.testing.assert_close(outwards[away], torch.ones_like(outwards[away]), rtol=0, atol=0.02)
    around = torch.atan2(y - 7, x - 7)[None, None]
    half = slopes.slope(around, origin).x[0, 0, 1:-1, 8:-1]  # without the jump at π
    assert half[away[:, 7:]].abs().max() < 0.02
    with pytest.raises(UserError, match="origin"):
        slopes.slope(distance)


# -- Sums of terms --------------------------------------------------------------------------------


def test_terms_are_weighted_and_those_without_weight_left_out() -> None:
    fake, real = maps(0), maps(1)
    of_maps = MapLoss({"l1": 100.0, "magnitude": 30.0, "direction": 0.0})
    terms = of_maps.terms(fake, real)
    assert terms.keys() == {"l1", "magnitude"}
    assert terms["l1"].item() == pytest.approx((fake - real).abs().mean().item())
    expected = 100 * terms["l1"] + 30 * Slopes()(fake, real).magnitude
    assert of_maps(fake, real).item() == pytest.approx(expected.item())
    assert MapLoss({})(fake, real) == 0
    assert MapLoss({"ssim": 1.0})(real, real).item() == pytest.approx(0, abs=1e-9)


def test_shuffled_slopes_are_those_of_the_next_map() -> None:
    fake, real = maps(0), maps(1)
    weights = {"l1": 1.0, "magnitude": 1.0, "direction": 1.0}
    control = MapLoss(weights, shuffled=True).terms(fake, real)
    other = Slopes()(fake, real.roll(1, 0))
    assert control["l1"] == (fake - real).abs().mean()
    assert (control["magnitude"], control["direction"]) == (other.magnitude, other.direction)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(MapLoss, {"L1": 1.0}), "l1"),
        (partial(MapLoss, {"l1": -1.0}), "weights.l1 is at least 0"),
        (lambda: Slopes(cast(Any, "pixels")), "pixel"),
    ],
)
def test_what_cannot_be_is_one_line(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert len(str(error.value).splitlines()) == 1


# -- Adversaries ----------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Logits that are the picture, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, condition: Tensor, picture: Tensor) -> Tensor:
        return self.weight * picture


def test_losses_are_cross_entropies() -> None:
    real, fake = 4 * maps(0) - 2, 4 * maps(1) - 2
    of, bce = Brightness(), F.binary_cross_entropy_with_logits
    one, none = torch.ones_like(real), torch.zeros_like(real)
    expected = 0.5 * (bce(real, one) + bce(fake, none))
    assert judged(of, real, real, fake).loss().item() == pytest.approx(expected.item())
    assert adversarial_loss(of, real, fake).item() == pytest.approx(bce(fake, one).item())


def test_accuracy_counts_patches_of_both_kinds() -> None:
    real, fake = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0])
    assert Judgement(real, fake).accuracy() == (0.75 + 0.5) / 2


def test_each_adversary_moves_itself_alone() -> None:
    real, of = maps(), Brightness()
    fake = maps(1).requires_grad_()
    judged(of, real, real, fake).loss().backward()
    assert fake.grad is None
    assert of.weight.grad is not None
    of.weight.grad = None
    adversarial_loss(of, real, fake).backward()
    assert of.weight.grad is None
    assert fake.grad is not None
    assert of.weight.requires_grad


def trained(weights: dict[str, float], adversarial: float, learns: bool) -> dict[str, Tensor]:
    """A generator after three steps."""
    torch.manual_seed(0)
    generator = ResizeUNet([2, 16, 16], width=4)
    discriminator = PatchGAN(3, width=4, strides=[2, 2], head=3, norm=False)
    start = copy.deepcopy(discriminator.state_dict())
    optimizer, other = (
        torch.optim.Adam(model.parameters(), 1e-3) for model in (generator, discriminator)
    )
    of_maps = MapLoss(weights)
    for _ in range(3):
        c, y = torch.rand(2, 2, 16, 16), torch.rand(2, 1, 16, 16)
        fake = generator(c)
        if learns:
            other.zero_grad()
            judged(discriminator, c, y, fake).loss().backward()
            other.step()
        loss = of_maps(fake, y)
        if adversarial:
            loss = loss + adversarial * adversarial_loss(discriminator, c, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert learns != same(start, discriminator.state_dict())
    return generator.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_their_weights_terms_leave_no_trace() -> None:
    gan = trained({"l1": 100.0}, 1.0, True)
    assert same(gan, trained({"l1": 100.0, "magnitude": 0.0, "direction": 0.0}, 1.0, True))
    assert not same(gan, trained({"l1": 100.0, "magnitude": 100.0, "direction": 2.0}, 1.0, True))
    l1 = trained({"l1": 100.0}, 0.0, False)
    assert same(l1, trained({"l1": 100.0}, 0.0, True))
    assert not same(l1, gan)
