"""The PDEs: energies E(u) = ∫ L(x, u, ∇u) − f u dx on the torus, their gradients and Hessians.

Means stand for integrals, so nothing carries (2π)^D. DE(u) = −div ∂_z L + ∂_u L − f with z = ∇u.
A source and fields that are odd in every variable solve the Dirichlet problem on a box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, Protocol

import torch
from annotated_types import Gt
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Count, Fraction, NonNegative, checked
from repro.methods.barron_pde.fields import F, Ring, power


class Energy(Protocol[F]):
    """What is descended."""

    f: F

    def value(self, u: F) -> float:
        """E(u)."""

    def gradient(self, u: F) -> F:
        """DE(u), projected onto the ring's space."""

    def hessian(self, u: F) -> Callable[[F], F]:
        """The map v → D²E(u) v, projected likewise."""

    def density(self, u_N: Tensor, z_ND: Tensor) -> Tensor:
        """L (N,) from the values of u and ∇u at points, without the source."""


@checked
class Reaction(Generic[F]):
    """L = ½ zᵀAz + ½ u² + α/(p+1) u^{p+1}: −div(A∇u) + u + α u^p = f.

    α = 0 is linear; p = 3 is the project's main example. Convex where 1 + pα u^{p−1} ≥ 0, so α may
    be a little below zero as long as u stays small.

    Args:
        f: the source.
        ring: how to multiply.
        alpha: α.
        power: p, odd.
        A_DD: symmetric and positive definite; None: the identity.

    Raises:
        UserError: p is even.
    """

    def __init__(
        self,
        f: F,
        ring: Ring[F],
        alpha: float = 1.0,
        power: Count = 3,
        A_DD: Tensor | None = None,
    ) -> None:
        if power % 2 == 0:
            raise UserError(f"barron_pde: power is odd, or the energy has no minimum; not {power}.")
        self.f, self.ring, self.alpha, self.power, self.A_DD = f, ring, alpha, power, A_DD

    def value(self, u: F) -> float:
        """E(u)."""
        quadratic = 0.5 * u.inner(self._elliptic(u)) - self.f.inner(u)
        if self.alpha == 0:
            return quadratic
        half = power(self.ring, u, (self.power + 1) // 2)
        return quadratic + self.alpha / (self.power + 1) * half.inner(half)

    def gradient(self, u: F) -> F:
        """−div(A∇u) + u + α u^p − f."""
        r = self._elliptic(u) - self.f
        if self.alpha != 0:
            r = r + power(self.ring, u, self.power) * self.alpha
        return self.ring.project(r)

    def hessian(self, u: F) -> Callable[[F], F]:
        """The map v → −div(A∇v) + v + pα u^{p−1} v."""
        if self.alpha == 0 or self.power == 1:
            extra = self.alpha  # of a linear reaction
            return lambda v: self.ring.project(self._elliptic(v) + v * extra)
        rate = power(self.ring, u, self.power - 1) * (self.power * self.alpha)
        return lambda v: self.ring.project(self._elliptic(v) + self.ring.multiply(rate, v))

    def density(self, u_N: Tensor, z_ND: Tensor) -> Tensor:
        """½ zᵀAz + ½ u² + α/(p+1) u^{p+1}."""
        Az_ND = z_ND if self.A_DD is None else z_ND @ self.A_DD.to(z_ND)
        quadratic_N = 0.5 * ((z_ND * Az_ND).sum(1) + u_N.square())
        return quadratic_N + self.alpha / (self.power + 1) * u_N ** (self.power + 1)

    def _elliptic(self, u: F) -> F:
        """−div(A∇u) + u."""
        if self.A_DD is None:
            return u.bessel(1)
        z = [u.derivative(j) for j in range(u.dim)]
        for i in range(u.dim):
            for j in range(u.dim):
                u = u - z[j].derivative(i) * float(self.A_DD[i, j])
        return u


@checked
class QuasiLinear(Generic[F]):
    """L = ½‖z‖² − β Σ cos z_j + ½ m u²: −div(z + β sin z) + m u = f.

    D²L lies between 1 − β and 1 + β in z. Without the mass m it is a pure energy of the gradient,
    as in the first version of the paper.

    Args:
        f: the source.
        ring: how to multiply.
        beta: β.
        degree: of the Taylor polynomial that stands for sin, odd (1: linear); None: sin itself.
        mass: m.

    Raises:
        UserError: the degree is even.
    """

    def __init__(
        self,
        f: F,
        ring: Ring[F],
        beta: Fraction = 0.3,
        degree: Annotated[int, Gt(0)] | None = None,
        mass: NonNegative = 1.0,
    ) -> None:
        if degree is not None and degree % 2 == 0:
            raise UserError(f"barron_pde: the Taylor degree of sin is odd, not {degree}.")
        self.f, self.ring, self.beta, self.degree, self.mass = f, ring, beta, degree, mass

    def value(self, u: F) -> float:
        """E(u), cos being the integral of what stands for sin."""
        # The Taylor polynomial of cos has one degree more than that of sin that it belongs to.
        degree = None if self.degree is None else self.degree + 2
        total = 0.5 * self.mass * u.inner(u) - self.f.inner(u)
        for j in range(u.dim):
            z = u.derivative(j)
            cosm1 = self.ring.nonlinear("cosm1", z, degree)
            total += 0.5 * z.inner(z) - self.beta * (1 + cosm1.mean())
        return total

    def gradient(self, u: F) -> F:
        """−div(∇u + β sin ∇u) + m u − f."""
        r = u * self.mass - self.f
        for j in range(u.dim):
            z = u.derivative(j)
            flux = z + self.ring.nonlinear("sin", z, self.degree) * self.beta
            r = r - flux.derivative(j)
        return self.ring.project(r)

    def hessian(self, u: F) -> Callable[[F], F]:
        """The map v → −Σ_j ∂_j((1 + β cos ∂_j u) ∂_j v) + m v."""
        cosm1 = [
            self.ring.nonlinear("cosm1", u.derivative(j), self.degree) * self.beta
            for j in range(u.dim)
        ]

        def apply(v: F) -> F:
            result = v * self.mass
            for j, slope in enumerate(cosm1):
                w = v.derivative(j)
                flux = w * (1 + self.beta) + self.ring.multiply(slope, w)
                result = result - flux.derivative(j)
            return self.ring.project(result)

        return apply

    def density(self, u_N: Tensor, z_ND: Tensor) -> Tensor:
        """½‖z‖² − β Σ cos z_j + ½ m u², with cos itself."""
        waves_N = (0.5 * z_ND.square() - self.beta * torch.cos(z_ND)).sum(1)
        return waves_N + 0.5 * self.mass * u_N.square()
