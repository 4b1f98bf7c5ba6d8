"""Affine registration by gradient descent on the overlap of masks and of their skeletons."""

from __future__ import annotations

from typing import ClassVar

import torch
from repro.experiments.skeleton.benchmark import skeletonizer_for_loss
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.methods.skeleton import dice, overlap_loss
from repro.toolbox.method import Batch, OptimizerFactory
from repro.training.procedure import Evaluated, ScheduleFactory

SPLITS = ("val", "test")


class Registration(Evaluated):
    """Finds, for every pair of masks, the affine map that brings moving onto fixed.

    One training step moves the maps of all pairs, each by its own gradient, of the same loss as in
    `Segmentation`: the share of the centreline term is what arms differ in. Pairs of ``val`` are
    there to choose hyper-parameters by.

    Args:
        model: not used. That its weights were drawn is part of what a seed stands for.
        method: the skeletonisation of the loss; ``method=none`` aligns by Dice alone.
        optimizer: of the maps.
        schedule: of its rate.
        share: weight of the centreline term, in [0, 1].

    Raises:
        UserError: the share lies outside [0, 1], or the method cannot pass gradients.
    """

    METRICS: ClassVar = {"train/loss": "mean over pairs of the loss"} | {
        f"{split}/{name}": meaning
        for split in SPLITS
        for name, meaning in {
            "landmark_error": "mean distance between true and found landmarks, in points",
            "start_error": "the same before registration",
            "dice": "overlap of the masks, in [0, 1]",
        }.items()
    }
    fixed: Tensor
    moving: Tensor
    there: Tensor
    here: Tensor
    fixed_skeleton: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        method: object,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        share: float = 0.5,
    ) -> None:
        del model
        super().__init__(optimizer, schedule)
        self.skeletonizer = skeletonizer_for_loss(method, share)
        self.share = share

    @override
    def setup(self, stage: str) -> None:
        """Takes the pairs of both splits, and starts from maps that change nothing.

        Raises:
            UserError: the data are no pairs with landmarks.
        """
        splits = getattr(self.data, "splits", {})
        if len(splits.get("val", ())) != 4:
            raise UserError("skeleton: registration takes pairs with landmarks: dataset=arches.")
        if hasattr(self, "maps"):
            return
        self.sizes = [len(splits[name][0]) for name in SPLITS]
        both = [torch.cat(parts) for parts in zip(*(splits[s] for s in SPLITS), strict=True)]
        for name, tensor in zip(("fixed", "moving", "there", "here"), both, strict=True):
            self.register_buffer(name, tensor.to(self.device), persistent=False)
        same = torch.eye(2, 3, device=self.device)
        self.maps = nn.Parameter(same.repeat(sum(self.sizes), 1, 1))
        with torch.no_grad():
            skeleton = None if self.skeletonizer is None else self.skeletonizer(self.fixed)
        self.register_buffer("fixed_skeleton", skeleton, persistent=False)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of every map; the batch only says that it is time."""
        losses = overlap_loss(
            self.warped(), self.fixed, self.skeletonizer, self.share, self.fixed_skeleton
        )
        self.descend(losses.sum())  # so that no pair's gradient depends on their number
        self.log("train/loss", losses.detach().mean())
        return {"loss": losses.detach().mean()}

    def warped(self) -> Tensor:
        """The moving masks as the maps place them, (N, 1, H, W) in [0, 1]."""
        grid = F.affine_grid(self.maps, list(self.moving.shape), align_corners=False)
        # Weights of interpolation sum to one up to rounding.
        return F.grid_sample(self.moving, grid, align_corners=False).clamp(0, 1)

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Everything is measured at the end of the epoch."""

    def measured(self) -> dict[str, Tensor]:
        """The errors of the split's pairs; choices may be made by those of ``val``."""
        part = SPLITS.index(self.split)
        rows = slice(sum(self.sizes[:part]), sum(self.sizes[: part + 1]))
        there, here, maps = self.there[rows], self.here[rows], self.maps[rows]
        found = there @ maps[:, :, :2].mT + maps[:, None, :, 2]
        half = self.fixed.shape[-1] / 2  # points per unit of the coordinates
        overlaps = dice((self.warped()[rows] > 0.5).float(), self.fixed[rows])
        return {
            "landmark_error": half * (found - here).norm(dim=-1).mean(),
            "start_error": half * (there - here).norm(dim=-1).mean(),
            "dice": overlaps.mean(),
        }
