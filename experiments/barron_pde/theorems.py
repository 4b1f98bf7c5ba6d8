"""Inequalities that are proved, on random cases: the paper's lemmas as tests of the code."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from repro.experiments.barron_pde import sources
from repro.experiments.barron_pde.measurements import ROUNDING, Found

from repro.knobs import Count, NonNegative, Positive, checked
from repro.methods.barron_pde import (
    Grid,
    GridRing,
    QuasiLinear,
    Reaction,
    SparseRing,
    Spectrum,
    descend,
    h1_norm,
    h1_seminorm,
    multiply,
    solve,
)
from repro.methods.barron_pde.bounds import (
    contraction,
    drift,
    largest_rate,
    norm_after_step,
    polynomial_constant,
)


@checked
@dataclass
class Theorems:
    """Inequalities that are proved, on random cases: one that fails is a mistake of the code.

    Attributes:
        cases: random cases of each lemma.
        terms: of a random field.
        steps: of the descents that are looked at.
        alpha: of the cubic.
        beta: of the quasi-linear energy.
    """

    METRICS: ClassVar = {
        "test/cases/*": "inequalities or equations that were looked at; *: a lemma",
        "test/violations/*": "of them, how many fail",
        "test/looseness/*": "median of the bound over what it bounds",
        "test/mutated/weight": "share of products that violate Lemma 6 with ‖ω‖³ for ‖ω‖",
        "test/mutated/product": "error of a product that lacks the differences of frequencies",
        "test/error/one_step": "amplitude left of the linear problem after one step at η = 1",
        "test/error/one_step_short": "likewise at η = 0.9",
        "test/error/modes": "largest deviation of a mode's factor from 1 − η",
        "test/error/product": "of a product, against values on a grid",
        "test/error/reference": "of a sparse solution, against one on a grid",
    }
    cases: Count = 20
    terms: Count = 20
    steps: Count = 4
    alpha: NonNegative = 1.0
    beta: Positive = 0.3

    @property
    def jobs(self) -> Sequence[str]:
        """What is looked at."""
        return ["lemma4", "lemma5", "lemma6", "lemma7", "linear", "grids"]

    def measure(self, job: str, generator: torch.Generator, _device: torch.device) -> Found:
        """Looks at one of them."""
        found: Found = getattr(self, f"_{job}")(generator)
        return found

    def summary(self, _found: Mapping[str, float]) -> Found:
        """Nothing more."""
        return {}

    def _lemma4(self, generator: torch.Generator) -> Found:
        """E − E* falls by the factor of the lemma: λ = C_p = 1, Λ by Σ|a| ≥ ‖u‖_∞ on the way."""
        ratios = []
        for _ in range(max(1, self.cases // 4)):
            f = sources.pairs(2, 3, 0.8, generator)
            energy = Reaction(f, SparseRing(tol=1e-13), self.alpha)
            u = solve(energy, f * 0.0)
            Lam = 1 + 3 * self.alpha * (1.1 * u.amplitude()) ** 2
            path = descend(energy, f * 0.0, largest_rate(1.0, Lam))
            iterates = [each.u for each in itertools.islice(path, self.steps + 1)]
            gaps = [energy.value(each) - energy.value(u) for each in iterates]
            ratios += [contraction(1.0, Lam) * a / b for a, b in itertools.pairwise(gaps)]
        return _judged("lemma4", ratios)

    def _lemma5(self, generator: torch.Generator) -> Found:
        """Norm and band after a step, for the pure energy of the gradient with sin z ~ z − z³/6."""
        ratios, D, eta = [], 2, 0.1
        # Each ∂L/∂z_j is a polynomial in z_j with these coefficients.
        B = polynomial_constant(D, 3, [1 + self.beta, -self.beta / 6])
        for _ in range(self.cases):
            u = sources.random_field(D, 3, 1, generator)
            u = u * max(1.0, 1.5 / u.barron_norm())  # the lemma needs a norm of at least 1
            energy = QuasiLinear(u * 0.0, SparseRing(tol=0.0, floor=0.0), self.beta, 3, mass=0.0)
            after = list(itertools.islice(descend(energy, u, eta), 2))[1].u
            bound = norm_after_step(u.barron_norm(), eta, D, u.band, B, 3)
            ratios.append(bound / after.barron_norm())
            ratios.append(max(1, 3 * u.band) / max(1, after.band))
        return _judged("lemma5", ratios)

    def _lemma6(self, generator: torch.Generator) -> Found:
        """The algebra; and how often its product rule fails for a norm with ‖ω‖³.

        With ‖ω‖² real fields obey it, by the parallelogram law.
        """
        ratios, mutated = [], []
        for _ in range(self.cases):
            u, v = (sources.random_field(3, self.terms, 2, generator) for _ in range(2))
            norms = u.barron_norm(), v.barron_norm()
            ratios.append(sum(norms) / (u + v).barron_norm())
            ratios.append(math.prod(norms) / multiply(u, v)[0].barron_norm())
            ratios.append(u.band * norms[0] / u.derivative(0).barron_norm())
            ratios.append(norms[0] / u.bessel(-1).barron_norm())
            wave = sources.random_field(3, 1, 1, generator)
            square = multiply(wave, wave)[0]
            mutated.append(square.barron_norm(3) > wave.barron_norm(3) ** 2)
        return _judged("lemma6", ratios) | {"mutated/weight": statistics.fmean(mutated)}

    def _lemma7(self, generator: torch.Generator) -> Found:
        """Polynomials of degree 3 of vectors of fields with norms of at least 1."""
        ratios, D = [], 2
        for _ in range(self.cases):
            g = [sources.random_field(D, 3, 2, generator) for _ in range(D)]
            norm = max(1.0, *(each.barron_norm() for each in g))
            total, A = g[0] * 0.0, torch.randn(4, generator=generator).tolist()
            products = [
                multiply(multiply(g[0], g[0])[0], g[1])[0], multiply(g[0], g[1])[0], g[0], g[1],
            ]  # fmt: skip
            for coefficient, product in zip(A, products, strict=True):
                total = total + product * coefficient
            ratios.append(polynomial_constant(D, 3, A) * norm**3 / total.barron_norm())
        return _judged("lemma7", ratios)

    def _linear(self, generator: torch.Generator) -> Found:
        """One step at η = 1; the factor of every mode; and one step that is too short."""
        errors: dict[str, list[float]] = {"one_step": [], "one_step_short": [], "modes": []}
        for _ in range(self.cases):
            f = sources.random_field(3, self.terms, 3, generator)
            exact = f.bessel(-1)
            for name, eta in (("one_step", 1.0), ("one_step_short", 0.9), ("modes", 0.4)):
                energy = Reaction(f, SparseRing(tol=0.0, floor=0.0), alpha=0.0)
                u = list(itertools.islice(descend(energy, f * 0.0, eta), 2))[1].u
                left = (u - exact).a.abs()
                if name == "modes":
                    left = left / exact.a.abs() - (1 - eta)
                errors[name].append(float(left.abs().max()))
        return {f"error/{name}": max(each) for name, each in errors.items()}

    def _grids(self, generator: torch.Generator) -> Found:
        """Products and solutions, against grids of 128 points a dimension."""
        found = {"error/product": 0.0, "error/reference": 0.0, "mutated/product": math.inf}
        for _ in range(max(1, self.cases // 10)):
            u, v = (sources.random_field(2, self.terms, 5, generator) for _ in range(2))
            product, expected = multiply(u, v)[0], Grid.of(u, 128).values * Grid.of(v, 128).values
            error = float((Grid.of(product, 128).values - expected).abs().max())
            found["error/product"] = max(found["error/product"], error)
            sums = torch.cat([(u.omega[i] + v.omega).unsqueeze(0) for i in range(len(u))])
            half = Spectrum.of(sums.flatten(0, 1), (0.5 * u.a[:, None] * v.a).flatten())
            error = float((Grid.of(half, 128).values - expected).abs().max())
            found["mutated/product"] = min(found["mutated/product"], error)
            for D in (1, 2):
                f = sources.pairs(D, 3, 1.0, generator)
                sparse = solve(Reaction(f, SparseRing(tol=1e-10), self.alpha), f * 0.0)
                energy = Reaction(Grid.of(f, 128), GridRing(31), self.alpha)
                dense = solve(energy, energy.f * 0.0)
                error = float((Grid.of(sparse, 128).values - dense.values).abs().max())
                found["error/reference"] = max(found["error/reference"], error)
        return found


def _judged(lemma: str, ratios: Sequence[float]) -> Found:
    """What is logged of bounds over what they bound."""
    return {
        f"cases/{lemma}": float(len(ratios)),
        f"violations/{lemma}": float(sum(not each * ROUNDING >= 1 for each in ratios)),
        f"looseness/{lemma}": statistics.median(ratios),
    }


@checked
@dataclass
class Drift:
    """Descents with sin and with its Taylor polynomial, side by side (Lemma 8).

    Attributes:
        dims: d.
        degrees: of the polynomial.
        beta: β of the quasi-linear energy, whose λ and Λ are 1 − β and 1 + β.
        waves: of the source.
        amplitude: of each.
        eta: η.
        steps: of both.
        band: W, a third of the points an axis.
    """

    METRICS: ClassVar = {
        "test/drift/*": "largest distance in H¹₀ over that of the solution from 0; *: d and degree",
        "test/share/*": "largest distance over its bound",
        "test/share": "the same, largest of all",
        "test/broken/*": "steps at which the distance exceeds the bound",
        "test/stated/*": "likewise with the lemma's extra factor η",
        "test/violations/lemma8": "sum of test/broken",
        "test/violations/lemma8_as_stated": "sum of test/stated",
        "test/cases/lemma8": "steps that were looked at",
    }
    dims: Sequence[Count]
    degrees: Sequence[Count]
    beta: Positive = 0.3
    waves: Count = 3
    amplitude: Positive = 1.0
    eta: Positive = 0.5
    steps: Count = 20
    band: Count = 21

    @property
    def jobs(self) -> Sequence[tuple[int, int]]:
        """Dimensions and degrees."""
        return list(itertools.product(self.dims, self.degrees))

    def measure(
        self, job: tuple[int, int], generator: torch.Generator, device: torch.device
    ) -> Found:
        """Follows both descents."""
        D, degree = job
        source = sources.pairs(D, self.waves, self.amplitude, generator).to(device)
        f, ring = Grid.of(source, 3 * self.band + 1), GridRing(self.band)
        exact = QuasiLinear(f, ring, self.beta)
        rough = QuasiLinear(f, ring, self.beta, degree)
        paths = [
            [each.u for each in itertools.islice(descend(energy, f * 0.0, self.eta), self.steps)]
            for energy in (exact, rough)
        ]
        u = solve(exact, f * 0.0)
        radius = max(map(h1_norm, paths[0]))
        slope = max(
            float(each.derivative(j).values.abs().max()) for each in paths[0] for j in range(D)
        )
        epsilon = self.beta * taylor_error(degree, slope)
        found, shares, stated = 0.0, [], 0
        for t, (one, other) in enumerate(zip(*paths, strict=True)):
            distance = h1_norm(one - other)
            bound = drift(epsilon, self.eta, 1 + self.beta, radius, t)
            found = max(found, distance)
            if t:
                shares.append(distance / bound)
                stated += distance > self.eta * bound * ROUNDING
        name = f"d{D}_degree{degree}"
        return {
            f"drift/{name}": found / h1_seminorm(u),
            f"share/{name}": max(shares),
            f"broken/{name}": float(sum(each > ROUNDING for each in shares)),
            f"stated/{name}": float(stated),
        }

    def summary(self, found: Mapping[str, float]) -> Found:
        """Counts over all pairs of descents."""
        names = [f"d{D}_degree{degree}" for D, degree in self.jobs]
        return {
            "share": max(found[f"share/{name}"] for name in names),
            "violations/lemma8": sum(found[f"broken/{name}"] for name in names),
            "violations/lemma8_as_stated": sum(found[f"stated/{name}"] for name in names),
            "cases/lemma8": float(len(names) * (self.steps - 1)),
        }


def taylor_error(degree: int, slope: float) -> float:
    """The largest |sin z − P(z)| / |z| for |z| up to a slope: z^{P+1}/(P+2)! bounds it."""
    return slope ** (degree + 1) / math.factorial(degree + 2)
