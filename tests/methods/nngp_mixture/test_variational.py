"""The sparse process against exact inference, Monte Carlo and its Gaussian limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from repro.errors import UserError
from repro.internals import standard_gamma
from repro.methods.nngp_mixture import NNGPKernel, SparseProcess, inverse_gamma_kl
from repro.methods.nngp_mixture.kernels import unsoftplus


def points(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def process(alpha: float | None = None, **options: Any) -> SparseProcess:
    sparse = SparseProcess(NNGPKernel(depth=2), points(5), classes=3, alpha=alpha, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sparse.mean.normal_(generator=generator)
        sparse.raw_variance.uniform_(-2, 1, generator=generator)
    return sparse


def set_scale(sparse: SparseProcess, a: float, b: float) -> None:
    with torch.no_grad():
        sparse.raw_scale.copy_(unsoftplus([a, b]))


def test_kl_of_inverse_gammas() -> None:
    a, b = torch.tensor([3.0, 5.0]).double()
    assert float(inverse_gamma_kl(a, b, 2.0, 2.0)) == pytest.approx(0.262219, abs=1e-6)
    assert float(inverse_gamma_kl(a, b, 3.0, 5.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha", [None, 2.5])
def test_divergence_against_monte_carlo(alpha: float | None) -> None:
    sparse = process(alpha)
    draws, generator = 40_000, torch.Generator().manual_seed(2)
    with torch.no_grad():
        K = sparse.kernel(sparse.inducing) + sparse.jitter * torch.eye(5)
        scale = torch.ones(draws, dtype=torch.float64)
        of_scale: Tensor | float = 0.0
        if alpha is not None:
            set_scale(sparse, 4.0, 3.0)
            scale = 3.0 / standard_gamma(
                torch.full((draws,), 4.0, dtype=torch.float64), generator=generator
            )
            of_scale = _log_inverse_gamma(scale, 4.0, 3.0) - _log_inverse_gamma(scale, alpha, 2.0)
        noise = torch.randn(draws, 5, 3, generator=generator, dtype=torch.float64)
        u = sparse.mean + (scale[:, None, None] * sparse.variance).sqrt() * noise
        total = torch.zeros(draws, dtype=torch.float64) + of_scale
        for c in range(3):
            q = MultivariateNormal(sparse.mean[:, c], sparse.variance[:, c].diag())
            p = MultivariateNormal(torch.zeros(5).double(), K)
            root = scale.sqrt()[:, None]
            total += q.log_prob(sparse.mean[:, c] + (u[:, :, c] - sparse.mean[:, c]) / root)
            total -= p.log_prob(u[:, :, c] / root)  # the powers of σ cancel
        expected, error = total.mean(), total.std() / draws**0.5
        assert abs(float(sparse.divergence() - expected)) < 4 * float(error)


def _log_inverse_gamma(s: Tensor, a: float, b: float) -> Tensor:
    a_, b_ = torch.tensor(a).double(), torch.tensor(b).double()
    return a_ * b_.log() - torch.lgamma(a_) - (a_ + 1) * s.log() - b_ / s


def test_marginals_are_those_of_the_joint_law() -> None:
    sparse, x = process(), points(4, seed=3)
    with torch.no_grad():
        mean, variance = sparse.marginals(x)
        K = sparse.kernel(sparse.inducing) + 1e-6 * torch.eye(5)
        K_xZ = sparse.kernel(x, sparse.inducing)
        A = K_xZ @ torch.linalg.inv(K)
        torch.testing.assert_close(mean, A @ sparse.mean)
        for c in range(3):
            joint = A @ sparse.variance[:, c].diag() @ A.T + sparse.kernel(x) - A @ K_xZ.T
            torch.testing.assert_close(variance[:, c], joint.diagonal())


def test_with_all_points_inducing_it_is_the_exact_process() -> None:
    """For a Gaussian likelihood the best q(u) is known, and so is what it predicts."""
    x, star = points(5), points(4, seed=4)
    y = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0], dtype=torch.float64)
    kernel, noise = NNGPKernel(depth=2), 0.2
    sparse = SparseProcess(kernel, x, classes=1, jitter=1e-9)
    with torch.no_grad():
        K, K_star = kernel(x), kernel(x, star)
        gain = K @ torch.linalg.inv(K + noise * torch.eye(5))
        sparse.mean.copy_((gain @ y)[:, None])
        mean, _ = sparse.marginals(star)
        expected = K_star.T @ torch.linalg.solve(K + noise * torch.eye(5), y)
        torch.testing.assert_close(mean[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_certain_scale_makes_the_mixture_a_gaussian_process() -> None:
    fixed, mixture, x = process(), process(alpha=2.0), points(6, seed=5)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    set_scale(mixture, 1e8, 1e8)
    for one, other in zip(mixture.marginals(x), fixed.marginals(x), strict=True):
        torch.testing.assert_close(one, other)
    probabilities = [
        each.log_predictive(x, 20_000, torch.Generator().manual_seed(seed)).exp()
        for seed, each in enumerate((fixed, mixture))
    ]
    torch.testing.assert_close(*probabilities, atol=0.01, rtol=0)
    # The divergence differs by that of the scales alone.
    a, b = mixture.scale_posterior()
    difference = mixture.divergence() - inverse_gamma_kl(a, b, 2.0, 2.0)
    torch.testing.assert_close(difference, fixed.divergence(), rtol=1e-6, atol=0)
    assert float(mixture.elbo(x, y, 6, 10)) < 0


def test_shared_draws_of_the_scale_and_the_official_ones() -> None:
    x = points(1, seed=6)
    shared, apart = process(1.0), process(1.0, sampling="official_iid")
    generator = torch.Generator().manual_seed(0)

    def dependence(sparse: SparseProcess) -> float:
        with torch.no_grad():
            mean, variance = sparse.marginals(x)
            f = sparse.sample(x, 20_000, generator)
            size = ((f - mean) / variance.sqrt()).abs()[:, 0].log()
        return float(torch.corrcoef(size.T)[0, 1])

    assert dependence(shared) > 0.2
    assert abs(dependence(apart)) < 0.03
    sums = shared.log_predictive(x, 150).exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_training_raises_the_bound_and_reaches_every_parameter() -> None:
    x, sparse = points(60, seed=7), SparseProcess(NNGPKernel(depth=2), points(8), 2, alpha=2.0)
    y = (x.prod(1) > 0).long()
    optimizer = torch.optim.Adam(sparse.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    bounds = []
    for _ in range(60):
        optimizer.zero_grad()
        bound = sparse.elbo(x, y, 60, 16, generator)
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    assert bounds[-1] > bounds[0] + 0.05
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in sparse.parameters())


def test_a_batch_carries_its_part_of_the_divergence() -> None:
    """The bound per example: two examples of 40 stand for a fortieth of it, not for a half."""
    sparse, x, y = process(alpha=2.0), points(2, seed=8), torch.tensor([0, 2])

    def bound(size: int) -> Tensor:
        return sparse.elbo(x, y, size, 3, torch.Generator().manual_seed(0))

    with torch.no_grad():
        divergence = sparse.divergence()
        torch.testing.assert_close(bound(40) - bound(10), divergence * (1 / 10 - 1 / 40))


def test_bad_options_say_so() -> None:
    with pytest.raises(UserError, match=r"alpha is positive or null, not 0\.0"):
        SparseProcess(NNGPKernel(), points(3), 2, alpha=0.0)
    with pytest.raises(UserError, match="shared or official_iid"):
        SparseProcess(NNGPKernel(), points(3), 2, sampling="iid")  # type: ignore[arg-type]
