"""The batched inner solver against what it replaces: one small network after another."""

import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from timing import fastest

from repro.methods.gbnn import fit_blocks, random_starts

pytestmark = pytest.mark.benchmark
ROWS, UNITS, ITERATIONS = 8, 4, 100


def test_fitting_blocks_in_one_batch_beats_scikit_learn_one_by_one():
    """Eight networks of four units, ten outputs, on the digits, 100 L-BFGS iterations."""
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(StandardScaler().fit_transform(images))[:1200]
    target = torch.nn.functional.one_hot(torch.from_numpy(labels)[:1200]).double() - 0.1
    start = random_starts(ROWS, 64, UNITS, 10, torch.Generator().manual_seed(0))

    def one_by_one():
        for row in range(ROWS):
            fit_blocks(x[None], target[None], start[row : row + 1], UNITS, 1e-4, ITERATIONS)

    def scikit_learn():
        for seed in range(ROWS):
            network = MLPRegressor(
                hidden_layer_sizes=(UNITS,), activation="logistic", solver="lbfgs", tol=0.0,
                max_iter=ITERATIONS, alpha=1e-4, random_state=seed,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it stops at max_iter, as it should
                network.fit(x.numpy(), target.numpy())

    batched = fastest(lambda: fit_blocks(x[None], target[None], start, UNITS, 1e-4, ITERATIONS), 3)
    alone, reference = fastest(one_by_one, 3), fastest(scikit_learn, 3)
    print(
        f"\n{ROWS} networks in one batch: {1e3 * batched:.0f} ms; one by one {alone / batched:.1f} "
        f"times as long; scikit-learn's MLP of the same size {reference / batched:.1f} times"
    )
    assert batched < reference
    assert batched < alone
