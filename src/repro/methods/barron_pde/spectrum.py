"""Sparse real trigonometric polynomials in any dimension, and their algebra on tensors.

u(x) = Re Σ_m a_m exp(i κ ω_m·x) with integer frequencies ω_m ∈ Z^D and a unit κ. Of each pair ±ω
only one is stored, so a field is real, and loses both or none when it is pruned.

A frequency is known by its key, an integer that is linear in it: key(ω) = Σ_j r_j ω_j modulo 2⁶⁴,
with fixed random r. The key of a sum is the sum of the keys, so a product of M and N terms adds,
sorts and merges 2MN integers and touches vectors of length D only for what is left. Two different
frequencies share a key with probability of about 2⁻⁶³, any two of 4 million with about 10⁻⁶. Of ±ω
the one with the positive key is stored.

Tensors carry their shape: M terms, D dimensions, N points or terms of another field, P pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Count, NonNegative, checked
from repro.methods.barron_pde.fields import taylor

LARGEST = 2**31 - 1  # frequency


@functools.cache
def _multipliers(D: int) -> Tensor:
    """The numbers r (D,), odd."""
    drawn = np.random.default_rng(D).integers(-(2**62), 2**62, D)
    return torch.from_numpy(2 * drawn + 1)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A sparse real trigonometric polynomial; `Spectrum.of` makes one from any frequencies.

    Attributes:
        omega: frequencies (M, D), int32; their keys rise strictly and are not negative.
        a: amplitudes (M,), real where all terms are cosines, else complex; that of ω = 0 is real.
        unit: κ, e.g. π/ℓ for a box with sides ℓ whose odd continuation has period 2ℓ.
    """

    omega: Tensor
    a: Tensor
    unit: float = 1.0

    @classmethod
    def of(cls, omega_MD: Tensor, a_M: Tensor, unit: float = 1.0) -> Spectrum:
        """The sum of terms of any order and sign, merged.

        Args:
            omega_MD: integers; a frequency may occur several times.
            a_M: real or complex.
            unit: see the class.
        """
        omega_MD = omega_MD.to(torch.int32)
        key_M = _key(omega_MD)
        negative_M = key_M < 0
        omega_MD = torch.where(negative_M[:, None], -omega_MD, omega_MD)
        a_M = _turned(a_M, negative_M, key_M == 0)
        _, a_M, first_M = _merge(key_M.abs(), a_M)
        return cls(omega_MD[first_M], a_M, unit)

    @classmethod
    def constant(cls, value: float, like: Spectrum) -> Spectrum:
        """A constant on the domain and device of another field."""
        return cls(like.omega.new_zeros(1, like.dim), like.a.new_full((1,), value), like.unit)

    # -- Looking ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.a)

    @property
    def dim(self) -> int:
        """The dimension."""
        return self.omega.shape[1]

    @functools.cached_property
    def key(self) -> Tensor:
        """The frequencies' keys."""
        return _key(self.omega)

    @functools.cached_property
    def frequency(self) -> Tensor:
        """κ‖ω‖₂."""
        return self.unit * self.omega.to(self.a.real.dtype).norm(dim=1)

    @property
    def band(self) -> int:
        """The largest |ω_j|; 0 for nothing."""
        return int(self.omega.abs().max()) if len(self) else 0

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The values (N,) at points (N, D)."""
        phase_NM = self.unit * x_ND @ self.omega.to(x_ND).T
        if not self.a.is_complex():
            return phase_NM.cos() @ self.a.to(x_ND)
        return phase_NM.cos() @ self.a.real.to(x_ND) - phase_NM.sin() @ self.a.imag.to(x_ND)

    def gradient_at(self, x_ND: Tensor) -> Tensor:
        """∇u (N, D) at points (N, D)."""
        return torch.stack([self.derivative(j)(x_ND) for j in range(self.dim)], dim=1)

    def amplitude(self) -> float:
        """Σ|a|, which bounds ‖u‖_∞."""
        return float(self.a.abs().sum())

    def barron_norm(self, exponent: float = 1.0) -> float:
        """Σ|a|(1 + κ‖ω‖): the Barron norm of this extension of u, an upper bound on its own.

        Args:
            exponent: of ‖ω‖; anything but 1 is another norm, for controls.
        """
        return float((self.a.abs() * (1 + self.frequency**exponent)).sum())

    def mean(self) -> float:
        """The mean over a period."""
        zero = self.key[:1] == 0
        return float(self.a.real[:1][zero].sum())

    def inner(self, other: Spectrum) -> float:
        """The mean of u v over a period: the inner product of L², without (2π)^D."""
        if self is other:
            a_M, b_M, key_M = self.a, self.a, self.key
        else:
            at_M = torch.searchsorted(other.key, self.key).clamp(max=max(len(other) - 1, 0))
            shared_M = other.key[at_M] == self.key if len(other) else at_M > 0
            a_M, b_M = self.a[shared_M], other.a[at_M[shared_M]]
            key_M = self.key[shared_M]
        weight_M = torch.where(key_M == 0, 1.0, 0.5).to(a_M.real.dtype)
        product_M = a_M * b_M.conj()
        return float((weight_M * product_M.real).sum())

    # -- Linear operations ------------------------------------------------------------------------

    def __add__(self, other: Spectrum) -> Spectrum:
        if self.unit != other.unit or self.dim != other.dim:
            raise UserError("barron_pde: fields on different domains cannot be combined.")
        key = torch.cat([self.key, other.key])
        dtype = torch.promote_types(self.a.dtype, other.a.dtype)
        _, a, first = _merge(key, torch.cat([self.a.to(dtype), other.a.to(dtype)]))
        return Spectrum(torch.cat([self.omega, other.omega])[first], a, self.unit)

    def __sub__(self, other: Spectrum) -> Spectrum:
        return self + other * -1.0

    def __mul__(self, factor: float | Tensor) -> Spectrum:
        """Multiplies all amplitudes by a number, or each by its own."""
        return Spectrum(self.omega, self.a * factor, self.unit)

    __rmul__ = __mul__

    def derivative(self, axis: int) -> Spectrum:
        """∂u/∂x_axis."""
        return self * (1j * self.unit * self.omega[:, axis].to(self.a.real.dtype))

    def bessel(self, order: float, scale: float = 1.0) -> Spectrum:
        """(I − scale Δ)^order u; order −1 is the preconditioner of the paper."""
        return self * (1 + scale * self.frequency.square()) ** order

    def to(self, device: torch.device | str) -> Spectrum:
        """The same on another device."""
        return Spectrum(self.omega.to(device), self.a.to(device), self.unit)

    def where(self, kept_M: Tensor | slice) -> Spectrum:
        """The terms that a mask, a slice or rising indices keep."""
        return Spectrum(self.omega[kept_M], self.a[kept_M], self.unit)


def multiply(
    u: Spectrum, v: Spectrum, floor: float = 0.0, tol: float = 0.0
) -> tuple[Spectrum, float]:
    """The product of two fields.

    Re(a e^{iθ}) Re(b e^{iφ}) = ½ Re(ab e^{i(θ+φ)}) + ½ Re(ab̄ e^{i(θ−φ)}).

    Args:
        u: M terms.
        v: N terms.
        floor: pairs with |a b| below this are left out.
        tol: terms of the product below this are dropped before their frequencies are made.

    Returns:
        The product, and a bound on the Barron norm of what was left out.

    Raises:
        UserError: the fields have different domains, or frequencies get too large.
    """
    if u.unit != v.unit or u.dim != v.dim:
        raise UserError("barron_pde: fields on different domains cannot be combined.")
    if u.band + v.band > LARGEST:
        raise UserError("barron_pde: frequencies exceed 32 bits; prune with a band.")
    v = v.where(v.a.abs().argsort(descending=True))  # so that a floor keeps a beginning of it
    size_M, size_N = u.a.abs(), v.a.abs()
    if floor > 0:
        # Largest first in v: how many of its terms are large enough for each term of u.
        count_M = torch.searchsorted(-size_N, -floor / size_M.clamp(min=1e-300), right=True)
        mass_N = torch.cat([size_N * (1 + v.frequency), size_N.new_zeros(1)])
        tail_N = mass_N.flip(0).cumsum(0).flip(0)
        lost = float((size_M * (1 + u.frequency) * tail_N[count_M]).sum())
    else:
        count_M, lost = torch.full_like(u.key, len(v)), 0.0
    block = 2**25 if u.a.is_cuda else 2**21
    parts = [_product(u, v, count_M, rows) for rows in _blocks(count_M, block)]
    if not parts:
        return u.where(slice(0, 0)), lost
    key, a, pair = (torch.cat(each) for each in zip(*parts, strict=True))
    if len(parts) > 1:
        _, a, first = _merge(key, a)
        pair = pair[first]
    i, j, is_difference = pair // (2 * len(v)), pair // 2 % len(v), pair % 2 == 1
    if tol > 0:
        kept = a.abs() >= tol
        size = a.abs() * (1 + u.frequency[i]) * (1 + v.frequency[j])
        lost += float(size[~kept].sum())
        a, i, j, is_difference = a[kept], i[kept], j[kept], is_difference[kept]
    sign = torch.where(is_difference, -1, 1)
    omega = u.omega[i] + sign[:, None].to(torch.int32) * v.omega[j]
    is_negative = u.key[i] + sign * v.key[j] < 0
    return Spectrum(torch.where(is_negative[:, None], -omega, omega), a, u.unit), lost


def _product(
    u: Spectrum, v: Spectrum, count_M: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Some terms of u times the first terms of v: keys, amplitudes, and a pair for each key.

    A pair of the i-th and j-th of N terms is 2 (i N + j), plus one for the difference.
    """
    count_R = count_M[rows]
    start_R = count_R.cumsum(0) - count_R
    i_P = torch.repeat_interleave(torch.arange(rows.start, rows.stop, device=u.a.device), count_R)
    j_P = torch.arange(len(i_P), device=u.a.device)
    j_P -= torch.repeat_interleave(start_R, count_R)
    a_P, b_P = u.a[i_P] * 0.5, v.a[j_P]
    key_i, key_j = u.key[i_P], v.key[j_P]
    key_2P = torch.cat([key_i + key_j, key_i - key_j])
    a_2P = _turned(torch.cat([a_P * b_P, a_P * b_P.conj()]), key_2P < 0, key_2P == 0)
    key, a, first = _merge(key_2P.abs_(), a_2P)
    at = first % len(i_P)
    return key, a, 2 * (i_P[at] * len(v) + j_P[at]) + (first >= len(i_P))


