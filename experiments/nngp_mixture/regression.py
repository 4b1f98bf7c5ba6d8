"""Regression with a kernel chosen on a grid, or trained by gradient descent on the evidence."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from repro.experiments.nngp_mixture.base import Room
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError, did_you_mean
from repro.knobs import Fraction, Positive, checked
from repro.methods.nngp_mixture import (
    Fit,
    FixedScale,
    InverseGamma,
    LikeliestScale,
    MixturePredictive,
    NNGPKernel,
    Predictive,
    Sampled,
    ScalePrior,
    TrainedProcess,
    condition_kernel,
)

Part = tuple[Tensor, Tensor]


class Regression(Room):
    """What both ways share: spoilt targets, measures of a prediction, means over data sets.

    Args:
        outliers: share of the training and validation targets that are moved away; never of those
            of the test split.
        outlier_size: by how many standard deviations, up or down.
        room: see `Room`.
    """

    # Besides the mean over data sets, each is logged for every set, with /<data set> behind.
    METRICS: ClassVar = {
        f"{name}{of_a_set}": meaning
        for of_a_set in ("", "/*")
        for name, meaning in {
            "test/nll": "nats per example, of standardised targets",
            "test/nll_original": "likewise, of targets in their unit",
            "test/rmse": "in standard deviations of the target",
            "test/coverage": "share of targets in the central 95 % interval",
            "test/noise": "the noise variance that was chosen or trained",
            "test/evidence": "log-evidence per training example, nats",
            "test/chosen_kernel": "its number in the grid",
            "test/chosen_prior": "its number in the list",
            "test/effective_samples": "of the predictive mixture",
            "test/sampling/effective": "samples that count in importance sampling",
            "test/sampling/error": "its largest error in log-density, nats",
            "test/few/*/nll": "having learnt from so many examples, nats",
            "test/matches/*": "share of sets where the arm matches a reference",
            "test/nll_minus/*": "nats by which the arm is behind a reference",
            "test/as_gaussian/nll": "of a Gaussian process with the same kernel",
            "test/as_scaled_gaussian/nll": "likewise with the likeliest scale",
            "test/w_std": "of hidden weights, as trained",
            "test/b_std": "of hidden biases, as trained",
            "test/last_w_std": "of the last layer, as trained",
            "time/solve_seconds": "for the eigendecomposition",
            "time/predict_seconds": "for the predictive law",
            "time/sampling_seconds": "for importance sampling",
        }.items()
    }

    @checked
    def __init__(self, outliers: Fraction = 0.0, outlier_size: float = 6.0, **room: Any) -> None:
        super().__init__(**room)
        self.outliers, self.outlier_size = outliers, outlier_size
        self.cache: dict[str, dict[str, Part]] = {}

    def part(self, split: str) -> dict[str, Part]:
        """Inputs (N, …) and targets (N,) of a split by data set, outliers included.

        Raises:
            UserError: a data set is not one of regression on one target.
        """
        if split in self.cache and next(iter(self.cache[split].values()))[0].device == self.device:
            return self.cache[split]
        found = {}
        for number, (name, (x, y)) in enumerate(self.whole(split).items()):
            if not y.is_floating_point() or y.shape[1:] != (1,):
                raise UserError(
                    f"nngp_mixture: data set '{name}' is not a regression on one target; choose"
                    " one that is, or an arm that classifies."
                )
            y = y[:, 0]
            if self.outliers and split != "test":
                generator = generator_for(self.seed, number, len(split))
                hit = torch.rand(len(y), generator=generator).to(y) < self.outliers
                sign = torch.randint(2, (len(y),), generator=generator).to(y) * 2 - 1
                y = y + hit * sign * self.outlier_size
            found[name] = (x, y)
        self.cache[split] = found
        return found

    def report(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Logs, for each metric, the mean over data sets and the value of each."""
        for metric, sets in values.items():
            self.log(metric, sum(sets.values()) / len(sets), batch_size=1)
            for name, value in sets.items():
                self.log(f"{metric}/{name}", value, batch_size=1)


