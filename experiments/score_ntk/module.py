"""Learns scores by regression, with the kernel and with networks, and stops by several rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, Natural, Positive, checked
from repro.methods.score_ntk import (
    KernelDescent,
    Regression,
    Triples,
    TwoLayer,
    ntk,
    rwy_steps,
)
from repro.records.names import ARTIFACTS
from repro.toolbox.exact_scores import PointMixture
from repro.training.procedure import Procedure

BINS = (0.5, 1.0)  # times at which the test error is cut
TEST_SEED = 7919  # the same test triples for every arm and seed
GAP_TIMES = (10, 50)  # steps at which network and kernel are compared, besides the last
Cell = tuple[int, int | None]  # examples, and neurons of a network


class Seen(NamedTuple):
    """What a training went through, looked at after T numbers of steps.

    Attributes:
        eigenvalues: (N,), of the training examples' kernel matrix over N.
        hold: (T, H, D), values at held-out triples.
        test: (T, M, D), values at test triples.
        moved: how far a neuron's weights went at most; 0 for the kernel.
    """

    eigenvalues: Tensor
    hold: Tensor
    test: Tensor
    moved: float = 0.0


class Chosen(NamedTuple):
    """What rules made of a training.

    Attributes:
        steps: by rule.
        values: (M, D) at the test triples, by rule.
        noise: the estimated standard deviation of a label's noise.
        loss: the least held-out loss.
    """

    steps: dict[str, int]
    values: dict[str, Tensor]
    noise: float
    loss: float


class ScoreRegression(Procedure):
    """Regresses x_0 on times and noised x_0, for every size, and measures all stopping rules.

    A size is a number of examples for the kernel and a width for networks. The rules read one
    path: ``none`` (all steps), ``one`` (one step), ``fixed``, ``holdout`` (least loss on held-out
    triples), ``rwy`` (Raskutti, Wainwright, Yu, with the noise estimated from the same triples;
    ``rwy_half`` and ``rwy_double`` with so much of it, ``rwy_true`` with the true one), ``oracle``
    (least test error: to look at only) and ``zero`` (f = 0).

    Args:
        law: called with the run's data, returns the law of x_0.
        problem: process, times and features.
        model: kernel | network.
        labels: ``noisy``: x_0; ``clean``: its posterior mean, as nobody has it; ``resample``: x_0
            with new times and noise in every step (networks).
        sizes: numbers of examples, for the kernel.
        size: number of examples, for networks.
        widths: neurons.
        rate: η of the mean loss.
        steps: the most.
        looks: times, even in their logarithm, at which training is looked at.
        fixed: steps of the rule ``fixed``.
        hold_share: held-out triples over training triples; at least 50 are held out.
        test_size: test triples.
        scale: of a network, ntk | meanfield.
        paired: networks begin at f = 0.
        train_readout: networks train their second layer, too.
        apart: one model for each bin of time, on its part of the examples and neurons.
        refit: train again on held-out triples, too, when the rules have chosen (kernel).
        radius: of the ball that ``test/projected`` projects f to.
        samples: of the reverse SDE, for the first size of the kernel; 0 for none.
        sde_steps: its steps.
        dtype: float64 | float32.
        seed: of draws and networks.
    """

    METRICS: ClassVar = {  # by rule and size (n<examples> or m<neurons>)
        "val/loss": "least held-out loss, mean over sizes",
        "test/error/*": "E‖f − f_*‖² where the rule stopped",
        "test/tau/*": "steps after which it did",
        "test/projected/*": "test/error of f projected to a ball",
        "test/score_error/*": "E‖s − s_*‖², not weighted",
        "test/overfit/*": "test/error of none over that of holdout",
        "test/bin/*": "test/error of holdout and zero by bin of time (early, middle, late)",
        "test/coordinate/*": "test/error of holdout and zero by coordinate",
        "test/noise/*": "label noise, root mean square of a coordinate: estimated, true",
        "test/gap/*": "E‖network − kernel‖² after t<steps>",
        "test/gap_other/*": "likewise, kernel without the constant feature",
        "test/gap_share/*": "test/gap over the kernel's own error",
        "test/moved/*": "farthest that a neuron's weights went in all steps",
        "test/slope/*": "of log test/error over log examples, or log test/gap over log neurons",
        "test/path/*": "test error by steps: of the first size, or the last width",
        "test/identity": "largest relative difference of score matching and regression losses",
        "test/identity_unweighted": "likewise without the weight",
        "test/w2/*": "Wasserstein-2 distance of samples to the law",
    }
    KEPT = ("table", "losses", "done")

    @checked
    def __init__(
        self,
        law: Callable[..., PointMixture],
        problem: Regression,
        *,
        model: Literal["kernel", "network"] = "kernel",
        labels: Literal["noisy", "clean", "resample"] = "noisy",
        sizes: Sequence[Count] = (100,),
        size: Count = 100,
        widths: Sequence[Count] = (1024,),
        rate: Positive = 1.0,
        steps: Count = 4000,
        looks: Count = 100,
        fixed: Count = 50,
        hold_share: Positive = 0.25,
        test_size: Count = 2000,
        scale: Literal["ntk", "meanfield"] = "ntk",
        paired: bool = True,
        train_readout: bool = False,
        apart: bool = False,
        refit: bool = False,
        radius: Positive = 1.3,
        samples: Natural = 0,
        sde_steps: Count = 100,
        dtype: Literal["float64", "float32"] = "float64",
        seed: Natural = 0,
    ) -> None:
        super().__init__()
        if model == "kernel" and labels == "resample":
            raise UserError("score_ntk: labels=resample has no fixed kernel matrix: model=network.")
        if model == "network" and (refit or samples):
            raise UserError("score_ntk: refit and samples are for the kernel: model=kernel.")
        self.law_of, self.problem = law, problem
        self.law: PointMixture | None = None
        self.model, self.labels, self.rate, self.fixed = model, labels, rate, fixed
        self.cells: list[Cell] = (
            [(n, None) for n in sizes] if model == "kernel" else [(size, m) for m in widths]
        )
        even = torch.logspace(0, math.log10(steps), looks, dtype=torch.float64).round().tolist()
        wanted = {0, *map(int, even), *(t for t in (fixed, *GAP_TIMES) if t <= steps)}
        self.taus = torch.tensor(sorted(wanted))
        self.hold_share, self.test_size = hold_share, test_size
        self.network: dict[str, Any] = {
            "scale": scale,
            "paired": paired,
            "train_readout": train_readout,
        }
        self.apart, self.refit, self.radius = apart, refit, radius
        self.samples, self.sde_steps = samples, sde_steps
        self.real, self.seed = getattr(torch, dtype), seed
        self.table: dict[str, float] = {}
        self.losses: list[float] = []
        self.done = 0

    # -- Training ----------------------------------------------------------------------------------

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """This step's share of all sizes, each trained from its start to its end."""
        # Not `estimated_stepping_batches`: training.max_steps is to stop earlier, not to hurry.
        ticks = int(self.trainer.num_training_batches) * int(self.trainer.max_epochs or 1)
        due = len(self.cells) * (self.global_step + 1) // ticks
        for cell in self.cells[self.done : due]:
            self.losses.append(self._train(cell))
        self.done = due
        self.tick()
        return {"loss": torch.tensor(self.losses[-1] if self.losses else 0.0)}

    def _train(self, cell: Cell) -> float:
        """Trains at one size, notes what is measured, and returns the least held-out loss."""
        size, width = cell
        name = _name(cell)
        law = self._law()
        draws = generator_for(self.seed, size)  # the same for every arm
        held = max(50, round(self.hold_share * size))
        train, hold = (self._to(self.problem.draw(law, n, draws)) for n in (size, held))
        test = self._to(self.problem.draw(law, self.test_size, generator_for(TEST_SEED)))
        exact = self.problem.exact(law, test)
        chosen = (
            self._train_apart(train, hold, test, width)
            if self.apart
            else self._learn(name, train, hold, test, width)
        )
        for rule, f in chosen.values.items():
            self._note_errors(f"{rule}/{name}", f, exact, test)
            self.table[f"test/tau/{rule}/{name}"] = chosen.steps[rule]
        for rule in ("holdout", "zero"):
            self._note_parts(f"{rule}/{name}", chosen.values[rule] - exact, test)
        none, best = (self.table[f"test/error/{rule}/{name}"] for rule in ("none", "holdout"))
        self.table[f"test/overfit/{name}"] = none / best
        self.table[f"test/noise/estimated/{name}"] = chosen.noise
        self.table[f"test/noise/true/{name}"] = _rms(test.x0 - exact)
        if width is None and cell == self.cells[0]:
            self._note_identity(test)
            if self.samples:
                self._note_samples(law, train, chosen)
        return chosen.loss

    def _learn(
        self, name: str, train: Triples, hold: Triples, test: Triples, width: int | None
    ) -> Chosen:
        """One training on all examples, stopped by every rule, with its path noted."""
        path = self._path(train, hold, test, width)
        chosen = self._choose(path, train, hold, test)
        error_T = _error(path.test, self._exact(test))
        if name == _name(self.cells[0 if width is None else -1]):
            for tau, error in zip(self.taus.tolist(), error_T.tolist(), strict=True):
                self.table[f"test/path/{tau}"] = error
        if width is not None:
            self.table[f"test/moved/{name}"] = path.moved
            if self.labels != "resample":
                self._note_gap(name, path, train, test)
        return chosen

    def _path(self, train: Triples, hold: Triples, test: Triples, width: int | None) -> Seen:
        """Trains, and looks at held-out and test triples on the way."""
        z_hold, z_test = self.problem.inputs(hold), self.problem.inputs(test)
        if width is None:
            descent = self._descent(train, self.problem)
            z = self.problem.inputs(train)
            on_hold, on_test = (descent.predict(ntk(at, z), self.taus) for at in (z_hold, z_test))
            return Seen(descent.eigenvalues, on_hold, on_test)
        return self._descend(train, z_hold, z_test, width)

    def _descent(self, train: Triples, problem: Regression) -> KernelDescent:
        z = problem.inputs(train)
        return KernelDescent(ntk(z, z), self._targets(train), self.rate)

    def _descend(self, train: Triples, z_hold: Tensor, z_test: Tensor, width: int) -> Seen:
        generator = generator_for(self.seed, len(train.t), width)
        z, y = self.problem.inputs(train), self._targets(train)
        network = TwoLayer(
            z.shape[1], y.shape[1], width, generator,
            dtype=self.real, device=self.device, **self.network,
        )  # fmt: skip
        seen: list[tuple[Tensor, Tensor]] = []
        done = 0
        for tau in self.taus.tolist():
            for _ in range(tau - done):
                if self.labels == "resample":
                    z = self.problem.inputs(self._to(self.problem.noised(train.x0, generator)))
                network.step(z, y, self.rate)
            done = tau
            seen.append((network(z_hold), network(z_test)))
        holds, tests = zip(*seen, strict=True)
        z = self.problem.inputs(train)
        eigenvalues = torch.linalg.eigvalsh(ntk(z, z)).clamp(min=0) / len(z)
        return Seen(eigenvalues, torch.stack(holds), torch.stack(tests), network.moved())

    def _train_apart(
        self, train: Triples, hold: Triples, test: Triples, width: int | None
    ) -> Chosen:
        """One training for each bin of time, put together again at the test triples.

        Raises:
            UserError: a bin has no example.
        """
        edges = torch.tensor(BINS, dtype=train.t.dtype, device=train.t.device)
        bins = [torch.bucketize(each.t, edges) for each in (train, hold, test)]
        parts = []
        for index in range(len(BINS) + 1):
            own_train, own_hold, own_test = own = [
                each.where(b == index) for each, b in zip((train, hold, test), bins, strict=True)
            ]
            if not all(len(each.t) for each in own):
                raise UserError(f"score_ntk: no example in bin {index} of time: choose more.")
            pairs = 0 if width is None else (width // 2 + index) // (len(BINS) + 1)
            own_width = None if width is None else 2 * pairs
            path = self._path(own_train, own_hold, own_test, own_width)
            parts.append(self._choose(path, own_train, own_hold, own_test))
        values = {}
        for rule in parts[0].values:
            values[rule] = torch.empty_like(test.x0)
            for index, part in enumerate(parts):
                values[rule][bins[2] == index] = part.values[rule]
        steps = {rule: sum(part.steps[rule] for part in parts) // len(parts) for rule in values}
        mean_loss, mean_noise = (
            sum(getattr(part, of) for part in parts) / len(parts) for of in ("loss", "noise")
        )
        return Chosen(steps, values, mean_noise, mean_loss)

    def _choose(self, path: Seen, train: Triples, hold: Triples, test: Triples) -> Chosen:
        """Applies every rule to a path."""
        target = self._targets(hold)
        loss_T = _error(path.hold, target)
        best = int(loss_T.argmin())
        noise = max(_rms(path.hold[best] - target), 1e-9)  # clean labels have none
        true_noise = max(_rms(test.x0 - self._exact(test)), 1e-9)
        if self.refit:
            both = Triples(*(torch.cat(parts) for parts in zip(train, hold, strict=True)))
            path = self._path(both, hold, test, None)
        rwy = {
            name: self._look(rwy_steps(path.eigenvalues, self.rate, sigma))
            for name, sigma in {
                "rwy": noise,
                "rwy_half": noise / 2,
                "rwy_double": 2 * noise,
                "rwy_true": true_noise,
            }.items()
        }
        looks = {
            "none": len(self.taus) - 1,
            "one": self._look(1),
            "fixed": self._look(self.fixed),
            "holdout": best,
            **rwy,
            "oracle": int(_error(path.test, self._exact(test)).argmin()),
        }
        steps = {rule: int(self.taus[look]) for rule, look in looks.items()}
        values = {rule: path.test[look] for rule, look in looks.items()}
        zero = torch.zeros_like(test.x0)
        return Chosen(steps | {"zero": 0}, values | {"zero": zero}, noise, float(loss_T[best]))

    def _look(self, steps: int) -> int:
        """The last look after at most so many steps."""
        return int(torch.searchsorted(self.taus, torch.tensor(steps), right=True)) - 1

    def _targets(self, triples: Triples) -> Tensor:
        """The labels."""
        return self._exact(triples) if self.labels == "clean" else triples.x0

    def _exact(self, triples: Triples) -> Tensor:
        return self.problem.exact(self._law(), triples)

    def _law(self) -> PointMixture:
        if self.law is None:
            law = self.law_of(self.data)
            points, weights = (self._move(x) for x in (law.points, law.weights))
            self.law = PointMixture(points, weights, law.variance)
        return self.law

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.real)

    def _to(self, triples: Triples) -> Triples:
        return Triples(*map(self._move, triples))

    # -- Measures ----------------------------------------------------------------------------------

    def _note_errors(self, name: str, f: Tensor, exact: Tensor, test: Triples) -> None:
        self.table[f"test/error/{name}"] = float(_error(f, exact))
        if not name.startswith(("none", "holdout")):
            return
        inside = f * (self.radius / f.norm(dim=1, keepdim=True)).clamp(max=1)
        self.table[f"test/projected/{name}"] = float(_error(inside, exact))
        scores = (self.problem.score(each, test) for each in (f, exact))
        self.table[f"test/score_error/{name}"] = float(_error(*scores))

    def _note_parts(self, name: str, error_MD: Tensor, test: Triples) -> None:
        """By bin of time and by coordinate (the first eight)."""
        edges = torch.tensor(BINS, dtype=test.t.dtype, device=test.t.device)
        bins = torch.bucketize(test.t, edges)
        for index, part in enumerate(("early", "middle", "late")):
            if (bins == index).any():
                value = error_MD[bins == index].square().sum(1).mean()
                self.table[f"test/bin/{part}/{name}"] = float(value)
        for index, value in enumerate(error_MD.square().mean(0)[:8].tolist()):
            self.table[f"test/coordinate/{index}/{name}"] = value

    def _note_gap(self, name: str, path: Seen, train: Triples, test: Triples) -> None:
        """How far the network is from its kernel, and from that of another network."""
        rival = Regression(
            self.problem.process, self.problem.t_min, self.problem.t_max, not self.problem.bias
        )
        gaps = {}
        for kind, problem in {"gap": self.problem, "gap_other": rival}.items():
            K = ntk(problem.inputs(test), problem.inputs(train))
            kernel = self._descent(train, problem).predict(K, self.taus)
            gaps[kind] = _error(path.test, kernel)
            if kind == "gap":
                share = gaps[kind] / _error(kernel, self._exact(test))
        for tau in (*(t for t in GAP_TIMES if t <= self.taus[-1]), int(self.taus[-1])):
            look = self._look(tau)
            for kind, gap_T in gaps.items():
                self.table[f"test/{kind}/t{tau}/{name}"] = float(gap_T[look])
            self.table[f"test/gap_share/t{tau}/{name}"] = float(share[look])

    def _note_identity(self, test: Triples) -> None:
        """Score matching against regression, for three random networks."""
        z = self.problem.inputs(test)
        worst = {True: 0.0, False: 0.0}
        for index in range(3):
            f = TwoLayer(
                z.shape[1], test.x0.shape[1], 64, generator_for(self.seed, index), paired=False
            )(z.double())
            double = Triples(*(part.double() for part in test))
            squares = (f - double.x0).square().sum(1)
            for weighted in worst:
                loss = self.problem.matching_loss(f, double, weighted=weighted)
                off = float(((loss - squares).abs() / squares).max())
                worst[weighted] = max(worst[weighted], off)
        self.table["test/identity"] = worst[True]
        self.table["test/identity_unweighted"] = worst[False]

    def _note_samples(self, law: PointMixture, train: Triples, chosen: Chosen) -> None:
        """Samples with the exact score and two learned ones: same first noise, same steps."""
        descent, z = self._descent(train, self.problem), self.problem.inputs(train)
        taus = torch.tensor([chosen.steps["holdout"], chosen.steps["none"]])
        learned = dict(zip(("holdout", "none"), descent.coefficients(taus), strict=True))

        def kernel_model(c: Tensor) -> Callable[[Triples], Tensor]:
            return lambda at: ntk(self.problem.inputs(at), z) @ c

        models: dict[str, Callable[[Triples], Tensor]] = {
            "exact": lambda at: self.problem.exact(law, at),
            **{rule: kernel_model(c) for rule, c in learned.items()},
        }
        truth = law.sample(self.samples, generator_for(TEST_SEED, 1))
        drawn = {rule: self._sample(law, model) for rule, model in models.items()}
        for rule, samples in drawn.items():
            self.table[f"test/w2/{rule}"] = wasserstein(samples, truth)
        folder = Path(self.trainer.default_root_dir) / ARTIFACTS
        folder.mkdir(exist_ok=True)
        np.save(folder / "samples.npy", np.concatenate([*map(picture, drawn.values())], axis=1))

    def _sample(self, law: PointMixture, model: Callable[[Triples], Tensor]) -> Tensor:
        """The reverse SDE from the true law of x at t_max, and f of where it ends."""
        problem, generator = self.problem, generator_for(self.seed, 2)
        x0 = law.sample(self.samples, generator)
        t = torch.full((self.samples,), problem.t_max).to(x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            triples = Triples(t, x, x)
            _, h = problem.signal(t)
            return -h.sqrt()[:, None] * problem.score(model(triples), triples)

        x = problem.process.euler_maruyama(
            predict, x0.shape, self.sde_steps, generator,
            end=problem.t_min, start=problem.t_max, first=problem.process.noised(x0, t, noise),
        )  # fmt: skip
        return model(Triples(torch.full_like(t, problem.t_min), x, x))

    # -- Lightning ---------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: held-out triples are drawn for every size."""

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out loss so far."""
        self.log("val/loss", sum(self.losses) / max(1, len(self.losses)))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: test triples are drawn for every size."""

    def on_test_epoch_end(self) -> None:
        """Logs all that was noted, and slopes over sizes."""
        self.log_dict(self.table | slopes(self.table))


def slopes(table: dict[str, float]) -> dict[str, float]:
    """Least-squares slopes of logarithms of errors and gaps over sizes, where there are several.

    ``test/error/<rule>/n100``, ``…/n200``, … become ``test/slope/error/<rule>``.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, value in table.items():
        kind, _, size = name.removeprefix("test/").rpartition("/")
        if kind.startswith(("error/", "gap")) and value > 0:
            curves.setdefault(kind, []).append((math.log(int(size[1:])), math.log(value)))
    slopes = {}
    for kind, points in curves.items():
        if len(points) > 1:
            log_size, log_value = zip(*points, strict=True)
            slopes[f"test/slope/{kind}"] = float(np.polyfit(log_size, log_value, 1)[0])
    return slopes


def wasserstein(samples: Tensor, truth: Tensor) -> float:
    """Wasserstein-2 distance between two samples of equal size, by the best assignment."""
    costs = torch.cdist(samples, truth).square().cpu().numpy()
    return math.sqrt(float(costs[linear_sum_assignment(costs)].mean()))


def picture(samples: Tensor) -> np.ndarray:
    """A square of counts of the first two coordinates within ±1.5, (40, 40)."""
    x, y = samples[:, :2].cpu().numpy().T
    counts, *_ = np.histogram2d(y, x, bins=40, range=[[-1.5, 1.5]] * 2)
    return np.asarray(np.log1p(counts))


def _error(f: Tensor, target: Tensor) -> Tensor:
    """Mean squared distances over the last two dimensions."""
    return (f - target).square().sum(-1).mean(-1)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _name(cell: Cell) -> str:
    size, width = cell
    return f"n{size}" if width is None else f"m{width}"
