"""The diffusion process against closed forms of Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.toolbox.diffusion import Discrete, ScaledLinear, VPProcess

PROCESS = VPProcess()
STD = 0.5


def exact(x: Tensor, time_B: Tensor) -> Tensor:
    """The best noise predictor for examples from N(0, STD^2)."""
    alpha = PROCESS.alpha_bar(time_B)[:, None]
    return (1 - alpha).sqrt() * x / (alpha * STD**2 + 1 - alpha)


def test_alpha_bar_is_the_integral_of_beta() -> None:
    time = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(PROCESS.beta(time), time)
    torch.testing.assert_close(PROCESS.alpha_bar(time[1:]), torch.exp(-integral))
    assert PROCESS.alpha_bar(time[-1]) < 1e-4


def test_noised_examples_have_the_variance_of_the_lemma() -> None:
    torch.manual_seed(0)
    x0, noise = STD * torch.randn(20_000, 4), torch.randn(20_000, 4)
    time = torch.full((20_000,), 0.3)
    alpha = float(PROCESS.alpha_bar(time[0]))
    variance = PROCESS.noised(x0, time, noise).var()
    assert float(variance) == pytest.approx(alpha * STD**2 + 1 - alpha, rel=0.02)


@pytest.mark.parametrize("sampler", ["euler_maruyama", "ddim"])
def test_samplers_recover_gaussian_data(sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = getattr(PROCESS, sampler)(exact, (20_000, 1), 200, generator)
    assert float(samples.std()) == pytest.approx(STD, rel=0.03)
    assert abs(float(samples.mean())) < 0.02


def test_the_step_to_zero_takes_away_the_noise_that_is_left() -> None:
    """At a point mass in 0: in one step less to 1e-3, then ``x + h beta (x / 2 + score)`` there."""

    def point(x: Tensor, time_B: Tensor) -> Tensor:
        return x / (1 - PROCESS.alpha_bar(time_B)).sqrt()[:, None]

    def sample(steps: int, **kwargs: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return PROCESS.euler_maruyama(point, (4_000, 1), steps, generator, **kwargs)

    before, after = sample(1000), sample(1000, to_zero=True)
    assert float(before.std()) == pytest.approx(0.0075, rel=0.05)
    assert float(after.std()) == pytest.approx(0.00125, rel=0.05)


def test_samples_are_a_function_of_the_generator() -> None:
    draws = [
        PROCESS.euler_maruyama(exact, (3, 2), 5, torch.Generator().manual_seed(1)) for _ in range(2)
    ]
    assert torch.equal(*draws)


def test_ddim_keeps_within_limits() -> None:
    def wrong(x: Tensor, time_B: Tensor) -> Tensor:
        return 0.9 * exact(x, time_B)

    samples = [
        PROCESS.ddim(wrong, (500, 1), 50, torch.Generator().manual_seed(0), limits=limits)
        for limits in (None, (-1.0, 1.0))
    ]
    assert samples[0].abs().max() > 2
    assert samples[1].abs().max() < 1.1  # a little noise is left at the end
    exactly = PROCESS.ddim(
        exact, (500, 1), 50, torch.Generator().manual_seed(0), limits=(-100.0, 100.0)
    )
    torch.testing.assert_close(
        exactly, PROCESS.ddim(exact, (500, 1), 50, torch.Generator().manual_seed(0))
    )


@pytest.mark.parametrize(
    "process", [PROCESS, ScaledLinear(), Discrete(), Discrete(0.1, 20.0, scaled=False)]
)
def test_processes_agree_with_their_rates_and_find_times_again(process: VPProcess) -> None:
    time = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(process.beta(time), time)
    torch.testing.assert_close(process.log_alpha_bar(time[1:]), -integral, rtol=1e-4, atol=1e-5)
    for t in (1e-3, 0.01, 0.5, 1.0):
        alpha, sigma = process.signal(t)
        assert alpha**2 + sigma**2 == pytest.approx(1)
        assert process.time_at(2 * math.log(alpha)) == pytest.approx(t, abs=1e-9)


def test_stable_diffusions_noise_levels() -> None:
    """Least and most σ / α of its scheduler, from the published betas 0.00085 to 0.012."""
    alpha, sigma = Discrete().signal(1.0)
    assert sigma / alpha == pytest.approx(14.6146, abs=1e-3)
    alpha, sigma = Discrete().signal(1e-3)
    assert sigma / alpha == pytest.approx(0.02917, abs=1e-5)
    assert ScaledLinear().signal(1.0)[1] / ScaledLinear().signal(1.0)[0] == pytest.approx(
        14.5, abs=0.1
    )
