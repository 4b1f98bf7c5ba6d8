"""The algorithm against closed forms, limits, a slow second version and the published example."""

import doctest
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

import repro.methods.gbnn
from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.gbnn import (
    BinaryLogistic,
    Booster,
    GradientBoosting,
    Multinomial,
    SquaredError,
    fit_block,
    loss_for,
    newton_step,
    penultimate_features,
    random_starts,
    stage,
)

D64 = torch.float64
DATA: dict[str, Any] = {"regression": (1, None), "binary": (1, 2), "multiclass": (3, 3)}


def sample(kind, size=80):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 4, dtype=D64, generator=generator)
    if kind == "regression":
        return x, torch.sin(2 * x[:, 0]) + x[:, 1], loss_for("regression")
    classes = DATA[kind][1]
    raw = x[:, 0] * x[:, 1] + 0.5 * x[:, 2]
    return x, (raw.argsort().argsort() * classes // size), loss_for("classification", classes)


def test_the_example_of_the_docstring():
    assert doctest.testmod(repro.methods.gbnn).failed == 0


@pytest.mark.parametrize("kind", DATA)
def test_merged_network_equals_the_blocks_at_every_truncation(kind):
    x, target, loss = sample(kind)
    boosting = GradientBoosting(units=12, per_step=3, shrinkage=0.5, iterations=20)
    network: Any = boosting.fit(x, target, loss)
    for blocks in (0, 1, 3, 4, None):
        outputs = network.merge(blocks)(x)
        assert (outputs - loss.output_scale * network(x, blocks)).abs().max() < 1e-9
    constant = loss.output_scale * loss.constant(loss.encode(target))
    torch.testing.assert_close(network.merge(0)(x), constant.expand(len(x), -1))
    # The two mistakes that the identity must catch.
    full_bias = network.merge()[3].bias
    assert not torch.allclose(network.merge(1)[3].bias, full_bias)
    if kind == "binary":
        probability = torch.sigmoid(network.merge()(x))
        torch.testing.assert_close(probability, 1 / (1 + torch.exp(-2 * network(x))))
        assert not torch.allclose(torch.sigmoid(network(x)), probability, atol=1e-3)


@pytest.mark.parametrize("kind", DATA)
def test_equals_a_slow_version_written_from_the_algorithm(kind):
    x, target, loss = sample(kind)
    boosting = GradientBoosting(
        units=4, per_step=2, shrinkage=0.3, subsample=0.5, iterations=15, seed=5
    )
    network = boosting.fit(x, target, loss)
    y = loss.encode(target)
    F = loss.constant(y).expand_as(y)
    for t in range(2):
        generator = generator_for(5, t)
        (start,) = random_starts(1, 4, 2, y.shape[1], generator)
        subset = torch.randperm(80, generator=generator)[:40]
        scores = F.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss.value(y, scores).sum(), scores)
        h, _ = fit_block(x[subset], -gradient[subset], start, 2, 1e-4, 15)
        f = h(x)
        rho = 1.0
        if kind != "regression":  # Newton: minimise the second-order model of the loss along f
            step = torch.zeros((), dtype=D64, requires_grad=True)
            (first,) = torch.autograd.grad(
                loss.value(y, F + step * f).sum(), step, create_graph=True
            )
            (second,) = torch.autograd.grad(first, step)
            curvature = second
            if kind == "multiclass":  # the paper keeps the diagonal of the Hessian only
                p = F.softmax(1)
                curvature = (f.square() * p * (1 - p)).sum()
            rho = -float(first.detach()) / float(curvature)
        F = F + 0.3 * rho * f
        torch.testing.assert_close(network.factor[t], torch.tensor(0.3 * rho, dtype=D64))
    torch.testing.assert_close(network(x), F)


