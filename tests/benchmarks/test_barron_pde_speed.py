"""Products of sparse Fourier series against dictionaries and FFTs, and a solve against a grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.signal import fftconvolve
from timing import faster

from repro.methods.barron_pde import (
    Grid,
    GridRing,
    Reaction,
    SparseRing,
    Spectrum,
    descend,
    multiply,
)


def spectrum(terms: int, D: int, band: int) -> Spectrum:
    """As many terms as are asked for, both of ±ω counted."""
    omega = torch.randint(-band, band + 1, (terms // 2, D))
    return Spectrum.of(omega, torch.randn(terms // 2, dtype=torch.float64))


def full_terms(u: Spectrum) -> list[tuple[tuple[int, ...], float]]:
    both = torch.cat([u.omega, -u.omega]).tolist()
    return list(zip(map(tuple, both), (0.5 * u.a).repeat(2).tolist(), strict=True))


@pytest.mark.parametrize(("terms", "D", "factor"), [(500, 8, 10), (2000, 16, 10)])
def test_a_product_against_a_dictionary_of_frequencies(terms: int, D: int, factor: int) -> None:
    u, v = spectrum(terms, D, 3), spectrum(terms, D, 3)
    us, vs = full_terms(u), full_terms(v)

    def dictionary() -> None:
        found: dict[tuple[int, ...], float] = {}
        for omega, a in us:
            for other, b in vs:
                key = tuple(map(int.__add__, omega, other))
                found[key] = found.get(key, 0.0) + a * b

    faster(f"{terms} x {terms} terms, d={D}", lambda: multiply(u, v), dictionary, factor, repeats=2)


@pytest.mark.parametrize(("D", "band", "terms", "factor"), [(2, 64, 100, 1), (3, 32, 200, 10)])
def test_a_sparse_product_against_a_dense_convolution(
    D: int, band: int, terms: int, factor: int
) -> None:
    """Where few of the frequencies of a band occur; where all do, a grid is the better field."""
    u, v = spectrum(terms, D, band), spectrum(terms, D, band)
    dense = []
    for w in (u, v):
        box = torch.zeros((2 * band + 1,) * D, dtype=torch.float64)
        for omega, a in full_terms(w):
            box[tuple(each + band for each in omega)] += a
        dense.append(box.numpy())
    faster(
        f"{terms} terms of {(2 * band + 1) ** D}",
        lambda: multiply(u, v),
        lambda: fftconvolve(*dense),
        factor,
    )


def test_a_floor_spares_most_pairs_of_a_decaying_spectrum() -> None:
    u = spectrum(3000, 12, 3)
    u = u * torch.logspace(0, -6, len(u), dtype=torch.float64)
    faster("pairs above 1e-6", lambda: multiply(u, u, 1e-6), lambda: multiply(u, u), 1.5)


def test_a_sparse_solution_against_a_grid_in_four_dimensions() -> None:
    """Ten steps; 24 points an axis."""
    omega = torch.tensor([[1, 1, 0, 0], [0, 1, -1, 0], [0, 0, 1, 1]])
    f = Spectrum.of(omega, torch.ones(3, dtype=torch.float64))
    sparse = Reaction(f, SparseRing(tol=1e-6))
    grid = Reaction(Grid.of(f, 24), GridRing(5))
    ours = lambda: list(itertools.islice(descend(sparse, f * 0.0, 0.5), 10))  # noqa: E731
    theirs = lambda: list(itertools.islice(descend(grid, grid.f * 0.0, 0.5), 10))  # noqa: E731
    error = Grid.of(ours()[-1].u, 24).values - theirs()[-1].u.values
    assert float(error.abs().max()) < 1e-3
    assert math.isfinite(float(error.sum()))
    faster("ten steps in four dimensions", ours, theirs, 3, repeats=3)
