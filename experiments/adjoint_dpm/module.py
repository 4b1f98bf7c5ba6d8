"""Trains a noise predictor and a classifier, and measures gradients through the sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, Natural, NonNegative, check_choice, checked
from repro.methods.adjoint_dpm import WAYS, Grid, OneStep, Pulled, Sampling, Solver, Way
from repro.toolbox.costs import PeakMemory
from repro.toolbox.diffusion import Predictor, VPProcess
from repro.toolbox.exact_scores import PointMixture, noise_in
from repro.toolbox.method import OptimizerFactory
from repro.training.procedure import Evaluated, Procedure, ScheduleFactory

# Keys of the random streams: what is drawn for evaluation does not depend on the arm.
TRAINING, EVALUATION, POINTS, NOISE = 1, 2, 3, 4


class Networks(Evaluated):
    """Trains the noise predictor on images of all classes, and a classifier on noisy ones.

    Args:
        model: called with noised images, times and conditions; ``model.embed`` has the classes.
        classifier: of images.
        process: of the noise.
        optimizer: called with parameters, returns an optimizer.
        schedule: called with the optimizer and the number of steps, returns a scheduler.
        end: least time; the others are uniform from here to 1.
        classifier_noise: standard deviation on its images.
        seed: of times and noises.
        log_every: steps between rows of the training loss.
    """

    METRICS: ClassVar = {
        "train/loss": "squared error of the noise and cross-entropy of the classifier, mean",
        "val/loss": "squared error of the noise, a coordinate's",
        "val/accuracy": "of the classifier",
        "test/loss": "as val/loss",
        "test/accuracy": "as val/accuracy",
    }

    model: Any  # a module with conditions

    @checked
    def __init__(
        self,
        model: nn.Module,
        classifier: nn.Module,
        process: VPProcess,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        end: NonNegative = 1e-3,
        classifier_noise: NonNegative = 0.1,
        seed: Natural = 0,
        log_every: Count = 50,
    ) -> None:
        super().__init__(optimizer, schedule, log_every=log_every)
        self.model, self.classifier, self.process = model, classifier, process
        self.end, self.classifier_noise, self.seed = end, classifier_noise, seed

    def losses(self, batch: Sequence[Tensor], *key: int) -> tuple[Tensor, Tensor]:
        """Squared error of the noise, and logits of the classifier."""
        x, labels = scaled(self.data, batch[0]), batch[1]
        draws = generator_for(self.seed, *key)
        time_B = (self.end + (1 - self.end) * torch.rand(len(x), generator=draws)).to(x)
        noise, blur = (torch.randn(x.shape, generator=draws).to(x) for _ in range(2))
        x_t = self.process.noised(x, time_B, noise)
        error = F.mse_loss(self.model(x_t, time_B, self.model.embed(labels)), noise)
        return error, self.classifier(x + self.classifier_noise * blur)

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One update of both."""
        error, logits = self.losses(batch, TRAINING, self.global_step)
        loss = error + F.cross_entropy(logits, batch[1])
        self.descend(loss)
        self.note_loss(loss.detach())
        return {"loss": loss.detach()}

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss."""
        self.log("train/loss", self.running_loss.take())

    @override
    def evaluate(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Measures both."""
        error, logits = self.losses(batch, EVALUATION, batch_idx)
        right = (logits.argmax(1) == batch[1]).float().mean()
        self.note({"loss": error, "accuracy": right}, len(batch[0]))


@checked
@dataclass(frozen=True)
class Cell:
    """Where ways are compared.

    Attributes:
        grid: of the times, uniform | logsnr.
        variance: of the exact law around each of its points; not used with a network.
        solver: of the way forward.
        backward: of the adjoint ODE.
        end: last time.
        steps: numbers of intervals.
        ways: compared here.
    """

    grid: Grid = "uniform"
    variance: NonNegative = 0.01
    solver: Solver = "euler"
    backward: OneStep | None = None
    end: float = 1e-3
    steps: Sequence[Count] = (10, 20, 29, 49)
    ways: Sequence[Way] = ("rho", "t", "checkpoint")