def test_newton_steps_in_closed_form():
    for classes, expected in ((10, 100 / 9), (3, 4.5)):
        loss = Multinomial(classes)
        y = loss.encode(torch.arange(30 * classes) % classes)
        F = torch.zeros_like(y)
        r, h = loss.residual(y, F), loss.hessian(y, F)
        assert newton_step(r, r, h).item() == pytest.approx(expected)
    logistic = BinaryLogistic()
    y = logistic.encode(torch.arange(40) % 2)
    r, h = logistic.residual(y, torch.zeros_like(y)), logistic.hessian(y, torch.zeros_like(y))
    assert newton_step(r, r, h).item() == pytest.approx(1)
    assert newton_step(r, r, 0 * h).item() == 0  # separated data: no curvature, no step


def test_regression_without_shrinkage_or_subsampling_never_gets_worse():
    x, target, loss = sample("regression")
    boosting = GradientBoosting(units=15, shrinkage=1.0, subsample=1.0, iterations=100)
    network = boosting.fit(x, target, loss)
    errors = [(network(x, t)[:, 0] - target).square().mean().item() for t in range(16)]
    assert errors[0] == pytest.approx(target.var(correction=0).item())
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))
    assert errors[-1] < 0.2 * errors[0]
    assert (network.factor == 1).all()


def test_one_block_is_an_ordinary_network_fitted_to_the_centred_target():
    x, target, loss = sample("regression")
    boosting = GradientBoosting(
        units=6, per_step=6, shrinkage=1, subsample=1, iterations=50, seed=1
    )
    network = boosting.fit(x, target, loss)
    (start,) = random_starts(1, 4, 6, 1, generator_for(1, 0))
    block, _ = fit_block(x, (target - target.mean())[:, None], start, 6, 1e-4, 50)
    torch.testing.assert_close(network(x), block(x) + target.mean())


