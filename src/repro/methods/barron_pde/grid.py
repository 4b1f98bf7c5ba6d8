"""Fields by their values on a regular grid of the torus: dense, for few dimensions, by FFT."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repro.knobs import Count, checked
from repro.methods.barron_pde.fields import taylor
from repro.methods.barron_pde.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Grid:
    """A real field on [0, 2π/κ)^D.

    Attributes:
        values: (n, …, n), one axis for each dimension, at x_j = 2π i_j / (κ n).
        unit: κ.
    """

    values: Tensor
    unit: float = 1.0

    @classmethod
    def of(cls, u: Spectrum, n: int) -> Grid:
        """A sparse field on n points an axis; exact where n exceeds twice its band."""
        full = torch.zeros((n,) * u.dim, dtype=torch.complex128, device=u.a.device)
        places = tuple((u.omega.long() % n).T)
        full.index_put_(places, u.a.to(full.dtype), accumulate=True)
        return cls(torch.fft.ifftn(full, norm="forward").real.contiguous(), u.unit)

    def spectrum(self, tol: float = 1e-14) -> Spectrum:
        """The same as a sparse field, without amplitudes below ``tol``."""
        c = torch.fft.fftn(self.values, norm="forward")
        axis = torch.fft.fftfreq(self.n, 1 / self.n, device=c.device)
        omega_MD = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim).round()
        kept_M = 2 * c.flatten().abs() >= tol
        # Both of ±ω are here, each with half of the amplitude.
        return Spectrum.of(omega_MD[kept_M], c.flatten()[kept_M], self.unit)

    @property
    def n(self) -> int:
        """Points an axis."""
        return self.values.shape[0]

    @property
    def dim(self) -> int:
        """The dimension."""
        return self.values.dim()

    def mean(self) -> float:
        """The mean over a period."""
        return float(self.values.mean())

    def inner(self, other: Grid) -> float:
        """The mean of u v."""
        return float((self.values * other.values).mean())

    def barron_norm(self) -> float:
        """See `Spectrum.barron_norm`."""
        return self.spectrum().barron_norm()

    def __add__(self, other: Grid) -> Grid:
        return Grid(self.values + other.values, self.unit)

    def __sub__(self, other: Grid) -> Grid:
        return Grid(self.values - other.values, self.unit)

    def __mul__(self, factor: float) -> Grid:
        return Grid(self.values * factor, self.unit)

    __rmul__ = __mul__

    def derivative(self, axis: int) -> Grid:
        """∂u/∂x_axis."""
        return self.filtered(1j * _frequencies(self, axis))

    def bessel(self, order: float, scale: float = 1.0) -> Grid:
        """(I − scale Δ)^order u."""
        square = sum(_frequencies(self, axis).square() for axis in range(self.dim))
        return self.filtered((1 + scale * square) ** order)

    def filtered(self, symbol: Tensor) -> Grid:
        """Multiplies the coefficients, in the layout of rfftn, by a symbol."""
        axes = tuple(range(self.dim))
        spectrum = torch.fft.rfftn(self.values, dim=axes) * symbol
        return Grid(torch.fft.irfftn(spectrum, self.values.shape, dim=axes), self.unit)


def _frequencies(u: Grid, axis: int) -> Tensor:
    """κ ω_axis, in the layout of rfftn, broadcast along the other axes."""
    return _frequencies_of(u.n, u.dim, axis, u.unit, u.values.device, u.values.dtype)


@functools.lru_cache(maxsize=64)
def _frequencies_of(
    n: int, D: int, axis: int, unit: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    make = torch.fft.rfftfreq if axis == D - 1 else torch.fft.fftfreq
    omega = unit * make(n, 1 / n, device=device, dtype=dtype)
    return omega.view([-1 if other == axis else 1 for other in range(D)])


@checked
@dataclass
class GridRing:
    """Multiplies fields point by point, and projects gradients onto a band.

    Products are exact within the band W where the n points an axis are more than (p + 1) W, p being
    the degree of the nonlinearity; a third of n is the usual compromise for one that is no
    polynomial.

    Attributes:
        band: W.
    """

    band: Count

    def multiply(self, u: Grid, v: Grid) -> Grid:
        """The product."""
        return Grid(u.values * v.values, u.unit)

    def project(self, u: Grid) -> Grid:
        """The part within the band."""
        inside = [
            _frequencies(u, axis).abs() <= u.unit * (self.band + 0.5) for axis in range(u.dim)
        ]
        return u.filtered(functools.reduce(torch.logical_and, inside))

    def nonlinear(self, name: Literal["sin", "cosm1"], z: Grid, degree: int | None) -> Grid:
        """Finds sin z or cos z − 1, exactly or as `SparseRing.nonlinear` does."""
        if degree is not None:
            return taylor(self, name, z, degree)
        return Grid(z.values.sin() if name == "sin" else z.values.cos() - 1, z.unit)


def points_for(band: int, power: int) -> int:
    """Points an axis with which products of a degree are exact within a band; no prime."""
    least = (power + 1) * band + 1
    return 4 * math.ceil(least / 4)


def interpolation_error(u: Spectrum, n: int) -> float:
    """‖u − I_n u‖ / ‖u‖ in L², for multilinear interpolation from a grid with n nodes an axis.

    Interpolated, e^{iωx} keeps the part Π_j sinc²(ω_j h/2) of itself and has the mean square
    Π_j (2 + cos ω_j h)/3, h = 2π/n; what it turns into besides has the frequencies ω + nZ^D, so
    that for n above twice the band terms stay orthogonal and the error is exact.

    Args:
        u: the field.
        n: above twice its band.
    """
    angle_MD = u.omega.to(u.a.real.dtype) * (2 * math.pi / n)
    kept_M = torch.sinc(angle_MD / (2 * math.pi)).square().prod(1)
    square_M = ((2 + angle_MD.cos()) / 3).prod(1)
    lost_M = (1 - 2 * kept_M + square_M).clamp(min=0)
    weighted = u * lost_M.sqrt()
    return math.sqrt(weighted.inner(weighted) / u.inner(u))


def nodes_for(u: Spectrum, error: float) -> float:
    """log10 of the grid nodes N = n^D with which interpolation has a relative error of L²."""
    low, high = 2 * u.band, 2 * u.band + 1
    while interpolation_error(u, high) > error:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if interpolation_error(u, middle) > error else (low, middle)
    return u.dim * math.log10(high)
