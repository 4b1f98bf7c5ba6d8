"""Sweeps over learning rates and dampings, all at once; a learner that needs none."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import torch
from repro.experiments.rmt_lr.base import Parts, best_of, exponent, grid, largest_below
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.methods.rmt_lr import (
    SpectralRates,
    carried_rate,
    critical_batch,
    damped_step,
    effective_batch,
    hessian_noise,
    minimal_damping,
)
from repro.methods.rmt_lr.theory import Rule
from repro.toolbox.ensembles import Ensemble
from repro.toolbox.linear_algebra.curvature import Curvature
from repro.toolbox.linear_algebra.lanczos import lanczos
from repro.toolbox.method import Batch, OptimizerFactory

RULES: tuple[Rule, ...] = get_args(Rule)
CRITERIA = ("best", "below", "stable")


@torch.no_grad()
def loss_of(model: nn.Module, data: Batch) -> float:
    """A network's mean loss on all data."""
    return float(F.cross_entropy(model(data[0]), data[1]))


def noise_of(
    model: nn.Module, data: Batch, theta_P: Tensor, size: int, seed: int
) -> tuple[float, float]:
    """Top eigenvalue and noise of the Hessian at given weights, by one partition of the data."""
    x, y = data
    full = Curvature(model, [data], theta=theta_P)
    generator = generator_for(seed)
    ritz = lanczos(full, torch.randn(full.size, generator=generator).to(theta_P), 20)
    M = len(y) // size
    parts = (x.view(M, size, *x.shape[1:]), y.view(M, size))
    batches = Curvature(model, [parts], theta=theta_P.expand(M, -1))
    b = effective_batch(size, len(y))
    noise = hessian_noise(full, batches, ritz.vectors(1)[0], theta_P[None], M, b)
    return float(ritz.top), noise.across


