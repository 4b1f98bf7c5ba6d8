"""Training a network in stages: every stage fits a few units to what the others left over."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, NonNegative, Share, checked
from repro.methods.gbnn.block import fit_block, random_starts
from repro.methods.gbnn.losses import Loss, Prior
from repro.methods.gbnn.network import BoostedNetwork
from repro.toolbox.method import Method

# A Newton step divides by a curvature: on separated data it vanishes, and the block is skipped.
SMALLEST_CURVATURE = 1e-12


class GradientBoosting(Method):
    """The settings of a boosted network (Emami & Martínez-Muñoz, arXiv 1909.12098).

    Args:
        units: hidden units in all; rounded down to whole blocks.
        per_step: J, hidden units of one block.
        shrinkage: η in (0, 1].
        subsample: s in (0, 1], the part of the points that a block is fitted to, drawn without
            replacement; residuals, line search and scores use all points.
        iterations: most L-BFGS steps of a block.
        alpha: weight decay of a block, as in scikit-learn.
        restarts: starting points of a block; the best fit is kept. The published algorithm has
            one.
        prior: F_0 with three or more classes, see `repro.methods.gbnn.losses.Multinomial`.
        seed: decides starting points and subsamples: stage t draws from (seed, t) alone, so a
            continued training needs no state of a generator.

    Raises:
        UserError: a setting is out of its range.
    """

    @checked
    def __init__(
        self,
        units: Count = 200,
        per_step: Count = 1,
        shrinkage: Share = 1.0,
        subsample: Share = 0.5,
        iterations: Count = 200,
        alpha: NonNegative = 1e-4,
        restarts: Count = 1,
        prior: Prior = "zeros",
        seed: int = 0,
    ) -> None:
        if per_step > units:
            raise UserError(f"gbnn: per_step={per_step} is more than units={units}.")
        self.units, self.per_step, self.shrinkage = units, per_step, shrinkage
        self.subsample, self.iterations, self.alpha = subsample, iterations, alpha
        self.restarts, self.prior, self.seed = restarts, prior, seed

    @property
    def blocks(self) -> int:
        """T, the number of stages."""
        return self.units // self.per_step

    @override
    def attach(self, model: nn.Module) -> None:
        """Refuses: boosting builds its own network.

        Raises:
            UserError: always.
        """
        raise UserError(
            "gbnn trains no given model: it builds a network of its own, unit by unit. "
            "Use it with paper=gbnn and any dataset of classification or regression."
        )

    def fit(self, x: Tensor, target: Tensor, loss: Loss) -> BoostedNetwork:
        """Trains a network from nothing.

        Args:
            x: inputs (N, …), standardised.
            target: what ``loss.encode`` takes.
            loss: see `repro.methods.gbnn.losses.loss_for`.
        """
        booster = Booster(self, loss, x[0].numel(), loss.encode(target).shape[1])
        for _ in range(self.blocks):
            stage(booster, x, target)
        return booster.network


class Booster(nn.Module):
    """A network in training, and the scores of its training points.

    Args:
        settings: how it is trained.
        loss: what it minimises.
        inputs: D.
        outputs: K.
    """

    def __init__(self, settings: GradientBoosting, loss: Loss, inputs: int, outputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.loss = loss
        self.network = BoostedNetwork(
            inputs, outputs, settings.blocks, settings.per_step, loss.output_scale
        )
        self.seen: Tensor | None = None  # the points that `scores_NK` belongs to
        self.scores_NK: Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether all its blocks are trained."""
        return int(self.network.trained) == self.network.blocks

    def scores(self, x_ND: Tensor, y_NK: Tensor) -> Tensor:
        """F of the training points: kept from stage to stage while they come in the same order."""
        if int(self.network.trained) == 0:
            self.network.constant.copy_(self.loss.constant(y_NK))
        if self.scores_NK is None or self.seen is None or not torch.equal(self.seen, x_ND):
            self.seen, self.scores_NK = x_ND, self.network(x_ND)
        return self.scores_NK


@torch.no_grad()
def stage(booster: Booster, x: Tensor, target: Tensor) -> None:
    """One boosting stage.

    Pseudo-residuals of all points; a block fitted to those of a random subset; the Newton line
    search ρ = Σ f r / Σ f² h over all points and outputs; F ← F + η ρ f.

    Args:
        booster: the network in training.
        x: inputs (N, …) of all training points.
        target: their targets, as ``loss.encode`` takes them.
    """
    settings, loss, network = booster.settings, booster.loss, booster.network
    x_ND, y_NK = x.double().flatten(1), loss.encode(target)
    N, D, K, J = *x_ND.shape, y_NK.shape[1], settings.per_step
    scores_NK = booster.scores(x_ND, y_NK)
    residual_NK = loss.residual(y_NK, scores_NK)

    generator = generator_for(settings.seed, int(network.trained))
    start_RP = random_starts(settings.restarts, D, J, K, generator)
    subset = torch.randperm(N, generator=generator)[: max(1, int(settings.subsample * N))]
    points = (x_ND[subset], residual_NK[subset]) if len(subset) < N else (x_ND, residual_NK)
    fits = [
        fit_block(*points, start_P, J, settings.alpha, settings.iterations) for start_P in start_RP
    ]
    network.add(min(fits, key=lambda fit: fit[1])[0])

    step_NK = network.contribution(int(network.trained) - 1, x_ND)
    factor = x_ND.new_tensor(settings.shrinkage)
    if loss.newton:
        factor = factor * newton_step(step_NK, residual_NK, loss.hessian(y_NK, scores_NK))
    network.factor[int(network.trained) - 1] = factor
    booster.scores_NK = scores_NK + factor * step_NK


def newton_step(f_NK: Tensor, r_NK: Tensor, h_NK: Tensor) -> Tensor:
    """ρ = Σ f r / Σ f² h: one number for all points and outputs; 0 where no curvature is left."""
    curvature = (f_NK.square() * h_NK).sum()
    usable = curvature > SMALLEST_CURVATURE * f_NK.square().sum()
    return torch.where(usable, (f_NK * r_NK).sum() / curvature, 0.0)