class Accuracy(Procedure):
    """Measures gradients of ``‖x_0 - target‖²`` against those of a fine solution, cell by cell.

    The reference solves by RK4 on a grid even in the log signal-to-noise ratio; all is in double
    precision.
    The predictor is the exact one of a mixture of Gaussians around images, or a trained network.
    All errors are of each noise, relative to the reference; what is logged is the median.

    Args:
        model: the noise predictor; its weights are the parent arm's.
        classifier: likewise; not used.
        process: of the noise.
        cells: by name.
        predictor: exact | network.
        points: images of the exact law.
        noises: x_T that are compared.
        reference_steps: of the reference.
        memory_steps: numbers of steps at which bytes are measured; empty: not at all.
        memory_batch: noises there.
        seed: of images and noises.
    """

    METRICS: ClassVar = {  # …/<way>/<cell>/n<steps>
        "test/gradient/*": "relative error of the gradient of x_T; of identity at its best scale",
        "test/condition/*": "relative error of the gradient of the condition",
        "test/forward/*": "relative error of x_0",
        "test/cosine/*": "of the gradient of x_T with the reference",
        "test/norm/*": "of the gradient of x_T over that of the reference",
        "test/own/*": "relative distance of an adjoint's gradient to that of its own sampler",
        "test/order/*": "test/gradient at n<steps> over that at twice as many",
        "test/bytes/*": "peak bytes of a gradient, slope over steps",
        "test/activations/*": "the same without a stored state of each step",
        "test/calls/*": "evaluations of the network for a gradient at 20 steps",
        "test/products/*": "products with its Jacobian",
    }
    KEPT = ("table", "done")

    model: Any  # a module with conditions

    @checked
    def __init__(
        self,
        model: nn.Module,
        classifier: nn.Module,
        process: VPProcess,
        cells: Mapping[str, Cell],
        predictor: Literal["exact", "network"] = "exact",
        points: Count = 200,
        noises: Count = 32,
        reference_steps: Count = 200,
        memory_steps: Sequence[Count] = (),
        memory_batch: Count = 64,
        seed: Natural = 0,
    ) -> None:
        super().__init__()
        for name, cell in cells.items():
            for way in cell.ways:
                check_choice(f"cells.{name}", "ways", way, WAYS)
        self.model, self.classifier, self.process = model, classifier, process
        self.cells, self.predictor, self.points, self.noises = cells, predictor, points, noises
        self.reference_steps, self.seed = reference_steps, seed
        self.memory_steps, self.memory_batch = memory_steps, memory_batch
        self.references: dict[tuple[float, float], Pulled] = {}
        self.table: dict[str, float] = {}
        self.done = 0

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """This step's share of all cells."""
        # Not `estimated_stepping_batches`: training.max_steps is to stop earlier, not to hurry.
        ticks = int(self.trainer.num_training_batches) * int(self.trainer.max_epochs or 1)
        jobs: list[Callable[[], None]] = [
            lambda name=name, cell=cell: self._compare(name, cell)  # type: ignore[misc]
            for name, cell in self.cells.items()
        ]
        if self.memory_steps:
            jobs.append(self._measure_costs)
        due = len(jobs) * (self.global_step + 1) // ticks
        for job in jobs[self.done : due]:
            job()
        self.done = due
        self.tick()
        return {"loss": torch.tensor(0.0)}

    def problem(self, variance: float) -> tuple[Predictor, Tensor, Tensor, list[Tensor]]:
        """The predictor, noises, targets and what else has a gradient; all in double precision."""
        draws = generator_for(self.seed, POINTS)
        images, _ = _some(self.data, "train", self.points, draws)
        targets, labels = (x.to(self.device) for x in _some(self.data, "test", self.noises, draws))
        noise = torch.randn(targets.shape, generator=draws, dtype=torch.float64).to(self.device)
        if self.predictor == "exact":
            law = PointMixture.uniform(images.flatten(1).to(self.device), variance)
            predict = noise_in(law, self.process)
            return predict, noise.flatten(1), targets.flatten(1), []
        network = copy.deepcopy(self.model).eval().requires_grad_(False).double()
        condition = network.embed(labels).detach().requires_grad_()
        return lambda x, t: network(x, t, condition), noise, targets, [condition]

    def _reference(self, variance: float, end: float) -> Pulled:
        if (variance, end) not in self.references:
            fine = Sampling(self.process, self.reference_steps, "logsnr", end, "rk4")
            self.references[variance, end] = self._pull("checkpoint", fine, variance)
        return self.references[variance, end]

    def _pull(self, way: str, sampling: Sampling, variance: float) -> Pulled:
        predict, noise, target, inputs = self.problem(variance)

        def loss(x_0: Tensor) -> Tensor:
            return (x_0 - target).square().sum()

        return sampling.gradients(way, predict, noise, loss, inputs, self.seed)

    def _compare(self, name: str, cell: Cell) -> None:
        """Notes all ways in a cell, at all numbers of steps."""
        fine = self._reference(cell.variance, cell.end)
        for steps in cell.steps:
            sampling = Sampling(
                self.process, steps, cell.grid, cell.end, cell.solver, cell.backward
            )
            found: dict[str, Pulled] = {
                way: self._pull(way, sampling, cell.variance) for way in cell.ways
            }
            for way, pulled in found.items():
                self.note(f"{way}/{name}/n{steps}", pulled, fine)
            for way, exact in (("rho", "checkpoint"), ("rho", "naive"), ("t", "naive_t")):
                if {way, exact} <= found.keys():
                    ours, theirs = found[way].at_noise, found[exact].at_noise
                    self.table[f"test/own/{way}/{name}/n{steps}"] = relative(ours, theirs)

    def note(self, where: str, pulled: Pulled, fine: Pulled) -> None:
        """Medians over the noises."""
        ours, theirs = pulled.at_noise.flatten(1), fine.at_noise.flatten(1)
        if where.startswith("identity/"):  # of no scale: it is given the best one, noise by noise
            ours = ours * ((ours * theirs).sum(1) / ours.square().sum(1))[:, None]
        self.table |= {
            f"test/gradient/{where}": relative(ours, theirs),
            f"test/forward/{where}": relative(pulled.x_0, fine.x_0),
            f"test/cosine/{where}": float(F.cosine_similarity(ours, theirs).median()),
            f"test/norm/{where}": float((ours.norm(dim=1) / theirs.norm(dim=1)).median()),
        }
        for at, exact in zip(pulled.at_inputs, fine.at_inputs, strict=True):
            self.table[f"test/condition/{where}"] = relative(at, exact)

    def _measure_costs(self) -> None:
        """Notes bytes by steps, and evaluations at 20 steps, of gradients of x_T and weights."""
        model = copy.deepcopy(self.model).eval()
        shape = (self.memory_batch, *self.model.input_shape)
        x_T = torch.randn(shape, generator=generator_for(self.seed, NOISE)).to(self.device)
        condition = model.embed.blank().detach().expand(len(x_T), -1, -1)
        calls: list[bool] = []

        def predict(x: Tensor, time_B: Tensor) -> Tensor:
            calls.append(torch.is_grad_enabled())
            noise: Tensor = model(x, time_B, condition)
            return noise

        def run(way: str, steps: int) -> None:
            weights = list(model.parameters())
            sampling = Sampling(self.process, steps)
            sampling.gradients(way, predict, x_T, lambda x_0: x_0.square().sum(), weights)

        for way in ("naive", "checkpoint", "rho"):
            peaks = []
            for steps in self.memory_steps:
                with PeakMemory(self.device) as memory:
                    run(way, steps)
                peaks.append(memory.peak)
            slope = round(float(np.polyfit(self.memory_steps, peaks, 1)[0]), 3)  # of whole bytes
            self.table[f"test/bytes/{way}"] = slope
            self.table[f"test/activations/{way}"] = slope - x_T.nbytes
        for way in WAYS:
            calls.clear()
            run(way, 20)
            self.table[f"test/calls/{way}"] = len(calls)
            self.table[f"test/products/{way}"] = sum(calls)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: all was measured in training steps."""

    def on_test_epoch_end(self) -> None:
        """Logs all that was noted."""
        self.log_dict(self.table | orders(self.table))


def orders(table: Mapping[str, float]) -> dict[str, float]:
    """Of errors at N steps over those at 2 N, where both are in the table.

    >>> orders({"test/gradient/rho/a/n50": 0.2, "test/gradient/rho/a/n100": 0.1})
    {'test/order/rho/a/n50': 2.0}
    """
    found = {}
    for name, error in table.items():
        where, _, steps = name.rpartition("/n")
        twice = f"{where}/n{2 * int(steps)}" if steps.isdigit() else ""
        if where.startswith("test/gradient/") and twice in table:
            found[name.replace("/gradient/", "/order/")] = error / table[twice]
    return found


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The median over (B, …) of ``‖ours - theirs‖ / ‖theirs‖``."""
    difference_B = (ours - theirs).flatten(1).norm(dim=1)
    return float((difference_B / theirs.flatten(1).norm(dim=1)).median())


def scaled(data: Any, x: Tensor) -> Tensor:
    """Images as the data set gives them, on the scale -1 to 1 of its least and greatest pixel."""
    raw = data.splits["train"][0]
    ends = torch.stack([raw.amin().expand(raw.shape[1:]), raw.amax().expand(raw.shape[1:])])
    low, high = (ends if data.normalise is None else data.normalise(ends)).to(x)
    return 2 * (x - low) / (high - low) - 1


def _some(data: Any, split: str, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """So many images of a split, in double precision, and their labels."""
    chosen = torch.randperm(len(data.splits[split][0]), generator=draws)[:size]
    x, labels = data.take(split, chosen)
    return scaled(data, x).double(), labels
