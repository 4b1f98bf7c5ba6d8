"""Gradient noise against closed forms, limits and optax's formula."""

from __future__ import annotations

import copy
import doctest
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import repro.methods.gradient_noise as gradient_noise
from repro.errors import UserError
from repro.methods.gradient_noise import (
    GradientNoise,
    add_noise_,
    clip_members_,
    escape_time,
    noise_variance,
    walk_variance,
)

torch.set_num_threads(1)


def noise_walk(steps: int, lr: float, **knobs) -> torch.Tensor:
    """The weights that noise alone makes of 200,000 zeros."""
    model = nn.ParameterList(
        [nn.Parameter(torch.zeros(100_000)), nn.Parameter(torch.zeros(100_000))]
    )
    method = GradientNoise(**knobs)
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        for parameter in model:
            parameter.grad = torch.zeros_like(parameter)
        method.clip(model.parameters(), None)
        method.before_step(model)
        optimizer.step()
    return torch.cat([parameter.detach() for parameter in model])


def test_the_docstring_runs() -> None:
    assert doctest.testmod(gradient_noise).failed == 0


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_weights_walk_with_the_summed_variance(steps: int, eta: float) -> None:
    # A standard deviation taken for a variance, noise on a copy, or noise scaled by the rate would
    # all miss this by far: the error of the estimate is 0.3 %.
    weights = noise_walk(steps, lr=0.1, eta=eta)
    expected = 0.1**2 * eta * sum((1 + i) ** -0.55 for i in range(steps))
    assert walk_variance(steps, 0.1, eta) == pytest.approx(expected)
    assert weights.var().item() == pytest.approx(expected, rel=0.02)
    assert abs(weights.mean().item()) < 5 * math.sqrt(expected / len(weights))


def test_standard_deviations() -> None:
    method = GradientNoise(eta=0.01)
    assert method.std == pytest.approx(0.1)
    method = GradientNoise(eta=1.0)
    method.step = 999
    assert method.std == pytest.approx(0.1496, abs=1e-4)
    assert GradientNoise(schedule="none").std == 0
    assert GradientNoise(eta=0.3, schedule="constant", gamma=9.0).std == pytest.approx(0.3**0.5)
    # optax.add_noise: variance eta / (1 + count)^gamma.
    assert noise_variance(41, 0.3, 0.55) == pytest.approx(0.3 / 42**0.55)


def test_escape_times() -> None:
    for eta, steps in ((1.0, 4), (0.3, 54), (0.1, 613), (0.05, 2.9e3), (0.01, 1.0e5)):
        assert escape_time(50, 0.1, eta) == pytest.approx(steps, rel=0.1)
    assert escape_time(50, 0.1, 0.01, init_std=0.3) == 0
    # At that step the walk has reached He's variance, up to the integral for the sum.
    assert walk_variance(2870, 0.1, 0.05) == pytest.approx(2 / 50, rel=0.05)
    sooner = round(escape_time(50, 0.1, 0.05, init_std=0.1))
    assert 0.1**2 + walk_variance(sooner, 0.1, 0.05) == pytest.approx(2 / 50, rel=0.05)


def train(method: GradientNoise, model: nn.Module, steps: int, clip: float | None = 1.0) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        method.clip(model.parameters(), clip)
        method.before_step(model)
        optimizer.step()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("knobs", [{"eta": 0.0}, {"schedule": "none", "eta": 1.0}])
def test_without_noise_it_is_plain_clipped_sgd_bit_for_bit(knobs) -> None:
    ours, theirs = small_net(), small_net()
    method = GradientNoise(**knobs)
    train(method, ours, 20, clip=0.1)
    assert not method.generators  # nothing was drawn
    torch.manual_seed(1)
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("order", ["after_clip", "before_clip"])
def test_noise_comes_after_the_clip(order: Any) -> None:
    parameter = nn.Parameter(torch.zeros(50))
    model = nn.ParameterList([parameter])
    method = GradientNoise(eta=1.0, gamma=0.0, order=order)
    direction = torch.zeros(50)
    direction[0] = 100.0
    seen = []
    for _ in range(2000):
        parameter.grad = direction.clone()
        method.clip(model.parameters(), 1.0)
        method.before_step(model)
        seen.append(parameter.grad)
    gradients = torch.stack(seen)
    norms = gradients.norm(dim=1)
    if order == "before_clip":
        assert norms.max() <= 1 + 1e-5
    else:
        assert norms.mean().item() == pytest.approx(math.sqrt(51), rel=0.02)
        # The mean over draws is the clipped gradient.
        assert torch.allclose(gradients.mean(0), direction / 100, atol=5 / math.sqrt(2000))