def test_a_block_is_scikit_learns_network_from_the_same_start() -> None:
    x, target, _ = sample("regression")
    (start,) = random_starts(1, 4, 3, 1, torch.Generator().manual_seed(2))
    block, value = fit_block(x, target[:, None], start, 3, 0.1, 25)
    network = MLPRegressor(
        hidden_layer_sizes=(3,), activation="logistic", solver="lbfgs", alpha=0.1, tol=0.0,
        max_iter=1, warm_start=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at max_iter, as it should
        network.fit(x.numpy(), target.numpy())
        V, W = start[:15].view(3, 5).numpy(), start[15:].view(1, 4).numpy()
        network.coefs_ = [V[:, :4].T.copy(), W[:, :3].T.copy()]
        network.intercepts_ = [V[:, 4].copy(), W[:, 3].copy()]
        network.set_params(max_iter=25).fit(x.numpy(), target.numpy())
    np.testing.assert_allclose(block(x)[:, 0], network.predict(x.numpy()), atol=1e-6)
    assert value == pytest.approx(network.loss_, rel=1e-6)


def test_the_objective_of_a_block_written_anew_with_autograd() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(120, 5, dtype=D64, generator=generator)
    target = torch.stack([torch.sin(x.sum(1)), x[:, 0]], 1)
    (start,) = random_starts(1, 5, 2, 2, generator)
    block, value = fit_block(x, target, start, J=2, alpha=0.1, iterations=2000)
    parts = [part.clone().requires_grad_() for part in block]
    V, c, W, b = parts
    error = torch.sigmoid(x @ V + c) @ W + b - target
    loss = 0.5 * error.square().sum() / 120 + 0.1 / 240 * (V.square().sum() + W.square().sum())
    assert loss.item() == pytest.approx(value)
    for gradient in torch.autograd.grad(loss, parts):
        assert gradient.abs().max() < 1e-3  # a minimum


def test_a_linear_learner_converges_in_one_step():
    x, target, loss = sample("regression")
    y = loss.encode(target)
    features = torch.cat([x, torch.ones(len(x), 1, dtype=D64)], 1)

    def step(F):
        r = loss.residual(y, F)
        return features @ torch.linalg.lstsq(features, r).solution

    F = loss.constant(y) + step(loss.constant(y))
    assert (features.T @ loss.residual(y, F)).abs().max() < 1e-10
    assert step(F).abs().max() < 1e-10


def test_published_example_on_two_moons():
    train, labels = make_moons(200, noise=0.3, random_state=0)
    test, test_labels = make_moons(1000, noise=0.3, random_state=0)
    scaler = StandardScaler().fit(train)
    x, x_test = (torch.from_numpy(scaler.transform(part)) for part in (train, test))
    boosting = GradientBoosting(units=100, shrinkage=0.3)
    model = boosting.fit(x, torch.from_numpy(labels), loss_for("classification", 2)).merge()
    accuracy = ((model(x_test)[:, 0] > 0).numpy() == test_labels).mean()
    assert accuracy == pytest.approx(0.909, abs=0.015)
    boosting.iterations = 60  # enough for one unit, and quicker
    network = boosting.fit(x, torch.from_numpy(labels), SquaredError())
    error = (network(x_test)[:, 0] - torch.from_numpy(test_labels)).square().mean().item()
    assert error == pytest.approx(0.0756, abs=0.015)


def test_first_newton_step_on_digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(StandardScaler().fit_transform(images))[:600]
    target = torch.from_numpy(labels)[:600]
    booster = Booster(GradientBoosting(units=4, per_step=4, shrinkage=1), Multinomial(10), 64, 10)
    stage(booster, x, target)
    assert 9.5 < booster.network.factor[0] < 11.2  # 1 / p(1 − p) = 11.1 for a perfect fit


def test_starts_fill_the_range_of_glorot():
    """±√(2/5) for two units on three features, ±√(2/3) for their one output."""
    starts = random_starts(2000, 3, 2, 1, generator_for(0))
    limits = torch.tensor([2 / 5] * 8 + [2 / 3] * 3).double().sqrt()
    for edge in (starts.amax(0), -starts.amin(0)):
        assert (edge <= limits).all()
        torch.testing.assert_close(edge, limits, rtol=0.01, atol=0)


def test_boosting_is_done_with_its_last_block():
    booster = Booster(GradientBoosting(units=2, iterations=1), SquaredError(), 1, 1)
    for count in range(3):
        assert booster.done == (count == 2)
        booster.network.trained.fill_(count + 1)


def test_restarts_keep_the_best_fit():
    x, target, loss = sample("regression")
    one, many = (
        GradientBoosting(1, 1, 1.0, 1.0, iterations=60, restarts=restarts).fit(x, target, loss)
        for restarts in (1, 8)
    )
    errors = [(network(x)[:, 0] - target).square().mean() for network in (one, many)]
    assert errors[1] <= errors[0] + 1e-12


def test_a_continued_training_ends_with_the_same_bits():
    x, target, loss = sample("multiclass")
    how = GradientBoosting(units=6, shrinkage=0.5, iterations=10)
    straight = Booster(how, loss, 4, 3)
    for _ in range(6):
        stage(straight, x, target)
    first, second = Booster(how, loss, 4, 3), Booster(how, loss, 4, 3)
    for _ in range(3):
        stage(first, x, target)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        stage(second, x, target)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_features_are_what_the_last_layer_reads():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
    )
    x = torch.randn(7, 2, 3)
    features = penultimate_features(model, x, chunk=3)
    torch.testing.assert_close(model[3](features), model(x))
    with pytest.raises(UserError, match="no linear layer"):
        penultimate_features(torch.nn.Conv2d(1, 1, 1), x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": 0},
        {"per_step": 0},
        {"units": 3, "per_step": 4},
        {"shrinkage": 0},
        {"subsample": 1.5},
        {"alpha": -1},
        {"restarts": 0},
    ],
)
def test_settings_out_of_range_are_one_line(wrong):
    with pytest.raises(UserError, match=r"^(gbnn: |GradientBoosting\.)[^\n]*$"):
        GradientBoosting(**wrong)


def test_it_refuses_a_given_model():
    with pytest.raises(UserError, match=r"^gbnn trains no given model[^\n]*$"):
        GradientBoosting().attach(torch.nn.Linear(2, 2))
    network = GradientBoosting(units=1, iterations=1).fit(*sample("regression"))
    with pytest.raises(UserError, match="5 blocks were asked for, 1 are trained"):
        network.merge(5)
    assert np.isfinite(network(sample("regression")[0]).numpy()).all()
