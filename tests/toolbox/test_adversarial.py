"""Adversarial training against the same steps written out by hand, and limits."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.toolbox import adversarial
from repro.toolbox.adversarial import AdversarialTraining, FreeAdversarialTraining
from repro.toolbox.attacks import FGSM, PGD
from repro.toolbox.method import Batch, Method

SGD = partial(torch.optim.SGD, lr=0.5)
EPS = 0.1


def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(48, 6)
    return nn.Linear(6, 3), x, (3 * x[:, 0]).long().clamp(max=2)


def train(method: Method, batches: list[Batch], model: nn.Module) -> Tensor:
    def loss_of(batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    method.attach(model)
    optimizer = method.optimizer(model, SGD)
    for batch in batches:
        optimizer.zero_grad()
        method.backward(loss_of, batch, Tensor.backward)
        method.clip(model.parameters(), None)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def batches(x: Tensor, y: Tensor, size: int = 16) -> list[Batch]:
    return list(zip(x.split(size), y.split(size), strict=True))


def test_the_docstring_holds() -> None:
    assert doctest.testmod(adversarial).failed == 0


def test_fgsm_training_by_hand() -> None:
    model, x, y = problem()
    got = train(AdversarialTraining(FGSM(EPS)), batches(x, y), model)
    model, x, y = problem()
    for a, b in batches(x, y):
        a = a.clone().requires_grad_()
        loss = F.cross_entropy(model(a), b)
        gradient = torch.autograd.grad(loss, a)[0]
        attacked = (a.detach() + EPS * gradient.sign()).clamp(0, 1)
        gradients = torch.autograd.grad(
            F.cross_entropy(model(attacked), b), list(model.parameters())
        )
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(0.5 * g)
    torch.testing.assert_close(got, torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize(
    "method", [AdversarialTraining(PGD(0.0, 3)), FreeAdversarialTraining(0.0, replays=1)]
)
def test_without_a_radius_it_is_plain_training(method: Method) -> None:
    model, x, y = problem()
    plain = train(Method(), batches(x, y), model)
    model, x, y = problem()
    assert torch.equal(train(method, batches(x, y), model), plain)


def test_free_training_by_hand() -> None:
    """Algorithm 1 of Shafahi et al., with plain SGD, over two passes of unequal batches."""
    model, x, y = problem()
    parts = batches(x, y, 20)  # 20, 20, 8
    parts = [*parts, *parts]
    got = train(FreeAdversarialTraining(EPS, replays=3), parts, model)
    model, x, y = problem()
    delta = torch.zeros(20, 6)
    for a, b in parts:
        for _ in range(3):
            z = (a + delta[: len(a)]).clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(model(z), b)
            of_z, *of_p = torch.autograd.grad(loss, [z, *model.parameters()])
            with torch.no_grad():
                for p, g in zip(model.parameters(), of_p, strict=True):
                    p.sub_(0.5 * g)
                delta[: len(a)] = (delta[: len(a)] + EPS * of_z.sign()).clamp(-EPS, EPS)
    torch.testing.assert_close(got, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_free_training_resumes() -> None:
    model, x, y = problem()
    parts = batches(x, y)
    straight = train(FreeAdversarialTraining(EPS), parts, model)
    model, x, y = problem()
    first = FreeAdversarialTraining(EPS)
    train(first, parts[:2], model)
    second = FreeAdversarialTraining(EPS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(train(second, parts[2:], model), straight)


def test_costs_are_counted() -> None:
    assert AdversarialTraining(PGD(EPS, 5)).metrics() == {"cost/gradients_per_epoch": 6}
    assert FreeAdversarialTraining(EPS, 4).metrics() == {"cost/gradients_per_epoch": 4}


def test_what_it_cannot_train() -> None:
    tokens = torch.zeros(4, 6, dtype=torch.int64)
    model, _, _ = problem()
    for method in (AdversarialTraining(FGSM(EPS)), FreeAdversarialTraining(EPS)):
        with pytest.raises(UserError, match="real-valued"):
            train(method, [(tokens, tokens)], model)
    with pytest.raises(UserError, match="clip_norm=null"):
        FreeAdversarialTraining(EPS).clip(model.parameters(), 1.0)
    with pytest.raises(UserError, match="replays"):
        FreeAdversarialTraining(EPS, replays=0)


def test_half_of_the_loss_may_be_on_clean_examples() -> None:
    """By hand: the gradient is the mean of both, and the attack is the one without it."""
    model, x, y = problem()
    method = AdversarialTraining(FGSM(EPS), clean=0.25)

    def loss_of(batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    loss = method.backward(loss_of, (x, y), Tensor.backward)
    got = [p.grad for p in model.parameters()]
    attacked = FGSM(EPS)(model, x, y)
    expected = 0.25 * loss_of((x, y)) + 0.75 * loss_of((attacked, y))
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(got, list(torch.autograd.grad(expected, list(model.parameters()))))
    assert method.metrics()["cost/gradients_per_epoch"] == 3
    with pytest.raises(UserError, match="clean"):
        AdversarialTraining(FGSM(EPS), clean=1.0)
