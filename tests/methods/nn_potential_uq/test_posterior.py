"""Force matching: against PyTorch's distributions, closed forms, finite differences."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Exponential, ExpTransform, Normal, TransformedDistribution

from repro.data.worlds.dihedrals import TwoDihedrals
from repro.methods.nn_potential_uq import SGMCMC, Chains, ForceMatching
from repro.models.potentials.torsions import (
    CosinePrior,
    FourierPotential,
    TorsionNetwork,
    WithPrior,
)

NETWORK = WithPrior(TorsionNetwork(hidden=[6]), CosinePrior([4.0, 3.0], [1.3, -0.4]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(**knobs) -> ForceMatching:
    return ForceMatching(NETWORK, {"forces": 20.0}, **knobs)


def some(count: int = 4, members: int = 3) -> tuple[Tensor, tuple[Tensor, ...]]:
    theta = torch.stack([posterior().start(seed) for seed in range(members)])
    theta[:, -1] = torch.linspace(-0.5, 0.5, members)
    x, forces = TwoDihedrals().draw(members * count, generator())
    return theta, (x.view(members, count, 2), forces.view(members, count, 2))


def test_forces_are_slopes_of_the_energy() -> None:
    model = posterior()
    theta, (x, _) = some()
    theta, x = theta.double(), x.double()
    forces = model.predict(theta, x)["forces"]
    for d in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[d] = 1e-5
        slope = (model.energies(theta, x + step) - model.energies(theta, x - step)) / 2e-5
        assert torch.allclose(forces[..., d], -slope, atol=1e-5)


def test_no_work_is_done_around_a_circle_and_angles_are_periodic() -> None:
    t = torch.linspace(0, math.tau, 401, dtype=torch.float64)[:-1]
    circle = torch.stack([0.7 * t.cos(), 0.3 + 0.9 * t.sin()], -1)[None]
    tangent = torch.stack([-0.7 * t.sin(), 0.9 * t.cos()], -1)[None]
    theta = posterior().start(0)[None].double()
    forces = posterior().at(theta).forces(circle)
    assert float((forces * tangent).sum()) * math.tau / 400 == pytest.approx(0, abs=1e-6)
    assert float((forces * tangent).abs().mean()) > 0.1
    turned = posterior().at(theta).forces(circle + math.tau)
    assert torch.allclose(forces, turned, atol=1e-4)


def test_densities_are_those_of_pytorch() -> None:
    model, (theta, batch) = posterior(prior_std=2.0), some()
    sigma = 20 * theta[:, -1].exp()
    predicted = model.predict(theta, batch[0])["forces"]
    expected = Normal(predicted, sigma[:, None, None]).log_prob(batch[1]).sum(-1)
    assert torch.allclose(model.log_likelihood(theta, batch), expected, rtol=1e-5)
    log_sigma = TransformedDistribution(Exponential(1 / 20), ExpTransform().inv)
    prior = Normal(0, 2.0).log_prob(theta[:, :-1]).sum(1) + log_sigma.log_prob(sigma.log())
    difference = model.log_prior(theta) - prior
    assert torch.allclose(difference, difference[0].expand(3), atol=1e-3)  # constants are left out
    flat = posterior(prior_std=None).log_prior(theta) - log_sigma.log_prob(sigma.log())
    assert torch.allclose(flat, flat[0].expand(3), atol=1e-5)


def test_batches_estimate_the_whole_and_the_prior_counts_once() -> None:
    model, (theta, (x, forces)) = posterior(), some(6)
    totals = torch.full((3,), 6)
    whole = model.potential(theta, (x, forces), totals)
    halves = [
        model.potential(theta, (x[:, i], forces[:, i]), totals) for i in ([0, 1], [2, 3], [4, 5])
    ]
    assert torch.allclose(torch.stack(halves).mean(0), whole, rtol=1e-5)
    expected = -model.log_likelihood(theta, (x, forces)).sum(1) - model.log_prior(theta)
    assert torch.allclose(whole, expected, rtol=1e-5)


def test_one_after_the_other_is_the_same() -> None:
    theta, batch = some()
    together, apart = posterior().predict(theta, batch[0]), posterior(stacked=False)
    for name, expected in apart.predict(theta, batch[0]).items():
        assert torch.allclose(together[name], expected, rtol=1e-4, atol=1e-4)


def test_energies_are_a_target_with_a_scale_of_its_own() -> None:
    model = ForceMatching(NETWORK, {"forces": 20.0, "energies": 3.0})
    theta, (x, forces) = some()
    both = torch.cat([theta, torch.full((3, 1), 0.2)], 1)
    energies = torch.randn(3, 4, generator=generator())
    predicted = model.predict(both, x)["energies"]
    more = Normal(predicted, 3 * math.exp(0.2)).log_prob(energies)
    expected = posterior().log_likelihood(theta, (x, forces)) + more
    assert torch.allclose(model.log_likelihood(both, (x, forces, energies)), expected, rtol=1e-5)
    error = ((energies - predicted) / 3).square().mean(1)
    squares = posterior().squared_error(theta, (x, forces)) + error
    assert torch.allclose(model.squared_error(both, (x, forces, energies)), squares, rtol=1e-5)


def test_a_frozen_scale_stays_at_its_prior_mean() -> None:
    theta, batch = some()
    theta = theta.requires_grad_()
    model = posterior(learn_scales=False)
    (slope,) = torch.autograd.grad(
        model.potential(theta, batch, torch.full((3,), 9)).sum(), theta
    )  # fmt: skip
    assert torch.equal(slope[:, -1], torch.zeros(3))
    assert model.sigmas(theta)["forces"].tolist() == [20.0] * 3


def test_starts_differ_by_seed_and_draws_have_the_priors_moments() -> None:
    model = posterior(prior_std=0.5)
    assert torch.equal(model.start(1), model.start(1))
    assert not torch.equal(model.start(1)[:-1], model.start(2)[:-1])
    drawn = model.draw(4000, generator())
    assert float(drawn[:, :-1].std()) == pytest.approx(0.5, rel=0.01)
    assert float(drawn[:, -1].exp().mean()) == pytest.approx(1, rel=0.05)


def closed_form(model: nn.Module, x: Tensor, forces: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of coefficients with standard normal priors, from the design matrix."""
    one = ForceMatching(model, {"forces": 1.0})
    P = one.network_size
    units = torch.cat([torch.eye(P), torch.zeros(P, 1)], 1)
    columns = one.at(units).forces(x, shared=True)
    design = columns.flatten(1).T.double()
    precision = design.T @ design / sigma**2 + torch.eye(P)
    mean = torch.linalg.solve(precision, design.T @ forces.flatten().double()) / sigma**2
    return mean, torch.linalg.inv(precision)


