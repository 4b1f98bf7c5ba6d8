"""What the paper's theorems say, as numbers.

After Marwah, Lipton, Lu and Risteski, arXiv 2210.12101: numbers of lemmas are those of its first
version, whose energy is ∫ L(∇u) with λI ⪯ D²L ⪯ ΛI on a Dirichlet domain whose first eigenvalue is
1/C_p.
"""

from __future__ import annotations

import math

from repro.knobs import Count, Positive, checked


@checked
def largest_rate(lam: Positive, Lam: Positive, C_p: Positive = 1.0) -> float:
    """λ³/((1 + C_p)Λ³), the largest η of Lemma 4."""
    return (lam / Lam) ** 3 / (1 + C_p)


@checked
def contraction(lam: Positive, Lam: Positive, C_p: Positive = 1.0) -> float:
    """1 − λ⁵/((1 + C_p)Λ⁴): what is left of E − E* after a step at `largest_rate` (Lemma 4)."""
    return 1 - lam**5 / ((1 + C_p) * Lam**4)


@checked
def steps_needed(
    gap: Positive, epsilon: Positive, lam: Positive, Lam: Positive, C_p: Positive = 1.0
) -> int:
    """Steps after which ‖u_T − u*‖²_{H¹₀} ≤ ε, from a gap E(u₀) − E* (Lemma 4)."""
    return math.ceil(math.log(2 * gap / (lam * epsilon)) / -math.log(contraction(lam, Lam, C_p)))


@checked
def polynomial_constant(D: Count, degree: Count, coefficients: list[float]) -> float:
    """B_L = d^{P/2} (Σ A_α²)^½ of a polynomial of degree P (Lemma 7).

    ‖f∘g‖_B ≤ B_L ‖g‖_B^P for ‖g‖_B ≥ 1, which terms of a lower degree need.
    """
    return D ** (degree / 2) * math.hypot(*coefficients)


@checked
def norm_after_step(
    norm: float, eta: Positive, D: Count, band: float, B: float, power: int
) -> float:
    """(1 + ηd(kW)²B_L)‖u‖_B^p with p = k: what a step may make of the Barron norm (Lemma 5).

    Args:
        norm: ‖u_t‖_B, at least 1.
        eta: η.
        D: d.
        band: W, of u_t.
        B: B_L.
        power: p = k.
    """
    return (1 + eta * D * (power * band) ** 2 * B) * norm**power


def cubic_norm_after_step(norm: float, eta: float, alpha: float, linear: float) -> float:
    """(1 − η)‖u‖_B + η(|α| ‖u‖_B³ + ‖(I−Δ)⁻¹f‖_B): the same for −Δu + u + αu³ = f, from Lemma 6."""
    return (1 - eta) * norm + eta * (abs(alpha) * norm**3 + linear)


def drift(epsilon: float, eta: float, Lam: float, R: float, steps: int) -> float:
    """How far descents with L and with L̃ are apart in H¹₀ after t steps.

    ε/(Λ+ε) R ((1 + η(Λ+ε))^t − 1), from ‖∇L − ∇L̃‖ ≤ ε‖x‖ and ‖u_t‖_{H¹₀} ≤ R. Lemma 8 states it
    with one more factor η.
    """
    return epsilon / (Lam + epsilon) * R * ((1 + eta * (Lam + epsilon)) ** steps - 1)


def network_error(norm: float, units: int, radius: float = 1.0) -> float:
    """2C/√k: Barron's bound on the error of L² of k units, on a domain of some radius."""
    return 2 * radius * norm / math.sqrt(units)
