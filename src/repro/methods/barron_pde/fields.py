"""What energies and descents need of a field, sparse or on a grid, and of its multiplication."""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self, TypeVar


class Field(Protocol):
    """A real periodic function that can be added, differentiated and smoothed."""

    @property
    def dim(self) -> int:
        """The dimension."""

    def __add__(self, other: Self) -> Self: ...
    def __sub__(self, other: Self) -> Self: ...
    def __mul__(self, factor: float) -> Self: ...
    def derivative(self, axis: int) -> Self:
        """∂u/∂x_axis."""

    def bessel(self, order: float, scale: float = 1.0) -> Self:
        """(I − scale Δ)^order u."""

    def inner(self, other: Self) -> float:
        """The mean of u v over a period."""

    def mean(self) -> float:
        """The mean over a period."""


F = TypeVar("F", bound=Field)
R = TypeVar("R")


class Ring(Protocol[R]):
    """How fields are multiplied, and what space gradients are projected onto."""

    def multiply(self, u: R, v: R, /) -> R:
        """The product."""

    def project(self, u: R, /) -> R:
        """The part in the space."""

    def nonlinear(self, name: Literal["sin", "cosm1"], z: R, degree: int | None) -> R:
        """Finds sin z or cos z − 1, exactly or by its Taylor polynomial."""


def power(ring: Ring[R], u: R, k: int) -> R:
    """u^k for k ≥ 1, by squaring."""
    if k == 1:
        return u
    half = power(ring, u, k // 2)
    square = ring.multiply(half, half)
    return square if k % 2 == 0 else ring.multiply(square, u)


def taylor(ring: Ring[F], name: Literal["sin", "cosm1"], z: F, degree: int) -> F:
    """The Taylor polynomial of sin z of an odd degree, or of cos z − 1 of one degree less."""
    if degree == 1:
        return z if name == "sin" else z * 0.0
    square = ring.multiply(z, z)
    term, first = (z, 3) if name == "sin" else (square * -0.5, 4)
    total, last = term, degree - (name == "cosm1")
    for n in range(first, last + 1, 2):
        term = ring.multiply(term, square) * (-1.0 / (n * (n - 1)))
        total = total + term
    return total


def h1_norm(u: Field) -> float:
    """‖u‖_{H¹} = (‖u‖² + ‖∇u‖²)^½."""
    return math.sqrt(abs(u.inner(u.bessel(1))))


def h1_seminorm(u: Field) -> float:
    """‖∇u‖."""
    return math.sqrt(sum(z.inner(z) for z in map(u.derivative, range(u.dim))))
