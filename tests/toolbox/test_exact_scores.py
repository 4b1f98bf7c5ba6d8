"""Exact scores against automatic differentiation, sampling and limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repro.knobs import KnobError
from repro.toolbox.exact_scores import PointMixture, tweedie

FIVE = torch.tensor([[0.9, 0.9], [0.9, -0.9], [-0.9, 0.9], [-0.9, -0.9], [0, 0]]).double()


def full(B: int, value: float) -> Tensor:
    return torch.full((B,), value, dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_the_score_is_the_gradient_of_the_log_density(variance: float) -> None:
    law = PointMixture(FIVE, torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]).double(), variance)
    x = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    alpha = torch.rand(20, dtype=torch.float64)
    h = 1 - alpha.square()
    (gradient,) = torch.autograd.grad(law.log_density(x, alpha, h).sum(), x)
    torch.testing.assert_close(law.score(x, alpha, h), gradient)


def test_the_log_density_is_that_of_torch() -> None:
    law, x = PointMixture.uniform(FIVE, 0.2), torch.randn(7, 2).double()
    parts = torch.distributions.Normal(0.8 * FIVE, math.sqrt(0.8**2 * 0.2 + 0.36))
    expected = parts.log_prob(x[:, None]).sum(2).logsumexp(1) - math.log(5)
    torch.testing.assert_close(law.log_density(x, full(7, 0.8), full(7, 0.36)), expected)


def test_limits_of_little_and_of_much_noise() -> None:
    law = PointMixture.uniform(FIVE)
    near = law.posterior_mean(FIVE + 0.05, full(5, 1.0), full(5, 1e-4))
    torch.testing.assert_close(near, FIVE)
    x = 3 * torch.randn(5, 2, dtype=torch.float64)
    far = law.posterior_mean(x, full(5, 1e-9), full(5, 1.0))
    torch.testing.assert_close(far, torch.zeros(5, 2).double(), atol=1e-7, rtol=0)
    middle = law.posterior_mean(torch.zeros(1, 2).double(), full(1, 0.7), full(1, 0.5))
    assert middle.abs().max() < 1e-12


def test_one_gaussian_shrinks_linearly() -> None:
    """x_0 from N(0, v): E[x_0 | x_t] = αv / (α²v + h) x_t."""
    law, x = PointMixture.uniform(torch.zeros(1, 3).double(), 0.5), torch.randn(4, 3).double()
    found = law.posterior_mean(x, full(4, 0.6), full(4, 0.64))
    torch.testing.assert_close(found, 0.3 / (0.18 + 0.64) * x)


@pytest.mark.parametrize("variance", [0.0, 0.2])
def test_what_is_left_of_x0_is_noise(variance: float) -> None:
    """Over draws, x_0 − E[x_0 | x_t] is uncorrelated with any function of x_t."""
    law = PointMixture(FIVE, torch.tensor([0.4, 0.1, 0.1, 0.1, 0.3]).double(), variance)
    x0 = law.sample(40_000, torch.Generator().manual_seed(0))
    x = 0.8 * x0 + 0.6 * torch.randn(x0.shape, dtype=torch.float64)
    left = x0 - law.posterior_mean(x, full(len(x), 0.8), full(len(x), 0.36))
    for function in (torch.ones_like(x), x, x.sin(), x.square()):
        assert (left * function).mean(0).abs().max() < 0.02


def test_tweedie_of_a_point_is_the_conditional_score() -> None:
    x, x0 = torch.randn(2, 6, 2, dtype=torch.float64)
    found = tweedie(x0, x, full(6, 0.8), full(6, 0.36))
    torch.testing.assert_close(found, -(x - 0.8 * x0) / 0.36)


def test_a_negative_variance_is_refused() -> None:
    with pytest.raises(KnobError, match="variance"):
        PointMixture.uniform(FIVE, -1.0)
