"""The samplers on distributions whose moments are known, and their limits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repro.methods.nn_potential_uq import SGMCMC, accepted_steps, polynomial_rates


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(
    slope: Callable[[Tensor], Tensor], start: Tensor, burn_in: int, steps: int, every: int, **knobs
) -> Tensor:
    """States of many chains after the burn-in, one row each."""
    draws, theta = generator(1), nn.Parameter(start.clone())
    noise = lambda like: torch.randn(like.shape, generator=draws)  # noqa: E731
    sampler, kept = SGMCMC([theta], noise=noise, **knobs), []
    for step in range(steps):
        theta.grad = slope(theta.detach())
        sampler.step()
        if step >= burn_in and step % every == 0:
            kept.append(theta.detach().clone())
    return torch.cat(kept)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_plain_sgld_has_its_known_variance_on_a_gaussian(temperature: float) -> None:
    k = torch.tensor([1.0, 4.0])
    found = sampled(
        lambda x: k * x, torch.zeros(2000, 2), 150, 300, 10,
        lr=0.1, temperature=temperature, preconditioned=False,
    )  # fmt: skip
    expected = temperature / (k * (1 - 0.1 * k / 2))
    assert torch.allclose(found.var(0), expected, rtol=0.05)


def banana(x: Tensor) -> Tensor:
    """Gradient of x²/2 + (y − x²/2)² / (2·¼)."""
    first, second = x.unbind(-1)
    off = 4 * (second - first.square() / 2)
    return torch.stack([first - off * first, off], -1)


@pytest.mark.parametrize(("friction", "lr"), [(1.0, 0.005), (0.2, 0.001)])
def test_a_banana_has_its_moments(friction: float, lr: float) -> None:
    """x ~ N(0, 1), y ~ N(x²/2, ¼): E y = ½, Var y = ¼ + ½, E x²y = 3/2.

    Chains start where y has forgotten x, and have to find the banana.
    """
    x, noise = torch.randn(2, 3000, generator=generator())
    start = torch.stack([x, 0.5 + noise.abs()], -1)
    found = sampled(
        banana, start, 400, 700, 50, lr=lr, friction=friction, preconditioned=False
    )  # fmt: skip
    x, y = found.unbind(-1)
    assert x.mean() == pytest.approx(0, abs=0.05)
    assert x.var() == pytest.approx(1, rel=0.06)
    assert y.mean() == pytest.approx(0.5, rel=0.06)
    assert y.var() == pytest.approx(0.75, rel=0.1)
    assert (x.square() * y).mean() == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("friction", [1.0, 0.1])
def test_preconditioned_sampling_of_a_badly_scaled_gaussian(friction: float) -> None:
    """With a long memory G is nearly constant, so that what Γ would correct is small."""
    k = torch.tensor([1.0, 100.0])
    found = sampled(
        lambda x: k * x, torch.randn(1000, 2, generator=generator()) / k.sqrt(), 1200, 1500, 20,
        lr=0.01 * friction, alpha=0.998, friction=friction,
    )  # fmt: skip
    assert torch.allclose(found.var(0) * k, torch.ones(2), rtol=0.12)


def trajectory(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Tensor:
    theta = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    optimizer, path = make([theta]), []
    for step in range(20):
        theta.grad = (1 + step % 3) * theta.detach().pow(3) + 1
        optimizer.step()
        path.append(theta.detach().clone())
    return torch.stack(path)


def test_without_noise_it_is_rmsprop_from_a_square_of_one() -> None:
    def reference(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        rms = torch.optim.RMSprop(params, lr=0.01, alpha=0.9, eps=1e-5)
        start = {"step": torch.tensor(0.0), "square_avg": torch.ones(2, 2)}
        rms.state[params[0]].update(start)
        return rms

    ours = trajectory(lambda params: SGMCMC(params, lr=0.01, temperature=0.0))
    assert torch.allclose(ours, trajectory(reference), atol=1e-6)


def test_steps_and_schedule_are_those_of_jax_sgmc() -> None:
    """Where its 0.1.5 ends after 20 steps of pSGLD in double precision, given the same noise."""
    data = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]], dtype=torch.float64)
    theta = nn.Parameter(torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64))
    t = torch.arange(20, dtype=torch.float64)[:, None]
    noise = iter(torch.sin(3 * t + torch.arange(3)))
    sampler = SGMCMC([theta], noise=lambda _: next(noise))
    for rate in polynomial_rates(0.05, 0.01, 20).tolist():
        sampler.param_groups[0]["lr"] = rate
        theta.grad = (theta.detach() - data).sum(0) + theta.detach()  # of all data and the prior
        sampler.step()
    end = [0.3316556773434546, -0.3764677282698944, 1.9393555430375369]
    assert theta.tolist() == pytest.approx(end, rel=1e-12)


def test_a_temperature_of_the_noise_is_one_of_the_potential() -> None:
    """Up to the damping, and to the start of V, which is the same where all gradients are large."""
    T, ends = 0.01, []
    for divided in (False, True):
        rows = iter(torch.randn(50, 6, generator=generator(3)).double())
        theta = nn.Parameter(torch.linspace(0.5, 2, 6, dtype=torch.float64))
        sampler = SGMCMC(
            [theta], lr=0.01, temperature=1.0 if divided else T, alpha=0.5, damping=1e-12,
            noise=functools.partial(lambda left, _: next(left), rows),
        )  # fmt: skip
        for _ in range(50):
            theta.grad = 1e6 * theta.detach() / (T if divided else 1)
            sampler.step()
        ends.append(theta.detach().clone())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)


def test_each_chain_has_a_rate_and_a_temperature_of_its_own() -> None:
    rates, temperatures = torch.tensor([[0.01], [0.0]]), torch.tensor([[0.0], [1.0]])
    path = trajectory(lambda params: SGMCMC(params, lr=rates, temperature=temperatures))
    alone = trajectory(lambda params: SGMCMC(params, lr=0.01, temperature=0.0))
    assert torch.allclose(path[:, 0], alone[:, 0])
    assert torch.equal(path[-1, 1], torch.tensor([0.5, 3.0]))


def test_the_schedule_has_the_published_constants() -> None:
    rates = polynomial_rates(0.005, 0.000375, 1000)
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.allclose(rates, 0.0036639 * (0.389789 + t).pow(-0.33), rtol=2e-5)
    assert torch.equal(polynomial_rates(0.1, 0.1, 3), torch.full((3,), 0.1))


def test_steps_are_kept_in_proportion_to_their_rates() -> None:
    rates, counts = torch.tensor([9.0, 9.0, 4.0, 2.0, 1.0, 1.0]), torch.zeros(6)
    draws = generator()
    for _ in range(1000):
        counts[accepted_steps(rates, 2, 1, draws)] += 1
    assert counts[:2].sum() == 0
    assert torch.allclose(counts[2:] / 1000, rates[2:] / 8, atol=0.05)
    assert accepted_steps(rates, 2, 4, draws).tolist() == [2, 3, 4, 5]
