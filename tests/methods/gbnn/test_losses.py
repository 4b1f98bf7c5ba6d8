"""Residuals and Hessians are the derivatives of the loss, and constants its minimisers."""

import pytest
import torch

from repro.errors import UserError
from repro.methods.gbnn import BinaryLogistic, Multinomial, SquaredError, loss_for

CASES = {
    "squared": (SquaredError(), torch.tensor([[0.5, 1.0], [-2.0, 3.0], [1.0, 0.0]])),
    "binary": (BinaryLogistic(), torch.tensor([0, 1, 1])),
    "multinomial": (Multinomial(4), torch.tensor([0, 3, 1])),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_autograd(case):
    loss, target = CASES[case]
    y = loss.encode(target)
    scores = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.value(y, scores).sum(), scores, create_graph=True)
    torch.testing.assert_close(loss.residual(y, scores), -gradient)
    second = (
        torch.stack(
            [
                torch.autograd.grad(gradient[:, k].sum(), scores, retain_graph=True)[0][:, k]
                for k in range(y.shape[1])
            ],
            1,
        )
        if case != "squared"
        else torch.ones_like(y)
    )
    torch.testing.assert_close(loss.hessian(y, scores), second)


@pytest.mark.parametrize("case", ["squared", "binary", "log_prior"])
def test_the_constant_minimises_the_loss(case):
    loss, target = CASES.get(case, (Multinomial(3, "log_prior"), torch.tensor([0, 1, 1, 2, 2, 2])))
    y = loss.encode(target)
    constant = loss.constant(y)
    torch.testing.assert_close(
        loss.residual(y, constant.expand_as(y)).mean(0), torch.zeros_like(constant)
    )


def test_log_priors_are_of_shares_and_of_half_a_point_where_a_class_is_absent():
    loss = Multinomial(4, "log_prior")
    shares = loss.constant(loss.encode(torch.tensor([0, 1, 1, 2, 2, 2]))).exp()
    assert shares.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0.5 / 6])


def test_extreme_scores_stay_finite():
    for loss, target in CASES.values():
        y = loss.encode(target)
        for scores in (torch.full_like(y, 1e4), torch.full_like(y, -1e4)):
            for function in (loss.value, loss.residual, loss.hessian):
                assert torch.isfinite(function(y, scores)).all()


def test_one_class_alone_has_a_finite_prior():
    loss = BinaryLogistic()
    assert torch.isfinite(loss.constant(loss.encode(torch.ones(5)))).all()


def test_the_loss_of_a_task():
    assert isinstance(loss_for("regression"), SquaredError)
    assert isinstance(loss_for("classification", 2), BinaryLogistic)
    assert isinstance(loss_for("classification", 3), Multinomial)
    for wrong in (("language", 5), ("classification", 1), ("classification", None)):
        with pytest.raises(UserError, match="gbnn: boosts"):
            loss_for(*wrong)
    with pytest.raises(UserError, match="Did you mean 'zeros'"):
        loss_for("classification", 3, "zero")  # type: ignore[arg-type]
