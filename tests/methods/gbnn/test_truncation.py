"""Cutting networks unit by unit, against sums over the units that are kept."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.gbnn import keep_units, layers, order_units, refit_output
from repro.models.toys.mlp import MLP

X = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP([3], 2, [8], "tanh").double()


def test_kept_units_are_the_partial_sum(model):
    units = torch.tensor([5, 0, 3])
    h = torch.tanh(model[1](X))
    expected = h[:, units] @ model[3].weight[:, units].T + model[3].bias
    torch.testing.assert_close(keep_units(model, units)(X), expected)
    torch.testing.assert_close(keep_units(model, torch.randperm(8))(X), model(X))
    assert model[1].out_features == 8


def test_orders(model):
    generator = torch.Generator().manual_seed(0)
    assert order_units(model, "first", generator).tolist() == list(range(8))
    random = [order_units(model, "random", generator).tolist() for _ in range(2)]
    assert random[0] != random[1]
    assert sorted(random[0]) == list(range(8))
    with torch.no_grad():
        model[3].weight[:, 6] *= 100
        model[1].weight[2] *= 0
    ranked = order_units(model, "norm", generator)
    assert (ranked[0], ranked[-1]) == (6, 2)
    with pytest.raises(UserError, match="Did you mean 'norm'"):
        order_units(model, "nrom", generator)


def test_refit_is_ridge_regression_on_the_hidden_units(model):
    target = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small: Any = keep_units(model, torch.arange(4))
    refitted: Any = refit_output(
        small, X, lambda out: 0.5 * (out - target).square().sum(1).mean(), alpha=0.5, iterations=500
    )
    h = torch.tanh(small[1](X)).detach().numpy()
    ridge = Ridge(alpha=0.5, tol=1e-10).fit(h, target.numpy())
    torch.testing.assert_close(
        refitted(X).detach(), torch.from_numpy(ridge.predict(h)), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(refitted[1].weight, small[1].weight)


def test_refit_lowers_a_classification_loss(model):
    labels = (X[:, 0] > 0).long()

    def loss_of(outputs):
        return F.cross_entropy(outputs, labels)

    small = keep_units(model, torch.arange(3))
    assert loss_of(refit_output(small, X, loss_of)(X)) < loss_of(small(X))


def test_other_models_are_refused(model):
    assert layers(model) is not None
    for other in (MLP([3], 2, [8, 8]), MLP([3], 2, []), nn.Sequential(nn.Linear(3, 4), model)):
        assert layers(other) is None
    with pytest.raises(UserError, match="exactly one hidden layer"):
        keep_units(MLP([3], 2, [8, 8]), torch.arange(2))
