"""How the Barron norm of solutions grows with the dimension, and with the nonlinearity."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from repro.experiments.barron_pde import sources
from repro.experiments.barron_pde.measurements import ROUNDING, Found

from repro.knobs import Count, Positive, checked
from repro.methods.barron_pde import (
    Reaction,
    SparseRing,
    Spectrum,
    descend,
    maurey_errors,
    maurey_variance,
    nodes_for,
)
from repro.methods.barron_pde.bounds import cubic_norm_after_step


@checked
@dataclass
class Growth:
    """Solutions of −Δu + u + αu^p = f in ever more dimensions.

    Attributes:
        dims: the dimensions.
        family: ``pairs``, as many waves as dimensions; or ``product``, of 2^d terms.
        amplitude: of each wave, or of the product.
        alpha: α.
        power: p.
        eta: η.
        steps: of the descent.
        tol: see `SparseRing`; also that of the defect, in tenths.
        cap_per_dim: most terms, over d.
        largest_defect: dimensions whose solution has a larger one are left out of slopes.
        units: k of Maurey's networks.
        repetitions: draws of each.
        error: relative, of L², at which nodes and units are compared.
    """

    METRICS: ClassVar = {
        "test/norm/*": "‖u‖_B in so many dimensions",
        "test/linear_norm/*": "‖(I−Δ)⁻¹f‖_B, the solution for α = 0",
        "test/defect/*": "‖(I−Δ)⁻¹DE(u)‖_B / ‖u‖_B with a tenth of the tolerance and no cap",
        "test/discarded/*": "Barron norm that pruning dropped in the whole descent, over ‖u‖_B",
        "test/terms/*": "of u",
        "test/residual/*": "‖(I−Δ)⁻¹DE(u)‖_{H¹}",
        "test/constant/*": "root mean square error of networks of k units times √k / ‖u‖_B",
        "test/log10_nodes/*": "nodes of multilinear interpolation, relative error 1 %",
        "test/log10_units/*": "units of Maurey's network, likewise",
        "test/z/*": "k E error² minus its identity in standard errors; k and d",
        "test/uniform_z/*": "likewise, of frequencies that are drawn uniformly",
        "test/uniform_cost/*": "k E error² + ‖u‖² of uniform draws over Maurey's",
        "test/norm_bound/*": "median over steps of the bound on ‖u_{t+1}‖_B from Lemma 6 over it",
        "test/norm_violations/*": "steps at which the norm exceeds it",
        "test/looseness/norm": "median over d of test/norm_bound",
        "test/violations/norm": "sum of test/norm_violations",
        "test/qualified": "dimensions whose defect is small enough",
        "test/slope": "of log ‖u‖_B over log d",
        "test/excess_slope": "test/slope minus that of the linear solution",
        "test/exponential": "log10 of squared residuals: fit of a power of d over one of c^d",
        "test/constant_ratio/*": "test/constant in the most dimensions over that in the fewest",
        "test/extra_nodes": "decades of nodes from the fewest dimensions to the most",
        "test/extra_units": "likewise, units",
        "test/maurey_z": "sum of test/z over all k and d, in its standard deviations",
        "test/uniform_z": "median over d",
        "test/uniform_cost": "median over d",
    }
    dims: Sequence[Count]
    family: Literal["pairs", "product"] = "pairs"
    amplitude: Positive = 0.2
    alpha: float = 1.0
    power: Count = 3
    eta: Positive = 0.7
    steps: Count = 12
    tol: Positive = 1e-6
    cap_per_dim: Count = 800
    largest_defect: Positive = 0.01
    units: Sequence[Count] = (64, 256)
    repetitions: Count = 100
    error: Positive = 0.01

    @property
    def jobs(self) -> Sequence[int]:
        """The dimensions."""
        return list(self.dims)

    def measure(self, job: int, generator: torch.Generator, device: torch.device) -> Found:
        """Solves in a number of dimensions."""
        if self.family == "pairs":
            f = sources.pairs(job, job, self.amplitude, generator).to(device)
        else:
            f = sources.product(job, self.amplitude).to(device)
        linear = f.bessel(-1).barron_norm()
        ring = SparseRing(tol=self.tol, cap=self.cap_per_dim * job)
        energy = Reaction(f, ring, self.alpha, self.power)
        path = list(itertools.islice(descend(energy, f * 0.0, self.eta), self.steps))
        u = path[-1].u
        fine = Reaction(f, SparseRing(tol=self.tol / 10), self.alpha, self.power).gradient(u)
        found = {
            "norm": u.barron_norm(),
            "linear_norm": linear,
            "defect": fine.bessel(-1).barron_norm() / u.barron_norm(),
            "discarded": ring.discarded / u.barron_norm(),
            "terms": float(len(u)),
            "residual": path[-1].residual,
            "log10_nodes": nodes_for(u, self.error),
            # One wave alone is a network of one unit, without an error.
            "log10_units": math.log10(max(1, maurey_variance(u) / u.inner(u) / self.error**2)),
        }
        if self.power == 3:
            norms = [each.u.barron_norm() for each in path]
            ratios = [
                cubic_norm_after_step(before, self.eta, self.alpha, linear) / after
                for before, after in itertools.pairwise(norms)
            ]
            found["norm_bound"] = statistics.median(ratios)
            found["norm_violations"] = float(sum(ratio * ROUNDING < 1 for ratio in ratios))
        draws = torch.Generator(device).manual_seed(int(generator.initial_seed()) % 2**62)
        for k in self.units:
            errors = maurey_errors(u, k, self.repetitions, draws)
            found[f"constant/{k}"] = math.sqrt(k * float(errors.mean())) / u.barron_norm()
            if participation(u) >= 2:  # else the error is that of events too rare for a mean
                found[f"z/{k}"] = _standardised(k * errors, maurey_variance(u))
        k, square = max(self.units), u.inner(u)
        uniform = k * maurey_errors(u, k, self.repetitions, draws, "uniform")
        found["uniform_z"] = _standardised(uniform, maurey_variance(u))
        found["uniform_cost"] = (float(uniform.mean()) + square) / (maurey_variance(u) + square)
        return {f"{name}/{job}": value for name, value in found.items()}

    def summary(self, found: Mapping[str, float]) -> Found:
        """Slopes over the dimensions that qualify."""
        dims = [d for d in self.dims if found[f"defect/{d}"] <= self.largest_defect]
        result: Found = {"qualified": float(len(dims))}
        z = [value for name, value in found.items() if name.startswith("z/")]
        result["maurey_z"] = sum(z) / math.sqrt(len(z))
        for name in ("uniform_z", "uniform_cost"):
            result[name] = statistics.median(found[f"{name}/{d}"] for d in self.dims)
        if self.power == 3:
            loose = [found[f"norm_bound/{d}"] for d in self.dims]
            result["looseness/norm"] = statistics.median(loose)
            result["violations/norm"] = sum(found[f"norm_violations/{d}"] for d in self.dims)
        if len(dims) < 3:
            return result
        norms, linear = ([found[f"{name}/{d}"] for d in dims] for name in ("norm", "linear_norm"))
        result["slope"] = power_law(dims, norms)
        result["excess_slope"] = result["slope"] - power_law(dims, linear)
        result["exponential"] = exponential(dims, norms)
        for k in self.units:
            several = [d for d in dims if f"z/{k}/{d}" in found]  # one wave alone has no error
            few, many = (found[f"constant/{k}/{d}"] for d in (several[0], several[-1]))
            result[f"constant_ratio/{k}"] = many / few
        for name in ("nodes", "units"):
            few, many = (found[f"log10_{name}/{d}"] for d in (dims[0], dims[-1]))
            result[f"extra_{name}"] = many - few
        return result


def power_law(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponential(x: Sequence[float], y: Sequence[float]) -> float:
    """log10 of squared residuals: y ~ x^b over y ~ b^x, so that exponentials are positive."""
    log_y = np.log(y)
    residuals = [np.polyfit(each, log_y, 1, full=True)[1].sum() for each in (np.log(x), x)]
    power, exponent = (max(float(each), 1e-30) for each in residuals)
    return math.log10(power / exponent)


def participation(u: Spectrum) -> float:
    """The effective number of terms, (Σ|a|)²/Σ|a|²."""
    size_M = u.a.abs()
    return float(size_M.sum().square() / size_M.square().sum())


def _standardised(values: torch.Tensor, expected: float) -> float:
    """The mean minus what is expected, in standard errors; 0 where nothing varies."""
    error = float(values.std()) / math.sqrt(len(values))
    return (float(values.mean()) - expected) / error if error > 0 else 0.0


@checked
@dataclass
class Nonlinearity:
    """How far the nonlinearity moves the Barron norm, in one number of dimensions.

    Attributes:
        dim: d, and the number of waves.
        alphas: α; negative ones have to leave the energy convex where the solution is.
        powers: p.
        amplitudes: of the waves.
        solver: the other knobs of `Growth`.
    """

    METRICS: ClassVar = {
        "test/ratio/*": "‖u‖_B over that of the linear solution: p, α and amplitude",
        "test/convexity/*": "1 + pα Σ|a|^{p−1}, a bound on the curvature; for α < 0",
        "test/defect/*": Growth.METRICS["test/defect/*"],
    }
    dim: Count
    alphas: Sequence[float]
    powers: Sequence[Count]
    amplitudes: Sequence[Positive]
    solver: dict[str, Any]

    @property
    def jobs(self) -> Sequence[tuple[int, float, float]]:
        """All combinations."""
        return list(itertools.product(self.powers, self.alphas, self.amplitudes))

    def measure(
        self, job: tuple[int, float, float], generator: torch.Generator, device: torch.device
    ) -> Found:
        """Solves with one nonlinearity."""
        p, alpha, amplitude = job
        growth = Growth([self.dim], "pairs", amplitude, alpha, p, **self.solver)
        f = sources.pairs(self.dim, self.dim, amplitude, generator).to(device)
        ring = SparseRing(tol=growth.tol, cap=growth.cap_per_dim * self.dim)
        energy = Reaction(f, ring, alpha, p)
        *_, last = itertools.islice(descend(energy, f * 0.0, growth.eta), growth.steps)
        u, name = last.u, f"p{p}_alpha{alpha:g}_a{amplitude:g}"
        found = {f"ratio/{name}": u.barron_norm() / f.bessel(-1).barron_norm()}
        fine = Reaction(f, SparseRing(tol=growth.tol / 10), alpha, p).gradient(u)
        found[f"defect/{name}"] = fine.bessel(-1).barron_norm() / u.barron_norm()
        if alpha < 0:
            found[f"convexity/{name}"] = 1 + p * alpha * u.amplitude() ** (p - 1)
        return found

    def summary(self, _found: Mapping[str, float]) -> Found:
        """Nothing more."""
        return {}
