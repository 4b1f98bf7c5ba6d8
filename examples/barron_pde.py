"""A nonlinear PDE in 32 dimensions, and a two-layer network for its solution.

Descent on the energy of −Δu + u + u³ = f, preconditioned by (I − Δ)⁻¹, on sparse Fourier series;
then a network sampled from the solution's spectrum. Run it: ``python examples/barron_pde.py``.
"""

import itertools

import torch

from repro.methods.barron_pde import Reaction, SparseRing, Spectrum, descend, maurey_network

D = 32
omega = torch.zeros(8, D, dtype=torch.int32)  # the source: eight waves in four dimensions each
for wave in range(8):
    omega[wave, 3 * wave : 3 * wave + 4] = 1
f = Spectrum.of(omega, torch.full((8,), 0.8, dtype=torch.float64))

ring = SparseRing(tol=1e-5)
energy = Reaction(f, ring, alpha=1.0, power=3)
for step, iterate in enumerate(itertools.islice(descend(energy, f * 0.0, eta=0.6), 9)):
    u = iterate.u
    size = f"Barron norm {u.barron_norm():.3f}, {len(u)} terms"
    print(f"step {step}: residual {iterate.residual:.1e}, {size}")

x = 2 * torch.pi * torch.rand(2000, D, dtype=torch.float64)
for units in (16, 64, 256, 1024):
    network = maurey_network(u, units, torch.Generator().manual_seed(0))
    error = (network(x) - u(x)).square().mean().sqrt() / u(x).square().mean().sqrt()
    print(f"{units} units: relative error {error:.1%}")
