"""Fusion of frozen streams: limits, gradients in closed form, what stays untouched."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods import contextual_fusion
from repro.methods.contextual_fusion import (
    FeatureFusion,
    HeadTraining,
    Stream,
    class_accuracies,
    context_scores,
    rank_correlation,
)
from repro.toolbox.attacks import FGSM

CLASSES = 3
Make = Callable[..., FeatureFusion]


def stream(width: int, **settings: Any) -> Stream:
    """Linear in the pixels of 1 × 4 × 4 pictures, behind a batch norm; float64."""
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, width))
    with torch.no_grad():
        network(torch.randn(40, 1, 4, 4))  # statistics that are not trivial
    return Stream(network, width, **settings).double()


@pytest.fixture
def fusion() -> FeatureFusion:
    torch.manual_seed(0)
    return FeatureFusion({"fg": stream(5), "bg": stream(4)}, CLASSES).double()


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(60, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (60,), generator=generator)


def fit(model: FeatureFusion, z: Tensor, y: Tensor, steps: int = 300, **settings: Any) -> float:
    """Trains until nothing changes; returns the norm of the gradient that is left."""
    training = HeadTraining(model, z, y, batch_size=len(y), **settings)
    optimizer = torch.optim.LBFGS(
        model.head.parameters(), max_iter=steps, tolerance_grad=1e-10, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = training.loss(z, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return training.gradient_norm()


def test_the_docstring_holds() -> None:
    assert doctest.testmod(contextual_fusion).failed == 0


def test_without_weights_of_one_stream_it_is_the_other_alone(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    """The same logits, and the same white-box attack."""
    x, y = pictures
    alone = FeatureFusion({"fg": fusion.streams["fg"]}, CLASSES).double()  # type: ignore[dict-item]
    fusion.standardise(fusion.features(x))
    alone.standardise(alone.features(x))
    with torch.no_grad():
        fusion.block("bg").zero_()
        alone.head.weight.copy_(fusion.block("fg"))
        alone.head.bias.copy_(fusion.head.bias)
    torch.testing.assert_close(fusion(x), alone(x))
    attack = FGSM(0.01)
    torch.testing.assert_close(attack(fusion, x, y), attack(alone, x, y))


def test_an_attack_goes_through_both_streams(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    """The chain rule by hand: dL/dx = J_f' V_f' r + J_b' V_b' r with r = softmax(a) - onehot."""
    x, y = pictures
    fusion.standardise(fusion.features(x))
    x = x[:1].clone().requires_grad_()
    (got,) = torch.autograd.grad(F.cross_entropy(fusion(x), y[:1]), x)
    r = fusion(x).softmax(1)[0] - F.one_hot(y[:1], CLASSES)[0]
    expected = torch.zeros(16, dtype=torch.float64)
    for name in ("fg", "bg"):
        jacobian: Any = torch.autograd.functional.jacobian(fusion.streams[name], x)
        std = fusion.std[fusion.columns(name)]
        expected += jacobian[0].flatten(1).T @ ((fusion.block(name).T @ r) / std)
    torch.testing.assert_close(got.flatten(), expected)


def test_the_penalty_weighs_on_one_stream_alone(fusion: FeatureFusion) -> None:
    fusion.penalty({"fg": 0.3}).backward()
    grad, columns = fusion.head.weight.grad, fusion.columns("fg")
    assert grad is not None
    torch.testing.assert_close(grad[:, columns], 0.6 * fusion.block("fg").detach())
    assert not grad[:, fusion.columns("bg")].any()
    assert fusion.head.bias.grad is None or not fusion.head.bias.grad.any()
    assert fusion.penalty({}) == 0


def test_a_large_penalty_leaves_the_other_stream(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    x, y = pictures
    z = fusion.features(x).detach()
    fusion.standardise(z)
    assert fit(fusion, z, y, penalties={"fg": 30.0, "bg": 0.1}) < 1e-6
    alone = FeatureFusion({"bg": fusion.streams["bg"]}, CLASSES).double()  # type: ignore[dict-item]
    z_b = alone.features(x).detach()
    alone.standardise(z_b)
    fit(alone, z_b, y, penalties={"bg": 0.1})
    assert fusion.share("fg") < 0.02
    both = fusion.logits(z).softmax(1), alone.logits(z_b).softmax(1)
    torch.testing.assert_close(*both, rtol=0, atol=0.01)


def test_the_same_penalty_on_all_streams_is_ridge_regression(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    """scikit-learn sums the loss and halves the squares: C = 1 / (2 N alpha)."""
    x, y = pictures
    z = fusion.features(x).detach()
    fusion.standardise(z)
    alpha = 0.05
    fit(fusion, z, y, penalties={"fg": alpha, "bg": alpha})
    standardised = ((z - z.mean(0)) / z.std(0)).numpy()
    reference = LogisticRegression(C=1 / (2 * len(y) * alpha), tol=1e-10, max_iter=2000)
    reference.fit(standardised, y.numpy())
    got = fusion.logits(z).softmax(1).detach().numpy()
    np.testing.assert_allclose(got, reference.predict_proba(standardised), atol=1e-5)


def test_standardisation_can_be_folded_away(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    z = fusion.features(pictures[0])
    z[:, 2] = 7.0  # constant: not divided by zero
    fusion.standardise(z)
    assert fusion.std[2] == 1
    torch.testing.assert_close(F.linear(z, *fusion.folded()), fusion.logits(z))


def test_training_the_head_leaves_streams_as_they_are(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    """Bit by bit, batch statistics included, also in training mode."""
    x, y = pictures
    before = {name: value.clone() for name, value in fusion.streams.state_dict().items()}
    fusion.train()
    z = fusion.features(x)
    assert not z.requires_grad
    head = fusion.head.weight.clone()
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
    HeadTraining(fusion, z, y, batch_size=16).epoch(optimizer, 0)
    assert not torch.equal(head, fusion.head.weight)
    after = fusion.streams.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_heads_trained_alike_are_equal(pictures: tuple[Tensor, Tensor]) -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        model = FeatureFusion({"fg": stream(5)}, CLASSES).double()
        torch.rand(7)  # nothing depends on the global generator
        training = HeadTraining(model, model.features(pictures[0]), pictures[1], 16, seed=3)
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.1)
        losses = [training.epoch(optimizer, number) for number in range(4)]
        assert losses[-1] < losses[0]
        heads.append(model.head.weight.detach())
    assert torch.equal(*heads)


def test_a_stream_that_is_not_frozen_is_trained(pictures: tuple[Tensor, Tensor]) -> None:
    open_stream = stream(5, frozen=False)
    model = FeatureFusion({"fg": open_stream}, CLASSES).double().train()
    assert open_stream.network.training
    F.cross_entropy(model(pictures[0]), pictures[1]).backward()
    assert all(p.grad is not None for p in open_stream.parameters())


def test_streams_normalise_and_resize_inside() -> None:
    x = torch.rand(2, 3, 8, 8)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    seen = Stream(nn.Flatten(), 3 * 16, size=4, mean=mean, std=std)(x)
    by_hand = F.avg_pool2d(x, 2)  # what bilinear resizing by half comes to
    by_hand = (by_hand - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(seen, by_hand.flatten(1))


def test_a_muted_stream_says_nothing(
    fusion: FeatureFusion, pictures: tuple[Tensor, Tensor]
) -> None:
    z = fusion.features(pictures[0])
    fusion.standardise(z)
    muted = fusion.logits(fusion.without(z, "bg"))
    columns = fusion.columns("fg")
    only = ((z - fusion.mean) / fusion.std)[:, columns] @ fusion.block("fg").T
    torch.testing.assert_close(muted, only + fusion.head.bias)
    assert torch.equal(z, fusion.features(pictures[0]))


def test_shares_of_the_decision(fusion: FeatureFusion) -> None:
    with torch.no_grad():
        fusion.block("fg").fill_(0.0)[0, 0] = 3.0
        fusion.block("bg").fill_(0.0)[1, 2] = -1.0
    assert float(fusion.share("fg").detach()) == pytest.approx(0.75)
    assert float(fusion.share("bg").detach()) == pytest.approx(0.25)


def test_context_scores_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [-1.0, 0.0]])
    y = torch.tensor([0, 0, 1, 2, 2])
    scores = context_scores(z, y, 3)
    # Directions (1, 0), (0, 1), (-1, 0): cosine distances 1, 2 and 1.
    torch.testing.assert_close(scores["between"], torch.tensor([1.5, 1.0, 1.5]))
    torch.testing.assert_close(scores["within"], torch.tensor([1.0, 0.0, 0.0]))


def test_accuracies_and_correlations_over_classes() -> None:
    logits = torch.eye(3)[[0, 0, 1, 1]]
    got = class_accuracies(logits, torch.tensor([0, 1, 1, 1]))
    assert got[:2].tolist() == pytest.approx([1, 2 / 3])
    assert got[2].isnan()
    rank = partial(rank_correlation, torch.tensor([0.1, 0.2, 0.9, torch.nan]))
    assert rank(torch.tensor([1.0, 5.0, 6.0, 0.0])) == pytest.approx(1)
    assert rank(torch.tensor([1.0, 3.0, 2.0, 9.0])) == pytest.approx(0.5)
    assert rank(torch.tensor([4.0, 4.0, 4.0, 1.0])) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.penalty({"fgg": 1.0}), "no stream 'fgg'.*Did you mean 'fg'"),
        (lambda f: FeatureFusion({}, 3), "at least one stream"),
        (lambda f: FeatureFusion(dict(f.streams), 0), "classes is a whole number of at least 1"),
        (lambda f: HeadTraining(f, torch.zeros(1, 9), torch.zeros(1), 0), "batch_size"),
        (
            lambda f: HeadTraining(f, torch.zeros(1, 9), torch.zeros(1), penalties={"fg": -1.0}),
            "penalties is a mapping",
        ),
    ],
)
def test_what_cannot_work_is_one_line(
    fusion: FeatureFusion, make: Callable[[FeatureFusion], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(fusion)