class KernelSearch(Regression):
    """A fixed kernel, its scales, the noise and the prior chosen by validation likelihood.

    One training step tries one pair (w_std, b_std) on every data set, with all noises at the price
    of one eigendecomposition, and all priors of the arm's list.

    Args:
        depth: hidden layers of the kernel, or residual blocks.
        act: its nonlinearity.
        residual: whether the network has skip connections.
        w_stds: to be tried.
        b_stds: likewise.
        noises: likewise; variances in units of σ_v².
        priors: lists of priors by name.
        prior: the name of the list that the arm may choose from.
        references: names of lists with which the arm is compared on each data set.
        tolerance: nats by which an arm may be behind and still match a reference.
        sizes: also learn from so many of the training examples.
        subsets: random subsets of each such size.
        options: see `Regression`.
    """

    def __init__(
        self,
        depth: int,
        act: str,
        w_stds: Sequence[float],
        b_stds: Sequence[float],
        noises: Sequence[float],
        priors: Mapping[str, Sequence[ScalePrior]],
        prior: str,
        residual: bool = False,
        references: Sequence[str] = (),
        tolerance: float = 0.0,
        sizes: Sequence[int] = (),
        subsets: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name in (prior, *references):
            if name not in priors:
                raise UserError(
                    f"nngp_mixture: there is no prior '{name}'; known: {', '.join(priors)}."
                    f"{did_you_mean(name, priors)}"
                )
        if not w_stds or not b_stds or not noises or min(noises) <= 0:
            raise UserError("nngp_mixture: w_stds, b_stds and (positive) noises are not empty.")
        self.kernels = [
            NNGPKernel(depth, act, w, b, residual=residual).requires_grad_(False)
            for w in w_stds
            for b in b_stds
        ]
        self.noises = torch.tensor(list(noises), dtype=torch.float64)
        self.names = [prior, *(name for name in references if name != prior)]
        self.priors = {name: list(priors[name]) for name in self.names}
        self.tolerance, self.sizes, self.subsets = tolerance, list(sizes), subsets

    def setup(self, stage: str) -> None:
        """Makes room for the validation scores, and checks that training is long enough.

        Raises:
            UserError: fewer steps than kernels.
        """
        for name in self.names:
            if not hasattr(self, f"scores_{name}"):
                shape = (
                    len(self.part("train")), len(self.kernels), len(self.priors[name]),
                    len(self.noises),
                )  # fmt: skip
                full = torch.full(shape, math.inf, dtype=torch.float64)
                self.register_buffer(f"scores_{name}", full)
        epochs = self.trainer.max_epochs or 0
        if stage == "fit" and epochs < len(self.kernels):
            raise UserError(
                f"nngp_mixture: the grid has {len(self.kernels)} kernels, one for each epoch:"
                f" training.epochs={epochs} is too few."
            )

    def scores(self, name: str) -> Tensor:
        """Validation scores (sets, kernels, priors, noises) of a list of priors."""
        return self.get_buffer(f"scores_{name}")

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Tries one kernel."""
        index = self.global_step
        kernel, noises = self.kernels[index], self.noises.to(self.device)
        validation = self.part("val")
        for number, (name, train) in enumerate(self.part("train").items()):
            fit = condition_kernel(kernel, *train, validation[name][0], noises)
            for prior_name, priors in self.priors.items():
                self.scores(prior_name)[number, index] = _nlls(priors, fit, validation[name][1])
        self.tick()
        loss = self.scores(self.names[0])[:, : index + 1].flatten(1).amin(1).mean()
        self.log("train/loss", loss, batch_size=1)
        if index + 1 == len(self.kernels):
            self.trainer.should_stop = True
        return {"loss": loss}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the best score so far."""
        best = self.scores(self.names[0]).flatten(1).amin(1)
        self.watch({"nll": float(best.mean())})

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the measures of what was chosen, on each data set."""
        values: dict[str, dict[str, float]] = {}
        stds = self.target_stds()
        for number, (name, test) in enumerate(self.part("test").items()):
            nll = {}
            for prior_name in self.names:
                table = self.scores(prior_name)[number]
                k, p, e = torch.unravel_index(table.argmin(), table.shape)
                prior = self.priors[prior_name][p]
                started = time.perf_counter()
                train = self.part("train")[name]
                fit = condition_kernel(self.kernels[k], *train, test[0], self.noises[e].to(test[1]))
                solved = time.perf_counter()
                law = prior.predict(fit)
                nll[prior_name] = float(law.nll(test[1]))
                if prior_name != self.names[0]:
                    continue
                took = (solved - started, time.perf_counter() - solved)
                measured = _measured(law, test[1], stds[name]) | {
                    "test/noise": float(self.noises[e]),
                    "test/evidence": float(prior.log_evidence(fit)) / fit.size,
                    "test/chosen_kernel": float(k),
                    "test/chosen_prior": float(p),
                    "time/solve_seconds": took[0],
                    "time/predict_seconds": took[1],
                }
                if isinstance(law, MixturePredictive):
                    measured["test/effective_samples"] = float(law.effective_samples)
                if isinstance(prior, InverseGamma):
                    measured |= _sampling_error(prior, fit, test[1])
                small = self._small(int(k), prior_name, int(p), name, test)
                for metric, value in (measured | small).items():
                    values.setdefault(metric, {})[name] = value
            for reference in self.names[1:]:
                matches = nll[self.names[0]] <= nll[reference] + self.tolerance
                values.setdefault(f"test/matches/{reference}", {})[name] = float(matches)
                difference = nll[self.names[0]] - nll[reference]
                values.setdefault(f"test/nll_minus/{reference}", {})[name] = difference
        self.report(values)

    def _small(
        self, kernel: int, prior_name: str, p: int, name: str, test: Part
    ) -> dict[str, float]:
        """Scores of the chosen kernel and prior, learning from few examples.

        The noise is chosen anew for each subset, by the validation split.
        """
        chosen, prior = self.kernels[kernel], self.priors[prior_name][p]
        x, y = self.part("train")[name]
        validation, noises = self.part("val")[name], self.noises.to(y)
        scores = {}
        for size in (size for size in self.sizes if size < len(y)):
            total = 0.0
            for subset in range(self.subsets):
                index = torch.randperm(len(y), generator=generator_for(self.seed, subset, size))
                few = (x[index[:size].to(x.device)], y[index[:size].to(x.device)])
                fit = condition_kernel(chosen, *few, validation[0], noises)
                best = prior.predict(fit).nll(validation[1]).argmin()
                fit = condition_kernel(chosen, *few, test[0], noises[best][None])
                total += float(prior.predict(fit).nll(test[1]))
            scores[f"test/few/{size}/nll"] = total / self.subsets
        return scores


class KernelTraining(Regression):
    """Kernels whose scales, noise and prior are trained by gradient descent on the evidence.

    Every data set has its own, and keeps those of its best validation.

    Args:
        kernel: the starting point.
        noise: likewise, positive.
        alpha: of the inverse gamma prior, trained; None for the NNGP, whose scale is in the kernel.
        beta: likewise.
        options: see `Regression`.
    """

    best: Tensor

    @checked
    def __init__(
        self,
        kernel: NNGPKernel,
        noise: Positive,
        alpha: Positive | None = None,
        beta: Positive = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.start = functools.partial(TrainedProcess, kernel, noise, alpha, beta)
        self.models, self.kept = nn.ModuleDict(), nn.ModuleDict()

    @override
    def setup(self, stage: str) -> None:
        """Gives every data set its kernel."""
        if not len(self.models):
            for name in self.part("train"):
                self.models[name] = self.start()
                self.kept[name] = self.start().requires_grad_(False)
            self.register_buffer("best", torch.full((len(self.models),), math.inf))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One step on the whole training set of each."""
        parts = self.part("train")
        losses = [self._model(self.models, name).loss(*part) for name, part in parts.items()]
        loss = torch.stack(losses).mean()
        self.descend(loss * len(losses))
        self.log("train/loss", loss.detach(), batch_size=1)
        return {"loss": loss.detach()}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the likelihood of the validation split, and keeps what is best."""
        scores = []
        for number, (name, part) in enumerate(self.part("val").items()):
            model = self._model(self.models, name)
            fit = model.fit(*self.part("train")[name], part[0])
            scores.append(float(model.prior.predict(fit).nll(part[1])))
            if scores[-1] < self.best[number]:
                self.best[number] = scores[-1]
                self.kept[name].load_state_dict(model.state_dict())
        self.watch({"nll": sum(scores) / len(scores)})

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the measures, also of Gaussian processes with the same kernel."""
        values: dict[str, dict[str, float]] = {}
        stds = self.target_stds()
        for name, part in self.part("test").items():
            model = self._model(self.kept, name)
            fit = model.fit(*self.part("train")[name], part[0])
            w_std, b_std, last = model.kernel.scales()
            measured = _measured(model.prior.predict(fit), part[1], stds[name]) | {
                "test/as_gaussian/nll": float(FixedScale().predict(fit).nll(part[1])),
                "test/as_scaled_gaussian/nll": float(LikeliestScale().predict(fit).nll(part[1])),
                "test/noise": float(model.noise),
                "test/w_std": float(w_std),
                "test/b_std": float(b_std),
                "test/last_w_std": float(last),
            }
            for metric, value in measured.items():
                values.setdefault(metric, {})[name] = value
        self.report(values)

    @staticmethod
    def _model(models: nn.ModuleDict, name: str) -> TrainedProcess:
        model = models[name]
        assert isinstance(model, TrainedProcess)
        return model


def _measured(law: Predictive, y: Tensor, std: float) -> dict[str, float]:
    """What is said of every prediction of test targets, whose unit is ``std``."""
    nll = float(law.nll(y))
    return {
        "test/nll": nll,
        "test/nll_original": nll + math.log(std),
        "test/rmse": float((law.mean - y).square().mean().sqrt()),
        "test/coverage": float(law.coverage(y)),
    }


def _nlls(priors: Sequence[ScalePrior], fit: Fit, y: Tensor) -> Tensor:
    """Scores (priors, noises); what is not finite is never the best."""
    scores = torch.stack([prior.predict(fit).nll(y) for prior in priors])
    return scores.nan_to_num(math.inf, math.inf, math.inf)


def _sampling_error(prior: InverseGamma, fit: Fit, y: Tensor) -> dict[str, float]:
    """How far importance sampling is from the closed form, and how many of its samples count."""
    started = time.perf_counter()
    law = Sampled(prior).predict(fit)
    sampled = law.log_prob(y)
    seconds = time.perf_counter() - started
    assert isinstance(law, MixturePredictive)
    exact = prior.predict(fit).log_prob(y)
    return {
        "test/sampling/effective": float(law.effective_samples),
        "test/sampling/error": float((sampled - exact).abs().max()),
        "time/sampling_seconds": seconds,
    }