class Scaling(Parts):
    """The best and the largest stable learning rate at every batch size.

    At each size all rates of a grid are trained from the same start on the same batches; the
    training loss (all data) at the end is recorded. Three criteria make a rate of it: the ``best``
    loss, the largest rate ``below`` a loss, and the largest that is ``stable``, i.e. ends no
    higher than it began.

    Args:
        optimizer: see `repro.toolbox.ensembles.Ensemble`.
        rates: ``base``, ``ratio`` and ``count`` of the grid.
        sizes: batch sizes.
        steps: of training.
        tuned_at: the batch size whose best rate is carried to others, and at which noise is
            measured.
        carried_to: the batch sizes to which it is, by each rule, after as many steps and after as
            many epochs; may be empty.
        level: the loss of the criterion ``below``.
        parts: see `Parts`.
    """

    METRICS: ClassVar = {
        "test/rate/*": "by criterion and batch size: best/b32, below/b32, stable/b32",
        "test/slope/*": "log-log slope of a criterion's rate on the batch size: linear (B <= B*),"
        " plateau (B >= 8 B*), low and high (below and above tuned_at), all",
        "test/threshold/*": "B* at the start, in the middle and at the end of training at tuned_at",
        "test/top/*": "largest Hessian eigenvalue, likewise",
        "test/excess/*": "loss of a rule's rate above the best of the grid, mean over carried_to,"
        " after equal steps or epochs, nats",
        "test/censored": "rates hidden by an end of the grid",
    }

    def __init__(
        self,
        optimizer: OptimizerFactory,
        rates: Mapping[str, Any],
        sizes: Sequence[int],
        steps: int,
        tuned_at: int = 32,
        carried_to: Sequence[int] = (),
        level: float = 1.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.optimizer_of = optimizer
        self.rates_K, self.sizes, self.steps = grid(**rates), list(sizes), steps
        self.tuned_at, self.carried_to, self.level = tuned_at, list(carried_to), level

    @override
    def parts(self) -> Sequence[int]:
        """The batch sizes; first the one that others are carried from."""
        return [self.tuned_at, *(size for size in self.sizes if size != self.tuned_at)]

    @override
    def work(self, part: int) -> Mapping[str, Any]:
        """Trains at one batch size."""
        found: dict[str, Any] = {}
        rules = self._carried(part)
        losses_K = self._train(torch.cat([self.rates_K, rules]), part, self.steps)
        found[f"steps/{part}"] = losses_K.tolist()
        if len(rules):
            epochs = max(1, round(self.steps * self.tuned_at / part))
            losses_K = self._train(torch.cat([self.rates_K, rules]), part, epochs)
            found[f"epochs/{part}"] = losses_K.tolist()
        if part == self.tuned_at:
            found["start"] = loss_of(self.model, self.data_set)
            found |= self._thresholds(float(self.rates_K[losses_K.argmin()]))
        return found

    def _carried(self, size: int) -> Tensor:
        """The rates that the rules say for a size; none if it is not asked for."""
        if size not in self.carried_to or size == self.tuned_at:
            return self.rates_K[:0]
        tuned = float(self.rates_K[torch.tensor(self.found[f"steps/{self.tuned_at}"]).argmin()])
        critical = self.found["threshold/middle"]
        return torch.tensor(
            [carried_rate(tuned, self.tuned_at, size, r, critical, self.examples) for r in RULES]
        )

    def _train(self, rates_M: Tensor, size: int, steps: int) -> Tensor:
        """Losses (M,) on all data after training with each rate on the same batches."""
        ensemble = Ensemble(self.model, rates_M.to(self.device), self.optimizer_of)
        for step in range(steps):
            ensemble.step(self.batch(size, size, step))
        return ensemble.evaluate(self.data_set).cpu()

    def _thresholds(self, rate: float) -> dict[str, float]:
        """Noise along the training at ``tuned_at`` with its best rate."""
        ensemble = Ensemble(self.model, torch.tensor([rate]), self.optimizer_of)
        found: dict[str, float] = {}
        for step in range(self.steps + 1):
            name = {0: "start", self.steps // 2: "middle", self.steps: "end"}.get(step)
            if name:
                theta_P = ensemble.theta_MP.detach()[0].clone()
                noise = noise_of(self.model, self.data_set, theta_P, self.tuned_at, self.seed)
                found |= {f"top/{name}": noise[0], f"threshold/{name}": critical_batch(*noise)}
            ensemble.step(self.batch(self.tuned_at, self.tuned_at, step))
        return found

    @override
    def summary(self) -> Mapping[str, float]:
        """Rates, slopes, thresholds, and what each rule costs."""
        found = self.found
        rates = {size: self._rates(found[f"steps/{size}"]) for size in self.parts()}
        logged = {f"test/{k}": v for k, v in found.items() if k.startswith(("threshold/", "top/"))}
        logged["test/censored"] = sum(math.isnan(v) for each in rates.values() for v in each)
        critical, split = found["threshold/middle"], self.tuned_at
        segments = {
            "linear": [size for size in sorted(rates) if size <= critical],
            "plateau": [size for size in sorted(rates) if size >= 8 * critical],
            "low": [size for size in sorted(rates) if size <= split],
            "high": [size for size in sorted(rates) if size >= split],
            "all": sorted(rates),
        }
        for index, criterion in enumerate(CRITERIA):
            for size, each in rates.items():
                logged[f"test/rate/{criterion}/b{size}"] = each[index]
            for name, sizes in segments.items():
                slope = exponent(sizes, [rates[size][index] for size in sizes])
                logged[f"test/slope/{criterion}/{name}"] = slope
        for budget in ("steps", "epochs"):
            logged |= {f"test/excess/{budget}/{k}": v for k, v in self._excess(budget).items()}
        return logged

    def _rates(self, losses: Sequence[float]) -> tuple[float, float, float]:
        losses_K = torch.tensor(losses[: len(self.rates_K)])
        return (
            best_of(self.rates_K, losses_K),
            largest_below(self.rates_K, losses_K, self.level),
            largest_below(self.rates_K, losses_K, self.found["start"]),
        )

    def _excess(self, budget: str) -> dict[str, float]:
        """By rule; a loss above that at the start counts as that."""
        sizes = [size for size in self.carried_to if size != self.tuned_at]
        if not sizes:
            return {}
        losses = torch.tensor([self.found[f"{budget}/{size}"] for size in sizes])
        losses = losses.clamp(max=self.found["start"])
        count = len(self.rates_K)
        excess = losses[:, count:] - losses[:, :count].amin(1, keepdim=True)
        return dict(zip(RULES, excess.mean(0).tolist(), strict=True))


class Damping(Parts):
    """The least damping at which a damped second-order step is stable, by rate and batch size.

    Steps go by `damped_step`: gradients of batches, curvature by Lanczos from a larger batch,
    renewed every so many steps. Dampings of a grid are trained at once, from weights that plain SGD
    has brought some way. The least stable one is the smallest that ends at no higher loss than it
    began with.

    Args:
        dampings: ``base``, ``ratio`` and ``count`` of the grid.
        rates: α, at ``fixed_size``.
        sizes: batch sizes, at ``fixed_rate``.
        fixed_rate: see ``sizes``.
        fixed_size: see ``rates``.
        steps: of training.
        warmup: steps of SGD before, with ``warmup_rate`` and batches of 32.
        warmup_rate: see ``warmup``.
        curvature_batch: examples that the curvature is measured on.
        lanczos_steps: k, vectors that the step knows.
        every: steps between measurements.
        parts: see `Parts`.
    """

    METRICS: ClassVar = {
        "test/damping/*": "least stable damping at a rate and a batch size: a2_b4",
        "test/damping_predicted/*": "by the formula, from noise measured at the start",
        "test/exponent/*": "log-log slope of the least damping on rate or batch",
        "test/exponent_predicted/*": "of the formula's",
        "test/threshold/start": "B* where the damped steps begin",
    }

    def __init__(
        self,
        dampings: Mapping[str, Any],
        rates: Sequence[float],
        sizes: Sequence[int],
        fixed_rate: float,
        fixed_size: int,
        steps: int,
        warmup: int,
        warmup_rate: float,
        curvature_batch: int,
        lanczos_steps: int,
        every: int,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.dampings_K, self.steps = grid(**dampings), steps
        self.by_rate = [(rate, fixed_size) for rate in rates]
        self.by_size = [(fixed_rate, size) for size in sizes]
        self.warmup, self.warmup_rate = warmup, warmup_rate
        self.curvature_batch, self.lanczos_steps = curvature_batch, lanczos_steps
        self.every = every

    @override
    def parts(self) -> Sequence[tuple[float, int]]:
        """Pairs of a rate and a batch size."""
        return list(dict.fromkeys(self.by_rate + self.by_size))

    @override
    def work(self, part: tuple[float, int]) -> Mapping[str, Any]:
        """Trains with all dampings at one rate and batch size."""
        rate, size = part
        start = self._start()
        x, y = self.data_set
        ensemble = Ensemble(self.model, torch.ones(len(self.dampings_K)))
        ensemble.theta_MP.data.copy_(start.expand_as(ensemble.theta_MP))
        before = float(ensemble.evaluate((x, y))[0])
        for step in range(self.steps):
            if step % self.every == 0:
                ritz = self._curvature(ensemble.theta_MP.detach(), step)
                k = self.lanczos_steps
                known = ritz.values.flip(-1), ritz.vectors(k)
            _, g_MP = ensemble.gradients(self.batch(size, size, step))
            move = damped_step(g_MP, *known, self.dampings_K)
            ensemble.theta_MP.data.sub_(rate * move)
        losses_K = ensemble.evaluate((x, y))
        # From the largest damping, the shortest step, downwards.
        inverse = largest_below(1 / self.dampings_K.flip(0), losses_K.flip(0), before)
        top, noise = noise_of(self.model, (x, y), start, 32, self.seed)
        b = effective_batch(size, len(y))
        return {
            f"damping/{name_of(part)}": 1 / inverse,
            f"damping_predicted/{name_of(part)}": minimal_damping(rate, top, noise, b),
            "threshold/start": critical_batch(top, noise),
        }

    def _start(self) -> Tensor:
        ensemble = Ensemble(self.model, torch.tensor([self.warmup_rate]))
        for step in range(self.warmup):
            ensemble.step(self.batch(32, 0, step))
        return ensemble.theta_MP.detach()[0]

    def _curvature(self, theta_MP: Tensor, step: int) -> Any:
        x, y = self.batch(self.curvature_batch, 1, step)
        M = len(theta_MP)
        theta_MP = theta_MP.nan_to_num(0.0, 0.0, 0.0)  # of copies that are lost anyway
        batch = (x.expand(M, *x.shape), y.expand(M, *y.shape))
        curvature = Curvature(self.model, [batch], theta=theta_MP)
        start = torch.randn(curvature.size, generator=generator_for(self.seed, step))
        return lanczos(curvature, start.expand(M, -1), self.lanczos_steps)

    @override
    def summary(self) -> Mapping[str, float]:
        """Dampings, and both exponents."""
        logged = {f"test/{name}": value for name, value in self.found.items()}
        for kind in ("", "_predicted"):
            for axis, pairs, index in (("rate", self.by_rate, 0), ("batch", self.by_size, 1)):
                found = [self.found[f"damping{kind}/{name_of(pair)}"] for pair in pairs]
                slope = exponent([pair[index] for pair in pairs], found)
                logged[f"test/exponent{kind}/{axis}"] = slope
        return logged


def name_of(part: tuple[float, int]) -> str:
    """A pair of rate and batch size, in a metric's name."""
    return f"a{part[0]:g}_b{part[1]}"


class Learner(Parts):
    """Rates set on the fly against a grid of constant ones, with the same number of gradients.

    A Hessian product counts as two gradients, so every run of the grid takes as many more steps as
    the learner's measurements cost. A loss is told as its excess: 0 is the best of the grid, 1 its
    median; a loss above that at the start counts as that.

    Args:
        rivals: methods that set rates, by name; the first, ``learner``, sets the budget.
        rates: ``base``, ``ratio`` and ``count`` of the grid.
        momenta: of the grid.
        sizes: batch sizes.
        epochs: of the learner.
        parts: see `Parts`.
    """

    METRICS: ClassVar = {
        "test/learner/*": "excess loss of the learner by batch size: excess/b16; its rate and"
        " momentum at the end; gradients it took",
        "test/inverse/*": "likewise with the rate 1/λ' and no momentum",
        "test/line_search/*": "likewise with line searches",
        "test/random/*": "mean excess of the grid: what a rate drawn from it has",
        "test/grid/*": "best and median loss of the grid, nats; number of its runs",
    }

    def __init__(
        self,
        rivals: Mapping[str, SpectralRates],
        rates: Mapping[str, Any],
        momenta: Sequence[float],
        sizes: Sequence[int],
        epochs: int,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.rivals = dict(rivals)
        self.rates_K, self.momenta = grid(**rates), list(momenta)
        self.sizes, self.epochs = list(sizes), epochs

    @override
    def parts(self) -> Sequence[int]:
        """The batch sizes."""
        return self.sizes

    @override
    def work(self, part: int) -> Mapping[str, Any]:
        """Trains by all rules at one batch size."""
        x, y = self.data_set
        start = loss_of(self.model, (x, y))
        steps = self.epochs * (len(y) // part)
        found: dict[str, float] = {}
        runs = {name: self._descend(rival, part, steps) for name, rival in self.rivals.items()}
        budget = steps + 2 * runs["learner"][1].products
        losses = []
        for momentum in self.momenta:
            ensemble = Ensemble(self.model, self.rates_K, heavy_ball(momentum))
            for step in range(budget):
                ensemble.step(self.batch(part, part, step))
            losses.append(ensemble.evaluate((x, y)))
        grid_G = torch.cat(losses).clamp(max=start)
        best, median = float(grid_G.min()), float(grid_G.median())
        for name, (loss, method) in runs.items():
            loss = min(loss, start) if math.isfinite(loss) else start
            found[f"{name}/excess/b{part}"] = (loss - best) / (median - best)
            found[f"{name}/rate/b{part}"] = method.rate
            found[f"{name}/momentum/b{part}"] = method.momentum
            found[f"{name}/gradients/b{part}"] = steps + 2 * method.products
        found[f"random/excess/b{part}"] = (float(grid_G.mean()) - best) / (median - best)
        found |= {f"grid/best/b{part}": best, f"grid/median/b{part}": median}
        return found | {"grid/runs": len(grid_G)}

    def _descend(self, rival: SpectralRates, size: int, steps: int) -> tuple[float, SpectralRates]:
        """The loss at the end of a plain loop with a fresh copy of a method."""
        model, method = copy.deepcopy(self.model), copy.deepcopy(rival)
        method.attach(model)
        optimizer = method.optimizer(model, heavy_ball(0.0, lr=0.0))

        def mean_loss(batch: Batch) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        for step in range(steps):
            optimizer.zero_grad()
            method.backward(mean_loss, self.batch(size, size, step), Tensor.backward)
            method.before_step(model)
            optimizer.step()
        return loss_of(model, self.data_set), method

    @override
    def summary(self) -> Mapping[str, float]:
        """All that was found."""
        return {f"test/{name}": value for name, value in self.found.items()}


def heavy_ball(momentum: float, **settings: Any) -> OptimizerFactory:
    """SGD with a momentum."""

    def factory(parameters: Any, **more: Any) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, momentum=momentum, **settings, **more)

    return factory
