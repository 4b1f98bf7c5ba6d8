"""Posterior samples of a neural-network potential, and what its intervals do not see.

A network is matched to noisy forces by stochastic-gradient MCMC, with several chains at once. Its
samples give a credible interval of the density of an angle; the truth is known here. A bias of the
forces is nowhere in them, so that the error outgrows them. Run it:
``python examples/nn_potential_uq.py``.
"""

import functools

import torch

from repro.data.worlds.dihedrals import TwoDihedrals
from repro.methods.nn_potential_uq import (
    SGMCMC,
    Chains,
    ForceMatching,
    Interval,
    polynomial_rates,
    propagate,
    rhat,
)
from repro.models.potentials.torsions import CosinePrior, TorsionNetwork, WithPrior

CHAINS, STEPS = 4, 100
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
prior = CosinePrior([4.0, 3.0], [1.3, -0.4])
posterior = ForceMatching(WithPrior(TorsionNetwork(hidden=[16]), prior), {"forces": 20.0})
rates = polynomial_rates(0.03, 0.003, STEPS)

for name, bias in (("right forces", 0.0), ("biased forces", 6.0)):
    world = TwoDihedrals(bias=bias, bins=40)
    q, forces = world.draw(2000, generator)
    start = torch.stack([posterior.start(chain) for chain in range(CHAINS)])
    sampler = functools.partial(SGMCMC, temperature=0.1)
    chains = Chains(posterior.potential, start, sampler, (q, forces))
    kept = []
    for step in range(STEPS):
        chains.optimizer.param_groups[0]["lr"] = float(rates[step])
        chains.step(chains.draw(generator))
        if step >= STEPS // 2 and step % 5 == 0:
            kept.append(chains.theta_MQ.detach().clone())
    samples = torch.stack(kept, 1)  # chains, samples, parameters
    flat = samples.flatten(0, 1)
    observed = propagate(posterior.at, flat, world.observe, generator, q)["density"]
    interval, truth = Interval.of(observed), world.reference(q)["density"]
    sigma = posterior.sigmas(flat)["forces"].mean()
    mixed = rhat(observed.unflatten(0, samples.shape[:2])).mean()
    print(
        f"{name}: std {interval.width:.3f}, error {interval.error(truth):.3f},"
        f" coverage {interval.coverage(truth):.2f}, R-hat {mixed:.2f},"
        f" scatter of the forces {sigma:.1f} (true {world.sigma:.1f})"
    )
