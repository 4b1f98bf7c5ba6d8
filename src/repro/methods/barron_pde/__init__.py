"""Nonlinear elliptic PDEs solved by sparse Fourier series, and the Barron norms of solutions.

After Marwah, Lipton, Lu and Risteski, "Neural Network Approximations of PDEs Beyond Linearity: A
Representational Perspective", arXiv 2210.12101: gradient descent on the energy, preconditioned by
(I − Δ)⁻¹, reaches the solution in few steps, and every step multiplies the Barron norm by a factor
that is polynomial in the dimension; so there are small two-layer networks for the solution. The
paper has no code and no experiment; here its iteration runs, in any dimension:

>>> import itertools
>>> import torch
>>> from repro.methods.barron_pde import Reaction, SparseRing, Spectrum, descend, maurey_network
>>> omega = torch.zeros(4, 16, dtype=torch.int32)  # the source: four waves in 16 dimensions
>>> for wave in range(4):
...     omega[wave, 3 * wave : 3 * wave + 2] = 1
>>> f = Spectrum.of(omega, torch.ones(4, dtype=torch.float64))
>>> ring = SparseRing(tol=1e-6)
>>> energy = Reaction(f, ring, alpha=1.0, power=3)  # −Δu + u + u³ = f
>>> path = list(itertools.islice(descend(energy, f * 0.0, eta=0.5), 16))
>>> worst = max(b.residual / a.residual for a, b in itertools.pairwise(path))
>>> u = path[-1].u
>>> worst < 0.6, path[-1].residual < 1e-3, u.barron_norm() < 2 * f.bessel(-1).barron_norm()
(True, True, True)
>>> network = maurey_network(u, units=256, generator=torch.Generator().manual_seed(0))
>>> x = 6.28 * torch.rand(1000, 16, dtype=torch.float64)
>>> bool((network(x) - u(x)).square().mean().sqrt() < 0.2 * u(x).std())
True
"""

from repro.methods.barron_pde.descent import (
    Iterate,
    Sobolev,
    descend,
    largest_curvature,
    newton,
    residual_norm,
    solve,
)
from repro.methods.barron_pde.energies import Energy, QuasiLinear, Reaction
from repro.methods.barron_pde.fields import Field, Ring, h1_norm, h1_seminorm
from repro.methods.barron_pde.grid import (
    Grid,
    GridRing,
    interpolation_error,
    nodes_for,
    points_for,
)
from repro.methods.barron_pde.networks import (
    TwoLayer,
    deep_ritz_loss,
    maurey_errors,
    maurey_network,
    maurey_variance,
    residual_loss,
)
from repro.methods.barron_pde.spectrum import SparseRing, Spectrum, multiply

__all__ = [
    "Energy",
    "Field",
    "Grid",
    "GridRing",
    "Iterate",
    "QuasiLinear",
    "Reaction",
    "Ring",
    "Sobolev",
    "SparseRing",
    "Spectrum",
    "TwoLayer",
    "deep_ritz_loss",
    "descend",
    "h1_norm",
    "h1_seminorm",
    "interpolation_error",
    "largest_curvature",
    "maurey_errors",
    "maurey_network",
    "maurey_variance",
    "multiply",
    "newton",
    "nodes_for",
    "points_for",
    "residual_loss",
    "residual_norm",
    "solve",
]
