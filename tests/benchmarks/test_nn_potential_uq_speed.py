"""Many chains at once against one after the other, and the sampler against a plain one."""

from __future__ import annotations

import functools

import pytest
import torch
from timing import faster
from torch import nn

from repro.data.worlds.dihedrals import TwoDihedrals
from repro.data.worlds.particles import LennardJones
from repro.methods.nn_potential_uq import SGMCMC, Chains, ForceMatching
from repro.models.potentials.torsions import CosinePrior, TorsionNetwork, WithPrior

NETWORK = WithPrior(TorsionNetwork(), CosinePrior([4.0, 3.0], [1.3, -0.4]))
POSTERIOR = ForceMatching(NETWORK, {"forces": 20.0})
SAMPLER = functools.partial(SGMCMC, lr=0.001)


@pytest.mark.parametrize(("count", "factor"), [(6, 4.0), (18, 8.0)])
def test_chains_at_once_against_a_loop(count: int, factor: float) -> None:
    """1,378 parameters, batches of 32, 10 steps."""
    data = TwoDihedrals().draw(1000, torch.Generator().manual_seed(0))
    start = torch.stack([POSTERIOR.start(seed) for seed in range(count)])
    together = Chains(POSTERIOR.potential, start, SAMPLER, data)
    alone = [Chains(POSTERIOR.potential, each[None], SAMPLER, data) for each in start]

    def at_once() -> None:
        for _ in range(10):
            together.step(together.draw())

    def one_by_one() -> None:
        for chain in alone:
            for _ in range(10):
                chain.step(chain.draw())

    faster(f"{count} chains", at_once, one_by_one, factor, repeats=3)
    kept = together.optimizer.state[together.theta_MQ]
    assert sum(each.numel() for each in kept.values()) == start.numel()  # V, beside θ and ∇


def test_the_sampler_against_one_in_plain_words() -> None:
    """18 chains of 1,378 parameters; one multiplication or root at a time, in new tensors."""
    theta = nn.Parameter(torch.randn(18, 1378))
    theta.grad, square = torch.randn_like(theta), torch.ones_like(theta)
    sampler = SGMCMC([theta], lr=1e-6)
    state = {"theta": theta.detach().clone(), "square": square}

    def plain() -> None:
        g = theta.grad
        assert g is not None
        state["square"] = 0.9 * state["square"] + 0.1 * g**2
        G = 1 / (1e-5 + torch.sqrt(state["square"]))
        noise = torch.sqrt(2 * 1e-6 * G) * torch.randn_like(G)
        state["theta"] = state["theta"] - 1e-6 * G * g + noise

    def many(step: object) -> None:
        for _ in range(50):
            step()  # type: ignore[operator]

    faster("pSGLD steps", lambda: many(sampler.step), lambda: many(plain), 0.9)


def test_forces_of_a_fluid_against_a_loop_over_its_copies() -> None:
    """96 copies of 32 particles: simulations of all samples side by side."""
    world = LennardJones(box=3.76, cutoff=1.8, kT=1.2)
    line = (torch.arange(4) + 0.5) * 0.94
    lattice = torch.cartesian_prod(line, line, line)[:32]
    x = lattice + 0.02 * torch.randn(96, 32, 3)
    faster("forces", lambda: world.forces(x), lambda: [world.forces(one) for one in x], 4.0)
