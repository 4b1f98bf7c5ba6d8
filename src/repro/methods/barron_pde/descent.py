"""Gradient descent in function space, u ← u − η M DE(u), for any metric M; and Newton's method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

from repro.knobs import Count, Positive, checked
from repro.methods.barron_pde.energies import Energy
from repro.methods.barron_pde.fields import F, h1_norm


@dataclass(frozen=True)
class Sobolev:
    """The smoothing M = (I − scale Δ)^order.

    Order −1 at scale 1 is the paper's preconditioner, which turns the gradient of L² into that of
    H¹; order 0 leaves the plain gradient. It works on any field, such as an image on a `Grid`.
    """

    order: float = -1.0
    scale: float = 1.0

    def __call__(self, r: F) -> F:
        """M r."""
        return r if self.order == 0 else r.bessel(self.order, self.scale)


@dataclass(frozen=True)
class Iterate(Generic[F]):
    """A step of a descent.

    Attributes:
        u: where it is.
        residual: ‖(I − Δ)⁻¹ DE(u)‖_{H¹}: the gradient's norm in the dual of H¹, the same yardstick
            whatever the metric.
    """

    u: F
    residual: float


@checked
def descend(
    energy: Energy[F], u: F, eta: Positive, metric: Callable[[F], F] = Sobolev()
) -> Iterator[Iterate[F]]:
    """u_{t+1} = u_t − η M DE(u_t), for ever; the first is u itself.

    Args:
        energy: what to descend.
        u: the start.
        eta: η.
        metric: M.
    """
    while True:
        r = energy.gradient(u)
        yield Iterate(u, residual_norm(r))
        u = u - metric(r) * eta


def newton(energy: Energy[F], u: F, tol: float = 1e-4, inner: int = 60) -> Iterator[Iterate[F]]:
    """Newton's method from a start near enough; linear systems by conjugate gradients in H¹.

    Args:
        energy: convex near the start.
        u: the start.
        tol: of the linear systems, relative.
        inner: most conjugate-gradient steps for each.
    """
    while True:
        r = energy.gradient(u)
        size = residual_norm(r)
        yield Iterate(u, size)
        if size > 0:  # of size one, because rings prune by absolute size
            u = u - _solve(energy.hessian(u), r * (1 / size), tol, inner) * size


def residual_norm(r: F) -> float:
    """‖(I − Δ)⁻¹ r‖_{H¹} = ⟨r, (I − Δ)⁻¹ r⟩^½; NaN where a descent has diverged."""
    return math.sqrt(abs(r.inner(r.bessel(-1))))


def solve(energy: Energy[F], u: F, target: float = 1e-12, steps: Count = 30) -> F:
    """The minimiser, by Newton's method until the residual is below a target, or does not fall."""
    best = None
    for iterate in itertools.islice(newton(energy, u), steps):
        if best is not None and not iterate.residual < best.residual:
            break
        best = iterate
        if best.residual <= target:
            break
    assert best is not None
    return best.u


def _solve(apply: Callable[[F], F], right: F, tol: float, steps: int) -> F:
    """Conjugate gradients for H x = right, preconditioned by (I − Δ)⁻¹."""
    x, r = right * 0.0, right
    p = z = r.bessel(-1)
    rz = first = r.inner(z)
    for _ in range(steps):
        Hp = apply(p)
        curvature = p.inner(Hp)
        if rz <= tol**2 * first or curvature <= 0:
            break
        step = rz / curvature
        x, r = x + p * step, r - Hp * step
        z = r.bessel(-1)
        rz, before = r.inner(z), rz
        p = z + p * (rz / before)
    return x


def largest_curvature(
    energy: Energy[F], u: F, start: F, metric: Sobolev = Sobolev(), steps: int = 40
) -> float:
    """The largest eigenvalue of M D²E(u): descent near u is stable for η below 2 over it.

    By power iteration.

    Args:
        energy: what is descended.
        u: where.
        start: not orthogonal to the steepest direction.
        metric: M.
        steps: of the iteration.
    """
    apply, v, value = energy.hessian(u), start, 0.0
    for _ in range(steps):
        v = v * (1 / h1_norm(v))
        w = apply(v)
        # The quotient in the inner product of M⁻¹, in which M H is symmetric.
        value = v.inner(w) / v.inner(v.bessel(-metric.order, metric.scale))
        v = metric(w)
    return value