def test_tensors_and_steps_get_independent_noise() -> None:
    tensors = [torch.zeros(50_000), torch.zeros(50_000, dtype=torch.float64), torch.zeros(50_000)]
    generators = {"cpu": torch.Generator().manual_seed(0)}
    add_noise_(tensors, 1.0, generators)
    again = [torch.zeros(50_000)]
    add_noise_(again, 1.0, generators)
    rows = torch.stack([tensor.double() for tensor in [*tensors, *again]])
    correlations = torch.corrcoef(rows) - torch.eye(4)
    assert correlations.abs().max() < 0.025


def test_the_seed_decides_the_noise_and_no_other_random_number_does() -> None:
    state = torch.get_rng_state()
    first = noise_walk(3, 0.1, eta=0.1, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(noise_walk(3, 0.1, eta=0.1, seed=5), first)
    assert not torch.equal(noise_walk(3, 0.1, eta=0.1, seed=6), first)


def test_a_resumed_run_goes_on_with_the_same_noise() -> None:
    straight = small_net()
    train(GradientNoise(eta=0.1, seed=3), straight, 10)
    model, first = small_net(), GradientNoise(eta=0.1, seed=3)
    train(first, model, 4)
    second = GradientNoise(eta=0.1, seed=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, model, 6)
    for a, b in zip(straight.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_error_scaling_scales_the_variance_of_each_network() -> None:
    model: Any = nn.ParameterList([nn.Parameter(torch.zeros(2, 50_000))])
    model.members = 2
    method = GradientNoise(eta=1.0, schedule="error_scaled")
    method.attach(model)
    method.observe_error(torch.tensor([0.25, 0.0]))
    model[0].grad = torch.zeros(2, 50_000)
    method.before_step(model)
    assert model[0].grad[0].var().item() == pytest.approx(0.25, rel=0.05)
    assert model[0].grad[1].abs().max() == 0
    method.observe_error(0.25)  # of both
    model[0].grad = torch.zeros(2, 50_000)
    expected = 0.25 * method.std**2
    method.before_step(model)
    assert model[0].grad.var().item() == pytest.approx(expected, rel=0.05)
    method.observe_error(0.0)
    model[0].grad = torch.zeros(2, 50_000)
    method.before_step(model)
    assert model[0].grad.abs().max() == 0


def test_stacked_networks_are_clipped_one_by_one() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 5), torch.randn(3, 1, 5)]
    gradients[0][1] *= 100
    expected = []
    for member in range(3):
        own = [nn.Parameter(torch.zeros_like(g[member])) for g in gradients]
        for parameter, g in zip(own, gradients, strict=True):
            parameter.grad = g[member].clone()
        nn.utils.clip_grad_norm_(own, 5.0)
        expected.append([parameter.grad for parameter in own])
    norms = clip_members_(gradients, 5.0)
    assert norms.shape == (3,)
    for member in range(3):
        for g, e in zip(gradients, expected[member], strict=True):
            assert e is not None
            assert torch.allclose(g[member], e)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"eta": -1.0}, "eta is at least 0"),
        ({"gamma": -0.1}, "gamma is at least 0"),
        ({"schedule": "polly"}, "Did you mean 'poly'"),
        ({"order": "middle"}, "order is after_clip or before_clip"),
    ],
)
def test_a_bad_knob_is_one_line(knobs, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GradientNoise(**knobs)
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused() -> None:
    with pytest.raises(UserError, match="sparse=False"):
        GradientNoise().attach(nn.Embedding(4, 2, sparse=True))
