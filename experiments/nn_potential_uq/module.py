"""Samples of a potential's parameters, observables of each, and how good their intervals are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.methods.nn_potential_uq import (
    Chains,
    Ensembling,
    ForceMatching,
    Interval,
    Sampling,
    crps,
    effective_size,
    propagate,
    recalibration,
    rhat,
)
from repro.toolbox.method import Batch, Method
from repro.training.procedure import Procedure, refuse_methods

START, NOISE, BATCHES, KEPT, RANDOM, SIMULATION, PRIOR = range(7)  # what is drawn


class Cell(NamedTuple):
    """Chains of one temperature and one amount of data, all of which are judged together."""

    name: str
    size: int

    @property
    def key(self) -> str:
        """What its metrics end with."""
        return f"{self.name}/n{self.size}"


class PotentialUQ(Procedure):
    """Trains all chains of all cells side by side; a training step is a block of their steps.

    Data of N states are the first N of the training split. A metric ends with the temperature's
    name (``t1``, …, or ``all`` for an ensemble) and N: ``test/score/t1/n1000``. ``tval`` is the
    temperature of the best validation likelihood, ``trandom`` one that is drawn.

    Args:
        model: energy of a state.
        method: must be the plain one.
        world: observes potentials and knows, or is told by the test split, what is true.
        inference: see `Sampling` and `Ensembling`.
        sizes: N's, rising.
        scales: see `ForceMatching`, as ``prior_std``, ``learn_scales`` and ``stacked``.
        chains: of a cell: chains, or members.
        steps: of each chain.
        samples: kept of each chain.
        segments: pieces that a chain is cut into for R-hat.
        batch_size: states of a chain's step.
        shared_noise: all chains get the same noise, as in the released sampler.
        same_start: all chains start from the same parameters.
        from_prior: nothing is trained; samples come from the prior.
        source: what drew the data, where the true scatter of the forces (its ``sigma``) is known.
        global_std: one standard deviation by N in the place of all others, for a single network.
        reference_size: N at which T = 1 sets the score that others need some N to reach.
        together: most samples that are simulated at once.
        seed: of the chains; the data have theirs.
    """

    METRICS: ClassVar = {
        "train/loss": "mean loss of all chains: minus the log-posterior, or a squared error",
        "val/loss": "mean squared error of the forces, over chains",
        "val/nll/*": "minus the log-likelihood of a state's forces, mixture of all samples",
        "val/chosen/*": "the temperature that has the least of it",
        "val/gradients_to_end/*": "gradients until the validation error is within 1 % of its end",
        "test/coverage/*": "share of bins whose truth lies in mean ± 1.96 std",
        "test/error/*": "mean absolute error of the mean, over bins",
        "test/rms_error/*": "root of its mean square",
        "test/std/*": "mean standard deviation, over bins",
        "test/ratio/*": "error over std",
        "test/score/*": "interval score at 95 %, mean over bins; lower is better",
        "test/crps/*": "continuous ranked probability score, mean over bins",
        "test/rhat/*": "R-hat of the density over chains, mean over bins",
        "test/ess/*": "effective number of samples of the density, mean over bins",
        "test/free_energy/*": "difference of free energy, median over samples (kJ/mol)",
        "test/free_energy_std/*": "a quarter of its central 95 % (kJ/mol)",
        "test/free_energy_rhat/*": "its R-hat",
        "test/force_rmse/*": "root mean square error of the mean force, against noisy forces",
        "test/force_std/*": "standard deviation of the force over samples",
        "test/alpha/*": "factor that would calibrate it on validation forces",
        "test/sigma/*": "learned scatter of the forces; of an ensemble its validation RMSE",
        "test/sigma_ratio/*": "that over the true one",
        "test/slope_std/*": "log-log slope of std over N",
        "test/log2_size/*": "log2 of the smallest N as good as T = 1 at the reference N",
        "cost/gradients": "batch gradients of a cell, all chains together",
    }
    KEPT: ClassVar = ("progress",)

    @checked
    def __init__(
        self,
        model: nn.Module,
        method: Method,
        world: Any,
        inference: Sampling | Ensembling,
        sizes: Sequence[Count],
        scales: Mapping[str, Positive],
        prior_std: Positive | None = 1.0,
        learn_scales: bool = True,
        stacked: bool = True,
        chains: Count = 6,
        steps: Count = 2000,
        samples: Count = 20,
        segments: Count = 1,
        batch_size: Count = 32,
        shared_noise: bool = False,
        same_start: bool = False,
        from_prior: bool = False,
        source: Any = None,
        global_std: Mapping[str, Positive] | None = None,
        reference_size: Count = 2000,
        together: Count = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        refuse_methods(method, "nn_potential_uq samples by itself; it cannot use {method}.")
        self.world, self.inference, self.chain_count = world, inference, chains
        self.posterior = ForceMatching(model, scales, prior_std, learn_scales, stacked)
        self.cells = [Cell(name, size) for size in sizes for name in inference.names]
        self.steps, self.samples, self.segments = steps, samples, segments
        self.batch_size, self.shared_noise = batch_size, shared_noise
        self.same_start, self.from_prior = same_start, from_prior
        self.sigma, self.global_std = getattr(source, "sigma", None), global_std
        self.reference_size, self.together, self.seed = reference_size, together, seed
        self.model = model  # for Lightning to move
        self.progress: dict[str, Any] = {}
        self.chains: Chains | None = None

    # -- Training ---------------------------------------------------------------------------------

    def split(self, name: str) -> Batch:
        """States and targets, where the chains are."""
        return tuple(each.to(self.device) for each in self.data.splits[name])

    def per_chain(self, values: Sequence[int]) -> Tensor:
        """A number of each cell for each of its chains."""
        return torch.tensor(values).repeat_interleave(self.chain_count)

    def on_fit_start(self) -> None:
        """Makes the chains, which go on where a checkpoint says.

        Raises:
            UserError: there are fewer states than a cell wants.
        """
        most, there = max(cell.size for cell in self.cells), len(self.data.splits["train"][0])
        if most > there:
            raise UserError(f"module.sizes: {most} states are asked for, but there are {there}.")
        fit_prior = getattr(getattr(self.model, "prior", None), "fit", None)
        if fit_prior is not None:
            fit_prior(self.split("train")[0])
        names = list(self.inference.names)
        self.name_M = self.per_chain([names.index(cell.name) for cell in self.cells])
        firsts = [0 if self.same_start else chain for chain in range(self.chain_count)]
        starts = [self.posterior.start(self._key(START, chain)) for chain in firsts]
        theta_MQ = torch.stack(starts).repeat(len(self.cells), 1).to(self.device)
        self.generator = generator_for(self.seed, NOISE)
        self.chains = Chains(
            self.inference.loss(self.posterior),
            theta_MQ,
            lambda params: self.inference.optimizer(params, self.name_M, self._noise),
            self.split("train"),
            self.per_chain([cell.size for cell in self.cells]),
            self.batch_size,
        )
        self.rates = self.inference.rates(self.steps)
        kept = self.inference.kept(self.steps, self.samples, generator_for(self.seed, KEPT))
        self.kept = [
            {int(step): k for k, step in enumerate(steps)} for steps in kept
        ]  # by temperature: step -> which sample
        if self.progress:
            self.chains.restore(self.progress["chains"])
            return
        count = 1 if self.inference.best else self.samples
        samples_MKQ = theta_MQ[:, None].repeat(1, count, 1)
        if self.from_prior:
            drawn = self.posterior.draw(
                samples_MKQ[..., 0].numel(), generator_for(self.seed, PRIOR)
            )
            samples_MKQ = drawn.view_as(samples_MKQ)
        least_M = torch.full((len(theta_MQ),), torch.inf, device=self.device)
        self.progress = {"samples": samples_MKQ, "least": least_M, "curve": []}

    def _key(self, kind: int, number: int) -> int:
        return int(generator_for(self.seed, kind, number).initial_seed() % 2**31)

    def _noise(self, theta_MQ: Tensor) -> Tensor:
        rows = 1 if self.shared_noise else len(theta_MQ)
        drawn = torch.randn(rows, theta_MQ.shape[1], generator=self.generator)
        return drawn.to(theta_MQ.device).expand_as(theta_MQ)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """A block of steps of all chains, and a look at the validation error."""
        assert self.chains is not None
        blocks = int(self.trainer.estimated_stepping_batches)
        first, last = (self.steps * k // blocks for k in (self.global_step, self.global_step + 1))
        self.generator = generator_for(self.seed, NOISE, first)
        draws = generator_for(self.seed, BATCHES, first)
        loss = torch.zeros((), device=self.device)
        for step in range(0) if self.from_prior else range(first, last):
            rates_M1 = self.rates[step][self.name_M, None].to(self.chains.theta_MQ)
            for group in self.chains.optimizer.param_groups:
                group["lr"] = float(rates_M1[0]) if len(self.rates[0]) == 1 else rates_M1
            loss = self.chains.step(self.chains.draw(draws)).mean()
            self._keep(step)
        self._look()
        self.progress["chains"] = self.chains.state()
        self.note_loss(loss)
        self.tick()
        return {"loss": loss}

    def _keep(self, step: int) -> None:
        """Adds the parameters of chains of whose temperature this step is a sample."""
        assert self.chains is not None
        if self.inference.best:
            return
        for number, steps in enumerate(self.kept):
            if step in steps:
                rows = (self.name_M == number).to(self.device)
                self.progress["samples"][rows, steps[step]] = self.chains.theta_MQ.detach()[rows]

    def _look(self) -> None:
        """Notes every chain's validation error, and its parameters where that is the least."""
        assert self.chains is not None
        theta_MQ = self.chains.theta_MQ.detach()
        x, forces = self.split("val")[:2]
        error_M = (self._forces(theta_MQ, x) - forces).flatten(1).square().mean(1)
        if self.inference.best:
            better = error_M < self.progress["least"]
            theta_MQ = theta_MQ.clone()
            theta_MQ[:, self.posterior.network_size] = self._log_scale(error_M)
            self.progress["samples"][better, 0] = theta_MQ[better]
            self.progress["least"] = torch.minimum(error_M, self.progress["least"])
        self.progress["curve"] = [*self.progress["curve"], error_M.cpu()]

    def _log_scale(self, error_M: Tensor) -> Tensor:
        """An ensemble has no σ; its validation RMSE is what stands for it."""
        return (error_M.sqrt() / self.posterior.scales["forces"]).log()

    def _forces(self, theta_MQ: Tensor, x: Tensor) -> Tensor:
        """Forces (M, B, …) of states (B, …) that all share, in pieces."""
        potentials = self.posterior.at(theta_MQ)
        parts = [
            potentials.forces(part, shared=True) for part in x.split(self.data.eval_batch_size)
        ]
        return torch.cat(parts, 1)

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss."""
        self.log("train/loss", self.running_loss.take())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: a training step has looked at all validation data."""

    def on_validation_epoch_end(self) -> None:
        """Logs the validation error."""
        curve = self.progress.get("curve")
        if curve:
            self.log("val/loss", curve[-1].mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: samples are judged, not batches."""

    # -- Judging ----------------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Observes every sample, and logs all cells."""
        found: dict[str, float] = {"cost/gradients": float(self.steps * self.chain_count)}
        for number, cell in enumerate(self.cells):
            rows = slice(number * self.chain_count, (number + 1) * self.chain_count)
            samples_CSQ = self.progress["samples"][rows].to(self.device)
            with torch.inference_mode(False):  # forces are gradients
                samples_CSQ = samples_CSQ.clone()
                measured = self.judge(cell, samples_CSQ) | self._matched(samples_CSQ)
                measured["val/gradients_to_end"] = self._gradients_to_end(rows)
            found |= {f"{name}/{cell.key}": value for name, value in measured.items()}
        found |= self.choices(found)
        self.log_dict({k: float(v) for k, v in (found | self.trends(found)).items()})

    def judge(self, cell: Cell, samples_CSQ: Tensor) -> dict[str, float]:
        """What samples say of observables, against the truth."""
        truth = self.world.reference(self.split("test")[0])
        observed = propagate(
            self.posterior.at,
            samples_CSQ.flatten(0, 1),
            self.world.observe,
            generator_for(self.seed, SIMULATION),
            self.split("train")[0],
            self.together,
        )
        density_SK, truth_K = observed["density"], truth["density"].to(self.device)
        interval = Interval.of(density_SK)
        if self.global_std is not None:
            std = self.global_std[f"n{cell.size}"]
            interval = interval._replace(std=torch.full_like(interval.std, std))
        error, width = interval.error(truth_K), interval.width
        found = {
            "coverage": interval.coverage(truth_K),
            "error": error,
            "rms_error": float((interval.mean - truth_K).square().mean().sqrt()),
            "std": width,
            "ratio": error / max(width, 1e-12),
            "score": interval.score(truth_K),
            "crps": crps(density_SK, truth_K),
        }
        chains = self.chain_count * self.segments
        diagnosed = len(density_SK) // chains >= 8 and chains > 1
        if diagnosed:
            draws_CSK = density_SK.unflatten(0, (chains, -1))
            found["rhat"] = float(rhat(draws_CSK).mean())
            found["ess"] = float(effective_size(draws_CSK).mean())
        if "free_energy" in observed:
            difference_S = observed["free_energy"][:, 0]
            low, middle, high = difference_S.quantile(difference_S.new_tensor([0.025, 0.5, 0.975]))
            found |= {"free_energy": float(middle), "free_energy_std": float(high - low) / 4}
            if diagnosed:
                found["free_energy_rhat"] = float(rhat(difference_S.view(chains, -1, 1)))
        return {f"test/{name}": value for name, value in found.items()}

    def _matched(self, samples_CSQ: Tensor) -> dict[str, float]:
        """What samples say of forces."""
        samples_SQ = samples_CSQ.flatten(0, 1)
        x, target = self.split("val")[:2]
        forces_SB = torch.cat([self._forces(part, x) for part in samples_SQ.split(self.together)])
        sigma_S = self.posterior.sigmas(samples_SQ)["forces"]
        wide_S = sigma_S.view(-1, *[1] * (forces_SB.dim() - 1))
        log_p = torch.distributions.Normal(forces_SB, wide_S).log_prob(target).flatten(2).sum(2)
        mixture_B = log_p.logsumexp(0) - math.log(len(samples_SQ))
        x, test_target = self.split("test")[:2]
        tests = [self._forces(part, x).sum(0) for part in samples_SQ.split(self.together)]
        mean = torch.stack(tests).sum(0) / len(samples_SQ)
        found = {
            "val/nll": -float(mixture_B.mean()),
            "test/force_rmse": float((mean - test_target).square().mean().sqrt()),
            "test/force_std": float(forces_SB.std(0, correction=0).mean()),
            "test/sigma": float(sigma_S.mean()),
        }
        if len(samples_SQ) > 3:
            variance = forces_SB.var(0)
            alpha = recalibration(forces_SB.mean(0), variance, target, len(samples_SQ))
            found["test/alpha"] = alpha
        if self.sigma is not None:
            found["test/sigma_ratio"] = found["test/sigma"] / self.sigma
        return found

    def _gradients_to_end(self, rows: slice) -> float:
        curve = torch.stack([each[rows].mean() for each in self.progress["curve"]])
        first = int((curve <= 1.01 * curve[-1]).nonzero()[0])
        return (first + 1) / len(curve) * self.steps * self.chain_count

    def choices(self, found: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the temperature that validation chooses, and of one drawn at random."""
        names, chosen = list(self.inference.names), {}
        drawn = int(torch.randint(len(names), (), generator=generator_for(self.seed, RANDOM)))
        for size in dict.fromkeys(cell.size for cell in self.cells):
            best = min(names, key=lambda name: found[f"val/nll/{name}/n{size}"])
            chosen[f"val/chosen/n{size}"] = self.inference.temperature(best)
            for label, source in {"tval": best, "trandom": names[drawn]}.items():
                end = f"/{source}/n{size}"
                chosen |= {
                    f"{key.removesuffix(end)}/{label}/n{size}": value
                    for key, value in found.items()
                    if key.endswith(end)
                }
        return chosen

    def trends(self, found: Mapping[str, float]) -> dict[str, float]:
        """How std falls with N, and the N that the score of T = 1 at the reference N takes."""
        sizes = sorted({cell.size for cell in self.cells})
        known: dict[str, float] = {}
        goal = found.get(f"test/score/t1/n{self.reference_size}")
        for label in (*self.inference.names, "tval"):
            std = [found[f"test/std/{label}/n{size}"] for size in sizes]
            if len(sizes) > 1 and min(std) > 0:
                slope = np.polyfit(np.log(sizes), np.log(std), 1)[0]
                known[f"test/slope_std/{label}"] = float(slope)
            if goal is not None:
                scores = [found[f"test/score/{label}/n{size}"] for size in sizes]
                there = [n for n, score in zip(sizes, scores, strict=True) if score <= goal]
                known[f"test/log2_size/{label}"] = math.log2(min(there, default=2 * sizes[-1]))
        return known
