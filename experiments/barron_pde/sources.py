"""Sources f of the PDEs, drawn or fixed, in any dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from repro.methods.barron_pde import Spectrum, multiply


def pairs(
    D: int, waves: int, amplitude: float, generator: torch.Generator, length: int | None = None
) -> Spectrum:
    """Σ a cos(ω_j·x) with two random entries ±1 in each ω_j, so that ‖f‖_B = (1 + √2) a waves.

    Args:
        D: the dimension; in one, the only frequency is 1.
        waves: how many.
        amplitude: a.
        generator: of the frequencies.
        length: entries that are not zero; 2, or 1 in one dimension, by default.
    """
    entries = min(D, 2) if length is None else length
    omega_MD = torch.zeros(waves, D, dtype=torch.int32)
    for row_D in omega_MD:
        axes = torch.randperm(D, generator=generator)[:entries]
        row_D[axes] = 2 * torch.randint(2, (entries,), generator=generator, dtype=torch.int32) - 1
    return Spectrum.of(omega_MD, torch.full((waves,), amplitude, dtype=torch.float64))


def even_pairs(D: int, waves: int, amplitude: float, generator: torch.Generator) -> Spectrum:
    """Σ a cos x_i cos x_j of random i ≠ j: even, so that solutions have no slope on ∂[0, π]^D.

    Args:
        D: the dimension, at least 2.
        waves: how many.
        amplitude: a.
        generator: of i and j.
    """
    omega_MD = torch.zeros(2 * waves, D, dtype=torch.int32)
    for wave in range(waves):
        i, j = torch.randperm(D, generator=generator)[:2].tolist()
        omega_MD[2 * wave : 2 * wave + 2, i] = 1
        omega_MD[2 * wave, j], omega_MD[2 * wave + 1, j] = 1, -1
    return Spectrum.of(omega_MD, torch.full((2 * waves,), 0.5 * amplitude, dtype=torch.float64))


def product(D: int, amplitude: float) -> Spectrum:
    """The product a Π_j (1 + cos x_j), whose Barron norm grows like 2^D."""
    zero = torch.zeros(1, D, dtype=torch.int32)
    f = Spectrum.of(zero, torch.full((1,), amplitude, dtype=torch.float64))
    for axis in range(D):
        wave = zero.clone()
        wave[0, axis] = 1
        f, _ = multiply(f, Spectrum.of(torch.cat([zero, wave]), f.a.new_ones(2)))
    return f


def random_field(D: int, terms: int, band: int, generator: torch.Generator) -> Spectrum:
    """Random frequencies up to a band, with complex Gaussian amplitudes."""
    omega_MD = torch.randint(-band, band + 1, (terms, D), generator=generator)
    a: Tensor = torch.randn(terms, 2, dtype=torch.float64, generator=generator)
    return Spectrum.of(omega_MD, torch.view_as_complex(a))