def test_a_linear_potential_has_the_posterior_of_its_closed_form() -> None:
    """Many chains of SGLD, all data in every batch, from far away."""
    model = FourierPotential(orders=1, scale=2.0)
    x, forces = TwoDihedrals().draw(20, generator())
    mean, covariance = closed_form(model, x, forces, 6.0)
    matching = ForceMatching(model, {"forces": 6.0}, learn_scales=False)
    draws = generator(1)
    sampler = functools.partial(
        SGMCMC, lr=0.05, preconditioned=False,
        noise=lambda like: torch.randn(like.shape, generator=draws),
    )  # fmt: skip
    chains = Chains(matching.potential, torch.zeros(300, matching.size), sampler, (x, forces))
    batch = x.expand(300, 20, 2), forces.expand(300, 20, 2)
    kept = []
    for step in range(120):
        chains.step(batch)
        if step >= 60 and step % 10 == 0:
            kept.append(chains.theta_MQ.detach()[:, :-1].double())
    found, spread = torch.cat(kept), covariance.diagonal().sqrt()
    assert ((found.mean(0) - mean).abs() < 0.12 * spread).all()
    assert torch.allclose(found.std(0), spread, rtol=0.12)
    assert (mean.abs() > spread).any()
    assert (spread < 0.8).any()
