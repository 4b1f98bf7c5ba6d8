"""Masks against torch.distributions, a two-dimensional blur written plainly, and fixed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.noise_mask import BetaLogits, SmoothUpsampling, log_sum_density
from repro.methods.noise_mask.masks import EDGE, flat_loss_scale
from repro.toolbox.score_function import surrogate


def logits(alpha: list[float], beta: list[float]) -> BetaLogits:
    return BetaLogits(torch.tensor([alpha]).log(), torch.tensor([beta]).log())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_densities_of_fixed_numbers() -> None:
    found = logits([1, 2, 0.5], [1, 3, 0.5]).log_density(torch.tensor([[0.25, 0.5, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.4055, 0.0592]]), atol=1e-4, rtol=0)
    assert float(log_sum_density(found)) == pytest.approx(1.2701, abs=1e-4)
    assert float(found.sum()) == pytest.approx(0.4647, abs=1e-4)


def test_densities_are_those_of_torch() -> None:
    given = BetaLogits(torch.randn(5, 9), torch.randn(5, 9))
    mask = given.sample(seeded())
    expected = Beta(given.log_alpha.exp(), given.log_beta.exp()).log_prob(mask)
    torch.testing.assert_close(given.log_density(mask), expected, rtol=1e-4, atol=1e-4)


def test_the_score_by_hand() -> None:
    """d log p / d log α = α (ψ(α+β) - ψ(α) + log m)."""
    log_alpha = torch.tensor([[0.3, -0.4]], requires_grad=True)
    given, mask = BetaLogits(log_alpha, torch.tensor([[0.9, 0.1]])), torch.tensor([[0.2, 0.7]])
    given.log_density(mask).sum().backward()
    alpha, both = log_alpha.detach().exp(), log_alpha.detach().exp() + given.log_beta.exp()
    expected = alpha * (torch.digamma(both) - torch.digamma(alpha) + mask.log())
    assert log_alpha.grad is not None
    torch.testing.assert_close(log_alpha.grad, expected)


@pytest.mark.parametrize("grid", [1, 8, 64])
def test_flat_masks_make_a_factor_of_log_cells(grid: int) -> None:
    flat = BetaLogits(torch.zeros(3, grid**2), torch.zeros(3, grid**2))
    density = flat.log_density(flat.sample(seeded()))
    torch.testing.assert_close(density, torch.zeros(3, grid**2))
    torch.testing.assert_close(log_sum_density(density), torch.full((3,), flat_loss_scale(grid)))


def test_the_gradient_of_the_log_sum_weighs_scores_by_densities() -> None:
    density = torch.randn(4, 6, requires_grad=True)
    log_sum_density(density).sum().backward()
    assert density.grad is not None
    torch.testing.assert_close(density.grad, density.detach().softmax(1))


def test_draws_have_the_moments_of_beta_variables() -> None:
    given = logits([0.5, 2, 30], [0.5, 5, 10])
    many = BetaLogits(*(each.expand(20_000, -1) for each in given)).sample(seeded())
    beta = Beta(given.log_alpha.exp(), given.log_beta.exp())
    torch.testing.assert_close(many.mean(0), beta.mean[0], atol=0.01, rtol=0)
    torch.testing.assert_close(many.var(0), beta.variance[0], atol=0.005, rtol=0)
    assert not many.requires_grad


def test_draws_at_the_edges_are_clamped() -> None:
    given = BetaLogits(torch.full((1, 4000), -9.0), torch.full((1, 4000), -9.0))
    mask = given.sample(seeded())
    assert (mask.min().item(), mask.max().item()) == pytest.approx((EDGE, 1 - EDGE), abs=1e-7)
    assert given.log_density(mask).isfinite().all()


def plain_upsampling(mask: Tensor, size: tuple[int, int], kernel: int, sigma: float) -> Tensor:
    """Nearest neighbours and a blur with a full two-dimensional kernel."""
    grid = math.isqrt(mask.shape[1])
    picture = F.interpolate(mask.view(-1, 1, grid, grid), size, mode="nearest")
    reach = kernel // 2
    line = torch.distributions.Normal(0, sigma).log_prob(torch.arange(-reach, reach + 1.0)).exp()
    square = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(F.pad(picture, (reach,) * 4, mode="reflect"), square[None, None])


@pytest.mark.parametrize(
    ("grid", "size", "kernel", "sigma"),
    [(8, (16, 16), 3, 1.0), (8, (16, 16), 7, 3.0), (64, (224, 224), 13, 6.0), (3, (7, 10), 5, 1.0)],
)
def test_pictures_are_upsampled_then_blurred(
    grid: int, size: tuple[int, int], kernel: int, sigma: float
) -> None:
    mask = torch.rand(2, grid**2)
    pictures = SmoothUpsampling(grid, size, kernel, sigma)(mask)
    expected = plain_upsampling(mask, size, kernel, sigma)
    torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=1e-5)
    blurred_first = plain_upsampling(mask, (grid, grid), min(kernel, 2 * grid - 1), sigma)
    other = F.interpolate(blurred_first, size, mode="nearest")
    assert not torch.allclose(pictures, other, atol=1e-3)


def test_a_constant_mask_stays_constant_and_all_stay_in_range() -> None:
    upsampling = SmoothUpsampling(4, (9, 9), 5, 2.0)
    torch.testing.assert_close(upsampling(torch.full((1, 16), 0.3)), torch.full((1, 1, 9, 9), 0.3))
    pictures = upsampling(torch.rand(50, 16))
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_masks_of_the_published_size_vary_as_measured() -> None:
    """Mean .50, a deviation of .065 at a pixel, and a factor of 8.48 on the loss."""
    torch.manual_seed(0)
    bases = [torch.rand(64**2).expand(64, -1) for _ in range(2)]
    given = BetaLogits(*bases)
    mask = given.sample(seeded())
    pictures = SmoothUpsampling(64, (224, 224), 13, 6.0)(mask)
    assert pictures.mean().item() == pytest.approx(0.5, abs=0.01)
    assert pictures.std(0).mean().item() == pytest.approx(0.065, abs=0.003)
    assert log_sum_density(given.log_density(mask)).mean().item() == pytest.approx(8.5, abs=0.05)


@pytest.mark.parametrize(("kernel", "complaint"), [(4, "odd"), (9, "too wide")])
def test_a_kernel_that_cannot_be_is_one_line(kernel: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SmoothUpsampling(2, (4, 4), kernel, 1.0)


def test_the_score_function_gradient_of_a_discretised_mask() -> None:
    """Two cells on a fine grid of values: the surrogate's mean against the enumerated cost."""
    log_alpha = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)
    log_beta = torch.tensor([0.7, 0.2], dtype=torch.float64)
    values = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    masks = torch.cartesian_prod(values, values)
    given = BetaLogits(log_alpha.expand(len(masks), -1), log_beta.expand(len(masks), -1))
    log_prob = given.log_density(masks).sum(1) - 2 * math.log(300)
    cost = (masks[:, 0] - 0.3) ** 2 + masks[:, 0] * masks[:, 1]

    (enumerated,) = torch.autograd.grad((log_prob.exp() * cost).sum(), log_alpha, retain_graph=True)
    weight = len(masks) * log_prob.detach().exp()
    (found,) = torch.autograd.grad(surrogate(log_prob, weight * cost), log_alpha)
    torch.testing.assert_close(found, enumerated)
    # And both are that of the moments of Beta variables, in closed form.
    again = log_alpha.detach().requires_grad_()
    alpha, beta = again.exp(), log_beta.exp()
    first, second = Beta(alpha, beta).mean, Beta(alpha, beta).variance
    closed = second[0] + (first[0] - 0.3) ** 2 + first[0] * first[1]
    torch.testing.assert_close(torch.autograd.grad(closed, again)[0], found, rtol=1e-3, atol=1e-4)
