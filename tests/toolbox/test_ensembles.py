"""Copies side by side against copies one after the other."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.toolbox import ensembles
from repro.toolbox.ensembles import Ensemble, Layout, cross_entropies, layer_by_layer, outputs

RATES_M = torch.tensor([0.003, 0.03, 0.1])


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 5), torch.randint(3, (6,))) for _ in range(20)]


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.SGD,
        partial(torch.optim.SGD, momentum=0.9),
        partial(torch.optim.Adam, eps=1e-3),
        torch.optim.RMSprop,
    ],
)
def test_losses_and_weights_are_those_of_runs_one_after_the_other(
    optimizer: Callable[..., Any], net: nn.Module
) -> None:
    ensemble = Ensemble(net, RATES_M, optimizer)
    together = torch.stack([ensemble.step(batch) for batch in batches()], 1)
    for member, rate in enumerate(RATES_M.tolist()):
        alone = copy.deepcopy(net)
        descent = optimizer(alone.parameters(), lr=rate)
        for index, (x, y) in enumerate(batches()):
            descent.zero_grad()
            loss = F.cross_entropy(alone(x), y)
            loss.backward()
            descent.step()
            assert float(together[member, index]) == pytest.approx(float(loss), rel=2e-3)
        theta = Layout.of(alone).vector(alone)
        assert torch.allclose(ensemble.theta_MP[member], theta, rtol=1e-2, atol=1e-3)


class Halved(nn.Sequential):
    """A sequence that does more than its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def with_a_layer_twice() -> nn.Module:
    linear, tanh = nn.Linear(5, 5), nn.Tanh()
    return nn.Sequential(linear, tanh, linear, tanh)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.Sequential(nn.GELU())),
        lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 4), nn.Conv1d(5, 2, 3)),
        lambda: Halved(nn.Linear(5, 8), nn.Sigmoid()),
        with_a_layer_twice,
        lambda: nn.LayerNorm(5),
    ],
)  # fmt: skip
def test_layer_by_layer_is_the_whole_network_by_vmap(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = model().double()
    layout = Layout.of(net)
    weights = layout.split(torch.randn(4, sum(layout.sizes), dtype=torch.float64))
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    copies: dict[Tensor, Tensor] = dict(zip(net.parameters(), weights.values(), strict=True))
    torch.testing.assert_close(
        layer_by_layer(net, copies, x), outputs(net, weights, x, stacked=True)
    )


@pytest.mark.parametrize("more", [(), (7,)])
def test_cross_entropies_are_those_of_each_copy(more: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z, y = torch.randn(4, 6, 3, *more), torch.randint(3, (4, 6, *more))
    each = [F.cross_entropy(*pair) for pair in zip(z, y, strict=True)]
    torch.testing.assert_close(cross_entropies(z, y), torch.stack(each))


def test_a_copy_that_diverges_is_infinite_and_alone(net: nn.Module) -> None:
    alone, both = (Ensemble(net, torch.full((n,), 0.1), torch.optim.Adam) for n in (1, 2))
    both.theta_MP.data[1] = torch.nan
    for batch in batches():
        alone.step(batch)
        both.step(batch)
    lost = both.evaluate(batches()[0])
    assert lost[1] == torch.inf
    assert lost[0] == pytest.approx(float(alone.evaluate(batches()[0])[0]), rel=1e-5)


def test_a_layout_splits_and_joins(net: nn.Module) -> None:
    layout = Layout.of(net)
    theta = torch.randn(4, sum(layout.sizes))
    parts = layout.split(theta)
    assert parts["2.weight"].shape == (4, 3, 8)
    assert torch.equal(layout.join(parts.values()), theta)
    scalar = Layout({"gain": torch.tensor(1.0)})
    assert scalar.join(scalar.split(theta[:, :1]).values()).shape == (4, 1)


def test_the_docstring_runs() -> None:
    assert doctest.testmod(ensembles).failed == 0
