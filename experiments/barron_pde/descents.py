"""How fast descents in function space are, in ever larger spaces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from repro.experiments.barron_pde import sources
from repro.experiments.barron_pde.measurements import Found

from repro.knobs import Count, Positive, checked
from repro.methods.barron_pde import (
    Grid,
    GridRing,
    Reaction,
    Sobolev,
    SparseRing,
    descend,
    largest_curvature,
    newton,
    points_for,
    solve,
)


@checked
@dataclass
class Convergence:
    """How fast a descent is in ever larger spaces, at a given step size and at its best.

    Attributes:
        bands: W, in two dimensions on a grid, where products are exact.
        metric: of the descent; None: Newton's method.
        dims: d, by sparse series with band ``sparse_band``, at ``eta`` alone.
        waves: of the source, of amplitude 1.
        eta: η at which the ratio of successive residuals is taken; None: the best.
        target: residual whose steps are counted.
        most: steps after which counting stops.
        tries: step sizes, from the largest that is stable downwards by factors of 1.5.
        floor: below ten times this residual ratios are not looked at.
        sparse_band: W in more dimensions.
        sparse_steps: likewise, steps.
        solver: ``tol`` and ``cap`` of `SparseRing`.
    """

    METRICS: ClassVar = {
        "test/steps/*": "to a residual of 1e-3 at the best η; the most allowed where never",
        "test/censored/*": "1 where never",
        "test/eta/*": "the best η",
        "test/ratio/*": "largest ratio of successive residuals from the third step on, at η",
        "test/ratio_spread/bands": "largest minus smallest test/ratio over bands",
        "test/ratio_spread/dims": "likewise over dimensions",
    }  # W<band>: cubic; even<band>: the linear problem with frequencies of one length; d<dim>
    bands: Sequence[Count]
    metric: Sobolev | None
    dims: Sequence[Count] = ()
    waves: Count = 4
    eta: Positive | None = None
    target: Positive = 1e-3
    most: Count = 2000
    tries: Count = 6
    floor: Positive = 1e-11
    sparse_band: Count = 7
    sparse_steps: Count = 12
    solver: dict[str, Any] | None = None

    @property
    def jobs(self) -> Sequence[tuple[str, int]]:
        """A kind and a size."""
        middle = sorted(self.bands)[len(self.bands) // 2]
        return [
            *(("W", band) for band in self.bands),
            ("even", middle),
            *(("d", dim) for dim in self.dims),
        ]

    def measure(
        self, job: tuple[str, int], generator: torch.Generator, device: torch.device
    ) -> Found:
        """Descends in one space."""
        kind, size = job
        name = f"{kind}{size}"
        if kind == "d":
            f = sources.pairs(size, self.waves, 1.0, generator).to(device)
            sparse = Reaction(f, SparseRing(band=self.sparse_band, **(self.solver or {})))
            residuals = self._run(sparse, f * 0.0, self.eta or 0.5, self.sparse_steps)
            return {f"ratio/{name}": worst_ratio(residuals, 10 * self.floor)}
        source = sources.pairs(2, self.waves, 1.0, generator).to(device)
        on_grid, ring = Grid.of(source, points_for(size, 3)), GridRing(size)
        energy = Reaction(on_grid, ring, alpha=1.0 if kind == "W" else 0.0)
        start, best, eta = on_grid * 0.0, self.most, math.nan
        # The largest curvature of the space; in the even problem that of what the source excites,
        # before rounding excites the rest.
        noise = torch.randn(
            on_grid.values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        probe = ring.project(Grid(noise.to(device))) if kind == "W" else on_grid
        for candidate in self._candidates(energy, probe, 100 if kind == "W" else 1):
            residuals = self._run(energy, start, candidate, best)
            reached = steps_to(residuals, self.target)
            if reached < best or math.isnan(eta):
                best, eta = int(min(reached, best)), candidate
        residuals = self._run(energy, start, self.eta or eta, 2 + best)
        return {
            f"steps/{name}": float(best),
            f"censored/{name}": float(best >= self.most),
            f"eta/{name}": eta,
            f"ratio/{name}": worst_ratio(residuals, 10 * self.floor),
        }

    def summary(self, found: Mapping[str, float]) -> Found:
        """How much ratios differ."""
        groups = {"bands": [f"ratio/W{band}" for band in self.bands]}
        middle = sorted(self.bands)[len(self.bands) // 2]
        if self.dims:  # the grid's two dimensions belong to these
            groups["dims"] = [f"ratio/W{middle}", *(f"ratio/d{dim}" for dim in self.dims)]
        ratios = {group: [found[name] for name in names] for group, names in groups.items()}
        return {f"ratio_spread/{group}": max(each) - min(each) for group, each in ratios.items()}

    def _candidates(self, energy: Reaction[Grid], probe: Grid, steps: int) -> list[float]:
        """Step sizes from the largest stable one downwards; Newton's is 1."""
        if self.metric is None:
            return [1.0]
        u = solve(energy, probe * 0.0)
        limit = 2 / largest_curvature(energy, u, probe, self.metric, steps)
        return [limit / 1.02 / 1.5**n for n in range(self.tries)]

    def _run(self, energy: Any, start: Any, eta: float, steps: int) -> list[float]:
        """Residuals, the start's included, until they are at the floor or have exploded."""
        if self.metric is None:
            path = newton(energy, start)
        else:
            path = descend(energy, start, eta, self.metric)
        residuals: list[float] = []
        for iterate in itertools.islice(path, steps + 1):
            residuals.append(iterate.residual)
            if not self.floor < iterate.residual < 1e6:
                break
        return residuals


def steps_to(residuals: Sequence[float], target: float) -> float:
    """The first step with at most this residual; infinity for none."""
    return next((n for n, each in enumerate(residuals) if each <= target), math.inf)


def worst_ratio(residuals: Sequence[float], floor: float) -> float:
    """The largest ratio of successive residuals above a floor, from the third step on.

    A descent that explodes has infinity.
    """
    pairs = list(itertools.pairwise(residuals))
    late = [(a, b) for a, b in pairs[2:] if a > floor] or pairs
    return max(b / a if math.isfinite(b) else math.inf for a, b in late)
