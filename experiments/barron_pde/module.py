"""Measures solutions of PDEs job by job, and trains networks on their energy."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from repro.experiments.barron_pde import sources
from repro.experiments.barron_pde.measurements import Measurement
from scipy.stats import qmc
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.methods.barron_pde import (
    Reaction,
    SparseRing,
    Spectrum,
    TwoLayer,
    deep_ritz_loss,
    descend,
    maurey_network,
    maurey_variance,
    residual_loss,
)
from repro.toolbox.method import Method, OptimizerFactory
from repro.training.procedure import Procedure, ScheduleFactory, refuse_methods

NO_METHODS = "barron_pde solves PDEs, which {method} cannot change: leave out method=…"


class Measured(Procedure):
    """Solves PDEs: a training step is a job of a measurement, and training ends after the last.

    Args:
        method: must be the plain one.
        measurement: what is measured.
        seed: of the draws; a job's are the same in every arm.
    """

    METRICS: ClassVar = {"train/loss": "0: nothing is trained"}
    KEPT: ClassVar = ("found",)

    def __init__(self, method: Method, measurement: Measurement, seed: int) -> None:
        super().__init__()
        refuse_methods(method, NO_METHODS)
        self.measurement, self.seed = measurement, seed
        self.found: dict[str, float] = {}

    @override
    def on_train_start(self) -> None:
        """Asks for as many steps as there are jobs.

        Raises:
            UserError: there are fewer.
        """
        super().on_train_start()
        steps, jobs = int(self.trainer.num_training_batches), len(self.measurement.jobs)
        if steps < jobs:
            raise UserError(f"barron_pde: dataset.ticks={steps}, but there are {jobs} jobs.")

    @override
    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Does the next job."""
        jobs = self.measurement.jobs
        number = self.global_step
        draws = generator_for(self.seed, number)
        self.found |= self.measurement.measure(jobs[number], draws, self.device)
        self.tick()
        self.log("train/loss", 0.0, batch_size=1)
        if number + 1 == len(jobs):
            self.trainer.should_stop = True
        return {"loss": torch.zeros((), device=self.device)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: no job has a choice to make."""

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs what was found, and what follows from it."""
        found = self.found | self.measurement.summary(self.found)
        self.log_dict({f"test/{name}": value for name, value in found.items()}, batch_size=1)


class Ritz(Procedure):
    """Trains a two-layer network on the energy of a PDE, against its solution by sparse series.

    Networks are not periodic, and what minimises the energy among all functions on a box has no
    slope at its boundary. The source is even in every variable, so that the periodic solution has
    none on [0, π]^d, and is what is to be found there.

    Args:
        method: must be the plain one.
        optimizer: called with parameters.
        schedule: called with the optimizer and the number of steps.
        dim: d, at least 2, and the number of waves of the source.
        amplitude: of each wave.
        alpha: α of −Δu + u + αu³ = f.
        units: k.
        activation: see `TwoLayer`.
        start: ``random``, or ``maurey``: a sample from the solution's spectrum.
        loss: ``ritz``, the energy; or ``residual``, that of physics-informed networks.
        points: Monte-Carlo points of a step.
        test_points: fixed quasi-random points of the test; validation has others, as many.
        solver: ``tol`` and ``cap`` of `SparseRing`, ``eta`` and ``steps`` of the descent.
        seed: of the source, the start and the points.
    """

    METRICS: ClassVar = {
        "train/loss": "mean energy, or squared residual",
        "train/step_loss": "likewise, of a step",
        "val/error": "‖u − network‖ / ‖u‖ of L², on points of its own",
        "test/error": "likewise, on the test's points",
        "test/maurey_error": "root of the expected square of test/error for a Maurey sample",
        "test/path_norm": "Σ|c|(1 + ‖w‖)",
        "test/norm": "‖u‖_B",
    }

    @checked
    def __init__(
        self,
        method: Method,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        dim: Count,
        amplitude: Positive,
        alpha: float,
        units: Count,
        activation: str,
        start: Literal["random", "maurey"],
        loss: Literal["ritz", "residual"],
        points: Count,
        test_points: Count,
        solver: dict[str, Any],
        seed: int,
    ) -> None:
        super().__init__(optimizer, schedule)
        refuse_methods(method, NO_METHODS)
        self.loss, self.points, self.seed, self.dim = loss, points, seed, dim
        f = sources.even_pairs(dim, dim, amplitude, generator_for(seed, 0))
        self.energy = Reaction(f, SparseRing(tol=solver["tol"], cap=solver["cap"]), alpha)
        self.solver, self.test_points = solver, test_points
        self.u: Spectrum | None = None
        self.start = start
        # Weights as wide as the source's frequencies are long.
        self.network = TwoLayer(dim, units, activation, spread=math.sqrt(2 / dim))

    @override
    def setup(self, stage: str) -> None:
        """Solves, and starts the network."""
        if self.u is not None:
            return
        path = descend(self.energy, self.energy.f * 0.0, self.solver["eta"])
        for _ in range(self.solver["steps"]):
            self.u = next(path).u
        assert self.u is not None
        device = self.trainer.strategy.root_device
        if self.start == "maurey":
            units = len(self.network.outer_K)
            sample = maurey_network(self.u, units, generator_for(self.seed, 1))
            self.network.load_state_dict(sample.state_dict())
        self.u, self.energy.f = self.u.to(device), self.energy.f.to(device)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One update at fresh points."""
        generator = generator_for(self.seed, 2, self.global_step)
        x_ND = math.pi * torch.rand(self.points, self.dim, generator=generator)
        x_ND = x_ND.to(self.device)
        if self.loss == "ritz":
            loss = deep_ritz_loss(self.network, self.energy, x_ND)
        else:
            loss = residual_loss(self.network, self.energy, x_ND)
        self.descend(loss)
        self.note_loss(loss.detach())
        return {"loss": loss.detach()}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss."""
        self.log("train/loss", self.running_loss.take())

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the error on points that the test does not have."""
        self.log("val/error", self._error(seed=1), batch_size=1)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the error, and that of a sample from the spectrum."""
        assert self.u is not None
        units = len(self.network.outer_K)
        found = {
            "error": self._error(seed=0),
            "maurey_error": math.sqrt(maurey_variance(self.u) / units / self.u.inner(self.u)),
            "path_norm": self.network.path_norm(),
            "norm": self.u.barron_norm(),
        }
        self.log_dict({f"test/{name}": value for name, value in found.items()}, batch_size=1)

    @torch.no_grad()
    def _error(self, seed: int) -> float:
        assert self.u is not None
        drawn = qmc.Sobol(self.dim, seed=seed).random(self.test_points)
        x_ND = math.pi * torch.from_numpy(drawn).float().to(self.device)
        exact_N = self.u(x_ND)
        error = (self.network(x_ND) - exact_N).square().mean() / exact_N.square().mean()
        return float(error.sqrt())