def _blocks(count_M: Tensor, block: int) -> list[slice]:
    """Rows with at most so many pairs together, or one row."""
    ends = count_M.cumsum(0).cpu()
    found, start = [], 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = int(torch.searchsorted(ends, before + block, right=True))
        stop = max(stop, start + 1)
        if int(ends[stop - 1]) > before:
            found.append(slice(start, stop))
        start = stop
    return found


def _key(omega_MD: Tensor) -> Tensor:
    return (omega_MD.long() * _multipliers(omega_MD.shape[1]).to(omega_MD.device)).sum(1)


def _turned(a_M: Tensor, negative_M: Tensor, zero_M: Tensor) -> Tensor:
    """The amplitudes at −ω instead of ω where asked for; at ω = 0 their real part."""
    if not a_M.is_complex():
        return a_M
    imag_M = torch.where(negative_M, -a_M.imag, a_M.imag).masked_fill(zero_M, 0)
    return torch.complex(a_M.real, imag_M)


def _merge(key_P: Tensor, a_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct keys in rising order, the sums of their amplitudes, and a place of each."""
    key_P, order_P = key_P.sort()
    key_M, group_P, count_M = torch.unique_consecutive(
        key_P, return_inverse=True, return_counts=True
    )
    a_M = a_P.new_zeros(len(key_M)).index_add_(0, group_P, a_P[order_P])
    return key_M, a_M, order_P[count_M.cumsum(0) - count_M]


@checked
@dataclass
class SparseRing:
    """Multiplies fields and keeps them small, and adds up what that discards.

    Attributes:
        tol: amplitudes below this are dropped.
        cap: so many terms are kept at most, the largest; None: all.
        band: frequencies with |ω_j| above this are projected out at the end of a gradient (not
            between products: this is Galerkin's method, not an error); None: all stay.
        floor: in a product pairs of terms below ``floor * tol`` are left out.
        discarded: Barron norm of what pruning dropped so far, or a bound on it.
    """

    tol: NonNegative = 1e-10
    cap: Count | None = None
    band: Count | None = None
    floor: NonNegative = 0.1
    discarded: float = field(default=0.0, init=False)

    def multiply(self, u: Spectrum, v: Spectrum) -> Spectrum:
        """The product, pruned."""
        product, lost = multiply(u, v, self.floor * self.tol, self.tol)
        self.discarded += lost
        return self.prune(product)

    def project(self, u: Spectrum) -> Spectrum:
        """The part within the band, pruned."""
        if self.band is not None:
            u = u.where(u.omega.abs().amax(1) <= self.band)
        return self.prune(u)

    def prune(self, u: Spectrum) -> Spectrum:
        """Drops what is small, and all but the largest terms."""
        kept_M = u.a.abs() >= self.tol
        if self.cap is not None and int(kept_M.sum()) > self.cap:
            kept_M = torch.zeros_like(kept_M)
            kept_M[u.a.abs().topk(self.cap).indices] = True
        if bool(kept_M.all()):
            return u
        self.discarded += u.where(~kept_M).barron_norm()
        return u.where(kept_M)

    def nonlinear(self, name: Literal["sin", "cosm1"], z: Spectrum, degree: int | None) -> Spectrum:
        """Finds sin z, or cos z − 1, by its Taylor polynomial.

        Args:
            name: ``sin`` or ``cosm1``.
            z: the field.
            degree: of the polynomial of sin z; that of cos z − 1 has one less. It is needed here.

        Raises:
            UserError: there is no degree: products of sparse fields are polynomials.
        """
        if degree is None:
            raise UserError("barron_pde: sparse fields need a Taylor degree of sin; grids do not.")
        return taylor(self, name, z, degree)
