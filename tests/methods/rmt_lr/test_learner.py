"""The learner and damped steps on problems whose curvature is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.rmt_lr import (
    SpectralRates,
    damped_step,
    heavy_ball_optimum,
    line_search_rate,
    low_curvature,
)
from repro.toolbox.linear_algebra.lanczos import lanczos

CURVATURES = torch.tensor([9.0, 4.0, 1.0])


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def loss(self, _batch: tuple[Tensor, ...]) -> Tensor:
        return (CURVATURES * self.w.square()).sum() / 2


def descend(method: SpectralRates, steps: int) -> tuple[float, Any]:
    model = Quadratic()
    method.attach(model)
    optimizer = method.optimizer(model, lambda weights: torch.optim.SGD(weights, lr=123.0))
    for _ in range(steps):
        optimizer.zero_grad()
        method.backward(model.loss, (torch.zeros(1),), Tensor.backward)
        method.before_step(model)
        optimizer.step()
    return float(model.loss(()).detach()), optimizer


def test_it_finds_the_optimum_of_a_quadratic() -> None:
    method = SpectralRates(every=100, lanczos_steps=3, share=1e-6)
    loss, optimizer = descend(method, 60)
    rate, momentum = heavy_ball_optimum(9, 1)
    assert method.metrics()["learner/rate"] == pytest.approx(rate, rel=1e-4)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(momentum, rel=1e-4)
    assert loss < 1e-10
    assert method.products == 3


def test_line_search_steps_to_the_minimum_along_the_gradient() -> None:
    method = SpectralRates(every=1, rule="line_search")
    loss, _ = descend(method, 1)
    g = CURVATURES.clone()
    rate = line_search_rate(CURVATURES.mul, g)
    along = [float((CURVATURES * (1 - r * g).square()).sum() / 2) for r in (rate, rate * 1.05)]
    assert loss == pytest.approx(along[0])
    assert along[0] < along[1]
    assert line_search_rate(lambda v: -v, g) == torch.inf
    assert method.products == 1


def test_its_state_goes_on_where_it_was() -> None:
    method = SpectralRates(every=2, lanczos_steps=2)
    descend(method, 3)
    other = SpectralRates(every=2, lanczos_steps=2)
    other.load_state_dict(method.state_dict())
    assert other.metrics() == method.metrics()
    assert other.steps == 3


def test_it_needs_sgd() -> None:
    with pytest.raises(UserError, match="optimizer=plain_sgd"):
        SpectralRates().optimizer(Quadratic(), torch.optim.Adam)


def test_a_quantile_of_the_positive_values() -> None:
    product = torch.tensor([-1.0, 1.0, 2.0, 3.0]).mul
    ritz = lanczos(product, torch.tensor([3.0, 1.0, 1.0, 1.0]), 4)
    found = [low_curvature(ritz, share) for share in (0.1, 0.5, 1.0)]
    assert found == pytest.approx([1, 2, 3], rel=1e-4)
    assert low_curvature(lanczos(lambda v: -v, torch.ones(3), 1), 0.5) == 0


def test_a_damped_step_is_the_inverse_of_the_damped_curvature() -> None:
    torch.manual_seed(0)
    G = torch.randn(5, 5, dtype=torch.float64)
    A, g = G @ G.mT, torch.randn(2, 5, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    damping = torch.tensor([0.1, 7.0], dtype=torch.float64)
    rows = [
        torch.linalg.solve(A + delta * torch.eye(5), row)
        for delta, row in zip(damping, g, strict=True)
    ]
    found = damped_step(g, values.expand(2, -1), vectors.mT.expand(2, -1, -1), damping)
    assert torch.allclose(found, torch.stack(rows))
    none = damped_step(g, values[:0].expand(2, 0), vectors.mT[:0].expand(2, 0, 5), damping)
    assert torch.allclose(none, g / damping[:, None])
