"""The batched inner solver against what it replaces: one small network after another."""

from __future__ import annotations

import warnings

import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from timing import faster

from repro.methods.gbnn import fit_blocks, random_starts

ROWS, UNITS, ITERATIONS = 8, 4, 100


def test_fitting_blocks_in_one_batch() -> None:
    """Eight networks of four units, ten outputs, on the digits, 100 L-BFGS iterations."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(StandardScaler().fit_transform(images))[:1200]
    target = torch.nn.functional.one_hot(torch.from_numpy(labels)[:1200]).double() - 0.1
    start = random_starts(ROWS, 64, UNITS, 10, torch.Generator().manual_seed(0))

    def batched() -> None:
        fit_blocks(x[None], target[None], start, UNITS, 1e-4, ITERATIONS)

    def one_by_one() -> None:
        for row in range(ROWS):
            fit_blocks(x[None], target[None], start[row : row + 1], UNITS, 1e-4, ITERATIONS)

    def scikit_learn() -> None:
        for seed in range(ROWS):
            network = MLPRegressor(
                hidden_layer_sizes=(UNITS,), activation="logistic", solver="lbfgs", tol=0.0,
                max_iter=ITERATIONS, alpha=1e-4, random_state=seed,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it stops at max_iter, as it should
                network.fit(x.numpy(), target.numpy())

    faster(f"{ROWS} networks, against one by one", batched, one_by_one, repeats=3)
    faster(f"{ROWS} networks, against scikit-learn's", batched, scikit_learn, repeats=3)
