"""Descent in closed form against its steps and its rival, a network's step against autograd."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from timing import faster
from torch import Tensor

from repro.methods.score_ntk import KernelDescent, Regression, TwoLayer, ntk
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.exact_scores import PointMixture

LAW = PointMixture.uniform(torch.tensor([[0.9, 0.9], [-0.9, 0.9], [0.0, -0.9]]).double())
PROBLEM = Regression(VPProcess(1.0, 1.0))


def example(size: int, seed: int) -> tuple[Tensor, Tensor]:
    triples = PROBLEM.draw(LAW, size, torch.Generator().manual_seed(seed))
    return PROBLEM.inputs(triples), triples.x0


@pytest.mark.parametrize(("last", "least"), [(20_000, 20), (100_000, 50)])
def test_all_times_at_once_against_the_steps_between(last: int, least: float) -> None:
    """400 examples, 60 times up to the last step of scale mini or full, 2,000 test inputs.

    Measured 31 and 140 times in processor time: all times at once take 15 ms whatever the last one.
    50 times are out of reach at 20,000, whose steps take 460 ms (in PyTorch, twice that): the
    eigendecomposition alone takes 10.7 ms. SciPy's drivers take 11.8 and 15.4, two thirds of it the
    reduction to a tridiagonal matrix and that matrix's own; the product with the test inputs 2.1.
    """
    (z, y), (z_test, _) = example(400, 0), example(2000, 1)
    K, K_test = ntk(z, z), ntk(z_test, z)
    taus = torch.logspace(0, np.log10(last), 60, dtype=torch.float64).round().long().unique()

    def steps() -> Tensor:
        c, seen = np.zeros(y.shape), []
        kernel, labels, wanted = K.numpy() / len(K), y.numpy() / len(K), set(taus.tolist())
        for tau in range(1, last + 1):
            c -= kernel @ c - labels
            if tau in wanted:
                seen.append(K_test.numpy() @ c)
        return torch.tensor(np.stack(seen))

    def at_once() -> Tensor:
        return KernelDescent(K, y, 1.0).predict(K_test, taus)

    torch.testing.assert_close(at_once(), steps(), rtol=1e-8, atol=1e-8)
    faster(f"{last} steps, all times at once", at_once, steps, least, repeats=3)


def test_a_whole_path_costs_little_more_than_one_ridge() -> None:
    """800 examples: all times, against six ridge regressions of scikit-learn."""
    (z, y), (z_test, _) = example(800, 0), example(2000, 1)
    K, K_test = ntk(z, z), ntk(z_test, z)
    taus = torch.arange(60)
    ridges = [KernelRidge(alpha=alpha, kernel="precomputed") for alpha in np.logspace(-2, 3, 60)]
    faster(
        "60 times of descent, against 60 ridge regressions",
        lambda: KernelDescent(K, y, 1.0).predict(K_test, taus),
        lambda: [ridge.fit(K.numpy(), y.numpy()).predict(K_test.numpy()) for ridge in ridges],
        repeats=3,
    )


def test_a_step_by_hand_against_autograd() -> None:
    """100 examples, 1,000 neurons, double precision."""
    z, y = example(100, 0)
    network = TwoLayer(z.shape[1], y.shape[1], 1000, torch.Generator().manual_seed(0))
    W = network.W_RZ.clone().requires_grad_()

    def automatic() -> None:
        for _ in range(100):
            f = network.output_scale * (torch.relu(z @ W.mT) @ network.a_RD)
            (gradient,) = torch.autograd.grad((f - y).square().sum(1).mean() / 2, W)
            with torch.no_grad():
                W.sub_(gradient)

    def by_hand() -> None:
        for _ in range(100):
            network.step(z, y, 1.0)

    before = time.process_time()
    by_hand()
    print(f"\n{1e4 * (time.process_time() - before):.0f} ms of processor time for 1,000 steps")
    faster("a step by hand, against autograd", by_hand, automatic)
