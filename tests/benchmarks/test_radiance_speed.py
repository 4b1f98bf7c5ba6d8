"""What maps and slopes cost: the ray tracer on one core, a network against it, a training step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timing import faster

from repro.data.base.iterators import generator_for
from repro.data.worlds.radio import ImageTracer, Material, Rooms, Scenes
from repro.methods.radiance import MapLoss, adversarial_loss, judged
from repro.models.vision.translation import PatchGAN, Pix2PixUNet, ResizeUNet
from repro.toolbox.costs import PeakMemory

SIDE = 16.0
TRACER = ImageTracer((Material("concrete", 12.0, 0.35, 6.0), Material("wood", 4.0, 0.15, 9.0)))
SLOPES = {"l1": 200.0, "magnitude": 100.0, "direction": 2.0}


@pytest.fixture(autouse=True)
def one_core() -> None:
    torch.set_num_threads(1)


def scenes(rooms: int) -> Scenes:
    drawn, full = Rooms().draw(rooms, 2, generator_for(0)), torch.ones(rooms)
    antennas = drawn.antennas._replace(width=math.radians(40) * full, ghz=5 * full)
    return Scenes(drawn.walls, antennas)


@pytest.mark.parametrize(("size", "least"), [(32, 300), (64, 75)])
def test_maps_a_second_on_one_core(size: int, least: float) -> None:
    of = scenes(256)
    TRACER(of.take(slice(16)), size, SIDE)
    start = time.process_time()
    TRACER(of, size, SIDE)
    rate = 256 / (time.process_time() - start)
    print(f"\nmaps of {size} x {size} pixels: {rate:.0f} a second (least {least})")
    assert rate >= least


@pytest.mark.parametrize("batch", [1, 32])
def test_a_network_against_the_ray_tracer(batch: int) -> None:
    """Of one reflection, in the plane. It is told, not judged: there is no least factor."""
    model, x = ResizeUNet([6, 32, 32], width=8).eval(), torch.randn(batch, 6, 32, 32)
    reference = partial(TRACER, scenes(batch), 32, SIDE)
    with torch.no_grad():
        faster(f"{batch} maps by a network, against tracing", partial(model, x), reference, 0.0)


def step_of(weights: dict[str, float], width: int = 16) -> Callable[[], object]:
    """A step on one map of 256 x 256 pixels, by default at a quarter of the published width."""
    generator = Pix2PixUNet([6, 256, 256], width=width)
    discriminator = PatchGAN(7, width=width)
    optimizers = [torch.optim.Adam(each.parameters(), 2e-4) for each in (generator, discriminator)]
    x, y, of_maps = torch.rand(1, 6, 256, 256), torch.rand(1, 1, 256, 256), MapLoss(weights)

    def step() -> None:
        fake = generator(x)
        optimizers[1].zero_grad()
        judged(discriminator, x, y, fake).loss().backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (adversarial_loss(discriminator, x, fake) + of_maps(fake, y)).backward()
        optimizers[0].step()

    return step


def test_a_step_with_slopes_against_one_without() -> None:
    faster("a step at 256 x 256 with slopes", step_of(SLOPES), step_of({"l1": 200.0}), 0.8)


def test_memory_of_a_step() -> None:
    """Of the published networks."""
    step = step_of(SLOPES, width=64)
    with PeakMemory(torch.device("cpu")) as memory:
        step()
    print(f"\npeak of a step of U-Net-256 and 70 x 70 PatchGAN: {memory.peak / 2**20:.0f} MB")
    assert memory.peak > 0
