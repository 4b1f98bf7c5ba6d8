"""The kernel against networks, descent against its own steps, and the regression's identities."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import repro.methods.score_ntk
from repro.errors import UserError
from repro.methods.score_ntk import KernelDescent, Regression, TwoLayer, ntk, rwy_steps
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.exact_scores import PointMixture

FIVE = torch.tensor([[0.9, 0.9], [0.9, -0.9], [-0.9, 0.9], [-0.9, -0.9], [0, 0]]).double()
LAW = PointMixture.uniform(FIVE)
PROBLEM = Regression(VPProcess(1.0, 1.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(sum(shape)))


TRAIN = PROBLEM.draw(LAW, 40, generator())
Z, Y = PROBLEM.inputs(TRAIN), TRAIN.x0


def test_the_docstring_shows_what_happens() -> None:
    assert doctest.testmod(repro.methods.score_ntk).failed == 0


# -- The regression --------------------------------------------------------------------------------


def test_score_matching_is_regression_sample_by_sample() -> None:
    f = normal(40, 2)
    squares = (f - TRAIN.x0).square().sum(1)
    torch.testing.assert_close(PROBLEM.matching_loss(f, TRAIN), squares, rtol=1e-12, atol=0)
    assert not torch.allclose(PROBLEM.matching_loss(f, TRAIN, weighted=False), squares, rtol=0.1)


def test_the_loss_is_the_error_plus_a_constant() -> None:
    """E‖f − x_0‖² − E‖f − f_*‖² is E‖x_0 − f_*‖² whatever f is."""
    drawn = PROBLEM.draw(LAW, 100_000, generator(1))
    exact = PROBLEM.exact(LAW, drawn)
    noise = float((drawn.x0 - exact).square().sum(1).mean())
    # E‖x_0‖² = 0.8 · 2 · 0.9² is what f_* explains and the noise.
    assert noise + float(exact.square().sum(1).mean()) == pytest.approx(1.296, abs=0.02)
    for f in (torch.zeros_like(exact), drawn.xt, drawn.xt.sin()):
        loss, error = ((f - target).square().sum(1).mean() for target in (drawn.x0, exact))
        assert float(loss - error) == pytest.approx(noise, abs=0.02)


def test_triples_are_noised_as_the_process_says() -> None:
    assert PROBLEM.t_min <= float(TRAIN.t.min()) <= float(TRAIN.t.max()) <= PROBLEM.t_max
    alpha, h = PROBLEM.signal(TRAIN.t)
    torch.testing.assert_close(alpha, (-TRAIN.t / 2).exp())
    noise = (TRAIN.xt - alpha[:, None] * TRAIN.x0) / h.sqrt()[:, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.2)
    assert Z.shape == (40, 4)
    assert torch.equal(Z[:, 3], torch.ones(40))
    assert replace(PROBLEM, bias=False).inputs(TRAIN).shape == (40, 3)
    assert torch.equal(TRAIN.where(TRAIN.t < 1).x0, TRAIN.x0[TRAIN.t < 1])
    with pytest.raises(UserError, match="not after t_min"):
        Regression(VPProcess(), t_min=1.0, t_max=0.5)


# -- The kernel ------------------------------------------------------------------------------------


def test_known_values_of_the_kernel() -> None:
    z = normal(5, 3)
    squared = z.square().sum(1)
    torch.testing.assert_close(ntk(z, z).diagonal(), squared / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(ntk(z, -z).diagonal(), torch.zeros(5).double(), atol=1e-6, rtol=0)
    sixty = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 2.0]]).double()
    found = ntk(sixty[:1], sixty)[0]
    torch.testing.assert_close(found, torch.tensor([1 / 2, 1 / 6, 0]).double())
    torch.testing.assert_close(ntk(2 * z, 3 * z), 6 * ntk(z, z))


def test_the_kernel_is_the_mean_over_a_million_neurons() -> None:
    z, w = normal(4, 3), torch.randn(1_000_000, 3, generator=generator()).double()
    active = (z @ w.T > 0).double()
    torch.testing.assert_close(
        ntk(z, z), (z @ z.T) * (active @ active.T) / len(w), rtol=0.01, atol=0.01
    )


def test_the_kernel_without_an_arc_cosine() -> None:
    """Wide two-layer networks' whole tangent kernel less its readout's part is κ.

    Arc-cosine kernels by quadrature over the angle of a neuron in the plane of two inputs.
    """
    u = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)[:-1]
    directions = torch.stack([u.cos(), u.sin()])
    z = torch.tensor([[1.0, 0.3], [-0.2, 0.9]]).double()
    active = (z @ directions > 0).double()
    share = float((active[0] * active[1]).mean())
    assert float(ntk(z[:1], z[1:])) == pytest.approx(float(z[0] @ z[1]) * share, rel=1e-4)


@pytest.mark.parametrize("rate", [0.5, 1.9])
def test_closed_form_descent_is_descent(rate: float) -> None:
    K = ntk(Z, Z)
    rate = rate / float(torch.linalg.eigvalsh(K)[-1] / len(K))
    c, steps = torch.zeros_like(Y), {0: torch.zeros_like(Y)}
    for step in range(1, 101):
        c = c - rate / len(K) * (K @ c - Y)
        steps[step] = c
    taus = torch.tensor([0, 1, 2, 3, 50, 100])
    descent = KernelDescent(K, Y, rate)
    found = descent.coefficients(taus)
    expected = torch.stack([steps[int(tau)] for tau in taus])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(descent.predict(K, taus), K @ expected, rtol=1e-9, atol=1e-9)


def test_descent_without_end_interpolates() -> None:
    K = ntk(Z, Z)
    found = KernelDescent(K, Y, 1.0).coefficients(torch.tensor([10**9]))[0]
    torch.testing.assert_close(found, torch.linalg.solve(K, Y), rtol=1e-6, atol=1e-6)


def test_directions_without_curvature_stay_linear() -> None:
    K = torch.diag(torch.tensor([0.0, 2.0])).double()
    descent = KernelDescent(K, torch.ones(2, 1).double(), 1.0)
    torch.testing.assert_close(descent.filters(torch.tensor([6]))[0, 0], torch.tensor(3.0).double())


def test_a_rate_that_diverges_is_refused() -> None:
    with pytest.raises(UserError, match="choose less than"):
        KernelDescent(ntk(Z, Z), Y, 1000.0)


def test_the_rule_is_the_last_time_of_its_definition() -> None:
    eigenvalues, rate, noise = torch.linalg.eigvalsh(ntk(Z, Z)).clamp(min=0) / 40, 0.5, 0.1

    def broken(tau: int) -> bool:
        time = rate * tau
        within = np.minimum(eigenvalues.numpy(), (1 / math.sqrt(time)) ** 2)
        return bool(math.sqrt(within.mean()) > 1 / (2 * math.e * noise * time))

    expected = next(tau for tau in range(1, 10_000) if broken(tau)) - 1
    assert rwy_steps(eigenvalues, rate, noise) == expected > 1
    assert rwy_steps(eigenvalues, rate, noise / 2) > expected
    assert rwy_steps(eigenvalues, rate, 1e6) == 0
    with pytest.raises(UserError, match="nothing to stop for"):
        rwy_steps(eigenvalues, rate, 0.0)


# -- The network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("train_readout", [False, True])
@pytest.mark.parametrize("scale", ["ntk", "meanfield"])
def test_a_step_by_hand_is_one_by_autograd(scale: str, train_readout: bool) -> None:
    knobs: dict[str, Any] = {"scale": scale, "train_readout": train_readout, "paired": False}
    network = TwoLayer(4, 2, 30, generator(), **knobs)
    W, a = network.W_RZ.clone().requires_grad_(), network.a_RD.clone().requires_grad_()
    s, speed = (30**-0.5, 1) if scale == "ntk" else (1 / 30, 30)
    f = s * ((Z @ W.T).relu() @ a)
    torch.testing.assert_close(network(Z), f.detach())
    (0.5 * (f - Y).square().sum(1).mean()).backward()
    network.step(Z, Y, 0.3)
    assert W.grad is not None
    assert a.grad is not None
    moved = 0.3 * speed
    torch.testing.assert_close(network.W_RZ, (W - moved * W.grad).detach(), rtol=1e-10, atol=1e-12)
    expected = (a - moved * a.grad).detach() if train_readout else a.detach()
    torch.testing.assert_close(network.a_RD, expected, rtol=1e-10, atol=1e-12)


def test_pairs_begin_at_zero_in_every_output() -> None:
    network = TwoLayer(4, 3, 60, generator())
    assert network(Z).abs().max() < 1e-12
    assert set(network.a_RD.unique().tolist()) == {-1, 1}
    assert TwoLayer(4, 3, 60, generator(), paired=False)(Z).abs().max() > 0.1
    assert network.moved() == 0
    with pytest.raises(UserError, match="odd"):
        TwoLayer(4, 3, 61, generator())


def after_one_step(**knobs: Any) -> Tensor:
    network = TwoLayer(4, 2, 100_000, generator(), **knobs)
    network.step(Z, Y, 1.0)
    return network(Z)


def test_one_step_of_a_wide_network_is_one_of_the_kernel_and_no_other() -> None:
    """What a trained readout adds is of full size only here: later both fit the same labels."""
    K = ntk(Z, Z)
    one_step = KernelDescent(K, Y, 1.0).predict(K, torch.tensor([1]))[0]
    size = one_step.norm()
    assert (after_one_step() - one_step).norm() < 0.02 * size
    assert (after_one_step(scale="meanfield") - one_step).norm() > 0.03 * size
    assert (after_one_step(train_readout=True) - one_step).norm() > 0.2 * size


def test_a_small_step_is_that_of_the_networks_own_kernel() -> None:
    network = TwoLayer(4, 1, 20, generator())
    features = (Z @ network.W_RZ.T > 0).double() * network.a_RD[:, 0] / 20**0.5
    K = (features @ features.T) * (Z @ Z.T)
    y = Y[:, :1]
    network.step(Z, y, 1e-6)
    torch.testing.assert_close(network(Z), 1e-6 / len(Z) * K @ y, rtol=1e-4, atol=1e-12)
