"""One boosted network against the published code's procedure, which is made of scikit-learn's."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from timing import faster
from torch import Tensor

from repro.methods.gbnn import GradientBoosting, Loss, loss_for, newton_step

SETS = {
    "diabetes": (load_diabetes, None, 1),
    "breast cancer": (load_breast_cancer, 2, 1),
    "digits": (load_digits, 10, 2),
}
STAGES, ITERATIONS = 10, 60


def published(x: Tensor, target: Tensor, loss: Loss, units: int) -> None:
    """Stages of a scikit-learn network, a residual and a line search, on half of the points."""
    y_NK = loss.encode(target)
    scores_NK = loss.constant(y_NK).expand_as(y_NK)
    for _ in range(STAGES):
        residual_NK = loss.residual(y_NK, scores_NK)
        network = MLPRegressor(
            hidden_layer_sizes=(units,), activation="logistic", solver="lbfgs", tol=0.0,
            max_iter=ITERATIONS, n_iter_no_change=ITERATIONS,
        )  # fmt: skip
        half = torch.randperm(len(x))[: len(x) // 2]
        network.fit(x[half].numpy(), residual_NK[half].squeeze(1).numpy())
        step_NK = torch.from_numpy(network.predict(x.numpy())).view_as(y_NK)
        rho = newton_step(step_NK, residual_NK, loss.hessian(y_NK, scores_NK))
        scores_NK = scores_NK + 0.5 * rho * step_NK


@pytest.mark.parametrize("name", SETS)
def test_one_model_against_the_published_procedure(name: str) -> None:
    load, classes, units = SETS[name]
    features, labels = load(return_X_y=True)
    x, target = torch.from_numpy(StandardScaler().fit_transform(features)), torch.tensor(labels)
    if classes is None:
        target = (target - target.mean()) / target.std()
    loss = loss_for("regression" if classes is None else "classification", classes)
    boosting = GradientBoosting(STAGES * units, units, shrinkage=0.5, iterations=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at max_iter, as it should
        faster(
            f"{name}, against scikit-learn in stages",
            lambda: boosting.fit(x, target, loss),
            lambda: published(x, target, loss, units),
        )
