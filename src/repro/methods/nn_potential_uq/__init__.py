"""Bayesian uncertainty of neural-network potentials: sample them, and simulate every sample.

Thaler, Doehner and Zavadlav, "Scalable Bayesian Uncertainty Quantification for Neural Network
Potentials: Promise and Pitfalls" (J. Chem. Theory Comput. 19, 4520, 2023; arXiv 2212.07959). A
potential is matched to forces; `ForceMatching` is its posterior, `SGMCMC` samples it, `Chains` runs
many chains at once, `propagate` simulates every sample, and `Interval` and `rhat` judge what the
simulations say.

>>> from repro.models.potentials.torsions import TorsionNetwork
>>> from repro.data.worlds.dihedrals import TwoDihedrals
>>> world, generator = TwoDihedrals(), torch.Generator().manual_seed(0)
>>> data = world.draw(200, generator)                    # angles and noisy forces
>>> posterior = ForceMatching(TorsionNetwork(hidden=[8]), scales={"forces": 20.0})
>>> start_MQ = torch.stack([posterior.start(seed) for seed in range(3)])
>>> sampler = functools.partial(SGMCMC, lr=0.005, temperature=1.0)
>>> chains = Chains(posterior.potential, start_MQ, sampler, data)
>>> samples = []
>>> for step in range(20):
...     losses_M = chains.step(chains.draw(generator))
...     if step >= 10:
...         samples.append(chains.theta_MQ.detach().clone())
>>> found = propagate(posterior.at, torch.cat(samples), world.observe, generator, data[0])
>>> interval = Interval.of(found["density"])
>>> 0 <= interval.coverage(world.reference(data[0])["density"]) <= 1
True
"""

from repro.methods.nn_potential_uq.chains import Chains, propagate
from repro.methods.nn_potential_uq.inference import Ensembling, Sampling
from repro.methods.nn_potential_uq.posterior import BoundPotentials, ForceMatching
from repro.methods.nn_potential_uq.sgmcmc import SGMCMC, accepted_steps, polynomial_rates
from repro.methods.nn_potential_uq.uncertainty import (
    Interval,
    crps,
    effective_size,
    recalibration,
    rhat,
    within_between,
)

__all__ = [
    "SGMCMC",
    "BoundPotentials",
    "Chains",
    "Ensembling",
    "ForceMatching",
    "Interval",
    "Sampling",
    "accepted_steps",
    "crps",
    "effective_size",
    "polynomial_rates",
    "propagate",
    "recalibration",
    "rhat",
    "within_between",
]
