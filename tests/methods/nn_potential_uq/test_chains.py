"""Chains side by side are chains by themselves; ensembles; what is simulated."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor

from repro.data.worlds.dihedrals import TwoDihedrals
from repro.methods.nn_potential_uq import (
    SGMCMC,
    Chains,
    Ensembling,
    ForceMatching,
    Sampling,
    propagate,
)
from repro.models.potentials.torsions import FourierPotential, TorsionNetwork

POSTERIOR = ForceMatching(TorsionNetwork(hidden=[6]), {"forces": 20.0})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(start: Tensor, noise: Tensor, totals: Tensor | None = None) -> Chains:
    """Chains whose noise is given, step by step."""
    rows = iter(noise)
    sampler = functools.partial(SGMCMC, noise=lambda _: next(rows))
    data = TwoDihedrals().draw(50, generator())
    return Chains(POSTERIOR.potential, start, sampler, data, totals, batch_size=8)


def test_chains_at_once_are_chains_one_after_the_other() -> None:
    start = torch.stack([POSTERIOR.start(seed) for seed in range(3)])
    noise = torch.randn(5, *start.shape, generator=generator(1))
    together, draws = made(start, noise), generator(2)
    batches = [together.draw(draws) for _ in range(5)]
    for batch in batches:
        together.step(batch)
    for m in range(3):
        alone = made(start[m : m + 1], noise[:, m : m + 1])
        for batch in batches:
            alone.step(tuple(each[m : m + 1] for each in batch))
        assert torch.allclose(alone.theta_MQ[0], together.theta_MQ[m], atol=1e-4)


def test_a_chain_sees_its_first_states_and_each_gets_batches_of_its_own() -> None:
    start = torch.stack([POSTERIOR.start(0)] * 2)
    chains = made(start, torch.zeros(1, *start.shape), torch.tensor([3, 50]))
    x = torch.cat([chains.draw(generator(seed))[0] for seed in range(20)], 1)
    assert len(x[0].unique(dim=0)) == 3
    assert len(x[1].unique(dim=0)) > 40
    assert torch.isin(x[0], chains.data[0][:3]).all()


def test_chains_go_on_from_a_state() -> None:
    start = torch.stack([POSTERIOR.start(seed) for seed in range(2)])
    noise = torch.randn(4, *start.shape, generator=generator(1))
    straight, draws = made(start, noise), generator(2)
    batches = [straight.draw(draws) for _ in range(4)]
    for step, batch in enumerate(batches):
        straight.step(batch)
        if step == 1:
            state = copy.deepcopy(straight.state())
    again = made(torch.zeros_like(start), noise[2:])
    again.restore(state)
    for batch in batches[2:]:
        again.step(batch)
    assert torch.equal(again.theta_MQ, straight.theta_MQ)


def test_an_ensemble_of_linear_potentials_is_one_point() -> None:
    """So that its intervals have no width, whatever the data leave open."""
    matching = ForceMatching(FourierPotential(orders=1), {"forces": 20.0})
    data = TwoDihedrals().draw(15, generator())
    start = 0.1 * torch.randn(3, matching.size, generator=generator())
    adam = functools.partial(torch.optim.Adam, lr=0.3)
    ensemble = Chains(
        lambda theta, batch, _: matching.squared_error(theta, batch), start, adam, data
    )  # fmt: skip
    batch = tuple(each.expand(3, *each.shape) for each in data)
    for _ in range(120):
        losses = ensemble.step(batch)
    theta = ensemble.theta_MQ.detach()[:, :-1]
    assert (theta - theta[0]).abs().max() < 0.01 * theta.abs().max()
    assert losses[0] == pytest.approx(float(losses[1]), abs=1e-5)


def test_an_ensembles_decay_is_as_strong_as_the_prior_of_its_weights() -> None:
    """Half the loss of all numbers is a negative log-density, to which N(0, 1) adds w² / 2."""
    theta = torch.stack([POSTERIOR.start(seed) for seed in range(2)])
    batch = tuple(each.expand(2, *each.shape) for each in TwoDihedrals().draw(4, generator()))
    plain = POSTERIOR.squared_error(theta, batch)
    states = torch.tensor([4, 10])  # of each member's data, two components of a force each
    for decay in (1.0, 2.0):
        loss = Ensembling(decay=decay).loss(POSTERIOR)(theta, batch, states)
        prior = theta[:, : POSTERIOR.network_size].square().sum(1) / 2
        assert torch.allclose((loss - plain) * 2 * states / 2, decay * prior, rtol=1e-3)


def test_rates_end_at_their_ratio_and_samples_come_after_the_burn_in() -> None:
    table = {
        "warm": {"temperature": 1.0, "first": 0.1, "ratio": 0.01},
        "cold": {"temperature": 0.1, "first": 0.2, "ratio": 1.0},
    }
    sampling = Sampling(["cold", "warm"], table)
    assert sampling.rates(9)[[0, -1]].flatten().tolist() == pytest.approx([0.2, 0.1, 0.2, 0.001])
    assert sampling.kept(10, 5, generator()).tolist() == [[5, 6, 7, 8, 9]] * 2
    rates = Ensembling(lr=0.01, final=0.04).rates(3)
    assert rates.flatten().tolist() == pytest.approx([0.01, 0.002, 0.0004])


def test_every_sample_is_observed_by_itself() -> None:
    world = TwoDihedrals(bins=12)
    theta = torch.stack([POSTERIOR.start(seed) for seed in range(5)])
    whole = propagate(POSTERIOR.at, theta, world.observe, generator(), torch.zeros(1, 2))
    parts = propagate(
        POSTERIOR.at, theta, world.observe, generator(), torch.zeros(1, 2), together=2
    )
    assert whole["density"].shape == (5, 12)
    for name, expected in whole.items():
        assert torch.allclose(parts[name], expected, atol=1e-5)
    assert not torch.allclose(whole["density"][0], whole["density"][1], atol=1e-3)
