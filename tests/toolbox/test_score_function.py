"""Score-function gradients against an enumeration, and the baseline against its recursion."""

from __future__ import annotations

import itertools

import pytest
import torch

from repro.toolbox.score_function import MovingBaseline, surrogate

LOGITS = torch.tensor([0.3, -0.7, 1.2], dtype=torch.float64)
DRAWS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)


def expected_surrogate(logits: torch.Tensor, baseline: float) -> torch.Tensor:
    """The surrogate's mean over all that three coins can show, by their probabilities."""
    coins = torch.distributions.Bernoulli(logits=logits)
    log_prob = coins.log_prob(DRAWS).sum(1)
    cost = (DRAWS * torch.tensor([1.0, 2.0, -3.0])).sum(1) ** 2
    weight = len(DRAWS) * log_prob.exp().detach()
    return surrogate(log_prob, weight * (cost - baseline))


@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_the_gradient_is_that_of_the_expected_cost(baseline: float) -> None:
    logits = LOGITS.clone().requires_grad_()
    coins = torch.distributions.Bernoulli(logits=logits)
    cost = (DRAWS * torch.tensor([1.0, 2.0, -3.0])).sum(1) ** 2
    (expected,) = torch.autograd.grad((coins.log_prob(DRAWS).sum(1).exp() * cost).sum(), logits)
    (found,) = torch.autograd.grad(expected_surrogate(logits, baseline), logits)
    torch.testing.assert_close(found, expected)


def test_costs_get_no_gradient() -> None:
    cost = torch.ones(2, requires_grad=True)
    log_prob = torch.zeros(2, requires_grad=True)
    surrogate(log_prob, cost).backward()
    assert cost.grad is None
    assert log_prob.grad is not None


def test_the_baseline_is_from_before_the_batch() -> None:
    baseline, average = MovingBaseline(0.8), 3.0
    for mean in (3.0, 5.0, -1.0):
        assert float(baseline(torch.tensor([mean - 1, mean + 1]))) == pytest.approx(average)
        average = 0.8 * average + 0.2 * mean
