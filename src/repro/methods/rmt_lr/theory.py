"""Extreme eigenvalues of a batch's curvature, and the learning rates that they allow.

The curvature of a batch is that of all data plus a fluctuation, H_B = H + ε. Take ε for a symmetric
matrix of independent entries of variance σ²/b, with b the `effective_batch`. Its spectrum is a
semicircle of radius 2s, s² = P σ²/b, and an eigenvalue λ of H outside the bulk moves away from it
(Baik, Ben Arous and Péché's transition)::

    λ' = λ + s²/λ   if |λ| > s,   else ±2s

So outliers move as 1/b, and the edges of the bulk as 1/√b. Throughout, ``noise`` is S = P σ², the
variance b E|ε v|² along a direction v (`repro.methods.rmt_lr.noise` measures it), and B* = S/λ² the
`critical_batch` above which a larger batch lowers the top eigenvalue no further.
"""

from __future__ import annotations

import math
from typing import Literal

from repro.knobs import Fraction, Positive, checked

Rule = Literal["constant", "root", "linear", "rmt"]


def effective_batch(batch: float, examples: float) -> float:
    """As many independent draws as are as noisy as B of N without replacement, 1/b = 1/B - 1/N.

    Examples:
        >>> effective_batch(50, 100)
        100.0
        >>> effective_batch(100, 100)
        inf
    """
    return math.inf if batch >= examples else 1 / (1 / batch - 1 / examples)


def shifted(eigenvalue: float, s: float) -> float:
    """The extreme eigenvalue of H + ε on the side of one of H that is nearest to the edge.

    Args:
        eigenvalue: the largest of H, or, negative, the smallest.
        s: half the radius of the semicircle, at least 0.

    Examples:
        >>> shifted(4.0, 1.0), shifted(0.5, 1.0), shifted(-2.0, 1.0)
        (4.25, 2.0, -2.5)
    """
    if abs(eigenvalue) > s:
        return eigenvalue + s**2 / eigenvalue
    return math.copysign(2 * s, eigenvalue)


def batch_top(top: float, noise: float, b: float) -> float:
    """The largest eigenvalue that a batch of effective size b shows, λ + S/(b λ)."""
    return top + noise / (b * top)


def critical_batch(top: float, noise: float) -> float:
    """B* = S/λ²."""
    return noise / top**2


@checked
def max_rate(top: Positive, momentum: Fraction = 0.0) -> float:
    """The largest stable rate of gradient descent or heavy ball on a quadratic, 2 (1 + ρ)/λ."""
    return 2 * (1 + momentum) / top


@checked
def carried_rate(
    rate: Positive,
    tuned_at: Positive,
    batch: Positive,
    rule: Rule,
    critical: float = math.inf,
    examples: float = math.inf,
) -> float:
    """A rate tuned at one batch size for another.

    Args:
        rate: tuned.
        tuned_at: the batch size at which it was.
        batch: the other.
        rule: ``constant``; ``root`` and ``linear`` in the batch size; ``rmt``: in proportion to
            1/λ', which is linear far below the critical batch and constant far above.
        critical: B*, of ``rmt``.
        examples: N, of ``rmt``.

    Examples:
        >>> [carried_rate(0.1, 32, 128, rule) for rule in ("constant", "root", "linear")]
        [0.1, 0.2, 0.4]
        >>> carried_rate(0.1, 32, 128, "rmt", critical=32.0)
        0.16
    """
    if rule != "rmt":
        return rate * (batch / tuned_at) ** {"constant": 0.0, "root": 0.5, "linear": 1.0}[rule]
    before, after = (1 + critical / effective_batch(size, examples) for size in (tuned_at, batch))
    return rate * before / after


def minimal_damping(rate: float, top: float, noise: float, b: float) -> float:
    """The least δ for which steps α/(λ + δ) along the top direction are stable in a batch.

    From α λ'/(λ + δ) < 2: δ = α/2 (λ + S/(b λ)) - λ, in proportion to α/b where noise is large.
    """
    return rate / 2 * batch_top(top, noise, b) - top


def heavy_ball_optimum(top: float, bottom: float) -> tuple[float, float]:
    """The best constant rate and momentum on quadratics with curvatures in [bottom, top].

    Polyak (1964): α = 4/(√L + √μ)², ρ = ((√L - √μ)/(√L + √μ))².

    Examples:
        >>> heavy_ball_optimum(9.0, 1.0)
        (0.25, 0.25)
    """
    upper, lower = math.sqrt(top), math.sqrt(bottom)
    return 4 / (upper + lower) ** 2, ((upper - lower) / (upper + lower)) ** 2
